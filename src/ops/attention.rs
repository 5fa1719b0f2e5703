//! Bidirectional attention over packed sequences of different lengths.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, bail};
use rayon::prelude::*;

use super::cpu::{Fresh, Reading, Rows, require_f32, threads};
use super::matmul::{Left, PANEL, Right, Target, Tiles, multiply, place_in_panels};
use super::segments::Segments;
use super::simd::{exp, max_of, wide};
use super::tensor::Tensor;

/// Queries whose scores are held at once: a block against 512 keys is 120 KiB, within a core's L2 cache.
const QUERY_BLOCK: usize = 60;

/// Multiply-adds below which waking another thread costs more than it saves: some 80 µs of one core.
const PARALLEL_WORK: usize = 2 << 20;

/// `softmax(q kᵀ / √d) v` for each head of each sequence; no row sees another sequence.
///
/// `q`, `k`, `v`: `[tokens, heads * d]`, rows possibly strided; `[tokens, heads * d]` comes back. On a CPU.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, plan: (&Segments, usize)) -> Result<Tensor> {
    for (tensor, what) in [(q, "queries"), (k, "keys"), (v, "values")] {
        require_f32(tensor, what)?;
    }
    let (segments, heads) = plan;
    q.apply3((k, v), &Attention { segments, heads })
}

/// [`attention`] where a row has its query, its key and its value side by side: `[tokens, 3 * heads * d]`.
pub fn self_attention(qkv: &Tensor, plan: (&Segments, usize)) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Tensor::Cuda(qkv) = qkv {
        return super::cuda::self_attention(qkv, plan).map(Tensor::Cuda);
    }
    let (_, width) = qkv.dims2()?;
    if !width.is_multiple_of(3) {
        bail!("{width} features are no queries, keys and values");
    }
    let third = |number: usize| qkv.host()?.narrow(1, number * (width / 3), width / 3).map(Tensor::Host);
    attention(&third(0)?, &third(1)?, &third(2)?, plan)
}

/// [`attention`] of some of a batch's rows: `q`, and which row of the batch its first is. Keys and values come in
/// pieces, which together are all rows of the batch in order.
///
/// `[rows of q, heads * d]` comes back. On a CPU, where threads have rows of their own.
pub fn attention_of_rows(
    (q, first): (&Tensor, usize),
    pieces: &[(Tensor, Tensor)],
    (segments, heads): (&Segments, usize),
) -> Result<Tensor> {
    require_f32(q, "queries")?;
    q.apply1(&AttentionOfRows { first, pieces, plan: Attention { segments, heads } })
}

/// What the CPU side needs beside its result, at most, on each of `threads` threads: the scores of one block of
/// queries, and one head's keys and values in panels, `head_dim` wide.
pub fn attention_scratch_bytes((longest, head_dim): (usize, usize), threads: usize) -> u64 {
    (Scratch::values(longest, head_dim) * threads * size_of::<f32>()) as u64
}

struct Attention<'a> {
    segments: &'a Segments,
    heads: usize,
}

struct AttentionOfRows<'a> {
    first: usize,
    pieces: &'a [(Tensor, Tensor)],
    plan: Attention<'a>,
}

/// Work that one thread does by itself: one head of one sequence.
struct Head {
    /// the sequence's rows
    keys: Range<usize>,
    /// those of them that ask
    queries: Range<usize>,
    /// first column of the head
    column: usize,
}

impl CustomOp3 for Attention<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let q = Rows::<f32>::of(s1, l1, "queries")?;
        let pieces = Pieces::of([(Rows::of(s2, l2, "keys")?, Rows::of(s3, l3, "values")?)])?;
        if q.count != self.segments.total() {
            bail!("attention over {} packed rows was given {} queries", self.segments.total(), q.count);
        }
        self.attend(q, 0, pieces)
    }
}

