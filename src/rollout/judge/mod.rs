//! Whether a version keeps its rules: counts and latencies in, verdicts out.
//!
//! Pure decisions: it knows no clock, no runtime and no route. Time is an argument, and so is what two versions did, one
//! after the other (an observation window) or in the same time (a canary's step, a shadow). Each rule is a test that may be
//! looked at every second and on every fault (`evidence`), so that a version that keeps all its rules is taken back by
//! mistake with a chance of [`FALSE_ALARMS`] at most in its whole window, and one that breaks a rule as soon as that is shown.

mod agreement;
mod eras;
mod evidence;
mod onsets;
mod spread;
mod told;
mod verdict;

use std::sync::Arc;
use std::time::Duration;

use crate::generation::Observed;
use crate::repository::{Limit, Metric, Rule};
use agreement::Broken;
pub(in crate::rollout) use agreement::{agreement, interval, is_broken};
pub use eras::Eras;
use evidence::{FAULTS, Null, SLOW, upper};
use onsets::{Counts, LATE, Onset, Onsets};
use spread::Spread;
pub use verdict::{Decided, Verdict};

/// The chance that a sound version is found to break some rule, however long it is watched and however often one looks.
pub const FALSE_ALARMS: f64 = 1e-3;

/// Below a millisecond the ratio of two latencies measures the clock's company, not the models.
const SLACK: Duration = Duration::from_millis(1);
/// How many times farther a relative limit of latencies lies against what the live version did before the candidate had a share:
/// traffic may have changed since, for both.
const WIDER: f64 = 2.0;
/// A reference that grows is taken anew when it has grown so many times, and so often at most.
const GROWTH: u64 = 4;
const EPOCHS: u32 = 8;

