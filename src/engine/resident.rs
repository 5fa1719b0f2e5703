//! A resident generation as the engine's thread sees it: its model, what waits for it, and who asked.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::oneshot;

use super::lane::{Submission, Work};
use super::{Install, Rows};
use crate::error::{Error, Result};
use crate::faults::{At, Faults, Strike};
use crate::model::{Input, Model, Packed};
use crate::schedule::{Batch, Batcher, Nanos, Queued};

/// Runs a part of a batch on a model, on the device's threads.
pub(super) type Pass<'a> = dyn Fn(&mut Model, &Packed, usize, usize) -> Result<Rows> + 'a;

pub(super) struct Resident {
    name: String,
    pub(super) model: Model,
    pub(super) batcher: Batcher,
    tokens_per_image: usize,
    faults: Faults,
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

impl Resident {
    pub(super) fn new(install: Install, work: Arc<Work>) -> Self {
        Resident {
            name: install.name,
            model: install.model,
            batcher: Batcher::new(install.batch),
            tokens_per_image: install.tokens_per_image,
            faults: install.faults,
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

    /// Runs a batch, begun at `started`, and answers whom it completes.
    ///
    /// When a batch of several fails, each input runs again alone, so that one poisonous input fails by itself
    /// and does not take its neighbours, or the generation's good name, with it.
    pub(super) fn run(&mut self, cut: &Cut, started: Nanos, install: &Pass<'_>) {
        let count = cut.places.len();
        let began = Instant::now();
        let answer = self.serve(&cut.packed, 0, count, install);
        self.ran(&cut.places, started, began);
        match answer {
            Ok(rows) => self.deliver(&cut.places, rows),
            Err(error) if count == 1 => self.fail(&cut.places, &error),
            Err(error) => {
                tracing::warn!(version = self.name, inputs = count, %error, "a batch failed; running its inputs alone");
                for at in 0..count {
                    let place = &cut.places[at..=at];
                    let began = Instant::now();
                    let answer = self.serve(&cut.packed, at, at + 1, install);
                    self.ran(place, started, began);
                    match answer {
                        Ok(rows) => self.deliver(place, rows),
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

    /// A forward pass for clients, which faults on purpose may strike.
    fn serve(&mut self, packed: &Packed, from: usize, to: usize, install: &Pass<'_>) -> Result<Rows> {
        self.struck(At::Serving, packed, (from, to), install)
    }

    /// A forward pass over inputs `from..to`, which faults on purpose may strike.
    pub(super) fn struck(
        &mut self,
        at: At,
        packed: &Packed,
        (from, to): (usize, usize),
        install: &Pass<'_>,
    ) -> Result<Rows> {
        let strike = guarded(&self.name, || self.faults.strike(at))?;
        let mut rows = self.forward(packed, from, to, install)?;
        if strike == Strike::Poison {
            rows.iter_mut().flatten().for_each(|value| *value = f32::NAN);
        }
        Ok(rows)
    }

    /// A forward pass over inputs `from..to`, with panics caught.
    pub(super) fn forward(&mut self, packed: &Packed, from: usize, to: usize, install: &Pass<'_>) -> Result<Rows> {
        let (name, model) = (&self.name, &mut self.model);
        let rows = guarded(name, || install(model, packed, from, to))?;
        if rows.len() != to - from {
            let message = format!("{} rows for {} inputs", rows.len(), to - from);
            return Err(Error::ForwardFailed { version: name.clone(), message });
        }
        Ok(rows)
    }

    fn deliver(&mut self, places: &[(u64, usize)], rows: Rows) {
        for ((id, index), row) in places.iter().zip(rows) {
            if row.iter().any(|value| !value.is_finite()) {
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
