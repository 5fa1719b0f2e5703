//! What a generation that writes is doing, for metrics: the engine's thread counts, others read without asking it.
//!
//! It must not know who reads it, or under what names.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::schedule::Nanos;
use crate::schedule::decode::Figures;

/// Upper bounds of times in nanoseconds: from half a millisecond to half a minute, each twice the one before.
const BOUNDS: usize = 17;
const LEAST: Nanos = 500_000;

/// Of one generation, since it became resident.
#[derive(Debug, Default)]
pub struct Meters {
    running: AtomicU64,
    waiting: AtomicU64,
    blocks_used: AtomicU64,
    blocks_cached: AtomicU64,
    blocks_free: AtomicU64,
    prefix_asked: AtomicU64,
    prefix_hits: AtomicU64,
    preemptions: AtomicU64,
    prompt_tokens: AtomicU64,
    written_tokens: AtomicU64,
    first: Times,
    between: Times,
}

/// Times by length.
#[derive(Debug, Default)]
struct Times {
    /// The last counts what is longer than every bound.
    counts: [AtomicU64; BOUNDS + 1],
    nanos: AtomicU64,
}

/// What [`Meters`] said at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Metered {
    pub scheduler: Figures,
    /// Of prompts that were begun.
    pub prompt_tokens: u64,
    pub written_tokens: u64,
    /// From a prompt's arrival at the engine to its first token.
    pub first: TimesMetered,
    /// From a token of a sequence to its next.
    pub between: TimesMetered,
}

/// A histogram.
#[derive(Debug, Clone, PartialEq)]
pub struct TimesMetered {
    /// How many were at most so long, by bound in seconds, ascending; the last bound is infinite.
    pub buckets: Vec<(f64, u64)>,
    pub seconds: f64,
}

impl Meters {
    /// What the scheduler says now.
    pub(super) fn show(&self, figures: &Figures) {
        let set = |counter: &AtomicU64, value: u64| counter.store(value, Ordering::Relaxed);
        set(&self.running, figures.running as u64);
        set(&self.waiting, figures.waiting as u64);
        set(&self.blocks_used, figures.blocks_used as u64);
        set(&self.blocks_cached, figures.blocks_cached as u64);
        set(&self.blocks_free, figures.blocks_free as u64);
        set(&self.prefix_asked, figures.prefix_asked);
        set(&self.prefix_hits, figures.prefix_hits);
        set(&self.preemptions, figures.preemptions);
    }

    pub(super) fn began(&self, prompt_tokens: usize) {
        self.prompt_tokens.fetch_add(prompt_tokens as u64, Ordering::Relaxed);
    }

    pub(super) fn first(&self, took: Nanos) {
        self.written_tokens.fetch_add(1, Ordering::Relaxed);
        self.first.add(took);
    }

    pub(super) fn next(&self, took: Nanos) {
        self.written_tokens.fetch_add(1, Ordering::Relaxed);
        self.between.add(took);
    }

    pub fn read(&self) -> Metered {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Metered {
            scheduler: Figures {
                running: read(&self.running) as usize,
                waiting: read(&self.waiting) as usize,
                blocks_used: read(&self.blocks_used) as usize,
                blocks_cached: read(&self.blocks_cached) as usize,
                blocks_free: read(&self.blocks_free) as usize,
                prefix_asked: read(&self.prefix_asked),
                prefix_hits: read(&self.prefix_hits),
                preemptions: read(&self.preemptions),
            },
            prompt_tokens: read(&self.prompt_tokens),
            written_tokens: read(&self.written_tokens),
            first: self.first.read(),
            between: self.between.read(),
        }
    }
}

impl Times {
    fn add(&self, took: Nanos) {
        let at = (0..BOUNDS).position(|at| took <= bound(at)).unwrap_or(BOUNDS);
        self.counts[at].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(took, Ordering::Relaxed);
    }

    fn read(&self) -> TimesMetered {
        let mut total = 0;
        let buckets = self.counts.iter().enumerate().map(|(at, count)| {
            total += count.load(Ordering::Relaxed);
            let seconds = if at < BOUNDS { Duration::from_nanos(bound(at)).as_secs_f64() } else { f64::INFINITY };
            (seconds, total)
        });
        let buckets = buckets.collect();
        TimesMetered { buckets, seconds: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)).as_secs_f64() }
    }
}

impl TimesMetered {
    pub fn count(&self) -> u64 {
        self.buckets.last().map_or(0, |(_, count)| *count)
    }
}

fn bound(at: usize) -> Nanos {
    LEAST << at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_counted_up_to_each_bound() {
        let meters = Meters::default();
        for nanos in [1, LEAST, LEAST + 1, 3 * LEAST, u64::from(u32::MAX) * 100] {
            meters.next(nanos);
        }
        let read = meters.read();
        assert_eq!((read.written_tokens, read.between.count(), read.first.count()), (5, 5, 0));
        assert_eq!(read.between.buckets[..3], [(0.0005, 2), (0.001, 3), (0.002, 4)]);
        assert_eq!(read.between.buckets[BOUNDS - 1..], [(32.768, 4), (f64::INFINITY, 5)]);
        assert!((read.between.seconds - 429.4967).abs() < 0.01, "{}", read.between.seconds);
    }
}
