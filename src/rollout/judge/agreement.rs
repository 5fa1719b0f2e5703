//! How much two versions are shown to agree, and whether a rule on that is kept. Pure.
//!
//! What is judged is the mean of all answers that were compared, as the shadow tells it: a ranking or a text agrees in part.
//! The test is a bet against the rule at fixed stakes, which may be looked at as often as one likes whatever the values from 0
//! to 1 are distributed as (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", Journal of the
//! Royal Statistical Society B 86(1), 2024), averaged over a few stakes: small ones win of rare faults, large ones of answers that
//! are all a little apart.

use std::time::Duration;

use super::{Decided, Verdict, nats};
use crate::generation::Agreements;
use crate::repository::{Limit, Rule};

/// Of what can be staked at most.
const STAKES: [f64; 7] = [0.003, 0.01, 0.03, 0.08, 0.2, 0.5, 0.9];

/// Values from 0 to 1, and how often each was seen.
type Values = Vec<(f64, u64)>;

/// Whether such agreements show that a rule is broken. One that is kept is found to be with a chance of `risk` at most, however
/// often one looks. For how long it is broken is the caller's to know.
pub(in crate::rollout) fn is_broken(rule: &Rule, risk: f64, agreements: &Agreements) -> bool {
    let Limit::AtLeast(least) = rule.limit else { return false };
    agreements.count() >= rule.min_samples && evidence(&apart(agreements), 1.0 - least) >= nats(risk)
}

/// What a rule says of such agreements.
pub(in crate::rollout) fn agreement(rule: &Rule, risk: f64, agreements: &Agreements) -> Verdict {
    let (samples, seen) = (agreements.count(), agreements.mean());
    let mut verdict = Verdict { risk, samples, seen, ..Verdict::of(rule) };
    let Limit::AtLeast(least) = rule.limit else { return verdict };
    verdict.limit = Some(least);
    let (apart, alike) = (apart(agreements), alike(agreements));
    verdict.interval = seen.map(|_| interval(agreements, risk)).map(|(low, high)| (low, Some(high)));
    verdict.significance = (-evidence(&apart, 1.0 - least)).exp().min(1.0);
    verdict.decided = match samples >= rule.min_samples {
        true if is_broken(rule, risk, agreements) => Decided::Breach,
        true if evidence(&alike, least) >= nats(risk) => Decided::Pass,
        _ => Decided::Undecided,
    };
    verdict
}

/// What the true mean lies between at every look, but with a chance of `risk` at each end.
pub(in crate::rollout) fn interval(agreements: &Agreements, risk: f64) -> (f64, f64) {
    (above(&alike(agreements), nats(risk)), 1.0 - above(&apart(agreements), nats(risk)))
}

/// How far answers are apart at least.
fn apart(agreements: &Agreements) -> Values {
    agreements.apart().map(|(least, _, times)| (least, times)).collect()
}

/// How far they agree at least.
fn alike(agreements: &Agreements) -> Values {
    agreements.apart().map(|(_, most, times)| (1.0 - most, times)).collect()
}

/// Nats of evidence that the mean of such values is larger.
fn evidence(values: &[(f64, u64)], mean: f64) -> f64 {
    if mean <= 0.0 {
        return if values.iter().any(|(value, _)| *value > 0.0) { f64::INFINITY } else { 0.0 };
    }
    let won = |stake: f64| -> f64 {
        values.iter().map(|(value, times)| *times as f64 * (stake * (value / mean - 1.0)).ln_1p()).sum()
    };
    let won = STAKES.map(won);
    let most = won.into_iter().fold(f64::NEG_INFINITY, f64::max);
    most + (won.iter().map(|won| (won - most).exp()).sum::<f64>() / STAKES.len() as f64).ln()
}

/// The mean that the true one is shown to be above.
fn above(values: &[(f64, u64)], nats: f64) -> f64 {
    let (mut shown, mut not) = (0.0, 1.0);
    for _ in 0..40 {
        let middle = 0.5 * (shown + not);
        match evidence(values, middle) >= nats {
            true => shown = middle,
            false => not = middle,
        }
    }
    shown
}

