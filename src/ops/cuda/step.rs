//! A decoder's step as kernels read it: which rows are whose and where their keys go, and what each block has to attend to. Pure.
//!
//! All of it is one table, made on the host once a step and uploaded in one piece. `kernels/paged_attention.cuh` says what
//! runs, tables of blocks and items are.

use std::ops::Range;

use candle_core::DType;

use super::kernels::Kernel;
use crate::ops::{KvSpec, Run};

/// Keys of a part.
const PART: usize = 256;
/// What kernels read in place of a part by whom all parts are done.
const ALL_PARTS: u32 = u32::MAX;
/// Bytes that parts of one launch take, where no sequence by itself takes more.
const PARTS_ROOM: u64 = 16 << 20;
/// Rows of queries that have their parts apart, in one block each.
const ROWS: usize = 16;
/// Sections of the table begin on such borders, in words: of 16 bytes.
const BORDER: usize = 4;

/// What every layer that attends alike launches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Launch {
    pub(super) kernel: Kernel,
    /// Where in the table its items begin, and how many they are.
    pub(super) items: usize,
    pub(super) count: usize,
    /// Rows that a part in memory has room for, and parts.
    pub(super) kept: usize,
    pub(super) parts: usize,
}

/// What heads a step attends with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads<'a> {
    pub(super) spec: &'a KvSpec,
    /// Query heads for each head of the cache.
    pub(super) group: usize,
    /// Of every layer.
    pub(super) windows: &'a [Option<usize>],
    /// Radians a position, of each pair.
    pub(super) frequencies: &'a [f32],
}

/// Where in the table what is, in words.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) words: Vec<u32>,
    /// Query heads for each head of the cache.
    pub(super) group: usize,
    pub(super) positions: usize,
    pub(super) places: usize,
    pub(super) frequencies: usize,
    pub(super) runs: usize,
    pub(super) blocks: usize,
    pub(super) finished: usize,
    /// For each window that a layer has.
    pub(super) launches: Vec<(Option<usize>, Vec<Launch>)>,
    /// f32 values that parts of any launch take.
    pub(super) parts: usize,
}

/// From a row of a part in memory to the next, f32 values.
fn part_width(head_dim: usize) -> usize {
    head_dim.next_multiple_of(4) + 4
}

/// Bytes that parts in memory take at most, for sequences of up to `context` tokens.
pub(in crate::ops) fn parts_bytes(spec: &KvSpec, context: usize) -> u64 {
    let longest = (context.div_ceil(PART) + 1) * spec.heads * ROWS * part_width(spec.head_dim) * size_of::<f32>();
    PARTS_ROOM.max(longest as u64)
}

impl Step {
    pub(super) fn of(runs: &[Run<'_>], heads: Heads<'_>) -> Step {
        let mut step = Step {
            words: Vec::new(),
            group: heads.group,
            positions: 0,
            places: 0,
            frequencies: 0,
            runs: 0,
            blocks: 0,
            finished: 0,
            launches: Vec::new(),
            parts: 0,
        };
        let place = |run: &Run<'_>, position: usize| {
            run.blocks[position / KvSpec::BLOCK_TOKENS] * KvSpec::BLOCK_TOKENS as u32
                + (position % KvSpec::BLOCK_TOKENS) as u32
        };
        let positions = runs.iter().flat_map(Run::positions).map(|position| position as u32);
        step.positions = step.section(positions.collect::<Vec<_>>());
        let places = runs.iter().flat_map(|run| run.positions().map(move |position| place(run, position)));
        step.places = step.section(places.collect::<Vec<_>>());
        step.frequencies = step.section(heads.frequencies.iter().map(|frequency| frequency.to_bits()).collect());
        let (mut described, mut blocks, mut row) = (Vec::new(), Vec::new(), 0);
        for run in runs {
            described.extend([row, run.from as u32, run.tokens as u32, blocks.len() as u32]);
            row += run.tokens as u32;
            blocks.extend(&run.blocks[..run.positions().end.div_ceil(KvSpec::BLOCK_TOKENS)]);
            blocks.resize(blocks.len().next_multiple_of(BORDER), 0);
        }
        step.runs = step.section(described);
        step.blocks = step.section(blocks);
        for window in heads.windows {
            if !step.launches.iter().any(|(known, _)| known == window) {
                let launches = step.attend(runs, &heads, *window);
                step.launches.push((*window, launches));
            }
        }
        let all = || step.launches.iter().flat_map(|(_, launches)| launches);
        let finished = all().map(|launch| launch.parts * heads.spec.heads).max().unwrap_or(0);
        let of_head = heads.spec.heads * part_width(heads.spec.head_dim);
        step.parts = all().map(|launch| launch.parts * launch.kept * of_head).max().unwrap_or(0);
        step.finished = step.section(vec![0; finished]);
        step
    }

