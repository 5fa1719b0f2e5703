//! Causal attention of a step's rows over the blocks of their sequences, with grouped query heads.
//!
//! Keys go by in groups of 64, counted from the beginning of the sequence, with a running softmax (Milakov and Gimelshein,
//! "Online normalizer calculation for softmax", 2018). Every row takes the same keys in the same order and the same grouping
//! however many rows stand beside it and whichever step it is in; keys that it must not see weigh exactly nothing. So a
//! row is the same, to the bit, in a batch or alone, in one piece of a prompt or another.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, bail};
use rayon::prelude::*;

use super::super::cpu::{Fresh, Rows, require_f32, threads};
use super::super::matmul::{Element, Left, PANEL, Right, Target, Tiles, multiply, multiply_onto};
use super::super::simd::{exp, max_of, wide};
use super::super::tensor::Tensor;
use super::cache::{Head, KvCache, KvSpec, keys_and_values};
use super::{Run, Runs};

/// Keys between two looks at the softmax.
const GROUP: usize = 64;

/// Rows (a query of one head each) whose scores are held at once: with queries and sums 72 KiB for heads of 64.
const ROWS: usize = 96;

/// Multiply-adds below which waking another thread costs more than it saves. They wait for memory, so that they take longer
/// than those of a product.
const PARALLEL_WORK: usize = 512 << 10;

/// `softmax(q kᵀ / √d) v` for each head of each row: over its own position and those before it or, with a window of
/// so many, over the last of them.
///
/// `q`: `[rows, heads * head_dim]`, where query head `i` reads head `i / (heads / kv heads)` of the cache's layer; the
/// keys and values of every row are there already. `[rows, heads * head_dim]` comes back.
pub fn paged_attention(
    q: &Tensor,
    runs: &Runs<'_>,
    window: Option<usize>,
    (cache, layer): (&KvCache, usize),
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let (Tensor::Cuda(q), Some(held)) = (q, cache.on_gpu()) {
        let cache = (held, cache.spec(), layer);
        return super::super::cuda::paged_attention(q, runs.planned()?, window, cache).map(Tensor::Cuda);
    }
    require_f32(q, "queries")?;
    q.apply1(&PagedAttention { runs, window, cache, layer })
}

/// What it needs beside its result, at most, on each of `threads` threads, for so many query heads of `head_dim` for each
/// head of the cache.
pub fn paged_scratch_bytes((group, head_dim): (usize, usize), threads: usize) -> u64 {
    let (rows, stride) = (ROWS.max(group), head_dim.next_multiple_of(PANEL));
    let row = head_dim + GROUP + stride + 1 + PANEL;
    (rows * row * threads * size_of::<f32>()) as u64
}

struct PagedAttention<'a> {
    runs: &'a Runs<'a>,
    window: Option<usize>,
    cache: &'a KvCache,
    layer: usize,
}

impl CustomOp1 for PagedAttention<'_> {
    fn name(&self) -> &'static str {
        "paged-attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let q = Rows::<f32>::of(storage, layout, "queries")?;
        let spec = self.cache.spec();
        let group = q.width / (spec.heads * spec.head_dim).max(1);
        if q.count != self.runs.total() || group == 0 || q.width != group * spec.heads * spec.head_dim {
            bail!("[{}, {}] queries for {} rows of {spec:?}", q.count, q.width, self.runs.total());
        }
        let mut out = Fresh::new((q.count, q.width));
        let step = Step {
            q,
            group,
            head_dim: spec.head_dim,
            stride: spec.value_stride(),
            spec,
            window: self.window.map_or(usize::MAX, |window| window.max(1)),
            heads: (0..spec.heads).map(|head| self.cache.head(self.layer, head)).collect::<Result<_>>()?,
            target: Target { start: out.start(), stride: q.width },
        };
        step.run(&step.tasks(self.runs));
        #[allow(unsafe_code)]
        // SAFETY: the tasks together are every head of every row, and each wrote its part.
        Ok(unsafe { out.into_output() })
    }
}

/// Work that one thread does by itself: some rows of a run, for one head of the cache and the query heads that read it.
struct Task<'a> {
    run: &'a Run<'a>,
    /// The step's row of the first of them.
    first: usize,
    positions: Range<usize>,
    head: usize,
}

struct Step<'a> {
    q: Rows<'a>,
    /// Query heads for each head of the cache.
    group: usize,
    head_dim: usize,
    /// From one token's values to the next one's.
    stride: usize,
    spec: &'a KvSpec,
    window: usize,
    heads: Vec<Head<'a>>,
    target: Target,
}

