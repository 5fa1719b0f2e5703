//! How often the rules of a window are wrong, and how soon they are right: `cargo bench --bench judging [-- WINDOWS]`.
//!
//! Windows of five minutes are simulated, looked at every second and on every fault, as the controller does, by the rules that
//! hold where `model.toml` says nothing. Sound versions: how many windows are taken back. Broken ones: after how many requests.
//! Beside it stands what was compared before: point estimates with limits of 2 % and twice the p99. Seeds are fixed.
//!
//! Targets: below 1 in 1,000 sound windows; 2 % of faults within 400 requests in 95 of 100 runs; 1.5 times the p99 within 2,000.
#![allow(clippy::expect_used)]

use std::time::Duration;

use cutover::generation::Observed;
use cutover::repository::ObserveConfig;
use cutover::rollout::judge::{Against, FALSE_ALARMS, Judge};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use rayon::prelude::*;

const WINDOW: usize = 300;
/// Of each shape and rate.
const WINDOWS: u64 = 4_000;
const RUNS: u64 = 1_000;
/// Requests after which a run is given up.
const PATIENCE: u64 = 20_000;

/// How long answers take.
#[derive(Debug, Clone, Copy)]
enum Shape {
    Lognormal,
    Bimodal,
    HeavyTail,
}

const SHAPES: [Shape; 3] = [Shape::Lognormal, Shape::Bimodal, Shape::HeavyTail];

impl Shape {
    /// Milliseconds.
    fn draw(self, random: &mut SmallRng) -> f64 {
        let mut lognormal = |median: f64, sigma: f64| {
            // Box and Muller.
            let (a, b): (f64, f64) = (1.0 - random.random::<f64>(), random.random());
            median * (sigma * (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()).exp()
        };
        match self {
            Shape::Lognormal => lognormal(10.0, 0.5),
            Shape::Bimodal => {
                let (short, long) = (lognormal(5.0, 0.2), lognormal(40.0, 0.2));
                if random.random_bool(0.9) { short } else { long }
            }
            // Pareto's, of index 2.5.
            Shape::HeavyTail => (5.0 * (1.0 - random.random::<f64>()).powf(-1.0 / 2.5)).min(60_000.0),
        }
    }
}

/// What is wrong with a version.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Nothing,
    /// This share of its requests fails.
    Fails(f64),
    /// Everything takes so many times as long.
    Slower(f64),
    /// What is slower than the 95th percentile takes so many times as long.
    TailSlower(f64),
    /// So many requests are sound; from then on this share fails.
    FailsLate(u64, f64),
}

/// One request of a version: how long it took, or nothing where it failed.
fn request(random: &mut SmallRng, shape: Shape, fault: Fault, (nth, p95): (u64, f64)) -> Option<Duration> {
    let ms = shape.draw(random);
    let ms = match fault {
        Fault::FailsLate(from, share) if nth >= from && random.random_bool(share) => return None,
        Fault::Fails(share) if random.random_bool(share) => return None,
        Fault::Slower(times) => ms * times,
        Fault::TailSlower(times) if ms > p95 => ms * times,
        _ => ms,
    };
    Some(Duration::from_secs_f64(ms / 1e3))
}

/// What the version before did, and its 95th percentile in milliseconds.
fn before(random: &mut SmallRng, shape: Shape, samples: u64) -> (Observed, f64) {
    let mut seen = Observed::default();
    (0..samples).for_each(|_| seen.answer(Duration::from_secs_f64(shape.draw(random) / 1e3)));
    let p95 = seen.quantile(0.95).map_or(f64::INFINITY, |p95| p95.as_secs_f64() * 1e3);
    (seen, p95)
}

/// As it was before: estimates against limits.
fn by_estimates(seen: &Observed, before: &Observed) -> bool {
    if seen.requests() >= 20 && seen.blamed as f64 / seen.requests() as f64 > 0.02 {
        return true;
    }
    let (Some(p99), Some(baseline)) = (seen.quantile(0.99), before.quantile(0.99)) else { return false };
    let limit = baseline.mul_f64(2.0);
    before.timed() >= 100 && seen.timed() >= 100 && p99 > limit && p99 - limit > Duration::from_millis(1)
}

/// Which of the two ways takes a version back, and after how many requests.
#[derive(Debug, Clone, Copy, Default)]
struct Ended {
    judge: Option<u64>,
    estimates: Option<u64>,
}

