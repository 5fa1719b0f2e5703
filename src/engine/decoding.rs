//! A resident model that writes text: who waits for it, and one step at a time.
//!
//! The scheduler decides what a step computes; here it is run, sampled from, and told. A reader that is slow costs
//! nothing: what was written waits in its own channel, which holds no more than a request may ask for. A sequence whose
//! reader is gone is cancelled before the next step.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::ahead::OnItsWay;
use super::draws::{Draw, Row, draw};
use super::lane::Work;
use super::meters::Meters;
use crate::error::{Error, Result};
use crate::faults::Faults;
use crate::model::{Decoder, KvCache, Logits, ROWS_PER_STEP, SEQUENCES, StepInput, TOKENS_PER_STEP};
use crate::process::{Choice, Sampler, SamplingOptions};
use crate::schedule::decode::{Chunks, DecodeLimits, DecodeScheduler, Effect, Finish, Plan, Prompted, Sampled};
use crate::schedule::{BatchLimits, Nanos};

/// A prompt that is to be continued.
#[derive(Debug, Clone)]
pub struct Prompt {
    pub tokens: Vec<u32>,
    /// How many of the last of them were written, by another generation: they count as such for sampling.
    pub written: usize,
    /// Tokens to write at most.
    pub max_new: usize,
    pub sampling: SamplingOptions,
    /// Token ids that end it.
    pub ends: Arc<[u32]>,
    /// Higher goes first.
    pub priority: i32,
}

/// What a reader is told.
#[derive(Debug)]
pub enum Written {
    Token(Choice),
    /// Nothing comes after it.
    Finished(Finish),
    /// Nor after this.
    Failed(Error),
}

/// A prompt on its way to the engine.
pub(crate) struct Commission {
    pub(crate) prompt: Prompt,
    pub(crate) arrived: Nanos,
    pub(crate) urgent: bool,
    pub(crate) reader: mpsc::UnboundedSender<Written>,
}

/// Decoders' part of a resident generation.
pub(super) struct Decoding {
    pub(super) name: String,
    pub(super) scheduler: DecodeScheduler,
    chunks: Chunks,
    pub(super) sequences: HashMap<u64, Sequence>,
    next: u64,
    /// When the last step ended: turns between generations go by it.
    stepped: Nanos,
    /// An urgent one has come since the last plan: the turn that it is admitted in goes before others. Those that follow are as
    /// anybody's, or the rest of a long text would stop every other lane.
    hasty: bool,
    /// The step that the device has been given already.
    pub(super) on_its_way: Option<OnItsWay>,
    pub(super) faults: Arc<Faults>,
    work: Arc<Work>,
    meters: Arc<Meters>,
}

/// What is kept of a prompt until it is continued to its end.
pub(super) struct Sequence {
    pub(super) sampler: Sampler,
    ends: Arc<[u32]>,
    reader: mpsc::UnboundedSender<Written>,
    arrived: Nanos,
    /// Until its first step.
    queued: Option<Nanos>,
    ran: Nanos,
    /// Tokens of its prompt.
    prompt: usize,
    /// When its last token was chosen.
    told: Option<Nanos>,
}

/// What a step was: also those of its sequences count of which it tells nothing, since they ended while it was on its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stepped {
    pub(super) sequences: usize,
    pub(super) tokens: usize,
}

/// When something began.
pub(super) type Began = (Nanos, Instant);

/// What the next step is.
pub(super) enum Due {
    Plan(Plan),
    OnItsWay(OnItsWay),
}

/// How steps are taken.
#[derive(Clone, Copy)]
pub(super) struct How<'a> {
    pub(super) step: &'a Step<'a>,
    pub(super) spread: &'a Spread<'a>,
    /// The step after it may be given to the device before this one's tokens are here.
    pub(super) goes_ahead: bool,
}

/// Runs a step of a model, on the device's threads.
pub(super) type Step<'a> = dyn Fn(&mut dyn Decoder, &StepInput, &mut KvCache) -> Result<Logits> + 'a;

/// Runs something that uses the device's threads.
pub(super) type Spread<'a> = dyn Fn(&mut (dyn FnMut() + Send)) + 'a;

impl Decoding {
    pub(super) fn new(
        name: &str,
        (model, cache): (&dyn Decoder, &KvCache),
        batch: BatchLimits,
        (faults, work): (Arc<Faults>, Arc<Work>),
    ) -> Decoding {
        let sequences = if batch.max_items == usize::MAX { SEQUENCES } else { batch.max_items };
        let limits = DecodeLimits {
            block_tokens: model.kv().block_tokens,
            blocks: cache.blocks(),
            // A prompt in such pieces leaves room for those that are being continued.
            step_tokens: batch.max_tokens.min(TOKENS_PER_STEP),
            sequences: sequences.min(ROWS_PER_STEP),
            context: model.context(),
        };
        let decoding = Decoding {
            name: name.to_owned(),
            scheduler: DecodeScheduler::new(limits),
            chunks: Chunks::default(),
            sequences: HashMap::new(),
            next: 0,
            stepped: 0,
            hasty: false,
            on_its_way: None,
            faults,
            meters: Arc::clone(work.meters.get_or_init(Arc::default)),
            work,
        };
        decoding.show();
        decoding
    }

