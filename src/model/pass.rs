//! One forward pass: what runs it, how much goes into it, and what it promises to return.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::ops::Range;

use candle_core::WithDType;
use rayon::prelude::*;

use super::recordings::{Recordings, Warmth};
use super::together::{Share, even_rows, together};
use crate::error::{Error, Result};
use crate::ops::{Device, Landed, Landing, Segments, Tensor, serially, threads};
use crate::weights::Progress;

/// Tokens that one pass computes at once. A larger batch runs as several passes, so this bounds a model's memory
/// whatever the scheduler packs. Matrix products are as fast as they get well before it.
pub const TOKENS_PER_PASS: usize = 8192;

/// A model that answers each input with one row.
pub trait OneShot<I>: Send {
    /// Packs the batch and runs it; rows come in the order of the inputs, each as if it had been alone.
    fn forward(&mut self, batch: &[I]) -> Result<Pending>;

    /// Makes ready what first passes would wait for and, where `records` says so and the device can, records small ones; until it
    /// is cancelled. Called before the first pass, by whoever loads. A model serves without it, and as well after it failed.
    fn warm(&mut self, records: bool, progress: &Progress) -> Warmth;
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
    rows: Landing,
}

impl Part {
    fn of(places: Vec<usize>, rows: Tensor) -> candle_core::Result<Part> {
        Ok(Part { places, rows: rows.landing()? })
    }
}

impl Pending {
    /// `rows`: `[batch, width]`, f32.
    pub fn ready(rows: Tensor) -> Result<Self> {
        let places = (0..rows.dims().first().copied().unwrap_or(0)).collect();
        Ok(Pending { parts: vec![Part::of(places, rows).map_err(failed)?] })
    }

    /// Rows that are here, of any lengths.
    pub(super) fn of_rows(rows: Vec<Vec<f32>>) -> Result<Self> {
        let part = |(place, row): (usize, Vec<f32>)| {
            let shape = (1, row.len());
            Part::of(vec![place], Tensor::from_vec(row, shape, &Device::Cpu)?)
        };
        let parts = rows.into_iter().enumerate().map(part).collect::<candle_core::Result<_>>();
        Ok(Pending { parts: parts.map_err(failed)? })
    }

    /// Whether the device has computed all of them, so that `wait` would return at once.
    pub fn is_done(&self) -> Result<bool> {
        // The last is the last to be done.
        self.parts.last().map_or(Ok(true), |part| part.rows.is_here())
    }

    /// Waits for the device and reads the rows.
    pub fn wait(self) -> Result<Vec<Vec<f32>>> {
        self.land().map(|landed| landed.rows)
    }

    /// The same, and whether all of them are numbers.
    pub fn land(self) -> Result<Landed> {
        let mut all = vec![Vec::new(); self.parts.iter().map(|part| part.places.len()).sum()];
        let mut all_finite = true;
        for Part { places, rows } in self.parts {
            let Landed { rows, finite } = rows.wait().map_err(failed)?;
            all_finite &= finite;
            if rows.len() != places.len() {
                return Err(Error::internal(format!("{} rows for {} inputs", rows.len(), places.len())));
            }
            for (place, row) in places.into_iter().zip(rows) {
                all[place] = row;
            }
        }
        Ok(Landed { rows: all, finite: all_finite })
    }
}

/// A model, in the stages that a pass runs.
pub(super) trait Stages<I>: Sync {
    /// What a pass begins with are numbers of this kind.
    type Number: WithDType;

    /// Their shape, for so many inputs of so many tokens together.
    fn shape(&self, inputs: usize, tokens: usize) -> Vec<usize>;

    /// They themselves, in the order of that: parts, so that what lies together already is not copied.
    fn pack<'a>(&self, batch: &[&'a I]) -> Vec<Cow<'a, [Self::Number]>>;

    /// What comes before the blocks: `[rows, width]`.
    fn first(&self, given: Tensor, segments: &Segments) -> candle_core::Result<Tensor>;

    /// The blocks, of a share of these rows.
    fn blocks(&self, x: Tensor, share: &Share<'_>) -> candle_core::Result<Tensor>;

    /// What becomes of them: `[inputs, width]`.
    fn last(&self, x: &Tensor, segments: &Segments) -> candle_core::Result<Tensor>;

    /// All of it.
    fn rows(&self, given: Tensor, segments: &Segments) -> candle_core::Result<Tensor> {
        let x = self.first(given, segments)?;
        let x = self.blocks(x, &Share::all(segments))?;
        self.last(&x, segments)
    }

    /// Passes that are recorded.
    fn recordings(&self) -> &Recordings<I>;
}