/// For how long a rule has been broken without a look that said otherwise.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Broken(Option<(Duration, Duration)>);

impl Broken {
    pub(super) fn look(&mut self, at: Duration, broken: bool) {
        self.0 = broken.then(|| (self.0.map_or(at, |(since, _)| since), at));
    }

    pub(super) fn holds(&self, hold: Duration) -> bool {
        self.0.is_some_and(|(since, at)| at.saturating_sub(since) >= hold)
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;
    use crate::repository::Metric;

    fn rule(least: f64) -> Rule {
        let (metric, limit) = (Metric::ShadowAgreement, Limit::AtLeast(least));
        Rule { name: metric.title().into(), metric, limit, min_samples: 20, hold: Duration::ZERO }
    }

    fn of(agreements: impl IntoIterator<Item = f64>) -> Agreements {
        let mut all = Agreements::default();
        agreements.into_iter().for_each(|value| all.add(value));
        all
    }

    fn told(least: f64, agreements: impl IntoIterator<Item = f64>) -> Verdict {
        agreement(&rule(least), 1e-3, &of(agreements))
    }

    #[test]
    fn a_mean_is_too_low_once_that_is_beyond_doubt() {
        let all = |count: usize, value: f64| told(0.9, std::iter::repeat_n(value, count)).decided;
        assert_eq!((all(19, 0.5), all(20, 0.5)), (Decided::Undecided, Decided::Breach));
        assert_eq!(
            (all(1000, 0.95), all(1000, 0.9), all(1000, 0.88)),
            (Decided::Pass, Decided::Undecided, Decided::Breach)
        );
        let rare = |count: usize| told(0.9, (0..count).map(|n| if n % 4 == 0 { 0.3 } else { 1.0 }));
        assert_eq!(rare(100).decided, Decided::Undecided);
        let verdict = rare(400);
        assert!(verdict.decided == Decided::Breach && verdict.significance <= 1e-3, "{verdict:?}");
        let (low, high) = (verdict.interval.unwrap().0, verdict.interval.unwrap().1.unwrap());
        assert!(0.74 < low && low < 0.8 && 0.85 < high && high < 0.9, "{low} to {high}");
        let said = verdict.to_string();
        assert!(said.starts_with("shadow agreement: 0.8250 on average in 400 answers, 0.8"), "{said}");
        assert!(said.ends_with(" at most, against at least 0.9"), "{said}");
    }

    #[test]
    fn a_shadow_that_agrees_but_for_rounding_breaks_no_rule_of_one() {
        assert_eq!(told(1.0, [0.999_999_94; 800]).decided, Decided::Undecided);
        assert_eq!(told(1.0, [0.9999; 80]).decided, Decided::Breach);
        assert_eq!((told(1.0, []).seen, told(1.0, []).interval), (None, None));
    }

    /// Of versions that agree just as much as they must: whatever their agreements are distributed as, at any of a thousand looks.
    #[test]
    fn what_is_kept_is_found_to_be_broken_in_fewer_runs_than_it_may_be() {
        let mut random = SmallRng::seed_from_u64(11);
        // How low the rare ones are, and how many there are of them.
        for (low, share) in [(0.0, 0.02), (0.9, 0.2), (0.979, 0.95)] {
            let high = (0.98 - low * share) / (1.0 - share);
            let wrong = (0..300).filter(|_| {
                let mut all = Agreements::default();
                (0..1000).any(|_| {
                    all.add(if random.random_bool(share) { low } else { high });
                    is_broken(&rule(0.98), 0.05, &all)
                })
            });
            let wrong = wrong.count();
            assert!(wrong <= 15, "{low}: {wrong} of 300 at 5 %");
        }
    }

    #[test]
    fn what_was_kept_at_one_look_begins_anew() {
        let (mut broken, hold) = (Broken::default(), Duration::from_secs(2));
        for (at, is, holds) in
            [(1, true, false), (2, false, false), (3, true, false), (4, true, false), (5, true, true)]
        {
            broken.look(Duration::from_secs(at), is);
            assert_eq!(broken.holds(hold), holds, "at {at} s");
        }
        broken.look(Duration::from_secs(6), false);
        assert!(!broken.holds(Duration::ZERO));
    }
}
