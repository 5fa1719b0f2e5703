//! The one thread that owns the device, every resident model, and the order of all forward passes.
//!
//! Everybody else sends it messages. `Engine` is the handle for whoever manages generations; a `Lane` is one
//! generation's bounded queue, which is all that a request sees of it. Since one thread does all device work,
//! there is no lock round a model, a retired model is dropped where it was used, and a tensor is shared by
//! cloning it. It must not know versions' files, routes, rollouts or HTTP.

mod ahead;
mod decoding;
mod draws;
mod gaps;
mod lane;
mod meters;
mod passes;
mod resident;
mod store;
mod thread;
mod watchdog;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::{oneshot, watch};

pub use decoding::{Prompt, Written};
pub use lane::{Lane, Permit, Worked, Writing};
pub use meters::{Metered, Meters, TimesMetered};
use resident::Begun;
pub(crate) use resident::{guarded, panic_text};
pub use watchdog::Stall;

use crate::device::{Health, Processors};
use crate::error::{Error, Result};
use crate::faults::{At, Faults};
use crate::generation::GenerationId;
use crate::model::{Input, Model};
use crate::ops::{Machine, Tensor};
use crate::schedule::{BatchLimits, Class, Nanos};
use crate::weights::TensorKey;

/// One row per input, f32.
pub type Rows = Vec<Vec<f32>>;

pub struct EngineConfig {
    /// What models may take of a CPU device: forward passes spread over as many threads.
    pub processors: Arc<Processors>,
    /// What runs them, and whether it still can: when it has failed for good, so has the process.
    pub machine: Machine,
    pub health: Health,
    /// A forward pass that takes longer than this has stalled, and the process with it.
    pub stall_after: Duration,
    /// Called on the watchdog's thread when that happens; it records what it can. Then the process ends.
    pub on_stall: Box<dyn Fn(Stall) + Send>,
}

/// The handle: cheap to clone.
#[derive(Clone)]
pub struct Engine {
    sender: mpsc::Sender<Message>,
    epoch: Instant,
    processors: Arc<Processors>,
    pub(crate) shared: Arc<Shared>,
    fatal: watch::Receiver<Option<String>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Engine")
    }
}

/// What the thread publishes for others to read without asking it.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// The generation whose forward pass runs now plus one; zero when none does. Of a device that was lost, what ran then.
    pub(crate) running: AtomicU64,
    /// When it began.
    pub(crate) since: AtomicU64,
    pub(crate) health: Health,
    pub(crate) counters: Counters,
}

/// Totals since the start, for metrics.
#[derive(Debug, Default)]
pub struct Counters {
    pub batches: AtomicU64,
    pub inputs: AtomicU64,
    pub tokens: AtomicU64,
    pub cancelled: AtomicU64,
    pub client_nanos: AtomicU64,
    pub background_nanos: AtomicU64,
    /// Inputs that wait, in all lanes.
    pub waiting: AtomicU64,
    /// Batches by number of inputs: 1, 2, 3-4, 5-8, … 65 and more.
    pub batch_sizes: [AtomicU64; 8],
}

impl Counters {
    /// Counts a batch, or a step, of clients' inputs.
    fn ran(&self, inputs: usize, tokens: usize, nanos: Nanos) {
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.inputs.fetch_add(inputs as u64, Ordering::Relaxed);
        self.tokens.fetch_add(tokens as u64, Ordering::Relaxed);
        self.client_nanos.fetch_add(nanos, Ordering::Relaxed);
        let bucket = (inputs.next_power_of_two().trailing_zeros() as usize).min(7);
        self.batch_sizes[bucket].fetch_add(1, Ordering::Relaxed);
    }
}

/// A model to be made resident.
pub struct Install {
    pub generation: GenerationId,
    /// For errors and logs: `minilm@f16`.
    pub name: String,
    pub model: Model,
    pub batch: BatchLimits,
    /// Inputs that may wait.
    pub queue: usize,
    /// What an image costs in a batch.
    pub tokens_per_image: usize,
    pub faults: Faults,
}

/// One piece of background work: a single forward pass or, where a model writes, a text that is scored turn by turn.
pub(crate) struct Piece {
    pub(crate) generation: GenerationId,
    pub(crate) class: Class,
    pub(crate) inputs: Vec<Input>,
    /// Where faults on purpose strike it, if they may.
    pub(crate) at: Option<At>,
    pub(crate) reply: oneshot::Sender<Result<Timed>>,
    /// What its first turns left.
    begun: Option<Begun>,
    took: Nanos,
}

impl Piece {
    fn new(
        generation: GenerationId,
        (class, at): (Class, Option<At>),
        inputs: Vec<Input>,
        reply: oneshot::Sender<Result<Timed>>,
    ) -> Piece {
        Piece { generation, class, inputs, at, reply, begun: None, took: 0 }
    }
}

/// Rows and how long their forward passes took.
#[derive(Debug, Clone)]
pub struct Timed {
    pub rows: Rows,
    pub took: Duration,
}

/// Bytes of weights that a generation holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Held {
    pub exclusive: u64,
    pub shared: u64,
}

pub(crate) enum Message {
    Submit(lane::Submission),
    Write(GenerationId, Box<decoding::Commission>),
    /// Ends whatever a generation writes, or all of them, where it is.
    CutShort(Option<GenerationId>),
    Background(Box<Piece>),
    Lookup {
        generation: GenerationId,
        keys: Vec<TensorKey>,
        reply: oneshot::Sender<HashMap<TensorKey, Tensor>>,
    },
    Keep {
        generation: GenerationId,
        tensors: Vec<(TensorKey, Tensor)>,
        reply: oneshot::Sender<()>,
    },
    Install(Box<Install>, Arc<lane::Work>, oneshot::Sender<()>),
    /// Drops whatever the generation holds here, then what `rest` carries, on the device's thread.
    Retire {
        generation: GenerationId,
        rest: Option<Box<Model>>,
        reply: oneshot::Sender<Held>,
    },
    Memory(oneshot::Sender<HashMap<GenerationId, Held>>),
    Gap {
        from: Nanos,
        to: Nanos,
        reply: oneshot::Sender<Nanos>,
    },
    Stop,
}