/// What a batch costs, and where it runs.
pub(super) struct Work<'a, I> {
    /// Tokens of an input.
    pub(super) tokens: &'a (dyn Fn(&I) -> usize + Sync),
    /// Multiply-adds that a token takes by itself, about.
    pub(super) per_token: usize,
    /// And for every token that it attends to.
    pub(super) per_pair: usize,
    pub(super) device: &'a Device,
}

impl<I> Work<'_, I> {
    /// Multiply-adds for one of `length` tokens.
    fn of_token(&self, length: usize) -> usize {
        self.per_token.saturating_add(length.saturating_mul(self.per_pair))
    }

    /// A batch on its device: where each input's rows lie, and what a pass begins with.
    fn bring(&self, batch: &[&I], model: &impl Stages<I>) -> candle_core::Result<(Segments, Tensor)> {
        let segments = Segments::of(batch.iter().map(|input| (self.tokens)(input)));
        let shape = model.shape(batch.len(), segments.total());
        segments.on(self.device, model.pack(batch), shape)
    }

    fn rows(&self, batch: &[&I], model: &impl Stages<I>) -> candle_core::Result<Tensor> {
        if !self.device.is_cpu() {
            let lengths: Vec<usize> = batch.iter().map(|input| (self.tokens)(input)).collect();
            if let Some(rows) = model.recordings().run(model, batch, &lengths) {
                return rows;
            }
        }
        let (segments, given) = self.bring(batch, model)?;
        model.rows(given, &segments)
    }
}

/// How a pass is run on a CPU's threads.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    /// It is little work: on the calling thread.
    Alone,
    /// Its inputs divide evenly: parts side by side, each on one thread from its first layer to its last. Threads that
    /// never wait for each other lose nothing when one of them is interrupted.
    Apart(Vec<Vec<usize>>),
    /// Its rows are divided evenly, and threads meet once a block.
    Together(Vec<Range<usize>>),
    /// There are few rows for the threads, or so many that a pass would take more memory: threads share the work of
    /// each layer.
    Layers,
}

/// Runs a batch as passes of at most [`TOKENS_PER_PASS`], in order; an input that costs more runs by itself.
pub(super) fn in_passes<I: Sync>(batch: &[I], work: &Work<'_, I>, model: &impl Stages<I>) -> Result<Pending> {
    let tokens = work.tokens;
    let mut parts = Vec::new();
    let mut first = 0;
    while first < batch.len() {
        let mut total = tokens(&batch[first]);
        let fits = batch[first + 1..].iter().take_while(|input| {
            total += tokens(input);
            total <= TOKENS_PER_PASS
        });
        let end = first + 1 + fits.count();
        let part = |places: Vec<usize>| {
            let inputs: Vec<&I> = places.iter().map(|place| &batch[*place]).collect();
            Part::of(places, work.rows(&inputs, model)?)
        };
        let lengths: Vec<usize> = batch[first..end].iter().map(tokens).collect();
        let threads = if work.device.is_cpu() { threads() } else { 1 };
        match way(&lengths, threads, |length| work.of_token(length)) {
            Way::Alone => parts.push(serially(|| part((first..end).collect())).map_err(failed)?),
            Way::Layers => parts.push(part((first..end).collect()).map_err(failed)?),
            Way::Apart(shares) => {
                let shares = shares.into_par_iter();
                let done = shares.map(|share| serially(|| part(share.into_iter().map(|at| first + at).collect())));
                parts.extend(done.collect::<candle_core::Result<Vec<Part>>>().map_err(failed)?);
            }
            Way::Together(shares) => {
                let inputs: Vec<&I> = batch[first..end].iter().collect();
                let run = || {
                    let (segments, given) = work.bring(&inputs, model)?;
                    let x = model.first(given, &segments)?;
                    let x = together(&x, &segments, &shares, |x, share| model.blocks(x, share))?;
                    model.last(&x, &segments)
                };
                parts.push(run().and_then(|rows| Part::of((first..end).collect(), rows)).map_err(failed)?);
            }
        }
        first = end;
    }
    Ok(Pending { parts })
}

