//! Shadow traffic: a sample of what the live version answered, computed again on the other resident version at the lowest
//! priority, compared, and thrown away.
//!
//! One thread of its own prepares inputs, has the engine run them when nothing else waits, and counts (`compare`, `tally`).
//! It holds neither generation: one that goes answers with an error, and the shadow ends with its route.

mod compare;
mod show;
mod tally;

use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::Context;
use super::judge::Verdict;
use super::quiet::{Urgency, quietly};
use crate::engine::Timed;
use crate::error::{Error, Kind, Result};
use crate::generation::{GenerationId, Observed, Stats};
use crate::model::{Input, Tokens};
use crate::process::{FinishOptions, PrepareOptions, Processor};
use crate::repository::ShadowConfig;
use crate::schedule::Class;
use crate::slot::{Mirrored, Shadow, Share};
use crate::value::{Output, RawInput};
use compare::Agreement;
use tally::Case;
use tally::Tally;

/// Answers that may wait to be computed again; those that find no room are dropped.
const WAITING: usize = 64;

/// Of so many answers one is also computed by the live version alone, for the time that this takes.
const TIMED: u64 = 4;

/// A version as a shadow needs it, without holding its generation.
#[derive(Clone)]
pub(super) struct Side {
    pub(super) generation: GenerationId,
    pub(super) version: String,
    pub(super) processor: Arc<Processor>,
    /// Digest of its tokenizer: token ids mean the same only where these are equal.
    pub(super) tokenizer: Option<String>,
}

/// A shadow that goes on until this is dropped.
pub(super) struct Run {
    seen: Arc<Seen>,
    /// Closed when this is dropped, which the worker waits for.
    _goes_on: watch::Sender<()>,
}

/// What a shadow has seen; it stays when the shadow has ended.
pub(super) struct Seen {
    pub(super) rollout: String,
    shadow: Arc<Shadow>,
    tally: Mutex<Tally>,
    config: ShadowConfig,
    live: String,
    other: String,
}

impl Run {
    /// Begins to compare what `live` answers with what `other` makes of it. `judged` is woken when the rule is broken.
    pub(super) fn start(
        ctx: &Arc<Context>,
        rollout: &str,
        (live, other): (Side, Side),
        config: &ShadowConfig,
        judged: Arc<Stats>,
    ) -> Run {
        let (sink, source) = mpsc::channel(WAITING);
        let seen = Seen {
            rollout: rollout.to_owned(),
            shadow: Arc::new(Shadow::new(Share::of(config.share), sink)),
            tally: Mutex::new(Tally::new()),
            config: config.clone(),
            live: live.version.clone(),
            other: other.version.clone(),
        };
        let (goes_on, wanted) = watch::channel(());
        let run = Run { seen: Arc::new(seen), _goes_on: goes_on };
        let worker = Worker { ctx: Arc::clone(ctx), live, other, seen: Arc::clone(&run.seen), wanted, judged, turn: 0 };
        let processors = Arc::clone(ctx.engine.processors());
        ctx.runtime.spawn(async move {
            let work = move || worker.work(source);
            if let Err(error) = quietly((Urgency::Quiet, &processors), "shadow", work).await {
                tracing::error!(%error, "shadow traffic has ended before its time");
            }
        });
        run
    }

    /// For the route.
    pub(super) fn shadow(&self) -> Arc<Shadow> {
        Arc::clone(&self.seen.shadow)
    }

    pub(super) fn seen(&self) -> &Arc<Seen> {
        &self.seen
    }
}

impl Seen {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Of the live version's answers.
    pub(super) fn share(&self) -> f64 {
        self.config.share
    }

    /// What its rule says, if that is broken.
    pub(super) fn breach(&self) -> Option<Verdict> {
        self.tally().breach(&self.config.rule()?)
    }

    /// With how much both versions agreed.
    pub(super) fn add_to(&self, observed: Observed) -> Observed {
        Observed { agreement: self.tally().agreements().clone(), ..observed }
    }

    /// For a rollout's record.
    pub(super) fn figures(&self) -> Value {
        let mut figures = self.tally().figures();
        figures["live"] = json!(self.live);
        figures["other"] = json!(self.other);
        figures["share"] = json!(self.config.share);
        figures["min_agreement"] = json!(self.config.min_agreement);
        figures["dropped"] = json!(self.shadow.dropped());
        figures
    }

    /// Answers that were compared, those that found no room, and how much was agreed on average.
    pub(super) fn glance(&self) -> (u64, u64, Option<f64>) {
        let (count, mean) = {
            let tally = self.tally();
            (tally.agreements().count(), tally.agreements().mean())
        };
        (count, self.shadow.dropped(), mean)
    }

    /// What agreed least, the worst first.
    pub(super) fn worst(&self) -> Vec<Case> {
        self.tally().worst().to_vec()
    }
}

struct Worker {
    ctx: Arc<Context>,
    live: Side,
    other: Side,
    seen: Arc<Seen>,
    /// Closed when the shadow has ended. Its samples' channel is not: routes and reports hold that.
    wanted: watch::Receiver<()>,
    judged: Arc<Stats>,
    /// Answers that were taken.
    turn: u64,
}

/// An answer of the live version.
struct Answered {
    inputs: Arc<[RawInput]>,
    prepare: PrepareOptions,
    finish: FinishOptions,
    outputs: Vec<Output>,
    took: Duration,
}

