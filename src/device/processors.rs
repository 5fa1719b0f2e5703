//! How much processor time models may take: that of so many threads, on a machine that has more processors.
//!
//! Forward passes are never held back, and one that runs counts for all the threads that it may spread over. Other work
//! (loading, digests, a candidate's first passes) has what they leave. It stops between two pieces of itself while a pass
//! runs, and while more was used than there is: what overlapped is paid back by resting. So that a rollout comes to its end
//! however busy passes are, nobody rests for longer than some multiple of what it worked.
//!
//! On a machine with no more processors than that there is nothing to keep: the system gives whoever has the higher
//! priority what there is. It must not know what is computed, nor for whom.

use std::cell::RefCell;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::host::{background_arena, is_lowered, online_processors, thread_processor_time};

/// Work is not interrupted more often than this: it must take longer than looking whether to go on.
const PIECE: Duration = Duration::from_micros(200);
/// No rest is shorter, or longer without another look.
const REST: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(5));
/// However long a piece was. Somebody waits for the rollout to end.
const LONGEST: Duration = Duration::from_millis(100);
/// What may be saved up for each thread while nothing is computed, in nanoseconds: more than a piece takes, so that one
/// that has room to itself need not rest after each.
const SAVED: i64 = 10_000_000;
/// What is owed at most, for each thread: what passes took for minutes is not paid back for minutes.
const OWED: i64 = 100_000_000;

/// The budget, and what is used of it.
#[derive(Debug)]
pub struct Processors {
    threads: usize,
    /// None where the machine is the limit.
    bound: Option<Bound>,
}

impl Processors {
    /// Of as many threads.
    pub fn of(threads: usize) -> Arc<Processors> {
        let machine = online_processors();
        Arc::new(Processors::on(threads, machine.is_none_or(|machine| threads < machine)))
    }

    /// For work that has the machine to itself.
    pub fn all() -> Arc<Processors> {
        Arc::new(Processors::on(std::thread::available_parallelism().map_or(1, usize::from), false))
    }

    fn on(threads: usize, bounded: bool) -> Processors {
        Processors { threads, bound: bounded.then(|| Bound::of(threads)) }
    }

    pub fn threads(&self) -> usize {
        self.threads
    }

    /// A forward pass runs until the guard is dropped. One at a time.
    pub fn pass(&self) -> Pass<'_> {
        if let Some(bound) = &self.bound {
            bound.since.store(bound.now(), Ordering::Release);
        }
        Pass(self)
    }

    /// From now on the calling thread, which ends with its work, takes what passes leave: it rests at most `rests` times as
    /// long as it works.
    pub fn join(self: &Arc<Self>, rests: u32) {
        if self.bound.is_some() {
            let worker = Worker { processors: Arc::clone(self), rests, mark: Mark::now(), rested: Duration::ZERO };
            WORKER.set(Some(worker));
        }
    }
}

/// A forward pass that runs.
#[derive(Debug)]
pub struct Pass<'a>(&'a Processors);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Some(bound) = &self.0.bound {
            let took = bound.now() - bound.since.load(Ordering::Relaxed);
            bound.passed.fetch_add(took, Ordering::Release);
            bound.since.store(NO_PASS, Ordering::Release);
        }
    }
}

/// Passes tell of themselves without a lock: whoever works beside them has the lowest priority, and could be interrupted
/// while it holds one.
#[derive(Debug)]
struct Bound {
    epoch: Instant,
    /// When the pass that runs began.
    since: AtomicI64,
    /// How long those took that have ended, by the clock.
    passed: AtomicI64,
    usage: Mutex<Usage>,
}

const NO_PASS: i64 = -1;

impl Bound {
    fn of(threads: usize) -> Bound {
        let (since, passed) = (AtomicI64::new(NO_PASS), AtomicI64::new(0));
        Bound { epoch: Instant::now(), since, passed, usage: Mutex::new(Usage::of(threads)) }
    }

    /// Nanoseconds.
    fn now(&self) -> i64 {
        i64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(i64::MAX)
    }

    fn passes(&self) -> Passes {
        loop {
            let since = self.since.load(Ordering::Acquire);
            let passed = self.passed.load(Ordering::Acquire);
            let now = self.now();
            // Else one ended or began between, and would count twice or not at all.
            if self.since.load(Ordering::Acquire) == since {
                let running = since != NO_PASS;
                return Passes { now, running, time: passed + if running { now - since } else { 0 } };
            }
        }
    }

