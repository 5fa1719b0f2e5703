//! A generation's own counters. The window rules judge these and nothing else; metrics export them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use tokio::sync::Notify;

use super::observed::{LONGEST, Observed, histogram, micros};

/// Latencies are kept in two halves of this length, so that a quantile speaks of the recent past.
const HALF_LIFE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Stats {
    /// Requests answered through a route by this generation, whole.
    answered: AtomicU64,
    /// Requests that this generation failed although its predecessor could answer them, or, where no failover
    /// was possible, that it failed.
    blamed: AtomicU64,
    /// Of the blamed ones, those with non-finite outputs.
    nonfinite: AtomicU64,
    /// Requests that it failed and that nobody could answer: not its fault alone.
    unexplained: AtomicU64,
    /// Requests that the predecessor answered for it.
    failovers: AtomicU64,
    /// Requests that named this version themselves; they count in no window.
    named: AtomicU64,
    /// Requests that ran into the model's own deadline.
    timed_out: AtomicU64,
    /// When it was blamed first since somebody asked.
    accused: Mutex<Option<Instant>>,
    latency: Mutex<Latencies>,
    /// By `Stage`.
    spent: [Clock; 4],
    /// Milliseconds since 1970; 0 before the first answer.
    last: AtomicU64,
    /// Woken on every blamed fault, so that rules are judged at once.
    pub fault: Notify,
    /// And on every answer that took longer than was to be watched for.
    pub slow: Notify,
    /// Microseconds.
    watched: AtomicU64,
}

/// What time is counted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Requests that were answered, from admission to the complete output.
    Answered,
    /// Requests that the generation failed.
    Failed,
    /// Tokenizing texts, decoding images.
    Prepared,
    /// From rows to outputs.
    Finished,
}

/// How often a stage was gone through, and how long that took in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    pub times: u64,
    pub nanos: u64,
}

#[derive(Debug, Default)]
struct Clock {
    times: AtomicU64,
    nanos: AtomicU64,
}

#[derive(Debug)]
struct Latencies {
    /// Microseconds, from admission to the complete output.
    current: Histogram<u64>,
    previous: Histogram<u64>,
    /// Everything since the last `restart`.
    window: Histogram<u64>,
    /// Where the counters stood then.
    counted: Counted,
    turned: Instant,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    answered: u64,
    blamed: u64,
    nonfinite: u64,
    timed_out: u64,
}

/// What the counters said at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    pub answered: u64,
    pub blamed: u64,
    pub nonfinite: u64,
    pub unexplained: u64,
    pub failovers: u64,
    pub named: u64,
    /// Of the last one to two minutes; `None` without requests.
    pub p50: Option<Duration>,
    pub p99: Option<Duration>,
    pub samples: u64,
}

/// A moment to count answers from.
#[derive(Debug)]
pub struct Mark {
    /// Microseconds; longer answers are slow.
    limit: u64,
    then: Passed,
}

/// Answers, and those of them that took longer than a mark's limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    pub answered: u64,
    pub slow: u64,
}

/// Where a look at a generation's answers ended: the next one begins there.
#[derive(Debug)]
pub struct Seen(Histogram<u64>);

/// What was answered between two looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Beat {
    pub samples: u64,
    /// `None` without answers.
    pub p50: Option<Duration>,
    pub p99: Option<Duration>,
}

impl Default for Seen {
    fn default() -> Self {
        Seen(histogram())
    }
}

impl Stats {
    pub fn new() -> Self {
        Stats {
            answered: AtomicU64::new(0),
            blamed: AtomicU64::new(0),
            nonfinite: AtomicU64::new(0),
            unexplained: AtomicU64::new(0),
            failovers: AtomicU64::new(0),
            named: AtomicU64::new(0),
            timed_out: AtomicU64::new(0),
            accused: Mutex::default(),
            latency: Mutex::new(Latencies {
                current: histogram(),
                previous: histogram(),
                window: histogram(),
                counted: Counted::default(),
                turned: Instant::now(),
            }),
            spent: Default::default(),
            last: AtomicU64::new(0),
            fault: Notify::new(),
            slow: Notify::new(),
            watched: AtomicU64::new(u64::MAX),
        }
    }

