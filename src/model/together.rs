//! A pass whose rows are divided evenly among threads, wherever its sequences end.
//!
//! Each thread takes its rows from the first block to the last by itself. Only attention looks at other rows, so once a
//! block the threads meet and hand each other the keys and values that they have computed. It knows tensors and threads,
//! nothing of architectures.

use std::cell::Cell;
use std::collections::VecDeque;
use std::hint::spin_loop;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use candle_core::{Result, bail};

use crate::device::give_way;
use crate::ops::{Segments, Tensor, attention, attention_of_rows, self_attention, serially};

/// The rows of a batch that one thread computes.
pub(super) struct Share<'a> {
    segments: &'a Segments,
    /// None when they are all of it.
    member: Option<Member<'a>>,
}

/// One of those who meet.
struct Member<'a> {
    meeting: &'a Meeting,
    number: usize,
    /// Its first row.
    first: usize,
    /// How often it has been there.
    rounds: Cell<usize>,
}

impl<'a> Share<'a> {
    /// The whole batch.
    pub(super) fn all(segments: &'a Segments) -> Self {
        Share { segments, member: None }
    }

    /// Attention of these rows to all rows of their sequences. `q`, `k`, `v`: `[rows of the share, heads * d]`.
    pub(super) fn attention(&self, q: &Tensor, k: Tensor, v: Tensor, heads: usize) -> Result<Tensor> {
        give_way();
        match &self.member {
            None => attention(q, &k, &v, (self.segments, heads)),
            Some(Member { meeting, number, first, rounds }) => {
                let all = meeting.exchange((*number, rounds.replace(rounds.get() + 1)), (k, v))?;
                attention_of_rows((q, *first), &all, (self.segments, heads))
            }
        }
    }

    /// The same of rows that have queries, keys and values side by side: `[rows, 3 * heads * d]`, of a whole batch.
    pub(super) fn self_attention(&self, qkv: &Tensor, heads: usize) -> Result<Tensor> {
        give_way();
        match &self.member {
            None => self_attention(qkv, (self.segments, heads)),
            Some(_) => bail!("keys and values that were not computed apart, to be handed to other threads"),
        }
    }
}

/// Runs `blocks` on shares of `x` side by side, on the first of the current pool's threads, and returns the rows in
/// their order. `shares`: adjacent ranges that are all of `x`.
///
/// The pool's threads must have nothing else to do for long: they wait for each other. Two passes that did so on one pool
/// could wait for each other's threads for ever, so while one does another shares its layers, as any pass can.
pub(super) fn together(
    x: &Tensor,
    segments: &Segments,
    shares: &[Range<usize>],
    blocks: impl Fn(Tensor, &Share<'_>) -> Result<Tensor> + Sync,
) -> Result<Tensor> {
    let _only = match ONLY.try_lock() {
        Ok(only) => only,
        Err(TryLockError::Poisoned(only)) => only.into_inner(),
        Err(TryLockError::WouldBlock) => return blocks(x.clone(), &Share::all(segments)),
    };
    let meeting = Meeting::of(shares.len());
    let run = |number: usize, rows: &Range<usize>| {
        // Whoever fails, by a panic too, must not be waited for.
        let leaving = Leaving(&meeting);
        let member = Some(Member { meeting: &meeting, number, first: rows.start, rounds: Cell::new(0) });
        let x = x.narrow_rows(rows.start, rows.len())?;
        let done = serially(|| blocks(x, &Share { segments, member }))?;
        std::mem::forget(leaving);
        Ok(done)
    };
    let done = rayon::broadcast(|thread| shares.get(thread.index()).map(|rows| run(thread.index(), rows)));
    let (done, failed): (Vec<_>, Vec<_>) = done.into_iter().flatten().partition(Result::is_ok);
    // Those who were left alone say less than whoever left them.
    if let Some(error) = failed.into_iter().filter_map(Result::err).min_by_key(is_left_alone) {
        return Err(error);
    }
    Tensor::stack_rows(&done.into_iter().collect::<Result<Vec<_>>>()?)
}

/// Held while threads meet. There is one engine to a process, so nobody is kept from it there.
static ONLY: Mutex<()> = Mutex::new(());

const LEFT_ALONE: &str = "another part of the batch failed";

fn is_left_alone(error: &candle_core::Error) -> bool {
    error.to_string().starts_with(LEFT_ALONE)
}

/// Divides rows of sequences with these lengths so that all shares cost the same, as nearly as whole rows do.
/// `cost`: of one row, by its sequence's length.
pub(super) fn even_rows(lengths: &[usize], threads: usize, cost: impl Fn(usize) -> usize) -> Vec<Range<usize>> {
    let total: usize = lengths.iter().map(|length| length * cost(*length)).sum();
    let mut cuts: VecDeque<usize> = (1..threads).map(|thread| total * thread / threads).collect();
    let (mut ranges, mut first, mut row, mut spent) = (Vec::new(), 0, 0, 0);
    for &length in lengths {
        let each = cost(length).max(1);
        while let Some(cut) = cuts.front().copied().filter(|cut| *cut < spent + length * each) {
            let at = row + (cut - spent).div_ceil(each).min(length);
            ranges.push(first..at);
            first = at;
            cuts.pop_front();
        }
        row += length;
        spent += length * each;
    }
    ranges.push(first..row);
    ranges.retain(|range| !range.is_empty());
    ranges
}

type KeysValues = (Tensor, Tensor);

/// Where threads exchange keys and values, once a block.
struct Meeting {
    members: usize,
    /// How often anybody has come.
    arrived: AtomicUsize,
    /// Somebody will not come any more.
    broken: AtomicBool,
    /// What each member brought. Two of them, used in turn: a member may bring the next before all have taken the last,
    /// and never the one after.
    tables: [Vec<Mutex<Brought>>; 2],
}

#[derive(Default)]
struct Brought {
    what: Option<KeysValues>,
    takers: usize,
}

/// Breaks the meeting unless it is forgotten.
struct Leaving<'a>(&'a Meeting);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.broken.store(true, Ordering::Release);
    }
}

