//! One tensor at a time out of its file, or several into one: the bytes that are there, in the format that is wanted, where
//! they stay.
//!
//! Every byte goes by the hasher and every value is looked at once. Must not know which tensors are wanted, nor by whom.

use candle_core::DType;
use half::{bf16, f16};

use super::blocks::Blocks;
use super::cast::{Buffer, CastFrom, Element, bytes_mut, numbers_mut};
use super::load::parts;
use super::source::Source;
use super::{CHUNK, Index, Manifest, Progress, SourceDtype, TensorInfo, Wanted, quoted};
use crate::error::{Error, Result};
#[cfg(feature = "cuda")]
use crate::ops::QuantFormat;
use crate::ops::{Device, Tensor, WeightLayout};

/// One tensor to read, and the names that it goes by.
pub(super) struct Read<'a> {
    /// Tensors of files, the rows of each below those of the one before.
    pub(super) parts: Vec<Part<'a>>,
    /// Of all of it.
    pub(super) shape: Vec<usize>,
    pub(super) dtype: DType,
    pub(super) layout: WeightLayout,
    pub(super) names: Vec<String>,
    /// Where it lies in host memory, if it is parked there.
    #[cfg(feature = "cuda")]
    pub(super) parked: Option<super::parked::Extent>,
}

impl<'a> Read<'a> {
    /// Without a name, and without a place on a device.
    pub(super) fn of(wanted: &Wanted, (index, manifest): (&'a Index, &'a Manifest)) -> Result<Self> {
        Ok(Read {
            parts: parts(wanted, index, manifest)?,
            shape: wanted.whole(),
            dtype: wanted.dtype,
            layout: wanted.layout,
            names: Vec::new(),
            #[cfg(feature = "cuda")]
            parked: None,
        })
    }

    /// File and offset, which reads are ordered by: parts of one tensor mostly lie close together.
    pub(super) fn place(&self) -> Option<(usize, u64)> {
        self.parts.first().map(|part| (part.info.file, part.info.offset))
    }

    /// For errors that are about all of it.
    pub(super) fn name(&self) -> &str {
        self.parts.first().map_or("", |part| &part.info.name)
    }

    /// To be read, or to be copied where it is parked.
    pub(super) fn bytes(&self) -> u64 {
        #[cfg(feature = "cuda")]
        if let Some(extent) = self.parked {
            return extent.bytes as u64;
        }
        self.parts.iter().map(|part| part.info.len).sum()
    }

    /// Which blocks stay blocks on a GPU, if they do.
    #[cfg(feature = "cuda")]
    pub(super) fn packed(&self) -> Option<QuantFormat> {
        match self.layout {
            WeightLayout::Packed(format) => Some(format),
            WeightLayout::Rows | WeightLayout::Panels | WeightLayout::Quantized(_) => None,
        }
    }

    /// Bytes that it takes on a GPU.
    #[cfg(feature = "cuda")]
    pub(super) fn device_bytes(&self) -> usize {
        self.layout.stored(&self.shape).iter().product::<usize>() * self.dtype.size_in_bytes()
    }

    /// Bytes before a part of it where it is parked: as it is wanted, or as its file has it where blocks stay blocks.
    #[cfg(feature = "cuda")]
    pub(super) fn parked_at(&self, elements: usize) -> usize {
        match self.packed() {
            Some(format) => elements / format.block() * format.block_bytes(),
            None => elements * self.dtype.size_in_bytes(),
        }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn elements(&self) -> usize {
        self.parts.iter().map(Part::elements).sum()
    }

    /// What a part of it is read by: how many, and bytes of each. Blocks where they stay blocks, else elements.
    #[cfg(feature = "cuda")]
    pub(super) fn grains(&self, part: &Part<'_>) -> (usize, usize) {
        let (count, bytes) = (part.elements(), part.info.len as usize);
        match self.packed() {
            Some(format) => (count / format.block(), format.block_bytes()),
            None => (count, (bytes / count.max(1)).max(1)),
        }
    }

    /// Whether any of them can be read by themselves: not where they become others and lie in blocks, nor in another order.
    #[cfg(feature = "cuda")]
    pub(super) fn is_read_anywhere(&self, part: &Part<'_>) -> bool {
        part.info.heads.is_none() && (self.packed().is_some() || !part.info.dtype.is_quantised())
    }
}

/// A tensor of a file, as all of a tensor that is read or as part of one.
pub(super) struct Part<'a> {
    pub(super) info: &'a TensorInfo,
    pub(super) digest: &'a str,
    /// Which element of the whole its first is.
    pub(super) first: usize,
}

