//! One admitted request for text, from its prompt to its last token, failover included.
//!
//! Tokens come from the engine one by one; a task of the request's own makes text of them, looks for stop strings, and
//! hands both on. The task holds the generation, and nobody else does, nor it another: it ends with the last token, however slowly the
//! client reads, and when the client leaves it ends at once and the engine writes no further.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::Instrument as _;

use super::lasting::Lasting;
use super::serve::{HEAVY_TEXT_BYTES, heavy};
use super::{Admission, Mirrored};
use crate::engine::{self, Permit, Prompt, Written};
use crate::error::{Error, Result};
use crate::generation::{Generation, Stage, Stamp};
use crate::process::{
    Call, CallReader, Choice, Detokenizer, RawPrompt, Read, SamplingOptions, Specials, StopStrings, TextDecoder,
};
use crate::schedule::decode::Finish;

/// What a client wants written.
#[derive(Debug, Clone)]
pub struct WriteAsk {
    /// At least one.
    pub prompts: Vec<RawPrompt>,
    /// Answers to each, from seeds of their own that follow the first's.
    pub count: usize,
    /// Where it is said.
    pub max_new: Option<Most>,
    /// And where that is not said, if the context leaves as many.
    pub usual_new: Option<usize>,
    pub sampling: SamplingOptions,
    pub stop: Vec<String>,
    /// Reads calls of tools, where they may be called.
    pub calls: Option<CallReader>,
    /// Tokens that would end the answer do not.
    pub ignore_ends: bool,
    /// Higher goes first.
    pub priority: i32,
    /// For the whole answer: the client's own.
    pub deadline: Option<Duration>,
}

/// Tokens to write at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Most {
    pub tokens: usize,
    /// By which of its names the client said it.
    pub field: &'static str,
}

/// Answers that are being written.
#[derive(Debug)]
pub struct Answers {
    /// Of the generation that began them.
    pub stamp: Stamp,
    /// Of all prompts.
    pub prompt_tokens: usize,
    /// How tokens are spelled.
    pub decoder: Arc<TextDecoder>,
    /// How many there will be: those to the first prompt, then those to the next.
    pub count: usize,
    /// What comes of each of them; a channel that ends early means that its task did not survive.
    pub events: mpsc::UnboundedReceiver<(usize, Event)>,
}

/// What comes of an answer, in order.
#[derive(Debug)]
pub enum Event {
    /// Tokens, the text that is complete with them, and the calls: the text may be empty, and lacks what may turn out to be a stop string
    /// or a call.
    Wrote { text: String, calls: Vec<Call>, choices: Vec<Choice> },
    /// The version that began failed; this one goes on, from the very next token.
    Moved(Stamp),
    /// Nothing comes after it.
    Ended(Ended),
    /// Nor after this.
    Failed(Error),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub reason: EndReason,
    /// Tokens that were written, those of a stop string included.
    pub tokens: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// By itself, or at a stop string.
    Stop,
    /// At the greatest length.
    Length,
}

impl Admission {
    /// Begins to write. What of the request cannot be right is told here, before anything is written.
    pub async fn write(self, ask: WriteAsk) -> Result<Answers> {
        let generation = Arc::clone(self.generation());
        let most = generation.limits.max_inputs;
        if ask.prompts.len() > most {
            let got = ask.prompts.len() as u64;
            return Err(Error::TooLarge { what: "number of inputs", got, limit: most as u64 });
        }
        let count = ask.prompts.len() * ask.count;
        let permit = Arc::new(generation.lane.permit(count)?);
        let began = Instant::now();
        let ask = Arc::new(ask);
        let encoded = match is_heavy(&ask.prompts) {
            true => {
                let ask = Arc::clone(&ask);
                heavy(&generation, move |generation| encoded(generation, &ask)).await?
            }
            false => encoded(&generation, &ask)?,
        };
        let writer = generation.processor.writer()?;
        generation.stats.spend(Stage::Prepared, began.elapsed());
        ask.sampling.validate(writer.vocabulary())?;
        let stops = StopStrings::new(&ask.stop)?;
        let prompt_tokens = encoded.iter().map(|(tokens, _)| tokens.len()).sum();
        let admission = Arc::new(Lasting::from(self));
        let (out, events) = mpsc::unbounded_channel();
        for at in 0..count {
            let (of, number) = (at / ask.count, at % ask.count);
            let (prompt, max_new) = &encoded[of];
            let detokenizer = writer.detokenizer(&ask.prompts[of], prompt, Specials::Skip);
            let task = Task {
                admission: Arc::clone(&admission),
                generation: Arc::clone(&generation),
                _permit: Arc::clone(&permit),
                ask: Arc::clone(&ask),
                at,
                prompt: Arc::clone(prompt),
                // Whatever is asked beside it, a prompt's answers are the same.
                seed: ask.sampling.seed.wrapping_add(number as u64),
                max_new: *max_new,
                detokenizer: match ask.calls {
                    Some(_) => detokenizer.keeping(writer.call_marks()),
                    None => detokenizer,
                },
                stops: stops.clone(),
                calls: ask.calls.clone(),
                written: Vec::new(),
                fault: None,
                out: out.clone(),
                began,
            };
            // What goes wrong is logged under the request's id.
            tokio::spawn(task.run().in_current_span());
        }
        let stamp = generation.stamp.clone();
        Ok(Answers { stamp, prompt_tokens, decoder: Arc::clone(writer.decoder()), count, events })
    }
}

