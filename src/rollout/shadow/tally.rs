//! What a shadow found so far: the distribution of agreement, the worst cases, and whether the rule on it is broken. Pure.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Value, json};

use super::compare::Agreement;
use crate::generation::{Agreements, Scores, histogram};
use crate::repository::Rule;
use crate::rollout::judge::{Verdict, agreement, interval, is_broken};

/// Cases that are kept.
const WORST: usize = 20;
/// Bars of the histogram from 0 to 1; what lies below 0 is in the first.
const BARS: usize = 20;
/// The chance that a shadow's rule is held to be broken although it holds, at any time.
const ALPHA: f64 = 0.001;

/// What was asked, and what both said: of those that agreed least.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::rollout) struct Case {
    pub agreement: f64,
    /// Of what was asked: an input is kept once, as it agreed least.
    #[serde(skip)]
    pub asked: u64,
    /// Nothing where inputs are not kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<Value>,
    pub live: Value,
    pub other: Value,
}

#[derive(Debug)]
pub(super) struct Tally {
    agreements: Agreements,
    same: u64,
    /// Computed again and failed, which agrees with nothing.
    failed: u64,
    /// Of another kind, so that there is nothing to compare.
    incomparable: u64,
    lowest: f64,
    bars: [u64; BARS],
    worst: Vec<Case>,
    prefixes: Scores,
    /// Microseconds: whole answers of the live version; and the same passes of either, alone and at the same priority.
    answers: Histogram<u64>,
    live: Histogram<u64>,
    other: Histogram<u64>,
}

impl Tally {
    pub(super) fn new() -> Tally {
        Tally {
            agreements: Agreements::default(),
            same: 0,
            failed: 0,
            incomparable: 0,
            lowest: 1.0,
            bars: [0; BARS],
            worst: Vec::new(),
            prefixes: Scores::default(),
            answers: histogram(),
            live: histogram(),
            other: histogram(),
        }
    }

    pub(super) fn incomparable(&mut self) {
        self.incomparable += 1;
    }

    pub(super) fn failed(&mut self) {
        self.failed += 1;
        self.agreed(Agreement { value: 0.0, same: false });
    }

    pub(super) fn agreed(&mut self, agreement: Agreement) {
        let Agreement { value, same } = agreement;
        self.agreements.add(value);
        self.same += u64::from(same);
        self.lowest = self.lowest.min(value);
        let bar = (value.clamp(0.0, 1.0) * BARS as f64) as usize;
        self.bars[bar.min(BARS - 1)] += 1;
    }

    /// The share of a written text, from its first token on, that both would have written.
    pub(super) fn prefix(&mut self, share: f64) {
        self.prefixes.add(share);
    }

    /// How long the live version's answer took its client.
    pub(super) fn took(&mut self, answer: Duration) {
        record(&mut self.answers, answer);
    }

    /// How long the same passes took either version.
    pub(super) fn passed(&mut self, live: Duration, other: Duration) {
        record(&mut self.live, live);
        record(&mut self.other, other);
    }

    /// Whether a case of such agreement would be kept, of what was asked.
    pub(super) fn keeps(&self, agreement: f64, asked: u64) -> bool {
        match self.worst.iter().find(|kept| kept.asked == asked) {
            Some(kept) => agreement < kept.agreement,
            None => self.worst.len() < WORST || self.worst.last().is_some_and(|last| agreement < last.agreement),
        }
    }

    pub(super) fn keep(&mut self, case: Case) {
        self.worst.retain(|kept| kept.asked != case.asked);
        let at = self.worst.partition_point(|kept| kept.agreement <= case.agreement);
        self.worst.insert(at, case);
        self.worst.truncate(WORST);
    }

    pub(super) fn worst(&self) -> &[Case] {
        &self.worst
    }

    /// What the rule says of it, if it is broken.
    pub(super) fn breach(&self, rule: &Rule) -> Option<Verdict> {
        is_broken(rule, ALPHA, &self.agreements).then(|| agreement(rule, ALPHA, &self.agreements))
    }