/// One window; `most` requests end it too.
fn window(seed: u64, shape: Shape, rate: f64, fault: Fault, most: u64) -> Ended {
    let random = &mut SmallRng::seed_from_u64(seed);
    let (reference, p95) = before(random, shape, (rate * 90.0) as u64);
    let mut judge = Judge::new(ObserveConfig::default().rules(), FALSE_ALARMS);
    let (mut seen, mut ended, mut owed) = (Observed::default(), Ended::default(), 0.0);
    let seconds = if most == u64::MAX { WINDOW } else { usize::MAX };
    for second in 1..=seconds {
        let at = Duration::from_secs(second as u64);
        let mut look = |seen: &Observed, ended: &mut Ended| {
            if ended.judge.is_none() && judge.look(at, seen, Against::Before(&reference)).is_some() {
                ended.judge = Some(seen.requests());
            }
            if ended.estimates.is_none() && by_estimates(seen, &reference) {
                ended.estimates = Some(seen.requests());
            }
        };
        owed += rate;
        while owed >= 1.0 {
            owed -= 1.0;
            match request(random, shape, fault, (seen.requests(), p95)) {
                Some(took) => seen.answer(took),
                None => {
                    seen.blamed += 1;
                    look(&seen, &mut ended);
                }
            }
        }
        look(&seen, &mut ended);
        if seen.requests() >= most || (ended.judge.is_some() && ended.estimates.is_some()) {
            break;
        }
    }
    ended
}

fn share(hits: usize, of: u64) -> String {
    format!("{hits} of {of}")
}

/// The middle, and the 95th of 100.
fn soon(found: &[Option<u64>]) -> String {
    let mut found: Vec<u64> = found.iter().map(|found| found.unwrap_or(PATIENCE)).collect();
    found.sort_unstable();
    let at = |part: f64| match found[((found.len() as f64 * part) as usize).min(found.len() - 1)] {
        PATIENCE.. => format!("more than {PATIENCE}"),
        requests => requests.to_string(),
    };
    format!("{} in the middle, {} in 95 of 100", at(0.5), at(0.95))
}

fn main() {
    let windows = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(WINDOWS);
    println!("Sound versions, windows of {WINDOW} s: how many were taken back, by the judge and by estimates.");
    let (mut all, mut wrong) = (0, 0);
    for shape in SHAPES {
        for rate in [2.0, 20.0, 100.0] {
            for (name, fault) in [("no faults", Fault::Nothing), ("1 fault in 5,000", Fault::Fails(0.0002))] {
                let ended: Vec<Ended> =
                    (0..windows).into_par_iter().map(|seed| window(seed, shape, rate, fault, u64::MAX)).collect();
                let judge = ended.iter().filter(|ended| ended.judge.is_some()).count();
                let estimates = ended.iter().filter(|ended| ended.estimates.is_some()).count();
                println!(
                    "{:<10} {rate:>4} a second, {name:<16} judge {:<14} estimates {}",
                    format!("{shape:?}"),
                    share(judge, windows),
                    share(estimates, windows)
                );
                (all, wrong) = (all + windows, wrong + judge);
            }
        }
    }
    let per_thousand = 1e3 * wrong as f64 / all as f64;
    println!("Together {}: {per_thousand:.2} of 1,000 (below 1 is the target).\n", share(wrong, all));

    println!("Broken versions, 20 requests a second: after how many requests they were taken back, {RUNS} runs.");
    let faults = [
        ("2 % faults", Fault::Fails(0.02), 400),
        ("5 % faults", Fault::Fails(0.05), 400),
        ("2 % faults after 4,800", Fault::FailsLate(4_800, 0.02), 400),
        ("5 % faults after 4,800", Fault::FailsLate(4_800, 0.05), 400),
        ("all 1.5 times slower", Fault::Slower(1.5), 2000),
        ("slowest 5 % 1.5 times slower", Fault::TailSlower(1.5), 2000),
        ("slowest 5 % 2 times slower", Fault::TailSlower(2.0), 2000),
    ];
    for (name, fault, target) in faults {
        for shape in SHAPES {
            let ended: Vec<Ended> =
                (0..RUNS).into_par_iter().map(|seed| window(!seed, shape, 20.0, fault, PATIENCE)).collect();
            // Counted from when the fault began.
            let from = if let Fault::FailsLate(from, _) = fault { from } else { 0 };
            let since = |found: Option<u64>| found.map(|requests| requests.saturating_sub(from));
            let judge: Vec<Option<u64>> = ended.iter().map(|ended| since(ended.judge)).collect();
            let estimates: Vec<Option<u64>> = ended.iter().map(|ended| since(ended.estimates)).collect();
            let in_time = judge.iter().filter(|found| found.is_some_and(|requests| requests <= target)).count();
            println!(
                "{name:<29} {:<10} judge {}; {} within {target}",
                format!("{shape:?}"),
                soon(&judge),
                share(in_time, RUNS)
            );
            println!("{:<40} estimates {}", "", soon(&estimates));
        }
    }
}
