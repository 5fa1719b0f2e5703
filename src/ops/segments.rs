//! Where the sequences of a packed batch lie.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Shape, WithDType, bail};

use super::tensor::{Device, Tensor};

/// Sequence `i` is rows `offsets[i]..offsets[i + 1]` of every `[tokens, width]` tensor of the batch.
///
/// Planned once per batch and shared by every layer.
#[derive(Debug, Clone)]
pub struct Segments {
    offsets: Arc<[usize]>,
    /// Where they were filled up: rows after the last sequence, which belong to none. They attend to each other, and nothing is made
    /// of them.
    rest: Option<usize>,
    /// As kernels read it.
    #[cfg(feature = "cuda")]
    plan: Option<Arc<super::cuda::Plan>>,
}

impl Segments {
    /// Packs sequences of these lengths, in this order.
    pub fn of(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut end = 0;
        let ends = lengths.into_iter().map(|length| {
            end += length;
            end
        });
        Segments {
            offsets: std::iter::once(0).chain(ends).collect(),
            rest: None,
            #[cfg(feature = "cuda")]
            plan: None,
        }
    }

    /// Packs them likewise, and fills them up: with sequences of one row until there are `count` of them, then with rows of none
    /// until there are `total`.
    pub fn filled_up(lengths: impl IntoIterator<Item = usize>, (count, total): (usize, usize)) -> Result<Self> {
        let mut lengths: Vec<usize> = lengths.into_iter().collect();
        let found = lengths.len();
        lengths.resize(count.max(found), 1);
        let filled = Segments::of(lengths);
        match total.checked_sub(filled.total()) {
            Some(rest) if found <= count => Ok(Segments { rest: Some(rest), ..filled }),
            _ => bail!("{found} sequences do not fit {count} of {total} rows"),
        }
    }

    /// The same where ops of `device` can read it, and values, in the order of their shape and in parts, there too: what a batch
    /// begins with goes up at once.
    pub fn on<T: WithDType>(
        self,
        device: &Device,
        mut parts: Vec<Cow<'_, [T]>>,
        shape: impl Into<Shape>,
    ) -> Result<(Self, Tensor)> {
        match device {
            Device::Cpu => {
                let whole = match parts.len() {
                    1 => parts.pop().map(Cow::into_owned).unwrap_or_default(),
                    _ => parts.concat(),
                };
                Ok((self, Tensor::from_vec(whole, shape, device)?))
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(place) => {
                let parts = parts.iter().map(|part| super::cuda::bytes_of(part)).collect::<Result<Vec<_>>>()?;
                let (plan, values) = super::cuda::Plan::upload(&self, (&parts, shape.into().dims(), T::DTYPE), place)?;
                Ok((self.planned(plan), Tensor::Cuda(values)))
            }
        }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn planned(self, plan: super::cuda::Plan) -> Self {
        Segments { plan: Some(Arc::new(plan)), ..self }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn is_filled_up(&self) -> bool {
        self.rest.is_some()
    }

    #[cfg(feature = "cuda")]
    pub(super) fn plan(&self) -> Result<&super::cuda::Plan> {
        match &self.plan {
            Some(plan) => Ok(plan),
            None => bail!("segments that were not put on the GPU"),
        }
    }

    /// How many sequences.
    pub fn count(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Rows of all sequences together, and those of none.
    pub fn total(&self) -> usize {
        self.offsets[self.offsets.len() - 1] + self.rest.unwrap_or(0)
    }

    /// The rows of none.
    #[cfg(feature = "cuda")]
    pub(super) fn rest(&self) -> Range<usize> {
        self.offsets[self.offsets.len() - 1]..self.total()
    }

    /// Rows of the longest sequence; 0 when there is none.
    pub fn longest(&self) -> usize {
        self.ranges().map(|range| range.len()).max().unwrap_or(0)
    }

    /// The rows of each sequence.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = Range<usize>> + '_ {
        self.offsets.windows(2).map(|pair| pair[0]..pair[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_become_ranges() {
        let segments = Segments::of([3, 1, 4]);
        assert_eq!((segments.count(), segments.total(), segments.longest()), (3, 8, 4));
        assert_eq!(segments.ranges().collect::<Vec<_>>(), [0..3, 3..4, 4..8]);
    }

    #[test]
    fn they_are_filled_up_with_sequences_and_then_with_rows_or_not_at_all() {
        let segments = Segments::filled_up([3, 1], (4, 16)).unwrap();
        assert_eq!((segments.count(), segments.total()), (4, 16));
        assert_eq!(segments.ranges().collect::<Vec<_>>(), [0..3, 3..4, 4..5, 5..6]);
        assert_eq!(Segments::filled_up([3, 1], (2, 4)).unwrap().total(), 4);
        for (count, total) in [(1, 16), (4, 5), (2, 3)] {
            assert!(Segments::filled_up([3, 1], (count, total)).is_err(), "{count} of {total}");
        }
    }

    #[test]
    fn a_batch_may_be_empty() {
        let segments = Segments::of([]);
        assert_eq!((segments.count(), segments.total(), segments.longest()), (0, 0, 0));
        assert_eq!(segments.ranges().len(), 0);
    }
}
