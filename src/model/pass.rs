//! One forward pass: what runs it, how much goes into it, and what it promises to return.

use std::cmp::Reverse;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::ops::{serially, threads};

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
    parts: Vec<Part>,
}

/// The rows of some of a batch's inputs.
#[derive(Debug)]
struct Part {
    /// Which inputs.
    places: Vec<usize>,
    /// `[places, width]`
    rows: Tensor,
}

impl Pending {
    /// `rows`: `[batch, width]`, f32.
    pub fn ready(rows: Tensor) -> Self {
        let places = (0..rows.dims().first().copied().unwrap_or(0)).collect();
        Pending { parts: vec![Part { places, rows }] }
    }

    /// Waits for the device and reads the rows.
    pub fn wait(self) -> Result<Vec<Vec<f32>>> {
        let mut all = vec![Vec::new(); self.parts.iter().map(|part| part.places.len()).sum()];
        for Part { places, rows } in self.parts {
            let rows = rows.to_dtype(DType::F32).and_then(|rows| rows.to_vec2::<f32>()).map_err(failed)?;
            if rows.len() != places.len() {
                return Err(Error::internal(format!("{} rows for {} inputs", rows.len(), places.len())));
            }
            for (place, row) in places.into_iter().zip(rows) {
                all[place] = row;
            }
        }
        Ok(all)
    }
}

/// What a batch costs, and where it runs.
pub(super) struct Work<'a, I> {
    /// Tokens of an input.
    pub(super) tokens: &'a (dyn Fn(&I) -> usize + Sync),
    /// Multiply-adds that a token takes, about.
    pub(super) per_token: usize,
    pub(super) device: &'a Device,
}

/// Runs a batch as passes of at most [`TOKENS_PER_PASS`], in order; an input that costs more runs by itself.
///
/// On a CPU a pass of little work runs on one thread. Otherwise a pass whose inputs divide evenly among the current
/// pool's threads runs in parts side by side, each on one thread from its first layer to its last: threads that never
/// wait for each other between two layers lose nothing when one of them is interrupted. Others share the work of each
/// layer.
pub(super) fn in_passes<I: Sync>(
    batch: &[I],
    work: &Work<'_, I>,
    run: impl Fn(&[&I]) -> candle_core::Result<Tensor> + Sync,
) -> Result<Pending> {
    let cost = work.tokens;
    let mut parts = Vec::new();
    let mut first = 0;
    while first < batch.len() {
        let mut tokens = cost(&batch[first]);
        let fits = batch[first + 1..].iter().take_while(|input| {
            tokens += cost(input);
            tokens <= TOKENS_PER_PASS
        });
        let end = first + 1 + fits.count();
        let costs: Vec<usize> = batch[first..end].iter().map(cost).collect();
        let little = costs.iter().sum::<usize>().saturating_mul(work.per_token) < PARALLEL_WORK;
        let threads = if work.device.is_cpu() { threads() } else { 1 };
        let part = |places: Vec<usize>| {
            let inputs: Vec<&I> = places.iter().map(|place| &batch[*place]).collect();
            run(&inputs).map(|rows| Part { places, rows })
        };
        match shares(&costs, if little { 1 } else { threads }) {
            Some(shares) => {
                let shares = shares.into_par_iter();
                let done = shares.map(|share| serially(|| part(share.into_iter().map(|at| first + at).collect())));
                parts.extend(done.collect::<candle_core::Result<Vec<Part>>>().map_err(failed)?);
            }
            None if little => parts.push(serially(|| part((first..end).collect())).map_err(failed)?),
            None => parts.push(part((first..end).collect()).map_err(failed)?),
        }
        first = end;
    }
    Ok(Pending { parts })
}

/// Multiply-adds below which a pass is not worth a second thread: some 300 µs of one core.
const PARALLEL_WORK: usize = 16 << 20;

/// How far the largest share may lie above the mean, so that threads that finish early lose less than they would by
/// sharing every layer.
const UNEVEN: f64 = 1.2;