impl Part<'_> {
    pub(super) fn elements(&self) -> usize {
        // Cannot overflow: the header's check multiplied the same numbers.
        self.info.shape.iter().product()
    }

    /// Bytes that so many of its elements take in its file; a number of blocks, or a little less.
    #[cfg(feature = "cuda")]
    pub(super) fn file_bytes(&self, elements: usize) -> u64 {
        let bytes = u128::from(self.info.len) * elements as u128 / self.elements().max(1) as u128;
        bytes as u64
    }
}

/// Fills memory with a part's values from one of its elements on, as many as fit; the bytes that it filled.
pub(super) type Fill<'a> = fn(&mut Reader<'a>, &Part<'_>, usize, (&mut [u8], &mut Seen)) -> Result<usize>;

/// How a number format in a file becomes one in memory.
pub(super) struct How<'a> {
    /// A whole tensor of the process that has a part of this format.
    whole: fn(&mut Reader<'a>, &Read<'_>) -> Result<Tensor>,
    /// As it is kept in the process.
    pub(super) wanted: Fill<'a>,
    /// As it is sent to a GPU: as the file has it, in this format.
    #[cfg(feature = "cuda")]
    pub(super) raw: (Fill<'a>, DType),
}

impl How<'_> {
    fn same<T: Element>() -> Self {
        How {
            whole: Reader::whole::<T>,
            wanted: Reader::as_it_is::<T>,
            #[cfg(feature = "cuda")]
            raw: (Reader::as_it_is::<T>, T::DTYPE),
        }
    }

    fn cast<S: Element, T: CastFrom<S>>() -> Self {
        How {
            whole: Reader::whole::<T>,
            wanted: Reader::cast::<S, T>,
            #[cfg(feature = "cuda")]
            raw: (Reader::as_it_is::<S>, S::DTYPE),
        }
    }

    fn dequantised<T: CastFrom<f32>>() -> Self {
        How {
            whole: Reader::whole::<T>,
            wanted: Reader::dequantised::<T>,
            #[cfg(feature = "cuda")]
            raw: (Reader::dequantised::<T>, T::DTYPE),
        }
    }
}

/// How a number format in a file becomes one on a device; none where it does not.
///
/// Quantised formats become f32, and what f32 is rounded to from there: on a device too nothing else is known of them.
/// Between floating-point formats, any that rounds at most once; integers only as they are, since a token table or a mask that changes its width is
/// more often a mistake than a wish.
pub(super) fn read_as<'a>(source: SourceDtype, target: DType) -> Option<How<'a>> {
    let how = match (source, target) {
        (SourceDtype::F32, DType::F32) => How::same::<f32>(),
        (SourceDtype::F16, DType::F16) => How::same::<f16>(),
        (SourceDtype::Bf16, DType::BF16) => How::same::<bf16>(),
        (SourceDtype::U8, DType::U8) => How::same::<u8>(),
        (SourceDtype::U32, DType::U32) => How::same::<u32>(),
        (SourceDtype::I16, DType::I16) => How::same::<i16>(),
        (SourceDtype::I32, DType::I32) => How::same::<i32>(),
        (SourceDtype::I64, DType::I64) => How::same::<i64>(),
        (SourceDtype::F64, DType::F64) => How::same::<f64>(),
        (SourceDtype::F16, DType::F32) => How::cast::<f16, f32>(),
        (SourceDtype::Bf16, DType::F32) => How::cast::<bf16, f32>(),
        (SourceDtype::F64, DType::F32) => How::cast::<f64, f32>(),
        (SourceDtype::F32, DType::F16) => How::cast::<f32, f16>(),
        (SourceDtype::Bf16, DType::F16) => How::cast::<bf16, f16>(),
        (SourceDtype::F32, DType::BF16) => How::cast::<f32, bf16>(),
        (SourceDtype::F16, DType::BF16) => How::cast::<f16, bf16>(),
        (quantised, DType::F32) if quantised.is_quantised() => How::dequantised::<f32>(),
        (quantised, DType::F16) if quantised.is_quantised() => How::dequantised::<f16>(),
        (quantised, DType::BF16) if quantised.is_quantised() => How::dequantised::<bf16>(),
        _ => return None,
    };
    Some(how)
}

