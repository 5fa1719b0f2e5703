//! Whole windows with fixed seeds, a few of those that benches/judging.rs runs by the thousand.

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;
use crate::repository::ObserveConfig;

/// Requests a second.
const RATE: u64 = 20;

/// Milliseconds: lognormal with a median of 10 and a sigma of a half, by Box and Muller.
fn draw(random: &mut SmallRng) -> f64 {
    let (a, b): (f64, f64) = (1.0 - random.random::<f64>(), random.random());
    10.0 * (0.5 * (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()).exp()
}

fn answer(seen: &mut Observed, ms: f64) {
    seen.answer(Duration::from_secs_f64(ms / 1e3));
}

/// Requests until a version is taken back that fails such a share and takes so many times as long; `None` for one that is not.
fn taken_back(seed: u64, fails: f64, slower: f64, seconds: u64) -> Option<u64> {
    let random = &mut SmallRng::seed_from_u64(seed);
    let (mut before, mut seen) = (Observed::default(), Observed::default());
    (0..RATE * 90).for_each(|_| answer(&mut before, draw(random)));
    let mut judge = Judge::new(ObserveConfig::default().rules(), FALSE_ALARMS);
    for second in 1..=seconds {
        let at = Duration::from_secs(second);
        for _ in 0..RATE {
            if fails > 0.0 && random.random_bool(fails) {
                seen.blamed += 1;
                if judge.look(at, &seen, Against::Before(&before)).is_some() {
                    return Some(seen.requests());
                }
            } else {
                answer(&mut seen, draw(random) * slower);
            }
        }
        if judge.look(at, &seen, Against::Before(&before)).is_some() {
            return Some(seen.requests());
        }
    }
    None
}

#[test]
fn windows_without_a_fault_stay() {
    let wrong = (0..200).filter(|&seed| taken_back(seed, 0.0, 1.0, 300).is_some()).count();
    assert_eq!(wrong, 0, "of 200; fewer than 1 in 1,000 are expected");
}

/// Tests that begin anew take a sound version back no more often than one does.
#[test]
fn a_rate_that_is_just_kept_stays_kept_for_long() {
    let wrong = (0..500).filter(|&seed| {
        let random = &mut SmallRng::seed_from_u64(seed);
        let mut judge = Judge::new(ObserveConfig::default().rules(), 20.0 * FALSE_ALARMS);
        let mut seen = Observed::default();
        (0..20_000u64).any(|nth| {
            let fails = random.random_bool(0.0005);
            seen.blamed += u64::from(fails);
            seen.answered += u64::from(!fails);
            let at = Duration::from_millis(10 * nth);
            (fails || nth % 100 == 0) && judge.look(at, &seen, Against::Nothing).is_some()
        })
    });
    // Half of the risk is the error rate's: 5 of 500 at most are expected, and three standard deviations more.
    assert!(wrong.count() <= 11);
}

#[test]
fn two_per_cent_of_faults_are_found_within_four_hundred_requests() {
    let found = (0..200).filter(|&seed| taken_back(seed, 0.02, 1.0, 300).is_some_and(|requests| requests <= 400));
    assert!(found.count() >= 190);
}

#[test]
fn a_p99_of_one_and_a_half_times_is_found_within_two_thousand_answers() {
    let found = (0..100).filter(|&seed| taken_back(seed, 0.0, 1.5, 300).is_some_and(|requests| requests <= 2_000));
    assert!(found.count() >= 95);
}
