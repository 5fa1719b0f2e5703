//! Which of the algorithms that cublasLt offers for a product is taken: its own first, unless another one was measured to be faster.
//!
//! Pure: it says what is to be run next and what came of it; who asks runs it and measures. Only products of many rows are
//! tried against each other ([`is_worth`]): they take the GPU's time for long enough that events tell them apart, and a pass of
//! them is long enough to gain by it. What is chosen holds as long as the process: see `blas`.

use std::time::Duration;

/// How many algorithms cublasLt is asked for.
pub(super) const CANDIDATES: usize = 8;
/// Products of more rows are tried.
const FEW_ROWS: usize = 512;
/// Rounds that count. The one before them loads what an algorithm needs.
const ROUNDS: usize = 3;
/// Runs one after the other that are measured together, in a round that counts.
const RUNS: usize = 4;
/// After so long no further run begins, whatever was not tried yet: live traffic shares the GPU meanwhile, if with precedence.
const AT_MOST: Duration = Duration::from_millis(50);
/// What another one must take at most, of the first one's time: less is noise.
const BETTER: f32 = 0.97;

/// Whether products of so many rows are tried.
pub(super) fn is_worth(rows: usize) -> bool {
    rows > FEW_ROWS
}

/// Some algorithms for one product, in the order in which cublasLt offers them.
pub(super) struct Trial {
    /// Of each its shortest time, in milliseconds; none where it was not measured, or does not do.
    best: Vec<Option<f32>>,
    /// Does not do at all.
    out: Vec<bool>,
    /// Runs that were handed out.
    turn: usize,
}

/// What is to be measured: an algorithm, and how often it runs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) candidate: usize,
    pub(super) runs: usize,
    counts: bool,
}

impl Trial {
    pub(super) fn of(candidates: usize) -> Trial {
        Trial { best: vec![None; candidates], out: vec![false; candidates], turn: 0 }
    }

    /// Round by round, so that what slows the GPU down for a while slows all of them down; nothing at the end, or once
    /// so much time has passed.
    pub(super) fn next(&mut self, passed: Duration) -> Option<Turn> {
        let candidates = self.best.len();
        loop {
            let (round, candidate) = (self.turn / candidates.max(1), self.turn % candidates.max(1));
            if candidates < 2 || round > ROUNDS || passed >= AT_MOST {
                return None;
            }
            self.turn += 1;
            if !self.out[candidate] {
                return Some(Turn { candidate, runs: if round == 0 { 1 } else { RUNS }, counts: round > 0 });
            }
        }
    }

    /// What a turn took; nothing where the algorithm does not take the product.
    pub(super) fn took(&mut self, turn: &Turn, milliseconds: Option<f32>) {
        let Turn { candidate, runs, counts } = *turn;
        match milliseconds {
            None => self.out[candidate] = true,
            Some(all) if counts => {
                let each = all / runs as f32;
                self.best[candidate] = Some(self.best[candidate].map_or(each, |best| best.min(each)));
            }
            Some(_) => {}
        }
    }

    /// The one to take; nothing where none does.
    pub(super) fn choice(&self) -> Option<usize> {
        let first = self.out.iter().position(|out| !out)?;
        let measured = |candidate: &usize| !self.out[*candidate] && self.best[*candidate].is_some();
        let fastest = (0..self.best.len()).filter(measured).min_by(|one, other| {
            // Of two that are alike the one that cublasLt prefers.
            self.best[*one].unwrap_or(f32::MAX).total_cmp(&self.best[*other].unwrap_or(f32::MAX)).then(one.cmp(other))
        });
        let better = |fastest: &usize| match (self.best[first], self.best[*fastest]) {
            (Some(of_first), Some(of_fastest)) => of_fastest < of_first * BETTER,
            // Never measured, so there is nothing to be better than.
            _ => false,
        };
        Some(fastest.filter(better).unwrap_or(first))
    }
}

/// What trials came to, until it is told.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) products: usize,
    /// Of which another algorithm than the first was taken.
    pub(super) changed: usize,
    pub(super) took: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All turns of a trial in which each algorithm takes so long, or does not do, with so much time between turns.
    fn tried(times: &[Option<f32>], between: Duration) -> (Trial, usize) {
        let (mut trial, mut turns) = (Trial::of(times.len()), 0);
        while let Some(turn) = trial.next(between * turns as u32) {
            let took = times[turn.candidate].map(|each| {
                // The first run of all loads something.
                each * turn.runs as f32 + if turn.counts { 0.0 } else { 100.0 }
            });
            trial.took(&turn, took);
            turns += 1;
        }
        (trial, turns)
    }

    fn chosen(times: &[Option<f32>]) -> Option<usize> {
        tried(times, Duration::ZERO).0.choice()
    }

    #[test]
    fn another_is_taken_only_where_it_is_faster_by_more_than_noise() {
        assert_eq!(chosen(&[Some(68.6), Some(70.0), Some(59.9), Some(60.0)]), Some(2));
        assert_eq!(chosen(&[Some(100.0), Some(97.5), Some(98.0)]), Some(0));
        assert_eq!(chosen(&[Some(100.0), Some(90.0), Some(90.0)]), Some(1));
        assert_eq!(chosen(&[Some(100.0)]), Some(0));
    }

    #[test]
    fn what_does_not_take_the_product_is_not_taken_and_not_asked_again() {
        assert_eq!(chosen(&[Some(100.0), None, Some(50.0)]), Some(2));
        assert_eq!(chosen(&[None, Some(100.0), Some(99.0)]), Some(1));
        assert_eq!(chosen(&[None, None]), None);
        assert_eq!(chosen(&[]), None);
        let (_, turns) = tried(&[Some(1.0), None], Duration::ZERO);
        assert_eq!(turns, 2 + ROUNDS);
    }

    #[test]
    fn the_slowest_of_a_few_rounds_does_not_count() {
        let mut trial = Trial::of(2);
        let mut disturbed = 3;
        while let Some(turn) = trial.next(Duration::ZERO) {
            // Of the second all but the last round are disturbed.
            let each = if turn.candidate == 0 || disturbed == 0 { 10.0 } else { 30.0 };
            disturbed -= usize::from(turn.candidate == 1 && disturbed > 0);
            trial.took(&turn, Some((if turn.candidate == 0 { each } else { each * 0.9 }) * turn.runs as f32));
        }
        assert_eq!(trial.choice(), Some(1));
    }

    #[test]
    fn no_run_begins_after_its_time_and_what_was_not_measured_is_not_taken() {
        let (trial, turns) = tried(&[Some(100.0), Some(1.0)], AT_MOST);
        assert_eq!((trial.choice(), turns), (Some(0), 1));
        // The first round, and one algorithm of the next.
        let (trial, turns) = tried(&[Some(100.0), Some(1.0)], AT_MOST * 2 / 5);
        assert_eq!((trial.choice(), turns), (Some(0), 3));
        let (trial, turns) = tried(&[Some(100.0), Some(1.0)], AT_MOST / 4);
        assert_eq!((trial.choice(), turns), (Some(1), 4));
        assert!(!is_worth(512) && is_worth(513));
    }
}
