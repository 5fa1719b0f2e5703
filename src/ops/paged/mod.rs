//! Attention of sequences that go on, over keys and values in blocks.
//!
//! `cache` has the blocks, `heads` puts new keys and values into them, `attention` reads them. What a step consists of is
//! planned once, as [`Runs`], and shared by every layer; `given` is what goes in and comes out before and after them.

mod attention;
mod cache;
mod given;
mod heads;

use std::collections::HashSet;
use std::ops::Range;

use candle_core::{Result, bail};

pub use self::attention::{paged_attention, paged_scratch_bytes};
pub use self::cache::{KvCache, KvSpec};
pub use self::given::Given;
pub use self::heads::place_heads;
use super::matmul::PANEL;
use super::rotary::{Rotary, Turns};

/// Bytes that a step's attention leaves on a GPU beside its result, at most, for sequences of up to `context` tokens.
pub fn paged_device_bytes(spec: &KvSpec, context: usize) -> u64 {
    #[cfg(feature = "cuda")]
    return super::cuda::parts_bytes(spec, context);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = (spec, context);
        0
    }
}

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
    pub(in crate::ops) fn positions(&self) -> Range<usize> {
        self.from..self.from + self.tokens
    }
}

/// A step's rows: those of the first run, then those of the next.
#[derive(Debug)]
pub struct Runs<'a> {
    runs: Vec<Run<'a>>,
    total: usize,
    turns: Turns,
    given: Given,
    /// As kernels read it.
    #[cfg(feature = "cuda")]
    planned: Option<super::cuda::Planned>,
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
        // A GPU makes them itself.
        let turned = if cache.is_on_cpu() { runs.as_slice() } else { &[] };
        let turns = rotary.at(turned.iter().flat_map(Run::positions));
        Ok(Runs {
            total: runs.iter().map(|run| run.tokens).sum(),
            runs,
            turns,
            given: Given::default(),
            #[cfg(feature = "cuda")]
            planned: None,
        })
    }

    /// The same where ops can read it, with whatever else it was given, for layers of a model whose cache is on a GPU: of so many
    /// query heads for each head of the cache, and with these windows.
    pub fn on(self, cache: &KvCache, rotary: &Rotary, heads: (usize, &[Option<usize>])) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Some(held) = cache.on_gpu() {
            let planned = super::cuda::Planned::upload(self.of_step(), (held, cache.spec()), rotary, heads)?;
            return Ok(Runs { planned: Some(planned), ..self });
        }
        let _ = (cache, rotary, heads);
        Ok(self)
    }

    /// A step that is recorded: of so many rows, all of which are wanted, and nobody's yet.
    #[cfg(feature = "cuda")]
    pub(super) fn recorded(rows: usize, planned: super::cuda::Planned, rotary: &Rotary) -> Self {
        let given = Given { ids: vec![0; rows], wanted: (0..rows).collect(), asks: vec![super::Ask::Nothing; rows] };
        let turns = rotary.at(std::iter::empty());
        Runs { runs: Vec::new(), total: rows, turns, given, planned: Some(planned) }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn into_planned(self) -> Option<super::cuda::Planned> {
        self.planned
    }

    /// What of it was not put anywhere yet.
    #[cfg(feature = "cuda")]
    pub(super) fn of_step(&self) -> super::cuda::OfStep<'_> {
        super::cuda::OfStep { runs: &self.runs, given: &self.given }
    }

    #[cfg(feature = "cuda")]
    fn planned(&self) -> Result<&super::cuda::Planned> {
        match &self.planned {
            Some(planned) => Ok(planned),
            None => bail!("a step that was not put on the GPU"),
        }
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
