//! A resident generation as the engine's thread sees it: its model, what waits for it, and who asked.

use std::collections::HashMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::oneshot;

use super::decoding::Decoding;
use super::lane::{Submission, Work};
use super::{Install, Piece, Rows};
use crate::error::{Error, Result};
use crate::faults::{At, Faults, Strike};
use crate::model::{Input, Model, Packed, Pending, Scoring};
use crate::ops::Landed;
use crate::schedule::{Batch, Batcher, Nanos, Queued};

/// Begins a pass of a model over a part of a batch, on the device's threads.
pub(super) type Pass<'a> = dyn Fn(&mut Model, &Packed, Range<usize>) -> Result<Pending> + 'a;

/// A turn of so many tokens at most, there as well. Whether it was the last.
pub(super) type Score<'a> = dyn Fn(&mut Model, &mut Scoring, usize) -> Result<bool> + 'a;

/// Texts that are being scored.
pub(super) struct Begun {
    scoring: Scoring,
    strike: Strike,
}

pub(super) struct Resident {
    name: String,
    pub(super) model: Model,
    pub(super) batcher: Batcher,
    /// Where the model writes.
    pub(super) decoding: Option<Decoding>,
    tokens_per_image: usize,
    faults: Arc<Faults>,
    items: HashMap<u64, Item>,
    tickets: HashMap<u64, Ticket>,
    next: u64,
    work: Arc<Work>,
}

/// One input that waits.
struct Item {
    ticket: u64,
    /// Its place in the request.
    index: usize,
    input: Input,
}

/// One request: the rows that it has so far, and who waits for them.
struct Ticket {
    rows: Vec<Option<Vec<f32>>>,
    missing: usize,
    arrived: Nanos,
    /// The last pass that it was in; 0 before the first.
    pass: u64,
    /// Until its first pass.
    queued: Option<Nanos>,
    ran: Nanos,
    reply: oneshot::Sender<Result<Rows>>,
}

/// A batch that was cut: inputs ready for the model, and where their rows go.
pub(super) struct Cut {
    pub(super) packed: Packed,
    pub(super) places: Vec<(u64, usize)>,
    pub(super) tokens: usize,
    pub(super) oldest: Nanos,
}

/// A pass that was begun.
struct Launched {
    pending: Pending,
    count: usize,
    strike: Strike,
}

/// A batch on its way through the device.
pub(super) struct Flight {
    pub(super) cut: Cut,
    pub(super) started: Nanos,
    began: Instant,
    answer: Result<Launched>,
}

impl Flight {
    /// Whether the device has nothing left to do for it. So it is where that cannot be said any more: its end tells why.
    pub(super) fn is_done(&self) -> bool {
        self.answer.as_ref().map_or(true, |launched| launched.pending.is_done().unwrap_or(true))
    }
}

impl Resident {
    pub(super) fn new(install: Install, work: Arc<Work>) -> Self {
        let faults = Arc::new(install.faults);
        let decoding = match &install.model {
            Model::Decoder(model, cache) => {
                let shared = (Arc::clone(&faults), Arc::clone(&work));
                Some(Decoding::new(&install.name, (model.as_ref(), cache), install.batch, shared))
            }
            Model::Text(_) | Model::Image(_) => None,
        };
        Resident {
            name: install.name,
            model: install.model,
            batcher: Batcher::new(install.batch),
            decoding,
            tokens_per_image: install.tokens_per_image,
            faults,
            items: HashMap::new(),
            tickets: HashMap::new(),
            next: 0,
            work,
        }
    }

    pub(super) fn submit(&mut self, submission: Submission) {
        let ticket = self.next;
        self.next += 1;
        let count = submission.inputs.len();
        if count == 0 {
            // Who asks for nothing is answered at once; a client that left does not mind.
            let _ = submission.reply.send(Ok(Vec::new()));
            return;
        }
        let Submission { arrived, reply, .. } = submission;
        let rows = vec![None; count];
        self.tickets.insert(ticket, Ticket { rows, missing: count, arrived, pass: 0, queued: None, ran: 0, reply });
        for (index, input) in submission.inputs.into_iter().enumerate() {
            let key = self.next;
            self.next += 1;
            let tokens = input.cost(self.tokens_per_image);
            self.items.insert(key, Item { ticket, index, input });
            self.batcher.push(Queued { key, tokens, arrived, urgent: submission.urgent });
        }
    }