    fn update<T>(&self, change: impl FnOnce(&mut Usage, Passes) -> T) -> T {
        let mut usage = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        // Looked at with the lock held, so that time only goes forward.
        change(&mut usage, self.passes())
    }
}

thread_local! {
    static WORKER: RefCell<Option<Worker>> = const { RefCell::new(None) };
}

/// A moment to stop in, between two pieces of work: of no effect but on threads that have joined.
pub fn give_way() {
    with_worker(Worker::give_way);
}

/// Has other threads join as the calling one did, where it did: those that it divides its work among, which have its priority.
pub fn company() -> impl Fn() + Sync {
    let joined = with_worker(|worker| (Arc::clone(&worker.processors), worker.rests));
    let lowered = is_lowered();
    move || {
        if lowered {
            background_arena();
        }
        if let Some((processors, rests)) = &joined {
            processors.join(*rests);
        }
    }
}

/// How long the calling thread has rested to give way.
pub fn rested() -> Duration {
    with_worker(|worker| worker.rested).unwrap_or_default()
}

fn with_worker<T>(act: impl FnOnce(&mut Worker) -> T) -> Option<T> {
    // A thread that is ending has none any more.
    WORKER.try_with(|worker| worker.borrow_mut().as_mut().map(act)).ok().flatten()
}

/// A thread that takes what passes leave.
struct Worker {
    processors: Arc<Processors>,
    rests: u32,
    /// When its piece began.
    mark: Mark,
    rested: Duration,
}

/// A moment, by the clock and by the thread's processor time.
struct Mark {
    at: Instant,
    used: Option<Duration>,
}

impl Mark {
    fn now() -> Mark {
        Mark { at: Instant::now(), used: thread_processor_time() }
    }

    /// Processor time since.
    fn worked(&self) -> Duration {
        let used = thread_processor_time().zip(self.used).map(|(now, then)| now.saturating_sub(then));
        used.unwrap_or_else(|| self.at.elapsed())
    }
}

impl Worker {
    fn give_way(&mut self) {
        if self.mark.at.elapsed() < PIECE {
            return;
        }
        let worked = self.report();
        let (began, most) = (Instant::now(), (worked * self.rests).min(LONGEST));
        while let Some(left) = most.checked_sub(began.elapsed()).filter(|left| !left.is_zero())
            && let Some(rest) = self.processors.bound.as_ref().and_then(|bound| bound.update(Usage::rest))
        {
            std::thread::sleep(rest.clamp(REST.0, REST.1).min(left));
        }
        self.rested += began.elapsed();
        self.mark = Mark::now();
    }

    /// Tells of the piece that ends now, and says how long it was.
    fn report(&self) -> Duration {
        let worked = self.mark.worked();
        if let Some(bound) = &self.processors.bound {
            bound.update(|usage, passes| usage.worked(passes, worked));
        }
        worked
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.report();
    }
}

/// What is known of forward passes at a moment. Nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Passes {
    now: i64,
    running: bool,
    /// How long any ran, up to now.
    time: i64,
}

/// What is used of a budget. Nanoseconds, and no clock of its own.
#[derive(Debug)]
struct Usage {
    threads: i64,
    /// Used beyond what there was; below zero it is saved up.
    owed: i64,
    /// Up to when it is counted, and how long passes had run by then.
    settled: i64,
    passes: i64,
}

impl Usage {
    fn of(threads: usize) -> Usage {
        let threads = i64::try_from(threads).unwrap_or(i64::MAX).clamp(1, 1 << 16);
        Usage { threads, owed: 0, settled: 0, passes: 0 }
    }

    /// Lets time pass: while no pass runs all threads are free.
    fn settle(&mut self, passes: Passes) {
        let elapsed = (passes.now - self.settled).max(0);
        let free = elapsed - (passes.time - self.passes).clamp(0, elapsed);
        self.owed = self.owed.saturating_sub(free.saturating_mul(self.threads)).max(-SAVED * self.threads);
        (self.settled, self.passes) = (passes.now, passes.time);
    }

    fn worked(&mut self, passes: Passes, time: Duration) {
        self.settle(passes);
        let time = i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        self.owed = self.owed.saturating_add(time).min(OWED * self.threads);
    }

    /// How long to rest before another look; none when there is room.
    fn rest(&mut self, passes: Passes) -> Option<Duration> {
        self.settle(passes);
        match self.owed {
            owed if owed > 0 => Some(Duration::from_nanos((owed / self.threads).unsigned_abs())),
            _ if passes.running => Some(Duration::ZERO),
            _ => None,
        }
    }
}

#[cfg(test)]
#[path = "processors_tests.rs"]
mod tests;
