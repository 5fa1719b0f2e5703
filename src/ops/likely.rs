//! What a draw needs to know of a row of logits, nearly always: the tokens that are not much less likely than the likeliest.

use candle_core::{Result, bail};

use super::cpu::{Reading, require_f32};
use super::likeliest::{Likeliest, of_row};
use super::logits::{between, exp_sum};
use super::tensor::Tensor;

/// How far below the likeliest tokens are told, in units of the temperature: others are at most 1/2980 as likely.
const REACH: f32 = 8.0;
/// So many tokens of a row are told at most.
pub(super) const MOST: usize = 1024;

/// What is told of a row that is drawn from at some temperature.
#[derive(Debug, Clone)]
pub struct Likely {
    pub likeliest: Likeliest,
    /// Of `e^((logit − the likeliest) / temperature)` over all tokens.
    pub sum: f64,
    /// The least logit of a token that is told.
    pub floor: f32,
    /// All tokens down to there with their logits, by id; nothing where they are too many.
    pub tokens: Option<Vec<(u32, f32)>>,
    /// `[1, vocabulary]`, where it was computed.
    row: Tensor,
}

impl Likely {
    /// How many tokens there are.
    pub fn vocabulary(&self) -> usize {
        self.row.elem_count()
    }

    /// All of the row, whose room is nobody else's while this lives.
    pub fn whole(&self) -> Result<Vec<f32>> {
        self.row.to_values()
    }
}

/// What was found of a row by whoever looked at it.
pub(super) struct Found {
    pub(super) likeliest: Likeliest,
    pub(super) sum: f64,
    pub(super) tokens: Option<Vec<(u32, f32)>>,
    /// Of a token that is scored.
    #[cfg_attr(
        not(feature = "cuda"),
        expect(dead_code, reason = "rows that are here are looked at for it by themselves")
    )]
    pub(super) logit: f32,
}

impl Found {
    /// With the row itself, by its number in `logits`.
    pub(super) fn of_row(self, logits: &Tensor, (row, temperature): (usize, f32)) -> Result<Likely> {
        let Found { likeliest, sum, tokens, .. } = self;
        let floor = likeliest.logit - asked(temperature).1;
        Ok(Likely { likeliest, sum, floor, tokens, row: logits.narrow_rows(row, 1)? })
    }
}

/// What is asked of a row: the inverse of its temperature, and how far below the likeliest tokens are told.
pub(super) type Asked = (f32, f32);

pub(super) fn asked(temperature: f32) -> Asked {
    (1.0 / temperature, REACH * temperature)
}

/// Of `logits`, `[rows, vocabulary]` in f32 and in the process's memory, those rows that are drawn from at a temperature above 0, in
/// their order.
pub fn likely(logits: &Tensor, temperatures: &[Option<f32>]) -> Result<Vec<Likely>> {
    let (count, vocabulary) = logits.dims2()?;
    if temperatures.len() != count || vocabulary == 0 {
        bail!("{} temperatures for {count} rows of {vocabulary}", temperatures.len());
    }
    require_f32(logits, "logits")?;
    let reading = Reading::of(logits, "logits")?;
    let rows = reading.rows()?;
    let drawn = temperatures.iter().enumerate().filter_map(|(row, temperature)| Some((row, (*temperature)?)));
    drawn
        .map(|(row, temperature)| found_of(rows.row(row), asked(temperature)).of_row(logits, (row, temperature)))
        .collect()
}

/// The reference of `likely_f32`.
fn found_of(row: &[f32], (scale, below): Asked) -> Found {
    let likeliest = of_row(row);
    if !likeliest.sound || likeliest.logit == f32::NEG_INFINITY {
        return Found { likeliest, sum: 0.0, tokens: Some(Vec::new()), logit: f32::NAN };
    }
    let mut ids = Vec::new();
    between(row, likeliest.logit - below, f32::INFINITY, &mut ids);
    let tokens = (ids.len() <= MOST).then(|| ids.iter().map(|id| (*id, row[*id as usize])).collect());
    Found { likeliest, sum: f64::from(exp_sum(row, likeliest.logit, scale)), tokens, logit: f32::NAN }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Device;

    #[test]
    fn tokens_are_told_down_to_a_floor_and_none_where_they_are_too_many() {
        let flat = vec![1.0; 2 * MOST];
        let mut steep: Vec<f32> = (0..2 * MOST).map(|at| -(at as f32)).collect();
        steep.swap(3, 5);
        let logits =
            Tensor::from_vec([flat.clone(), steep.clone(), flat].concat(), (3, 2 * MOST), &Device::Cpu).unwrap();
        let got = likely(&logits, &[Some(1.0), Some(0.5), None]).unwrap();
        assert_eq!(got.len(), 2);
        assert!(got[0].tokens.is_none() && (got[0].sum - 2.0 * MOST as f64).abs() < 0.1, "{:?}", got[0].sum);
        let told =
            [(0, 0.0), (1, -1.0), (2, -2.0), (3, -5.0), (4, -4.0), (5, -3.0)].into_iter().filter(|(_, x)| *x >= -4.0);
        assert_eq!((got[1].floor, got[1].tokens.clone()), (-4.0, Some(told.collect())));
        // A geometric series.
        assert!((got[1].sum - 1.0 / (1.0 - (-2f64).exp())).abs() < 1e-5, "{}", got[1].sum);
        assert_eq!((got[1].whole().unwrap(), got[1].vocabulary()), (steep, 2 * MOST));
        assert!(likely(&logits, &[None]).is_err());
    }
}
