//! A generation's cache on a GPU, and what a step has there while it runs.

use candle_core::{DType, Result, bail};

use super::kernels::{Arguments, Shape};
use super::scratch::{ALIGNMENT, Block};
use super::step::{Heads, Step};
use super::{Place, Tensor, bytes_of, failed};
use crate::ops::{KvSpec, Rotary, Run};

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
    table: Tensor,
    /// `[rows, head_dim]`, f32
    pub(super) turns: Tensor,
    /// f32
    pub(super) parts: Tensor,
}

impl Planned {
    /// `group`: query heads for each head of the cache; `windows`: of every layer.
    pub(in crate::ops) fn upload(
        runs: &[Run<'_>],
        (cache, spec): (&Cache, &KvSpec),
        rotary: &Rotary,
        (group, windows): (usize, &[Option<usize>]),
    ) -> Result<Planned> {
        let frequencies = rotary.inverse_frequencies();
        let step = Step::of(runs, Heads { spec, group, windows, frequencies });
        let (rows, half) = (runs.iter().map(|run| run.tokens).sum::<usize>(), frequencies.len());
        let place = &cache.place;
        let table = Tensor::uninitialised(place, &[step.words.len()], DType::U32)?;
        place.send(&[(&table.spot()?, &[bytes_of(&step.words)?])])?;
        let turns = Tensor::uninitialised(place, &[rows, 2 * half], DType::F32)?;
        let parts = Tensor::uninitialised(place, &[step.parts], DType::F32)?;
        let planned = Planned { step, table, turns, parts };
        let arguments = Arguments::default().address(planned.at(planned.step.frequencies));
        let arguments = arguments.address(planned.at(planned.step.positions)).size(rows).size(half);
        let arguments = arguments.float(rotary.factor()).address(planned.turns.address());
        let function = place.gpu.kernels.turns();
        #[allow(unsafe_code)]
        // SAFETY: `turns_f32(const float*, const unsigned*, int, int, float, float*)`, of tables that have a frequency for each
        // pair and a position for each row.
        unsafe { planned.turns.launch(function, Shape::each(8 * rows * half), arguments) }?;
        Ok(planned)
    }

    /// Where a section of the table lies.
    pub(super) fn at(&self, section: usize) -> u64 {
        self.table.address() + (section * size_of::<u32>()) as u64
    }
}
