//! What a rule says of what was seen: from its question and its proof to a verdict. Pure.

use std::time::Duration;

use super::evidence::{Null, SLOW, lower, upper};
use super::onsets::{Counts, LATE};
use super::{Against, Beside, Decided, Judged, Verdict, agreement, nats};
use crate::generation::Observed;
use crate::repository::{Limit, Metric};

impl Judged {
    pub(super) fn told(&self, candidate: &Observed, against: Against<'_>) -> Verdict {
        if self.rule.metric == Metric::ShadowAgreement {
            let told = agreement(&self.rule, self.risk, &candidate.agreement);
            let breaking = told.decided == Decided::Breach && !self.broken.holds(self.rule.hold);
            return if breaking { Verdict { decided: Decided::Breaking, ..told } } else { told };
        }
        let against = self.earlier.as_deref().map_or(against, Against::Earlier);
        let mut verdict = Verdict { risk: self.risk, ..Verdict::of(&self.rule) };
        verdict.beside = match against {
            Against::Nothing => Beside::Nothing,
            Against::Before(_) => Beside::Before,
            Against::Beside(_) => Beside::Live,
            Against::Earlier(_) => Beside::LiveEarlier,
        };
        match self.rule.metric.level() {
            Some(level) => self.tell_latency(&mut verdict, level, candidate),
            None => self.tell_share(&mut verdict, self.counts(candidate, against), self.risk),
        }
        let Some(question) = self.question(candidate, against) else { return verdict };
        verdict.events = question.hits;
        verdict.significance = (-question.null.evidence(self.grid(), question.hits, question.trials)).exp().min(1.0);
        verdict.decided = match self.proof(&question, &self.spread) {
            Decided::Undecided if self.keeps(&verdict) => Decided::Pass,
            proof if self.is_slower_than_now(candidate, against) => proof,
            _ => Decided::Undecided,
        };
        self.tell_late(&mut verdict, self.counts(candidate, against));
        verdict
    }

    /// What began late is told as it was seen since then.
    fn tell_late(&self, verdict: &mut Verdict, counts: Counts) {
        if !self.may_begin_late() || matches!(verdict.decided, Decided::Breach) {
            return;
        }
        let Some((onset, since, proof)) = self.late(counts) else { return };
        let risk = self.risk * LATE * onset.part;
        verdict.since = Some(onset.since);
        verdict.decided = proof;
        self.tell_share(verdict, since, risk);
        if let Some(question) = self.about(since, risk) {
            verdict.events = question.hits;
            // Of all the tests that may begin, this one has a part of the risk.
            let found = (-question.null.evidence(self.grid(), question.hits, question.trials)).exp();
            verdict.significance = (found / (LATE * onset.part)).min(1.0);
        }
    }

    /// Whether what was seen shows that the rule is kept.
    fn keeps(&self, verdict: &Verdict) -> bool {
        let (Some((_, Some(high))), Some(limit)) = (verdict.interval, verdict.limit) else {
            // A count is a fact: it may still be broken, and is not yet.
            return matches!(self.rule.limit, Limit::Count(_)) && verdict.samples >= self.rule.min_samples;
        };
        verdict.samples >= self.rule.min_samples && high <= limit
    }

    fn tell_share(&self, verdict: &mut Verdict, counts: Counts, risk: f64) {
        let Counts { hits: faults, trials: of, reference, .. } = counts;
        let (grid, nats) = (self.grid(), nats(risk));
        verdict.samples = of;
        let share = |faults: u64, of: u64| (of > 0).then(|| faults.min(of) as f64 / of as f64);
        let (low, high) = (lower(grid, faults, of, nats), upper(grid, faults, of, nats));
        if let Some((faults, of)) = reference {
            verdict.reference_samples = of;
            verdict.against = share(faults, of);
        }
        (verdict.seen, verdict.interval, verdict.limit) = match self.rule.limit {
            Limit::Count(most) => (Some(faults as f64), None, Some(most as f64)),
            Limit::Above(more) => {
                (share(faults, of), Some((low, Some(high))), verdict.against.map(|share| (share + more).min(1.0)))
            }
            Limit::AtMost(most) => (share(faults, of), Some((low, Some(high))), Some(most)),
            Limit::Times(_) | Limit::Time(_) | Limit::AtLeast(_) => return,
        };
        if of == 0 {
            verdict.interval = None;
        }
    }

    fn tell_latency(&self, verdict: &mut Verdict, level: f64, candidate: &Observed) {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let (samples, nats) = (candidate.timed(), nats(self.risk));
        verdict.samples = samples;
        verdict.seen = candidate.quantile(level).map(ms);
        // The quantile is above what more answers exceed than a share of 1 - level can, and below what too many do not.
        let exceed = Null::Known(1.0 - level).needed(SLOW, samples, nats);
        let low = exceed.and_then(|exceed| candidate.ranked(samples + 1 - exceed)).map_or(0.0, |(low, _)| ms(low));
        let within = Null::Known(level).needed(SLOW, samples, nats);
        let high = within.and_then(|within| candidate.ranked(within)).map(|(_, high)| ms(high));
        verdict.interval = verdict.seen.is_some().then_some((low, high));
        if let Some(mark) = self.mark {
            verdict.against = Some(ms(mark.quantile));
            verdict.reference_samples = mark.samples;
            verdict.limit = Some(ms(mark.limit));
        } else if let Limit::Time(limit) = self.rule.limit {
            verdict.limit = Some(ms(limit));
        }
    }
}
