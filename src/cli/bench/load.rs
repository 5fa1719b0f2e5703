//! The load generator: requests at a pace, and a record of each.
//!
//! Closed loop: a number of clients, each sending its next request when the last one is answered.
//! Open loop: requests begin at a constant rate whatever the server does, and latency counts from the instant
//! at which a request *should* have begun. A server that stalls is then charged for every request that
//! had to wait, not only for those that were on the wire (no coordinated omission).
//!
//! It shares the machine with the server, so it is cheap: one plain HTTP/1.1 connection for each client, bodies made
//! beforehand, and of an answer only the status and two headers are read. It has a thread of its own: what else the bench
//! does (following a rollout, reading its events) must neither make a request late nor take real-time priority with it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::header::{HeaderMap, HeaderValue};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use super::super::output::Failure;
use super::target::Target;
use super::wire::Wire;
use crate::device::raise_thread_priority;

const MAX_EXAMPLES: usize = 5;
/// How long a closed-loop client waits when it cannot connect, so that it does not spin.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);

/// How requests are paced.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Pace {
    Closed {
        clients: usize,
    },
    /// `rate` requests a second, over at most so many connections.
    Open {
        rate: f64,
        connections: usize,
    },
}

impl Pace {
    fn workers(self) -> usize {
        match self {
            Pace::Closed { clients } => clients,
            Pace::Open { connections, .. } => connections,
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    Status(u16),
    /// No connection.
    Unreachable,
    /// The connection ended before the answer did.
    Broken,
    TimedOut,
    /// A 2xx answer that the checker found wrong.
    Wrong,
}

impl Outcome {
    pub(super) fn ok(self) -> bool {
        matches!(self, Outcome::Status(200..=299))
    }

    pub(super) fn name(self) -> String {
        match self {
            Outcome::Status(status) => status.to_string(),
            Outcome::Unreachable => "unreachable".to_owned(),
            Outcome::Broken => "broken".to_owned(),
            Outcome::TimedOut => "timeout".to_owned(),
            Outcome::Wrong => "wrong answer".to_owned(),
        }
    }
}

/// Which generation an answer says that it came from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Stamp {
    pub version: Option<String>,
    pub generation: Option<String>,
}

/// One request. Times are nanoseconds of the run's [`Clock`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    /// When it should have begun; the same as `started` in a closed loop.
    pub intended: u64,
    /// When it began, before its first byte was written.
    pub started: u64,
    /// When its answer had been received whole, or was given up.
    pub ended: u64,
    /// Index in [`Recording::stamps`].
    pub stamp: u16,
    pub outcome: Outcome,
}

impl Sample {
    /// What a user waited, in nanoseconds.
    pub(super) fn latency(&self) -> u64 {
        self.ended.saturating_sub(self.intended)
    }
}

/// The time base that a run's samples and events share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    epoch: Instant,
}

impl Clock {
    pub(super) fn start() -> Self {
        Clock { epoch: Instant::now() }
    }

    /// Nanoseconds since the start.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// What a load left behind.
#[derive(Debug, Default)]
pub(super) struct Recording {
    /// In the order of `intended`.
    pub samples: Vec<Sample>,
    pub stamps: Vec<Stamp>,
    /// The first few failures, as they read.
    pub examples: Vec<String>,
}

/// A running load.
#[derive(Debug)]
pub(super) struct Load {
    shared: Arc<Shared>,
    samples: oneshot::Receiver<Result<Vec<Sample>, Failure>>,
    pacer: Option<oneshot::Receiver<()>>,
}

/// What the clients of a load have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) target: Arc<Target>,
    clock: Clock,
    pace: Pace,
    began: u64,
    stopping: AtomicBool,
    /// Requests claimed so far; each takes the next payload.
    claimed: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    /// Open loop: arrivals that are due, and how many there will ever be.
    due: Semaphore,
    arrivals: AtomicU64,
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    stamps: Vec<Stamp>,
    examples: Vec<String>,
}

impl Load {
    /// Begins at once; runs until it is stopped.
    pub(super) fn start(target: Arc<Target>, pace: Pace, clock: Clock) -> Result<Load, Failure> {
        let shared = Arc::new(Shared {
            target,
            clock,
            pace,
            began: clock.now(),
            stopping: AtomicBool::new(false),
            claimed: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            due: Semaphore::new(0),
            arrivals: AtomicU64::new(u64::MAX),
            notes: Mutex::new(Notes { stamps: vec![Stamp::default()], examples: Vec::new() }),
        });
        let pacer = match pace {
            Pace::Closed { .. } => None,
            Pace::Open { rate, connections } => {
                let shared = Arc::clone(&shared);
                Some(in_a_thread("bench-pacer", shared.target.realtime, move || shared.pace(rate, connections))?)
            }
        };
        let samples = {
            let shared = Arc::clone(&shared);
            in_a_thread("bench-load", shared.target.realtime, move || drive(shared))?
        };
        Ok(Load { shared, samples, pacer })
    }

