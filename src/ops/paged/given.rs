//! What a step is given beside its keys and values, and what is asked of it: rows in, rows out, and what is told of logits.
//!
//! On a GPU all of it goes up with the step's tables, in one copy.

use candle_core::{Result, bail};

use super::super::matmul::Matrix;
use super::super::take_rows::take_rows;
use super::super::tensor::Tensor;
use super::super::told::{Ask, Told, tell};
use super::Runs;

/// Of all rows of a step, in the order of its runs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Given {
    /// Of every row its token.
    pub ids: Vec<u32>,
    /// The rows of which logits are wanted, ascending.
    pub wanted: Vec<usize>,
    /// What is asked of the logits of each of those.
    pub asks: Vec<Ask>,
}

impl<'a> Runs<'a> {
    /// The same with what else belongs to the step.
    pub fn with(self, given: Given) -> Result<Self> {
        let Given { ids, wanted, asks } = &given;
        let is_there = wanted.is_sorted() && wanted.last().is_none_or(|last| *last < self.total);
        if ids.len() != self.total || !is_there || asks.len() != wanted.len() {
            bail!("{} tokens, rows {wanted:?} and {} questions for {} rows", ids.len(), asks.len(), self.total);
        }
        Ok(Runs { given, ..self })
    }

    /// How many rows of logits are wanted.
    pub fn wanted(&self) -> usize {
        self.given.wanted.len()
    }

    pub fn given(&self) -> &Given {
        &self.given
    }

    /// A table's row for each token: what a step begins with, `[rows, width]`.
    pub fn embed(&self, table: &Matrix) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(planned) = &self.planned {
            table.check(&self.given.ids)?;
            return planned.embed(table).map(Tensor::Cuda);
        }
        table.rows(&self.given.ids)
    }

    /// Those rows of `x` of which logits are wanted: `[wanted, width]`.
    pub fn take_wanted(&self, x: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let (Some(planned), Tensor::Cuda(x)) = (&self.planned, x) {
            return planned.take_wanted(x, self.wanted()).map(Tensor::Cuda);
        }
        take_rows(x, &self.given.wanted)
    }

    /// What is asked of `logits`, `[wanted, vocabulary]` in f32.
    pub fn tell(&self, logits: &Tensor) -> Result<Told> {
        #[cfg(feature = "cuda")]
        if let (Some(planned), Tensor::Cuda(there)) = (&self.planned, logits) {
            let found = planned.tell(there, &self.given.asks)?;
            return super::super::told::put_together(logits, &self.given.asks, found);
        }
        tell(logits, &self.given.asks)
    }
}