    /// Shows the scheduler's figures to whoever reads metrics.
    fn show(&self) {
        self.meters.show(&self.scheduler.figures());
    }

    pub(super) fn submit(&mut self, Commission { prompt, arrived, urgent, reader }: Commission) {
        let key = self.next;
        self.next += 1;
        let Prompt { tokens, written, max_new, sampling, ends, priority } = prompt;
        let split = tokens.len().saturating_sub(written);
        let mut sampler = Sampler::new(sampling, &tokens[..split]);
        tokens[split..].iter().for_each(|token| sampler.accept(*token));
        let prompted = Prompted { key, tokens, max_new, priority, arrived, urgent, scored: false };
        match self.scheduler.push(prompted) {
            Ok(()) => {
                // One that comes from elsewhere in mid-sentence has had its first token.
                let told = (written > 0).then_some(arrived);
                let sequence = Sequence { sampler, ends, reader, arrived, queued: None, ran: 0, prompt: split, told };
                self.sequences.insert(key, sequence);
                self.hasty |= urgent;
                self.show();
            }
            // A reader that left does not mind.
            Err(refusal) => drop(reader.send(Written::Failed(Error::bad_request(refusal.to_string())))),
        }
    }

    /// When the next step may run and since when it is waited for; nothing where nobody waits.
    pub(super) fn turn(&self) -> Option<(Nanos, Nanos)> {
        let oldest = self.scheduler.oldest()?;
        // One that has just come in haste waits since the beginning of time; others since they came, or since the last step.
        Some((0, if self.hasty { 0 } else { oldest.max(self.stepped) }))
    }

    /// Sequences that wait or run.
    pub(super) fn waiting(&self) -> usize {
        self.sequences.len()
    }

    /// Lets every sequence end where it is: a generation that has to go does not wait for them any longer.
    pub(super) fn cut_short(&mut self) {
        if !self.sequences.is_empty() {
            tracing::warn!(texts = self.sequences.len(), "what was still being written ended where it was");
        }
        for (key, sequence) in self.sequences.drain() {
            self.scheduler.cancel(key);
            // A reader that left does not mind.
            let _ = sequence.reader.send(Written::Finished(Finish::Length));
        }
        self.show();
    }

    /// How long those who write here wait for a step of their own, where anybody does; zero where that is not known.
    pub(super) fn pace(&self) -> Option<Nanos> {
        self.scheduler.writes().then(|| self.chunks.writing().unwrap_or(0))
    }

    /// How much of a text is scored in one turn, where those who write elsewhere or here wait so long for a step.
    pub(super) fn tokens_to_score(&self, pace: Option<Nanos>) -> usize {
        pace.map_or(Chunks::scored_alone(), |pace| self.chunks.scored(known(pace)))
    }

    /// A turn has scored so many tokens.
    pub(super) fn scored(&mut self, took: Duration, tokens: usize) {
        self.chunks.observe_scored(took.as_nanos() as u64, tokens);
    }

    /// The next step, without those whose readers have left; how many these were. `elsewhere`: how long the others' steps take who wait
    /// for this one.
    pub(super) fn plan(&mut self, elsewhere: Option<Nanos>) -> (Option<Due>, u64) {
        let before = self.sequences.len();
        let scheduler = &mut self.scheduler;
        self.sequences.retain(|key, sequence| {
            let stays = !sequence.reader.is_closed();
            if !stays {
                scheduler.cancel(*key);
            }
            stays
        });
        let left = (before - self.sequences.len()) as u64;
        let due = match self.on_its_way.take() {
            Some(step) => Some(Due::OnItsWay(step)),
            None => {
                self.hasty = false;
                let pace = self.pace().max(elsewhere);
                let prompts = pace.map_or(usize::MAX, |pace| self.chunks.prompts(known(pace)));
                self.scheduler.plan_within(prompts).map(Due::Plan)
            }
        };
        self.show();
        (due, left)
    }

    /// Runs a step, samples, and tells readers.
    pub(super) fn step(
        &mut self,
        (model, cache): (&mut dyn Decoder, &mut KvCache),
        due: Due,
        started: Nanos,
        how: How<'_>,
    ) -> Stepped {
        let began = (started, Instant::now());
        let step = match due {
            Due::OnItsWay(step) => Ok(step),
            Due::Plan(plan) => self.begin((&mut *model, &mut *cache), plan, None),
        };
        match step {
            Ok(step) => self.go_on((model, cache), step, (began, how)),
            Err(plan) => self.step_at_once((model, cache), (plan, None), (began, how)),
        }
    }

