//! Watches the engine from outside: a forward pass that never ends cannot be stopped, only noticed.
//!
//! It records which generation stalled, fails everybody who waits, and leaves it to the owner of the process
//! to end it, so that a supervisor starts it anew.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Shared;
use crate::error::{Error, Result};
use crate::generation::GenerationId;

/// A forward pass that did not end in time, or the end of the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stall {
    /// Whose pass it was; none where the device was lost while none ran, as to a load.
    pub generation: Option<GenerationId>,
    pub after: Duration,
    /// Of the device, where that is what happened.
    pub fault: Option<String>,
}

/// What is watched.
pub(super) struct Watched {
    pub(super) shared: Weak<Shared>,
    pub(super) epoch: Instant,
}

pub(super) fn start(
    Watched { shared, epoch }: Watched,
    limit: Duration,
    fatal: watch::Sender<Option<String>>,
    on_stall: Box<dyn Fn(Stall) + Send>,
) -> Result<()> {
    let watch = move || {
        let step = (limit / 20).clamp(Duration::from_millis(10), Duration::from_millis(500));
        let mut seen = Seen::default();
        let mut before = epoch.elapsed();
        // The engine's end is the watchdog's: the handle is weak.
        while let Some(shared) = shared.upgrade() {
            let now = epoch.elapsed();
            seen.tick(&shared, (now - before).min(2 * step));
            before = now;
            // First: of a device that is lost no pass comes to its end.
            if let Some(stall) = lost(&shared).or_else(|| seen.stall(limit)) {
                let reason = stall.to_string();
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

/// The pass that was seen running, and for how long it was.
///
/// Its age is that of the looks at it, each worth two steps at most: where the watchdog itself did not run (a process that is
/// stopped, a machine that is suspended, processors that others have), neither could the pass.
#[derive(Debug, Default)]
struct Seen {
    /// Which generation's, plus one, and when it began.
    pass: (u64, u64),
    age: Duration,
}

impl Seen {
    fn tick(&mut self, shared: &Shared, gap: Duration) {
        let read = || (shared.running.load(Ordering::Acquire), shared.since.load(Ordering::Acquire));
        let pass = read();
        // Read again: a pass that ended meanwhile and one that began are not one long pass.
        let same = pass.0 != 0 && pass == self.pass && pass == read();
        self.age = if same { self.age + gap } else { Duration::ZERO };
        self.pass = pass;
    }

    fn stall(&self, limit: Duration) -> Option<Stall> {
        let stalled = self.pass.0 != 0 && self.age > limit;
        stalled.then(|| Stall { generation: generation(self.pass.0), after: self.age, fault: None })
    }
}

/// Who ran when the device was lost, once it is.
fn lost(shared: &Shared) -> Option<Stall> {
    let fault = shared.health.fault()?.to_owned();
    let generation = generation(shared.running.load(Ordering::Acquire));
    Some(Stall { generation, after: Duration::ZERO, fault: Some(fault) })
}

fn generation(running: u64) -> Option<GenerationId> {
    running.checked_sub(1).map(GenerationId)
}

impl std::fmt::Display for Stall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.fault, self.generation) {
            (Some(fault), Some(generation)) => {
                write!(f, "the device failed in a pass of generation {generation}: {fault}")
            }
            (Some(fault), None) => write!(f, "the device failed while no pass ran: {fault}"),
            (None, generation) => {
                let generation = generation.map_or_else(|| "?".into(), |generation| generation.to_string());
                write!(f, "generation {generation} stalled for {} ms", self.after.as_millis())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ticks a second apart for so long, the last that was seen.
    fn after(seen: &mut Seen, shared: &Shared, seconds: u64) -> Option<Stall> {
        (0..seconds).for_each(|_| seen.tick(shared, Duration::from_secs(1)));
        seen.stall(Duration::from_secs(5))
    }

    #[test]
    fn a_pass_that_takes_too_long_is_seen_and_an_idle_engine_is_not() {
        let (shared, mut seen) = (Shared::default(), Seen::default());
        assert_eq!(after(&mut seen, &shared, 100), None);
        shared.since.store(5_000_000_000, Ordering::Release);
        shared.running.store(8, Ordering::Release);
        assert_eq!(after(&mut seen, &shared, 6), None);
        let stall = after(&mut seen, &shared, 1);
        let generation = Some(GenerationId(7));
        assert_eq!(stall, Some(Stall { generation, after: Duration::from_secs(6), fault: None }));
    }

    #[test]
    fn a_device_that_is_lost_is_blamed_on_the_pass_that_ran_then_and_else_on_none() {
        for (running, named) in [(8, Some(GenerationId(7))), (0, None)] {
            let shared = Shared::default();
            shared.running.store(running, Ordering::Release);
            assert_eq!(lost(&shared), None);
            assert!(shared.health.lost("an illegal address".into()));
            let stall = lost(&shared).unwrap();
            assert_eq!((stall.generation, stall.fault.as_deref()), (named, Some("an illegal address")));
            let told = stall.to_string();
            assert_eq!(told.contains("generation 7"), named.is_some(), "{told}");
            assert!(told.starts_with("the device failed") && told.ends_with("an illegal address"), "{told}");
        }
    }

    #[test]
    fn passes_that_follow_each_other_are_not_one_and_time_in_which_nobody_looked_does_not_count() {
        let (shared, mut seen) = (Shared::default(), Seen::default());
        shared.running.store(8, Ordering::Release);
        for pass in 1..100 {
            shared.since.store(pass, Ordering::Release);
            assert_eq!(after(&mut seen, &shared, 3), None);
        }
        // A minute in which the process was stopped is one late look, worth two steps.
        let step = Duration::from_millis(250);
        seen.tick(&shared, Duration::from_secs(60).min(2 * step));
        assert_eq!(seen.stall(Duration::from_secs(5)), None);
    }
}
