//! Evidence that may be looked at as often as one likes.
//!
//! Each test is an e-process: a product that under the null hypothesis is expected never to grow, so that it ever reaches
//! 1/a with a probability of at most a, however often and whenever it is looked at (Ville 1939; Robbins, "Statistical
//! methods related to the law of the iterated logarithm", 1970; Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform
//! Chernoff bounds via nonnegative supermartingales", 2020; Grünwald, de Heide and Koolen, "Safe testing", 2024). It is a
//! likelihood ratio, averaged over a few alternatives: Robbins' mixture on a grid. Everything is in natural logarithms
//! ("nats"), since the products overflow.

/// Alternatives: how many times the odds of the null hypothesis, and what share of the stake is on each.
type Grid = [(f64, f64)];

/// For rates of faults, which are rare in sound versions and plain in broken ones. Three faults in a row are enough, and four in 400
/// against a limit of 0.0005: 20 is the best stake for these (4 faults of 400, over 0.0005).
pub(super) const FAULTS: &Grid =
    &[(20.0, 0.6), (7.0, 0.1), (3.0, 0.08), (1.7, 0.08), (1.25, 0.06), (1.08, 0.05), (1.03, 0.03)];

/// For shares of slow answers: a p99 of one and a half times is three to eight times as many answers over the old one.
pub(super) const SLOW: &Grid = &[
    (64.0, 0.03),
    (16.0, 0.05),
    (8.0, 0.1),
    (4.0, 0.3),
    (2.5, 0.3),
    (1.7, 0.1),
    (1.3, 0.06),
    (1.1, 0.04),
    (1.03, 0.02),
];

/// What is to be disproved of a share: that it is as small as this.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Null {
    /// At most so large.
    Known(f64),
    /// As large as the share above the `over`th largest of `of` samples of the same source.
    ///
    /// Whatever the source, that share is distributed as Beta(over, of - over + 1), so that the next sample lies above with the
    /// odds of a Pólya urn: what is not known of the reference is in the test, and no interval of it is needed. (The precedence
    /// test of Nelson, 1963, and of Mathisen's, made sequential.) Where the source has ties, or less lies above, it is
    /// conservative: likelihood ratios that are increasing in the share are pointwise smaller for fewer events.
    Drawn { over: u64, of: u64 },
}

impl Null {
    /// Nats of evidence that the share is larger, from `hits` of `trials`.
    pub(super) fn evidence(self, grid: &Grid, hits: u64, trials: u64) -> f64 {
        let (hits, trials) = (hits.min(trials) as f64, trials as f64);
        match self {
            Null::Known(share) if share >= 1.0 => f64::NEG_INFINITY,
            Null::Known(share) if share <= 0.0 => {
                if hits > 0.0 {
                    f64::INFINITY
                } else {
                    0.0
                }
            }
            // With odds of m to one instead of one to one, a hit is m / (1 + (m - 1) p) times as likely, and a miss
            // 1 / (1 + (m - 1) p) times. It falls in p, so that smaller shares are disproved with the largest.
            Null::Known(share) => mixed(grid, |odds| hits * odds.ln() - trials * ((odds - 1.0) * share).ln_1p()),
            Null::Drawn { over, of } => {
                let (above, below) = (over as f64, (of - over.min(of) + 1) as f64);
                let null = ln_beta(above + hits, below + trials - hits) - ln_beta(above, below);
                mixed(grid, |odds| {
                    let below = below / odds;
                    ln_beta(above + hits, below + trials - hits) - ln_beta(above, below) - null
                })
            }
        }
    }

    /// The fewest hits of `trials` that are `nats` of evidence; `None` where all of them are not.
    pub(super) fn needed(self, grid: &Grid, trials: u64, nats: f64) -> Option<u64> {
        if self.evidence(grid, trials, trials) < nats {
            return None;
        }
        let (mut too_few, mut enough) = (0, trials);
        while too_few + 1 < enough {
            let middle = too_few + (enough - too_few) / 2;
            match self.evidence(grid, middle, trials) >= nats {
                true => enough = middle,
                false => too_few = middle,
            }
        }
        Some(enough)
    }
}

/// The share that the true one is shown to be above, with `nats` of evidence and at every look: a confidence sequence.
pub(super) fn lower(grid: &Grid, hits: u64, trials: u64, nats: f64) -> f64 {
    let (mut shown, mut not) = (0.0, hits.min(trials) as f64 / trials.max(1) as f64);
    for _ in 0..60 {
        let middle = 0.5 * (shown + not);
        match Null::Known(middle).evidence(grid, hits, trials) >= nats {
            true => shown = middle,
            false => not = middle,
        }
    }
    shown
}

/// The share that the true one is shown to be below.
pub(super) fn upper(grid: &Grid, hits: u64, trials: u64, nats: f64) -> f64 {
    1.0 - lower(grid, trials - hits.min(trials), trials, nats)
}

fn mixed(grid: &Grid, nats: impl Fn(f64) -> f64) -> f64 {
    let parts = grid.iter().map(|&(odds, stake)| stake.ln() + nats(odds));
    let largest = parts.clone().fold(f64::NEG_INFINITY, f64::max);
    largest + parts.map(|part| (part - largest).exp()).sum::<f64>().ln()
}

fn ln_beta(a: f64, b: f64) -> f64 {
    ln_gamma(a) + ln_gamma(b) - ln_gamma(a + b)
}