/// What was seen while the bytes of a tensor of a file went by.
pub(super) struct Seen {
    /// None where bytes are taken for those of the manifest, and whether values are numbers is looked at elsewhere.
    pub(super) hasher: Option<blake3::Hasher>,
    /// Every value so far was a number in the file.
    pub(super) finite: bool,
    /// And still is one in the wanted dtype.
    pub(super) fits: bool,
}

impl Seen {
    pub(super) fn nothing() -> Self {
        Seen { hasher: Some(blake3::Hasher::new()), finite: true, fits: true }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn elsewhere() -> Self {
        Seen { hasher: None, finite: true, fits: true }
    }
}

pub(super) struct Reader<'a> {
    pub(super) source: Source<'a>,
    pub(super) buffer: Buffer,
    pub(super) blocks: Blocks,
    device: &'a Device,
}

impl<'a> Reader<'a> {
    pub(super) fn new((index, progress): (&'a Index, &'a Progress), device: &'a Device) -> Self {
        let source = Source::new(index, progress);
        Reader { source, buffer: Buffer::new(CHUNK), blocks: Blocks::default(), device }
    }
}

impl<'a> Reader<'a> {
    pub(super) fn read(&mut self, read: &Read<'_>) -> Result<Tensor> {
        if let WeightLayout::Quantized(format) = read.layout {
            return self.kept(read, format);
        }
        if let WeightLayout::Packed(format) = read.layout {
            return Err(Error::internal(format!("{format} blocks that are arranged for a GPU, on a CPU")));
        }
        let first = read.parts.first().ok_or_else(|| Error::internal("a tensor that is made of nothing"))?;
        (self.how(first, read.dtype)?.whole)(self, read)
    }

