//! What is told of rows of logits where they lie: few words come down instead of rows.

use candle_core::{DType, Result, bail};

use super::launch::{Arguments, Shape};
use super::paged::Planned;
use super::{Tensor, failed};
use crate::error::Error;
use crate::ops::likely::{Found, MOST};
use crate::ops::{Ask, Likeliest};

/// Logits that a block looks at. Rows are cut alike whatever there is beside them, so that sums have the same bits.
const EACH: usize = 8192;
/// Words that are told of the likeliest token of a row, and values that a block keeps of it.
const WORDS: usize = 4;

fn blocks(vocabulary: usize) -> usize {
    vocabulary.div_ceil(EACH).max(1)
}

/// What is asked of rows beside their likeliest tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Beside {
    /// Some are drawn from.
    pub(super) draws: bool,
    /// By some a token is scored.
    pub(super) scores: bool,
}

/// Of what is recorded.
pub(super) const DRAWS: Beside = Beside { draws: true, scores: false };

/// Bytes that so many rows take while they are looked at.
pub(in crate::ops) fn likeliest_bytes(rows: usize, vocabulary: usize) -> u64 {
    let beside = Beside { draws: true, scores: true };
    let told = Told { rows, blocks: blocks(vocabulary), beside };
    let looked = WORDS * blocks(vocabulary) + 1 + 2;
    ((told.words() + rows * looked) * size_of::<u32>()) as u64
}

/// Words about rows of logits, on their way.
#[derive(Debug)]
pub(super) struct Answers {
    told: Told,
    pub(super) words: Tensor,
}

impl Planned {
    /// What is asked of rows of logits, once everything before has run: of every row what was found, and of those that are drawn from
    /// all of it. Nothing where nothing is asked.
    pub(in crate::ops) fn tell(&self, logits: &Tensor, asks: &[Ask]) -> Result<Vec<Found>> {
        match asks.iter().all(|ask| *ask == Ask::Nothing) {
            true => Ok(Vec::new()),
            false => self.ask(logits, Beside::of(asks))?.read(asks),
        }
    }

    /// Queues what finds the likeliest token of each row and, where some are drawn from, those that are not much less likely, and where
    /// tokens are scored, their logits.
    pub(super) fn ask(&self, logits: &Tensor, beside: Beside) -> Result<Answers> {
        let (rows, vocabulary) = logits.matrix("logits", DType::F32)?;
        if rows != self.step.logits {
            bail!("{rows} rows of logits of a step that wants {}", self.step.logits);
        }
        let told = Told { rows, blocks: blocks(vocabulary), beside };
        let words = logits.beside(&[told.words()], DType::U32)?;
        let at = |word: usize| words.address() + (word * size_of::<u32>()) as u64;
        let counts = if beside.draws { at(told.counts()) } else { 0 };
        let parts = logits.beside(&[rows * told.blocks, WORDS], DType::F32)?;
        let arguments = Arguments::new(logits).size(vocabulary).address(parts.address());
        let arguments = arguments.address(self.at(self.step.counts)).address(at(0)).address(counts);
        let function = logits.gpu().kernels.likeliest();
        #[allow(unsafe_code)]
        // SAFETY: `likeliest_f32(const float*, int, float*, unsigned*, unsigned*, unsigned*)`, of new memory that has room for what
        // every block of every row finds, and of counts that came up as 0.
        unsafe { logits.launch(function, Shape::parts(told.blocks, rows), arguments) }?;
        if beside.draws {
            let arguments = Arguments::new(logits).size(vocabulary).address(at(0)).address(self.at(self.step.asked));
            let arguments = arguments.size(MOST).address(at(told.sums())).address(counts).address(at(told.tokens()));
            let function = logits.gpu().kernels.likely();
            #[allow(unsafe_code)]
            // SAFETY: `likely_f32(const float*, int, const unsigned*, const float*, int, float*, unsigned*, unsigned*)`, of what was
            // found of every row, two numbers for each, and new memory that has room for what every block of every row finds; the
            // kernel before has set counts to 0.
            unsafe { logits.launch(function, Shape::parts(told.blocks, rows), arguments) }?;
        }
        if beside.scores {
            let arguments = Arguments::new(logits).size(rows).size(vocabulary).address(self.at(self.step.asked));
            let arguments = arguments.address(at(told.scored()));
            let function = logits.gpu().kernels.logit_of();
            #[allow(unsafe_code)]
            // SAFETY: `logit_of_f32(const float*, int, int, const unsigned*, float*)`, of two words for each row and new memory that has
            // room for a number of every row.
            unsafe { logits.launch(function, Shape::thread_each(rows), arguments) }?;
        }
        Ok(Answers { told, words })
    }
}

