//! The waiting line: who is admitted next.
//!
//! The order is that of ranks; but whoever arrived first is overtaken by at most [`OVERTAKES`] others, then it is its turn
//! and nobody goes before it. So the k-th by arrival is admitted after at most `k * (OVERTAKES + 1)` admissions, whatever
//! arrives later. It must not know blocks or budgets.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use super::sequence::Sequence;
use crate::schedule::Nanos;

/// How many are admitted past the one that arrived first before it is its turn.
pub(super) const OVERTAKES: u32 = 3;

/// Order of arrival; `number` counts pushes and tells those apart that arrived at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Age {
    pub(super) arrived: Nanos,
    pub(super) number: u64,
}

/// The lesser goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) calm: bool,
    pub(super) priority: Reverse<i32>,
    /// Was never preempted: those that were have clients in mid-sentence and stand at the head of their class.
    pub(super) fresh: bool,
    pub(super) age: Age,
}

#[derive(Debug, Default)]
pub(super) struct Line {
    by_rank: BTreeMap<Rank, Sequence>,
    by_age: BTreeMap<Age, Rank>,
    by_key: HashMap<u64, Rank>,
    /// Admissions past the one that arrived first, since it does.
    overtaken: u32,
}

impl Line {
    pub(super) fn push(&mut self, sequence: Sequence) {
        self.by_age.insert(sequence.rank.age, sequence.rank);
        self.by_key.insert(sequence.key, sequence.rank);
        self.by_rank.insert(sequence.rank, sequence);
    }

    /// Who is admitted next.
    pub(super) fn next(&self) -> Option<&Sequence> {
        self.by_rank.get(&self.turn()?)
    }

    /// Admits it.
    pub(super) fn take(&mut self) -> Option<Sequence> {
        let rank = self.turn()?;
        let first = self.by_age.first_key_value().is_some_and(|(age, _)| *age == rank.age);
        self.overtaken = if first { 0 } else { self.overtaken + 1 };
        self.remove(rank)
    }

    /// Takes one out that is not wanted any more.
    pub(super) fn cancel(&mut self, key: u64) -> Option<Sequence> {
        let rank = *self.by_key.get(&key)?;
        self.remove(rank)
    }

    pub(super) fn contains(&self, key: u64) -> bool {
        self.by_key.contains_key(&key)
    }

    pub(super) fn len(&self) -> usize {
        self.by_rank.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_rank.is_empty()
    }

    /// Arrival of the oldest.
    pub(super) fn oldest(&self) -> Option<Nanos> {
        self.by_age.first_key_value().map(|(age, _)| age.arrived)
    }

    fn turn(&self) -> Option<Rank> {
        match self.overtaken < OVERTAKES {
            true => self.by_rank.first_key_value().map(|(rank, _)| *rank),
            false => self.by_age.first_key_value().map(|(_, rank)| *rank),
        }
    }

    fn remove(&mut self, rank: Rank) -> Option<Sequence> {
        let sequence = self.by_rank.remove(&rank)?;
        self.by_age.remove(&rank.age);
        self.by_key.remove(&sequence.key);
        Some(sequence)
    }
}

#[cfg(test)]
#[path = "line_tests.rs"]
mod tests;
