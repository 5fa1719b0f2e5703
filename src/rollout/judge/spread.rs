//! Over which time events are spread, so that no single second proves anything by itself.

use std::collections::BTreeMap;
use std::time::Duration;

/// Events are counted by pieces of this length, or longer ones where nobody looks as often.
const PIECE: Duration = Duration::from_secs(1);

/// A count that only grows, in pieces of time.
#[derive(Debug, Clone, Default)]
pub(super) struct Spread {
    /// How many pieces had so many events; which of them does not matter.
    pieces: BTreeMap<u64, u64>,
    /// The count at the end of the last piece, and when that was.
    counted: u64,
    since: Duration,
    /// The last look.
    now: Duration,
}

impl Spread {
    /// Takes what is counted in all at a moment.
    pub(super) fn look(&mut self, at: Duration, count: u64) {
        self.now = at;
        if at >= self.since + PIECE {
            *self.pieces.entry(count.saturating_sub(self.counted)).or_default() += 1;
            self.counted = count;
            self.since = at;
        }
    }

    /// Everything so far is one piece: it was counted in another way.
    pub(super) fn restart(&mut self, at: Duration, count: u64) {
        *self = Spread { pieces: BTreeMap::from([(count, 1)]), counted: count, since: at, now: at };
    }

    /// Whether so many events are there when no piece counts for more than its share of them over `hold`.
    ///
    /// The first piece with events may have begun before them, so there is one more than `hold` has; the last one, which is still
    /// open, counts for as much of a piece as it is. What is counted so is never more than there is: whatever is disproved by it is
    /// disproved by all events.
    pub(super) fn holds(&self, count: u64, needed: u64, hold: Duration) -> bool {
        if hold.is_zero() || count < needed {
            return count >= needed;
        }
        let most = needed as f64 / ((hold.as_secs_f64() / PIECE.as_secs_f64()).ceil() + 1.0);
        let share = (self.now.saturating_sub(self.since).as_secs_f64() / PIECE.as_secs_f64()).min(1.0);
        let open = count.saturating_sub(self.counted) as f64;
        let closed: f64 = self.pieces.iter().map(|(&events, &times)| most.min(events as f64) * times as f64).sum();
        // Shares of a whole number add up to it but for rounding.
        closed + open.min(most * share) >= needed as f64 * (1.0 - 1e-9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at the end of each second, in which so many events happened.
    fn spread(counts: &[u64]) -> (Spread, u64) {
        let (mut spread, mut all) = (Spread::default(), 0);
        for (second, count) in counts.iter().enumerate() {
            all += count;
            spread.look(Duration::from_secs(second as u64 + 1), all);
        }
        (spread, all)
    }

    #[test]
    fn a_burst_is_not_held_and_a_steady_fault_is() {
        let hold = Duration::from_secs(3);
        let (burst, all) = spread(&[0, 500, 0, 0, 1]);
        assert!(burst.holds(all, 40, Duration::ZERO) && !burst.holds(all, 40, hold));
        let (three, all) = spread(&[0, 500, 500, 500, 0]);
        assert!(!three.holds(all, 40, hold), "the first may have begun just before they did");
        let (steady, all) = spread(&[10, 10, 10, 10]);
        assert!(steady.holds(all, 40, hold) && !steady.holds(all, 41, hold));
        let (slow, all) = spread(&[3; 14]);
        assert!(slow.holds(all, 40, hold));
    }

    #[test]
    fn the_piece_that_is_still_open_counts_for_as_much_as_it_is() {
        let (mut seen, all) = spread(&[20, 20, 10]);
        let hold = Duration::from_secs(2);
        for (after, holds) in [(3_400, false), (3_500, true), (3_900, true)] {
            seen.look(Duration::from_millis(after), all + 20);
            assert_eq!(
                seen.holds(all + 20, 60, hold),
                holds,
                "ten of 60 are missing, and at most twenty count in a second: {after}"
            );
        }
    }

    #[test]
    fn what_was_before_a_restart_is_one_piece() {
        let (mut seen, all) = spread(&[20; 5]);
        assert!(seen.holds(all, 40, Duration::from_secs(2)));
        seen.restart(Duration::from_secs(5), all);
        assert!(!seen.holds(all, 40, Duration::from_secs(2)));
    }
}
