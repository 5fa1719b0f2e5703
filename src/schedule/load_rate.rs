//! How fast weights may come in beside live traffic: slowly at first, faster while clients notice nothing, half as fast when
//! they do, slowly again while there are some of whom nobody can say whether they do, and freely where there are none.
//!
//! Clients notice when more of their answers than one in a hundred take longer than nearly all of them did before the load,
//! which is what a p99 says; a share can be judged from far fewer answers than a quantile. Additive increase would take as
//! long as the load itself, so the rate grows by factors (as TCP's slow start does, RFC 5681).

use super::Nanos;

/// Bytes a second with which a load begins beside live traffic: a twelfth of what PCIe 5 carries.
const BEGIN: f64 = 4e9;
/// No load is slower than this: it must come to its end.
const FLOOR: f64 = 256e6;
/// Faster than anything that is known; from here on nothing holds the load back.
const OPEN: f64 = 64e9;
const FASTER: f64 = 1.5;
const SLOWER: f64 = 0.5;
/// Without an answer for so long, there is no live traffic.
const QUIET: Nanos = 1_000_000_000;
/// Answers of earlier looks count for so much at the next.
const MEMORY: f64 = 0.7;
/// The share of answers that may be slow: those beyond a p99.
const SHARE: f64 = 0.01;

/// What happened since the last look.
#[derive(Debug, Clone, Copy, Default)]
pub struct Looked {
    /// Answers to clients, and those that took longer than the limit.
    pub answered: u64,
    pub slow: u64,
    /// Answers that have no limit yet: nobody knows what is usual where they come from.
    pub unjudged: u64,
    /// Whether there were such answers since the load began, from where nobody knows it still.
    pub strangers: bool,
    /// Bytes that the load has moved.
    pub moved: u64,
    pub took: Nanos,
}

#[derive(Debug)]
pub struct LoadRate {
    /// Bytes a second; infinite when nothing holds it back.
    rate: f64,
    answered: f64,
    slow: f64,
    /// Since the last answer.
    quiet: Nanos,
    eased: u64,
}

impl LoadRate {
    /// With or without clients that were answered just before.
    pub fn begin(live: bool) -> Self {
        let (rate, quiet) = if live { (BEGIN, 0) } else { (f64::INFINITY, QUIET) };
        LoadRate { rate, answered: 0.0, slow: 0.0, quiet, eased: 0 }
    }

    /// Bytes a second; `None` when nothing holds it back.
    pub fn rate(&self) -> Option<u64> {
        self.rate.is_finite().then_some(self.rate as u64)
    }

    /// How often it gave way.
    pub fn eased(&self) -> u64 {
        self.eased
    }

    pub fn look(&mut self, seen: Looked) {
        self.quiet = if seen.answered + seen.unjudged > 0 { 0 } else { self.quiet.saturating_add(seen.took) };
        self.answered = self.answered * MEMORY + seen.answered as f64;
        self.slow = self.slow * MEMORY + seen.slow as f64;
        if self.quiet >= QUIET {
            self.rate = f64::INFINITY;
        } else if self.noticed() {
            let moved = seen.moved as f64 * 1e9 / seen.took.max(1) as f64;
            self.rate = (self.rate.min(moved) * SLOWER).max(FLOOR);
            self.eased += 1;
            // Answers that were slow before the load gave way say nothing about it after.
            (self.answered, self.slow) = (0.0, 0.0);
        } else if seen.strangers {
            // What is usual is what they get beside a load that begins.
            self.rate = self.rate.min(BEGIN);
        } else if self.rate.is_finite() {
            self.rate *= FASTER;
            if self.rate >= OPEN {
                self.rate = f64::INFINITY;
            }
        }
    }

