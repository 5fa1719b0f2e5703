//! Models that answer with one token after another: what a step of one takes and gives.
//!
//! A step mixes whatever is due: prompts, pieces of prompts, and single tokens of sequences that are being continued. What a
//! sequence saw before lies in blocks of a [`KvCache`], in the order of its block table. Which sequences step together,
//! and which blocks are whose, is decided elsewhere.

use std::sync::Arc;

use super::pass::failed;
use super::recordings::Warmth;
use super::{KvCache, KvSpec};
use crate::error::{Error, Result};
use crate::ops::{Ask, Device, Tensor, Told, tell};
pub use crate::ops::{Begun, Likeliest, Likely, Scored};
use crate::weights::Progress;

/// Tokens of all sequences that one step takes. It bounds a model's memory whatever the scheduler plans; products are as
/// fast as they get well before it.
pub const TOKENS_PER_STEP: usize = 2048;

/// Rows of logits that one step gives: a vocabulary is wide, and so many rows of it are some hundred megabytes.
pub const ROWS_PER_STEP: usize = 256;

/// Sequences that are written at once where nothing else is said.
pub const SEQUENCES: usize = 64;

/// A model that is run step by step.
pub trait Decoder: Send {
    /// What a block of its cache holds.
    fn kv(&self) -> KvSpec;

    /// The longest sequence that it takes, in tokens: prompt and continuation together.
    fn context(&self) -> usize;

    /// How many token ids there are, and so how wide a row of logits is.
    fn vocabulary(&self) -> usize;

    /// Where it computes.
    fn device(&self) -> &Device;

    /// How many blocks a cache may have that is made beside its own, for as long as a text is scored: what its workspace has
    /// room for.
    fn blocks_to_score(&self) -> usize;

    /// Makes ready what first steps over its cache would wait for and, where `records` says so and the device can, records steps of one
    /// token for each sequence; until it is cancelled. Called before the first step, by whoever loads: what the cache holds may be
    /// overwritten. A model steps without it, and as well after it failed.
    fn warm(&mut self, kv: &mut KvCache, how: (bool, &Progress)) -> Warmth;

    /// Runs the tokens of every sequence at once: their keys and values go into the cache, and what is wanted of their rows
    /// comes back, in the order of the sequences and of their tokens.
    ///
    /// On a CPU a sequence's rows are the same, to the bit, whatever steps beside it, and however its tokens are cut into
    /// steps; on a GPU as far as its matrix products go, which choose how they sum by how many rows there are. No two sequences
    /// may write to the same block; blocks that are full may be of several.
    ///
    /// Errors: [`Error::BadRequest`] for a token outside the vocabulary and for a sequence beyond the context;
    /// [`Error::Internal`] for block tables that do not fit the cache, and for steps beyond [`TOKENS_PER_STEP`] or
    /// [`ROWS_PER_STEP`]. Nothing of the step counts then, though some
    /// of its keys and values may have been written.
    fn step(&mut self, step: &StepInput, kv: &mut KvCache) -> Result<Logits>;

    /// Whether `begin` is worth asking.
    fn begins(&self) -> bool {
        false
    }

    /// Begins a step of one token for each sequence, of which only the likeliest to follow is wanted, and waits for nothing. It runs after
    /// all that was begun before. `after`: the step that was begun last, where nothing else ran here since; it is of as many sequences,
    /// and what it tells of each is the token that the same sequence goes on with here, whatever token is given.
    ///
    /// Nothing where the device cannot, or not such a step: what `step` does then is right, whatever was queued. Errors as of `step`.
    fn begin(&mut self, step: &StepInput, after: Option<&mut Begun>, kv: &mut KvCache) -> Result<Option<Begun>> {
        let _ = (step, after, kv);
        Ok(None)
    }
}

/// What runs at once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepInput {
    pub sequences: Vec<StepSequence>,
}

