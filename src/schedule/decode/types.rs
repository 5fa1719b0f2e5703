//! What goes into the scheduler and what comes out of it, as plain data.

use std::sync::Arc;

use crate::schedule::Nanos;

/// A block of the key-value cache: the index of its storage.
pub type BlockId = u32;

/// Sizes, all at least one; [`DecodeScheduler::new`](super::DecodeScheduler::new) raises zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Positions in a block.
    pub block_tokens: usize,
    /// Blocks that there are.
    pub blocks: usize,
    /// Tokens that one step may compute.
    pub step_tokens: usize,
    /// Sequences that run at once; never more than `step_tokens`, so that each gets its token in every step.
    pub sequences: usize,
    /// Positions that the model knows: prompt and answer together.
    pub context: usize,
}

/// A request to write on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompted {
    /// The caller's handle; of no two sequences at a time.
    pub key: u64,
    pub tokens: Vec<u32>,
    /// Tokens to write at most; with 0 the prompt is computed (and scored, if it is) and that is all.
    pub max_new: usize,
    /// Higher goes first.
    pub priority: i32,
    pub arrived: Nanos,
    /// Goes before all that are not.
    pub urgent: bool,
    /// The rows of the prompt are wanted too, each once.
    pub scored: bool,
}

/// Which rows of logits a run is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wants {
    Nothing,
    /// That of its last token.
    Last,
    /// One for each of its tokens: part of a prompt that is scored.
    Every,
}

/// Tokens of one sequence that a step computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub key: u64,
    /// Position of the first of `tokens` in the sequence; what stands before it is in the blocks.
    pub from: usize,
    /// In a plan ahead a 0 stands for what is not known yet.
    pub tokens: Vec<u32>,
    /// The sequence's block table: block `i` holds positions `i * block_tokens..`. It reaches at least as far as this run
    /// and may reach further. Shared, not copied: it is changed only by `plan`, `plan_ahead` and `apply`, which copy it
    /// first where somebody still holds it. So let go of it before `apply`.
    pub blocks: Arc<Vec<BlockId>>,
    pub wants: Wants,
    /// The last row is to be sampled from: `apply` expects a [`Sampled`] with this key.
    pub sample: bool,
}

/// One step.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// Those of one token that go on writing first, then parts of prompts. May be taken out: `apply` does not need them.
    pub runs: Vec<Run>,
    /// Sum over the runs.
    pub tokens: usize,
    /// Of prompts, among them.
    pub prompts: usize,
    pub(super) number: u64,
}

/// What the caller sampled from a run's last row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampled {
    pub key: u64,
    pub token: u32,
    /// It ends the sequence and is no part of it.
    pub stop: bool,
}

/// Why a sequence is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Finish {
    Stop,
    /// `max_new`; which is within the context, since `push` refuses what is not.
    Length,
}

/// What came of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The sequence grew by this token. A stop token is not told: it only finishes.
    Token { key: u64, token: u32 },
    /// The sequence is gone from the scheduler, or is as soon as no plan is out.
    Finished { key: u64, finish: Finish },
    /// It waits, to be computed again; nothing that was told of it changes.
    Preempted { key: u64 },
}

/// Why a request cannot be served, now or ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the prompt is empty")]
    Empty,
    #[error("{prompt} tokens of prompt and {max_new} to write are more than the context of {context}")]
    Context { prompt: usize, max_new: usize, context: usize },
    #[error("{prompt} tokens of prompt and {max_new} to write need {needed} blocks of the cache, which has {blocks}")]
    Blocks { prompt: usize, max_new: usize, needed: usize, blocks: usize },
    #[error("a sequence {key} is there already")]
    Known { key: u64 },
}

/// Counts for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    pub running: usize,
    /// Preempted ones among them.
    pub waiting: usize,
    pub blocks_used: usize,
    /// Held by nobody, content findable.
    pub blocks_cached: usize,
    pub blocks_free: usize,
    /// Since the beginning: tokens of admitted prompts, and how many of them were found in blocks. Re-admissions after a
    /// preemption are not counted.
    pub prefix_asked: u64,
    pub prefix_hits: u64,
    /// Since the beginning.
    pub preemptions: u64,
}
