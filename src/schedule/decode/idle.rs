//! The blocks that nobody holds but somebody may find again, by when they were last let go of.
//!
//! A linked list in two arrays, so that a block that is found again leaves from the middle at once. It must not know what is
//! in a block.

use super::BlockId;

/// In `next`: this block is not in the list.
const OUTSIDE: BlockId = BlockId::MAX;

#[derive(Debug)]
pub(super) struct Idle {
    /// By block; one more, the ends of the list: after it comes the first, before it the last.
    next: Vec<BlockId>,
    previous: Vec<BlockId>,
    len: usize,
}

impl Idle {
    /// An empty list for blocks `0..blocks`.
    pub(super) fn new(blocks: BlockId) -> Self {
        let mut next = vec![OUTSIDE; blocks as usize + 1];
        next[blocks as usize] = blocks;
        Idle { previous: next.clone(), next, len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Behind all others: it was let go of last.
    pub(super) fn push(&mut self, block: BlockId) {
        debug_assert_eq!(self.next[block as usize], OUTSIDE, "block {block} is idle already");
        let ends = self.ends();
        let last = self.previous[ends as usize];
        self.link(last, block);
        self.link(block, ends);
        self.len += 1;
    }

    /// Takes a block out, wherever it is.
    pub(super) fn remove(&mut self, block: BlockId) {
        debug_assert_ne!(self.next[block as usize], OUTSIDE, "block {block} is not idle");
        self.link(self.previous[block as usize], self.next[block as usize]);
        self.next[block as usize] = OUTSIDE;
        self.len -= 1;
    }

    /// Takes out the one that was let go of first.
    pub(super) fn pop(&mut self) -> Option<BlockId> {
        let first = self.next[self.ends() as usize];
        (first != self.ends()).then(|| {
            self.remove(first);
            first
        })
    }

    fn ends(&self) -> BlockId {
        (self.next.len() - 1) as BlockId
    }

    fn link(&mut self, before: BlockId, after: BlockId) {
        self.next[before as usize] = after;
        self.previous[after as usize] = before;
    }

    /// From the first let go of to the last.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = BlockId> + '_ {
        let ends = self.ends();
        std::iter::successors(Some(self.next[ends as usize]), |at| Some(self.next[*at as usize]))
            .take_while(move |at| *at != ends)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_queue_that_anyone_may_leave(ops in prop::collection::vec((0u8..3, 0u32..8), 0..80)) {
            let (mut idle, mut model) = (Idle::new(8), Vec::new());
            for (op, block) in ops {
                let inside = model.iter().position(|b| *b == block);
                match (op, inside) {
                    (0, None) => {
                        idle.push(block);
                        model.push(block);
                    }
                    (1, Some(at)) => {
                        idle.remove(block);
                        model.remove(at);
                    }
                    (2, _) => {
                        let first = (!model.is_empty()).then(|| model.remove(0));
                        prop_assert_eq!(idle.pop(), first);
                    }
                    _ => {}
                }
                prop_assert_eq!(idle.len(), model.len());
                prop_assert_eq!(idle.iter().collect::<Vec<_>>(), model.clone());
            }
        }
    }
}