    /// More slow answers than chance would have (two deviations of a Poisson count, and one to begin with).
    fn noticed(&self) -> bool {
        let usual = self.answered * SHARE;
        self.slow > usual + 2.0 * usual.sqrt() + 1.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOOK: Nanos = 100_000_000;

    fn seen(answered: u64, slow: u64, rate: Option<u64>) -> Looked {
        let moved = rate.unwrap_or(30_000_000_000) / 10;
        Looked { answered, slow, moved, took: LOOK, ..Looked::default() }
    }

    #[test]
    fn clients_who_come_in_the_middle_are_loaded_beside_slowly_until_it_is_known_what_is_usual() {
        let mut rate = LoadRate::begin(false);
        rate.look(seen(0, 0, None));
        assert_eq!(rate.rate(), None);
        let strangers = |unjudged| Looked { unjudged, strangers: true, ..seen(0, 0, None) };
        for unjudged in [1, 30, 0, 0, 5] {
            rate.look(strangers(unjudged));
            assert_eq!(rate.rate(), Some(BEGIN as u64));
        }
        // It is known now.
        rate.look(seen(30, 0, rate.rate()));
        assert_eq!(rate.rate(), Some((BEGIN * FASTER) as u64));
        // They have left without that ever being known.
        let mut rate = LoadRate::begin(false);
        rate.look(strangers(3));
        (0..10).for_each(|_| rate.look(strangers(0)));
        assert_eq!(rate.rate(), None);
    }

    #[test]
    fn without_clients_nothing_holds_it_back_and_with_them_it_begins_slowly() {
        assert_eq!(LoadRate::begin(false).rate(), None);
        let mut rate = LoadRate::begin(true);
        assert_eq!(rate.rate(), Some(BEGIN as u64));
        // A second after the last answer it opens.
        for _ in 0..9 {
            rate.look(seen(0, 0, rate.rate()));
        }
        rate.look(seen(0, 0, rate.rate()));
        assert_eq!(rate.rate(), None);
    }

    #[test]
    fn it_grows_while_nobody_notices_and_is_halved_when_somebody_does() {
        let mut rate = LoadRate::begin(true);
        let mut before = rate.rate().unwrap();
        for _ in 0..5 {
            rate.look(seen(100, 1, rate.rate()));
            let now = rate.rate().unwrap();
            assert!(now > before);
            before = now;
        }
        rate.look(seen(100, 30, rate.rate()));
        assert_eq!(rate.rate(), Some(before / 2));
        assert_eq!(rate.eased(), 1);
        // From open, what was really moved is halved.
        let mut open = LoadRate::begin(false);
        open.look(seen(100, 30, None));
        assert_eq!(open.rate(), Some(15_000_000_000));
    }

    /// A model of the bus: the more of it the load takes, the more answers are slow.
    fn settled(slow_at: impl Fn(f64) -> f64) -> f64 {
        let mut rate = LoadRate::begin(true);
        let (mut sum, mut counted) = (0.0, 0);
        for look in 0..400 {
            let gbps = rate.rate().map_or(30.0, |rate| rate as f64 / 1e9).min(30.0);
            let slow = (200.0 * slow_at(gbps)).round() as u64;
            let moved = (gbps * 1e8) as u64;
            rate.look(Looked { answered: 200, slow, moved, took: LOOK, ..Looked::default() });
            if look >= 100 {
                (sum, counted) = (sum + gbps, counted + 1);
            }
        }
        sum / f64::from(counted)
    }

    #[test]
    fn it_finds_the_rate_that_clients_do_not_notice() {
        // Nobody is bothered by less than 10 GB/s, everybody above.
        let found = settled(|gbps| if gbps > 10.0 { 0.2 } else { 0.005 });
        assert!((4.0..=11.0).contains(&found), "{found}");
        assert!(settled(|_| 0.005) > 29.0);
        assert!(settled(|_| 0.5) < 0.6, "it does not stop altogether, and hardly more");
    }

    proptest! {
        #[test]
        fn it_is_never_slower_than_the_floor(looks in prop::collection::vec((0u64..500, 0u64..500, 0u64..1 << 34), 1..60)) {
            let mut rate = LoadRate::begin(true);
            for (answered, slow, moved) in looks {
                let slow = slow.min(answered);
                rate.look(Looked { answered, slow, moved, took: LOOK, ..Looked::default() });
                prop_assert!(rate.rate().is_none_or(|rate| rate >= FLOOR as u64));
            }
        }
    }
}
