//! Whose turn it is on the engine.
//!
//! Priority follows the work, never the role: client requests first, the lane whose input has waited longest
//! first, whichever generation it belongs to; then validation, then shadow work, one small piece at a time.
//! Background work runs freely while the engine would stand idle and clients are quiet. When clients keep the
//! engine busy it may take at most `SHARE` of the engine's time, so that their latency hardly notices and a
//! rollout still comes to its end.

use super::Nanos;

/// The part of engine time that background work may take when clients keep it busy.
const SHARE: f64 = 0.05;
/// Below this utilisation by clients, background work is limited only by idleness.
const QUIET: f64 = 0.05;
/// The utilisation is averaged over about this long.
const HORIZON: f64 = 1e9;
/// Background time that can be saved up while background work waits and clients are busy: short pieces in a burst would
/// delay as much as a long one.
const SAVINGS: f64 = 2e6;
/// With this much saved up, background work has waited for so long that it goes before clients.
const STARVED: f64 = 1e6;
/// What is saved up while no background work waits: it begins by looking for moments in which no client waits.
const READY: f64 = 0.5e6;

/// What kind of work a piece is; also its priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    Client,
    Validation,
    Shadow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice<L> {
    /// Run the next batch of this lane.
    Client(L),
    /// Run the next background piece of this class.
    Background(Class),
    /// Nothing may run now; look again at this time, or when something arrives.
    Wait(Option<Nanos>),
}

#[derive(Debug)]
pub struct Turns {
    /// Decaying share of time that clients kept the engine busy.
    utilisation: f64,
    /// Background time that may be spent, nanoseconds; negative while it is being paid back.
    credit: f64,
    settled: Nanos,
}

impl Turns {
    pub fn new(now: Nanos) -> Self {
        Turns { utilisation: 0.0, credit: READY, settled: now }
    }

    /// Chooses. `lanes`: each lane with work, when its next batch may be cut, and its oldest arrival.
    /// `background`: the most important class of which a piece waits.
    pub fn choose<L: Copy>(
        &mut self,
        now: Nanos,
        lanes: impl IntoIterator<Item = (L, Nanos, Nanos)>,
        background: Option<Class>,
    ) -> Choice<L> {
        self.settle(now, 0.0);
        if background.is_none() {
            self.credit = self.credit.min(READY);
        }
        let (mut ready, mut later): (Option<(Nanos, L)>, Option<Nanos>) = (None, None);
        for (lane, ready_at, oldest) in lanes {
            if ready_at > now {
                later = Some(later.map_or(ready_at, |at| at.min(ready_at)));
            } else if ready.is_none_or(|(best, _)| oldest < best) {
                ready = Some((oldest, lane));
            }
        }
        match (ready, background) {
            (None, Some(class)) if self.utilisation < QUIET || self.credit > 0.0 => Choice::Background(class),
            // Even when clients always wait, the share is background work's to take; until then it finds a moment in which
            // nobody waits.
            (Some(_), Some(class)) if self.credit >= STARVED => Choice::Background(class),
            (Some((_, lane)), _) => Choice::Client(lane),
            (None, None) => Choice::Wait(later),
            (None, Some(_)) => {
                let paid = now + (-self.credit / SHARE).max(0.0) as Nanos + 1;
                Choice::Wait(Some(later.map_or(paid, |at| at.min(paid))))
            }
        }
    }

    /// Accounts for work that ran from `started` to `ended`.
    pub fn ran(&mut self, class: Class, started: Nanos, ended: Nanos) {
        self.settle(started, 0.0);
        let spent = ended.saturating_sub(started) as f64;
        match class {
            Class::Client => self.settle(ended, 1.0),
            Class::Validation | Class::Shadow => {
                self.settle(ended, 0.0);
                self.credit -= spent;
            }
        }
    }

    /// Part of engine time that clients took of late, 0 to 1.
    pub fn utilisation(&self) -> f64 {
        self.utilisation
    }