/// Stirling's series from 10 on, and the recurrence below (Abramowitz and Stegun, 6.1.41). For x above zero.
fn ln_gamma(x: f64) -> f64 {
    let (mut x, mut shift) = (x, 1.0);
    while x < 10.0 {
        shift *= x;
        x += 1.0;
    }
    let square = 1.0 / (x * x);
    let series = (1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0 - square / 1680.0))) / x;
    (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series - shift.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gamma_function_is_that_of_the_tables() {
        let known =
            [(0.5, 0.572_364_942_924_700_1), (1.0, 0.0), (3.0, std::f64::consts::LN_2), (10.0, 12.801_827_480_081_469)];
        for (x, expected) in known {
            assert!((ln_gamma(x) - expected).abs() < 1e-12, "{x}: {}", ln_gamma(x));
        }
        let sum: f64 = (1..1000).map(|n| f64::from(n).ln()).sum();
        assert!((ln_gamma(1000.0) - sum).abs() < 1e-9);
    }

    /// The chance that `null` is ever found broken within `trials`, from all outcomes: no simulation. `hit` is the chance of a hit
    /// after so many hits of so many trials.
    fn ever(null: Null, grid: &Grid, nats: f64, trials: u64, hit: impl Fn(u64, u64) -> f64) -> f64 {
        let (mut chances, mut found) = (vec![1.0], 0.0);
        for trial in 0..trials {
            let mut next = vec![0.0; chances.len() + 1];
            for (hits, chance) in chances.iter().enumerate() {
                let hit = hit(hits as u64, trial);
                next[hits] += chance * (1.0 - hit);
                next[hits + 1] += chance * hit;
            }
            let needed = null.needed(grid, trial + 1, nats).map_or(next.len(), |needed| needed as usize);
            found += next.iter().skip(needed).sum::<f64>();
            next.truncate(needed);
            while next.len() > 1 && next[next.len() - 1] < 1e-18 {
                next.pop();
            }
            chances = next;
        }
        found
    }

    #[test]
    fn the_null_hypothesis_is_rejected_as_seldom_as_promised_however_often_one_looks() {
        let nats = 2_000f64.ln();
        for share in [0.0005, 0.01, 0.3] {
            let wrong = ever(Null::Known(share), FAULTS, nats, 4_000, |_, _| share);
            assert!(wrong <= 0.0005, "{share}: {wrong}");
        }
        for (over, of) in [(2, 101), (11, 1_000), (101, 10_000), (500, 1_000)] {
            // A Pólya urn, which is what drawing the share first and the samples then comes to.
            let urn = |hits, trials| (over + hits) as f64 / (of + 1 + trials) as f64;
            let wrong = ever(Null::Drawn { over, of }, SLOW, nats, 2_000, urn);
            assert!(wrong <= 0.0005 && wrong > 1e-6, "{over} of {of}: {wrong}");
        }
    }

    #[test]
    fn two_per_cent_are_found_within_four_hundred() {
        let nats = 2_000f64.ln();
        let found = ever(Null::Known(0.0005), FAULTS, nats, 400, |_, _| 0.02);
        assert!(found >= 0.95, "{found}");
        // What is plain is found at once.
        assert_eq!(Null::Known(0.0005).needed(FAULTS, 20, nats), Some(3));
        assert!(Null::Known(0.02).needed(FAULTS, 20, nats).is_some_and(|needed| needed <= 6));
    }

    #[test]
    fn a_reference_without_end_is_a_known_share() {
        let (known, drawn) = (Null::Known(0.01), Null::Drawn { over: 1_000_001, of: 100_000_000 });
        for (hits, trials) in [(0, 100), (20, 1_000), (40, 1_500), (300, 1_500)] {
            let (a, b) = (known.evidence(SLOW, hits, trials), drawn.evidence(SLOW, hits, trials));
            assert!((a - b).abs() < 0.05 * a.abs().max(0.2), "{hits} of {trials}: {a} and {b}");
        }
    }

    #[test]
    fn a_small_reference_asks_for_more() {
        let nats = 2_500f64.ln();
        let needed: Vec<_> = [200, 2_000, 20_000, 2_000_000]
            .map(|of| Null::Drawn { over: of / 100 + 1, of }.needed(SLOW, 2_000, nats).unwrap())
            .to_vec();
        assert!(needed.windows(2).all(|pair| pair[0] > pair[1]), "{needed:?}");
        assert!(needed[3] >= 38 && needed[3] <= 45, "{needed:?}");
    }

    #[test]
    fn intervals_hold_what_was_seen_and_narrow() {
        let nats = 2_000f64.ln();
        for (hits, trials) in [(0, 50), (5, 100), (50, 1_000), (500, 10_000), (100, 100)] {
            let (low, high) = (lower(FAULTS, hits, trials, nats), upper(FAULTS, hits, trials, nats));
            let seen = hits as f64 / trials as f64;
            assert!((0.0..=seen).contains(&low) && (seen..=1.0).contains(&high), "{hits} of {trials}: {low} to {high}");
        }
        let width = |n: u64| upper(FAULTS, n / 20, n, nats) - lower(FAULTS, n / 20, n, nats);
        assert!(width(10_000) < 0.03 && width(1_000_000) < 0.003, "{} {}", width(10_000), width(1_000_000));
        assert_eq!(lower(FAULTS, 0, 0, nats), 0.0);
    }

    #[test]
    fn limits_of_nothing_and_of_everything() {
        assert_eq!(Null::Known(0.0).evidence(FAULTS, 0, 9), 0.0);
        assert_eq!(Null::Known(0.0).needed(FAULTS, 9, 7.6), Some(1));
        assert_eq!(Null::Known(1.0).needed(FAULTS, 1_000, 7.6), None);
        assert!(Null::Drawn { over: 1, of: 0 }.evidence(SLOW, 9, 9).is_finite());
    }
}
