//! One admitted request, from raw inputs to outputs, failover included.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{Admission, Mirrored};
use crate::error::{Error, Result};
use crate::generation::{Generation, Stage, Stamp, Stats};
use crate::model::Input;
use crate::process::{FinishOptions, PrepareOptions};
use crate::value::{Output, RawInput, Task};

/// Inputs of a request that are more than this together are prepared off the threads that serve connections: a text of so
/// many bytes takes one of them for about a millisecond.
pub(super) const HEAVY_TEXT_BYTES: usize = 4 << 10;
const HEAVY_PIXELS: u64 = 128 * 128;

/// What a client asks.
#[derive(Debug, Clone)]
pub struct Ask {
    pub inputs: Vec<RawInput>,
    pub prepare: PrepareOptions,
    pub finish: FinishOptions,
    /// The client's own deadline; the model's limit holds as well.
    pub deadline: Option<Duration>,
}

#[derive(Debug, Clone)]
pub struct Answer {
    pub outputs: Vec<Output>,
    /// Tokens (or patches) that the inputs came to.
    pub tokens: usize,
    pub stamp: Stamp,
    /// The generation that failed it first, when its predecessor answered.
    pub failed_over_from: Option<Stamp>,
}

impl Admission {
    /// Answers the request on the generation that it was admitted to, whole.
    ///
    /// When this returns, nothing of the request holds the generation any more: a slow reader keeps no model
    /// resident. Dropping the future cancels what has not run.
    pub async fn answer(self, ask: Ask) -> Result<Answer> {
        let began = Instant::now();
        let generation = self.generation();
        if generation.contract.task == Task::Generate {
            let message =
                "this model writes text: ask it by /v1/completions, /v1/chat/completions or /models/{model}/infer";
            return Err(Error::bad_request(message));
        }
        let most = generation.limits.max_inputs;
        if ask.inputs.len() > most {
            let got = ask.inputs.len() as u64;
            return Err(Error::TooLarge { what: "number of inputs", got, limit: most as u64 });
        }
        let _permit = generation.lane.permit(ask.inputs.len())?;
        let limit = ask.deadline.map_or(generation.limits.deadline, |d| d.min(generation.limits.deadline));
        let work = async {
            let inputs: Arc<[RawInput]> = ask.inputs.into();
            let first = run(generation, &inputs, &ask.prepare, &ask.finish, false).await;
            self.settle(first, &inputs, &ask.prepare, &ask.finish, began).await
        };
        let mut wait = Wait { stats: &generation.stats, began, counts: !self.is_named() };
        let answer = tokio::time::timeout(limit, work).await;
        match answer {
            Ok(answer) => {
                wait.counts = false;
                answer
            }
            Err(_) => {
                // Only the model's own limit is a fault of the model; a client may be as impatient as it likes.
                if limit == generation.limits.deadline && std::mem::take(&mut wait.counts) {
                    generation.stats.timed_out(limit);
                }
                Err(Error::Deadline { limit })
            }
        }
    }

    /// Counts the outcome, and runs a request that the generation failed again on its predecessor.
    async fn settle(
        &self,
        first: Result<(Vec<Output>, usize)>,
        inputs: &Arc<[RawInput]>,
        prepare: &PrepareOptions,
        finish: &FinishOptions,
        began: Instant,
    ) -> Result<Answer> {
        let generation = self.generation();
        let took = began.elapsed();
        match &first {
            Ok(_) => generation.stats.spend(Stage::Answered, took),
            Err(fault) if fault.is_model_fault() => generation.stats.spend(Stage::Failed, took),
            // The client's, or the moment's.
            Err(_) => {}
        }
        match first {
            Ok((outputs, tokens)) => {
                self.counting().answered(took);
                if let Some(shadow) = self.shadow() {
                    let (inputs, outputs) = (Arc::clone(inputs), outputs.clone());
                    let (prepare, finish) = (prepare.clone(), finish.clone());
                    shadow.offer(Mirrored::Answered { inputs, prepare, finish, outputs, took });
                }
                Ok(Answer { outputs, tokens, stamp: generation.stamp.clone(), failed_over_from: None })
            }
            Err(fault) if fault.is_model_fault() && !self.is_named() => {
                let nonfinite = matches!(fault, Error::NonFinite { .. });
                let Some(previous) = self.failover() else {
                    self.counting().blame(nonfinite);
                    return Err(fault);
                };
                tracing::warn!(
                    model = &*generation.stamp.model, version = generation.version(), previous = previous.version(),
                    error = %fault, "a request failed; running it again on the previous version"
                );
                match run(previous, inputs, prepare, finish, true).await {
                    Ok((outputs, tokens)) => {
                        self.counting().blame(nonfinite);
                        generation.stats.failed_over();
                        let failed_over_from = Some(generation.stamp.clone());
                        Ok(Answer { outputs, tokens, stamp: previous.stamp.clone(), failed_over_from })
                    }
                    Err(_) => {
                        generation.stats.unexplained();
                        Err(fault)
                    }
                }
            }
            Err(error) => Err(error),
        }
    }
}

/// How long a client waits: counted where it leaves, or its own deadline passes, before it is answered. Without that, a version
/// that is too slow for all of its clients would have no latencies at all.
struct Wait<'a> {
    stats: &'a Stats,
    began: Instant,
    counts: bool,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if self.counts {
            self.stats.given_up(self.began.elapsed());
        }
    }
}

