//! Sharing a model's requests between two generations: which of them a request goes to. Pure, and decided at admission.
//!
//! Who has been sent to one of them is sent there again: a place is computed from what stays the same of a client (or of a
//! request), and nothing is remembered. A share that grows only moves clients to the new generation, never back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use twox_hash::XxHash3_64;

use super::tally::Tally;
use crate::generation::Generation;
use crate::repository::Sticky;

/// What can be known of whoever asks, where requests are shared by it.
pub trait Asker {
    /// The first value of a header.
    fn header(&self, name: &str) -> Option<&[u8]>;
    /// The name of the API key that was shown.
    fn api_key(&self) -> Option<&str>;
    /// The request itself.
    fn body(&self) -> &[u8];
    /// What the answer will be called by.
    fn id(&self) -> Option<&str>;
}

/// A part of all requests: from none, 0, to all, 2³².
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u64);

impl Share {
    const WHOLE: u64 = 1 << 32;

    /// Of a number from 0 to 1; what lies beyond is none or all.
    pub fn of(part: f64) -> Share {
        Share((part.clamp(0.0, 1.0) * Self::WHOLE as f64).round() as u64)
    }

    /// As a number from 0 to 1.
    pub fn part(self) -> f64 {
        self.0 as f64 / Self::WHOLE as f64
    }

    /// Whether a place within all requests lies in it.
    fn holds(self, place: u32) -> bool {
        u64::from(place) < self.0
    }
}

/// Two generations that share a model's requests.
#[derive(Debug, Clone)]
pub struct Split {
    /// Who answers the share; the route's live generation answers the rest.
    pub to: Arc<Generation>,
    pub share: Share,
    pub sticky: Sticky,
    /// The same for as long as clients are to stay where they are.
    pub salt: u64,
    /// Whether what `to` fails is run again on the live generation. Off when the contract changed.
    pub failover: bool,
    /// What is counted of each answer, where somebody compares.
    pub tally: Option<Arc<Tally>>,
}

impl Split {
    /// The salt of a name.
    pub fn salt(name: &str) -> u64 {
        hashed(0, name.as_bytes())
    }

    pub(super) fn takes(&self, asker: &dyn Asker) -> bool {
        let known = match &self.sticky {
            Sticky::Header(name) => asker.header(name),
            Sticky::ApiKey => asker.api_key().map(str::as_bytes),
            Sticky::Request => None,
        };
        self.share.holds(place(self.salt, known.unwrap_or_else(|| asker.body())))
    }
}

/// Where something stands among all, evenly.
fn place(salt: u64, known: &[u8]) -> u32 {
    (hashed(salt, known) >> 32) as u32
}

/// The same in every process and build. Requests may be megabytes long, and are hashed as fast as memory is read (XXH3, Collet,
/// xxHash 0.8).
pub(super) fn hashed(salt: u64, bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(salt, bytes)
}

/// Takes a share of what passes, spread as evenly as can be: of every 1/share one, by an accumulator that overflows.
#[derive(Debug)]
pub(super) struct Sampler {
    share: Share,
    passed: AtomicU32,
}

impl Sampler {
    pub(super) fn new(share: Share) -> Sampler {
        Sampler { share, passed: AtomicU32::new(0) }
    }

    pub(super) fn takes(&self) -> bool {
        let Ok(step) = u32::try_from(self.share.0) else { return true };
        self.passed.fetch_add(step, Ordering::Relaxed).checked_add(step).is_none()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn places(salt: u64, clients: u32) -> Vec<u32> {
        (0..clients).map(|client| place(salt, &client.to_le_bytes())).collect()
    }

    #[test]
    fn clients_are_spread_evenly_and_by_another_salt_otherwise() {
        let (one, other) = (places(1, 100_000), places(2, 100_000));
        for percent in [1u32, 5, 25, 50, 99] {
            let share = Share::of(f64::from(percent) / 100.0);
            let taken = one.iter().filter(|place| share.holds(**place)).count() as f64;
            let expected = 1000.0 * f64::from(percent);
            // Five standard deviations of a binomial distribution.
            let bound = 5.0 * (expected * (1.0 - f64::from(percent) / 100.0)).sqrt();
            assert!((taken - expected).abs() < bound, "{taken} of {expected}");
        }
        let half = Share::of(0.5);
        let both = one.iter().zip(&other).filter(|(a, b)| half.holds(**a) == half.holds(**b)).count();
        assert!((48_000..52_000).contains(&both), "{both}: one salt says nothing of the other");
    }

    proptest! {
        #[test]
        fn a_share_that_grows_takes_nobody_back(place: u32, a in 0.0..1.0f64, b in 0.0..1.0f64) {
            let (less, more) = (Share::of(a.min(b)), Share::of(a.max(b)));
            prop_assert!(!less.holds(place) || more.holds(place));
            prop_assert!(!Share::of(0.0).holds(place) && Share::of(1.0).holds(place));
        }

        #[test]
        fn of_so_many_a_sampler_takes_its_share_and_no_burst(part in 0.0..=1.0f64, passes in 1usize..2000) {
            let sampler = Sampler::new(Share::of(part));
            let taken = (0..passes).filter(|_| sampler.takes()).count() as f64;
            prop_assert!((taken - part * passes as f64).abs() <= 1.0, "{taken} of {passes} at {part}");
        }
    }
}