    pub(super) fn how(&self, part: &Part<'_>, wanted: DType) -> Result<How<'a>> {
        read_as(part.info.dtype, wanted).ok_or_else(|| {
            let (from, to) = (part.info.dtype, wanted.as_str());
            self.source.refused(part, format!("tensor {} is {from}, which cannot become {to}", quoted(&part.info.name)))
        })
    }

    /// Where rows stay rows, values go to where they stay; else by way of a piece that is arranged anew.
    fn whole<T: Element>(&mut self, read: &Read<'_>) -> Result<Tensor> {
        let mut values = reserve::<T>(read)?;
        let mut piece = Vec::new();
        if read.layout == WeightLayout::Panels {
            values.resize(values.capacity(), T::default());
            let longest = read.parts.iter().map(Part::elements).max().unwrap_or(0);
            piece.resize(longest.min(CHUNK / size_of::<T>()), T::default());
        }
        for part in &read.parts {
            let (fill, mut seen, mut at) = (self.how(part, read.dtype)?.wanted, Seen::nothing(), 0);
            while at < part.elements() {
                let left = part.elements() - at;
                let room = match read.layout {
                    WeightLayout::Panels => &mut piece[..],
                    WeightLayout::Rows | WeightLayout::Quantized(_) | WeightLayout::Packed(_) => {
                        let start = values.len();
                        values.resize(start + left.min(CHUNK / size_of::<T>()), T::default());
                        &mut values[start..]
                    }
                };
                let filled = fill(self, part, at, (bytes_mut(room), &mut seen))? / size_of::<T>();
                if read.layout == WeightLayout::Panels {
                    let placed = read.layout.place(&mut values, &read.shape, part.first + at, &piece[..filled]);
                    placed.map_err(|error| Error::internal(format!("tensor {}: {error}", quoted(read.name()))))?;
                }
                at += filled;
            }
            self.accept(part, read.dtype, &seen)?;
        }
        self.bring(read, values)
    }

    pub(super) fn bring<T: Element>(&self, read: &Read<'_>, values: Vec<T>) -> Result<Tensor> {
        Tensor::from_vec(values, read.layout.stored(&read.shape), self.device).map_err(|error| {
            let name = quoted(read.name());
            Error::internal(format!("tensor {name} could not be put on its device: {error}"))
        })
    }

    /// The file's own format: straight to where it goes.
    fn as_it_is<T: Element>(
        &mut self,
        part: &Part<'_>,
        from: usize,
        (room, seen): (&mut [u8], &mut Seen),
    ) -> Result<usize> {
        let end = part.elements().min(from + room.len() / size_of::<T>());
        let values = &mut numbers_mut::<T>(room)[..end - from];
        self.source.fill(part, from * size_of::<T>(), bytes_mut(values), seen.hasher.as_mut())?;
        if seen.hasher.is_some() {
            seen.finite &= T::all_finite(values);
        }
        Ok(size_of_val(values))
    }

    /// Through the buffer into the wanted format.
    fn cast<S: Element, T: CastFrom<S>>(
        &mut self,
        part: &Part<'_>,
        from: usize,
        (room, seen): (&mut [u8], &mut Seen),
    ) -> Result<usize> {
        let end = part.elements().min(from + room.len() / size_of::<T>());
        let values = &mut numbers_mut::<T>(room)[..end - from];
        let mut at = 0;
        while at < values.len() {
            let piece = self.buffer.numbers::<S>(values.len() - at);
            self.source.fill(part, (from + at) * size_of::<S>(), bytes_mut(piece), seen.hasher.as_mut())?;
            seen.finite &= S::all_finite(piece);
            let target = &mut values[at..at + piece.len()];
            T::cast(piece, target);
            seen.fits &= T::all_finite(target);
            at += piece.len();
        }
        Ok(size_of_val(values))
    }

    /// Whether a part's bytes were those of the manifest, and its values numbers before and after they were cast.
    pub(super) fn accept(&self, part: &Part<'_>, wanted: DType, seen: &Seen) -> Result<()> {
        let name = quoted(&part.info.name);
        // First, since the values of a file that changed mean nothing.
        if seen.hasher.as_ref().is_some_and(|hasher| hasher.finalize().to_hex().as_str() != part.digest) {
            let reason = format!("tensor {name} is not what its manifest recorded: the file changed");
            return Err(self.source.refused(part, reason));
        }
        self.numbers(part, wanted, seen)
    }

    /// Whether a part's values were numbers, before and after they were cast.
    pub(super) fn numbers(&self, part: &Part<'_>, wanted: DType, seen: &Seen) -> Result<()> {
        let name = quoted(&part.info.name);
        if !seen.finite {
            return Err(self.source.refused(part, format!("tensor {name} holds non-finite values")));
        }
        if !seen.fits {
            let reason = format!("tensor {name} holds values that are too large for {}", wanted.as_str());
            return Err(self.source.refused(part, reason));
        }
        Ok(())
    }
}

/// Room for a whole tensor as it is stored, without dying where there is none.
pub(super) fn reserve<T>(read: &Read<'_>) -> Result<Vec<T>> {
    let mut values = Vec::new();
    let elements: usize = read.layout.stored(&read.shape).iter().product();
    values.try_reserve_exact(elements).map_err(|_| {
        let bytes = (elements as u64).saturating_mul(size_of::<T>() as u64);
        let sum =
            format!("tensor {} takes {bytes} bytes of host memory, which the system refused", quoted(read.name()));
        Error::NoRoom { sum, details: serde_json::json!({ "tensor": read.name(), "bytes": bytes }) }
    })?;
    Ok(values)
}