/// Raw inputs to outputs on one generation: its processor, its lane, its processor again.
async fn run(
    generation: &Arc<Generation>,
    inputs: &Arc<[RawInput]>,
    prepare: &PrepareOptions,
    finish: &FinishOptions,
    urgent: bool,
) -> Result<(Vec<Output>, usize)> {
    let stats = &generation.stats;
    let began = Instant::now();
    let prepared = if are_heavy(inputs) {
        prepare_heavy(generation, inputs, prepare).await?
    } else {
        inputs.iter().map(|input| generation.processor.prepare(input, prepare)).collect::<Result<_>>()?
    };
    stats.spend(Stage::Prepared, began.elapsed());
    let tokens = prepared.iter().map(|input| input.cost(1)).sum();
    let rows = generation.lane.run(prepared, urgent).await?;
    let began = Instant::now();
    let outputs = rows.into_iter().map(|row| generation.processor.finish(row, finish)).collect::<Result<_>>()?;
    stats.spend(Stage::Finished, began.elapsed());
    Ok((outputs, tokens))
}

/// Off the threads that serve connections, in turn, and not beyond what somebody waits for. Where there is room for more than one
/// at a time, inputs of a request are prepared side by side.
async fn prepare_heavy(
    generation: &Arc<Generation>,
    inputs: &Arc<[RawInput]>,
    options: &PrepareOptions,
) -> Result<Vec<Input>> {
    let mut turns = vec![Arc::clone(&generation.preparing).acquire_owned().await.map_err(Error::internal)?];
    while turns.len() < inputs.len()
        && let Ok(turn) = Arc::clone(&generation.preparing).try_acquire_owned()
    {
        turns.push(turn);
    }
    // Gone with this future, when the client leaves or its deadline passes.
    let asked = Arc::new(());
    let next = Arc::new(AtomicUsize::new(0));
    let side_by_side: Vec<_> = turns
        .into_iter()
        .map(|turn| {
            let (generation, inputs, options) = (Arc::clone(generation), Arc::clone(inputs), options.clone());
            let (next, waited_for) = (Arc::clone(&next), Arc::downgrade(&asked));
            tokio::task::spawn_blocking(move || {
                let _turn = turn;
                let mut prepared = Vec::new();
                while waited_for.strong_count() > 0 {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(input) = inputs.get(place) else { break };
                    let one = generation.processor.prepare(input, &options);
                    if one.is_err() {
                        // Those before it were taken before, and are still looked at: the first that is wrong is told.
                        next.store(inputs.len(), Ordering::Relaxed);
                    }
                    prepared.push((place, one));
                }
                prepared
            })
        })
        .collect();
    let mut prepared = Vec::with_capacity(inputs.len());
    for work in side_by_side {
        prepared.extend(work.await.map_err(|e| Error::internal(format!("preparing inputs failed: {e}")))?);
    }
    drop(asked);
    prepared.sort_by_key(|(place, _)| *place);
    prepared.into_iter().map(|(_, one)| one).collect()
}

/// What `work` makes of a generation, off the threads that serve connections, in turn with what else is heavy.
pub async fn heavy<T: Send + 'static>(
    generation: &Arc<Generation>,
    work: impl FnOnce(&Generation) -> Result<T> + Send + 'static,
) -> Result<T> {
    let turn = Arc::clone(&generation.preparing).acquire_owned().await.map_err(Error::internal)?;
    let generation = Arc::clone(generation);
    let work = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        work(&generation)
    });
    work.await.map_err(|e| Error::internal(format!("preparing inputs failed: {e}")))?
}

/// Whether preparing takes long enough to be kept off the threads that serve connections.
fn are_heavy(inputs: &[RawInput]) -> bool {
    let (mut text, mut pixels) = (0usize, 0u64);
    for input in inputs {
        match input {
            RawInput::Text(one) => text += one.len(),
            RawInput::Pair(a, b) => text += a.len() + b.len(),
            RawInput::Tokens(_) => {}
            // Only a PNG says in its first bytes how large it is.
            RawInput::Image(file) => pixels = pixels.saturating_add(png_pixels(file).unwrap_or(u64::MAX)),
        }
    }
    text > HEAVY_TEXT_BYTES || pixels > HEAVY_PIXELS
}

/// Pixels that a PNG file's header declares (PNG specification, 11.2.2 IHDR).
fn png_pixels(file: &[u8]) -> Option<u64> {
    const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
    let header = file.strip_prefix(SIGNATURE)?.get(8..16)?;
    let number = |bytes: &[u8]| bytes.iter().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
    Some(number(&header[..4]).saturating_mul(number(&header[4..])))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The head of a PNG of so many pixels a side.
    fn png(side: u32) -> RawInput {
        let head = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR";
        RawInput::Image([head.as_slice(), &side.to_be_bytes(), &side.to_be_bytes()].concat())
    }

    fn text(bytes: usize) -> RawInput {
        RawInput::Text("x".repeat(bytes))
    }

    #[test]
    fn many_small_inputs_are_as_heavy_as_one_large_one() {
        assert!(!are_heavy(&[text(HEAVY_TEXT_BYTES)]));
        assert!(are_heavy(&[text(HEAVY_TEXT_BYTES + 1)]));
        assert!(are_heavy(&vec![text(8); HEAVY_TEXT_BYTES / 8 + 1]));
        assert!(are_heavy(&[RawInput::Pair("a".into(), "b".repeat(HEAVY_TEXT_BYTES))]));
        assert!(!are_heavy(&[png(128)]) && are_heavy(&[png(129)]) && are_heavy(&[png(91), png(91)]));
        assert!(are_heavy(&[RawInput::Image(b"a JPEG".to_vec())]) && are_heavy(&[png(u32::MAX), png(1)]));
        assert!(!are_heavy(&[RawInput::Tokens(vec![1; 1 << 20])]));
    }
}
