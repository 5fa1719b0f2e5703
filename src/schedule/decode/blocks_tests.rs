use proptest::prelude::*;

use super::*;
use crate::schedule::decode::testing::PoorHasher;

fn pool(blocks: BlockId) -> Blocks<std::collections::hash_map::RandomState> {
    Blocks::new(blocks, 2, Default::default())
}

/// Takes and publishes a chain.
fn chain<S: BuildHasher>(blocks: &mut Blocks<S>, tokens: &[[u32; 2]]) -> Vec<BlockId> {
    let mut table = Vec::new();
    for tokens in tokens {
        let block = blocks.take().unwrap();
        assert_eq!(blocks.publish(table.last().copied(), tokens, block), Published::Here);
        table.push(block);
    }
    table
}

/// Where a chain is found.
fn found<S: BuildHasher>(blocks: &Blocks<S>, tokens: &[[u32; 2]]) -> Vec<BlockId> {
    let mut table = Vec::new();
    for tokens in tokens {
        match blocks.find(table.last().copied(), tokens) {
            Some(block) => table.push(block),
            None => break,
        }
    }
    table
}

#[test]
fn a_chain_is_found_by_all_of_it() {
    let mut blocks = pool(8);
    let table = chain(&mut blocks, &[[1, 2], [3, 4]]);
    assert_eq!(found(&blocks, &[[1, 2], [3, 4], [5, 6]]), table);
    assert_eq!(found(&blocks, &[[1, 2], [3, 5]]), table[..1]);
    // The same tokens elsewhere are other keys: they stand at another position, after other tokens.
    assert_eq!(blocks.find(None, &[3, 4]), None);
    assert_eq!(blocks.find(Some(table[1]), &[1, 2]), None);
}

#[test]
fn blocks_that_are_let_go_of_stay_findable_until_their_room_is_needed() {
    let mut blocks = pool(3);
    let table = chain(&mut blocks, &[[1, 2], [3, 4]]);
    blocks.release(&table);
    assert_eq!((blocks.free(), blocks.cached(), blocks.available()), (1, 2, 3));
    // The free one goes first, then the tail, then the head.
    assert!(!table.contains(&blocks.take().unwrap()));
    assert_eq!(found(&blocks, &[[1, 2], [3, 4]]), table);
    assert_eq!(blocks.take(), Some(table[1]));
    assert_eq!(found(&blocks, &[[1, 2], [3, 4]]), table[..1]);
    assert_eq!(blocks.take(), Some(table[0]));
    assert_eq!(blocks.find(None, &[1, 2]), None);
    assert_eq!(blocks.take(), None);
}

#[test]
fn what_was_used_least_recently_is_evicted_first() {
    let mut blocks = pool(3);
    let (a, b, c) = (chain(&mut blocks, &[[1, 1]]), chain(&mut blocks, &[[2, 2]]), chain(&mut blocks, &[[3, 3]]));
    for table in [&a, &b, &c] {
        blocks.release(table);
    }
    // Found again and let go of again: now the most recent.
    blocks.hold(a[0]);
    assert_eq!((blocks.cached(), blocks.is_idle(a[0])), (2, false));
    blocks.release(&a);
    assert_eq!([blocks.take(), blocks.take(), blocks.take()], [Some(b[0]), Some(c[0]), Some(a[0])]);
}

#[test]
fn what_is_held_by_somebody_is_not_evicted() {
    let mut blocks = pool(2);
    let table = chain(&mut blocks, &[[1, 1], [2, 2]]);
    table.iter().for_each(|block| blocks.hold(*block));
    blocks.release(&table);
    assert_eq!((blocks.available(), blocks.take()), (0, None));
    blocks.release(&table);
    assert_eq!(blocks.available(), 2);
}

#[test]
fn the_same_content_is_published_once() {
    let mut blocks = pool(4);
    let table = chain(&mut blocks, &[[1, 1]]);
    let other = blocks.take().unwrap();
    assert_eq!(blocks.publish(None, &[1, 1], other), Published::Already(table[0]));
    assert_eq!(blocks.publish(None, &[1, 1], table[0]), Published::Here);
    assert!(!blocks.is_findable(other));
}