    /// Lets time pass up to `now`, during which clients ran (`busy` 1) or did not (0).
    fn settle(&mut self, now: Nanos, busy: f64) {
        let passed = now.saturating_sub(self.settled) as f64;
        self.settled = self.settled.max(now);
        let decay = (-passed / HORIZON).exp();
        self.utilisation = self.utilisation * decay + busy * (1.0 - decay);
        self.credit = (self.credit + passed * SHARE).min(SAVINGS);
        if self.utilisation < QUIET {
            self.credit = self.credit.max(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Nanos = 1_000_000;

    #[test]
    fn the_lane_that_has_waited_longest_goes_first_whichever_generation_it_is() {
        let mut turns = Turns::new(0);
        turns.credit = 0.0;
        let lanes = [("green", 50, 50), ("blue", 20, 20)];
        assert_eq!(turns.choose(60, lanes, None), Choice::Client("blue"));
    }

    #[test]
    fn clients_go_before_background_work_once_its_share_is_spent() {
        let mut turns = Turns::new(0);
        turns.ran(Class::Client, 0, 1000 * MS);
        turns.ran(Class::Validation, 1000 * MS, 1020 * MS);
        let now = 1020 * MS;
        assert_eq!(turns.choose(now, [("blue", now, now)], Some(Class::Validation)), Choice::Client("blue"));
    }

    #[test]
    fn a_client_that_waits_goes_first_until_background_work_has_waited_for_long() {
        let mut turns = Turns::new(0);
        turns.ran(Class::Client, 0, 1000 * MS);
        assert_eq!(turns.choose::<u8>(1000 * MS, [], None), Choice::Wait(None));
        // Half of this millisecond was saved up; the rest is paid back after ten, and a whole one saved up after thirty.
        turns.ran(Class::Validation, 1000 * MS, 1001 * MS);
        let mut at = |passed: Nanos| {
            let now = 1001 * MS + passed * MS;
            turns.choose(now, [("blue", now, now)], Some(Class::Validation))
        };
        assert_eq!(at(1), Choice::Client("blue"));
        assert_eq!(at(19), Choice::Client("blue"));
        assert_eq!(at(41), Choice::Background(Class::Validation));
    }

    #[test]
    fn background_work_runs_at_once_on_a_quiet_engine() {
        let mut turns = Turns::new(0);
        for at in 0..100 {
            let now = at * 10 * MS;
            assert_eq!(turns.choose::<u8>(now, [], Some(Class::Validation)), Choice::Background(Class::Validation));
            turns.ran(Class::Validation, now, now + 10 * MS);
        }
    }

    #[test]
    fn a_batch_that_is_held_back_is_looked_at_again_in_time() {
        let mut turns = Turns::new(0);
        assert_eq!(turns.choose(10, [("blue", 500, 10)], None), Choice::Wait(Some(500)));
        assert_eq!(turns.choose::<u8>(10, [], None), Choice::Wait(None));
    }

    /// Runs an engine of one lane for `total` and returns the shares of time that clients and background took.
    fn simulate(load: f64, service: Nanos, piece: Nanos, total: Nanos) -> (f64, f64) {
        let mut turns = Turns::new(0);
        let (mut now, mut next, mut waiting) = (0, 0, Vec::new());
        let (mut clients, mut background) = (0, 0);
        let gap = (service as f64 / load) as Nanos;
        while now < total {
            while next <= now {
                waiting.push(next);
                next += gap;
            }
            let lanes: Vec<((), Nanos, Nanos)> = waiting.first().map(|at| ((), *at, *at)).into_iter().collect();
            match turns.choose(now, lanes, Some(Class::Validation)) {
                Choice::Client(()) => {
                    waiting.remove(0);
                    turns.ran(Class::Client, now, now + service);
                    (now, clients) = (now + service, clients + service);
                }
                Choice::Background(class) => {
                    turns.ran(class, now, now + piece);
                    (now, background) = (now + piece, background + piece);
                }
                Choice::Wait(at) => now = at.unwrap_or(next).clamp(now + 1, next.max(now + 1)),
            }
        }
        (clients as f64 / now as f64, background as f64 / now as f64)
    }

    proptest! {
        #[test]
        fn background_work_takes_at_most_its_share_of_a_busy_engine(
            load in 0.3f64..3.0, service in 1u64..20, piece in 1u64..20,
        ) {
            let (clients, background) = simulate(load, service * MS, piece * MS, 20_000 * MS);
            prop_assert!(background <= SHARE * 1.05 + 0.01, "background took {background}, clients {clients}");
            prop_assert!(background >= SHARE * 0.7, "a rollout must still come to its end: {background}");
        }
    }
}