/// What a thread needs for one task at a time.
struct Scratch {
    /// `[rows, head_dim]`, scaled
    queries: Vec<f32>,
    /// `[rows, 64]`: scores, then weights
    scores: Vec<f32>,
    /// `[rows, head_dim filled up]`: weighted values
    sums: Vec<f32>,
    /// Of each row: the largest score so far, and the sum of weights in sixteen parts.
    softmax: Vec<(f32, [f32; PANEL])>,
}

impl Step<'_> {
    /// Every head of every row once, the longest first.
    fn tasks<'a>(&self, runs: &'a Runs<'a>) -> Vec<(usize, Task<'a>)> {
        let most = (ROWS / self.group).max(1);
        let mut tasks = Vec::new();
        for (first, run) in runs.placed() {
            let count = run.tokens.div_ceil(most);
            for part in 0..count {
                // as equal as they can be
                let (from, to) = (run.tokens * part / count, run.tokens * (part + 1) / count);
                for head in 0..self.heads.len() {
                    let positions = run.from + from..run.from + to;
                    let keys = positions.end.min(self.window.saturating_add(positions.len()));
                    let cost = 2 * positions.len() * self.group * keys * self.head_dim;
                    tasks.push((cost, Task { run, first: first + from, positions, head }));
                }
            }
        }
        tasks.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
        tasks
    }

    fn run(&self, tasks: &[(usize, Task<'_>)]) {
        let work: usize = tasks.iter().map(|(cost, _)| cost).sum();
        let threads = if work < PARALLEL_WORK { 1 } else { threads().min(tasks.len()) };
        if threads < 2 {
            let mut scratch = self.scratch();
            tasks.iter().for_each(|(_, task)| self.attend(task, &mut scratch));
            return;
        }
        // Who is done takes the next: tasks differ too much to be dealt out beforehand.
        let next = AtomicUsize::new(0);
        (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
            let mut scratch = self.scratch();
            while let Some((_, task)) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.attend(task, &mut scratch);
            }
        });
    }

    fn scratch(&self) -> Scratch {
        let rows = ROWS.max(self.group);
        Scratch {
            queries: vec![0.0; rows * self.head_dim],
            scores: vec![0.0; rows * GROUP],
            sums: vec![0.0; rows * self.stride],
            softmax: vec![(f32::NEG_INFINITY, [0.0; PANEL]); rows],
        }
    }

    /// The first position that one may see.
    fn lowest(&self, position: usize) -> usize {
        (position + 1).saturating_sub(self.window)
    }

    fn attend(&self, task: &Task<'_>, scratch: &mut Scratch) {
        let positions = &task.positions;
        let rows = positions.len() * self.group;
        self.begin(task, scratch);
        let mut base = self.lowest(positions.start) / GROUP * GROUP;
        while base < positions.end {
            // Rows that see some of these keys: from `base` on, and not yet past the window.
            let from = positions.start.max(base);
            let to = positions.end.min(self.window.saturating_add(base + GROUP - 1));
            match self.heads[task.head] {
                Head::F32(head) => self.group_of_keys(task, head, (base, from..to), scratch),
                Head::F16(head) => self.group_of_keys(task, head, (base, from..to), scratch),
            }
            base += GROUP;
        }
        self.finish(task, rows, scratch);
    }

    /// The queries as the products take them, and nothing seen yet.
    fn begin(&self, task: &Task<'_>, scratch: &mut Scratch) {
        let (d, scale) = (self.head_dim, 1.0 / (self.head_dim as f32).sqrt());
        let rows = task.positions.len() * self.group;
        let width = self.group * d;
        for (i, queries) in scratch.queries[..rows * d].chunks_exact_mut(width).enumerate() {
            let row = &self.q.row(task.first + i)[task.head * width..][..width];
            queries.iter_mut().zip(row).for_each(|(to, from)| *to = from * scale);
        }
        scratch.sums[..rows * self.stride].fill(0.0);
        scratch.softmax[..rows].fill((f32::NEG_INFINITY, [0.0; PANEL]));
    }

    /// Lets the rows at positions `seen` have the keys of `base..base + 64`. `head`: all blocks of the task's head.
    fn group_of_keys<W: Element>(
        &self,
        task: &Task<'_>,
        head: &[W],
        (base, seen): (usize, Range<usize>),
        scratch: &mut Scratch,
    ) {
        let (d, stride, tiles) = (self.head_dim, self.stride, Tiles::best());
        let (first, rows) = ((seen.start - task.positions.start) * self.group, seen.len() * self.group);
        let held = self.lowest(seen.start).max(base) / PANEL..seen.end.min(base + GROUP).div_ceil(PANEL);
        let left = Left { data: &scratch.queries[first * d..], rows, inner: d, stride: d };
        let scores = &mut scratch.scores[first * GROUP..][..rows * GROUP];
        for block in held.clone() {
            let (keys, _) = keys_and_values(head, task.run.blocks[block], self.spec);
            #[allow(unsafe_code)]
            // SAFETY: `scores` is `rows` rows of 64 values of this thread, of which sixteen are written from here on.
            unsafe {
                let target = Target { start: scores.as_mut_ptr(), stride: GROUP }.at(0, block * PANEL - base);
                multiply(tiles, left, Right::panels(keys, d, PANEL), None, target);
            }
        }
        let sums = &mut scratch.sums[first * stride..][..rows * stride];
        let by = Seen { first: seen.start, group: self.group, base, window: self.window };
        soften(scores, &mut scratch.softmax[first..][..rows], sums, &by);
        for block in held {
            let (_, values) = keys_and_values(head, task.run.blocks[block], self.spec);
            // Nothing is read beyond what was written: a weight of zero does not undo what may be there.
            let inner = PANEL.min(seen.end - block * PANEL);
            let left = Left { data: &scores[block * PANEL - base..], rows, inner, stride: GROUP };
            let right = Right { data: values, inner, columns: stride, panel_stride: PANEL, row_stride: stride };
            #[allow(unsafe_code)]
            // SAFETY: `sums` is `rows` rows of `stride` values of this thread, which were written.
            unsafe {
                multiply_onto(tiles, left, right, Target { start: sums.as_mut_ptr(), stride });
            }
        }
    }

    fn finish(&self, task: &Task<'_>, rows: usize, scratch: &Scratch) {
        let d = self.head_dim;
        for row in 0..rows {
            let column = (task.head * self.group + row % self.group) * d;
            let sums = &scratch.sums[row * self.stride..][..d];
            let inverse = 1.0 / whole(&scratch.softmax[row].1);
            #[allow(unsafe_code)]
            // SAFETY: this row's columns of this head lie within the result, whose shape is the queries', and are this
            // task's alone.
            let out = unsafe {
                let start = self.target.at(task.first + row / self.group, column).start;
                std::slice::from_raw_parts_mut(start.cast::<std::mem::MaybeUninit<f32>>(), d)
            };
            out.iter_mut().zip(sums).for_each(|(to, from)| {
                to.write(from * inverse);
            });
        }
    }
}

