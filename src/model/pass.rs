//! One forward pass: what runs it, how much goes into it, and what it promises to return.

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};

/// Tokens that one pass computes at once. A larger batch runs as several passes, so this bounds a model's memory
/// whatever the scheduler packs. Matrix products are as fast as they get well before it.
pub const TOKENS_PER_PASS: usize = 8192;

/// A model that answers each input with one row.
pub trait OneShot<I>: Send {
    /// Packs the batch and runs it; rows come in the order of the inputs, each as if it had been alone.
    fn forward(&mut self, batch: &[I]) -> Result<Pending>;
}

/// Rows that a device may still be computing.
#[derive(Debug)]
pub struct Pending {
    /// `[inputs, width]` of each pass
    passes: Vec<Tensor>,
}

impl Pending {
    /// `rows`: `[batch, width]`, f32.
    pub fn ready(rows: Tensor) -> Self {
        Pending { passes: vec![rows] }
    }

    /// Waits for the device and reads the rows.
    pub fn wait(self) -> Result<Vec<Vec<f32>>> {
        let mut rows = Vec::new();
        for pass in self.passes {
            rows.extend(pass.to_dtype(DType::F32).and_then(|rows| rows.to_vec2::<f32>()).map_err(failed)?);
        }
        Ok(rows)
    }
}

/// Runs a batch as passes of at most [`TOKENS_PER_PASS`], in order; an input that costs more runs by itself.
pub(super) fn in_passes<I>(
    batch: &[I],
    cost: impl Fn(&I) -> usize,
    mut run: impl FnMut(&[I]) -> candle_core::Result<Tensor>,
) -> Result<Pending> {
    let mut passes = Vec::new();
    let mut rest = batch;
    while !rest.is_empty() {
        let mut tokens = cost(&rest[0]);
        let fits = rest[1..].iter().take_while(|input| {
            tokens += cost(input);
            tokens <= TOKENS_PER_PASS
        });
        let (now, later) = rest.split_at(1 + fits.count());
        passes.push(run(now).map_err(failed)?);
        rest = later;
    }
    Ok(Pending { passes })
}

/// A tensor operation that failed: not the input's fault, since inputs are checked before.
pub(super) fn failed(error: candle_core::Error) -> Error {
    Error::internal(error)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_batch_is_cut_where_it_would_pass_the_bound_and_keeps_its_order() {
        let costs = [5000, 3192, 1, 8192, 9000, 10];
        let mut cuts = Vec::new();
        let pending = in_passes(
            &costs,
            |cost| *cost,
            |pass| {
                cuts.push(pass.to_vec());
                let rows: Vec<f32> = pass.iter().map(|cost| *cost as f32).collect();
                Tensor::from_vec(rows, (pass.len(), 1), &Device::Cpu)
            },
        );
        let rows: Vec<f32> = pending.unwrap().wait().unwrap().concat();
        assert_eq!(rows, [5000.0, 3192.0, 1.0, 8192.0, 9000.0, 10.0]);
        assert_eq!(cuts, [vec![5000, 3192], vec![1], vec![8192], vec![9000], vec![10]]);
    }

    #[test]
    fn an_empty_batch_has_no_rows_and_runs_nothing() {
        let pending = in_passes(&[] as &[usize], |cost| *cost, |_| unreachable!("nothing to run"));
        assert!(pending.unwrap().wait().unwrap().is_empty());
    }

    #[test]
    fn a_failed_operation_is_internal() {
        let result = in_passes(&[1usize], |cost| *cost, |_| candle_core::bail!("shapes"));
        assert!(matches!(result.unwrap_err(), Error::Internal { message } if message.contains("shapes")));
    }
}