impl CustomOp1 for AttentionOfRows<'_> {
    fn name(&self) -> &'static str {
        "attention-of-rows"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let q = Rows::<f32>::of(storage, layout, "queries")?;
        let read = self.pieces.iter().map(|(k, v)| Ok((Reading::of(k, "keys")?, Reading::of(v, "values")?)));
        let read = read.collect::<Result<Vec<_>>>()?;
        let rows = read.iter().map(|(k, v)| Ok((k.rows()?, v.rows()?))).collect::<Result<Vec<_>>>()?;
        self.plan.attend(q, self.first, Pieces::of(rows)?)
    }
}

impl Attention<'_> {
    /// `q`: rows of the batch from `first` on.
    fn attend(&self, q: Rows<'_>, first: usize, pieces: Pieces<'_>) -> Result<(CpuStorage, Shape)> {
        let (total, width) = (self.segments.total(), q.width);
        if pieces.count() != total || pieces.0.iter().any(|piece| piece.k.width != width) || first + q.count > total {
            bail!("attention over {total} packed rows was given {} keys for {} queries", pieces.count(), q.count);
        }
        if self.heads == 0 || !width.is_multiple_of(self.heads) {
            bail!("{width} features do not divide into {} heads", self.heads);
        }
        let head_dim = width / self.heads;
        let mut out = Fresh::new((q.count, width));
        let heads = self.heads_of_sequences(head_dim, first..first + q.count);
        let work: usize = heads.iter().map(|head| head.queries.len() * head.keys.len() * head_dim).sum();
        let pass = Pass { q, first, pieces, head_dim, target: Target { start: out.start(), stride: width } };
        let scratch = || Scratch::new(self.segments.longest(), head_dim);
        if work < PARALLEL_WORK || threads() == 1 {
            let mut scratch = scratch();
            heads.iter().for_each(|head| pass.attend(head, &mut scratch));
        } else {
            // `for_each_init` would allocate for every split of the work; blocks of heads, a few for each thread
            heads.par_chunks(heads.len().div_ceil(4 * threads())).for_each(|heads| {
                let mut scratch = scratch();
                heads.iter().for_each(|head| pass.attend(head, &mut scratch));
            });
        }
        #[allow(unsafe_code)]
        // SAFETY: every head of every sequence wrote its columns of its queries' rows, and together they are all.
        Ok(unsafe { out.into_output() })
    }

    /// The heads of every sequence that has queries among these rows.
    fn heads_of_sequences(&self, head_dim: usize, rows: Range<usize>) -> Vec<Head> {
        let asked = self.segments.ranges().filter_map(|keys| {
            let queries = overlap(&keys, &rows);
            (!queries.is_empty()).then_some((keys, queries))
        });
        let heads = |(keys, queries): (Range<usize>, Range<usize>)| {
            (0..self.heads).map(move |head| Head {
                keys: keys.clone(),
                queries: queries.clone(),
                column: head * head_dim,
            })
        };
        asked.flat_map(heads).collect()
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    a.start.max(b.start)..a.end.min(b.end)
}

/// Keys and values of a batch, in the pieces that they were computed in.
struct Pieces<'a>(Vec<Piece<'a>>);

struct Piece<'a> {
    rows: Range<usize>,
    k: Rows<'a>,
    v: Rows<'a>,
}

impl<'a> Pieces<'a> {
    fn of(pieces: impl IntoIterator<Item = (Rows<'a>, Rows<'a>)>) -> Result<Self> {
        let mut all = Pieces(Vec::new());
        for (k, v) in pieces {
            if (k.count, k.width) != (v.count, v.width) {
                bail!("keys are [{}, {}], values [{}, {}]", k.count, k.width, v.count, v.width);
            }
            let first = all.count();
            all.0.push(Piece { rows: first..first + k.count, k, v });
        }
        Ok(all)
    }

    fn count(&self) -> usize {
        self.0.last().map_or(0, |piece| piece.rows.end)
    }