    pub(super) fn agreements(&self) -> &Agreements {
        &self.agreements
    }

    /// For a rollout's record; without cases.
    pub(super) fn figures(&self) -> Value {
        let ms = |histogram: &Histogram<u64>| {
            let at = |q| (!histogram.is_empty()).then(|| histogram.value_at_quantile(q) as f64 / 1e3);
            json!({ "p50": at(0.5), "p99": at(0.99) })
        };
        let count = self.agreements.count();
        json!({
            "samples": count, "failed": self.failed, "incomparable": self.incomparable,
            "mean": self.agreements.mean(),
            "interval": (count > 0).then(|| interval(&self.agreements, ALPHA)),
            "lowest": (count > 0).then_some(self.lowest),
            "same": (count > 0).then(|| self.same as f64 / count as f64),
            "prefix": self.prefixes.mean(),
            "histogram": self.bars,
            "answer_ms": ms(&self.answers),
            "passes": self.live.len(), "live_pass_ms": ms(&self.live), "other_pass_ms": ms(&self.other),
        })
    }
}

fn record(histogram: &mut Histogram<u64>, took: Duration) {
    histogram.saturating_record((took.as_micros() as u64).max(1));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::ShadowConfig;
    use crate::rollout::judge::Decided;

    fn case(agreement: f64) -> Case {
        Case {
            agreement,
            asked: (agreement * 100.0).round() as u64,
            input: None,
            live: Value::Null,
            other: Value::Null,
        }
    }

    #[test]
    fn the_worst_are_kept_in_order() {
        let mut tally = Tally::new();
        for n in 0..100 {
            let case = case(f64::from((n * 37) % 100) / 100.0);
            if tally.keeps(case.agreement, case.asked) {
                tally.keep(case);
            }
        }
        let kept: Vec<f64> = tally.worst().iter().map(|case| case.agreement).collect();
        assert_eq!(kept, (0..20).map(|n| f64::from(n) / 100.0).collect::<Vec<_>>());
    }

    #[test]
    fn an_input_is_kept_once_as_it_agreed_least() {
        let mut tally = Tally::new();
        for (agreement, asked) in [(0.5, 1), (0.4, 2), (0.3, 1), (0.6, 2), (0.7, 3)] {
            if tally.keeps(agreement, asked) {
                tally.keep(Case { asked, ..case(agreement) });
            }
        }
        let kept: Vec<_> = tally.worst().iter().map(|case| (case.agreement, case.asked)).collect();
        assert_eq!(kept, [(0.3, 1), (0.4, 2), (0.7, 3)]);
    }

    #[test]
    fn what_failed_agrees_with_nothing() {
        let mut tally = Tally::new();
        (0..60).for_each(|_| tally.failed());
        let rule = |least| ShadowConfig { min_agreement: Some(least), ..ShadowConfig::default() }.rule().unwrap();
        assert_eq!(tally.breach(&rule(0.5)).unwrap().decided, Decided::Breach);
        assert_eq!((tally.agreements().mean(), ShadowConfig::default().rule()), (Some(0.0), None));
    }

    #[test]
    fn figures_tell_the_distribution() {
        let mut tally = Tally::new();
        for (value, same) in [(1.0, true), (0.97, true), (-0.5, false)] {
            tally.agreed(Agreement { value, same });
        }
        tally.took(Duration::from_millis(9));
        tally.passed(Duration::from_millis(4), Duration::from_millis(2));
        let figures = tally.figures();
        assert_eq!((&figures["samples"], &figures["lowest"]), (&json!(3), &json!(-0.5)));
        let bars = figures["histogram"].as_array().unwrap();
        assert_eq!((bars[0].as_u64(), bars[19].as_u64(), bars.len()), (Some(1), Some(2), BARS));
        let of = |name: &str| figures[name]["p50"].as_f64().unwrap().round();
        assert_eq!([of("answer_ms"), of("live_pass_ms"), of("other_pass_ms")], [9.0, 4.0, 2.0]);
    }
}
