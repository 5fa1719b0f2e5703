//! Keys and values of sequences, in blocks that any sequence may be given.
//!
//! A block holds 16 tokens of every layer and head: keys as a panel, `[head_dim, 16]`, so that a query meets sixteen of
//! them at once; values as rows, `[16, head_dim]`, filled up to whole panels. Which sequence has which blocks is its block
//! table's business and not known here; nothing is cleared when a block changes hands, and nothing is read that its
//! sequence did not write.
//!
//! On a GPU keys lie as values do: `kernels/paged.cuh`.

use candle_core::{DType, Result, bail};
use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use rayon::prelude::*;

use super::super::matmul::PANEL;
use super::super::tensor::Device;

/// What a block of a cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvSpec {
    pub layers: usize,
    /// Of keys and values: queries may have more.
    pub heads: usize,
    pub head_dim: usize,
    /// f32 or f16; on a GPU that of activations.
    pub dtype: DType,
    /// Tokens of a block: 16.
    pub block_tokens: usize,
}

impl KvSpec {
    /// Tokens of a block, for every model.
    pub const BLOCK_TOKENS: usize = PANEL;

    pub fn bytes_per_block(&self) -> u64 {
        (self.layers * self.heads * self.values_per_head() * self.dtype.size_in_bytes()) as u64
    }

    /// Of one head of one layer of a block: keys, then values.
    pub(super) fn values_per_head(&self) -> usize {
        self.keys_per_head() + PANEL * self.value_stride()
    }

    fn keys_per_head(&self) -> usize {
        self.head_dim * PANEL
    }

    /// From one token's values to the next one's.
    pub(super) fn value_stride(&self) -> usize {
        self.head_dim.next_multiple_of(PANEL)
    }
}

/// All blocks of a generation.
#[derive(Debug)]
pub struct KvCache {
    spec: KvSpec,
    blocks: usize,
    held: Held,
}

/// Where they are.
#[derive(Debug)]
enum Held {
    Host(Vec<Values>),
    #[cfg(feature = "cuda")]
    Cuda(super::super::cuda::Cache),
}

/// Of one layer: `[heads, blocks, keys and values]`, so that heads can be written side by side.
#[derive(Debug)]
enum Values {
    F32(Vec<f32>),
    /// Bits of f16: zeroes of plain integers come from the system as they are, and take no memory before they are written.
    F16(Vec<u16>),
}

impl KvCache {
    /// Room for `blocks` blocks: on a CPU memory is taken as they are first written, on a GPU it is some of the generation's workspace.
    ///
    /// Errors: formats, sizes of heads and of blocks that attention does not read; more blocks than there is room for.
    pub fn new(spec: &KvSpec, blocks: usize, device: &Device) -> Result<Self> {
        if spec.block_tokens != PANEL {
            bail!("blocks of {} tokens, attention reads blocks of {PANEL}", spec.block_tokens);
        }
        #[cfg(feature = "cuda")]
        if let Device::Cuda(place) = device {
            let held = Held::Cuda(super::super::cuda::Cache::new(spec, blocks, place)?);
            return Ok(KvCache { spec: *spec, blocks, held });
        }
        let _ = device;
        let heads = spec.heads.checked_mul(blocks);
        let Some(values) = heads.and_then(|heads| heads.checked_mul(spec.values_per_head())) else {
            bail!("{blocks} blocks are more than can be counted");
        };
        let layer = || match spec.dtype {
            DType::F32 => Ok(Values::F32(vec![0.0; values])),
            DType::F16 => Ok(Values::F16(vec![0; values])),
            other => bail!("keys and values as {other:?}, expected F32 or F16"),
        };
        let layers = (0..spec.layers).map(|_| layer()).collect::<Result<_>>()?;
        Ok(KvCache { spec: *spec, blocks, held: Held::Host(layers) })
    }

    pub(super) fn is_on_cpu(&self) -> bool {
        match &self.held {
            Held::Host(_) => true,
            #[cfg(feature = "cuda")]
            Held::Cuda(_) => false,
        }
    }

    #[cfg(feature = "cuda")]
    pub(in crate::ops) fn on_gpu(&self) -> Option<&super::super::cuda::Cache> {
        match &self.held {
            Held::Host(_) => None,
            Held::Cuda(held) => Some(held),
        }
    }

    /// Of layers, in the process's memory.
    fn layers(&self) -> Result<&[Values]> {
        match &self.held {
            Held::Host(layers) => Ok(layers),
            #[cfg(feature = "cuda")]
            Held::Cuda(_) => bail!("a cache on a GPU where one in the process's memory is needed"),
        }
    }