    /// Runs a plan; `failed`: it has failed once already.
    ///
    /// When a step of several fails, each of its sequences runs again alone, so that one poisonous input fails by itself.
    pub(super) fn step_at_once(
        &mut self,
        model: (&mut dyn Decoder, &mut KvCache),
        (mut plan, failed): (Plan, Option<Error>),
        (began, how): (Began, How<'_>),
    ) -> Stepped {
        let runs = std::mem::take(&mut plan.runs);
        let rows = self.compute(model, (&runs, failed), how.step);
        let keys: Vec<u64> = runs.iter().map(|run| run.key).collect();
        // The scheduler changes block tables in place where nobody else holds them.
        drop(runs);
        self.conclude((plan, &keys), rows, (began, how))
    }

    /// A step was computed: samples from its rows, and tells readers.
    pub(super) fn conclude(
        &mut self,
        (plan, keys): (Plan, &[u64]),
        rows: Vec<(u64, Row)>,
        ((started, began), how): (Began, How<'_>),
    ) -> Stepped {
        let stepped = Stepped { sequences: keys.len(), tokens: plan.tokens };
        let written = (plan.tokens - plan.prompts, plan.prompts);
        let sampled = self.sample(rows, how.spread);
        let effects = self.scheduler.apply(plan, &sampled.iter().map(|(sampled, _)| *sampled).collect::<Vec<_>>());
        let took = began.elapsed().as_nanos() as Nanos;
        self.chunks.observe(took, written);
        self.count(keys, started, took);
        self.tell(effects, sampled, started + took);
        self.show();
        stepped
    }

    pub(super) fn stepped_at(&mut self, now: Nanos) {
        self.stepped = now;
    }

    /// Chooses from every row; whose rows allow no choice, those are told and cancelled.
    fn sample(&mut self, rows: Vec<(u64, Row)>, spread: &Spread<'_>) -> Vec<(Sampled, Option<Choice>)> {
        let mut draws: Vec<Draw> = rows
            .into_iter()
            .filter_map(|(key, row)| Some(Draw { key, sequence: self.sequences.remove(&key)?, row, choice: Ok(None) }))
            .collect();
        draw(&mut draws, spread);
        let mut sampled = Vec::with_capacity(draws.len());
        for Draw { key, sequence, choice, .. } in draws {
            let ends = Arc::clone(&sequence.ends);
            self.sequences.insert(key, sequence);
            match choice {
                Ok(Some(choice)) => {
                    let stop = ends.contains(&choice.token);
                    sampled.push((Sampled { key, token: choice.token, stop }, Some(choice)));
                }
                Ok(None) => self.fail(key, Error::NonFinite { version: self.name.clone() }),
                Err(error) => self.fail(key, error),
            }
        }
        sampled
    }

    fn tell(&mut self, effects: Vec<Effect>, mut sampled: Vec<(Sampled, Option<Choice>)>, now: Nanos) {
        for effect in effects {
            match effect {
                Effect::Token { key, .. } => {
                    let choice = sampled
                        .iter_mut()
                        .find(|(sampled, _)| sampled.key == key)
                        .and_then(|(_, choice)| choice.take());
                    if let (Some(sequence), Some(choice)) = (self.sequences.get_mut(&key), choice) {
                        match sequence.told.replace(now) {
                            Some(before) => self.meters.next(now.saturating_sub(before)),
                            None => self.meters.first(now.saturating_sub(sequence.arrived)),
                        }
                        // A reader that left is noticed before the next step.
                        let _ = sequence.reader.send(Written::Token(choice));
                    }
                }
                Effect::Finished { key, finish } => {
                    if let Some(sequence) = self.sequences.remove(&key) {
                        self.work.requests.fetch_add(1, Ordering::Relaxed);
                        self.work.queued_nanos.fetch_add(sequence.queued.unwrap_or(0), Ordering::Relaxed);
                        self.work.ran_nanos.fetch_add(sequence.ran, Ordering::Relaxed);
                        let _ = sequence.reader.send(Written::Finished(finish));
                    }
                }
                Effect::Preempted { .. } => {}
            }
        }
    }

    /// Counts a pass that these sequences were in.
    fn count(&mut self, keys: &[u64], started: Nanos, took: Nanos) {
        self.work.passes.fetch_add(1, Ordering::Relaxed);
        self.work.inputs.fetch_add(keys.len() as u64, Ordering::Relaxed);
        for key in keys {
            if let Some(sequence) = self.sequences.get_mut(key) {
                if sequence.queued.is_none() {
                    self.meters.began(sequence.prompt);
                }
                sequence.queued.get_or_insert(started.saturating_sub(sequence.arrived));
                sequence.ran += took;
            }
        }
    }

    /// What failed may have left anything in its blocks: nobody is to find them.
    pub(super) fn fail(&mut self, key: u64, error: Error) {
        self.scheduler.condemn(key);
        if let Some(sequence) = self.sequences.remove(&key) {
            // A reader that left does not mind.
            let _ = sequence.reader.send(Written::Failed(error));
        }
    }
}

/// Of what is zero nothing is known.
fn known(pace: Nanos) -> Option<Nanos> {
    Some(pace).filter(|pace| *pace > 0)
}

#[cfg(test)]
#[path = "decoding_tests.rs"]
mod tests;