    pub fn answered(&self, took: Duration) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        self.took(took);
    }

    /// A client did not wait any longer. It would have taken longer still: of how long answers take this is what is known, and of
    /// two versions with the same clients it hides as much.
    pub fn given_up(&self, after: Duration) {
        self.took(after);
    }

    fn took(&self, took: Duration) {
        let micros = micros(took);
        let mut latency = self.lock();
        latency.turn();
        latency.current.saturating_record(micros);
        latency.window.saturating_record(micros);
        drop(latency);
        if micros > self.watched.load(Ordering::Relaxed) {
            self.slow.notify_one();
        }
    }

    /// From which latency on answers wake `slow`; `None` for never.
    pub fn watch_for(&self, limit: Option<Duration>) {
        let limit = limit.map_or(u64::MAX, |limit| u64::try_from(limit.as_micros()).unwrap_or(u64::MAX));
        self.watched.store(limit, Ordering::Relaxed);
    }

    /// A request that was not answered within `limit`: the latency of answers alone would not show it.
    pub fn timed_out(&self, limit: Duration) {
        self.timed_out.fetch_add(1, Ordering::Relaxed);
        self.took(limit);
    }

    pub fn answered_by_name(&self) {
        self.named.fetch_add(1, Ordering::Relaxed);
    }

    /// A fault that is this generation's own.
    pub fn blame(&self, nonfinite: bool) {
        self.blamed.fetch_add(1, Ordering::Relaxed);
        if nonfinite {
            self.nonfinite.fetch_add(1, Ordering::Relaxed);
        }
        self.accused.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert_with(Instant::now);
        self.fault.notify_one();
    }

    /// When it was blamed first since this was asked last: so long ago a rule may have been broken.
    pub fn accused(&self) -> Option<Instant> {
        self.accused.lock().unwrap_or_else(|e| e.into_inner()).take()
    }

    pub fn failed_over(&self) {
        self.failovers.fetch_add(1, Ordering::Relaxed);
    }

    /// A fault that the predecessor shares, so that nobody is to blame but perhaps the input.
    pub fn unexplained(&self) {
        self.unexplained.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a stage that was gone through.
    pub fn spend(&self, stage: Stage, took: Duration) {
        let clock = &self.spent[stage as usize];
        clock.times.fetch_add(1, Ordering::Relaxed);
        clock.nanos.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
        if stage == Stage::Answered {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.last.store(now.as_millis() as u64, Ordering::Relaxed);
        }
    }

    pub fn spent(&self, stage: Stage) -> Spent {
        let clock = &self.spent[stage as usize];
        Spent { times: clock.times.load(Ordering::Relaxed), nanos: clock.nanos.load(Ordering::Relaxed) }
    }

    /// When it answered last: milliseconds since 1970; 0 before the first answer.
    pub fn last_ms(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    pub fn snapshot(&self) -> Snapshot {
        let (p50, p99, samples) = quantiles(&self.recent());
        self.counters(p50, p99, samples)
    }

    /// Like `snapshot`, with latencies since the last `restart_window`.
    pub fn window(&self) -> Snapshot {
        let (p50, p99, samples) = quantiles(&self.lock().window);
        self.counters(p50, p99, samples)
    }

    /// From now on.
    pub fn mark(&self, limit: Duration) -> Mark {
        let limit = (limit.as_micros() as u64).clamp(1, LONGEST - 1);
        Mark { limit, then: passed(&self.lock().window, limit) }
    }

    /// What was answered since the mark, which moves here.
    pub fn since(&self, mark: &mut Mark) -> Passed {
        let now = passed(&self.lock().window, mark.limit);
        // A window that began anew has counted from nothing.
        let then = if now.answered < mark.then.answered { Passed::default() } else { mark.then };
        mark.then = now;
        Passed { answered: now.answered - then.answered, slow: now.slow.saturating_sub(then.slow) }
    }

    /// What was answered since the look that `seen` ended, which ends here. Whoever answers is held up by a copy only.
    pub fn beat(&self, seen: &mut Seen) -> Beat {
        let now = self.lock().window.clone();
        let mut fresh = now.clone();
        if fresh.subtract(&seen.0).is_err() {
            // A window that began anew has counted from nothing.
            fresh = now.clone();
        }
        seen.0 = now;
        let (p50, p99, samples) = quantiles(&fresh);
        Beat { samples, p50, p99 }
    }

    pub fn restart_window(&self) {
        let counted = self.counted();
        let mut latency = self.lock();
        latency.window.reset();
        latency.counted = counted;
    }

    /// What was done since the last `restart_window`.
    pub fn observed(&self) -> Observed {
        let (latency, before) = {
            let latency = self.lock();
            (latency.window.clone(), latency.counted)
        };
        let now = self.counted();
        Observed {
            answered: now.answered - before.answered,
            blamed: now.blamed - before.blamed,
            nonfinite: now.nonfinite - before.nonfinite,
            timed_out: now.timed_out - before.timed_out,
            ..Observed::of(latency)
        }
    }

    /// Everything it has done, with the latencies of the last one to two minutes.
    pub fn recently(&self) -> Observed {
        let latency = self.recent();
        let Counted { answered, blamed, nonfinite, timed_out } = self.counted();
        Observed { answered, blamed, nonfinite, timed_out, ..Observed::of(latency) }
    }

    fn recent(&self) -> Histogram<u64> {
        let mut latency = self.lock();
        latency.turn();
        let mut recent = latency.previous.clone();
        // Both have the same bounds, so adding cannot fail.
        let _ = recent.add(&latency.current);
        recent
    }

    fn counted(&self) -> Counted {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        // What is part of another count is read before it, so that it is never more.
        let nonfinite = read(&self.nonfinite);
        Counted {
            nonfinite,
            blamed: read(&self.blamed),
            answered: read(&self.answered),
            timed_out: read(&self.timed_out),
        }
    }

    fn counters(&self, p50: Option<Duration>, p99: Option<Duration>, samples: u64) -> Snapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Snapshot {
            answered: read(&self.answered),
            blamed: read(&self.blamed),
            nonfinite: read(&self.nonfinite),
            unexplained: read(&self.unexplained),
            failovers: read(&self.failovers),
            named: read(&self.named),
            p50,
            p99,
            samples,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Latencies> {
        self.latency.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Default for Stats {
    fn default() -> Self {
        Self::new()
    }
}

impl Latencies {
    fn turn(&mut self) {
        let age = self.turned.elapsed();
        if age >= HALF_LIFE {
            std::mem::swap(&mut self.current, &mut self.previous);
            self.current.reset();
            if age >= 2 * HALF_LIFE {
                self.previous.reset();
            }
            self.turned = Instant::now();
        }
    }
}

fn quantiles(histogram: &Histogram<u64>) -> (Option<Duration>, Option<Duration>, u64) {
    if histogram.is_empty() {
        return (None, None, 0);
    }
    let at = |q| Some(Duration::from_micros(histogram.value_at_quantile(q)));
    (at(0.5), at(0.99), histogram.len())
}

fn passed(histogram: &Histogram<u64>, limit: u64) -> Passed {
    Passed { answered: histogram.len(), slow: histogram.count_between(histogram.next_non_equivalent(limit), LONGEST) }
}

#[cfg(test)]
#[path = "stats_tests.rs"]
mod tests;
