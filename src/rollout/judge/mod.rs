//! Whether a version keeps its rules: counts and latencies in, verdicts out.
//!
//! Pure decisions: it knows no clock, no runtime and no route. Time is an argument, and so is what two versions did, one
//! after the other (an observation window) or in the same time (a canary's step, a shadow). Each rule is a test that may be
//! looked at every second and on every fault (`evidence`), so that a version that keeps all its rules is taken back by
//! mistake with a chance of [`FALSE_ALARMS`] at most in its whole window, and one that breaks a rule as soon as that is shown.

mod agreement;
mod evidence;
mod spread;
mod verdict;

use std::sync::Arc;
use std::time::Duration;

use crate::generation::Observed;
use crate::repository::{Limit, Metric, Rule};
use agreement::Broken;
pub(in crate::rollout) use agreement::{agreement, interval, is_broken};
use evidence::{FAULTS, Null, SLOW, lower, upper};
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
        let breach = self.leans && self.proof(&question) == Decided::Breach;
        if !breach {
            // With a new one it would have to hold anew.
            self.take_mark(at, candidate, against);
        }
        breach
    }

    /// Whether what was seen shows that the rule is broken, and for as long as it must be.
    fn proof(&self, question: &Question) -> Decided {
        let Question { hits, trials, null, nats } = *question;
        if let Limit::Count(most) = self.rule.limit {
            return if hits > most { Decided::Breach } else { Decided::Undecided };
        }
        let grid = self.grid();
        if trials < self.rule.min_samples || null.evidence(grid, hits, trials) < nats {
            return Decided::Undecided;
        }
        match null.needed(grid, trials, nats) {
            Some(needed) if self.spread.holds(hits, needed, self.rule.hold) => Decided::Breach,
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

    /// `None` where there is nothing to compare with yet.
    fn question(&self, candidate: &Observed, against: Against<'_>) -> Option<Question> {
        let (hits, trials) = self.faults(candidate);
        let all = nats(self.risk);
        let question = |hits, trials, null, nats| Some(Question { hits, trials, null, nats });
        match self.rule.limit {
            Limit::Count(_) => question(hits, trials, Null::Known(0.0), all),
            Limit::AtMost(most) => question(hits, trials, Null::Known(most), all),
            // Of means, which are no share.
            Limit::AtLeast(_) => None,
            Limit::Above(more) => {
                // Half of the risk is that the reference's rate is higher than it is shown to be.
                let half = nats(self.risk / 2.0);
                let (faults, of) = self.faults(reference(against)?);
                if of < self.rule.min_samples {
                    return None;
                }
                question(hits, trials, Null::Known((upper(self.grid(), faults, of, half) + more).min(1.0)), half)
            }
            Limit::Time(limit) => {
                let level = self.rule.metric.level()?;
                question(candidate.slower_than(limit), candidate.timed(), Null::Known(1.0 - level), all)
            }
            Limit::Times(_) => {
                let mark = self.mark?;
                question(candidate.slower_than(mark.limit), candidate.timed(), mark.null, mark.nats)
            }
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

    fn told(&self, candidate: &Observed, against: Against<'_>) -> Verdict {
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
            None => self.tell_share(&mut verdict, candidate, against),
        }
        let Some(question) = self.question(candidate, against) else { return verdict };
        verdict.events = question.hits;
        verdict.significance = (-question.null.evidence(self.grid(), question.hits, question.trials)).exp().min(1.0);
        verdict.decided = match self.proof(&question) {
            Decided::Undecided if self.keeps(&verdict) => Decided::Pass,
            proof => proof,
        };
        verdict
    }

    /// Whether what was seen shows that the rule is kept.
    fn keeps(&self, verdict: &Verdict) -> bool {
        let (Some((_, Some(high))), Some(limit)) = (verdict.interval, verdict.limit) else {
            // A count is a fact: it may still be broken, and is not yet.
            return matches!(self.rule.limit, Limit::Count(_)) && verdict.samples >= self.rule.min_samples;
        };
        verdict.samples >= self.rule.min_samples && high <= limit
    }

    fn tell_share(&self, verdict: &mut Verdict, candidate: &Observed, against: Against<'_>) {
        let (faults, of) = self.faults(candidate);
        let grid = self.grid();
        verdict.samples = of;
        let share = |faults: u64, of: u64| (of > 0).then(|| faults.min(of) as f64 / of as f64);
        let (low, high) = (lower(grid, faults, of, nats(self.risk)), upper(grid, faults, of, nats(self.risk)));
        if let Some(reference) = reference(against) {
            let (faults, of) = self.faults(reference);
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