/// The sum of sixteen parts, always in the same order.
fn whole(parts: &[f32; PANEL]) -> f32 {
    let mut parts = *parts;
    let mut width = PANEL / 2;
    while width > 0 {
        for i in 0..width {
            parts[i] += parts[i + width];
        }
        width /= 2;
    }
    parts[0]
}

/// Which of 64 keys a row sees.
struct Seen {
    /// Position of the first row; `group` rows are at the same position.
    first: usize,
    group: usize,
    /// Position of the first key.
    base: usize,
    window: usize,
}

impl Seen {
    #[inline(always)]
    fn by(&self, row: usize) -> Range<usize> {
        let position = self.first + row / self.group;
        let lowest = (position + 1).saturating_sub(self.window).max(self.base);
        lowest - self.base..GROUP.min(position + 1 - self.base)
    }
}

wide! {
    /// Turns rows of 64 scores into weights, and what was summed before into the same measure.
    fn soften<FMA>(scores: &mut [f32], softmax: &mut [(f32, [f32; PANEL])], sums: &mut [f32], seen: &Seen) {
        let stride = sums.len() / softmax.len();
        let rows = scores.chunks_exact_mut(GROUP).zip(softmax).zip(sums.chunks_exact_mut(stride));
        for (row, ((scores, (max, parts)), sums)) in rows.enumerate() {
            let Range { start, end } = seen.by(row);
            scores[..start].fill(f32::NEG_INFINITY);
            scores[end..].fill(f32::NEG_INFINITY);
            let largest = max_of(scores);
            if largest > *max {
                let factor = exp::<FMA>(*max - largest);
                sums.iter_mut().for_each(|x| *x *= factor);
                parts.iter_mut().for_each(|x| *x *= factor);
                *max = largest;
            }
            for x in scores.iter_mut() {
                *x = exp::<FMA>(*x - *max);
            }
            scores[..start].fill(0.0);
            scores[end..].fill(0.0);
            for sixteen in scores.chunks_exact(PANEL) {
                parts.iter_mut().zip(sixteen).for_each(|(part, x)| *part += x);
            }
        }
    }
}