impl Worker {
    /// On the shadow's own thread, until it has ended.
    fn work(mut self, mut source: mpsc::Receiver<Mirrored>) -> Result<()> {
        while let Some(mirrored) = self.next(&mut source) {
            let compared = match mirrored {
                Mirrored::Answered { inputs, prepare, finish, outputs, took } => {
                    self.again(Answered { inputs, prepare, finish, outputs, took })
                }
                Mirrored::Wrote { prompt, written, took } => self.judge(&prompt, &written, took),
            };
            match compared {
                Ok(()) => {}
                Err(error) if is_answer(&error) => self.seen.tally().failed(),
                // The version went meanwhile, or the server stops: there is nothing to compare with.
                Err(error) => tracing::debug!(%error, "an answer could not be compared"),
            }
            self.turn += 1;
            if self.seen.breach().is_some() {
                self.judged.fault.notify_one();
            }
        }
        Ok(())
    }

    fn next(&mut self, source: &mut mpsc::Receiver<Mirrored>) -> Option<Mirrored> {
        let wanted = &mut self.wanted;
        self.ctx.runtime.block_on(async {
            tokio::select! {
                biased;
                _ = wanted.changed() => None,
                mirrored = source.recv() => mirrored,
            }
        })
    }

    /// Computes inputs one after another, so that clients wait for one of them at most.
    fn run(&self, side: &Side, inputs: Vec<Input>) -> Result<Timed> {
        let mut all = Timed { rows: Vec::with_capacity(inputs.len()), took: Duration::ZERO };
        for input in inputs {
            if self.wanted.has_changed().is_err() {
                return Err(Error::internal("the shadow has ended"));
            }
            let background = self.ctx.engine.background(side.generation, Class::Shadow, vec![input]);
            let Timed { rows, took } = self.ctx.runtime.block_on(background)?;
            all.rows.extend(rows);
            all.took += took;
        }
        Ok(all)
    }

    /// Has the other version answer the same.
    fn again(&self, answered: Answered) -> Result<()> {
        let Answered { inputs, prepare, finish, outputs, took } = answered;
        let prepared = |side: &Side| {
            inputs.iter().map(|input| side.processor.prepare(input, &prepare)).collect::<Result<Vec<_>>>()
        };
        let timed = self.run(&self.other, prepared(&self.other)?)?;
        // How long its own passes take is only known of the live version where it computes some of the same alone, too.
        let own = match self.turn.is_multiple_of(TIMED) {
            true => prepared(&self.live).and_then(|prepared| self.run(&self.live, prepared)).ok(),
            false => None,
        };
        let finished = timed.rows.into_iter().map(|row| self.other.processor.finish(row, &finish));
        let theirs = finished.collect::<Result<Vec<_>>>()?;
        let agreements = compare::outputs(&outputs, &theirs, finish.raw_scores);
        let mut tally = self.seen.tally();
        tally.took(took);
        if let Some(own) = own {
            tally.passed(own.took, timed.took);
        }
        let ranked = agreements.len() != inputs.len() || agreements.len() == 1;
        for (at, agreement) in agreements.into_iter().enumerate() {
            let of = |all: &[Output]| show::outputs(if ranked { all } else { &all[at..=at] });
            let asked = if ranked { &inputs[..] } else { &inputs[at..=at] };
            self.count(&mut tally, agreement, asked, || (show::inputs(asked), of(&outputs), of(&theirs)));
        }
        Ok(())
    }

    /// Has both versions judge what the live one wrote.
    fn judge(&self, prompt: &[u32], written: &[u32], took: Duration) -> Result<()> {
        if self.live.tokenizer.is_none() || self.live.tokenizer != self.other.tokenizer {
            self.seen.tally().incomparable();
            return Ok(());
        }
        let tokens = || {
            let type_ids = [vec![0; prompt.len()], vec![1; written.len()]].concat();
            vec![Input::Tokens(Tokens { ids: [prompt, written].concat(), type_ids })]
        };
        let judged = |side: &Side| {
            let timed = self.run(side, tokens())?;
            let finish = FinishOptions::default();
            let outputs = timed.rows.into_iter().map(|row| side.processor.finish(row, &finish));
            Ok::<_, Error>((outputs.collect::<Result<Vec<_>>>()?, timed.took))
        };
        let (live, own) = match judged(&self.live) {
            // It has written it: what it cannot judge is too long for that, and says nothing of the other.
            Err(error) if is_answer(&error) => {
                self.seen.tally().incomparable();
                return Ok(());
            }
            judged => judged?,
        };
        let (other, theirs) = judged(&self.other)?;
        let (agreement, prefix) = compare::likelihoods(&live, &other);
        let mut tally = self.seen.tally();
        tally.took(took);
        tally.passed(own, theirs);
        tally.prefix(prefix);
        self.count(&mut tally, agreement, prompt, || {
            let (asked, wrote) = show::text(&self.live.processor, prompt, written);
            // A text says what it answers.
            let wrote = if self.seen.config.keep_inputs { wrote } else { json!({ "tokens": written.len() }) };
            (asked, wrote, json!({ "prefix": prefix }))
        });
        Ok(())
    }

    fn count<A: Hash + ?Sized>(
        &self,
        tally: &mut Tally,
        agreement: Agreement,
        asked: &A,
        case: impl FnOnce() -> (Value, Value, Value),
    ) {
        tally.agreed(agreement);
        let mut hasher = DefaultHasher::new();
        asked.hash(&mut hasher);
        let asked = hasher.finish();
        if tally.keeps(agreement.value, asked) {
            let (input, live, other) = case();
            let input = self.seen.config.keep_inputs.then_some(input);
            tally.keep(Case { agreement: agreement.value, asked, input, live, other });
        }
    }
}

/// Whether an error is what the other version would have answered a client, rather than its absence.
fn is_answer(error: &Error) -> bool {
    error.is_model_fault() || matches!(error.kind(), Kind::BadRequest | Kind::TooLarge)
}