/// `cost`: multiply-adds for one token of an input of so many.
fn way(lengths: &[usize], threads: usize, cost: impl Fn(usize) -> usize) -> Way {
    let costs: Vec<usize> = lengths.iter().map(|length| length.saturating_mul(cost(*length))).collect();
    if costs.iter().fold(0, |sum: usize, cost| sum.saturating_add(*cost)) < PARALLEL_WORK {
        return Way::Alone;
    }
    if threads < 2 {
        return Way::Layers;
    }
    let total: usize = lengths.iter().sum();
    let can_meet = (threads * FEW_ROWS..=MOST_ROWS).contains(&total);
    match shares(&costs, threads, if can_meet { EVEN } else { NEARLY_EVEN }) {
        Some(shares) => Way::Apart(shares),
        None if can_meet => Way::Together(even_rows(lengths, threads, cost)),
        None => Way::Layers,
    }
}

/// Multiply-adds below which a pass is not worth a second thread: some 300 µs of one core.
const PARALLEL_WORK: usize = 16 << 20;

/// How far the largest share may lie above the mean so that threads work apart: where they could meet instead, and
/// where they would have to share every layer.
const EVEN: f64 = 1.02;
const NEARLY_EVEN: f64 = 1.2;

/// With fewer rows for each thread than this, the weights that every thread reads cost more than the meeting saves.
const FEW_ROWS: usize = 16;
/// With more, keys and values that wait to be taken might not fit in what the model declares as its workspace.
const MOST_ROWS: usize = TOKENS_PER_PASS / 2;

