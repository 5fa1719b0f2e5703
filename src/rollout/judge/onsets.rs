//! Faults that begin late: the same question asked of what was seen since some later moments.
//!
//! Evidence is counted from the beginning of a window, where a sound hour outweighs a broken minute. So tests begin anew as
//! requests come in, each with a part of the risk so small that all of them together stay within theirs, however many there will
//! be (a union bound). There are tests of several spans: of each the one that began last and the one before, so that something
//! always looks at about as many requests as it takes. Pure.

use std::time::Duration;

use super::spread::Spread;

/// The part of a rule's risk that is for what begins late: four faults among the first four hundred are enough still.
pub(super) const LATE: f64 = 0.01;

/// Requests of the shortest span, and how many times longer each next one is.
const SHORTEST: u64 = 128;
const LONGER: u64 = 4;
/// The sum of 1 / (n ln² n) over n from 2 on, so that parts of a whole may be as these.
const ALL_PARTS: f64 = 2.109_742_8;

/// Counts that only grow: of events, of what they are among, and the same of what is compared with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) hits: u64,
    pub(super) trials: u64,
    pub(super) reference: Option<(u64, u64)>,
    /// Whether that grows beside it; else all of it was before.
    pub(super) beside: bool,
}

impl Counts {
    fn since(self, before: Counts) -> Counts {
        let less = |(hits, trials): (u64, u64), (h, t): (u64, u64)| (hits.saturating_sub(h), trials.saturating_sub(t));
        let (hits, trials) = less((self.hits, self.trials), (before.hits, before.trials));
        let reference = match self.beside {
            true => self.reference.map(|now| less(now, before.reference.unwrap_or_default())),
            false => self.reference,
        };
        Counts { hits, trials, reference, ..self }
    }
}

/// A test that began later.
#[derive(Debug)]
pub(super) struct Onset {
    before: Counts,
    /// When it began.
    pub(super) since: Duration,
    /// Of the risk of what begins late.
    pub(super) part: f64,
    pub(super) spread: Spread,
}

impl Onset {
    /// What was seen since it began.
    pub(super) fn of(&self, counts: Counts) -> Counts {
        counts.since(self.before)
    }
}

#[derive(Debug, Default)]
pub(super) struct Onsets {
    spans: Vec<Span>,
}

#[derive(Debug, Default)]
struct Span {
    last: Option<Onset>,
    before: Option<Onset>,
    /// Tests of this span that have begun.
    begun: u64,
}

impl Onsets {
    /// Takes what is counted in all at a moment.
    pub(super) fn look(&mut self, at: Duration, counts: Counts) {
        for onset in self.spans.iter_mut().flat_map(|span| span.last.iter_mut().chain(&mut span.before)) {
            let hits = counts.since(onset.before).hits;
            onset.spread.look(at, hits);
        }
        let mut length = SHORTEST;
        for nth in 1.. {
            if counts.trials < length {
                break;
            }
            if self.spans.len() < nth {
                self.spans.push(Span::default());
            }
            self.spans[nth - 1].look(at, counts, (length, nth as f64));
            length = length.saturating_mul(LONGER);
        }
    }

    /// Those that may find something: the latest last.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Onset> {
        self.spans.iter().rev().flat_map(|span| span.before.iter().chain(&span.last))
    }
}

impl Span {
    fn look(&mut self, at: Duration, counts: Counts, (length, nth): (u64, f64)) {
        let began = self.last.as_ref().map_or(0, |last| last.before.trials);
        if counts.trials < began.saturating_add(length) {
            return;
        }
        self.begun += 1;
        let mut spread = Spread::default();
        spread.restart(at, 0);
        let part = part(self.begun) / (nth * (nth + 1.0));
        self.before = self.last.replace(Onset { before: counts, since: at, part, spread });
    }
}

/// Of something, for the first of as many as there may be, for the second, and so on: all of these together are the whole.
pub(super) fn part(nth: u64) -> f64 {
    let place = (nth + 1) as f64;
    1.0 / (ALL_PARTS * place * place.ln().powi(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn something_always_looks_at_about_as_many_requests_as_it_takes() {
        let mut onsets = Onsets::default();
        let mut all = 0.0;
        for trials in 1..=200_000u64 {
            let begun: Vec<u64> = onsets.spans.iter().map(|span| span.begun).collect();
            let counts = Counts { trials, ..Counts::default() };
            onsets.look(Duration::from_millis(trials), counts);
            for (nth, span) in onsets.spans.iter().enumerate() {
                if begun.get(nth).copied().unwrap_or_default() < span.begun {
                    all += span.last.as_ref().unwrap().part;
                }
            }
            for wanted in [200, 1_000, 10_000] {
                let spans = onsets.iter().map(|onset| onset.of(counts).trials);
                let near = spans.filter(|span| (wanted / 4..=wanted * 4).contains(span)).count();
                assert!(trials < 4 * wanted || near > 0, "{wanted} at {trials}");
            }
        }
        assert!(all < 1.0 && all > 0.2, "{all}");
        assert!(onsets.iter().count() <= 14 && onsets.iter().all(|onset| onset.part > 1e-7));
    }

    #[test]
    fn what_was_before_counts_for_nothing() {
        let mut onsets = Onsets::default();
        let sound = Counts { hits: 1, trials: 500, reference: Some((3, 400)), beside: true };
        onsets.look(Duration::from_secs(9), sound);
        let later = Counts { hits: 8, trials: 540, reference: Some((3, 460)), beside: true };
        let seen: Vec<_> = onsets.iter().map(|onset| (onset.of(later), onset.since)).collect();
        let expected = Counts { hits: 7, trials: 40, reference: Some((0, 60)), beside: true };
        assert_eq!(seen, [(expected, Duration::from_secs(9)), (expected, Duration::from_secs(9))][..seen.len()]);
        assert!(!seen.is_empty());
        let fixed = onsets.iter().map(|onset| onset.of(Counts { beside: false, ..later }).reference);
        assert!(fixed.into_iter().all(|reference| reference == later.reference));
    }
}
