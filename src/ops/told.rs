//! What is asked of the rows of logits of a step, and what is told of them: no more than a token is chosen from.
//!
//! Rows on a GPU are asked in one go, with what else a step is given ([`super::Runs::tell`]).

use candle_core::{Result, bail};

use super::cpu::Reading;
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
    /// How likely this token is, of the vocabulary.
    Scored {
        token: u32,
    },
}

impl Ask {
    pub(super) fn temperature(self) -> Option<f32> {
        match self {
            Ask::Likely { temperature } => Some(temperature),
            Ask::Nothing | Ask::Likeliest | Ask::Scored { .. } => None,
        }
    }

    pub(super) fn scored(self) -> Option<u32> {
        match self {
            Ask::Scored { token } => Some(token),
            Ask::Nothing | Ask::Likeliest | Ask::Likely { .. } => None,
        }
    }
}

/// What is told of a row by which a token is scored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    pub likeliest: Likeliest,
    /// Of the token.
    pub logit: f32,
}

impl Scored {
    /// The logarithms of the probabilities of the token and of the likeliest one; no numbers where the row has something in it that is
    /// none. They are equal where the token is as likely as that.
    pub fn logarithms(&self) -> [f32; 2] {
        let Likeliest { logit: best, log_sum, sound, .. } = self.likeliest;
        if sound { [self.logit - log_sum, best - log_sum] } else { [f32::NAN; 2] }
    }
}

/// Of rows of which something was asked, in their order.
#[derive(Debug, Clone, Default)]
pub struct Told {
    pub likeliest: Vec<Likeliest>,
    pub likely: Vec<Likely>,
    pub scored: Vec<Scored>,
}

/// What is asked of each row of `logits`, `[rows, vocabulary]` in f32, in the process's memory.
pub fn tell(logits: &Tensor, asks: &[Ask]) -> Result<Told> {
    let (count, _) = logits.dims2()?;
    if asks.len() != count {
        bail!("{} of {count} rows are asked", asks.len());
    }
    let greedy: Vec<bool> = asks.iter().map(|ask| *ask == Ask::Likeliest).collect();
    let drawn: Vec<Option<f32>> = asks.iter().map(|ask| ask.temperature()).collect();
    let scored: Vec<bool> = asks.iter().map(|ask| ask.scored().is_some()).collect();
    Ok(Told {
        scored: if scored.contains(&true) { score(logits, asks, &scored)? } else { Vec::new() },
        likeliest: if greedy.contains(&true) { likeliest(logits, &greedy)? } else { Vec::new() },
        likely: if drawn.iter().any(Option::is_some) { likely(logits, &drawn)? } else { Vec::new() },
    })
}

/// The reference of `logit_of_f32`, beside what is told of the likeliest token.
fn score(logits: &Tensor, asks: &[Ask], wanted: &[bool]) -> Result<Vec<Scored>> {
    let reading = Reading::of(logits, "logits")?;
    let rows = reading.rows()?;
    let tokens = asks.iter().enumerate().filter_map(|(row, ask)| Some((row, ask.scored()?)));
    let scored = tokens.zip(likeliest(logits, wanted)?).map(|((row, token), likeliest)| {
        let Some(logit) = rows.row(row).get(token as usize) else { bail!("token {token} is scored") };
        Ok(Scored { likeliest, logit: *logit })
    });
    scored.collect()
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
            Ask::Scored { .. } => told.scored.push(Scored { likeliest: found.likeliest, logit: found.logit }),
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
        assert!(nothing.likeliest.is_empty() && nothing.likely.is_empty() && nothing.scored.is_empty());
        assert!(tell(&logits, &[Ask::Likeliest]).is_err());
    }

    #[test]
    fn a_token_is_scored_by_its_probability_and_that_of_the_likeliest() {
        let rows = [[1f32, 3.0, 2.0], [0.5, 0.0, 0.0], [f32::NAN, 0.0, 1.0], [5.0, f32::NEG_INFINITY, 5.0]];
        let logits = Tensor::from_vec(rows.concat(), (4, 3), &Device::Cpu).unwrap();
        let of = |token| Ask::Scored { token };
        let told = tell(&logits, &[of(2), Ask::Nothing, of(1), of(1)]).unwrap();
        let got: Vec<[f32; 2]> = told.scored.iter().map(Scored::logarithms).collect();
        let sum = (1f32.exp() + 2f32.exp() + 3f32.exp()).ln();
        assert!((got[0][0] - (2.0 - sum)).abs() < 1e-6 && (got[0][1] - (3.0 - sum)).abs() < 1e-6, "{got:?}");
        assert!(got[1][0].is_nan() && got[1][1].is_nan());
        assert_eq!(got[2][0], f32::NEG_INFINITY);
        assert!((got[2][1] + 2f32.ln()).abs() < 1e-6, "{got:?}");
        // As likely as the likeliest, to the bit.
        let [own, best] = tell(&logits, &[of(1), of(0), of(0), of(2)]).unwrap().scored[3].logarithms();
        assert_eq!(own, best);
        assert!(tell(&logits, &[of(3), of(0), of(0), of(0)]).is_err(), "no token of the vocabulary");
    }
}