impl StepInput {
    /// Of all sequences.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.tokens.len()).sum()
    }

    /// Rows of logits that are wanted, whole or not.
    pub fn rows(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.wants.rows(sequence.tokens.len())).sum()
    }

    /// What is wanted of each of those.
    fn wants(&self) -> impl Iterator<Item = Wants> {
        self.sequences.iter().flat_map(|sequence| {
            let rows = sequence.wants.rows(sequence.tokens.len());
            std::iter::repeat_n(sequence.wants, rows)
        })
    }

    /// What is asked of each of those.
    pub(super) fn asks(&self) -> Vec<Ask> {
        let asks = |StepSequence { tokens, wants, .. }: &StepSequence| -> Vec<Ask> {
            let followed = |token: &u32| Ask::Scored { token: *token };
            match wants {
                Wants::Scored { .. } => tokens.iter().skip(1).map(followed).chain([wants.ask()]).collect(),
                _ => vec![wants.ask(); wants.rows(tokens.len())],
            }
        };
        self.sequences.iter().flat_map(asks).collect()
    }
}

/// What one sequence goes on with.
#[derive(Debug, Clone, PartialEq)]
pub struct StepSequence {
    /// At positions `from..` of the sequence; at least one.
    pub tokens: Vec<u32>,
    /// How many of its tokens came in steps before.
    pub from: usize,
    /// Its block table up to the last of these tokens, at least: block `i` of it holds positions
    /// `i * block_tokens..(i + 1) * block_tokens`.
    pub blocks: Arc<Vec<u32>>,
    pub wants: Wants,
}

/// Which rows of logits a sequence's tokens are run for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Wants {
    /// They are part of a prompt that goes on.
    Nothing,
    /// What may follow the last of them.
    Last,
    /// Only which token is the likeliest to follow the last of them: the row stays where it was computed.
    Likeliest,
    /// Only what is nearly always enough to draw what follows the last of them at a temperature, which is above 0.
    Likely { temperature: f32 },
    /// What may follow each, whole.
    Every,
    /// How likely each is followed by what stands after it, the last of them by this one.
    Scored { next: u32 },
}

impl Wants {
    /// How many rows that is for so many tokens.
    pub fn rows(self, tokens: usize) -> usize {
        match self {
            Wants::Nothing => 0,
            Wants::Last | Wants::Likeliest | Wants::Likely { .. } => tokens.min(1),
            Wants::Every | Wants::Scored { .. } => tokens,
        }
    }

    /// What is asked of each of these rows.
    fn ask(self) -> Ask {
        match self {
            Wants::Likeliest => Ask::Likeliest,
            Wants::Likely { temperature } => Ask::Likely { temperature },
            Wants::Scored { next } => Ask::Scored { token: next },
            Wants::Nothing | Wants::Last | Wants::Every => Ask::Nothing,
        }
    }

    /// Whether its rows come whole.
    fn is_whole(self) -> bool {
        matches!(self, Wants::Last | Wants::Every)
    }
}

/// Rows of numbers, one for every token id: the larger, the likelier. Of rows that are not wanted whole, what is.
#[derive(Debug, Clone)]
pub struct Logits {
    /// `[rows, vocabulary]`
    values: Vec<f32>,
    vocabulary: usize,
    /// Of other rows.
    likeliest: Vec<Likeliest>,
    /// And of others again.
    likely: Vec<Likely>,
    scored: Vec<Scored>,
}

impl Logits {
    /// `values`: whole rows of `vocabulary` numbers.
    pub fn new(values: Vec<f32>, vocabulary: usize) -> Result<Self> {
        match vocabulary {
            0 => Err(Error::internal("logits without a vocabulary")),
            _ if !values.len().is_multiple_of(vocabulary) => {
                Err(Error::internal(format!("{} numbers are no rows of {vocabulary}", values.len())))
            }
            _ => Ok(Logits { values, vocabulary, likeliest: Vec::new(), likely: Vec::new(), scored: Vec::new() }),
        }
    }

    /// Of `rows`, `[rows that the step wants, vocabulary]`, in the process's memory.
    pub fn of(rows: &Tensor, step: &StepInput) -> Result<Self> {
        let (count, _) = rows.dims2().map_err(failed)?;
        if count != step.rows() {
            return Err(Error::internal(format!("{count} rows where {} are wanted", step.rows())));
        }
        Self::with(rows, step, tell(rows, &step.asks()).map_err(failed)?)
    }

