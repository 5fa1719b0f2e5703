//! A token from each row of a step: what is told of a row, and how it is chosen from.
//!
//! It must not know schedules, nor who is told.

use rayon::prelude::*;

use super::decoding::{Sequence, Spread};
use crate::model::Likeliest;
use crate::process::Choice;

/// What a step tells of a row that a token is chosen from.
pub(super) enum Row {
    Whole(Vec<f32>),
    Likeliest(Likeliest),
}

impl Row {
    /// As a model would give it that computes no numbers.
    pub(super) fn poison(&mut self) {
        match self {
            Row::Whole(row) => row.fill(f32::NAN),
            Row::Likeliest(likeliest) => likeliest.sound = false,
        }
    }
}

/// A sequence's row, and what is chosen from it.
pub(super) struct Draw {
    pub(super) key: u64,
    pub(super) sequence: Sequence,
    pub(super) row: Row,
    /// Nothing where no token can be chosen from such a row.
    pub(super) choice: Option<Choice>,
}

impl Draw {
    fn draw(&mut self) {
        let sampler = &mut self.sequence.sampler;
        self.choice = match &mut self.row {
            Row::Whole(row) => sampler.sample(row).ok(),
            Row::Likeliest(likeliest) => sampler.take(likeliest).ok(),
        };
    }
}

/// Draws from every row; side by side where some are whole, since a vocabulary is wide.
pub(super) fn draw(draws: &mut [Draw], spread: &Spread<'_>) {
    match draws.iter().filter(|draw| matches!(draw.row, Row::Whole(_))).count() {
        0 | 1 => draws.iter_mut().for_each(Draw::draw),
        _ => spread(&mut || draws.par_iter_mut().for_each(Draw::draw)),
    }
}
