//! A batch of one kind of input, kept so that parts of it can be run again.

use std::ops::Range;

use super::{Input, Pixels, Tokens};
use crate::error::{Error, Result};

#[derive(Debug, Clone)]
pub enum Packed {
    Tokens(Vec<Tokens>),
    Pixels(Vec<Pixels>),
}

impl Packed {
    /// # Errors
    /// `BadRequest` when kinds are mixed: a processor only makes what its model takes.
    pub fn new(inputs: Vec<Input>) -> Result<Packed> {
        let text = inputs.iter().all(|input| matches!(input, Input::Tokens(_)));
        let image = inputs.iter().all(|input| matches!(input, Input::Pixels(_)));
        if !text && !image {
            return Err(Error::bad_request("a batch holds texts or images, not both"));
        }
        let (mut tokens, mut pixels) = (Vec::new(), Vec::new());
        for input in inputs {
            match input {
                Input::Tokens(one) => tokens.push(one),
                Input::Pixels(one) => pixels.push(one),
            }
        }
        Ok(if text { Packed::Tokens(tokens) } else { Packed::Pixels(pixels) })
    }

    pub fn len(&self) -> usize {
        match self {
            Packed::Tokens(all) => all.len(),
            Packed::Pixels(all) => all.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole batch.
    pub fn all(&self) -> Range<usize> {
        0..self.len()
    }
}