#[test]
fn two_chains_of_one_hash_are_never_taken_for_each_other() {
    let mut blocks = Blocks::new(4, 2, PoorHasher::default());
    let table = chain(&mut blocks, &[[1, 6]]);
    // The sums of their bytes are equal, and so are their hashes.
    assert_eq!(blocks.hash(None, &[1, 6]), blocks.hash(None, &[6, 1]));
    assert_eq!(blocks.find(None, &[6, 1]), None);
    let other = blocks.take().unwrap();
    assert_eq!(blocks.publish(None, &[6, 1], other), Published::Never);
    blocks.release(&[other]);
    assert_eq!((blocks.free(), found(&blocks, &[[1, 6]])), (3, table));
}

#[test]
fn what_is_forgotten_takes_what_goes_on_from_it_along() {
    let mut blocks = pool(8);
    let trunk = chain(&mut blocks, &[[1, 1], [2, 2]]);
    let mut branch = |tokens: [u32; 2]| {
        let block = blocks.take().unwrap();
        assert_eq!(blocks.publish(Some(trunk[0]), &tokens, block), Published::Here);
        block
    };
    let (held, idle) = (branch([3, 3]), branch([4, 4]));
    trunk[..1].iter().for_each(|block| blocks.hold(*block));
    blocks.release(&[trunk[0], idle]);
    blocks.release(&trunk[1..]);
    blocks.forget(&trunk[1..]);
    assert_eq!(found(&blocks, &[[1, 1], [2, 2]]), trunk[..1]);
    assert_eq!((found(&blocks, &[[1, 1], [3, 3]]).len(), found(&blocks, &[[1, 1], [4, 4]]).len()), (2, 2));
    blocks.forget(&trunk[..1]);
    assert!(trunk.iter().chain([&held, &idle]).all(|block| !blocks.is_findable(*block)));
    // What was idle is free; what is held stays with who holds it.
    assert_eq!((blocks.free(), blocks.cached()), (6, 0));
    blocks.release(&[trunk[0], held]);
    assert_eq!((blocks.free(), blocks.cached()), (8, 0));
    blocks.audit([]);
    assert_eq!(chain(&mut blocks, &[[1, 1]]).len(), 1);
}

proptest! {
    /// Sequences come, look for their prefix, publish what they add, and go, with hashes that collide all the time. What is
    /// found is right, and counts, states and the order of eviction are.
    #[test]
    fn what_is_found_is_what_was_published(
        ops in prop::collection::vec((any::<bool>(), prop::collection::vec((0u32..3, 0u32..2), 1..6), 0usize..8), 1..60),
        total in 4u32..16,
    ) {
        let mut blocks = Blocks::new(total, 2, PoorHasher::default());
        let mut contents: HashMap<BlockId, Vec<[u32; 2]>> = HashMap::new();
        let mut tables: Vec<Vec<BlockId>> = Vec::new();
        for (come, tokens, which) in ops {
            let tokens: Vec<[u32; 2]> = tokens.into_iter().map(|(a, b)| [a, b]).collect();
            if come {
                let mut table = found(&blocks, &tokens);
                for (at, block) in table.iter().enumerate() {
                    prop_assert_eq!(&contents[block], &tokens[..=at]);
                    blocks.hold(*block);
                }
                let mut published = true;
                while table.len() < tokens.len() && let Some(block) = blocks.take() {
                    let at = table.len();
                    let parent = table.last().copied();
                    if published && blocks.publish(parent, &tokens[at], block) == Published::Here {
                        contents.insert(block, tokens[..=at].to_vec());
                    } else {
                        // It was looked for and not found: so only another chain can stand in its way.
                        published = false;
                    }
                    table.push(block);
                }
                tables.push(table);
            } else if !tables.is_empty() {
                let table = tables.remove(which % tables.len());
                blocks.release(&table);
            }
            blocks.audit(tables.iter().map(Vec::as_slice));
        }
        for table in tables.drain(..) {
            blocks.release(&table);
        }
        prop_assert_eq!(blocks.available(), total as usize);
    }
}
