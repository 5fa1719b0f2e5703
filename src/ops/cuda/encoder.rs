//! What an encoder is made of beside products: embeddings, norms, attention, pooling.

use candle_core::{DType, Result, bail};

use super::kernels::{Kernel, check_heads};
use super::launch::{Arguments, Shape};
use super::{Place, Tensor, failed};
use crate::ops::{Grid, LayerNorm, Reduce, Segments, TokenTables};

pub(in crate::ops) fn embed_tokens(index: &Tensor, tables: &TokenTables) -> Result<Tensor> {
    let words = tables.words.on_gpu("the word embeddings")?;
    let dtype = words.dtype();
    let (_, width) = words.matrix("the word embeddings", dtype)?;
    let table = |table: &crate::ops::Tensor, what: &str| {
        let table = table.on_gpu(what)?;
        match table.matrix(what, dtype)? {
            (_, found) if found == width => Ok(table.address()),
            (_, found) => bail!("{what} are {found} wide, the words' are {width}"),
        }
    };
    let positions = table(&tables.positions, "the position embeddings")?;
    let types = tables.types.as_ref().map_or(Ok(0), |types| table(types, "the type embeddings"))?;
    let (rows, tokens) = index.matrix("token indices", DType::U32)?;
    if rows != 3 {
        bail!("token indices have shape {:?}, expected [3, tokens]", index.dims());
    }
    let norm = Norm::of(&tables.norm, width, dtype)?;
    let out = index.beside(&[tokens, width], dtype)?;
    let arguments = Arguments::new(index).size(tokens).size(width).address(words.address()).address(positions);
    let arguments = norm.add_to(arguments.address(types)).address(out.address());
    // `embed_tokens_T(const unsigned*, int, int, const T*, const T*, const T*, const T*, const T*, float, T*)`
    run(index, (Kernel::EmbedTokens, dtype), Shape::embedding(tokens, width, dtype), arguments)?;
    Ok(out)
}

pub(in crate::ops) fn patches(pixels: &Tensor, grid: &Grid, place: &Place) -> Result<Tensor> {
    let (images, _) = pixels.matrix("pixels", DType::F32)?;
    let count = images * grid.count();
    let out = pixels.beside(&[count, grid.patch_values()], place.dtype())?;
    let Grid { channels, image: [height, width], patch: [tall, wide] } = *grid;
    let arguments = Arguments::new(pixels).size(images).size(channels).size(height).size(width).size(tall).size(wide);
    // `patches_T(const float*, int, int, int, int, int, int, T*)`
    run(pixels, (Kernel::Patches, place.dtype()), Shape::patches(count), arguments.address(out.address()))?;
    Ok(out)
}

pub(in crate::ops) fn embed_patches(patches: &Tensor, class: &Tensor, positions: &Tensor) -> Result<Tensor> {
    let dtype = patches.dtype();
    let (count, width) = patches.matrix("patches", dtype)?;
    let class = class.vector("a class token", width, dtype)?;
    let (places, found) = positions.matrix("position embeddings", dtype)?;
    let Some(each) = places.checked_sub(1).filter(|each| *each > 0 && count.is_multiple_of(*each)) else {
        bail!("{count} patches do not fill images of {places} positions");
    };
    if found != width {
        bail!("patches are {width} wide, the positions {found}");
    }
    let images = count / each;
    let out = patches.beside(&[images * places, width], dtype)?;
    let arguments = Arguments::new(patches).address(class).address(positions.address()).size(images).size(each);
    // `embed_patches_T(const T*, const T*, const T*, int, int, int, T*)`
    let arguments = arguments.size(width).address(out.address());
    run(patches, (Kernel::EmbedPatches, dtype), Shape::warp_each(images * places), arguments)?;
    Ok(out)
}

pub(in crate::ops) fn layer_norm(x: &Tensor, norm: &LayerNorm) -> Result<Tensor> {
    let dtype = x.dtype();
    let (rows, width) = x.matrix("a layer norm's input", dtype)?;
    let norm = Norm::of(norm, width, dtype)?;
    let out = x.beside(x.dims(), dtype)?;
    let arguments = norm.add_to(Arguments::new(x).size(rows).size(width)).address(out.address());
    // `layer_norm_T(const T*, int, int, const T*, const T*, float, T*)`
    run(x, (Kernel::LayerNorm, dtype), Shape::warp_each(rows), arguments)?;
    Ok(out)
}

