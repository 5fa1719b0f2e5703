//! A generation's bounded queue into the engine: permits first, then work.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::decoding::Commission;
use super::meters::{Metered, Meters};
use super::{Engine, Message, Prompt, Rows, Written, gone};
use crate::error::{Error, Result};
use crate::generation::GenerationId;
use crate::model::Input;
use crate::schedule::Nanos;

/// A request's inputs on their way to the engine.
pub(crate) struct Submission {
    pub(crate) generation: GenerationId,
    pub(crate) inputs: Vec<Input>,
    pub(crate) arrived: Nanos,
    pub(crate) urgent: bool,
    /// Closed when the client has left; then nothing more of it is run.
    pub(crate) reply: oneshot::Sender<Result<Rows>>,
}

/// What the engine did for a lane: it writes, others read.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub(crate) passes: AtomicU64,
    pub(crate) inputs: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) queued_nanos: AtomicU64,
    pub(crate) ran_nanos: AtomicU64,
    /// Where the generation writes.
    pub(crate) meters: OnceLock<Arc<Meters>>,
}

/// What `Work` said at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Worked {
    /// Forward passes.
    pub passes: u64,
    /// Inputs that were in one.
    pub inputs: u64,
    /// Requests that are complete; the two times are of these.
    pub requests: u64,
    /// From a request's submission to the first pass that it was in.
    pub queued_nanos: u64,
    /// The passes that a request was in, each in full.
    pub ran_nanos: u64,
}

#[derive(Debug, Clone)]
pub struct Lane {
    engine: Engine,
    generation: GenerationId,
    name: String,
    limit: usize,
    room: Arc<Semaphore>,
    work: Arc<Work>,
}

/// What is written for a prompt, as it comes.
#[derive(Debug)]
pub struct Writing {
    engine: Engine,
    written: mpsc::UnboundedReceiver<Written>,
}

impl Writing {
    /// Waits for the next. After `Finished` or `Failed` nothing more is to be asked for.
    pub async fn next(&mut self) -> Written {
        tokio::select! {
            biased;
            written = self.written.recv() => written.unwrap_or_else(|| Written::Failed(gone())),
            reason = self.engine.fatal() => Written::Failed(Error::internal(reason)),
        }
    }
}

/// Room for a request's inputs in the queue, held until it is answered.
#[derive(Debug)]
pub struct Permit {
    _room: OwnedSemaphorePermit,
}

impl Lane {
    pub(super) fn new(engine: Engine, generation: GenerationId, name: String, limit: usize, work: Arc<Work>) -> Self {
        Lane { engine, generation, name, limit, room: Arc::new(Semaphore::new(limit)), work }
    }

    pub fn worked(&self) -> Worked {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Worked {
            passes: read(&self.work.passes),
            inputs: read(&self.work.inputs),
            requests: read(&self.work.requests),
            queued_nanos: read(&self.work.queued_nanos),
            ran_nanos: read(&self.work.ran_nanos),
        }
    }

    /// What the generation writes; nothing where it does not.
    pub fn metered(&self) -> Option<Metered> {
        self.work.meters.get().map(|meters| meters.read())
    }

    /// Takes room for `inputs` inputs.
    ///
    /// # Errors
    /// `Overloaded` at once when the queue is full; `TooLarge` when the request could never fit.
    pub fn permit(&self, inputs: usize) -> Result<Permit> {
        let count = u32::try_from(inputs).unwrap_or(u32::MAX);
        if inputs > self.limit {
            let (got, limit) = (inputs as u64, self.limit as u64);
            return Err(Error::TooLarge { what: "number of inputs or answers", got, limit });
        }
        match Arc::clone(&self.room).try_acquire_many_owned(count) {
            Ok(room) => Ok(Permit { _room: room }),
            Err(_) => Err(Error::Overloaded {
                model: self.name.clone(),
                limit: self.limit,
                retry_after: Duration::from_secs(1),
            }),
        }
    }

    /// Runs inputs and returns a row for each. Needs no permit of its own: the caller holds one, or is a
    /// failover, which goes past the bounds and before the others (`urgent`).
    ///
    /// Dropping the future takes the inputs out of the queue.
    pub async fn run(&self, inputs: Vec<Input>, urgent: bool) -> Result<Rows> {
        let (reply, answer) = oneshot::channel();
        let arrived = self.engine.now();
        self.engine.send(Message::Submit(Submission {
            generation: self.generation,
            inputs,
            arrived,
            urgent,
            reply,
        }))?;
        tokio::select! {
            biased;
            answer = answer => answer.map_err(|_| gone())?,
            reason = self.engine.fatal() => Err(Error::internal(reason)),
        }
    }

    /// Has a prompt continued. Needs no permit of its own, as [`Lane::run`]. Dropping what it returns cancels the rest.
    pub fn write(&self, prompt: Prompt, urgent: bool) -> Result<Writing> {
        let (reader, written) = mpsc::unbounded_channel();
        let commission = Commission { prompt, arrived: self.engine.now(), urgent, reader };
        self.engine.send(Message::Write(self.generation, Box::new(commission)))?;
        Ok(Writing { engine: self.engine.clone(), written })
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Inputs that hold room now.
    pub fn waiting(&self) -> usize {
        self.limit - self.room.available_permits()
    }
}
