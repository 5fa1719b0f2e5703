//! The blocks of one generation's key-value cache: who holds them, and which of them can be found by what is in them.
//!
//! Full blocks that were computed are published under their chain: the block before them (`None`: the sequence begins here)
//! and their own tokens. Both are compared exactly; the hash only leads to the one block to compare with, so that two
//! chains of one hash can never be taken for each other (the later one is then simply not findable). Naming the parent by
//! its block is exact as long as a parent outlives its children, which it does: whoever holds a published block holds its
//! parent, and lets go of the parent later, so that a parent always stands behind its children in the order of eviction.
//!
//! It must not know sequences, steps, or what a token means.

use std::collections::HashMap;
use std::hash::BuildHasher;

use super::BlockId;
use super::idle::Idle;

/// Why a block is findable.
#[derive(Debug, Clone, Copy)]
struct Link {
    parent: Option<BlockId>,
    hash: u64,
}

/// What became of a block that was to be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Published {
    /// It can be found now.
    Here,
    /// Another block with the same content is findable: hold that one and let this one go.
    Already(BlockId),
    /// Another chain has its hash. It stays unknown, and so must all that would follow it.
    Never,
}

#[derive(Debug)]
pub(super) struct Blocks<S> {
    block_tokens: usize,
    /// By block: how many sequences hold it.
    holders: Vec<u32>,
    /// By block: set while it is findable.
    links: Vec<Option<Link>>,
    /// By block: a token was chosen from what stands after it, so it holds numbers.
    vouched: Vec<bool>,
    /// What is in findable blocks: `[blocks, block_tokens]`.
    contents: Vec<u32>,
    by_hash: HashMap<u64, BlockId>,
    hasher: S,
    /// Held by nobody, not findable.
    free: Vec<BlockId>,
    /// Held by nobody, findable.
    cached: Idle,
}

impl<S: BuildHasher> Blocks<S> {
    /// `blocks` free blocks of `block_tokens` positions.
    pub(super) fn new(blocks: BlockId, block_tokens: usize, hasher: S) -> Self {
        let count = blocks as usize;
        Blocks {
            block_tokens,
            holders: vec![0; count],
            links: vec![None; count],
            vouched: vec![false; count],
            contents: vec![0; count * block_tokens],
            by_hash: HashMap::new(),
            hasher,
            free: (0..blocks).rev().collect(),
            cached: Idle::new(blocks),
        }
    }

    pub(super) fn total(&self) -> usize {
        self.holders.len()
    }

    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    pub(super) fn cached(&self) -> usize {
        self.cached.len()
    }

    /// Blocks that can be taken now.
    pub(super) fn available(&self) -> usize {
        self.free.len() + self.cached.len()
    }

    /// Nobody holds it.
    pub(super) fn is_idle(&self, block: BlockId) -> bool {
        self.holders[block as usize] == 0
    }

    /// The published block with these tokens after this parent.
    pub(super) fn find(&self, parent: Option<BlockId>, tokens: &[u32]) -> Option<BlockId> {
        let block = *self.by_hash.get(&self.hash(parent, tokens))?;
        self.is(block, parent, tokens).then_some(block)
    }

    /// One more sequence holds this block: one that was found, or that somebody holds.
    pub(super) fn hold(&mut self, block: BlockId) {
        if self.is_idle(block) {
            self.cached.remove(block);
        }
        self.holders[block as usize] += 1;
    }

    /// A block for one sequence alone: a free one, else the cached one that was let go of first, which is then no longer
    /// findable. `None`: all are held.
    pub(super) fn take(&mut self) -> Option<BlockId> {
        let block = self.free.pop().or_else(|| {
            let block = self.cached.pop()?;
            if let Some(link) = self.links[block as usize].take() {
                self.by_hash.remove(&link.hash);
            }
            Some(block)
        })?;
        self.holders[block as usize] = 1;
        self.vouched[block as usize] = false;
        Some(block)
    }

    /// A sequence lets go of a chain, tail first, so that its head is evicted last.
    pub(super) fn release(&mut self, chain: &[BlockId]) {
        for &block in chain.iter().rev() {
            let holders = &mut self.holders[block as usize];
            *holders -= 1;
            match (*holders, self.links[block as usize]) {
                (0, None) => self.free.push(block),
                (0, Some(_)) => self.cached.push(block),
                _ => {}
            }
        }
    }