/// What the candidate is compared with.
#[derive(Debug, Clone, Copy)]
pub enum Against<'a> {
    Nothing,
    /// What the version before did until the candidate took over; always the same.
    Before(&'a Observed),
    /// What the live version has done in the same time; it grows.
    Beside(&'a Observed),
    /// What the live version did before the candidate had a share; always the same.
    Earlier(&'a Observed),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nothing,
    Before,
    Live,
    LiveEarlier,
}

/// The rules of one window or step, and what they have found so far.
#[derive(Debug)]
pub struct Judge {
    rules: Vec<Judged>,
}

#[derive(Debug)]
struct Judged {
    rule: Rule,
    risk: f64,
    /// What this rule is held against, whatever the others are.
    earlier: Option<Arc<Observed>>,
    spread: Spread,
    /// Of a rule on the share of requests that fail: what began late.
    onsets: Onsets,
    /// Of a rule on agreement, instead.
    broken: Broken,
    /// Of a relative rule of latencies: what the reference said when it was taken.
    mark: Option<Mark>,
    epoch: u32,
    /// What was seen last speaks against the candidate, proven or not.
    leans: bool,
}

/// A latency that the candidate's answers are counted above, and how many may lie there.
#[derive(Debug, Clone, Copy)]
struct Mark {
    limit: Duration,
    null: Null,
    /// Of the reference.
    quantile: Duration,
    samples: u64,
    nats: f64,
}

/// One rule, as a question about a share.
#[derive(Clone, Copy)]
struct Question {
    hits: u64,
    trials: u64,
    null: Null,
    nats: f64,
}

impl Judge {
    /// `risk` is shared among the rules, by how much proof each needs: [`FALSE_ALARMS`] where nothing speaks for another.
    pub fn new(rules: Vec<Rule>, risk: f64) -> Judge {
        let whole: f64 = rules.iter().map(weight).sum();
        let rules = rules.into_iter().map(|rule| {
            let risk = if whole > 0.0 { risk * weight(&rule) / whole } else { 0.0 };
            Judged::new(rule, risk, None)
        });
        Judge { rules: rules.collect() }
    }

    /// Holds each relative rule of latencies against what the live version did before the candidate had a share as well, with
    /// a limit that is [`WIDER`] and half of the rule's risk.
    ///
    /// Both wait for one engine: a candidate whose passes are slow makes the live version as slow, and beside it there is
    /// nothing to be seen.
    pub fn and_earlier(mut self, earlier: Observed) -> Judge {
        let earlier = Arc::new(earlier);
        let mut also = Vec::new();
        for judged in &mut self.rules {
            let Limit::Times(times) = judged.rule.limit else { continue };
            if earlier.timed() < judged.rule.min_samples {
                continue;
            }
            judged.risk /= 2.0;
            let name = format!("{}, against before", judged.rule.name);
            let rule = Rule { name, limit: Limit::Times(times * WIDER), ..judged.rule.clone() };
            also.push(Judged::new(rule, judged.risk, Some(Arc::clone(&earlier))));
        }
        self.rules.extend(also);
        self
    }

    /// Takes what both have done by `at`, counted from when the candidate began, and returns a rule that is broken.
    ///
    /// Counts must not fall from look to look, nor the time.
    pub fn look(&mut self, at: Duration, candidate: &Observed, against: Against<'_>) -> Option<Verdict> {
        let mut broken = None;
        for judged in &mut self.rules {
            // Every rule looks, or the next look would take two seconds for one.
            let breach = judged.look(at, candidate, against);
            if breach && broken.is_none() {
                broken = Some(judged.told(candidate, against));
            }
        }
        broken
    }

    /// From which latency on an answer may be the one that proves the candidate slow; `None` while none is likely to.
    pub fn leaning(&self) -> Option<Duration> {
        let limit = |judged: &Judged| match judged.rule.limit {
            Limit::Time(limit) => Some(limit),
            _ => judged.mark.map(|mark| mark.limit),
        };
        self.rules.iter().filter(|judged| judged.leans).filter_map(limit).min()
    }

    /// What every rule says of what both have done: where it stands, decided or not.
    pub fn verdicts(&self, candidate: &Observed, against: Against<'_>) -> Vec<Verdict> {
        self.rules.iter().map(|judged| judged.told(candidate, against)).collect()
    }
}

/// How much of the risk a rule takes: rare events ask for much proof from few requests, medians are proven by any.
fn weight(rule: &Rule) -> f64 {
    match (rule.limit, rule.metric) {
        (Limit::Count(_), _) => 0.0,
        (_, Metric::ErrorRate) => 5.0,
        (_, Metric::P99) => 4.0,
        (_, Metric::P50) => 1.0,
        _ => 2.0,
    }
}

impl Judged {
    fn new(rule: Rule, risk: f64, earlier: Option<Arc<Observed>>) -> Judged {
        Judged {
            rule,
            risk,
            earlier,
            spread: Spread::default(),
            onsets: Onsets::default(),
            broken: Broken::default(),
            mark: None,
            epoch: 0,
            leans: false,
        }
    }

    fn look(&mut self, at: Duration, candidate: &Observed, against: Against<'_>) -> bool {
        let earlier = self.earlier.clone();
        let against = earlier.as_deref().map_or(against, Against::Earlier);
        if self.rule.metric == Metric::ShadowAgreement {
            self.broken.look(at, is_broken(&self.rule, self.risk, &candidate.agreement));
            return self.broken.holds(self.rule.hold);
        }
        if self.mark.is_none() {
            self.take_mark(at, candidate, against);
        }
        let Some(question) = self.question(candidate, against) else { return false };
        self.spread.look(at, question.hits);
        self.leans = question.null.evidence(self.grid(), question.hits, question.trials) > 0.0;
        let mut breach = self.leans
            && self.proof(&question, &self.spread) == Decided::Breach
            && self.is_slower_than_now(candidate, against);
        if self.may_begin_late() {
            let counts = self.counts(candidate, against);
            self.onsets.look(at, counts);
            breach |= self.late(counts).is_some_and(|(_, _, proof)| proof == Decided::Breach);
        }
        if !breach {
            // With a new one it would have to hold anew.
            self.take_mark(at, candidate, against);
        }
        breach
    }

    /// Whether the candidate is as much slower than the live version beside it, as that is by now: what makes both slow after a
    /// reference was taken speaks against neither.
    fn is_slower_than_now(&self, candidate: &Observed, against: Against<'_>) -> bool {
        let (Limit::Times(times), Some(level), Against::Beside(live)) =
            (self.rule.limit, self.rule.metric.level(), against)
        else {
            return true;
        };
        let (Some(candidate), Some(live)) = (candidate.quantile(level), live.quantile(level)) else { return false };
        candidate.as_secs_f64() > times * live.as_secs_f64()
    }

    /// Whether what was seen shows that the rule is broken, and for as long as it must be.
    fn proof(&self, question: &Question, spread: &Spread) -> Decided {
        let Question { hits, trials, null, nats } = *question;
        if let Limit::Count(most) = self.rule.limit {
            return if hits > most { Decided::Breach } else { Decided::Undecided };
        }
        let grid = self.grid();
        if trials < self.rule.min_samples || null.evidence(grid, hits, trials) < nats {
            return Decided::Undecided;
        }
        match null.needed(grid, trials, nats) {
            Some(needed) if spread.holds(hits, needed, self.rule.hold) => Decided::Breach,
            _ => Decided::Breaking,
        }
    }

    /// Takes the reference's quantile when there are samples enough: once, or now and then where it grows.
    ///
    /// Each time is a test of its own, of all that the candidate did, and has its share of the risk.
    fn take_mark(&mut self, at: Duration, candidate: &Observed, against: Against<'_>) {
        let (Limit::Times(times), Some(level)) = (self.rule.limit, self.rule.metric.level()) else { return };
        let (reference, epochs) = match against {
            Against::Nothing => return,
            Against::Before(reference) | Against::Earlier(reference) => (reference, 1),
            Against::Beside(reference) => (reference, EPOCHS),
        };
        let samples = reference.timed();
        let enough = self.mark.map_or(self.rule.min_samples, |mark| mark.samples.saturating_mul(GROWTH));
        if samples < enough || self.epoch >= epochs {
            return;
        }
        // Chosen by the number of samples alone. At most `over` - 1 of them lie above the edge of the bucket that holds this one.
        let over = ((1.0 - level) * samples as f64 + 1e-9).floor() as u64 + 1;
        let Some((_, quantile)) = reference.ranked(samples + 1 - over) else { return };
        // A ratio that is beyond any time asks for nothing.
        let scaled = Duration::try_from_secs_f64(quantile.as_secs_f64() * times).unwrap_or(Duration::MAX);
        let limit = scaled.max(if times >= 1.0 { quantile + SLACK } else { Duration::ZERO });
        let nats = nats(self.risk / f64::from(epochs));
        self.mark = Some(Mark { limit, null: Null::Drawn { over, of: samples }, quantile, samples, nats });
        self.epoch += 1;
        self.spread.restart(at, candidate.slower_than(limit));
    }

    /// Whether what it counts may begin late, and is found so: one request that fails is as good as another at any time. Latencies
    /// are not: those of all a window's answers are compared with what was before it, and seconds of a busy machine weigh little.
    fn may_begin_late(&self) -> bool {
        self.rule.metric.level().is_none() && matches!(self.rule.limit, Limit::AtMost(_) | Limit::Above(_))
    }

    /// A test that began late and shows that the rule is broken, what it has seen, and whether that is for as long as it must.
    fn late(&self, counts: Counts) -> Option<(&Onset, Counts, Decided)> {
        let found = self.onsets.iter().filter_map(|onset| {
            let since = onset.of(counts);
            let question = self.about(since, self.risk * LATE * onset.part)?;
            let proof = self.proof(&question, &onset.spread);
            (proof != Decided::Undecided).then_some((onset, since, proof))
        });
        found.max_by_key(|(_, _, proof)| *proof == Decided::Breach)
    }

    fn counts(&self, candidate: &Observed, against: Against<'_>) -> Counts {
        let (hits, trials) = self.faults(candidate);
        let beside = matches!(against, Against::Beside(_));
        Counts { hits, trials, reference: reference(against).map(|reference| self.faults(reference)), beside }
    }

    /// `None` where there is nothing to compare with yet.
    fn question(&self, candidate: &Observed, against: Against<'_>) -> Option<Question> {
        let question = |hits, null, nats| Some(Question { hits, trials: candidate.timed(), null, nats });
        match (self.rule.limit, self.rule.metric.level()) {
            (Limit::Time(limit), Some(level)) => {
                question(candidate.slower_than(limit), Null::Known(1.0 - level), nats(self.risk))
            }
            (Limit::Times(_), _) => {
                let mark = self.mark?;
                question(candidate.slower_than(mark.limit), mark.null, mark.nats)
            }
            _ => {
                let early = if self.may_begin_late() { 1.0 - LATE } else { 1.0 };
                self.about(self.counts(candidate, against), self.risk * early)
            }
        }
    }

    /// Of a share of requests that fail.
    fn about(&self, counts: Counts, risk: f64) -> Option<Question> {
        let Counts { hits, trials, reference, .. } = counts;
        let question = |null, nats| Some(Question { hits, trials, null, nats });
        match self.rule.limit {
            Limit::Count(_) => question(Null::Known(0.0), nats(risk)),
            Limit::AtMost(most) => question(Null::Known(most), nats(risk)),
            Limit::Above(more) => {
                // Half of the risk is that the reference's rate is higher than it is shown to be.
                let half = nats(risk / 2.0);
                let (faults, of) = reference?;
                if of < self.rule.min_samples {
                    return None;
                }
                question(Null::Known((upper(self.grid(), faults, of, half) + more).min(1.0)), half)
            }
            // Of means and of latencies, which are no share of requests.
            Limit::AtLeast(_) | Limit::Time(_) | Limit::Times(_) => None,
        }
    }

    /// What the metric counts, and of how many.
    fn faults(&self, seen: &Observed) -> (u64, u64) {
        match self.rule.metric {
            Metric::ErrorRate => (seen.blamed, seen.requests()),
            Metric::Nonfinite => (seen.nonfinite, seen.requests()),
            Metric::Timeouts => (seen.timed_out, seen.requests() + seen.timed_out),
            Metric::P50 | Metric::P95 | Metric::P99 => (0, seen.timed()),
            Metric::ShadowAgreement => (0, seen.agreement.count()),
        }
    }

    fn grid(&self) -> &'static [(f64, f64)] {
        if self.rule.metric.level().is_some() { SLOW } else { FAULTS }
    }
}

fn reference(against: Against<'_>) -> Option<&Observed> {
    match against {
        Against::Nothing => None,
        Against::Before(reference) | Against::Beside(reference) | Against::Earlier(reference) => Some(reference),
    }
}

fn nats(risk: f64) -> f64 {
    -risk.max(f64::MIN_POSITIVE).ln()
}

#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;