/// Looks at what others have done so often before the processor is offered to somebody else in between: some 50 µs.
const SPINS: usize = 1 << 11;

impl Meeting {
    fn of(members: usize) -> Self {
        let table = || (0..members).map(|_| Mutex::default()).collect();
        Meeting { members, arrived: AtomicUsize::new(0), broken: AtomicBool::new(false), tables: [table(), table()] }
    }

    /// Brings what a member has computed, its `round`th, and takes what all have, in their order, once all have come.
    ///
    /// What was brought is kept no longer than until the last has taken it.
    fn exchange(&self, (member, round): (usize, usize), mine: KeysValues) -> Result<Vec<KeysValues>> {
        let table = &self.tables[round % 2];
        *locked(&table[member]) = Brought { what: Some(mine), takers: self.members };
        self.arrived.fetch_add(1, Ordering::AcqRel);
        self.wait_for(self.members * (round + 1))?;
        match table.iter().map(take).collect() {
            Some(all) => Ok(all),
            None => bail!("a part of the batch brought nothing"),
        }
    }

    fn wait_for(&self, count: usize) -> Result<()> {
        let mut spins = 0;
        while self.arrived.load(Ordering::Acquire) < count {
            if self.broken.load(Ordering::Acquire) {
                bail!("{LEFT_ALONE}");
            }
            spins += 1;
            match spins < SPINS {
                true => spin_loop(),
                false => std::thread::yield_now(),
            }
        }
        Ok(())
    }
}

fn locked(slot: &Mutex<Brought>) -> MutexGuard<'_, Brought> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was brought; the last taker leaves nothing.
fn take(slot: &Mutex<Brought>) -> Option<KeysValues> {
    let mut slot = locked(slot);
    slot.takers = slot.takers.saturating_sub(1);
    if slot.takers == 0 { slot.what.take() } else { slot.what.clone() }
}

