//! A decoder's step as kernels read it: its tokens, which rows are whose and where their keys go, what each block has to attend to,
//! which rows are wanted and what is asked of them. Pure.
//!
//! All of it is one table, made on the host once a step and uploaded in one piece. What depends on nothing but how many rows there are
//! comes first, the rest where there is room: those sections say where it begins. So a step that was recorded finds everything
//! where it was, whatever lengths its sequences have. `kernels/paged_attention.cuh` says what runs, tables of blocks and items are.

use std::ops::Range;

use candle_core::DType;

use super::kernels::Kernel;
use super::likeliest::Answers;
use crate::ops::likely::asked;
use crate::ops::{Ask, Given, KvSpec, Run};

/// Keys of a part.
const PART: usize = 256;
/// What kernels read in place of a part by whom all parts are done.
const ALL_PARTS: u32 = u32::MAX;
/// And in place of where a key goes that is nobody's.
const NOWHERE: u32 = u32::MAX;
/// Bytes that parts of one launch take, where no sequence by itself takes more.
const PARTS_ROOM: u64 = 16 << 20;
/// Rows of queries that have their parts apart, in one block each.
const ROWS: usize = 16;
/// Sections of the table begin on such borders, in words: of 16 bytes.
const BORDER: usize = 4;
/// Blocks of attention in a step that was recorded, of all heads: as many as 132 multiprocessors hold, twice. Fewer items leave some
/// without work, more are done in turns. No GPU has said yet what is best.
const RECORDED_BLOCKS: usize = 1056;

/// What every layer that attends alike launches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Launch {
    pub(super) kernel: Kernel,
    /// Where in the table the head of its items lies, and how many these are.
    pub(super) items: usize,
    pub(super) count: usize,
    /// Blocks for each head of the cache: one for each item, or those of a recorded step.
    pub(super) blocks: usize,
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

/// What a step is of.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct OfStep<'a> {
    pub(in crate::ops) runs: &'a [Run<'a>],
    pub(in crate::ops) given: &'a Given,
}

/// Where in the table what is, in words.
#[derive(Debug, Default)]
pub(super) struct Step {
    pub(super) words: Vec<u32>,
    /// Query heads for each head of the cache.
    pub(super) group: usize,
    /// The last of them may be nobody's.
    pub(super) rows: usize,
    /// Rows of which logits are wanted; the same holds for them.
    pub(super) logits: usize,
    pub(super) ids: usize,
    /// In what the step before told, where that is what this one goes on with: for each row the place of its token.
    pub(super) told: usize,
    pub(super) positions: usize,
    pub(super) places: usize,
    pub(super) frequencies: usize,
    pub(super) runs: usize,
    pub(super) wanted: usize,
    /// Two numbers for each row of logits.
    pub(super) asked: usize,
    /// A count for each, 0.
    pub(super) counts: usize,
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

/// Words of the table of a step of one token for each of so many rows, at most, over sequences of up to `context` tokens.
pub(super) fn table_words(rows: usize, context: usize, heads: Heads<'_>) -> usize {
    let blocks = rows * (context.div_ceil(KvSpec::BLOCK_TOKENS) + BORDER);
    let each = context.div_ceil(PART) + 1;
    let of_part = (heads.spec.heads * heads.group * part_width(heads.spec.head_dim) * size_of::<f32>()).max(1);
    let items = (rows * each).min(each.max(PARTS_ROOM as usize / of_part));
    let of_windows = distinct(heads.windows).len() * (4 * items + 2 * BORDER);
    // Counts of parts are used by one window after the other.
    16 * (rows + BORDER) + heads.frequencies.len() + blocks + of_windows + items * heads.spec.heads + 4 * BORDER
}

fn distinct(windows: &[Option<usize>]) -> Vec<Option<usize>> {
    let mut found: Vec<Option<usize>> = Vec::new();
    for window in windows {
        if !found.contains(window) {
            found.push(*window);
        }
    }
    found
}

impl Step {
    pub(super) fn of(of: OfStep<'_>, heads: Heads<'_>) -> Step {
        let windows = distinct(heads.windows).into_iter();
        let drafts = windows.map(|window| (window, attend(of.runs, &heads, window))).collect();
        let rows = (of.runs.iter().map(|run| run.tokens).sum(), of.runs.len(), of.given.wanted.len());
        Self::laid_out(of, &heads, (rows, drafts))
    }