    /// The pieces that hold some of these rows, and which.
    fn of_rows(&self, rows: &Range<usize>) -> impl Iterator<Item = (&Piece<'a>, Range<usize>)> {
        let held = self.0.iter().map(|piece| (piece, overlap(&piece.rows, rows)));
        held.filter(|(_, rows)| !rows.is_empty())
    }
}

/// What a thread needs for one head at a time.
struct Scratch {
    /// `[queries, keys]`
    scores: Vec<f32>,
    /// The keys in panels: `[⌈keys / 16⌉, head_dim, 16]`
    keys: Vec<f32>,
    /// The values in panels where rows of them cannot be read as they lie: `[⌈head_dim / 16⌉, keys, 16]`
    values: Vec<f32>,
}

impl Scratch {
    fn new(longest: usize, head_dim: usize) -> Self {
        let padded = longest.next_multiple_of(PANEL);
        Scratch {
            scores: vec![0.0; QUERY_BLOCK.min(longest) * longest],
            keys: vec![0.0; padded * head_dim],
            values: Vec::new(),
        }
    }

    fn values(longest: usize, head_dim: usize) -> usize {
        let padded = longest.next_multiple_of(PANEL);
        QUERY_BLOCK.min(longest) * longest + padded * head_dim + longest * head_dim.next_multiple_of(PANEL)
    }
}

/// One attention's operands, shared by its threads.
struct Pass<'a> {
    q: Rows<'a>,
    /// The row of the batch that the first query is of.
    first: usize,
    pieces: Pieces<'a>,
    head_dim: usize,
    target: Target,
}

impl Pass<'_> {
    fn attend(&self, head: &Head, scratch: &mut Scratch) {
        let (tokens, d) = (head.keys.len(), self.head_dim);
        let scale = 1.0 / (d as f32).sqrt();
        let tiles = Tiles::best();
        for (piece, rows) in self.pieces.of_rows(&head.keys) {
            for row in rows {
                let key = &piece.k.row(row - piece.rows.start)[head.column..][..d];
                place_in_panels(&mut scratch.keys, d, (row - head.keys.start) * d, key);
            }
        }
        let keys = Right::panels(&scratch.keys, d, tokens);
        let values = self.values(head, &mut scratch.values);
        for first in head.queries.clone().step_by(QUERY_BLOCK) {
            let rows = QUERY_BLOCK.min(head.queries.end - first);
            let at = first - self.first;
            let data = &self.q.data[at * self.q.stride + head.column..];
            let queries = Left { data, rows, inner: d, stride: self.q.stride };
            let scores = &mut scratch.scores[..rows * tokens];
            let mut inverse_sums = [0f32; QUERY_BLOCK];
            let out = self.target.at(at, head.column);
            #[allow(unsafe_code)]
            // SAFETY: `scores` is rows * tokens values of this thread. The rectangle written, these rows of this head's
            // columns, lies within the result (the caller checked every shape) and belongs to this head alone.
            unsafe {
                multiply(tiles, queries, keys, None, Target { start: scores.as_mut_ptr(), stride: tokens });
                exponentiate(scores, (tokens, scale), &mut inverse_sums[..rows]);
                multiply(tiles, Left { data: scores, rows, inner: tokens, stride: tokens }, values, None, out);
                for (row, inverse) in inverse_sums[..rows].iter().enumerate() {
                    let row = std::slice::from_raw_parts_mut(out.at(row, 0).start, d);
                    row.iter_mut().for_each(|x| *x *= inverse);
                }
            }
        }
    }

    /// The head's values as the right side of a product: as they lie, or copied where they are of two pieces, or where
    /// a row of sixteen would reach beyond the head.
    fn values<'a>(&'a self, head: &Head, scratch: &'a mut Vec<f32>) -> Right<'a> {
        let (tokens, d) = (head.keys.len(), self.head_dim);
        let whole = self.pieces.of_rows(&head.keys).find(|(_, rows)| rows.len() == tokens);
        if let Some((piece, rows)) = whole.filter(|_| d.is_multiple_of(PANEL)) {
            let data = &piece.v.data[(rows.start - piece.rows.start) * piece.v.stride + head.column..];
            return Right { data, inner: tokens, columns: d, panel_stride: PANEL, row_stride: piece.v.stride };
        }
        // What stands beyond the head's columns is never used.
        scratch.resize(scratch.len().max(tokens * d.next_multiple_of(PANEL)), 0.0);
        for (piece, rows) in self.pieces.of_rows(&head.keys) {
            for row in rows {
                let values = &piece.v.row(row - piece.rows.start)[head.column..][..d];
                for (panel, values) in values.chunks(PANEL).enumerate() {
                    let at = panel * tokens + row - head.keys.start;
                    scratch[at * PANEL..][..values.len()].copy_from_slice(values);
                }
            }
        }
        Right::panels(scratch, tokens, d)
    }
}

