//! What is asked of the rows of logits of a step, and what is told of them: no more than a token is chosen from.
//!
//! Rows on a GPU are asked in one go, with what else a step is given ([`super::Runs::tell`]).

use candle_core::{Result, bail};

use super::likeliest::{Likeliest, likeliest};
use super::likely::{Likely, likely};
use super::tensor::Tensor;

/// What is asked of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ask {
    /// It comes whole, and is not asked for here.
    Nothing,
    Likeliest,
    /// What is nearly always enough to draw from it at a temperature, which is above 0.
    Likely {
        temperature: f32,
    },
}

impl Ask {
    pub(super) fn temperature(self) -> Option<f32> {
        match self {
            Ask::Likely { temperature } => Some(temperature),
            Ask::Nothing | Ask::Likeliest => None,
        }
    }
}

/// Of rows of which something was asked, in their order.
#[derive(Debug, Clone, Default)]
pub struct Told {
    pub likeliest: Vec<Likeliest>,
    pub likely: Vec<Likely>,
}

/// What is asked of each row of `logits`, `[rows, vocabulary]` in f32, in the process's memory.
pub fn tell(logits: &Tensor, asks: &[Ask]) -> Result<Told> {
    let (count, _) = logits.dims2()?;
    if asks.len() != count {
        bail!("{} of {count} rows are asked", asks.len());
    }
    let greedy: Vec<bool> = asks.iter().map(|ask| *ask == Ask::Likeliest).collect();
    let drawn: Vec<Option<f32>> = asks.iter().map(|ask| ask.temperature()).collect();
    Ok(Told {
        likeliest: if greedy.contains(&true) { likeliest(logits, &greedy)? } else { Vec::new() },
        likely: if drawn.iter().any(Option::is_some) { likely(logits, &drawn)? } else { Vec::new() },
    })
}

/// The same of what a GPU found of every row, for rows of which something is asked.
#[cfg(feature = "cuda")]
pub(super) fn put_together(logits: &Tensor, asks: &[Ask], found: Vec<super::likely::Found>) -> Result<Told> {
    let mut told = Told::default();
    for ((row, ask), found) in asks.iter().enumerate().zip(found) {
        match *ask {
            Ask::Nothing => {}
            Ask::Likeliest => told.likeliest.push(found.likeliest),
            Ask::Likely { temperature } => told.likely.push(found.of_row(logits, (row, temperature))?),
        }
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Device;

    #[test]
    fn of_each_row_is_told_what_was_asked() {
        let logits =
            Tensor::from_vec(vec![1f32, 3.0, 2.0, 9.0, 0.0, 0.0, 5.0, 5.0, 6.0], (3, 3), &Device::Cpu).unwrap();
        let told = tell(&logits, &[Ask::Likeliest, Ask::Nothing, Ask::Likely { temperature: 0.5 }]).unwrap();
        assert_eq!(told.likeliest.iter().map(|found| found.token).collect::<Vec<_>>(), [1]);
        assert_eq!(told.likely.iter().map(|found| found.likeliest.token).collect::<Vec<_>>(), [2]);
        let nothing = tell(&logits, &[Ask::Nothing; 3]).unwrap();
        assert!(nothing.likeliest.is_empty() && nothing.likely.is_empty());
        assert!(tell(&logits, &[Ask::Likeliest]).is_err());
    }
}
