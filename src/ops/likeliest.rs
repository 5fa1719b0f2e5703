//! What a step needs to know of a row of logits from which nothing is drawn: which token is the likeliest.
//!
//! A vocabulary is wide, and a GPU's rows are far away: four words of each come instead of all.

use candle_core::{Result, bail};
use rayon::prelude::*;

use super::cpu::{Reading, require_f32};
use super::logits::{exp_sum, first, peak};
use super::tensor::Tensor;

/// What is told of a row of logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likeliest {
    /// Of tokens that are equally likely it is the first.
    pub token: u32,
    /// Negative infinity where no token may be chosen.
    pub logit: f32,
    /// The logarithm of the sum of all exponentials.
    pub log_sum: f32,
    /// Whether every logit is a number below infinity; nothing else is meant where not, but that the token is of the vocabulary.
    pub sound: bool,
}

/// Of `logits`, `[rows, vocabulary]` in f32 and in the process's memory, those rows that are `wanted`, in their order.
pub fn likeliest(logits: &Tensor, wanted: &[bool]) -> Result<Vec<Likeliest>> {
    let (count, vocabulary) = logits.dims2()?;
    if wanted.len() != count || vocabulary == 0 {
        bail!("{} rows are wanted or not, of {count} of {vocabulary}", wanted.len());
    }
    require_f32(logits, "logits")?;
    let reading = Reading::of(logits, "logits")?;
    let rows = reading.rows()?;
    let numbers: Vec<usize> = (0..count).filter(|row| wanted[*row]).collect();
    Ok(numbers.into_par_iter().map(|row| of_row(rows.row(row))).collect())
}

/// The reference of `likeliest_f32`.
pub(super) fn of_row(row: &[f32]) -> Likeliest {
    match peak(row) {
        None => Likeliest { token: 0, logit: f32::NAN, log_sum: f32::NAN, sound: false },
        Some(f32::NEG_INFINITY) => {
            Likeliest { token: 0, logit: f32::NEG_INFINITY, log_sum: f32::NEG_INFINITY, sound: true }
        }
        Some(best) => {
            let log_sum = best + exp_sum(row, best, 1.0).ln();
            Likeliest { token: first(row, best).unwrap_or_default(), logit: best, log_sum, sound: true }
        }
    }
}

/// Bytes that so many rows take on a GPU while they are looked at, at most.
pub fn likeliest_device_bytes(rows: usize, vocabulary: usize) -> u64 {
    #[cfg(feature = "cuda")]
    return super::cuda::likeliest_bytes(rows, vocabulary);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = (rows, vocabulary);
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Device;

    #[test]
    fn of_each_row_that_is_wanted_the_first_of_the_likeliest_is_told() {
        let infinite = f32::NEG_INFINITY;
        let rows = [
            [1.0, 3.0, 3.0, infinite],
            [0.0, 0.0, 0.0, 9.0],
            [f32::NAN, 1.0, 2.0, 3.0],
            [infinite; 4],
            [1.0, f32::INFINITY, 0.0, 0.0],
        ];
        let logits = Tensor::from_vec(rows.concat(), (5, 4), &Device::Cpu).unwrap();
        let got = likeliest(&logits, &[true, false, true, true, true]).unwrap();
        assert_eq!(got.iter().map(|found| found.sound).collect::<Vec<_>>(), [true, false, true, false]);
        assert_eq!((got[0].token, got[0].logit), (1, 3.0));
        let sum = (1f32.exp() + 2.0 * 3f32.exp()).ln();
        assert!((got[0].log_sum - sum).abs() < 1e-5, "{} is not {sum}", got[0].log_sum);
        assert_eq!((got[2].logit, got[2].log_sum), (infinite, infinite));
        assert!(likeliest(&logits, &[true]).is_err());
    }
}