wide! {
    /// `e^(scale (x − max))` of each row of `keys` scores in place, and the inverse of each row's sum.
    fn exponentiate<FMA>(scores: &mut [f32], plan: (usize, f32), inverse_sums: &mut [f32]) {
        let (keys, scale) = plan;
        for (row, inverse) in scores.chunks_exact_mut(keys).zip(inverse_sums) {
            let max = max_of(row);
            for x in row.iter_mut() {
                *x = exp::<FMA>((*x - max) * scale);
            }
            *inverse = 1.0 / super::simd::sum_of(row, |x| x);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ops::Device;
    use crate::ops::testing::{assert_close, columns, contiguous, matrix, values};

    /// The definition, in f64, one query of one head at a time.
    fn naive(q: &Tensor, k: &Tensor, v: &Tensor, (segments, heads): (&Segments, usize)) -> Vec<f64> {
        let width = q.dims2().unwrap().1;
        let d = width / heads;
        let (q, k, v) = (values(q), values(k), values(v));
        let mut out = vec![0.0; q.len()];
        for range in segments.ranges() {
            for (head, i) in (0..heads).flat_map(|head| range.clone().map(move |i| (head, i))) {
                let at = |x: &[f64], row: usize, c: usize| x[row * width + head * d + c];
                let dot = |j: usize| (0..d).map(|c| at(&q, i, c) * at(&k, j, c)).sum::<f64>() / (d as f64).sqrt();
                let weights: Vec<f64> = range.clone().map(|j| dot(j).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for c in 0..d {
                    let mixed: f64 = range.clone().zip(&weights).map(|(j, w)| w * at(&v, j, c)).sum();
                    out[i * width + head * d + c] = mixed / sum;
                }
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn ragged_batches_match_the_definition(
            lengths in prop::collection::vec(0usize..150, 1..6), heads in 1usize..5, d in 1usize..40, seed: u64,
        ) {
            let segments = Segments::of(lengths);
            let [q, k, v] = [0, 1, 2].map(|i| matrix(segments.total(), heads * d, seed ^ i));
            let got = attention(&q, &k, &v, (&segments, heads)).unwrap();
            assert_close(&got, &naive(&q, &k, &v, (&segments, heads)), 1e-5);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]
        #[test]
        fn thirds_of_a_row_are_its_query_key_and_value(
            lengths in prop::collection::vec(0usize..90, 1..6), heads in 1usize..5, d in 1usize..40, seed: u64,
        ) {
            // Of no rows there are no thirds to be cut out here: below.
            let segments = Segments::of(lengths.into_iter().chain([1]));
            let qkv = matrix(segments.total(), 3 * heads * d, seed);
            let [q, k, v] = [0, 1, 2].map(|third| contiguous(&columns(&qkv, third * heads * d, heads * d)));
            let got = self_attention(&qkv, (&segments, heads)).unwrap();
            assert_close(&got, &naive(&q, &k, &v, (&segments, heads)), 1e-5);
        }
    }

    #[test]
    fn no_rows_have_no_thirds() {
        let segments = Segments::of([0, 0]);
        let got = self_attention(&matrix(0, 3 * 24, 0), (&segments, 2)).unwrap();
        assert_eq!(got.dims(), [0, 24]);
    }

    #[test]
    fn rows_that_are_no_thirds_are_refused() {
        let segments = Segments::of([2]);
        assert!(self_attention(&matrix(2, 10, 0), (&segments, 1)).is_err());
        assert!(self_attention(&matrix(2, 12, 0), (&segments, 3)).is_err());
        assert!(self_attention(&matrix(3, 12, 0), (&segments, 2)).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn some_rows_of_a_batch_are_what_they_are_of_the_whole(
            lengths in prop::collection::vec(0usize..90, 1..6), heads in 1usize..4, d in 1usize..40,
            cuts in prop::collection::vec(0.0..1.0f64, 0..3), seed: u64,
        ) {
            let segments = Segments::of(lengths);
            let total = segments.total();
            let [q, k, v] = [0, 1, 2].map(|i| matrix(total, heads * d, seed ^ i));
            let whole = attention(&q, &k, &v, (&segments, heads)).unwrap();
            let mut cuts: Vec<usize> = cuts.iter().map(|at| (at * total as f64) as usize).collect();
            cuts.extend([0, total]);
            cuts.sort_unstable();
            let parts: Vec<(usize, usize)> = cuts.windows(2).map(|cut| (cut[0], cut[1] - cut[0])).collect();
            let rows = |x: &Tensor, (first, count)| x.narrow_rows(first, count).unwrap();
            let pieces: Vec<_> = parts.iter().map(|part| (rows(&k, *part), rows(&v, *part))).collect();
            for part in parts {
                let got = attention_of_rows((&rows(&q, part), part.0), &pieces, (&segments, heads)).unwrap();
                prop_assert_eq!(values(&got), values(&rows(&whole, part)));
            }
            prop_assert!(pieces.len() < 2 || attention_of_rows((&q, 0), &pieces[1..], (&segments, heads)).is_err() || pieces[0].0.dims()[0] == 0);
        }
    }

    #[test]
    fn several_threads_give_exactly_what_one_gives() {
        let segments = Segments::of([200, 3, 129]);
        let [q, k, v] = [1, 2, 3].map(|i| matrix(332, 64, i));
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| values(&attention(&q, &k, &v, (&segments, 2)).unwrap()))
        };
        assert_eq!(on(1), on(3));
    }

    #[test]
    fn large_scores_do_not_overflow_and_nan_reaches_only_its_own_sequence() {
        let segments = Segments::of([2, 2]);
        let large = values(&matrix(4, 8, 1)).into_iter().map(|x| x as f32 * 1e3).collect();
        let q = Tensor::from_vec(large, (4, 8), &Device::Cpu).unwrap();
        assert!(values(&attention(&q, &q, &q, (&segments, 1)).unwrap()).iter().all(|x| x.is_finite()));
        let mut poisoned: Vec<f32> = values(&q).iter().map(|&x| x as f32).collect();
        poisoned[3] = f32::NAN;
        let q = Tensor::from_vec(poisoned, (4, 8), &Device::Cpu).unwrap();
        let out = values(&attention(&q, &q, &q, (&segments, 1)).unwrap());
        assert!(out[..8].iter().all(|x| x.is_nan()) && out[16..].iter().all(|x| x.is_finite()));
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let segments = Segments::of([4]);
        let x = matrix(4, 6, 1);
        assert!(attention(&x, &x, &x, (&segments, 4)).is_err());
        assert!(attention(&x, &x, &x, (&segments, 0)).is_err());
        assert!(attention(&x, &matrix(3, 6, 1), &x, (&segments, 2)).is_err());
        assert!(attention(&x, &x, &matrix(4, 8, 1), (&segments, 2)).is_err());
        assert!(attention(&x, &x, &x, (&Segments::of([5]), 2)).is_err());
    }
}
