//! The scheduler of one generation: what waits, what runs, and the blocks between them.
//!
//! Steps are in `plan.rs` and `apply.rs`.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use super::blocks::Blocks;
use super::line::Line;
use super::sequence::{Sequence, blocks_needed};
use super::{BlockId, DecodeLimits, Effect, Figures, Prompted, Refusal};
use crate::schedule::Nanos;

/// `S` hashes what is in blocks, to find them again; tests choose a poor one.
#[derive(Debug)]
pub struct DecodeScheduler<S = RandomState> {
    pub(super) limits: DecodeLimits,
    pub(super) blocks: Blocks<S>,
    pub(super) line: Line,
    /// In rank, but the oldest first. Unchanged while a plan is out.
    pub(super) running: Vec<Sequence>,
    /// The plan that is out.
    pub(super) out: Option<u64>,
    /// The plan after it, where that is out too.
    pub(super) ahead: Option<u64>,
    /// Its runs, as places in `running`; those of the plan after it are the same.
    pub(super) order: Vec<usize>,
    /// The waiting sequence that was to be admitted last and found no room, by number, and the room that there was: it is
    /// not looked at again until there is more.
    pub(super) stuck: Option<(u64, usize)>,
    /// What is to be told by the next `apply`.
    pub(super) told: Vec<Effect>,
    pub(super) counts: Counts,
}

/// Since the beginning.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) pushed: u64,
    pub(super) planned: u64,
    pub(super) prefix_asked: u64,
    pub(super) prefix_hits: u64,
    pub(super) preemptions: u64,
}

impl DecodeScheduler {
    pub fn new(limits: DecodeLimits) -> Self {
        Self::with_hasher(limits, RandomState::new())
    }
}

impl<S: BuildHasher> DecodeScheduler<S> {
    pub fn with_hasher(limits: DecodeLimits, hasher: S) -> Self {
        let step_tokens = limits.step_tokens.max(1);
        // One id is kept for the ends of a list, one for none.
        let blocks = BlockId::try_from(limits.blocks.max(1)).unwrap_or(BlockId::MAX).min(BlockId::MAX - 1);
        let limits = DecodeLimits {
            block_tokens: limits.block_tokens.max(1),
            blocks: blocks as usize,
            step_tokens,
            sequences: limits.sequences.clamp(1, step_tokens),
            context: limits.context.max(1),
        };
        DecodeScheduler {
            limits,
            blocks: Blocks::new(blocks, limits.block_tokens, hasher),
            line: Line::default(),
            running: Vec::new(),
            out: None,
            ahead: None,
            order: Vec::new(),
            stuck: None,
            told: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Puts a request into the waiting line, at any time.
    ///
    /// # Errors
    /// It can never be served: see [`Refusal`]. Nothing changed then.
    pub fn push(&mut self, prompted: Prompted) -> Result<(), Refusal> {
        let (prompt, max_new) = (prompted.tokens.len(), prompted.max_new);
        let DecodeLimits { block_tokens, blocks, context, .. } = self.limits;
        if prompt == 0 {
            return Err(Refusal::Empty);
        }
        if prompt.saturating_add(max_new) > context {
            return Err(Refusal::Context { prompt, max_new, context });
        }
        let needed = blocks_needed(prompt, max_new, block_tokens);
        if needed > blocks {
            return Err(Refusal::Blocks { prompt, max_new, needed, blocks });
        }
        let key = prompted.key;
        if self.line.contains(key) || self.running.iter().any(|sequence| sequence.key == key) {
            return Err(Refusal::Known { key });
        }
        self.line.push(Sequence::new(prompted, self.counts.pushed));
        self.counts.pushed += 1;
        Ok(())
    }

    /// Nothing waits and nothing runs.
    pub fn is_idle(&self) -> bool {
        self.line.is_empty() && self.running.is_empty()
    }

    /// Arrival of the oldest sequence that waits or runs. It says how long somebody has been here, not how long ago the last
    /// step was.
    pub fn oldest(&self) -> Option<Nanos> {
        self.running.iter().map(|sequence| sequence.rank.age.arrived).chain(self.line.oldest()).min()
    }

    pub fn figures(&self) -> Figures {
        Figures {
            running: self.running.len(),
            waiting: self.line.len(),
            blocks_used: self.blocks.total() - self.blocks.available(),
            blocks_cached: self.blocks.cached(),
            blocks_free: self.blocks.free(),
            prefix_asked: self.counts.prefix_asked,
            prefix_hits: self.counts.prefix_hits,
            preemptions: self.counts.preemptions,
        }
    }

    /// Puts those that run into their order.
    pub(super) fn arrange(&mut self) {
        self.running.sort_by_key(|sequence| sequence.rank);
        let oldest = self.running.iter().enumerate().min_by_key(|(_, sequence)| sequence.rank.age);
        if let Some((at, _)) = oldest {
            self.running[..=at].rotate_right(1);
        }
    }
}
