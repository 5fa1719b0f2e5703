//! How many tokens of prompts a step takes while texts are being written: each of these waits for the step to end.
//!
//! Steps in which all write take about as long as one of them; one with a whole budget of a prompt beside them takes many times that,
//! and everybody's next token comes so much later. So a step is let take a few times as long as it would take without prompts, and no
//! longer (the stall-free batching of Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve",
//! OSDI 2024, with a budget that is measured). Prompts lose what writing takes of such a step, a quarter at most.
//!
//! A text that is scored for a gate takes turns with their steps, each no longer than one of these: both together are still less than a
//! step with prompts.
//!
//! Pure: it is told what steps took.

/// Prompts may take so many times as long as a step in which all write.
const TIMES: f64 = 3.0;

/// Tokens of prompts where it is not known yet what one takes.
const UNKNOWN: usize = 64;

/// Less than this is not worth the step's own time.
const LEAST: usize = 16;

/// Tokens of a text that is scored in one turn: at least, where it is not known what one takes, and at most: a step of a few takes hardly
/// longer than one of theirs who write, since it reads the same weights.
const SCORED: (usize, usize, usize) = (8, 16, 32);

/// The weight of the newest step.
const NEWEST: f64 = 0.25;

/// What steps of one generation take. Times are in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Chunks {
    /// A step in which all write.
    writing: Option<f64>,
    /// A token of a prompt, beside those who write.
    token: Option<f64>,
    /// A token of a text that is scored.
    scored: Option<f64>,
}

impl Chunks {
    /// A step took so long in which so many wrote and so many tokens of prompts were computed.
    pub fn observe(&mut self, took: u64, (writers, prompts): (usize, usize)) {
        let took = took as f64;
        match (writers, prompts) {
            (0, 0) => {}
            (_, 0) => blend(&mut self.writing, took),
            (0, _) => blend(&mut self.token, took / prompts as f64),
            // Where it is not known what they take that write, nobody can tell it from what prompts take.
            (_, _) => {
                if let Some(writing) = self.writing {
                    blend(&mut self.token, (took - writing).max(0.0) / prompts as f64);
                }
            }
        }
    }

    /// A turn took so long in which so many tokens of a text were scored.
    pub fn observe_scored(&mut self, took: u64, tokens: usize) {
        if tokens > 0 {
            blend(&mut self.scored, took as f64 / tokens as f64);
        }
    }

    /// How long a step takes in which all write.
    pub fn writing(&self) -> Option<u64> {
        self.writing.map(|writing| writing as u64)
    }

    /// Tokens of prompts in a step for which others wait that write, of whom a step takes so long.
    pub fn prompts(&self, writing: Option<u64>) -> usize {
        match (writing, self.token) {
            (Some(writing), Some(token)) if token > 0.0 => ((TIMES * writing as f64 / token) as usize).max(LEAST),
            _ => UNKNOWN,
        }
    }

    /// Tokens of a text that is scored in a turn for which others wait that write, of whom a step takes so long.
    pub fn scored(&self, writing: Option<u64>) -> usize {
        let (least, unknown, most) = SCORED;
        match (writing, self.scored) {
            (Some(writing), Some(token)) if token > 0.0 => ((writing as f64 / token) as usize).clamp(least, most),
            _ => unknown,
        }
    }

    /// The same where nobody writes.
    pub const fn scored_alone() -> usize {
        SCORED.2
    }
}

fn blend(known: &mut Option<f64>, newest: f64) {
    *known = Some(known.map_or(newest, |known| known + NEWEST * (newest - known)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A machine on which a step takes 10 ms where anybody writes, and a token of a prompt 0.5 ms.
    fn took(writers: usize, prompts: usize) -> u64 {
        u64::from(writers > 0) * 10_000_000 + prompts as u64 * 500_000
    }

    #[test]
    fn a_step_with_prompts_takes_a_few_times_as_long_as_one_without() {
        let mut chunks = Chunks::default();
        assert_eq!((chunks.prompts(None), chunks.writing()), (UNKNOWN, None));
        chunks.observe(took(0, 512), (0, 512));
        // Nobody knows yet for whom to be careful.
        assert_eq!(chunks.prompts(chunks.writing()), UNKNOWN);
        chunks.observe(took(8, 0), (8, 0));
        assert_eq!(chunks.prompts(chunks.writing()), 60);
        // Those who wait are another generation's, and faster.
        assert_eq!(chunks.prompts(Some(4_000_000)), 24);
        assert_eq!(chunks.prompts(Some(1_000)), LEAST);
    }

    #[test]
    fn a_turn_of_a_text_that_is_scored_takes_no_longer_than_a_step() {
        let mut chunks = Chunks::default();
        assert_eq!(chunks.scored(Some(10_000_000)), 16);
        // Half a millisecond each, and eight to begin with.
        let turn = |tokens: usize| 8_000_000 + tokens as u64 * 500_000;
        for _ in 0..100 {
            let tokens = chunks.scored(Some(20_000_000));
            chunks.observe_scored(turn(tokens), tokens);
        }
        let tokens = chunks.scored(Some(20_000_000));
        assert!((20..=24).contains(&tokens) && turn(tokens) <= 20_000_000, "{tokens}");
        assert_eq!((chunks.scored(Some(1_000)), chunks.scored(Some(1_000_000_000))), (8, 32));
        // None was computed: nothing is known of it.
        let before = chunks;
        chunks.observe_scored(5, 0);
        assert_eq!((chunks, chunks.scored(None)), (before, 16));
    }

    proptest! {
        #[test]
        fn whatever_is_observed_there_is_a_chunk_and_it_comes_to_fit(
            before in prop::collection::vec((0u64..1_000_000_000, 0usize..64, 0usize..600), 0..20),
        ) {
            let mut chunks = Chunks::default();
            for (took, writers, prompts) in before {
                chunks.observe(took, (writers, prompts));
                prop_assert!(chunks.prompts(chunks.writing()) >= LEAST);
            }
            for _ in 0..100 {
                chunks.observe(took(8, 0), (8, 0));
                chunks.observe(took(8, 32), (8, 32));
            }
            prop_assert!((59..=61).contains(&chunks.prompts(chunks.writing())), "{chunks:?}");
        }
    }
}
