//! What is told of rows of logits where they lie: few words come down instead of rows.

use candle_core::{DType, Result, bail};

use super::kernels::{Arguments, Shape};
use super::{Tensor, failed};
use crate::error::Error;
use crate::ops::Likeliest;
use crate::ops::likely::{Asked, Found, MOST};

/// Logits that a block looks at. Rows are cut alike whatever there is beside them, so that sums have the same bits.
const EACH: usize = 8192;
/// Words that are told of the likeliest token of a row, and values that a block keeps of it.
const WORDS: usize = 4;

fn blocks(vocabulary: usize) -> usize {
    vocabulary.div_ceil(EACH).max(1)
}

/// Bytes that so many rows take while they are looked at.
pub(in crate::ops) fn likeliest_bytes(rows: usize, vocabulary: usize) -> u64 {
    let (told, looked) = (Told { rows, blocks: blocks(vocabulary) }, WORDS * blocks(vocabulary) + 1 + 2);
    ((told.words() + rows * looked) * size_of::<u32>()) as u64
}

/// Of every row, once everything before has run.
pub(in crate::ops) fn likeliest(logits: &Tensor) -> Result<Vec<Likeliest>> {
    let (rows, _) = logits.matrix("logits", DType::F32)?;
    let told = logits.beside(&[rows, WORDS], DType::U32)?;
    look_for_likeliest(logits, &told)?;
    told.to_words()?.chunks_exact(WORDS).map(read).collect()
}

fn read(words: &[u32]) -> Result<Likeliest> {
    let &[token, logit, log_sum, sound] = words else { bail!("{} words of a row", words.len()) };
    Ok(Likeliest { token, logit: f32::from_bits(logit), log_sum: f32::from_bits(log_sum), sound: sound == 1 })
}

/// `told` begins with four words for each row of `logits`.
fn look_for_likeliest(logits: &Tensor, told: &Tensor) -> Result<()> {
    let (rows, vocabulary) = logits.matrix("logits", DType::F32)?;
    let blocks = blocks(vocabulary);
    let parts = logits.beside(&[rows * blocks, WORDS], DType::F32)?;
    let finished = logits.beside(&[rows], DType::U32)?;
    finished.clear()?;
    let arguments = Arguments::new(logits).size(vocabulary).address(parts.address());
    let arguments = arguments.address(finished.address()).address(told.address());
    let function = logits.gpu().kernels.likeliest();
    #[allow(unsafe_code)]
    // SAFETY: `likeliest_f32(const float*, int, float*, unsigned*, unsigned*)`, of new memory that has room for what every block
    // of every row finds, and of counts that are 0.
    unsafe {
        logits.launch(function, Shape::parts(blocks, rows), arguments)
    }
}

/// What comes down of rows that are drawn from, in words: of all rows their likeliest tokens, then how many tokens each has, then the
/// blocks' sums, then tokens and logits.
#[derive(Debug, Clone, Copy)]
struct Told {
    rows: usize,
    blocks: usize,
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

    fn words(self) -> usize {
        self.tokens() + self.rows * MOST * 2
    }

    fn read(self, words: &[u32], row: usize) -> Result<Found> {
        let part = |from: usize, each: usize, count: usize| {
            let part = words.get(from + row * each..).and_then(|rest| rest.get(..count));
            part.ok_or_else(|| failed(Error::internal(format!("{} words of {} rows", words.len(), self.rows))))
        };
        let likeliest = read(part(0, WORDS, WORDS)?)?;
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
        Ok(Found { likeliest, sum, tokens })
    }
}

/// Of the rows of which something is asked, once everything before has run.
pub(in crate::ops) fn likely(logits: &Tensor, asked: &[Option<Asked>]) -> Result<Vec<Found>> {
    let (rows, vocabulary) = logits.matrix("logits", DType::F32)?;
    if asked.len() != rows {
        bail!("{} rows are asked of, of {rows}", asked.len());
    }
    let told = Told { rows, blocks: blocks(vocabulary) };
    let bits: Vec<u32> = asked
        .iter()
        .flat_map(|asked| {
            let (scale, below) = asked.unwrap_or((0.0, 0.0));
            [scale.to_bits(), below.to_bits()]
        })
        .collect();
    let bits = logits.upload_beside(&bits, &[rows, 2])?;
    let words = logits.beside(&[told.words()], DType::U32)?;
    let at = |word: usize| words.address() + (word * size_of::<u32>()) as u64;
    words.narrow_rows(told.counts(), rows)?.clear()?;
    look_for_likeliest(logits, &words)?;
    let arguments = Arguments::new(logits).size(vocabulary).address(at(0)).address(bits.address()).size(MOST);
    let arguments = arguments.address(at(told.sums())).address(at(told.counts())).address(at(told.tokens()));
    let function = logits.gpu().kernels.likely();
    #[allow(unsafe_code)]
    // SAFETY: `likely_f32(const float*, int, const unsigned*, const float*, int, float*, unsigned*, unsigned*)`, of what was found
    // of every row, two numbers for each, and new memory that has room for what every block of every row finds; counts are 0.
    unsafe { logits.launch(function, Shape::parts(told.blocks, rows), arguments) }?;
    let words = words.to_words()?;
    let rows = asked.iter().enumerate().filter(|(_, asked)| asked.is_some());
    rows.map(|(row, _)| told.read(&words, row)).collect()
}