impl Engine {
    /// Starts the thread and its watchdog.
    pub fn start(config: EngineConfig) -> Result<(Engine, std::thread::JoinHandle<()>)> {
        let (sender, inbox) = mpsc::channel();
        let (fatal_sender, fatal) = watch::channel(None);
        let shared = Arc::new(Shared { health: config.health, ..Shared::default() });
        let epoch = Instant::now();
        let thread = {
            let (shared, processors) = (Arc::clone(&shared), Arc::clone(&config.processors));
            let machine = config.machine;
            std::thread::Builder::new()
                .name("engine".into())
                .spawn(move || {
                    let run = || thread::run(inbox, epoch, &shared, (&processors, &machine));
                    // Nobody computes any more: the watchdog ends the process, which would answer every request with an error.
                    if catch_unwind(AssertUnwindSafe(run)).is_err() {
                        shared.health.lost("the engine's thread panicked".to_owned());
                    }
                })
                .map_err(|e| Error::internal(format!("could not start the engine thread: {e}")))?
        };
        let watched = watchdog::Watched { shared: Arc::downgrade(&shared), epoch };
        watchdog::start(watched, config.stall_after, fatal_sender, config.on_stall)?;
        Ok((Engine { sender, epoch, processors: config.processors, shared, fatal }, thread))
    }

    /// For whoever computes beside it.
    pub fn processors(&self) -> &Arc<Processors> {
        &self.processors
    }

    pub fn now(&self) -> Nanos {
        self.epoch.elapsed().as_nanos() as Nanos
    }

    /// Tensors of `keys` that are resident already. They stay until `generation` is retired.
    pub async fn lookup(&self, generation: GenerationId, keys: Vec<TensorKey>) -> Result<HashMap<TensorKey, Tensor>> {
        self.ask(|reply| Message::Lookup { generation, keys, reply }).await
    }

    /// Makes loaded tensors known, so that later versions can share them.
    pub async fn keep(&self, generation: GenerationId, tensors: Vec<(TensorKey, Tensor)>) -> Result<()> {
        self.ask(|reply| Message::Keep { generation, tensors, reply }).await
    }

    /// Makes a model resident and opens its lane.
    pub async fn install(&self, install: Install) -> Result<Lane> {
        let (generation, name, queue) = (install.generation, install.name.clone(), install.queue);
        let work = Arc::default();
        self.ask(|reply| Message::Install(Box::new(install), Arc::clone(&work), reply)).await?;
        Ok(Lane::new(self.clone(), generation, name, queue, work))
    }

    /// Runs one small forward pass when clients leave room for it, or scores a text in as many as that takes.
    pub async fn background(&self, generation: GenerationId, class: Class, inputs: Vec<Input>) -> Result<Timed> {
        self.ask(|reply| Message::Background(Box::new(Piece::new(generation, (class, None), inputs, reply)))).await?
    }

    /// The gate's: the same, and faults on purpose strike as they would on a probation thread.
    pub async fn on_probation(&self, generation: GenerationId, inputs: Vec<Input>) -> Result<Timed> {
        let how = (Class::Validation, Some(At::Gate));
        self.ask(|reply| Message::Background(Box::new(Piece::new(generation, how, inputs, reply)))).await?
    }

    /// Drops a generation's model and tensors on the device's thread; `rest` is a model that was never installed.
    /// Answers what it held.
    pub async fn retire(&self, generation: GenerationId, rest: Option<Box<Model>>) -> Result<Held> {
        self.ask(|reply| Message::Retire { generation, rest, reply }).await
    }

    /// Ends whatever a generation still writes, or all of them do, as if it had come to its greatest length.
    pub fn cut_short(&self, generation: Option<GenerationId>) -> Result<()> {
        self.send(Message::CutShort(generation))
    }

    pub async fn memory(&self) -> Result<HashMap<GenerationId, Held>> {
        self.ask(Message::Memory).await
    }

    /// The longest time between two moments in which client work waited and the engine stood idle.
    pub async fn longest_gap(&self, from: Nanos, to: Nanos) -> Result<Duration> {
        Ok(Duration::from_nanos(self.ask(|reply| Message::Gap { from, to, reply }).await?))
    }

    /// Ends the thread once everything that was submitted before has run.
    pub fn stop(&self) {
        // A closed channel means that it has ended already.
        let _ = self.sender.send(Message::Stop);
    }

    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Resolves when the device has failed for good, with the reason.
    pub async fn fatal(&self) -> String {
        let mut fatal = self.fatal.clone();
        let reason = fatal.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match reason {
            Some(reason) => reason,
            // The watchdog is gone without a verdict: the process is stopping, and nothing fatal will be reported.
            None => std::future::pending().await,
        }
    }

    pub(crate) fn send(&self, message: Message) -> Result<()> {
        self.sender.send(message).map_err(|_| gone())
    }

    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Result<T> {
        let (sender, receiver) = oneshot::channel();
        self.send(message(sender))?;
        tokio::select! {
            answer = receiver => answer.map_err(|_| gone()),
            reason = self.fatal() => Err(Error::internal(reason)),
        }
    }
}

pub(crate) fn gone() -> Error {
    Error::internal("the engine has stopped")
}