    pub fn spec(&self) -> &KvSpec {
        &self.spec
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Of all blocks.
    pub fn bytes(&self) -> u64 {
        self.spec.bytes_per_block() * self.blocks as u64
    }

    fn layers_mut(&mut self) -> Result<&mut [Values]> {
        match &mut self.held {
            Held::Host(layers) => Ok(layers),
            #[cfg(feature = "cuda")]
            Held::Cuda(_) => bail!("a cache on a GPU where one in the process's memory is needed"),
        }
    }

    /// Calls `write` for every head of a layer, which it has to itself; over the current pool where that is worth it.
    pub(super) fn write_heads(
        &mut self,
        (layer, apart): (usize, bool),
        write: impl Fn(usize, &mut HeadMut<'_>) + Sync,
    ) -> Result<()> {
        let spec = self.spec;
        let each = self.blocks * spec.values_per_head();
        let Some(layer) = self.layers_mut()?.get_mut(layer) else { bail!("layer {layer} of {}", spec.layers) };
        if each == 0 {
            return Ok(());
        }
        match layer {
            Values::F32(values) => spread((values, each), apart, |at, values| {
                write(at, &mut HeadMut { spec, values: HeadValues::F32(values) });
            }),
            Values::F16(values) => spread((values, each), apart, |at, values| {
                write(at, &mut HeadMut { spec, values: HeadValues::F16(values) });
            }),
        }
        Ok(())
    }

    /// One head of one layer.
    pub(super) fn head(&self, layer: usize, head: usize) -> Result<Head<'_>> {
        let each = self.blocks * self.spec.values_per_head();
        let values = match self.layers()?.get(layer) {
            Some(Values::F32(values)) => values.get(head * each..).map(|values| Head::F32(&values[..each])),
            Some(Values::F16(values)) => {
                values.get(head * each..).map(|values| Head::F16(values[..each].reinterpret_cast()))
            }
            None => None,
        };
        let missing = || candle_core::Error::Msg(format!("head {head} of layer {layer} of a cache of {:?}", self.spec));
        values.ok_or_else(missing)
    }
}

fn spread<T: Send>((values, each): (&mut [T], usize), apart: bool, write: impl Fn(usize, &mut [T]) + Sync) {
    match apart {
        true => values.par_chunks_mut(each).enumerate().for_each(|(at, values)| write(at, values)),
        false => values.chunks_mut(each).enumerate().for_each(|(at, values)| write(at, values)),
    }
}

/// All blocks of one head, being written.
pub(super) struct HeadMut<'a> {
    spec: KvSpec,
    values: HeadValues<'a>,
}

enum HeadValues<'a> {
    F32(&'a mut [f32]),
    F16(&'a mut [u16]),
}

impl HeadMut<'_> {
    /// The key and the value of a block's token `slot`; `head_dim` numbers each.
    pub(super) fn put(&mut self, (block, slot): (u32, usize), key: &[f32], value: &[f32]) {
        let (each, keys) = (self.spec.values_per_head(), self.spec.keys_per_head());
        let (at, row) = (block as usize * each, slot * self.spec.value_stride());
        match &mut self.values {
            HeadValues::F32(values) => {
                let (panel, rows) = values[at..][..each].split_at_mut(keys);
                panel[slot..].iter_mut().step_by(PANEL).zip(key).for_each(|(to, from)| *to = *from);
                rows[row..][..value.len()].copy_from_slice(value);
            }
            HeadValues::F16(values) => {
                let (panel, rows) = values[at..][..each].split_at_mut(keys);
                let narrow = |to: &mut u16, from: &f32| *to = f16::from_f32(*from).to_bits();
                panel[slot..].iter_mut().step_by(PANEL).zip(key).for_each(|(to, from)| narrow(to, from));
                rows[row..][..value.len()].reinterpret_cast_mut::<f16>().convert_from_f32_slice(value);
            }
        }
    }
}

/// All blocks of one head, being read.
#[derive(Clone, Copy)]
pub(super) enum Head<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
}

/// A block's keys, `[head_dim, 16]`, and values, `[16, head_dim filled up]`, of all blocks of one head.
#[inline(always)]
pub(super) fn keys_and_values<'a, W>(head: &'a [W], block: u32, spec: &KvSpec) -> (&'a [W], &'a [W]) {
    let each = spec.values_per_head();
    head[block as usize * each..][..each].split_at(spec.keys_per_head())
}
