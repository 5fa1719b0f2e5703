//! One tensor at a time out of its file: the bytes that are there, in the format that is wanted, where they stay.
//!
//! Every byte goes by the hasher and every value is looked at once. Must not know which tensors are wanted, nor by whom.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

use candle_core::DType;
use half::{bf16, f16};

use super::cast::{Buffer, CastFrom, Element, bytes_mut};
use super::{CHUNK, Index, Progress, SourceDtype, TensorInfo, quoted};
use crate::error::{Error, Result};
use crate::ops::{Device, Tensor, WeightLayout};

/// One tensor to read, and the names that it goes by.
pub(super) struct Read<'a> {
    pub(super) info: &'a TensorInfo,
    pub(super) dtype: DType,
    pub(super) layout: WeightLayout,
    pub(super) digest: &'a str,
    pub(super) names: Vec<String>,
    /// Where it goes on a GPU, and where it lies in host memory, if it is parked there.
    #[cfg(feature = "cuda")]
    pub(super) room: Option<crate::device::cuda::Buffer>,
    #[cfg(feature = "cuda")]
    pub(super) parked: Option<super::parked::Extent>,
}

impl Read<'_> {
    pub(super) fn elements(&self) -> usize {
        // Cannot overflow: the header's check multiplied the same numbers.
        self.info.shape.iter().product()
    }

    /// To be read, or to be copied where it is parked.
    pub(super) fn bytes(&self) -> u64 {
        #[cfg(feature = "cuda")]
        if let Some(extent) = self.parked {
            return extent.bytes as u64;
        }
        self.info.len
    }
}

/// How a number format in a file becomes one in memory.
pub(super) struct How<'a> {
    /// A whole tensor of the process.
    whole: fn(&mut Reader<'a>, &mut Read<'_>) -> Result<Tensor>,
    /// Part after part of one, as it is parked for a GPU.
    #[cfg(feature = "cuda")]
    pub(super) part: super::staged::Fill<'a>,
    /// And as it is sent to one: as the file has it, in this format.
    #[cfg(feature = "cuda")]
    pub(super) raw: (super::staged::Fill<'a>, DType),
}

impl How<'_> {
    fn same<T: Element>() -> Self {
        How {
            whole: Reader::same::<T>,
            #[cfg(feature = "cuda")]
            part: Reader::part_as_it_is::<T>,
            #[cfg(feature = "cuda")]
            raw: (Reader::part_as_it_is::<T>, T::DTYPE),
        }
    }

    fn cast<S: Element, T: CastFrom<S>>() -> Self {
        How {
            whole: Reader::cast::<S, T>,
            #[cfg(feature = "cuda")]
            part: Reader::part_cast::<S, T>,
            #[cfg(feature = "cuda")]
            raw: (Reader::part_as_it_is::<S>, S::DTYPE),
        }
    }
}

/// How a number format in a file becomes one on a device; none where it does not.
///
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
        _ => return None,
    };
    Some(how)
}

/// What was seen while a tensor's bytes went by.
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
    device: &'a Device,
}

impl<'a> Reader<'a> {
    pub(super) fn new((index, progress): (&'a Index, &'a Progress), device: &'a Device) -> Self {
        Reader { source: Source { index, progress, open: None }, buffer: Buffer::new(CHUNK), device }
    }
}

impl<'a> Reader<'a> {
    pub(super) fn read(&mut self, read: &mut Read<'_>) -> Result<Tensor> {
        let how = self.how(read)?;
        #[cfg(feature = "cuda")]
        if let Device::Cuda(place) = self.device {
            return self.staged(place, read, how.raw);
        }
        (how.whole)(self, read)
    }

