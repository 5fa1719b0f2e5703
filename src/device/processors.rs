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
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use proptest::prelude::*;

    use super::super::{Arena, lower_thread_priority};
    use super::*;

    const US: i64 = 1_000;
    const MS: i64 = 1_000_000;

    /// A budget of `threads`, passes of `pass` that come every `every`, and `workers` that work in pieces without end and
    /// rest at most 19 times as long: the processor time that passes and workers took of `total`.
    fn simulate((threads, workers): (usize, usize), (pass, every): (i64, i64), piece: i64, total: i64) -> (i64, i64) {
        const STEP: i64 = 100 * US;
        enum State {
            Works { until: i64 },
            Rests { since: i64 },
        }
        let mut usage = Usage::of(threads);
        let (mut time, mut work) = (0, 0);
        let mut states: Vec<State> = (0..workers).map(|_| State::Rests { since: 0 }).collect();
        for now in (0..total).step_by(STEP as usize) {
            let passes = Passes { now, running: now % every < pass, time };
            time += if passes.running { STEP } else { 0 };
            for state in &mut states {
                if matches!(state, State::Works { until } if now >= *until) {
                    usage.worked(passes, Duration::from_nanos(piece as u64));
                    *state = State::Rests { since: now };
                }
                if let State::Rests { since } = *state
                    && (usage.rest(passes).is_none() || now - since >= 19 * piece)
                {
                    *state = State::Works { until: now + piece };
                }
                work += if matches!(state, State::Works { .. }) { STEP } else { 0 };
            }
        }
        (time * threads as i64, work)
    }

    proptest! {
        #[test]
        fn no_more_is_used_than_there_is_but_for_what_a_rollout_needs_to_end(
            threads in 1usize..5, workers in 1usize..4, pass in 0i64..20, gap in 1i64..20, piece in 1i64..8,
        ) {
            let total = 20_000 * MS;
            let (passes, work) = simulate((threads, workers), (pass * MS, (pass + gap) * MS), piece * MS, total);
            let room = total * threads as i64;
            // A twentieth of a thread each, and what may be saved up.
            let most = room + total * workers as i64 / 19 + SAVED * threads as i64;
            prop_assert!(passes + work <= most, "{passes} and {work} of {room}");
            prop_assert!(work >= total * workers as i64 / 21, "a rollout must come to its end: {work} of {total}");
        }
    }

    #[test]
    fn work_that_has_the_budget_to_itself_takes_all_of_it_and_not_more() {
        let total = 10_000 * MS;
        // One worker, however short or long its pieces are, never rests.
        for piece in [MS / 5, 8 * MS] {
            assert_eq!(simulate((1, 1), (0, MS), piece, total), (0, total));
        }
        let (_, work) = simulate((1, 3), (0, MS), MS, total);
        assert!((total * 9 / 10..total + total / 50).contains(&work), "three that take turns: {work} of {total}");
    }

    fn spin(time: Duration) {
        let began = thread_processor_time().unwrap();
        while thread_processor_time().unwrap() - began < time {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn a_thread_beside_passes_leaves_them_the_budget() {
        let processors = Arc::new(Processors::on(1, true));
        let over = AtomicBool::new(false);
        let began = Instant::now();
        let (passes, work) = std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                processors.join(19);
                while !over.load(Ordering::Relaxed) {
                    spin(Duration::from_micros(300));
                    give_way();
                }
                (thread_processor_time().unwrap(), rested())
            });
            // Three quarters of the time.
            while began.elapsed() < Duration::from_millis(600) {
                let pass = processors.pass();
                spin(Duration::from_millis(3));
                drop(pass);
                std::thread::sleep(Duration::from_millis(1));
            }
            over.store(true, Ordering::Relaxed);
            let (work, rested) = worker.join().unwrap();
            assert!(!rested.is_zero());
            (thread_processor_time().unwrap(), work)
        });
        let used = (passes + work).as_secs_f64() / began.elapsed().as_secs_f64();
        assert!(used < 1.15, "{used} of one processor: {passes:?} and {work:?}");
        assert!(work > Duration::from_millis(5), "{work:?}");
    }

    #[test]
    fn without_a_bound_and_on_threads_that_did_not_join_nobody_rests() {
        give_way();
        assert_eq!(rested(), Duration::ZERO);
        let processors = Processors::all();
        let _pass = processors.pass();
        processors.join(19);
        spin(PIECE * 2);
        give_way();
        assert_eq!(rested(), Duration::ZERO);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_budget_is_kept_where_the_machine_has_more() {
        let machine = online_processors().unwrap();
        assert!(Processors::of(machine).bound.is_none() && Processors::of(machine + 1).bound.is_none());
        assert_eq!(Processors::of(1).bound.is_some(), machine > 1);
    }

    #[test]
    fn threads_that_share_a_threads_work_give_way_as_it_does() {
        let rests = || with_worker(|worker| worker.rests);
        let joined_by = |processors: Arc<Processors>| {
            std::thread::spawn(move || {
                processors.join(7);
                let join = company();
                std::thread::scope(|scope| {
                    let shares = scope.spawn(|| {
                        join();
                        rests()
                    });
                    shares.join().unwrap()
                })
            })
        };
        assert_eq!(joined_by(Arc::new(Processors::on(1, true))).join().unwrap(), Some(7));
        // Where there is nothing to keep, nobody does.
        assert_eq!(joined_by(Arc::new(Processors::on(1, false))).join().unwrap(), None);
    }

    #[test]
    fn threads_that_share_a_quiet_threads_work_allocate_apart_from_live_traffic_as_it_does() {
        use super::super::arena::of_this_thread;
        let quiet = std::thread::spawn(|| {
            lower_thread_priority();
            let (own, join) = (of_this_thread(), company());
            // While it fills an arena that is somebody's, those who help it do not.
            let filled = Arena::acquire(0).unwrap();
            let shares = filled.enter(|| {
                std::thread::scope(|scope| {
                    let shares = scope.spawn(|| {
                        join();
                        of_this_thread()
                    });
                    shares.join().unwrap()
                })
            });
            (own, shares.unwrap())
        });
        let (own, shares) = quiet.join().unwrap();
        assert_eq!(own, shares);
        // Of a thread that is not quiet nobody leaves anything.
        let join = company();
        let before = of_this_thread();
        join();
        assert!(of_this_thread() == before && before != own);
    }
}