    /// Of as many rows, wherever they lie, and what was told of them: no more than is wanted of others comes from there.
    pub(super) fn with(rows: &Tensor, step: &StepInput, Told { likeliest, likely, scored }: Told) -> Result<Self> {
        let (_, vocabulary) = rows.dims2().map_err(failed)?;
        let wants: Vec<Wants> = step.wants().collect();
        let (mut values, mut next) = (Vec::new(), 0);
        for stretch in wants.chunk_by(|a, b| a.is_whole() == b.is_whole()) {
            if stretch[0].is_whole() {
                let whole = rows.narrow_rows(next, stretch.len()).and_then(|rows| rows.to_values()).map_err(failed)?;
                // One stretch is all that there is, nearly always.
                if values.is_empty() { values = whole } else { values.extend(whole) }
            }
            next += stretch.len();
        }
        Ok(Logits { likeliest, likely, scored, ..Logits::new(values, vocabulary)? })
    }

    /// Of what was told of rows, none of which is wanted whole.
    pub(super) fn told(Told { likeliest, likely, scored }: Told, vocabulary: usize) -> Result<Self> {
        Ok(Logits { likeliest, likely, scored, ..Logits::new(Vec::new(), vocabulary)? })
    }

    /// How many rows, whole or not.
    pub fn count(&self) -> usize {
        self.values.len() / self.vocabulary + self.likeliest.len() + self.likely.len() + self.scored.len()
    }

    /// Of the rows of which no more is wanted, in their order.
    pub fn likeliest(&self) -> &[Likeliest] {
        &self.likeliest
    }

    /// Of the rows that are drawn from, in their order.
    pub fn likely(&self) -> &[Likely] {
        &self.likely
    }

    /// Of the rows by which tokens are scored, in their order.
    pub fn scored(&self) -> &[Scored] {
        &self.scored
    }

    /// Of those that came whole, as all that follows.
    pub fn row(&self, index: usize) -> Option<&[f32]> {
        self.values.get(index * self.vocabulary..)?.get(..self.vocabulary)
    }

    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.vocabulary)
    }

    /// For a sampler, which works in place.
    pub fn rows_mut(&mut self) -> impl ExactSizeIterator<Item = &mut [f32]> {
        self.values.chunks_exact_mut(self.vocabulary)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_counted_by_what_is_wanted() {
        let sequence =
            |tokens, wants| StepSequence { tokens: vec![0; tokens], from: 0, blocks: Arc::new(vec![0]), wants };
        let step = StepInput {
            sequences: vec![sequence(5, Wants::Nothing), sequence(3, Wants::Every), sequence(1, Wants::Last)],
        };
        assert_eq!((step.tokens(), step.rows()), (9, 4));
    }

    #[test]
    fn of_each_row_comes_what_is_wanted() {
        let sequence =
            |tokens, wants| StepSequence { tokens: vec![0; tokens], from: 0, blocks: Arc::new(vec![0]), wants };
        let sequences = vec![
            sequence(2, Wants::Likeliest),
            sequence(2, Wants::Every),
            sequence(5, Wants::Nothing),
            sequence(1, Wants::Likeliest),
            sequence(3, Wants::Last),
        ];
        let rows: Vec<f32> = (0..15).map(|at| (at * 7 % 15) as f32).collect();
        let tensor = |count| Tensor::from_vec(rows[..count * 3].to_vec(), (count, 3), &Device::Cpu).unwrap();
        let step = StepInput { sequences };
        let logits = Logits::of(&tensor(5), &step).unwrap();
        assert_eq!((logits.count(), step.rows()), (5, 5));
        assert_eq!(logits.rows().collect::<Vec<_>>(), [&rows[3..6], &rows[6..9], &rows[12..15]]);
        // Rows 0, 7, 14 and 3, 10, 2.
        let told: Vec<_> = logits.likeliest().iter().map(|found| (found.token, found.logit)).collect();
        assert_eq!(told, [(2, 14.0), (1, 10.0)]);
        assert!(Logits::of(&tensor(4), &step).is_err());
    }

    #[test]
    fn logits_are_whole_rows() {
        let mut logits = Logits::new(vec![1., 2., 3., 4., 5., 6.], 3).unwrap();
        assert_eq!((logits.count(), logits.row(1), logits.row(2)), (2, Some(&[4f32, 5., 6.][..]), None));
        logits.rows_mut().for_each(|row| row[0] = 0.0);
        assert_eq!(logits.rows().collect::<Vec<_>>(), [[0., 2., 3.], [0., 5., 6.]]);
        assert!(Logits::new(vec![0.0; 4], 3).is_err() && Logits::new(Vec::new(), 0).is_err());
        assert_eq!(Logits::new(Vec::new(), 3).unwrap().count(), 0);
    }
}
