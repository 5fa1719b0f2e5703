//! Watches the engine from outside: a forward pass that never ends cannot be stopped, only noticed.
//!
//! It records which generation stalled, fails everybody who waits, and leaves it to the owner of the process
//! to end it, so that a supervisor starts it anew.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Shared;
use crate::device::Health;
use crate::error::{Error, Result};
use crate::generation::GenerationId;

/// A forward pass that did not end in time, or that the device did not survive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stall {
    pub generation: GenerationId,
    pub after: Duration,
    /// Of the device, where that is what happened.
    pub fault: Option<String>,
}

/// What is watched.
pub(super) struct Watched {
    pub(super) shared: Weak<Shared>,
    pub(super) epoch: Instant,
    pub(super) health: Health,
}

pub(super) fn start(
    Watched { shared, epoch, health }: Watched,
    limit: Duration,
    fatal: watch::Sender<Option<String>>,
    on_stall: Box<dyn Fn(Stall) + Send>,
) -> Result<()> {
    let watch = move || {
        let step = (limit / 20).clamp(Duration::from_millis(10), Duration::from_millis(500));
        // The engine's end is the watchdog's: the handle is weak.
        while let Some(shared) = shared.upgrade() {
            let lost = || health.fault().map(|fault| broken(&shared, fault));
            if let Some(stall) = look(&shared, epoch.elapsed(), limit).or_else(lost) {
                let reason = match &stall.fault {
                    Some(fault) => format!("the device failed in a pass of generation {}: {fault}", stall.generation),
                    None => format!("generation {} stalled for {} ms", stall.generation, stall.after.as_millis()),
                };
                on_stall(stall);
                fatal.send_replace(Some(reason));
                return;
            }
            drop(shared);
            std::thread::sleep(step);
        }
    };
    std::thread::Builder::new()
        .name("watchdog".into())
        .spawn(watch)
        .map(drop)
        .map_err(|e| Error::internal(format!("could not start the watchdog: {e}")))
}

fn look(shared: &Shared, now: Duration, limit: Duration) -> Option<Stall> {
    let running = shared.running.load(Ordering::Acquire);
    let since = Duration::from_nanos(shared.since.load(Ordering::Acquire));
    let after = now.saturating_sub(since);
    // Read again: a pass that ended meanwhile and one that began are not one long pass.
    let same = shared.running.load(Ordering::Acquire) == running
        && shared.since.load(Ordering::Acquire) == since.as_nanos() as u64;
    (running != 0 && same && after > limit).then(|| Stall { generation: GenerationId(running - 1), after, fault: None })
}

/// Who ran last when the device was lost.
fn broken(shared: &Shared, fault: &str) -> Stall {
    let last = shared.last.load(Ordering::Acquire).saturating_sub(1);
    Stall { generation: GenerationId(last), after: Duration::ZERO, fault: Some(fault.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_that_takes_too_long_is_seen_and_an_idle_engine_is_not() {
        let shared = Shared::default();
        let limit = Duration::from_secs(1);
        assert_eq!(look(&shared, Duration::from_secs(100), limit), None);
        shared.since.store(5_000_000_000, Ordering::Release);
        shared.running.store(8, Ordering::Release);
        assert_eq!(look(&shared, Duration::from_secs(6), limit), None);
        let stall = look(&shared, Duration::from_millis(6_001), limit);
        assert_eq!(
            stall,
            Some(Stall { generation: GenerationId(7), after: Duration::from_millis(1_001), fault: None })
        );
    }
}