    /// Cuts the next batch, leaving out requests whose clients have left. The second figure counts those.
    pub(super) fn cut(&mut self, now: Nanos) -> (Option<Result<Cut>>, u64) {
        let mut cancelled = 0;
        while let Some(batch) = self.batcher.plan(now) {
            let (cut, left) = self.collect(batch);
            cancelled += left;
            if cut.is_some() {
                return (cut, cancelled);
            }
        }
        (None, cancelled)
    }

    fn collect(&mut self, batch: Batch) -> (Option<Result<Cut>>, u64) {
        let (mut inputs, mut places, mut cancelled) = (Vec::new(), Vec::new(), 0);
        let (mut tokens, mut oldest) = (0, Nanos::MAX);
        for queued in batch.items {
            let Some(item) = self.items.remove(&queued.key) else { continue };
            match self.tickets.get(&item.ticket) {
                Some(ticket) if !ticket.reply.is_closed() => {
                    tokens += queued.tokens;
                    oldest = oldest.min(queued.arrived);
                    places.push((item.ticket, item.index));
                    inputs.push(item.input);
                }
                _ => {
                    self.tickets.remove(&item.ticket);
                    cancelled += 1;
                }
            }
        }
        if inputs.is_empty() {
            return (None, cancelled);
        }
        let packed = Packed::new(inputs);
        if let Err(error) = &packed {
            self.fail(&places, error);
        }
        (Some(packed.map(|packed| Cut { packed, places, tokens, oldest })), cancelled)
    }

    /// Queues a batch, begun at `started`. On a CPU it has run when this returns.
    pub(super) fn begin(&mut self, cut: Cut, started: Nanos, install: &Pass<'_>) -> Flight {
        let began = Instant::now();
        let answer = self.launch(Some(At::Serving), &cut.packed, 0..cut.places.len(), install);
        Flight { cut, started, began, answer }
    }

    /// The device has done what it can for a batch: counts its pass.
    pub(super) fn ended(&mut self, flight: &Flight) {
        self.ran(&flight.cut.places, flight.started, flight.began);
    }

    /// Answers whom a batch completes.
    ///
    /// When a batch of several fails, each input runs again alone, so that one poisonous input fails by itself
    /// and does not take its neighbours, or the generation's good name, with it.
    /// Each of those is a pass of its own for whoever watches: `watched` gives what says so while it lives.
    pub(super) fn finish<W>(&mut self, flight: Flight, install: &Pass<'_>, watched: impl Fn() -> W) {
        let Flight { cut, started, answer, .. } = flight;
        let count = cut.places.len();
        match answer.and_then(|launched| self.land(launched)) {
            Ok(landed) => self.deliver(&cut.places, landed),
            Err(error) if count == 1 => self.fail(&cut.places, &error),
            Err(error) => {
                tracing::warn!(version = self.name, inputs = count, %error, "a batch failed; running its inputs alone");
                for at in 0..count {
                    let place = &cut.places[at..=at];
                    let _watched = watched();
                    let began = Instant::now();
                    let launched = self.launch(Some(At::Serving), &cut.packed, at..at + 1, install);
                    let answer = launched.and_then(|launched| self.land(launched));
                    self.ran(place, started, began);
                    match answer {
                        Ok(landed) => self.deliver(place, landed),
                        Err(error) => self.fail(place, &error),
                    }
                }
            }
        }
    }

    /// Counts a pass that these places were in.
    fn ran(&mut self, places: &[(u64, usize)], started: Nanos, began: Instant) {
        let took = began.elapsed().as_nanos() as Nanos;
        let pass = self.work.passes.fetch_add(1, Ordering::Relaxed) + 1;
        self.work.inputs.fetch_add(places.len() as u64, Ordering::Relaxed);
        for (id, _) in places {
            // Once for all of a request's inputs.
            if let Some(ticket) = self.tickets.get_mut(id).filter(|ticket| ticket.pass != pass) {
                ticket.pass = pass;
                ticket.queued.get_or_insert(started.saturating_sub(ticket.arrived));
                ticket.ran += took;
            }
        }
    }

    /// Begins a forward pass, which faults on purpose of a place may strike.
    fn launch(&mut self, at: Option<At>, packed: &Packed, part: Range<usize>, install: &Pass<'_>) -> Result<Launched> {
        let strike = self.struck(at)?;
        let (count, model) = (part.len(), &mut self.model);
        let pending = guarded(&self.name, || install(model, packed, part))?;
        Ok(Launched { pending, count, strike })
    }

