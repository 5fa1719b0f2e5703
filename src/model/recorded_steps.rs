//! The steps that a decoder has recorded: of which numbers of rows, and when one of them runs instead of the model's own ops.
//!
//! They are made once, before the model writes, and only ever save time: where none fits, or none could be made, a step runs as it
//! would without them, and gives the same.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Result;

use super::decoder::{ROWS_PER_STEP, SEQUENCES};
use crate::device::give_way;
use crate::ops::RecordedStep;
use crate::weights::Progress;

/// By their rows.
#[derive(Default)]
pub(super) struct RecordedSteps {
    kept: BTreeMap<usize, Kept>,
}

struct Kept {
    step: RecordedStep,
    /// It has failed once, and is not tried again.
    broken: AtomicBool,
}

/// The numbers of rows that steps of up to `sequences` sequences are filled up to: powers of two, which is what algorithms of
/// products are chosen for. Few rows take as long as one, since weights are what they wait for.
fn sizes(sequences: usize) -> impl Iterator<Item = usize> {
    let most = sequences.clamp(1, ROWS_PER_STEP).next_power_of_two();
    (0..=most.ilog2()).map(|power| 1 << power)
}

impl RecordedSteps {
    /// Steps that `record` has recorded, of each size that a model needs which is told how many sequences it writes at once; and how
    /// that ended. It gives nothing where steps of the model cannot be recorded.
    pub(super) fn make(
        sequences: Option<usize>,
        progress: &Progress,
        mut record: impl FnMut(usize) -> Result<Option<RecordedStep>>,
    ) -> (RecordedSteps, Result<()>) {
        let mut made = RecordedSteps::default();
        for rows in sizes(sequences.unwrap_or(SEQUENCES)) {
            give_way();
            if progress.is_cancelled() {
                break;
            }
            match record(rows) {
                Ok(Some(step)) => drop(made.kept.insert(rows, Kept { step, broken: AtomicBool::new(false) })),
                Ok(None) => break,
                Err(error) => return (made, Err(error)),
            }
        }
        (made, Ok(()))
    }

    pub(super) fn count(&self) -> usize {
        self.kept.len()
    }

    /// What `run` makes of the smallest step that has so many rows. Nothing where there is none, or it fails.
    pub(super) fn run<T>(&self, rows: usize, run: impl FnOnce(&RecordedStep) -> Result<Option<T>>) -> Option<T> {
        let (size, kept) = self.kept.range(rows..).next()?;
        if kept.broken.load(Ordering::Relaxed) {
            return None;
        }
        run(&kept.step).unwrap_or_else(|error| {
            kept.broken.store(true, Ordering::Relaxed);
            tracing::warn!(%error, rows = size, "a recorded step fails; such steps run op by op");
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_size_for_whatever_is_written_at_once_and_none_beyond_it() {
        let sizes = |sequences| sizes(sequences).collect::<Vec<_>>();
        assert_eq!((sizes(0), sizes(1), sizes(3)), (vec![1], vec![1], vec![1, 2, 4]));
        assert_eq!(sizes(SEQUENCES), [1, 2, 4, 8, 16, 32, 64]);
        assert_eq!(sizes(usize::MAX).last(), Some(&ROWS_PER_STEP));
    }

    #[test]
    fn what_cannot_be_recorded_ends_the_making_and_says_why_where_it_failed() {
        let mut asked = Vec::new();
        let (made, ended) = RecordedSteps::make(Some(4), &Progress::new(), |rows| {
            asked.push(rows);
            if rows == 2 { Err(candle_core::Error::msg("no room")) } else { Ok(None) }
        });
        assert!(made.count() == 0 && ended.is_ok() && asked == [1], "{asked:?}");
        let (_, ended) = RecordedSteps::make(None, &Progress::new(), |_| Err(candle_core::Error::msg("no room")));
        assert!(ended.unwrap_err().to_string().contains("no room"));
        assert!(made.run::<()>(1, |_| panic!("there is none")).is_none());
    }
}