/// Divides inputs of these costs among threads, the longest first to whoever has least; none where that comes out
/// uneven. Each share is in the order of its inputs.
fn shares(costs: &[usize], threads: usize, even: f64) -> Option<Vec<Vec<usize>>> {
    if threads < 2 || costs.len() < threads {
        return None;
    }
    let mut order: Vec<usize> = (0..costs.len()).collect();
    order.sort_by_key(|&at| (Reverse(costs[at]), at));
    let mut shares = vec![(0usize, Vec::new()); threads];
    for at in order {
        if let Some(least) = shares.iter_mut().min_by_key(|(cost, _)| *cost) {
            least.0 = costs[at].saturating_add(least.0);
            least.1.push(at);
        }
    }
    let most = shares.iter().map(|(cost, _)| *cost).max().unwrap_or(0);
    let mean = costs.iter().map(|cost| *cost as f64).sum::<f64>() / threads as f64;
    (most as f64 <= even * mean).then(|| {
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
    use crate::model::frames::Lengths;

    /// Inputs that are their own number of tokens, on a CPU.
    fn work(per_token: usize) -> Work<'static, usize> {
        Work { tokens: &|tokens| *tokens, per_token, per_pair: 0, device: &Device::Cpu }
    }

    fn on_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
    }

    /// Answers an input with the number of its tokens, and notes on how many threads and how many rows its blocks ran.
    struct Counted(Mutex<Vec<(usize, usize)>>, Recordings<usize>);

    impl Stages<usize> for Counted {
        type Number = f32;

        fn shape(&self, _: usize, tokens: usize) -> Vec<usize> {
            vec![tokens, 1]
        }

        fn pack<'a>(&self, batch: &[&'a usize]) -> Vec<Cow<'a, [f32]>> {
            batch.iter().map(|tokens| Cow::Owned(vec![**tokens as f32; **tokens])).collect()
        }

        fn first(&self, given: Tensor, _: &Segments) -> candle_core::Result<Tensor> {
            Ok(given)
        }

        fn blocks(&self, x: Tensor, share: &Share<'_>) -> candle_core::Result<Tensor> {
            self.0.lock().unwrap().push((threads(), x.dims()[0]));
            // All values that a row attends to are the same.
            share.attention(&x, x.clone(), x.clone(), 1)
        }

        fn last(&self, x: &Tensor, segments: &Segments) -> candle_core::Result<Tensor> {
            crate::ops::reduce(x, segments, crate::ops::Reduce::Max)
        }

        fn recordings(&self) -> &Recordings<usize> {
            &self.1
        }
    }

    fn no_recordings() -> Recordings<usize> {
        Recordings::of(Lengths::UpTo(1), None)
    }

    impl Counted {
        /// What came of a batch on so many threads, and what ran where.
        fn run(inputs: &[usize], (pool, per_token): (usize, usize)) -> (Vec<f32>, Vec<(usize, usize)>) {
            let _lock = crate::model::together::alone();
            let model = Counted(Mutex::default(), no_recordings());
            let pending = on_threads(pool, || in_passes(inputs, &work(per_token), &model)).unwrap();
            let mut ran = model.0.into_inner().unwrap();
            ran.sort_unstable();
            (pending.wait().unwrap().concat().into_iter().map(f32::round).collect(), ran)
        }
    }

    fn answers(inputs: &[usize]) -> Vec<f32> {
        inputs.iter().map(|tokens| *tokens as f32).collect()
    }

    #[test]
    fn a_batch_is_cut_where_it_would_pass_the_bound_and_keeps_its_order() {
        let inputs = [5000, 3192, 1, 8192, 9000, 10];
        let (rows, ran) = Counted::run(&inputs, (1, 1 << 20));
        assert_eq!(rows, answers(&inputs));
        assert_eq!(ran, [(1, 1), (1, 10), (1, 8192), (1, 8192), (1, 9000)]);
    }

    #[test]
    fn inputs_that_divide_evenly_run_apart_and_answers_come_in_their_order() {
        let inputs: Vec<usize> = (0..41).map(|i| 5 + i * 7 % 13).collect();
        let (rows, ran) = Counted::run(&inputs, (3, 1 << 20));
        assert_eq!(rows, answers(&inputs));
        assert!(ran.len() == 3 && ran.iter().all(|(threads, _)| *threads == 1), "{ran:?}");
    }

    #[test]
    fn rows_are_divided_where_inputs_are_not_even() {
        let (rows, ran) = Counted::run(&[50, 10, 30], (2, 1 << 20));
        assert_eq!(rows, answers(&[50, 10, 30]));
        assert_eq!(ran, [(1, 45), (1, 45)]);
    }

    #[test]
    fn few_rows_and_very_many_share_each_layer() {
        assert_eq!(Counted::run(&[31], (2, 1 << 20)).1, [(2, 31)]);
        assert_eq!(Counted::run(&[MOST_ROWS + 1], (2, 1 << 20)).1, [(2, MOST_ROWS + 1)]);
        assert_eq!(Counted::run(&[MOST_ROWS], (2, 1 << 20)).1, [(1, MOST_ROWS / 2), (1, MOST_ROWS / 2)]);
    }

    #[test]
    fn little_work_stays_on_one_thread() {
        assert_eq!(Counted::run(&[100, 100], (3, 1000)).1, [(1, 200)]);
    }

    proptest! {
        #[test]
        fn shares_hold_every_input_once_and_are_even_or_none(
            costs in prop::collection::vec(1usize..500, 0..40), threads in 1usize..5,
        ) {
            let Some(shares) = shares(&costs, threads, NEARLY_EVEN) else { return Ok(()) };
            let mut all = shares.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..costs.len()).collect::<Vec<_>>());
            let most = shares.iter().map(|share| share.iter().map(|at| costs[*at]).sum::<usize>()).max().unwrap();
            prop_assert!(most as f64 <= NEARLY_EVEN * costs.iter().sum::<usize>() as f64 / threads as f64);
            prop_assert!(shares.iter().all(|share| share.is_sorted()));
        }
    }

    #[test]
    fn an_empty_batch_has_no_rows_and_runs_nothing() {
        let (rows, ran) = Counted::run(&[], (2, 1));
        assert!(rows.is_empty() && ran.is_empty());
    }

    #[test]
    fn a_failed_operation_is_internal() {
        struct Broken(Recordings<usize>);
        impl Stages<usize> for Broken {
            type Number = f32;

            fn shape(&self, _: usize, tokens: usize) -> Vec<usize> {
                vec![tokens]
            }
            fn pack<'a>(&self, batch: &[&'a usize]) -> Vec<Cow<'a, [f32]>> {
                vec![Cow::Owned(vec![0.0; batch.iter().copied().sum()])]
            }
            fn first(&self, _: Tensor, _: &Segments) -> candle_core::Result<Tensor> {
                candle_core::bail!("shapes")
            }
            fn blocks(&self, x: Tensor, _: &Share<'_>) -> candle_core::Result<Tensor> {
                Ok(x)
            }
            fn last(&self, x: &Tensor, _: &Segments) -> candle_core::Result<Tensor> {
                Ok(x.clone())
            }
            fn recordings(&self) -> &Recordings<usize> {
                &self.0
            }
        }
        let result = in_passes(&[1usize], &work(1), &Broken(no_recordings()));
        assert!(matches!(result.unwrap_err(), Error::Internal { message } if message.contains("shapes")));
    }
}
