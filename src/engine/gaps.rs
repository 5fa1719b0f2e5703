//! How long clients' work waited while the engine stood idle: the measure of a switch's downtime.

use std::collections::VecDeque;

use crate::schedule::Nanos;

/// Batches that are remembered; a switch asks about the second round its store.
const REMEMBERED: usize = 16_384;

#[derive(Debug, Default)]
pub(super) struct Gaps {
    /// (when a client batch began, how long its oldest input had waited with the engine idle).
    seen: VecDeque<(Nanos, Nanos)>,
    /// When the engine last stopped working, on whatever it was.
    idle_since: Nanos,
}

impl Gaps {
    pub(super) fn begins(&mut self, now: Nanos, oldest: Nanos) {
        if self.seen.len() == REMEMBERED {
            self.seen.pop_front();
        }
        self.seen.push_back((now, now.saturating_sub(self.idle_since.max(oldest))));
    }

    pub(super) fn worked_until(&mut self, now: Nanos) {
        self.idle_since = now;
    }

    pub(super) fn longest(&self, from: Nanos, to: Nanos) -> Nanos {
        let between = self.seen.iter().filter(|(at, _)| (from..=to).contains(at));
        between.map(|(_, gap)| *gap).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_in_which_work_waited_and_the_engine_was_idle_counts() {
        let mut gaps = Gaps::default();
        gaps.worked_until(100);
        gaps.begins(150, 140); // idle since 100, but work came at 140
        gaps.worked_until(300);
        gaps.begins(301, 160); // waited behind work until 300
        assert_eq!(gaps.longest(0, 1_000), 10);
        assert_eq!(gaps.longest(200, 1_000), 1);
        assert_eq!(gaps.longest(2_000, 3_000), 0);
    }
}
