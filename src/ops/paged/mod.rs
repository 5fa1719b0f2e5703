//! Attention of sequences that go on, over keys and values in blocks.
//!
//! `cache` has the blocks, `heads` puts new keys and values into them, `attention` reads them. What a step consists of is
//! planned once, as [`Runs`], and shared by every layer.

mod attention;
mod cache;
mod heads;

use std::collections::HashSet;
use std::ops::Range;

use candle_core::{Result, bail};

pub use self::attention::{paged_attention, paged_scratch_bytes};
pub use self::cache::{KvCache, KvSpec};
pub use self::heads::place_heads;
use super::matmul::PANEL;
use super::rotary::{Rotary, Turns};

/// Rows of a step that belong to one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// How many.
    pub tokens: usize,
    /// Which position of the sequence the first is at.
    pub from: usize,
    /// Block `i` holds positions `16 i..16 (i + 1)`; up to the last row at least.
    pub blocks: &'a [u32],
}

impl Run<'_> {
    /// Positions of the rows.
    fn positions(&self) -> Range<usize> {
        self.from..self.from + self.tokens
    }
}

/// A step's rows: those of the first run, then those of the next.
#[derive(Debug)]
pub struct Runs<'a> {
    runs: Vec<Run<'a>>,
    total: usize,
    turns: Turns,
}

impl<'a> Runs<'a> {
    /// Plans a step over a cache.
    ///
    /// Errors: a block table that is too short or names blocks that there are not, and a block that two runs would
    /// write.
    pub fn new(runs: Vec<Run<'a>>, cache: &KvCache, rotary: &Rotary) -> Result<Self> {
        let mut written = HashSet::new();
        for run in &runs {
            let needed = run.positions().end.div_ceil(PANEL);
            let Some(blocks) = run.blocks.get(..needed) else {
                bail!("{} blocks for {} tokens of a sequence", run.blocks.len(), run.positions().end);
            };
            if let Some(beyond) = blocks.iter().find(|&&block| block as usize >= cache.blocks()) {
                bail!("block {beyond} of {}", cache.blocks());
            }
            if let Some(twice) = blocks[run.from / PANEL..].iter().find(|block| !written.insert(**block)) {
                bail!("block {twice} would be written twice in one step");
            }
        }
        if rotary.head_dim() != cache.spec().head_dim {
            bail!("positions for heads of {}, keys are {}", rotary.head_dim(), cache.spec().head_dim);
        }
        let turns = rotary.at(runs.iter().flat_map(Run::positions));
        Ok(Runs { total: runs.iter().map(|run| run.tokens).sum(), runs, turns })
    }

    /// Rows of all runs.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Every run, with its first row.
    fn placed(&self) -> impl Iterator<Item = (usize, &Run<'a>)> {
        let mut next = 0;
        self.runs.iter().map(move |run| {
            let first = next;
            next += run.tokens;
            (first, run)
        })
    }
}

#[cfg(test)]
mod tests;
