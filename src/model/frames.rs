//! The sizes that small batches are filled up to, so that a pass of each can be recorded once: pure arithmetic.
//!
//! A recorded pass saves the time of its launches, which is most of what a small batch takes; what it is filled up with costs
//! time of its own. So sizes are close to each other, and end where the device has enough to do.

use super::pass::TOKENS_PER_PASS;

/// A size of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Frame {
    pub(super) tokens: usize,
    pub(super) inputs: usize,
}

/// What a model's inputs are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lengths {
    /// One token to so many. Batches of them can be filled up.
    UpTo(usize),
    /// So many tokens each.
    Of(usize),
}

/// Tokens of the frames for inputs of any length.
const TOKENS: [usize; 6] = [16, 32, 64, 128, 256, 512];
/// And inputs.
const INPUTS: [usize; 6] = [1, 2, 4, 8, 16, 32];
/// No frame is for shorter inputs, on the mean: what people ask for is longer.
const SHORT: usize = 4;
/// Inputs of the largest frame where all are of one length.
const MOST_ALIKE: usize = 8;
/// Up to here a batch may be filled up whatever it holds: a device takes the same time for fewer.
const FREE: usize = 64;

impl Lengths {
    /// Every size that a pass is recorded for: those that some batch comes to.
    pub(super) fn frames(self) -> Vec<Frame> {
        match self {
            Lengths::UpTo(longest) => {
                let below = |tokens: usize| TOKENS.into_iter().rev().find(|size| *size < tokens).unwrap_or(0);
                let all = TOKENS.into_iter().flat_map(|tokens| INPUTS.map(|inputs| Frame { tokens, inputs }));
                let fills = |frame: &Frame| {
                    frame.inputs * SHORT <= frame.tokens && frame.inputs.saturating_mul(longest) > below(frame.tokens)
                };
                all.filter(fills).collect()
            }
            Lengths::Of(each) => {
                let most = TOKENS[TOKENS.len() - 1];
                let all = (1..=MOST_ALIKE).map(|inputs| Frame { tokens: inputs.saturating_mul(each), inputs });
                all.filter(|frame| frame.tokens <= most).collect()
            }
        }
    }

    /// Sizes that together need whatever any batch needs looked up, of what is looked up for each power of two of rows. What is found
    /// suits the size itself best, so they are those that batches commonly have: full ones, and powers of two of inputs.
    pub(super) fn representatives(self) -> Vec<Frame> {
        let powers_up_to = |most: usize| {
            std::iter::successors(Some(1), |size| Some(size * 2)).take_while(move |size| *size < most).chain([most])
        };
        match self {
            Lengths::UpTo(longest) => {
                powers_up_to(TOKENS_PER_PASS.max(longest)).map(|rows| Frame { tokens: rows, inputs: rows }).collect()
            }
            Lengths::Of(each) => {
                // Whatever rows an input has, those of twice as many inputs are of the next power of two. So these have all powers of rows
                // of inputs, of tokens, and of tokens beside those that a model adds to each.
                let most = (TOKENS_PER_PASS / each.max(1)).max(1);
                powers_up_to(most).map(|inputs| Frame { tokens: inputs * each, inputs }).collect()
            }
        }
    }

