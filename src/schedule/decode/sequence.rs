//! One sequence: its tokens, how many of them were computed, the blocks that hold them, and what of it comes next.
//!
//! It must not know other sequences; the pool of blocks is lent to it.

use std::cmp::Reverse;
use std::hash::BuildHasher;
use std::sync::Arc;

use super::blocks::{Blocks, Published};
use super::line::{Age, Rank};
use super::{BlockId, Prompted, Run, Wants};

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) key: u64,
    pub(super) rank: Rank,
    /// The prompt, and what was written after it.
    tokens: Vec<u32>,
    prompt: usize,
    max_new: usize,
    /// Rows of the prompt that are still wanted begin here; at its end for one that is not scored. What stands before may
    /// have been computed once already, for one that was preempted.
    rows: usize,
    /// Tokens whose keys are in the blocks.
    computed: usize,
    /// Tokens after those that the plan that is out computes.
    planned: usize,
    table: Arc<Vec<BlockId>>,
    /// Blocks from the head of the table that were found when it began; it computed the others itself.
    found: usize,
    /// Blocks from the head of the table that are findable.
    published: usize,
    /// Blocks from the head of the table that were there when a token was last chosen.
    vouched: usize,
    /// Others were put in the place of its blocks while a step was out that was planned with those: what is chosen after that step
    /// says nothing of the others.
    reads_former: bool,
    /// No further block of it can be published: another chain has the hash of one, or one of them was forgotten.
    unpublishable: bool,
    /// It is complete or nobody wants it any more: it leaves as soon as no plan is out.
    pub(super) over: bool,
}

