//! A generation's cache on a GPU, and what a step has there while it runs.

use candle_core::{DType, Result, bail};

use super::launch::{Arguments, Shape};
use super::scratch::{ALIGNMENT, Block};
use super::step::{Heads, OfStep, Step};
use super::{Place, Tensor, bytes_of, failed};
use crate::ops::{KvSpec, Rotary};

/// The widest head that kernels attend with.
const WIDEST: usize = 256;

/// Blocks of all layers, one layer after the other: `kernels/paged.cuh`. They are some of the generation's own slab, for as long as
/// this lives.
#[derive(Debug)]
pub(in crate::ops) struct Cache {
    place: Place,
    block: Block,
    /// Of one layer.
    bytes: usize,
}

impl Cache {
    pub(in crate::ops) fn new(spec: &KvSpec, blocks: usize, place: &Place) -> Result<Cache> {
        if spec.dtype != place.dtype {
            bail!("keys and values as {} for a model in {}", spec.dtype.as_str(), place.dtype.as_str());
        }
        if spec.head_dim > WIDEST {
            bail!("heads of {} numbers: at most {WIDEST} on a GPU", spec.head_dim);
        }
        let values = [spec.heads, 2 * KvSpec::BLOCK_TOKENS, spec.head_dim, spec.dtype.size_in_bytes()];
        let bytes = values.iter().try_fold(blocks, |product, factor| product.checked_mul(*factor));
        let bytes = bytes.and_then(|bytes| bytes.checked_next_multiple_of(ALIGNMENT));
        let Some((bytes, all)) = bytes.and_then(|bytes| Some((bytes, bytes.checked_mul(spec.layers)?))) else {
            bail!("{blocks} blocks are more than can be counted");
        };
        Ok(Cache { place: place.clone(), block: place.scratch.take(all).map_err(failed)?, bytes })
    }

    pub(in crate::ops) fn address(&self) -> u64 {
        self.layer(0)
    }

    /// Where a layer's blocks begin.
    pub(super) fn layer(&self, layer: usize) -> u64 {
        self.block.address() + (layer * self.bytes) as u64
    }
}

/// A step's tables on the GPU, and the room that it needs there.
#[derive(Debug)]
pub(in crate::ops) struct Planned {
    pub(super) step: Step,
    /// u32
    pub(super) table: Tensor,
    /// `[rows, head_dim]`, f32
    pub(super) turns: Tensor,
    /// f32
    pub(super) parts: Tensor,
    /// Of activations.
    pub(super) dtype: DType,
}

impl Planned {
    /// `group`: query heads for each head of the cache; `windows`: of every layer.
    pub(in crate::ops) fn upload(
        of: OfStep<'_>,
        (cache, spec): (&Cache, &KvSpec),
        rotary: &Rotary,
        (group, windows): (usize, &[Option<usize>]),
    ) -> Result<Planned> {
        let frequencies = rotary.inverse_frequencies();
        let step = Step::of(of, Heads { spec, group, windows, frequencies });
        let (words, parts) = (step.words.len(), step.parts);
        let planned = Self::room(step, (words, parts), rotary, &cache.place)?;
        cache.place.send(&[(&planned.table.spot()?, &[bytes_of(&planned.step.words)?])])?;
        planned.turn(rotary)?;
        Ok(planned)
    }

    /// Room for so many words of tables and values of parts, with nothing in it.
    pub(super) fn room(step: Step, (words, parts): (usize, usize), rotary: &Rotary, place: &Place) -> Result<Planned> {
        let table = Tensor::uninitialised(place, &[words], DType::U32)?;
        let turns = Tensor::uninitialised(place, &[step.rows, rotary.head_dim()], DType::F32)?;
        let parts = Tensor::uninitialised(place, &[parts], DType::F32)?;
        Ok(Planned { step, table, turns, parts, dtype: place.dtype })
    }

    /// Queues what every row is turned by.
    pub(super) fn turn(&self, rotary: &Rotary) -> Result<()> {
        let (rows, half) = (self.step.rows, rotary.head_dim() / 2);
        let arguments = Arguments::default().address(self.at(self.step.frequencies));
        let arguments = arguments.address(self.at(self.step.positions)).size(rows).size(half);
        let arguments = arguments.float(rotary.factor()).address(self.turns.address());
        let function = self.table.gpu().kernels.turns();
        #[allow(unsafe_code)]
        // SAFETY: `turns_f32(const float*, const unsigned*, int, int, float, float*)`, of tables that have a frequency for each
        // pair and a position for each row.
        unsafe {
            self.turns.launch(function, Shape::each(8 * rows * half), arguments)
        }
    }

    /// Where a section of the table lies.
    pub(super) fn at(&self, section: usize) -> u64 {
        self.table.address() + (section * size_of::<u32>()) as u64
    }
}