/// Divides inputs of these costs among threads, the longest first to whoever has least; none where that comes out
/// uneven. Each share is in the order of its inputs.
fn shares(costs: &[usize], threads: usize) -> Option<Vec<Vec<usize>>> {
    if threads < 2 || costs.len() < threads {
        return None;
    }
    let mut order: Vec<usize> = (0..costs.len()).collect();
    order.sort_by_key(|&at| (Reverse(costs[at]), at));
    let mut shares = vec![(0, Vec::new()); threads];
    for at in order {
        if let Some(least) = shares.iter_mut().min_by_key(|(cost, _)| *cost) {
            least.0 += costs[at];
            least.1.push(at);
        }
    }
    let most = shares.iter().map(|(cost, _)| *cost).max().unwrap_or(0);
    let mean = costs.iter().sum::<usize>() as f64 / threads as f64;
    (most as f64 <= UNEVEN * mean).then(|| {
        let sorted = shares.into_iter().map(|(_, mut places)| {
            places.sort_unstable();
            places
        });
        sorted.filter(|places| !places.is_empty()).collect()
    })
}

/// A tensor operation that failed: not the input's fault, since inputs are checked before.
pub(super) fn failed(error: candle_core::Error) -> Error {
    Error::internal(error)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;

    /// Inputs that are their own cost, on a CPU.
    fn work(per_token: usize) -> Work<'static, usize> {
        Work { tokens: &|cost| *cost, per_token, device: &Device::Cpu }
    }

    fn on_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
    }

    #[test]
    fn a_batch_is_cut_where_it_would_pass_the_bound_and_keeps_its_order() {
        let costs = [5000, 3192, 1, 8192, 9000, 10];
        let cuts = Mutex::new(Vec::new());
        let run = |pass: &[&usize]| {
            cuts.lock().unwrap().push(pass.iter().map(|cost| **cost).collect::<Vec<_>>());
            let rows: Vec<f32> = pass.iter().map(|cost| **cost as f32).collect();
            Tensor::from_vec(rows, (pass.len(), 1), &Device::Cpu)
        };
        let pending = on_threads(1, || in_passes(&costs, &work(1 << 20), run));
        let rows: Vec<f32> = pending.unwrap().wait().unwrap().concat();
        assert_eq!(rows, [5000.0, 3192.0, 1.0, 8192.0, 9000.0, 10.0]);
        assert_eq!(*cuts.lock().unwrap(), [vec![5000, 3192], vec![1], vec![8192], vec![9000], vec![10]]);
    }

    #[test]
    fn rows_come_in_the_order_of_their_inputs_when_threads_share_them() {
        let costs: Vec<usize> = (0..41).map(|i| 5 + i * 7 % 13).collect();
        let run = |pass: &[&usize]| {
            assert_eq!(threads(), 1, "a part runs on one thread");
            let rows: Vec<f32> = pass.iter().map(|cost| **cost as f32).collect();
            Tensor::from_vec(rows, (pass.len(), 1), &Device::Cpu)
        };
        let pending = on_threads(3, || in_passes(&costs, &work(1 << 20), run));
        let rows: Vec<f32> = pending.unwrap().wait().unwrap().concat();
        assert_eq!(rows, costs.iter().map(|cost| *cost as f32).collect::<Vec<_>>());
    }

    #[test]
    fn little_work_stays_on_one_thread() {
        let run = |pass: &[&usize]| {
            assert_eq!((pass.len(), threads()), (2, 1));
            Tensor::from_vec(vec![0f32; pass.len()], (pass.len(), 1), &Device::Cpu)
        };
        let pending = on_threads(3, || in_passes(&[10, 10], &work(1000), run));
        assert_eq!(pending.unwrap().wait().unwrap().len(), 2);
    }

    proptest! {
        #[test]
        fn shares_hold_every_input_once_and_are_even_or_none(
            costs in prop::collection::vec(1usize..500, 0..40), threads in 1usize..5,
        ) {
            let Some(shares) = shares(&costs, threads) else { return Ok(()) };
            let mut all = shares.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..costs.len()).collect::<Vec<_>>());
            let most = shares.iter().map(|share| share.iter().map(|at| costs[*at]).sum::<usize>()).max().unwrap();
            prop_assert!(most as f64 <= UNEVEN * costs.iter().sum::<usize>() as f64 / threads as f64);
            prop_assert!(shares.iter().all(|share| share.is_sorted()));
        }
    }

    #[test]
    fn an_empty_batch_has_no_rows_and_runs_nothing() {
        let pending = in_passes(&[] as &[usize], &work(1), |_| unreachable!("nothing to run"));
        assert!(pending.unwrap().wait().unwrap().is_empty());
    }

    #[test]
    fn a_failed_operation_is_internal() {
        let result = in_passes(&[1usize], &work(1), |_| candle_core::bail!("shapes"));
        assert!(matches!(result.unwrap_err(), Error::Internal { message } if message.contains("shapes")));
    }
}
