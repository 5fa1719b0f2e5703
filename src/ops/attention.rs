//! Bidirectional attention over packed sequences of different lengths.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use super::cpu::{Rows, output, require_f32};
use super::segments::Segments;
use super::simd::{exp, max_of, wide};

/// Queries whose scores are held at once: a block against 512 keys is 128 KiB, within a core's L2 cache.
const QUERY_BLOCK: usize = 64;

/// Multiply-adds below which waking another thread costs more than it saves.
const PARALLEL_WORK: usize = 256 * 1024;

/// `softmax(q kᵀ / √d) v` for each head of each sequence; no row sees another sequence.
///
/// `q`, `k`, `v`: `[tokens, heads * d]`, rows possibly strided; `[tokens, heads * d]` comes back.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, plan: (&Segments, usize)) -> Result<Tensor> {
    for (tensor, what) in [(q, "queries"), (k, "keys"), (v, "values")] {
        require_f32(tensor, what)?;
    }
    let (segments, heads) = plan;
    q.apply_op3_no_bwd(k, v, &Attention { segments, heads })
}

/// What the CPU side needs beside its result, at most: scores of one block of queries for each thread.
pub fn attention_scratch_bytes(longest: usize, threads: usize) -> u64 {
    (QUERY_BLOCK.min(longest) * longest * threads * size_of::<f32>()) as u64
}

struct Attention<'a> {
    segments: &'a Segments,
    heads: usize,
}

/// Work that one thread does by itself: some queries of one head of one sequence.
struct Tile {
    /// first row of the sequence, and of these queries
    start: usize,
    query: usize,
    queries: usize,
    keys: usize,
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
        let k = Rows::<f32>::of(s2, l2, "keys")?;
        let v = Rows::<f32>::of(s3, l3, "values")?;
        let (total, width) = (self.segments.total(), q.width);
        if [q, k, v].iter().any(|x| (x.count, x.width) != (total, width)) {
            bail!("attention over {total} packed rows was given {:?}, {:?}, {:?}", l1.dims(), l2.dims(), l3.dims());
        }
        if self.heads == 0 || !width.is_multiple_of(self.heads) {
            bail!("{width} features do not divide into {} heads", self.heads);
        }
        let head_dim = width / self.heads;
        let mut out = vec![0f32; total * width];
        let tiles = self.tiles(head_dim);
        let work: usize = tiles.iter().map(|tile| tile.queries * tile.keys * head_dim).sum();
        let scratch = || vec![0f32; QUERY_BLOCK.min(self.segments.longest()) * self.segments.longest()];
        let target = Target { out: out.as_mut_ptr(), width, head_dim };
        if work < PARALLEL_WORK || rayon::current_num_threads() == 1 {
            let mut scores = scratch();
            tiles.iter().for_each(|tile| target.attend(tile, [&q, &k, &v], &mut scores));
        } else {
            // `for_each_init` would allocate for every split of the work; blocks of tiles, one for each thread
            let block = tiles.len().div_ceil(4 * rayon::current_num_threads());
            tiles.par_chunks(block).for_each(|tiles| {
                let mut scores = scratch();
                tiles.iter().for_each(|tile| target.attend(tile, [&q, &k, &v], &mut scores));
            });
        }
        Ok(output(out, (total, width)))
    }
}

impl Attention<'_> {
    fn tiles(&self, head_dim: usize) -> Vec<Tile> {
        let mut tiles = Vec::new();
        for range in self.segments.ranges() {
            for head in 0..self.heads {
                for query in range.clone().step_by(QUERY_BLOCK) {
                    let queries = QUERY_BLOCK.min(range.end - query);
                    tiles.push(Tile { start: range.start, query, queries, keys: range.len(), column: head * head_dim });
                }
            }
        }
        tiles
    }
}

/// The result: every tile writes its own rows and columns of it.
struct Target {
    out: *mut f32,
    width: usize,
    head_dim: usize,
}

