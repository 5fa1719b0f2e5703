//! What two arms of an experiment did: how often and how fast each answered, and what clients said of the answers.
//!
//! Answers are remembered by a hash of their ids for as long as feedback may come, so many of them at most. It must not know
//! which arm is better: that is judged from the sums.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::split::hashed;
use crate::generation::{Scores, histogram};

/// Answers that feedback is taken for: the latest so many.
const REMEMBERED: usize = 100_000;

/// One of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arm {
    /// The route's live generation.
    Live,
    /// The generation that it shares requests with.
    Other,
}

/// What came of feedback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    First(Arm),
    /// It replaces what was said of the same answer before.
    Again(Arm),
    /// No answer of that name is remembered.
    Unknown,
}

/// One arm at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Told {
    pub answered: u64,
    pub failed: u64,
    pub p50: Option<Duration>,
    pub p99: Option<Duration>,
    pub scores: Scores,
    /// Seconds that answers took: for a mean with an interval.
    pub seconds: Scores,
}

#[derive(Debug)]
pub struct Tally {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    arms: [Counted; 2],
    remembered: HashMap<u64, Remembered>,
    order: VecDeque<u64>,
}

#[derive(Debug)]
struct Counted {
    answered: u64,
    failed: u64,
    latency: Histogram<u64>,
    scores: Scores,
    seconds: Scores,
}

#[derive(Debug, Clone, Copy)]
struct Remembered {
    arm: Arm,
    score: Option<f64>,
}

impl Default for Tally {
    fn default() -> Self {
        Self::new()
    }
}

impl Tally {
    pub fn new() -> Tally {
        let inner =
            Inner { arms: [Counted::new(), Counted::new()], remembered: HashMap::new(), order: VecDeque::new() };
        Tally { inner: Mutex::new(inner) }
    }

    /// What an answer is remembered by.
    pub(super) fn name(id: &str) -> u64 {
        hashed(0, id.as_bytes())
    }

    pub(super) fn answered(&self, arm: Arm, name: Option<u64>, took: Duration) {
        let mut inner = self.lock();
        let counted = &mut inner.arms[arm as usize];
        counted.answered += 1;
        counted.seconds.add(took.as_secs_f64());
        counted.latency.saturating_record((took.as_micros() as u64).max(1));
        if let Some(name) = name {
            inner.remember(name, arm);
        }
    }

    /// A fault of an arm's. Where the other answered instead, what the client says of that is said of this one: so it is to be
    /// given to it.
    pub(super) fn failed(&self, arm: Arm, name: Option<u64>) {
        let mut inner = self.lock();
        inner.arms[arm as usize].failed += 1;
        if let Some(name) = name {
            inner.remember(name, arm);
        }
    }

    /// Takes what a client says of the answer that was called `id`.
    pub fn feedback(&self, id: &str, score: f64) -> Heard {
        let mut inner = self.lock();
        let Some(remembered) = inner.remembered.get_mut(&Self::name(id)) else { return Heard::Unknown };
        let (arm, before) = (remembered.arm, remembered.score.replace(score));
        let scores = &mut inner.arms[arm as usize].scores;
        match before {
            Some(before) => {
                scores.replace(before, score);
                Heard::Again(arm)
            }
            None => {
                scores.add(score);
                Heard::First(arm)
            }
        }
    }

    pub fn told(&self, arm: Arm) -> Told {
        let inner = self.lock();
        let counted = &inner.arms[arm as usize];
        let at = |q| (!counted.latency.is_empty()).then(|| Duration::from_micros(counted.latency.value_at_quantile(q)));
        Told {
            answered: counted.answered,
            failed: counted.failed,
            p50: at(0.5),
            p99: at(0.99),
            scores: counted.scores,
            seconds: counted.seconds,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Inner {
    /// An id that a client uses twice means the later answer.
    fn remember(&mut self, name: u64, arm: Arm) {
        if self.remembered.insert(name, Remembered { arm, score: None }).is_none() {
            self.order.push_back(name);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.remembered.remove(&oldest);
        }
    }
}

impl Counted {
    fn new() -> Counted {
        Counted { answered: 0, failed: 0, latency: histogram(), scores: Scores::default(), seconds: Scores::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feedback_is_counted_for_the_arm_that_answered_and_once_for_an_answer() {
        let tally = Tally::new();
        let ms = Duration::from_millis;
        tally.answered(Arm::Live, Some(Tally::name("a")), ms(10));
        tally.answered(Arm::Other, Some(Tally::name("b")), ms(20));
        tally.answered(Arm::Other, None, ms(40));
        tally.failed(Arm::Other, Some(Tally::name("d")));
        assert_eq!(tally.feedback("b", 1.0), Heard::First(Arm::Other));
        assert_eq!(tally.feedback("b", 0.5), Heard::Again(Arm::Other));
        assert_eq!(tally.feedback("a", 0.0), Heard::First(Arm::Live));
        assert_eq!(tally.feedback("d", 0.5), Heard::First(Arm::Other), "it was this one's to answer");
        assert_eq!(tally.feedback("c", 1.0), Heard::Unknown);
        let (live, other) = (tally.told(Arm::Live), tally.told(Arm::Other));
        assert_eq!((live.answered, live.scores), (1, Scores { count: 1, sum: 0.0, squares: 0.0 }));
        assert_eq!((other.answered, other.failed), (2, 1));
        assert_eq!(other.scores, Scores { count: 2, sum: 1.0, squares: 0.5 });
        assert!((other.seconds.sum - 0.06).abs() < 1e-9 && other.p99.unwrap() >= ms(39), "{other:?}");
    }

    #[test]
    fn an_answer_is_forgotten_when_so_many_came_after_it() {
        let tally = Tally::new();
        for number in 0..=REMEMBERED {
            tally.answered(Arm::Live, Some(Tally::name(&number.to_string())), Duration::from_millis(1));
        }
        assert_eq!(tally.feedback("0", 1.0), Heard::Unknown);
        assert_eq!(tally.feedback("1", 1.0), Heard::First(Arm::Live));
    }
}