impl Sequence {
    pub(super) fn new(prompted: Prompted, number: u64) -> Self {
        let Prompted { key, tokens, max_new, priority, arrived, urgent, scored } = prompted;
        let age = Age { arrived, number };
        Sequence {
            key,
            rank: Rank { calm: !urgent, priority: Reverse(priority), fresh: true, age },
            prompt: tokens.len(),
            rows: if scored { 0 } else { tokens.len() },
            tokens,
            max_new,
            computed: 0,
            planned: 0,
            table: Arc::default(),
            found: 0,
            published: 0,
            vouched: 0,
            reads_former: false,
            unpublishable: false,
            over: false,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    #[cfg(test)]
    pub(super) fn table(&self) -> &[BlockId] {
        &self.table
    }

    /// Tokens that are not computed yet; at least one.
    pub(super) fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    pub(super) fn planned(&self) -> usize {
        self.planned
    }

    /// It lacks one token only: the last that it wrote, as a rule.
    pub(super) fn is_writing(&self) -> bool {
        self.remaining() == 1
    }

    /// All that may be written is written, or nothing was to be.
    pub(super) fn is_complete(&self) -> bool {
        self.tokens.len() - self.prompt == self.max_new && (self.max_new > 0 || self.remaining() == 0)
    }

    /// The next token comes after what is planned, whatever that token is.
    pub(super) fn goes_on(&self) -> bool {
        let writes = self.planned == 1 && self.samples() && !self.wants_rows();
        writes && !self.over && self.tokens.len() + 1 - self.prompt < self.max_new
    }

    // blocks

    /// The token after those that it has would need another block.
    pub(super) fn is_full(&self, block_tokens: usize) -> bool {
        self.table.len() * block_tokens <= self.tokens.len()
    }

    /// Blocks that its tokens need.
    pub(super) fn blocks(&self, block_tokens: usize) -> usize {
        self.tokens.len().div_ceil(block_tokens)
    }

    /// It may need more blocks than it has, later.
    pub(super) fn may_grow(&self, block_tokens: usize) -> bool {
        blocks_needed(self.prompt, self.max_new, block_tokens) > self.table.len()
    }

    /// Published blocks that hold its beginning. The last token is left out, since its row is wanted; so are rows of a scored
    /// prompt that nobody has seen yet.
    pub(super) fn find_prefix<S: BuildHasher>(&self, blocks: &Blocks<S>, block_tokens: usize) -> Vec<BlockId> {
        let may = if self.rows < self.prompt { self.rows } else { self.tokens.len() - 1 };
        let mut found = Vec::new();
        for tokens in self.tokens[..may].chunks_exact(block_tokens) {
            match blocks.find(found.last().copied(), tokens) {
                Some(block) => found.push(block),
                None => break,
            }
        }
        found
    }

    /// What it will compute after `found`, in whole blocks, is being computed by `other` just now.
    pub(super) fn follows(&self, found: &[BlockId], other: &Sequence, block_tokens: usize) -> bool {
        let (from, to) = (found.len() * block_tokens, (found.len() + 1) * block_tokens);
        !other.unpublishable
            && !other.is_writing()
            && self.rows >= self.prompt
            && other.published == found.len()
            && other.table[..found.len()] == *found
            && to < self.tokens.len()
            && other.tokens.get(from..to) == Some(&self.tokens[from..to])
    }

    /// Begins to run: with `found` blocks, and new ones for the rest of its tokens. The caller has seen that there are enough.
    pub(super) fn begin<S: BuildHasher>(
        &mut self,
        mut found: Vec<BlockId>,
        blocks: &mut Blocks<S>,
        block_tokens: usize,
    ) {
        // Held before others are taken, which would evict them.
        found.iter().for_each(|block| blocks.hold(*block));
        (self.found, self.published, self.vouched) = (found.len(), found.len(), 0);
        (self.computed, self.unpublishable, self.reads_former) = (found.len() * block_tokens, false, false);
        // Nothing is moved when it grows.
        self.tokens.reserve_exact(self.prompt + self.max_new - self.tokens.len());
        found.reserve_exact(blocks_needed(self.prompt, self.max_new, block_tokens) - found.len());
        self.table = Arc::new(found);
        while self.table.len() < self.blocks(block_tokens) && self.extend(blocks) {}
    }

    /// Takes a block where the next token lacks one. False: there is none.
    pub(super) fn make_room<S: BuildHasher>(&mut self, blocks: &mut Blocks<S>, block_tokens: usize) -> bool {
        self.table.len() >= self.blocks(block_tokens) || self.extend(blocks)
    }

    pub(super) fn extend<S: BuildHasher>(&mut self, blocks: &mut Blocks<S>) -> bool {
        let block = blocks.take();
        Arc::make_mut(&mut self.table).extend(block);
        block.is_some()
    }

    /// Gives up its blocks and stands at the head of its class, to be computed again after another `begin`.
    pub(super) fn preempt<S: BuildHasher>(&mut self, blocks: &mut Blocks<S>) {
        self.release(blocks);
        self.rank.fresh = false;
    }

    pub(super) fn release<S: BuildHasher>(&mut self, blocks: &mut Blocks<S>) {
        blocks.release(&self.table);
        self.table = Arc::default();
    }

    // steps

    /// Plans as many of its tokens as `budget` allows, and returns how many those are.
    pub(super) fn plan(&mut self, budget: usize) -> usize {
        let mut tokens = self.remaining().min(budget);
        // A run wants every row or none: what was scored before a preemption is computed in runs of its own.
        if self.computed < self.rows && self.rows < self.prompt {
            tokens = tokens.min(self.rows - self.computed);
        }
        self.planned = tokens;
        tokens
    }

    /// What was planned, for the model.
    pub(super) fn run(&self) -> Run {
        let end = self.computed + self.planned;
        let sample = self.samples();
        let wants = match sample {
            _ if self.wants_rows() => Wants::Every,
            true => Wants::Last,
            false => Wants::Nothing,
        };
        let tokens = self.tokens[self.computed..end].to_vec();
        Run { key: self.key, from: self.computed, tokens, blocks: Arc::clone(&self.table), wants, sample }
    }

    /// The token that is to be sampled after what was planned, for the model.
    pub(super) fn run_ahead(&self) -> Run {
        let (from, blocks) = (self.tokens.len(), Arc::clone(&self.table));
        Run { key: self.key, from, tokens: vec![0], blocks, wants: Wants::Last, sample: true }
    }

    /// A token is to be sampled after what was planned.
    pub(super) fn samples(&self) -> bool {
        self.computed + self.planned == self.tokens.len() && self.max_new > 0
    }

    fn wants_rows(&self) -> bool {
        (self.rows..self.prompt).contains(&self.computed)
    }

    /// What was planned is computed.
    pub(super) fn advance(&mut self) {
        if self.wants_rows() {
            self.rows = self.computed + self.planned;
        }
        self.computed += std::mem::take(&mut self.planned);
    }

    /// Nothing was sampled from the last row: its token is computed again. Before `publish`, since that writes its keys again.
    pub(super) fn repeat_last(&mut self) {
        self.computed -= 1;
    }

    pub(super) fn append(&mut self, token: u32) {
        self.tokens.push(token);
    }

    /// The step failed: nothing was computed.
    pub(super) fn discard(&mut self) {
        self.planned = 0;
    }

    /// Makes the blocks findable that are full of computed tokens.
    ///
    /// `is_ahead`: its next step is out already.
    pub(super) fn publish<S: BuildHasher>(&mut self, blocks: &mut Blocks<S>, block_tokens: usize, is_ahead: bool) {
        while !self.unpublishable && (self.published + 1) * block_tokens <= self.computed {
            self.reads_former |= self.publish_next(blocks, block_tokens) && is_ahead;
        }
    }

    /// A token was chosen after all that is computed, so there are numbers in the blocks that are full of it. Before `publish`,
    /// which may put others in their place.
    pub(super) fn vouch<S: BuildHasher>(&mut self, blocks: &mut Blocks<S>, block_tokens: usize) {
        if std::mem::take(&mut self.reads_former) {
            return;
        }
        let full = self.computed / block_tokens;
        self.table[self.vouched.min(full)..full].iter().for_each(|block| blocks.vouch(*block));
        self.vouched = full;
    }

    /// Nothing that it computed is found any more, nor what it found and nobody vouches for; nor will it publish more.
    pub(super) fn forget<S: BuildHasher>(&mut self, blocks: &mut Blocks<S>) {
        let unvouched = self.table.iter().position(|block| !blocks.is_vouched(*block));
        let from = unvouched.map_or(self.found, |at| at.min(self.found)).min(self.table.len());
        blocks.forget(&self.table[from..]);
        self.notice_forgotten(blocks);
        self.unpublishable = true;
    }

    /// Where a block that it published or found is not findable any more, nothing after it can be.
    pub(super) fn notice_forgotten<S: BuildHasher>(&mut self, blocks: &Blocks<S>) {
        let published = &self.table[..self.published];
        if let Some(at) = published.iter().position(|block| !blocks.is_findable(*block)) {
            (self.published, self.unpublishable) = (at, true);
        }
    }

    /// Whether another one took the block's place.
    fn publish_next<S: BuildHasher>(&mut self, blocks: &mut Blocks<S>, block_tokens: usize) -> bool {
        let at = self.published;
        let (parent, block) = (at.checked_sub(1).map(|at| self.table[at]), self.table[at]);
        let tokens = &self.tokens[at * block_tokens..(at + 1) * block_tokens];
        let published = blocks.publish(parent, tokens, block);
        match published {
            Published::Here => self.published += 1,
            Published::Already(there) => {
                blocks.hold(there);
                blocks.release(&[block]);
                Arc::make_mut(&mut self.table)[at] = there;
                self.vouched = self.vouched.min(at);
                self.published += 1;
            }
            Published::Never => self.unpublishable = true,
        }
        matches!(published, Published::Already(_))
    }
}

/// Blocks that a prompt and what may be written after it need at most; the last token's keys are never needed.
pub(super) fn blocks_needed(prompt: usize, max_new: usize, block_tokens: usize) -> usize {
    prompt.saturating_add(max_new.saturating_sub(1)).div_ceil(block_tokens)
}
