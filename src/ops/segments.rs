//! Where the sequences of a packed batch lie.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Shape, WithDType};

use super::tensor::{Device, Tensor};

/// Sequence `i` is rows `offsets[i]..offsets[i + 1]` of every `[tokens, width]` tensor of the batch.
///
/// Planned once per batch and shared by every layer.
#[derive(Debug, Clone)]
pub struct Segments {
    offsets: Arc<[usize]>,
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
            #[cfg(feature = "cuda")]
            plan: None,
        }
    }

    /// The same where ops of `device` can read it, and `values`, in the order of their shape, there too: what a batch begins
    /// with goes up at once.
    pub fn on<T: WithDType>(self, device: &Device, values: Vec<T>, shape: impl Into<Shape>) -> Result<(Self, Tensor)> {
        match device {
            Device::Cpu => Ok((self, Tensor::from_vec(values, shape, device)?)),
            #[cfg(feature = "cuda")]
            Device::Cuda(place) => {
                let bytes = super::cuda::bytes_of(&values)?;
                let (plan, values) = super::cuda::Plan::upload(&self, (bytes, shape.into().dims(), T::DTYPE), place)?;
                Ok((Segments { plan: Some(Arc::new(plan)), ..self }, Tensor::Cuda(values)))
            }
        }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn plan(&self) -> Result<&super::cuda::Plan> {
        match &self.plan {
            Some(plan) => Ok(plan),
            None => candle_core::bail!("segments that were not put on the GPU"),
        }
    }

    /// How many sequences.
    pub fn count(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Rows of all sequences together.
    pub fn total(&self) -> usize {
        self.offsets[self.offsets.len() - 1]
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
    fn a_batch_may_be_empty() {
        let segments = Segments::of([]);
        assert_eq!((segments.count(), segments.total(), segments.longest()), (0, 0, 0));
        assert_eq!(segments.ranges().len(), 0);
    }
}