    fn section(&mut self, words: Vec<u32>) -> usize {
        let at = self.words.len();
        self.words.extend(words);
        self.words.resize(self.words.len().next_multiple_of(BORDER), 0);
        at
    }

    /// Few rows of queries have their parts apart, many have blocks enough.
    fn attend(&mut self, runs: &[Run<'_>], heads: &Heads<'_>, window: Option<usize>) -> Vec<Launch> {
        let (for_few, (for_many, rows_of_block)) = kernels(heads.spec);
        let mut launches = Vec::new();
        let mut few = Few { items: Vec::new(), kept: 0, parts: 0 };
        let mut many = Vec::new();
        let of_row = heads.spec.heads * part_width(heads.spec.head_dim) * size_of::<f32>();
        for (number, run) in runs.iter().enumerate() {
            let rows = run.tokens * heads.group;
            if rows > ROWS {
                for first in (0..rows).step_by(rows_of_block) {
                    let last = (first + rows_of_block).min(rows) - 1;
                    let keys = seen(run, (first / heads.group, last / heads.group), window);
                    many.push((keys.len(), [number as u32, first as u32, ALL_PARTS, 0]));
                }
                continue;
            }
            let keys = seen(run, (0, run.tokens - 1), window);
            let parts = keys.start / PART..keys.end.div_ceil(PART);
            let together = (few.parts + parts.len()) * few.kept.max(rows) * of_row;
            if few.parts > 0 && together as u64 > PARTS_ROOM {
                launches.push(self.launch(for_few, std::mem::take(&mut few)));
            }
            few.add((number, rows), parts);
        }
        if few.parts > 0 {
            launches.push(self.launch(for_few, few));
        }
        if !many.is_empty() {
            // The longest first: blocks start in the order of their items.
            many.sort_by_key(|(keys, _)| std::cmp::Reverse(*keys));
            let items = many.into_iter().map(|(_, item)| item).collect();
            launches.push(self.launch(for_many, Few { items, kept: 0, parts: 0 }));
        }
        launches
    }

    fn launch(&mut self, kernel: Kernel, few: Few) -> Launch {
        let count = few.items.len();
        let items = self.section(few.items.into_flattened());
        Launch { kernel, items, count, kept: few.kept, parts: few.parts }
    }
}

/// Items whose parts are left in memory.
#[derive(Default)]
struct Few {
    items: Vec<[u32; 4]>,
    kept: usize,
    parts: usize,
}

impl Few {
    fn add(&mut self, (run, rows): (usize, usize), parts: Range<usize>) {
        let first = self.parts as u32;
        self.items.extend(parts.clone().map(|part| [run as u32, 0, part as u32, first]));
        self.parts += parts.len();
        self.kept = self.kept.max(rows);
    }
}

/// For few rows of queries; and for many, with the rows of a block.
fn kernels(spec: &KvSpec) -> (Kernel, (Kernel, usize)) {
    match (spec.dtype, spec.head_dim) {
        (DType::F16 | DType::BF16, 64) => (Kernel::Decode64, (Kernel::Prefill64, 64)),
        (DType::F16 | DType::BF16, 128) => (Kernel::Decode128, (Kernel::Prefill128, 64)),
        (_, ..=128) => (Kernel::Paged128, (Kernel::Paged128, ROWS)),
        _ => (Kernel::Paged256, (Kernel::Paged256, ROWS)),
    }
}

/// The keys that any of these tokens of a run sees.
fn seen(run: &Run<'_>, (first, last): (usize, usize), window: Option<usize>) -> Range<usize> {
    let lowest = window.map_or(0, |window| (run.from + first + 1).saturating_sub(window.max(1)));
    lowest..run.from + last + 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec() -> KvSpec {
        KvSpec { layers: 1, heads: 2, head_dim: 64, dtype: DType::F32, block_tokens: 16 }
    }

    /// What kernels make of an item: the run, its rows, and the keys of its part or of all.
    fn items(step: &Step, launch: &Launch) -> Vec<[u32; 4]> {
        step.words[launch.items..][..4 * launch.count].as_chunks::<4>().0.to_vec()
    }

    proptest! {
        #[test]
        fn every_row_has_its_keys_once_and_parts_that_lie_apart(
            tensor_cores: bool, lengths in prop::collection::vec((0usize..3000, 1usize..90), 0..6), group in 1usize..9, window in 0usize..700,
        ) {
            let blocks: Vec<u32> = (0..200).collect();
            let runs: Vec<Run<'_>> =
                lengths.iter().map(|&(from, tokens)| Run { tokens, from, blocks: &blocks }).collect();
            let windows = [None, Some(window.max(1)), None];
            let dtype = if tensor_cores { DType::BF16 } else { DType::F32 };
            let (spec, many) = (KvSpec { dtype, ..spec() }, if tensor_cores { 64 } else { ROWS });
            let step = Step::of(&runs, Heads { spec: &spec, group, windows: &windows, frequencies: &[1.0] });
            prop_assert_eq!(step.launches.len(), 2);
            for (window, launches) in &step.launches {
                let mut keys = vec![0usize; runs.len()];
                for launch in launches {
                    let mut places = std::collections::HashMap::new();
                    for [run, first, part, place] in items(&step, launch) {
                        let of = &runs[run as usize];
                        let most = if part == ALL_PARTS { many } else { ROWS };
                        let rows = (of.tokens * group - first as usize).min(most);
                        let tokens = (first as usize / group, (first as usize + rows - 1) / group);
                        let all = seen(of, tokens, *window);
                        if part == ALL_PARTS {
                            prop_assert!((first as usize).is_multiple_of(many));
                            keys[run as usize] += all.len() * rows;
                            continue;
                        }
                        let number = part as usize - all.start / PART + place as usize;
                        prop_assert!(number < launch.parts && rows <= launch.kept);
                        prop_assert!(places.insert(number, run).is_none());
                        let (begin, end) = (part as usize * PART, (part as usize + 1) * PART);
                        let own = begin.max(all.start)..end.min(all.end);
                        prop_assert!(!own.is_empty());
                        keys[run as usize] += own.len() * rows;
                    }
                    prop_assert_eq!(places.len(), launch.parts);
                    prop_assert!(launch.parts * launch.kept * 2 * 68 <= step.parts);
                    prop_assert!(step.parts as u64 * 4 <= parts_bytes(&spec, 3100));
                }
                for (run, keys) in runs.iter().zip(keys) {
                    let rows = run.tokens * group;
                    let most = if rows > ROWS { many } else { ROWS };
                    let want = (0..rows).step_by(most).map(|first| {
                        let last = (first + most).min(rows) - 1;
                        seen(run, (first / group, last / group), *window).len() * (last + 1 - first)
                    });
                    prop_assert_eq!(keys, want.sum::<usize>());
                }
            }
            prop_assert!(step.words.len() >= step.finished);
        }
    }

    #[test]
    fn rows_are_told_their_places_and_runs_their_blocks() {
        let (one, other) = ([7u32, 3], [5u32, 9, 1]);
        let runs = [Run { tokens: 2, from: 15, blocks: &one }, Run { tokens: 1, from: 32, blocks: &other }];
        let spec = spec();
        let step = Step::of(&runs, Heads { spec: &spec, group: 2, windows: &[None], frequencies: &[0.5, 2.0] });
        assert_eq!(step.words[step.positions..][..3], [15, 16, 32]);
        assert_eq!(step.words[step.places..][..3], [7 * 16 + 15, 3 * 16, 16]);
        assert_eq!(step.words[step.frequencies..][..2], [0.5f32.to_bits(), 2f32.to_bits()]);
        assert_eq!(step.words[step.runs..][..8], [0, 15, 2, 0, 2, 32, 1, 4]);
        assert_eq!(step.words[step.blocks..][..7], [7, 3, 0, 0, 5, 9, 1]);
    }

    #[test]
    fn what_is_too_much_for_one_launch_is_several() {
        let blocks: Vec<u32> = (0..4096).collect();
        let runs = vec![Run { tokens: 1, from: 65_000, blocks: &blocks }; 64];
        let spec = KvSpec { heads: 8, ..spec() };
        let step = Step::of(&runs, Heads { spec: &spec, group: 4, windows: &[None], frequencies: &[] });
        let launches = &step.launches[0].1;
        assert!(launches.len() > 5 && step.parts as u64 * 4 <= PARTS_ROOM, "{launches:?}");
        assert_eq!(launches.iter().map(|launch| launch.count).sum::<usize>(), 64 * 254);
    }
}