    /// Requests that have ended so far.
    pub(super) fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Those of them that were not answered, or not well.
    pub(super) fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// Begins no more requests, waits for those that have begun or were due, and gives the record.
    pub(super) async fn finish(mut self) -> Result<Recording, Failure> {
        self.shared.stopping.store(true, Ordering::Relaxed);
        let panicked = |what: &str| Failure::Failed(format!("the {what} of the load panicked"));
        if let Some(pacer) = self.pacer.take() {
            pacer.await.map_err(|_| panicked("pacer"))?;
        }
        let mut samples = (&mut self.samples).await.map_err(|_| panicked("thread"))??;
        samples.sort_unstable_by_key(|sample| sample.intended);
        let notes = std::mem::take(&mut *self.shared.notes());
        Ok(Recording { samples, stamps: notes.stamps, examples: notes.examples })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn notes(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes arrivals due at their instants. A thread of its own, because the runtime's timers are only
    /// good to a millisecond, which is longer than a whole request may take.
    fn pace(&self, rate: f64, connections: usize) {
        const NAP: Duration = Duration::from_millis(20);
        let mut released: u64 = 0;
        while !self.stopping.load(Ordering::Relaxed) {
            let elapsed = self.clock.now().saturating_sub(self.began);
            let due = (elapsed as f64 * rate / 1e9) as u64 + 1;
            if due > released {
                self.due.add_permits((due - released) as usize);
                released = due;
            }
            let next = self.intended(released, rate);
            let wait = Duration::from_nanos(next.saturating_sub(self.clock.now()));
            std::thread::sleep(wait.min(NAP));
        }
        // Arrivals that were due are still sent; then every worker finds that there are no more.
        self.arrivals.store(released, Ordering::Release);
        self.due.add_permits(connections);
    }

    fn intended(&self, number: u64, rate: f64) -> u64 {
        self.began + (number as f64 * 1e9 / rate) as u64
    }

    /// The next request's number and intended start (none in a closed loop); `None` when the load is over.
    async fn claim(&self) -> Option<(u64, Option<u64>)> {
        match self.pace {
            Pace::Closed { .. } => {
                let over = self.stopping.load(Ordering::Relaxed);
                (!over).then(|| (self.claimed.fetch_add(1, Ordering::Relaxed), None))
            }
            Pace::Open { rate, .. } => {
                self.due.acquire().await.ok()?.forget();
                let number = self.claimed.fetch_add(1, Ordering::Relaxed);
                let over = number >= self.arrivals.load(Ordering::Acquire);
                (!over).then(|| (number, Some(self.intended(number, rate))))
            }
        }
    }

    /// Few generations answer in a run, so a scan is cheaper than a map.
    pub(super) fn stamp(&self, headers: &HeaderMap) -> u16 {
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let (version, generation) = (text("x-cutover-version"), text("x-cutover-generation"));
        let mut notes = self.notes();
        let same = |s: &Stamp| s.version.as_deref() == version && s.generation.as_deref() == generation;
        let index = match notes.stamps.iter().rposition(same) {
            Some(index) => index,
            None => {
                let stamp = Stamp { version: version.map(str::to_owned), generation: generation.map(str::to_owned) };
                notes.stamps.push(stamp);
                notes.stamps.len() - 1
            }
        };
        u16::try_from(index).unwrap_or(0)
    }

    pub(super) fn example(&self, text: impl FnOnce() -> String) {
        let mut notes = self.notes();
        if notes.examples.len() < MAX_EXAMPLES {
            let text = text();
            notes.examples.push(text);
        }
    }
}

/// Runs `work` on a thread of its own; the receiver gets its result, or an error when it panics.
pub(super) fn in_a_thread<T: Send + 'static>(
    name: &str,
    realtime: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<oneshot::Receiver<T>, Failure> {
    let (sender, receiver) = oneshot::channel();
    let (raised, priority) = std::sync::mpsc::channel();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let ready = if realtime { raise_thread_priority() } else { Ok(()) };
            let go = ready.is_ok();
            // The other ends are gone only when nobody wants the load any more.
            let _ = raised.send(ready);
            if go {
                let _ = sender.send(work());
            }
        })
        .map_err(|e| Failure::Failed(format!("cannot start the thread {name}: {e}")))?;
    match priority.recv() {
        Ok(Ok(())) => Ok(receiver),
        Ok(Err(e)) => Err(Failure::Failed(format!("--realtime: {e}; it needs root, or the capability CAP_SYS_NICE"))),
        Err(_) => Err(Failure::Failed(format!("the thread {name} panicked"))),
    }
}

/// All clients of a load, on this thread, until there are no more requests to make.
fn drive(shared: Arc<Shared>) -> Result<Vec<Sample>, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::Failed(format!("the load failed: {e}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| failed(&e))?;
    runtime.block_on(async {
        let mut workers = JoinSet::new();
        for _ in 0..shared.pace.workers() {
            workers.spawn(worker(Arc::clone(&shared)));
        }
        let mut samples = Vec::new();
        while let Some(joined) = workers.join_next().await {
            samples.extend(joined.map_err(|e| failed(&e))?);
        }
        Ok(samples)
    })
}

/// One client: its connection, its requests, its part of the record.
async fn worker(shared: Arc<Shared>) -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut wire = Wire::default();
    while let Some((number, due)) = shared.claim().await {
        let started = shared.clock.now();
        let exchange = wire.exchange(&shared, (number % shared.target.payloads.len() as u64) as usize);
        let (outcome, stamp) = match tokio::time::timeout(shared.target.timeout, exchange).await {
            Ok(answer) => answer,
            Err(_elapsed) => (Outcome::TimedOut, 0),
        };
        let ended = shared.clock.now();
        samples.push(Sample { intended: due.unwrap_or(started), started, ended, stamp, outcome });
        shared.answered.fetch_add(1, Ordering::Relaxed);
        if !outcome.ok() {
            shared.failed.fetch_add(1, Ordering::Relaxed);
        }
        if matches!(outcome, Outcome::TimedOut | Outcome::Broken | Outcome::Unreachable) {
            // What may still come on this connection belongs to the request that was given up.
            wire.close();
        }
        if outcome == Outcome::Unreachable && due.is_none() {
            tokio::time::sleep(CONNECT_PAUSE).await;
        }
    }
    samples
}