    /// The smallest of some frames, in their order, that a batch is worth filling up to.
    pub(super) fn fitting(self, frames: impl Iterator<Item = Frame>, batch: Frame) -> Option<Frame> {
        let mut frames = frames;
        frames.find(|frame| match self {
            Lengths::UpTo(_) => {
                // Inputs that are added have a token each.
                let filled = frame.inputs.checked_sub(batch.inputs).map(|added| batch.tokens + added);
                filled.is_some_and(|filled| (filled..=FREE.max(2 * filled)).contains(&frame.tokens))
            }
            Lengths::Of(_) => *frame == batch,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn fitting(lengths: Lengths, tokens: usize, inputs: usize) -> Option<(usize, usize)> {
        let frame = lengths.fitting(lengths.frames().into_iter(), Frame { tokens, inputs });
        frame.map(|Frame { tokens, inputs }| (tokens, inputs))
    }

    #[test]
    fn there_are_few_frames_and_none_that_nothing_comes_to() {
        assert_eq!(Lengths::UpTo(512).frames().len(), 30);
        let short: Vec<_> = Lengths::UpTo(20).frames().into_iter().map(|frame| (frame.tokens, frame.inputs)).collect();
        assert_eq!(short[..4], [(16, 1), (16, 2), (16, 4), (32, 1)]);
        assert!(!short.contains(&(64, 1)) && short.contains(&(64, 2)) && short.contains(&(512, 16)));
        assert_eq!(Lengths::Of(197).frames().iter().map(|frame| frame.tokens).collect::<Vec<_>>(), [197, 394]);
        assert_eq!(Lengths::Of(17).frames().len(), MOST_ALIKE);
        assert!(Lengths::Of(usize::MAX).frames().is_empty());
    }

    #[test]
    fn a_batch_runs_in_the_smallest_that_holds_it() {
        let texts = Lengths::UpTo(512);
        assert_eq!(fitting(texts, 9, 1), Some((16, 1)));
        assert_eq!(fitting(texts, 16, 1), Some((16, 1)));
        assert_eq!(fitting(texts, 17, 1), Some((32, 1)));
        // One input is added, and needs a token.
        assert_eq!(fitting(texts, 15, 3), Some((16, 4)));
        assert_eq!(fitting(texts, 16, 3), Some((32, 4)));
        assert_eq!(fitting(texts, 512, 32), Some((512, 32)));
        assert_eq!(fitting(texts, 513, 2), None);
        assert_eq!(fitting(texts, 100, 33), None);
        // 17 inputs of two tokens fill 128 by little more than a quarter.
        assert_eq!(fitting(texts, 34, 17), None);
        assert_eq!(fitting(Lengths::Of(17), 51, 3), Some((51, 3)));
        assert_eq!(fitting(Lengths::Of(17), 17 * 9, 9), None);
    }

    #[test]
    fn representatives_cover_every_power_of_two_of_rows() {
        for lengths in (1..=300).map(Lengths::Of).chain([577, 8192, 9000].map(Lengths::Of)).chain([Lengths::UpTo(512)])
        {
            let all = lengths.representatives();
            let classes = |rows: &dyn Fn(&Frame) -> usize| -> BTreeSet<usize> {
                all.iter().map(|frame| rows(frame).next_power_of_two()).collect()
            };
            let each = if let Lengths::Of(each) = lengths { each } else { 1 };
            let (tokens, inputs) = (classes(&|frame| frame.tokens), classes(&|frame| frame.inputs));
            let patches = classes(&|frame| frame.inputs * (each - 1));
            for count in 1..=TOKENS_PER_PASS / each {
                assert!(inputs.contains(&count.next_power_of_two()), "{lengths:?}: {count} inputs");
                assert!(tokens.contains(&(count * each).next_power_of_two()), "{lengths:?}: {count} of {each}");
                assert!(patches.contains(&(count * (each - 1)).next_power_of_two()), "{lengths:?}: {count} of {each}");
            }
            assert!(all.len() <= 14, "{lengths:?}: {}", all.len());
        }
        let images: Vec<usize> = Lengths::Of(197).representatives().iter().map(|frame| frame.inputs).collect();
        assert_eq!(images, [1, 2, 4, 8, 16, 32, 41]);
        let longer = Lengths::UpTo(10_000).representatives();
        assert_eq!(longer.last(), Some(&Frame { tokens: 10_000, inputs: 10_000 }));
    }

    proptest! {
        #[test]
        fn whatever_fits_is_held_with_room_for_what_is_added(
            longest in 1usize..600, lengths in prop::collection::vec(1usize..600, 1..40),
        ) {
            let lengths: Vec<usize> = lengths.into_iter().map(|length| length.min(longest)).collect();
            let batch = Frame { tokens: lengths.iter().sum(), inputs: lengths.len() };
            let kind = Lengths::UpTo(longest);
            if let Some(frame) = kind.fitting(kind.frames().into_iter(), batch) {
                prop_assert!(frame.inputs >= batch.inputs);
                prop_assert!(batch.tokens + frame.inputs - batch.inputs <= frame.tokens);
                prop_assert!(frame.tokens <= FREE.max(2 * (batch.tokens + frame.inputs)));
                let smaller = |other: &Frame| other < &frame && other.inputs >= batch.inputs
                    && batch.tokens + other.inputs - batch.inputs <= other.tokens;
                prop_assert!(!kind.frames().iter().any(smaller));
            } else {
                // Too much, or of the shortest inputs.
                prop_assert!(batch.tokens > 256 || batch.inputs > 32 || batch.tokens < (SHORT + 1) * batch.inputs);
            }
        }
    }
}
