//! The likeliest token of every row of logits, found where they lie: few words come down instead of rows.

use candle_core::{DType, Result};

use super::kernels::{Arguments, Shape};
use super::{Tensor, failed};
use crate::ops::Likeliest;

/// Logits that a block looks at. Rows are cut alike whatever there is beside them, so that sums have the same bits.
const EACH: usize = 8192;
/// Words that are told of a row, and values that a block keeps of it.
const WORDS: usize = 4;

fn blocks(vocabulary: usize) -> usize {
    vocabulary.div_ceil(EACH).max(1)
}

/// Bytes of what blocks find, of the counts of those that are done, and of what is told.
pub(in crate::ops) fn likeliest_bytes(rows: usize, vocabulary: usize) -> u64 {
    (rows * (WORDS * blocks(vocabulary) + 1 + WORDS) * size_of::<u32>()) as u64
}

/// Of every row, once everything before has run.
pub(in crate::ops) fn likeliest(logits: &Tensor) -> Result<Vec<Likeliest>> {
    let (rows, vocabulary) = logits.matrix("logits", DType::F32)?;
    let blocks = blocks(vocabulary);
    let parts = logits.beside(&[rows * blocks, WORDS], DType::F32)?;
    let finished = logits.beside(&[rows], DType::U32)?;
    let found = logits.beside(&[rows, WORDS], DType::U32)?;
    finished.clear()?;
    let arguments = Arguments::new(logits).size(vocabulary).address(parts.address());
    let arguments = arguments.address(finished.address()).address(found.address());
    let function = logits.gpu().kernels.likeliest();
    #[allow(unsafe_code)]
    // SAFETY: `likeliest_f32(const float*, int, float*, unsigned*, unsigned*)`, of new memory that has room for what every block
    // of every row finds, and of counts that are 0.
    unsafe { logits.launch(function, Shape::parts(blocks, rows), arguments) }?;
    let words = found.to_words()?;
    let told = words.as_chunks::<WORDS>().0.iter().map(|&[token, logit, log_sum, sound]| Likeliest {
        token,
        logit: f32::from_bits(logit),
        log_sum: f32::from_bits(log_sum),
        sound: sound == 1,
    });
    let told: Vec<Likeliest> = told.collect();
    if told.len() != rows {
        return Err(failed(crate::error::Error::internal(format!("{} of {rows} rows came", told.len()))));
    }
    Ok(told)
}