/// A layer norm's parameters, where they lie.
struct Norm {
    weight: u64,
    bias: u64,
    eps: f32,
}

impl Norm {
    fn of(norm: &LayerNorm, width: usize, dtype: DType) -> Result<Norm> {
        let vector = |tensor: &crate::ops::Tensor, what| tensor.on_gpu(what)?.vector(what, width, dtype);
        let weight = vector(&norm.weight, "a layer norm's weight")?;
        Ok(Norm { weight, bias: vector(&norm.bias, "a layer norm's bias")?, eps: norm.eps as f32 })
    }

    fn add_to(&self, arguments: Arguments) -> Arguments {
        arguments.address(self.weight).address(self.bias).float(self.eps)
    }
}

/// `qkv`: `[tokens, 3 * heads * d]`, each row its query, its key and its value.
pub(in crate::ops) fn self_attention(qkv: &Tensor, (segments, heads): (&Segments, usize)) -> Result<Tensor> {
    let (dtype, plan) = (qkv.dtype(), segments.plan()?);
    let (rows, stride) = qkv.matrix("queries, keys and values", dtype)?;
    if heads == 0 || !stride.is_multiple_of(3 * heads) || rows != segments.total() {
        bail!("{rows} rows of {stride} for queries, keys and values of {heads} heads and {} tokens", segments.total());
    }
    let (width, each) = (stride / 3, stride / (3 * heads));
    check_heads(each, dtype, qkv.gpu().cuda.shared_per_block()).map_err(candle_core::Error::msg)?;
    let (kernel, shape) = Shape::attention(plan.tiles(), heads, each, dtype);
    let out = qkv.beside(&[rows, width], dtype)?;
    let third = |number: usize| qkv.address() + (number * width * dtype.size_in_bytes()) as u64;
    let arguments = Arguments::default().address(third(0)).address(third(1)).address(third(2)).size(stride);
    let arguments = arguments.address(plan.offsets()).address(plan.tile_table()).size(heads).size(each);
    let arguments = arguments.float(1.0 / (each as f32).sqrt()).address(out.address());
    // `attention_W_T(const T*, const T*, const T*, int, const unsigned*, const unsigned*, int, int, float, T*)`
    run(qkv, (kernel, dtype), shape, arguments)?;
    Ok(out)
}

pub(in crate::ops) fn reduce(x: &Tensor, segments: &Segments, how: Reduce) -> Result<Tensor> {
    let (dtype, plan) = (x.dtype(), segments.plan()?);
    let (rows, width) = x.matrix("what is pooled", dtype)?;
    if rows != segments.total() || segments.ranges().any(|range| range.is_empty()) {
        bail!("{rows} rows for sequences of {} tokens, none of which may be empty", segments.total());
    }
    let sequences = plan.sequences();
    let out = x.beside(&[sequences, width], dtype)?;
    let kind = match how {
        Reduce::Mean => 0,
        Reduce::First => 1,
        Reduce::Max => 2,
    };
    let arguments = Arguments::new(x).size(width).address(plan.offsets()).size(sequences).size(width).size(kind);
    // `pool_T(const T*, int, const unsigned*, int, int, int, T*)`
    run(x, (Kernel::Pool, dtype), Shape::pool(sequences, width), arguments.address(out.address()))?;
    Ok(out)
}

pub(in crate::ops) fn l2_normalize(x: &Tensor) -> Result<Tensor> {
    let (rows, width) = x.matrix("what is normalised", x.dtype())?;
    let out = x.beside(x.dims(), DType::F32)?;
    let arguments = Arguments::new(x).size(rows).size(width).address(out.address());
    // `l2_normalize_T(const T*, int, int, float*)`
    run(x, (Kernel::L2Normalize, x.dtype()), Shape::warp_each(rows), arguments)?;
    Ok(out)
}

/// Queues a kernel on `x`'s stream. Callers in this file hold shapes against each other first, and write to new tensors.
fn run(x: &Tensor, (kernel, dtype): (Kernel, DType), shape: Shape, arguments: Arguments) -> Result<()> {
    let function = x.gpu().kernels.get(kernel, dtype).map_err(failed)?;
    #[allow(unsafe_code)]
    // SAFETY: the arguments are the kernel's, as is said where each is called, of tensors of the shapes that were checked.
    unsafe {
        x.launch(function, shape, arguments)
    }
}
