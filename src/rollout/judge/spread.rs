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
}

impl Spread {
    /// Takes what is counted in all at a moment.
    pub(super) fn look(&mut self, at: Duration, count: u64) {
        if at >= self.since + PIECE {
            *self.pieces.entry(count.saturating_sub(self.counted)).or_default() += 1;
            self.counted = count;
            self.since = at;
        }
    }

    /// Everything so far is one piece: it was counted in another way.
    pub(super) fn restart(&mut self, at: Duration, count: u64) {
        *self = Spread { pieces: BTreeMap::from([(count, 1)]), counted: count, since: at };
    }

    /// Whether so many events are there when no piece counts for more than its share of them over `hold`.
    ///
    /// What is counted so is never more than there is: whatever is disproved by it is disproved by all events.
    pub(super) fn holds(&self, count: u64, needed: u64, hold: Duration) -> bool {
        if count < needed {
            return false;
        }
        let pieces = hold.as_secs_f64() / PIECE.as_secs_f64();
        if pieces <= 1.0 {
            return true;
        }
        let most = needed as f64 / pieces.ceil();
        let open = count.saturating_sub(self.counted) as f64;
        let closed: f64 = self.pieces.iter().map(|(&events, &times)| most.min(events as f64) * times as f64).sum();
        // Shares of a whole number add up to it but for rounding.
        closed + most.min(open) >= needed as f64 * (1.0 - 1e-9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let (two, all) = spread(&[0, 500, 500, 0]);
        assert!(!two.holds(all, 40, hold), "three pieces at least");
        let (steady, all) = spread(&[14, 14, 14]);
        assert!(steady.holds(all, 40, hold) && !steady.holds(all, 43, hold));
        let (slow, all) = spread(&[3; 14]);
        assert!(slow.holds(all, 40, hold));
    }

    #[test]
    fn the_piece_that_is_still_open_counts_as_one() {
        let (mut seen, all) = spread(&[20, 20]);
        seen.look(Duration::from_millis(2_500), all + 20);
        assert!(seen.holds(all + 20, 60, Duration::from_secs(3)));
        assert!(!seen.holds(all + 20, 61, Duration::from_secs(3)));
        seen.restart(Duration::from_secs(3), all);
        assert!(!seen.holds(all, 40, Duration::from_secs(2)), "what was before is one piece");
    }
}