    /// The rows of a pass, once they are there.
    fn land(&self, launched: Launched) -> Result<Landed> {
        let Launched { pending, count, strike } = launched;
        let mut landed = guarded(&self.name, || pending.land())?;
        if landed.rows.len() != count {
            let message = format!("{} rows for {count} inputs", landed.rows.len());
            return Err(Error::ForwardFailed { version: self.name.clone(), message });
        }
        if strike == Strike::Poison {
            landed.rows.iter_mut().flatten().for_each(|value| *value = f32::NAN);
            landed.finite = false;
        }
        Ok(landed)
    }

    /// A turn of a piece of background work, which faults on purpose of its place may strike: its rows, once it was the last.
    /// `pace`: how long the steps take of whoever writes meanwhile.
    pub(super) fn background(
        &mut self,
        (piece, pace): (&mut Piece, Option<Nanos>),
        (install, score): (&Pass<'_>, &Score<'_>),
    ) -> Result<Option<Rows>> {
        let begun = match piece.begun.take() {
            Some(begun) => begun,
            None => {
                let packed = Packed::new(std::mem::take(&mut piece.inputs))?;
                // What is too long for it is no fault of the model.
                match self.model.scoring(&packed)? {
                    None => {
                        let launched = self.launch(piece.at, &packed, packed.all(), install)?;
                        return self.land(launched).map(|landed| Some(landed.rows));
                    }
                    Some(scoring) => Begun { scoring, strike: self.struck(piece.at)? },
                }
            }
        };
        let Begun { mut scoring, strike } = begun;
        let tokens = self.decoding.as_ref().map_or(1, |decoding| decoding.tokens_to_score(pace));
        let (began, before) = (Instant::now(), scoring.computed());
        let is_over = guarded(&self.name, || score(&mut self.model, &mut scoring, tokens))?;
        if let Some(decoding) = &mut self.decoding {
            decoding.scored(began.elapsed(), scoring.computed() - before);
        }
        if !is_over {
            piece.begun = Some(Begun { scoring, strike });
            return Ok(None);
        }
        let mut rows = scoring.into_rows();
        if strike == Strike::Poison {
            rows.iter_mut().flatten().for_each(|value| *value = f32::NAN);
        }
        Ok(Some(rows))
    }

    /// What a fault on purpose of a place does to a pass that begins now.
    fn struck(&self, at: Option<At>) -> Result<Strike> {
        at.map_or(Ok(Strike::Nothing), |at| guarded(&self.name, || self.faults.strike(at)))
    }

    /// Rows are looked at where not all of them are numbers; then those that are go to whom they belong to.
    fn deliver(&mut self, places: &[(u64, usize)], Landed { rows, finite }: Landed) {
        for ((id, index), row) in places.iter().zip(rows) {
            if !finite && row.iter().any(|value| !value.is_finite()) {
                let error = Error::NonFinite { version: self.name.clone() };
                self.fail(&[(*id, *index)], &error);
                continue;
            }
            let Some(ticket) = self.tickets.get_mut(id) else { continue };
            ticket.rows[*index] = Some(row);
            ticket.missing -= 1;
            if ticket.missing == 0
                && let Some(ticket) = self.tickets.remove(id)
            {
                self.work.requests.fetch_add(1, Ordering::Relaxed);
                self.work.queued_nanos.fetch_add(ticket.queued.unwrap_or(0), Ordering::Relaxed);
                self.work.ran_nanos.fetch_add(ticket.ran, Ordering::Relaxed);
                // A client that left meanwhile does not mind.
                let _ = ticket.reply.send(Ok(ticket.rows.into_iter().flatten().collect()));
            }
        }
    }

    /// Fails the requests of these places whole; what else of them waits is not run.
    fn fail(&mut self, places: &[(u64, usize)], error: &Error) {
        for (id, _) in places {
            if let Some(ticket) = self.tickets.remove(id) {
                let _ = ticket.reply.send(Err(error.clone()));
                let (items, gone) = (&mut self.items, *id);
                items.retain(|_, item| item.ticket != gone);
                self.batcher.retain(|key| items.contains_key(&key));
            }
        }
    }
}

/// Runs `work`, turning a panic or a failure into a fault of version `name`.
pub(crate) fn guarded<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    // The model is stateless between forward passes, so an unwound one leaves nothing half done behind.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) if error.is_model_fault() => Err(error),
        Ok(Err(error)) => Err(Error::ForwardFailed { version: name.into(), message: error.to_string() }),
        Err(payload) => Err(Error::ForwardPanicked { version: name.into(), message: panic_text(payload.as_ref()) }),
    }
}

/// What a panic said.
pub(crate) fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".into())
}
