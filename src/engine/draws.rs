//! A token from each row of a step: what is told of a row, and how it is chosen from.
//!
//! It must not know schedules, nor who is told.

use rayon::prelude::*;

use super::decoding::{Sequence, Spread};
use crate::error::{Error, Result};
use crate::model::{Likeliest, Likely};
use crate::process::Choice;

/// What a step tells of a row that a token is chosen from.
pub(super) enum Row {
    Whole(Vec<f32>),
    Likeliest(Likeliest),
    Likely(Likely),
}

impl Row {
    /// As a model would give it that computes no numbers.
    pub(super) fn poison(&mut self) {
        match self {
            Row::Whole(row) => row.fill(f32::NAN),
            Row::Likeliest(likeliest) => likeliest.sound = false,
            Row::Likely(likely) => likely.likeliest.sound = false,
        }
    }
}

/// A sequence's row, and what is chosen from it.
pub(super) struct Draw {
    pub(super) key: u64,
    pub(super) sequence: Sequence,
    pub(super) row: Row,
    /// Nothing before the draw, and where no token can be chosen from such a row.
    pub(super) choice: Result<Option<Choice>>,
}

impl Draw {
    fn draw(&mut self) {
        let sampler = &mut self.sequence.sampler;
        self.choice = match &mut self.row {
            Row::Whole(row) => Ok(sampler.sample(row).ok()),
            Row::Likeliest(likeliest) => Ok(sampler.take(likeliest).ok()),
            Row::Likely(likely) => match sampler.draw_from(likely) {
                Ok(Some(choice)) => Ok(Some(choice)),
                // The draw fell among those that were not told, or cuts leave some of them.
                Ok(None) => likely.whole().map_err(Error::internal).map(|mut row| sampler.sample(&mut row).ok()),
                Err(_) => Ok(None),
            },
        };
    }
}

/// Draws from every row; side by side where there is more to it than taking the likeliest.
pub(super) fn draw(draws: &mut [Draw], spread: &Spread<'_>) {
    match draws.iter().filter(|draw| !matches!(draw.row, Row::Likeliest(_))).count() {
        0 | 1 => draws.iter_mut().for_each(Draw::draw),
        _ => spread(&mut || draws.par_iter_mut().for_each(Draw::draw)),
    }
}