/// Whether prompts take long enough to be made tokens of to be kept off the threads that serve connections. A chat is,
/// however short: how long its template takes is the version's affair.
fn is_heavy(prompts: &[RawPrompt]) -> bool {
    let text = |prompt: &RawPrompt| match prompt {
        RawPrompt::Text(text) => text.len(),
        RawPrompt::Tokens(_) => 0,
        RawPrompt::Chat { .. } => HEAVY_TEXT_BYTES + 1,
    };
    prompts.iter().map(text).sum::<usize>() > HEAVY_TEXT_BYTES
}

/// Each prompt's tokens, and how many may be written after them.
fn encoded(generation: &Generation, ask: &WriteAsk) -> Result<Vec<(Arc<[u32]>, usize)>> {
    let writer = generation.processor.writer()?;
    let encoded = ask.prompts.iter().map(|prompt| {
        let tokens = writer.encode(prompt)?;
        let room = writer.room(tokens.len(), ask.max_new.map(|most| (most.field, most.tokens)))?;
        let usual = ask.usual_new.filter(|_| ask.max_new.is_none());
        Ok((Arc::<[u32]>::from(tokens), usual.map_or(room, |usual| usual.min(room))))
    });
    encoded.collect()
}

/// One answer on its way.
struct Task {
    admission: Arc<Lasting>,
    /// Who writes it now.
    generation: Arc<Generation>,
    _permit: Arc<Permit>,
    ask: Arc<WriteAsk>,
    /// Which of the answers.
    at: usize,
    prompt: Arc<[u32]>,
    seed: u64,
    max_new: usize,
    detokenizer: Detokenizer,
    stops: StopStrings,
    calls: Option<CallReader>,
    /// Tokens so far.
    written: Vec<u32>,
    /// Of the generation that was admitted, while it is open whether its predecessor can do better.
    fault: Option<Error>,
    out: mpsc::UnboundedSender<(usize, Event)>,
    began: Instant,
}

/// What a token, or its want, led to.
enum Next {
    More,
    Over,
}

impl Task {
    async fn run(mut self) {
        let limit = self.generation.limits.deadline;
        let mut writing = match self.begin() {
            Ok(writing) => writing,
            Err(error) => return self.fail(error),
        };
        loop {
            // The model's own limit is for the first token: how long an answer takes is how long it is.
            let first = self.written.is_empty().then(|| limit.saturating_sub(self.began.elapsed()));
            let own = self.ask.deadline.map(|deadline| deadline.saturating_sub(self.began.elapsed()));
            let left = [first, own].into_iter().flatten().min();
            let written = tokio::select! {
                biased;
                () = self.out.closed() => return self.given_up(),
                () = after(left) => return self.timed_out(own.is_some_and(|own| Some(own) == left)),
                written = writing.next() => written,
            };
            let next = match written {
                Written::Token(choice) => self.token(choice),
                Written::Finished(finish) => self.finished(finish),
                Written::Failed(error) => match self.move_on(error) {
                    Ok(elsewhere) => {
                        writing = elsewhere;
                        Next::More
                    }
                    Err(error) => return self.fail(error),
                },
            };
            if let Next::Over = next {
                return;
            }
        }
    }

    /// Has the generation go on from what is written.
    fn begin(&self) -> Result<engine::Writing> {
        let writer = self.generation.processor.writer()?;
        let prompt = Prompt {
            tokens: [&self.prompt[..], &self.written].concat(),
            written: self.written.len(),
            max_new: self.max_new - self.written.len(),
            sampling: SamplingOptions { seed: self.seed, ..self.ask.sampling.clone() },
            ends: if self.ask.ignore_ends { Arc::new([]) } else { writer.ends() },
            priority: self.ask.priority,
        };
        self.generation.lane.write(prompt, self.fault.is_some())
    }

    fn token(&mut self, choice: Choice) -> Next {
        self.explained();
        self.written.push(choice.token);
        let text = self.detokenizer.push(choice.token).unwrap_or_default();
        let passed = self.stops.push(&text);
        let read = self.read(passed.text);
        self.tell(read, vec![choice]);
        match passed.stop.is_some() {
            true => self.end(EndReason::Stop),
            false => Next::More,
        }
    }

    /// Parts the next piece of the text into content and calls.
    fn read(&mut self, text: String) -> Read {
        match &mut self.calls {
            Some(reader) => reader.push(&text),
            None => Read { text, calls: Vec::new() },
        }
    }

    fn tell(&self, Read { text, calls }: Read, choices: Vec<Choice>) {
        if !(text.is_empty() && calls.is_empty() && choices.is_empty()) {
            self.send(Event::Wrote { text, calls, choices });
        }
    }