    pub(super) fn how(&self, read: &Read<'_>) -> Result<How<'a>> {
        read_as(read.info.dtype, read.dtype).ok_or_else(|| {
            let (from, to) = (read.info.dtype, read.dtype.as_str());
            self.source.refused(read, format!("tensor {} is {from}, which cannot become {to}", quoted(&read.info.name)))
        })
    }

    /// The file's own format is the wanted one: where rows stay rows, bytes go to where they stay.
    fn same<T: Element>(&mut self, read: &mut Read<'_>) -> Result<Tensor> {
        let mut values = reserve::<T>(read)?;
        let mut seen = Seen::nothing();
        match read.layout {
            WeightLayout::Rows => {
                while values.len() < read.elements() {
                    let at = values.len();
                    let end = read.elements().min(at + CHUNK / size_of::<T>());
                    values.resize(end, T::default());
                    let piece = &mut values[at..];
                    self.source.fill(read, at * size_of::<T>(), bytes_mut(piece), seen.hasher.as_mut())?;
                    seen.finite &= T::all_finite(piece);
                }
            }
            WeightLayout::Panels => {
                values.resize(values.capacity(), T::default());
                let mut at = 0;
                while at < read.elements() {
                    let piece = self.buffer.numbers::<T>(read.elements() - at);
                    self.source.fill(read, at * size_of::<T>(), bytes_mut(piece), seen.hasher.as_mut())?;
                    seen.finite &= T::all_finite(piece);
                    read.layout.place(&mut values, &read.info.shape, at, piece);
                    at += piece.len();
                }
            }
        }
        self.finish(read, values, &seen)
    }

    /// Through the buffer into the wanted format, and through another where it is arranged anew.
    fn cast<S: Element, T: CastFrom<S>>(&mut self, read: &mut Read<'_>) -> Result<Tensor> {
        let mut values = reserve::<T>(read)?;
        values.resize(values.capacity(), T::default());
        let mut turned = match read.layout {
            WeightLayout::Rows => Vec::new(),
            WeightLayout::Panels => vec![T::default(); read.elements().min(CHUNK / size_of::<S>())],
        };
        let mut seen = Seen::nothing();
        let mut at = 0;
        while at < read.elements() {
            let piece = self.buffer.numbers::<S>(read.elements() - at);
            let end = at + piece.len();
            self.source.fill(read, at * size_of::<S>(), bytes_mut(piece), seen.hasher.as_mut())?;
            seen.finite &= S::all_finite(piece);
            let target = if turned.is_empty() { &mut values[at..end] } else { &mut turned[..piece.len()] };
            T::cast(piece, target);
            seen.fits &= T::all_finite(target);
            if read.layout == WeightLayout::Panels {
                read.layout.place(&mut values, &read.info.shape, at, &turned[..end - at]);
            }
            at = end;
        }
        self.finish(read, values, &seen)
    }

    fn finish<T: Element>(&self, read: &Read<'_>, values: Vec<T>, seen: &Seen) -> Result<Tensor> {
        self.accept(read, seen)?;
        Tensor::from_vec(values, read.layout.stored(&read.info.shape), self.device).map_err(|error| {
            let name = quoted(&read.info.name);
            Error::internal(format!("tensor {name} could not be put on its device: {error}"))
        })
    }

    /// Whether its bytes were those of the manifest, and its values numbers before and after they were cast.
    pub(super) fn accept(&self, read: &Read<'_>, seen: &Seen) -> Result<()> {
        let name = quoted(&read.info.name);
        // First, since the values of a file that changed mean nothing.
        if seen.hasher.as_ref().is_some_and(|hasher| hasher.finalize().to_hex().as_str() != read.digest) {
            let reason = format!("tensor {name} is not what its manifest recorded: the file changed");
            return Err(self.source.refused(read, reason));
        }
        if !seen.finite {
            return Err(self.source.refused(read, format!("tensor {name} holds non-finite values")));
        }
        if !seen.fits {
            let reason = format!("tensor {name} holds values that are too large for {}", read.dtype.as_str());
            return Err(self.source.refused(read, reason));
        }
        Ok(())
    }
}

/// Room for a whole tensor as it is stored, without dying where there is none.
fn reserve<T>(read: &Read<'_>) -> Result<Vec<T>> {
    let mut values = Vec::new();
    let elements: usize = read.layout.stored(&read.info.shape).iter().product();
    values.try_reserve_exact(elements).map_err(|_| {
        let bytes = (elements as u64).saturating_mul(size_of::<T>() as u64);
        let sum =
            format!("tensor {} takes {bytes} bytes of host memory, which the system refused", quoted(&read.info.name));
        Error::NoRoom { sum, details: serde_json::json!({ "tensor": read.info.name, "bytes": bytes }) }
    })?;
    Ok(values)
}

/// The files of an index, read at given offsets.
pub(super) struct Source<'a> {
    pub(super) index: &'a Index,
    pub(super) progress: &'a Progress,
    /// The file of the last read: reads come in file order, so one is enough.
    pub(super) open: Option<(usize, File)>,
}

impl Source<'_> {
    fn refused(&self, read: &Read<'_>, reason: String) -> Error {
        Error::unloadable(self.index.label_of(read.info), reason)
    }

    /// The tensor's bytes from `at`, as many as `piece` has.
    pub(super) fn fill(
        &mut self,
        read: &Read<'_>,
        at: usize,
        piece: &mut [u8],
        hasher: Option<&mut blake3::Hasher>,
    ) -> Result<()> {
        self.progress.between_chunks()?;
        let offset = read.info.offset + at as u64;
        let result = self.file(read)?.read_exact_at(piece, offset);
        result.map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => self.refused(read, "the file ended early: it changed".to_owned()),
            _ => self.refused(read, format!("cannot read it: {error}")),
        })?;
        if let Some(hasher) = hasher {
            hasher.update(piece);
        }
        self.progress.advance(piece.len() as u64);
        Ok(())
    }

    fn file(&mut self, read: &Read<'_>) -> Result<&File> {
        let number = read.info.file;
        let file = match self.open.take() {
            Some((open, file)) if open == number => file,
            _ => {
                let name = self.index.files.get(number).ok_or_else(|| Error::internal("an index without its file"))?;
                File::open(self.index.dir.join(name))
                    .map_err(|error| self.refused(read, format!("cannot open it: {error}")))?
            }
        };
        Ok(&self.open.insert((number, file)).1)
    }
}