    /// Makes a full, computed block findable that one sequence holds. `parent` must be findable itself.
    pub(super) fn publish(&mut self, parent: Option<BlockId>, tokens: &[u32], block: BlockId) -> Published {
        debug_assert_eq!(tokens.len(), self.block_tokens);
        debug_assert!(parent.is_none_or(|parent| self.is_findable(parent)));
        let hash = self.hash(parent, tokens);
        match self.by_hash.get(&hash) {
            Some(&there) if there == block => Published::Here,
            Some(&there) if self.is(there, parent, tokens) => Published::Already(there),
            Some(_) => Published::Never,
            None => {
                self.by_hash.insert(hash, block);
                self.links[block as usize] = Some(Link { parent, hash });
                let at = block as usize * self.block_tokens;
                self.contents[at..at + self.block_tokens].copy_from_slice(tokens);
                Published::Here
            }
        }
    }

    /// A token was chosen by a sequence that holds it: what is in it is sound.
    pub(super) fn vouch(&mut self, block: BlockId) {
        self.vouched[block as usize] = true;
    }

    pub(super) fn is_vouched(&self, block: BlockId) -> bool {
        self.vouched[block as usize]
    }

    /// Nobody finds these any more, nor any chain that goes on from one of them. Who holds such a block keeps it.
    pub(super) fn forget(&mut self, blocks: &[BlockId]) {
        let mut children: HashMap<BlockId, Vec<BlockId>> = HashMap::new();
        for (child, link) in (0..).zip(&self.links) {
            if let Some(parent) = link.and_then(|link| link.parent) {
                children.entry(parent).or_default().push(child);
            }
        }
        let mut doomed = blocks.to_vec();
        while let Some(block) = doomed.pop() {
            let Some(link) = self.links[block as usize].take() else { continue };
            self.by_hash.remove(&link.hash);
            if self.is_idle(block) {
                self.cached.remove(block);
                self.free.push(block);
            }
            doomed.extend(children.remove(&block).unwrap_or_default());
        }
    }

    pub(super) fn is_findable(&self, block: BlockId) -> bool {
        self.links[block as usize].is_some()
    }

    fn is(&self, block: BlockId, parent: Option<BlockId>, tokens: &[u32]) -> bool {
        let at = block as usize * self.block_tokens;
        self.links[block as usize].is_some_and(|link| link.parent == parent)
            && self.contents[at..at + self.block_tokens] == *tokens
    }

    fn hash(&self, parent: Option<BlockId>, tokens: &[u32]) -> u64 {
        self.hasher.hash_one((parent, tokens))
    }

    /// Checks what always holds, given the tables of all that hold blocks.
    #[cfg(test)]
    pub(super) fn audit<'a>(&self, tables: impl IntoIterator<Item = &'a [BlockId]>) {
        let mut holders = vec![0; self.total()];
        for table in tables {
            for (at, &block) in table.iter().enumerate() {
                holders[block as usize] += 1;
                if let Some(link) = self.links[block as usize] {
                    assert_eq!(link.parent, at.checked_sub(1).map(|at| table[at]), "block {block} holds no parent");
                }
            }
        }
        assert_eq!(self.holders, holders, "the counts are exact");
        let used = holders.iter().filter(|count| **count > 0).count();
        assert_eq!(used + self.free() + self.cached(), self.total(), "each block is in one state");
        for &block in &self.free {
            assert!(holders[block as usize] == 0 && !self.is_findable(block));
        }
        let order: Vec<BlockId> = self.cached.iter().collect();
        for (at, &block) in order.iter().enumerate() {
            assert!(holders[block as usize] == 0 && self.is_findable(block));
            let parent = self.links[block as usize].and_then(|link| link.parent);
            assert!(parent.is_none_or(|parent| !order[..at].contains(&parent)), "a parent goes before its child");
        }
        let findable = self.links.iter().flatten();
        assert_eq!(findable.clone().count(), self.by_hash.len());
        for link in findable {
            assert!(link.parent.is_none_or(|parent| self.is_findable(parent)), "a child outlives its parent");
        }
    }
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