impl Beside {
    fn of(asks: &[Ask]) -> Beside {
        Beside {
            draws: asks.iter().any(|ask| ask.temperature().is_some()),
            scores: asks.iter().any(|ask| ask.scored().is_some()),
        }
    }
}

impl Answers {
    /// Those of a recorded step that lie in `words` about so many rows of logits of a vocabulary.
    pub(super) fn of(words: Tensor, (rows, vocabulary): (usize, usize)) -> Answers {
        Answers { told: Told { rows, blocks: blocks(vocabulary), beside: DRAWS }, words }
    }

    /// Words about so many rows of which the likeliest token is asked.
    pub(super) fn words_of_greedy(rows: usize) -> usize {
        rows * WORDS
    }

    /// Where in the words each of so many rows has its likeliest token.
    pub(super) fn tokens(rows: usize) -> impl Iterator<Item = u32> {
        (0..rows).map(|row| (row * WORDS) as u32)
    }

    /// About all rows that these are of.
    pub(super) fn read_greedy(words: &[u32]) -> Result<Vec<Likeliest>> {
        (0..words.len() / WORDS).map(|row| read_row(words, row)).collect()
    }

    /// About the first rows, of which this was asked, once everything before has run.
    pub(super) fn read(&self, asks: &[Ask]) -> Result<Vec<Found>> {
        let wanted = Beside::of(asks);
        if wanted.scores && !self.told.beside.scores {
            bail!("tokens are scored by rows of which that was not asked");
        }
        let needed = match wanted.draws {
            _ if wanted.scores => self.told.words(),
            true => self.told.tokens() + asks.len() * MOST * 2,
            false => asks.len() * WORDS,
        };
        let words = self.words.narrow_rows(0, needed)?.to_words()?;
        let found = |(row, ask): (usize, &Ask)| match ask.temperature() {
            Some(_) => self.told.read(&words, row),
            None => {
                let logit = words.get(self.told.scored() + row).filter(|_| wanted.scores).copied();
                let logit = f32::from_bits(logit.unwrap_or(f32::NAN.to_bits()));
                Ok(Found { likeliest: read_row(&words, row)?, sum: 0.0, tokens: None, logit })
            }
        };
        asks.iter().enumerate().map(found).collect()
    }
}

fn read_row(words: &[u32], row: usize) -> Result<Likeliest> {
    let words = words.get(row * WORDS..).and_then(|rest| rest.get(..WORDS)).unwrap_or_default();
    let &[token, logit, log_sum, sound] = words else { bail!("{} words of a row", words.len()) };
    Ok(Likeliest { token, logit: f32::from_bits(logit), log_sum: f32::from_bits(log_sum), sound: sound == 1 })
}

/// What comes down of rows that are drawn from, in words: of all rows their likeliest tokens, then how many tokens each has, then the
/// blocks' sums, then tokens and logits. Where none is drawn from only the first of these; and, where tokens are scored, their logits
/// after all.
#[derive(Debug, Clone, Copy)]
struct Told {
    rows: usize,
    blocks: usize,
    beside: Beside,
}

impl Told {
    fn counts(self) -> usize {
        self.rows * WORDS
    }

    fn sums(self) -> usize {
        self.counts() + self.rows
    }

    fn tokens(self) -> usize {
        self.sums() + self.rows * self.blocks
    }

    fn scored(self) -> usize {
        if self.beside.draws { self.tokens() + self.rows * MOST * 2 } else { self.counts() }
    }

    fn words(self) -> usize {
        self.scored() + if self.beside.scores { self.rows } else { 0 }
    }

    fn read(self, words: &[u32], row: usize) -> Result<Found> {
        let part = |from: usize, each: usize, count: usize| {
            let part = words.get(from + row * each..).and_then(|rest| rest.get(..count));
            part.ok_or_else(|| failed(Error::internal(format!("{} words of {} rows", words.len(), self.rows))))
        };
        let likeliest = read_row(words, row)?;
        let count = part(self.counts(), 1, 1)?[0] as usize;
        let sums = part(self.sums(), self.blocks, self.blocks)?;
        let sum = sums.iter().map(|bits| f64::from(f32::from_bits(*bits))).sum();
        let tokens = match count <= MOST {
            true => {
                let pairs = part(self.tokens(), 2 * MOST, 2 * count)?;
                let mut tokens: Vec<(u32, f32)> =
                    pairs.as_chunks::<2>().0.iter().map(|[token, logit]| (*token, f32::from_bits(*logit))).collect();
                // They came as blocks found them.
                tokens.sort_unstable_by_key(|(token, _)| *token);
                Some(tokens)
            }
            false => None,
        };
        Ok(Found { likeliest, sum, tokens, logit: f32::NAN })
    }
}
