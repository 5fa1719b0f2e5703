//! Two versions that answer side by side for as long as somebody wants: what begins late is weighed against what goes on then.
//!
//! Counts since the beginning hide a candidate that turns slow after a week. So beside the judge of all that was seen there is one of
//! the last minutes, which begins anew each time with a part of the risk (as in `onsets`, which does the same for single
//! requests that fail). Both versions are counted from the same moment on, so that a machine that turns slow speaks against neither. Pure.

use std::time::Duration;

use super::{Against, Decided, Judge, Verdict, onsets};
use crate::generation::Observed;
use crate::repository::Rule;

/// How long the last minutes are.
const ERA: Duration = Duration::from_secs(600);
/// The part of the risk that is for all eras but the first, which is the beginning.
const LATER: f64 = 0.1;

/// The rules of two versions that share requests, and what they have found so far.
#[derive(Debug)]
pub struct Eras {
    rules: Vec<Rule>,
    risk: f64,
    whole: Judge,
    era: Option<Era>,
    begun: u64,
    since: Duration,
}

#[derive(Debug)]
struct Era {
    judge: Judge,
    /// What both had done when it began.
    candidate: Observed,
    live: Observed,
}

impl Eras {
    /// As [`Judge::new`], for as many eras as there will be.
    pub fn new(rules: Vec<Rule>, risk: f64) -> Eras {
        let whole = Judge::new(rules.clone(), risk * (1.0 - LATER));
        Eras { rules, risk, whole, era: None, begun: 0, since: Duration::ZERO }
    }

    /// As [`Judge::and_earlier`]: of the beginning, since traffic changes.
    pub fn and_earlier(self, earlier: Observed) -> Eras {
        Eras { whole: self.whole.and_earlier(earlier), ..self }
    }

    /// Takes what both have done by `at`, counted from when the candidate began, and returns a rule that is broken.
    pub fn look(&mut self, at: Duration, candidate: &Observed, live: &Observed) -> Option<Verdict> {
        let broken = self.whole.look(at, candidate, Against::Beside(live));
        let late = self.era.as_mut().and_then(|era| {
            let (candidate, live) = era.of(candidate, live);
            era.judge.look(at.saturating_sub(self.since), &candidate, Against::Beside(&live))
        });
        let since = self.since;
        let broken = broken.or(late.map(|late| Verdict { since: Some(since), ..late }));
        if broken.is_none() && at >= self.since + ERA {
            self.begin(at, candidate, live);
        }
        broken
    }

    fn begin(&mut self, at: Duration, candidate: &Observed, live: &Observed) {
        self.begun += 1;
        self.since = at;
        let judge = Judge::new(self.rules.clone(), self.risk * LATER * onsets::part(self.begun));
        self.era = Some(Era { judge, candidate: candidate.clone(), live: live.clone() });
    }

    /// As [`Judge::leaning`].
    pub fn leaning(&self) -> Option<Duration> {
        let late = self.era.as_ref().and_then(|era| era.judge.leaning());
        self.whole.leaning().into_iter().chain(late).min()
    }

    /// As [`Judge::verdicts`]; of the last minutes where these say more against the candidate.
    pub fn verdicts(&self, candidate: &Observed, live: &Observed) -> Vec<Verdict> {
        let mut verdicts = self.whole.verdicts(candidate, Against::Beside(live));
        let Some(era) = &self.era else { return verdicts };
        let (candidate, live) = era.of(candidate, live);
        let broken = |verdict: &Verdict| matches!(verdict.decided, Decided::Breach | Decided::Breaking);
        for late in era.judge.verdicts(&candidate, Against::Beside(&live)) {
            let whole = verdicts.iter_mut().find(|whole| whole.rule == late.rule);
            if let Some(whole) = whole.filter(|whole| broken(&late) && !broken(whole)) {
                *whole = Verdict { since: Some(self.since), ..late };
            }
        }
        verdicts
    }
}

impl Era {
    fn of(&self, candidate: &Observed, live: &Observed) -> (Observed, Observed) {
        (candidate.since(&self.candidate), live.since(&self.live))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::{Limit, Metric};

    fn minutes(eras: &mut Eras, both: &mut [Observed; 2], from: u64, times: [u64; 2], minutes: u64) -> Option<Verdict> {
        (from * 60 + 1..=(from + minutes) * 60).find_map(|second| {
            for (seen, ms) in both.iter_mut().zip(times) {
                // Not all at once, so that there is a tail.
                (0..10).for_each(|n| seen.answer(Duration::from_millis(ms + n)));
            }
            let [candidate, live] = &*both;
            eras.look(Duration::from_secs(second), candidate, live)
        })
    }

    fn eras() -> Eras {
        let hold = Duration::from_secs(3);
        let rule = Rule { name: "mine".into(), metric: Metric::P99, limit: Limit::Times(1.2), min_samples: 100, hold };
        Eras::new(vec![rule], 1e-3)
    }

    #[test]
    fn a_candidate_that_turns_slow_after_hours_is_found_within_minutes() {
        let (mut eras, mut both) = (eras(), [Observed::default(), Observed::default()]);
        assert_eq!(minutes(&mut eras, &mut both, 0, [20, 20], 180), None);
        let breach = minutes(&mut eras, &mut both, 180, [60, 20], 11).unwrap();
        assert!(breach.to_string().contains("after 3 h, "), "{breach}");
        assert!(breach.samples < 2_000 && breach.significance <= breach.risk, "{breach:?}");
        assert_eq!(eras.verdicts(&both[0], &both[1])[0].decided, Decided::Breach);
    }

    #[test]
    fn a_machine_that_turns_slow_speaks_against_neither() {
        let (mut eras, mut both) = (eras(), [Observed::default(), Observed::default()]);
        assert_eq!(minutes(&mut eras, &mut both, 0, [20, 20], 60), None);
        assert_eq!(minutes(&mut eras, &mut both, 60, [90, 90], 60), None);
        assert_ne!(eras.verdicts(&both[0], &both[1])[0].decided, Decided::Breach);
    }
}