    /// A step of one token a run, filled up to so many rows of which every one is wanted, for attention over up to `context` keys.
    /// Nothing where it has something else in it, or more parts than are attended to at once.
    pub(super) fn filled_up(of: OfStep<'_>, heads: Heads<'_>, (rows, context): (usize, usize)) -> Option<Step> {
        let plain = of.runs.iter().all(|run| run.tokens == 1) && of.given.wanted.len() == of.runs.len();
        if !plain || of.runs.len() > rows || heads.group > ROWS {
            return None;
        }
        let mut drafts = Vec::new();
        for window in distinct(heads.windows) {
            let mut all = attend(of.runs, &heads, window);
            let draft = all.pop().unwrap_or_else(|| Draft::of(kernels(heads.spec).0, Few::default()));
            let most = window.map_or(context, |window| context.min(window.saturating_add(PART))).div_ceil(PART) + 1;
            let blocks = (rows * most).min(RECORDED_BLOCKS.div_ceil(heads.spec.heads.max(1)));
            if !all.is_empty() {
                return None;
            }
            drafts.push((window, vec![Draft { kept: heads.group, blocks, ..draft }]));
        }
        Some(Self::laid_out(of, &heads, ((rows, rows, rows), drafts)))
    }

    /// In this order. What is not given of as many rows, runs and wanted rows is nobody's.
    fn laid_out(of: OfStep<'_>, heads: &Heads<'_>, ((rows, runs, wanted), drafts): (Rows, Drafts)) -> Step {
        let mut step = Step { group: heads.group, rows, logits: wanted, ..Step::default() };
        let positions = of.runs.iter().flat_map(Run::positions).map(|position| position as u32);
        let places = of.runs.iter().flat_map(|run| run.positions().map(move |position| place(run, position)));
        step.ids = step.section(of.given.ids.iter().copied(), (rows, 0));
        step.told = step.section(Answers::tokens(runs), (runs, 0));
        step.positions = step.section(positions, (rows, 0));
        step.places = step.section(places, (rows, NOWHERE));
        step.frequencies = step.section(heads.frequencies.iter().map(|frequency| frequency.to_bits()), (0, 0));
        step.runs = step.section([].into_iter(), (4 * runs, 0));
        step.wanted = step.section(of.given.wanted.iter().map(|row| *row as u32), (wanted, 0));
        let asked = of.given.asks.iter().flat_map(|ask| bits_of(*ask));
        step.asked = step.section(asked, (2 * wanted, 0));
        step.counts = step.section([].into_iter(), (wanted, 0));
        let of_windows = |(window, drafts): &(Option<usize>, Vec<Draft>)| {
            let launch = |draft: &Draft| draft.launch(step.section([].into_iter(), (BORDER, 0)));
            (*window, drafts.iter().map(launch).collect())
        };
        step.launches = drafts.iter().map(of_windows).collect();
        step.add_blocks(of.runs);
        step.add_items(&drafts, heads.spec);
        step
    }

    fn section(&mut self, words: impl Iterator<Item = u32>, (least, filler): (usize, u32)) -> usize {
        let at = self.words.len();
        self.words.extend(words);
        self.words.resize(self.words.len().max(at + least), filler);
        self.words.resize(self.words.len().next_multiple_of(BORDER), 0);
        at
    }

