//! Rests between a candidate's first forward passes, so that live traffic hardly meets them (promise 5).
//!
//! The lowest priority gives a probation thread only what live traffic leaves, but what is left is often the other half
//! of a core that live traffic runs on, whose passes are slower for it. Beside live traffic a candidate therefore works a
//! twentieth of the time, as background work on the engine does. Must not know what is run, nor where.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::engine::Engine;

/// Time to rest for each time worked.
const RESTS: u32 = 19;
/// Long passes are not rested after in full: somebody waits for the rollout to end.
const LONGEST: Duration = Duration::from_millis(100);
/// Live traffic that was seen this lately goes on.
const RECENT: Duration = Duration::from_millis(100);

pub(super) struct Pace {
    engine: Engine,
    /// Batches that the engine had run for clients, and when there were more than before.
    batches: u64,
    live: Option<Instant>,
}

impl Pace {
    pub(super) fn beside(engine: Engine) -> Pace {
        let batches = engine.counters().batches.load(Ordering::Relaxed);
        Pace { engine, batches, live: None }
    }

    /// Rests after a pass that took so much processor time, as long as that is due and it has not rested within, and says how
    /// long it was.
    pub(super) async fn rest(&mut self, worked: Duration, rested: Duration) -> Duration {
        let batches = self.engine.counters().batches.load(Ordering::Relaxed);
        if batches != self.batches {
            (self.batches, self.live) = (batches, Some(Instant::now()));
        }
        let rest = due(worked, self.live.map(|at| at.elapsed())).saturating_sub(rested);
        if !rest.is_zero() {
            tokio::time::sleep(rest).await;
        }
        rest
    }
}

/// The rest after so much work, with live traffic seen so long ago.
fn due(worked: Duration, live: Option<Duration>) -> Duration {
    match live {
        Some(ago) if ago <= RECENT => (worked * RESTS).min(LONGEST),
        _ => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_live_traffic_is_given_way_to_and_never_for_long() {
        let ms = Duration::from_millis;
        assert_eq!(due(ms(2), None), Duration::ZERO);
        assert_eq!(due(ms(2), Some(RECENT + ms(1))), Duration::ZERO);
        assert_eq!(due(ms(2), Some(ms(5))), ms(38));
        assert_eq!(due(ms(500), Some(ms(5))), LONGEST);
    }
}