#[allow(unsafe_code)]
// SAFETY: threads share the pointer only to write the disjoint rectangles of their tiles (see `attend`), and the
// vector behind it outlives the parallel loop.
unsafe impl Sync for Target {}

impl Target {
    fn attend(&self, tile: &Tile, [q, k, v]: [&Rows<'_>; 3], scores: &mut [f32]) {
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let (m, n, d) = (tile.queries, tile.keys, self.head_dim);
        let scores = &mut scores[..m * n];
        let at = |rows: &Rows<'_>, row: usize| rows.data[row * rows.stride + tile.column..].as_ptr();
        let (no, serial) = (false, Parallelism::None);
        #[allow(unsafe_code)]
        // SAFETY: `scores` is m * n values. q has m rows from `query`, k n rows from `start`, each with d columns
        // from `column` at its stride: the caller checked every shape against the segments and the heads.
        unsafe {
            let (q, q_stride) = (at(q, tile.query), q.stride as isize);
            let (k, k_stride) = (at(k, tile.start), k.stride as isize);
            let out = scores.as_mut_ptr();
            gemm(m, n, d, out, 1, n as isize, no, q, 1, q_stride, k, k_stride, 1, 0f32, scale, no, no, no, serial);
        }
        let mut inverse_sums = [0f32; QUERY_BLOCK];
        exponentiate(scores, n, &mut inverse_sums[..m]);
        #[allow(unsafe_code)]
        // SAFETY: as above; v has n rows from `start`. The rectangle written, rows `query..query + m` and columns
        // `column..column + d`, lies within total * width values and belongs to this tile alone.
        unsafe {
            let (v, v_stride) = (at(v, tile.start), v.stride as isize);
            let out = self.out.add(tile.query * self.width + tile.column);
            let (scores, stride) = (scores.as_ptr(), self.width as isize);
            gemm(m, d, n, out, 1, stride, no, scores, 1, n as isize, v, 1, v_stride, 0f32, 1f32, no, no, no, serial);
            for (i, inverse) in inverse_sums[..m].iter().enumerate() {
                let row = std::slice::from_raw_parts_mut(out.add(i * self.width), d);
                row.iter_mut().for_each(|x| *x *= inverse);
            }
        }
    }
}

wide! {
    /// `e^(x − max)` of each row of `keys` scores in place, and the inverse of each row's sum.
    fn exponentiate<FMA>(scores: &mut [f32], keys: usize, inverse_sums: &mut [f32]) {
        for (row, inverse) in scores.chunks_exact_mut(keys).zip(inverse_sums) {
            let max = max_of(row);
            for x in row.iter_mut() {
                *x = exp::<FMA>(*x - max);
            }
            *inverse = 1.0 / super::simd::sum_of(row, |x| x);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ops::testing::{assert_close, matrix, values};

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

    #[test]
    fn queries_keys_and_values_may_be_slices_of_one_projection() {
        let segments = Segments::of([70, 1, 13]);
        let all = matrix(84, 3 * 24, 9);
        let [q, k, v] = [0, 1, 2].map(|i| all.narrow(1, i * 24, 24).unwrap());
        let [qc, kc, vc] = [&q, &k, &v].map(|x| x.contiguous().unwrap());
        let got = attention(&q, &k, &v, (&segments, 3)).unwrap();
        assert_close(&got, &naive(&qc, &kc, &vc, (&segments, 3)), 1e-5);
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
        let q = (matrix(4, 8, 1) * 1e3).unwrap();
        assert!(values(&attention(&q, &q, &q, (&segments, 1)).unwrap()).iter().all(|x| x.is_finite()));
        let mut poisoned: Vec<f32> = values(&q).iter().map(|&x| x as f32).collect();
        poisoned[3] = f32::NAN;
        let q = Tensor::from_vec(poisoned, (4, 8), q.device()).unwrap();
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