    /// Of every run, which is then told where they are.
    fn add_blocks(&mut self, runs: &[Run<'_>]) {
        let mut row = 0;
        for (number, run) in runs.iter().enumerate() {
            let needed = run.positions().end.div_ceil(KvSpec::BLOCK_TOKENS);
            let at = self.section(run.blocks.iter().copied().take(needed), (0, 0));
            let described = [row, run.from as u32, run.tokens as u32, at as u32];
            self.words[self.runs + 4 * number..][..4].copy_from_slice(&described);
            row += run.tokens as u32;
        }
    }

    /// Of every launch, whose head is then told where they and their counts are.
    fn add_items(&mut self, drafts: &[(Option<usize>, Vec<Draft>)], spec: &KvSpec) {
        let drafts: Vec<&Draft> = drafts.iter().flat_map(|(_, drafts)| drafts).collect();
        let finished = drafts.iter().map(|draft| draft.parts * spec.heads).max().unwrap_or(0);
        let finished = self.section([].into_iter(), (finished, 0));
        let heads: Vec<usize> = self.launches.iter().flat_map(|(_, launches)| launches).map(|of| of.items).collect();
        for (draft, head) in drafts.iter().zip(heads) {
            let at = self.section(draft.items.iter().flatten().copied(), (0, 0));
            let first = (at - head) / BORDER;
            self.words[head..][..3].copy_from_slice(&[draft.items.len() as u32, first as u32, finished as u32]);
        }
        let of_head = spec.heads * part_width(spec.head_dim);
        self.parts = drafts.iter().map(|draft| draft.parts * draft.kept * of_head).max().unwrap_or(0);
    }
}

/// Rows, runs, and rows that are wanted.
type Rows = (usize, usize, usize);
/// For each window.
type Drafts = Vec<(Option<usize>, Vec<Draft>)>;

/// Where a run's position lies in the cache.
fn place(run: &Run<'_>, position: usize) -> u32 {
    run.blocks[position / KvSpec::BLOCK_TOKENS] * KvSpec::BLOCK_TOKENS as u32 + (position % KvSpec::BLOCK_TOKENS) as u32
}

/// What `likely_f32` reads of a row; of one by which a token is scored, of which that asks nothing, what `logit_of_f32` does.
fn bits_of(ask: Ask) -> [u32; 2] {
    let (scale, below) = ask.temperature().map_or((0.0, 0.0), asked);
    [scale.to_bits(), ask.scored().unwrap_or(below.to_bits())]
}

/// A launch that has no place in the table yet.
struct Draft {
    kernel: Kernel,
    items: Vec<[u32; 4]>,
    blocks: usize,
    kept: usize,
    parts: usize,
}

impl Draft {
    fn of(kernel: Kernel, few: Few) -> Draft {
        Draft { kernel, blocks: few.items.len(), items: few.items, kept: few.kept, parts: few.parts }
    }

    fn launch(&self, items: usize) -> Launch {
        let &Draft { kernel, blocks, kept, parts, .. } = self;
        Launch { kernel, items, count: self.items.len(), blocks, kept, parts }
    }
}

/// Few rows of queries have their parts apart, many have blocks enough.
fn attend(runs: &[Run<'_>], heads: &Heads<'_>, window: Option<usize>) -> Vec<Draft> {
    let (for_few, (for_many, rows_of_block)) = kernels(heads.spec);
    let (mut launches, mut few, mut many) = (Vec::new(), Few::default(), Vec::new());
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
            launches.push(Draft::of(for_few, std::mem::take(&mut few)));
        }
        few.add((number, rows), parts);
    }
    if few.parts > 0 {
        launches.push(Draft::of(for_few, few));
    }
    if !many.is_empty() {
        // The longest first: blocks start in the order of their items.
        many.sort_by_key(|(keys, _)| std::cmp::Reverse(*keys));
        let items = many.into_iter().map(|(_, item)| item).collect();
        launches.push(Draft::of(for_many, Few { items, kept: 0, parts: 0 }));
    }
    launches
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
#[path = "step_tests.rs"]
mod tests;