    fn finished(&mut self, finish: Finish) -> Next {
        self.explained();
        let reason = match finish {
            Finish::Stop => EndReason::Stop,
            Finish::Length => EndReason::Length,
        };
        let rest = self.detokenizer.finish().unwrap_or_default();
        let passed = self.stops.push(&rest);
        let held = if passed.stop.is_some() { String::new() } else { self.stops.finish() };
        let read = self.read(passed.text + &held);
        self.tell(read, Vec::new());
        self.end(if passed.stop.is_some() { EndReason::Stop } else { reason })
    }

    fn end(&mut self, reason: EndReason) -> Next {
        let rest = self.calls.as_mut().map(CallReader::finish).unwrap_or_default();
        self.tell(rest, Vec::new());
        let stats = &self.generation.stats;
        let took = self.began.elapsed();
        stats.spend(Stage::Answered, took);
        // An answer that a predecessor ended speaks of neither: it took as long as both.
        if Arc::ptr_eq(&self.generation, self.admission.generation()) {
            self.admission.counting().answered(self.pace());
        }
        self.mirror(took);
        self.send(Event::Ended(Ended { reason, tokens: self.written.len() }));
        Next::Over
    }

    /// How long it took by how many tokens it has: by that versions are judged and told apart, since an answer takes as long as
    /// it is (the normalized latency of Yu et al., "Orca", OSDI 2022).
    fn pace(&self) -> Duration {
        let tokens = u32::try_from(self.written.len()).unwrap_or(u32::MAX);
        self.began.elapsed() / tokens.max(1)
    }

    /// The client waits no longer, or its own deadline has passed.
    fn given_up(&self) {
        if !self.admission.is_named() && Arc::ptr_eq(&self.generation, self.admission.generation()) {
            self.generation.stats.given_up(self.pace());
        }
    }

    /// Goes on elsewhere after a fault, where that is possible (promise 7): the very next token, by the same draw.
    fn move_on(&mut self, error: Error) -> Result<engine::Writing> {
        // Once: what the predecessor cannot do itself is not the fault of the one that was admitted.
        let admitted = Arc::ptr_eq(&self.generation, self.admission.generation());
        let Some(previous) = self.admission.failover().filter(|_| admitted && error.is_model_fault()) else {
            return Err(error);
        };
        // It has the same tokenizer: with another contract nobody fails over.
        tracing::warn!(
            model = &*self.generation.stamp.model, version = self.generation.version(), previous = previous.version(),
            written = self.written.len(), %error, "an answer failed; going on with it on the previous version"
        );
        self.generation.stats.spend(Stage::Failed, self.began.elapsed());
        self.generation = previous;
        self.fault = Some(error);
        self.begin()
    }

    /// The predecessor can do what the admitted generation could not: that one is to blame.
    fn explained(&mut self) {
        if let Some(fault) = self.fault.take() {
            let admitted = self.admission.generation();
            self.admission.counting().blame(matches!(fault, Error::NonFinite { .. }));
            admitted.stats.failed_over();
            self.send(Event::Moved(self.generation.stamp.clone()));
        }
    }

    fn fail(mut self, error: Error) {
        let admitted = Arc::clone(self.admission.generation());
        match self.fault.take() {
            // Neither could.
            Some(fault) => {
                admitted.stats.unexplained();
                self.send(Event::Failed(fault));
            }
            None => {
                if error.is_model_fault() {
                    self.generation.stats.spend(Stage::Failed, self.began.elapsed());
                    if !self.admission.is_named() && Arc::ptr_eq(&admitted, &self.generation) {
                        self.admission.counting().blame(matches!(error, Error::NonFinite { .. }));
                    }
                }
                self.send(Event::Failed(error));
            }
        }
    }

    fn timed_out(self, own: bool) {
        let limit = match (own, self.ask.deadline) {
            (true, Some(deadline)) => deadline,
            _ => self.generation.limits.deadline,
        };
        // Only the model's own limit is a fault of the model; a client may be as impatient as it likes.
        if own {
            self.given_up();
        } else if self.fault.is_some() {
            // Whether the predecessor could do better is not known, and the time was the first one's as well.
            self.admission.generation().stats.unexplained();
        } else if !self.admission.is_named() {
            self.generation.stats.timed_out(limit);
        }
        self.send(Event::Failed(Error::Deadline { limit }));
    }

    /// Hands a whole answer of the generation that was admitted to whoever looks at a sample of them.
    fn mirror(&self, took: Duration) {
        if Arc::ptr_eq(&self.generation, self.admission.generation())
            && !self.written.is_empty()
            && let Some(shadow) = self.admission.shadow()
        {
            let (prompt, written) = (Arc::clone(&self.prompt), self.written.clone());
            shadow.offer(Mirrored::Wrote { prompt, written, took });
        }
    }

    /// A client that left is noticed before the next token.
    fn send(&self, event: Event) {
        let _ = self.out.send((self.at, event));
    }
}

/// Ends after so long; never, where nothing is said.
async fn after(left: Option<Duration>) {
    match left {
        // A timer rounds up to its next tick, and one made anew for every token would then never end.
        Some(Duration::ZERO) => {}
        Some(left) => tokio::time::sleep(left).await,
        None => std::future::pending().await,
    }
}
