use proptest::prelude::*;

use super::*;
use crate::schedule::decode::Prompted;
use crate::schedule::decode::testing::prompted;

fn waiting(key: u64, priority: i32, urgent: bool) -> Sequence {
    Sequence::new(Prompted { priority, urgent, ..prompted(key, vec![0], 1) }, key)
}

fn keys(line: &mut Line) -> Vec<u64> {
    std::iter::from_fn(|| line.take().map(|sequence| sequence.key)).collect()
}

#[test]
fn urgent_ones_go_first_then_higher_priorities_then_earlier_arrivals() {
    let mut line = Line::default();
    for sequence in [waiting(1, 5, false), waiting(2, 0, false), waiting(3, 0, true), waiting(4, 5, false)] {
        line.push(sequence);
    }
    assert_eq!(keys(&mut line), [3, 1, 4, 2]);
}

#[test]
fn whoever_was_preempted_stands_at_the_head_of_its_class() {
    let mut line = Line::default();
    let mut preempted = waiting(9, 0, false);
    preempted.rank.fresh = false;
    for sequence in [waiting(1, 0, false), waiting(2, 1, false), preempted] {
        line.push(sequence);
    }
    assert_eq!(keys(&mut line), [2, 9, 1]);
}

#[test]
fn the_first_to_arrive_is_overtaken_three_times_and_then_goes() {
    let mut line = Line::default();
    line.push(waiting(0, 0, false));
    line.push(waiting(1, 0, false));
    (10..30).for_each(|key| line.push(waiting(key, 0, true)));
    assert_eq!(keys(&mut line)[..9], [10, 11, 12, 0, 13, 14, 15, 1, 16]);
}

#[test]
fn whoever_is_cancelled_is_gone() {
    let mut line = Line::default();
    (0..3).for_each(|key| line.push(waiting(key, 0, false)));
    assert!(line.contains(1) && line.cancel(1).is_some());
    assert!(!line.contains(1) && line.cancel(1).is_none());
    assert_eq!((line.len(), keys(&mut line)), (2, vec![0, 2]));
}

#[test]
fn the_oldest_is_told_by_its_arrival() {
    let mut line = Line::default();
    assert_eq!(line.oldest(), None);
    line.push(waiting(7, 0, false));
    assert_eq!(line.oldest(), Some(7));
    line.push(waiting(8, 0, true));
    assert_eq!(line.oldest(), Some(7));
}

proptest! {
    /// Against a plain list. At each admission it is the turn of the first by rank, or of the first by arrival, and that only
    /// and always when three were admitted past it.
    #[test]
    fn nobody_is_overtaken_more_often_than_it_may_be(
        ops in prop::collection::vec((0u8..4, -2i32..3, prop::bool::weighted(0.3)), 1..120),
    ) {
        let (mut line, mut model): (Line, Vec<(Rank, u64)>) = Default::default();
        let mut overtaken = 0;
        for (key, (op, priority, urgent)) in ops.into_iter().enumerate() {
            match op {
                0 | 1 => {
                    let sequence = waiting(key as u64, priority, urgent);
                    model.push((sequence.rank, sequence.key));
                    line.push(sequence);
                }
                2 if !model.is_empty() => {
                    let (_, key) = model.remove(key * 7 % model.len());
                    prop_assert!(line.cancel(key).is_some());
                }
                _ => {
                    let first = model.iter().map(|(rank, _)| rank.age).min();
                    let by_rank = model.iter().min().copied();
                    let by_age = model.iter().find(|(rank, _)| Some(rank.age) == first).copied();
                    let expected = if overtaken == OVERTAKES { by_age } else { by_rank };
                    prop_assert_eq!(line.next().map(|s| s.key), expected.map(|(_, key)| key));
                    let taken = line.take();
                    prop_assert_eq!(taken.as_ref().map(|s| s.key), expected.map(|(_, key)| key));
                    if let Some(taken) = taken {
                        overtaken = if Some(taken.rank.age) == first { 0 } else { overtaken + 1 };
                        model.retain(|(_, key)| *key != taken.key);
                    }
                }
            }
            prop_assert_eq!((line.len(), line.is_empty()), (model.len(), model.is_empty()));
        }
    }
}