/// For tests that look at how a pass was run, which depends on whether another one runs.
#[cfg(test)]
pub(super) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use proptest::prelude::*;

    use super::*;
    use crate::ops::Device;

    fn on_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
    }

    fn rows(count: usize, width: usize) -> Tensor {
        let values: Vec<f32> = (0..count * width).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
        Tensor::from_vec(values, (count, width), &Device::Cpu).unwrap()
    }

    fn sum(x: &Tensor, y: &Tensor, scale: f64) -> Tensor {
        let sum = (x.host().unwrap() + y.host().unwrap()).unwrap();
        Tensor::Host((sum * scale).unwrap())
    }

    fn values(x: &Tensor) -> Vec<Vec<f32>> {
        x.to_rows().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]
        #[test]
        fn rows_are_the_same_to_the_bit_as_on_one_thread(
            lengths in prop::collection::vec(1usize..60, 1..6), threads in 2usize..5, layers in 1usize..4,
        ) {
            let segments = Segments::of(lengths.clone());
            let x = rows(segments.total(), 8);
            let blocks = |mut x: Tensor, share: &Share<'_>| {
                for _ in 0..layers {
                    x = sum(&share.attention(&x, sum(&x, &x, 0.25), x.clone(), 2)?, &x, 1.0);
                }
                Ok(x)
            };
            let _lock = super::alone();
            let alone = blocks(x.clone(), &Share::all(&segments)).unwrap();
            let shares = even_rows(&lengths, threads, |length| 100 + length);
            let got = on_threads(threads, || together(&x, &segments, &shares, blocks)).unwrap();
            prop_assert_eq!(values(&got), values(&alone));
        }

        #[test]
        fn rows_are_divided_whole_in_order_and_evenly(
            lengths in prop::collection::vec(1usize..500, 1..20), threads in 1usize..9, quadratic in 0usize..4,
        ) {
            let cost = |length: usize| 1000 + quadratic * length;
            let ranges = even_rows(&lengths, threads, cost);
            let total: usize = lengths.iter().sum();
            prop_assert!(ranges.len() <= threads);
            prop_assert_eq!((ranges[0].start, ranges.last().unwrap().end), (0, total));
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
            let costs: Vec<usize> = lengths.iter().flat_map(|&length| std::iter::repeat_n(cost(length), length)).collect();
            let mean = costs.iter().sum::<usize>() as f64 / threads as f64;
            let dearest = cost(*lengths.iter().max().unwrap()) as f64;
            for range in ranges {
                let spent = costs[range].iter().sum::<usize>() as f64;
                prop_assert!(spent <= mean + dearest, "{spent} of a mean of {mean}");
            }
        }
    }

    #[test]
    fn who_fails_is_not_waited_for_and_its_error_is_told() {
        let _lock = alone();
        let segments = Segments::of([20]);
        let shares = even_rows(&[20], 2, |_| 1);
        let second = |share: &Share<'_>| share.member.as_ref().is_some_and(|member| member.number == 1);
        let run = |fails: &(dyn Fn() -> Result<Tensor> + Sync)| {
            on_threads(2, || {
                together(&rows(20, 4), &segments, &shares, |x, share| {
                    let x = share.attention(&x, x.clone(), x.clone(), 1)?;
                    if second(share) {
                        return fails();
                    }
                    share.attention(&x, x.clone(), x.clone(), 1)
                })
            })
        };
        let error = run(&|| bail!("no such kernel")).unwrap_err();
        assert!(error.to_string().contains("no such kernel"), "{error}");
        let panicked = catch_unwind(AssertUnwindSafe(|| run(&|| panic!("planted"))));
        assert!(panicked.is_err());
    }

    #[test]
    fn passes_that_share_a_pool_do_not_wait_for_each_other_for_ever() {
        let _lock = alone();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let segments = Segments::of([40]);
        let shares = even_rows(&[40], 2, |_| 1);
        let expected = values(&attention(&rows(40, 4), &rows(40, 4), &rows(40, 4), (&segments, 1)).unwrap());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let run = || {
                            together(&rows(40, 4), &segments, &shares, |x, share| {
                                share.attention(&x, x.clone(), x.clone(), 1)
                            })
                        };
                        assert_eq!(values(&pool.install(run).unwrap()), expected);
                    }
                });
            }
        });
    }

    #[test]
    fn nothing_is_kept_that_all_have_taken() {
        let meeting = Meeting::of(1);
        let mine = (rows(1, 4), rows(1, 4));
        assert_eq!(meeting.exchange((0, 0), mine).unwrap().len(), 1);
        assert!(meeting.tables.iter().flatten().all(|slot| locked(slot).what.is_none()));
    }
}
