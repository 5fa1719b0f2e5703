//! From files to tensors: each wanted tensor is read once, in file order, straight into its final memory.
//!
//! At any moment a load holds the tensors that it has made, the one that it is making, and one buffer of 1 MiB. Tensors
//! that are resident already are not read at all. Every byte is held against the manifest before it is used.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

use super::cast::{Buffer, CastFrom, Element, bytes_mut};
use super::{CHUNK, Index, Manifest, Progress, SourceDtype, TensorInfo, quoted};
use crate::error::{Error, Result};
use crate::ops::WeightLayout;

/// How many tensors an error names before it only counts.
const NAMED: usize = 8;

/// A tensor that a family asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    pub name: String,
    pub shape: Vec<usize>,
    /// What it becomes, whatever its file holds.
    pub dtype: DType,
    /// How it is arranged on its device.
    pub layout: WeightLayout,
}

impl Wanted {
    fn bytes(&self) -> u64 {
        let stored = self.layout.stored(&self.shape);
        let elements = stored.iter().fold(1u64, |product, &size| product.saturating_mul(size as u64));
        elements.saturating_mul(self.dtype.size_in_bytes() as u64)
    }
}

/// What a version takes on a device: an upper bound, known from headers alone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Footprint {
    pub wanted: Vec<Wanted>,
    /// Bytes of activations at the largest batch.
    pub workspace: u64,
}

impl Footprint {
    pub fn weight_bytes(&self) -> u64 {
        self.wanted.iter().fold(0, |sum, wanted| sum.saturating_add(wanted.bytes()))
    }

    pub fn total(&self) -> u64 {
        self.weight_bytes().saturating_add(self.workspace)
    }
}

/// Equal keys are equal tensors: what the file holds, and what is made of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TensorKey {
    /// The source's number format and the digest of its bytes: the same bytes as f16 and as bf16 are other numbers.
    pub digest: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub layout: WeightLayout,
}

/// The tensors of one version, until its model takes them.
pub struct Weights {
    tensors: HashMap<String, Tensor>,
    keys: HashMap<String, TensorKey>,
    exclusive: u64,
    shared: u64,
}

impl Weights {
    /// A tensor that the footprint asked for.
    pub fn take(&mut self, name: &str) -> Result<Tensor> {
        let missing = || Error::internal(format!("tensor {} was not asked for, or is taken already", quoted(name)));
        self.take_optional(name).ok_or_else(missing)
    }

    pub fn take_optional(&mut self, name: &str) -> Option<Tensor> {
        self.tensors.remove(name)
    }

    /// The tensors that are not taken yet, with what they may be shared by; one that has several names comes several times.
    pub fn entries(&self) -> impl Iterator<Item = (&TensorKey, &Tensor)> {
        self.tensors.iter().filter_map(|(name, tensor)| Some((self.keys.get(name)?, tensor)))
    }

    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Bytes that this load allocated on the device.
    pub fn exclusive_bytes(&self) -> u64 {
        self.exclusive
    }

    /// Bytes that were resident already.
    pub fn shared_bytes(&self) -> u64 {
        self.shared
    }
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Weights { tensors, exclusive, shared, .. } = self;
        f.debug_struct("Weights")
            .field("tensors", &tensors.len())
            .field("exclusive", exclusive)
            .field("shared", shared)
            .finish()
    }
}

/// Compares what is wanted with what is there, before anything is reserved or read.
///
/// Missing and misshapen tensors, number formats that cannot be converted, and tensors that nobody wants and `ignored`
/// does not know are one error that names the first eight of them.
pub fn check(index: &Index, wanted: &[Wanted], ignored: &dyn Fn(&str) -> bool) -> Result<()> {
    let mut wrong = Vec::new();
    let mut names = HashSet::new();
    for want in wanted {
        let name = quoted(&want.name);
        if !names.insert(want.name.as_str()) {
            return Err(Error::internal(format!("tensor {name} is wanted twice")));
        }
        match index.get(&want.name) {
            None => wrong.push(format!("{name} is missing")),
            Some(info) if info.shape != want.shape => {
                wrong.push(format!("{name} has shape {:?}, not {:?}", info.shape, want.shape));
            }
            Some(info) if read_as(info.dtype, want.dtype).is_none() => {
                wrong.push(format!("{name} is {}, which cannot become {}", info.dtype, want.dtype.as_str()));
            }
            Some(_) => {}
        }
    }
    let extra = index.iter().filter(|info| !names.contains(info.name.as_str()) && !ignored(&info.name));
    wrong.extend(extra.map(|info| format!("{} is not part of this architecture", quoted(&info.name))));
    if wrong.is_empty() {
        return Ok(());
    }
    let more = wrong.len().saturating_sub(NAMED);
    let tail = if more > 0 { format!(", and {more} more") } else { String::new() };
    wrong.truncate(NAMED);
    Err(Error::unloadable(index.label(""), format!("the tensors do not fit: {}{tail}", wrong.join(", "))))
}

/// Under which key a wanted tensor may be found among the resident ones.
pub fn key_of(wanted: &Wanted, index: &Index, manifest: &Manifest) -> Result<TensorKey> {
    let info = find(wanted, index)?;
    let digest = digest_of(info, index, manifest)?;
    let (dtype, shape, layout) = (wanted.dtype, wanted.shape.clone(), wanted.layout);
    Ok(TensorKey { digest: format!("{}:{digest}", info.dtype), dtype, shape, layout })
}

/// Reads the wanted tensors, but for those in `resident`, and puts them on `device`.
///
/// Fails, and drops what it made, when a tensor is missing or misshapen, a file cannot be read or its bytes are not those
/// of the manifest, a value is not finite or does not fit the wanted dtype, memory is short, or `progress` was cancelled.
pub fn load(
    index: &Index,
    manifest: &Manifest,
    wanted: &[Wanted],
    resident: HashMap<TensorKey, Tensor>,
    device: &Device,
    progress: &Progress,
) -> Result<Weights> {
    let mut weights = Weights { tensors: HashMap::new(), keys: HashMap::new(), exclusive: 0, shared: 0 };
    let mut reads: HashMap<TensorKey, Read<'_>> = HashMap::new();
    let mut counted = HashSet::new();
    for want in wanted {
        let key = key_of(want, index, manifest)?;
        if weights.keys.insert(want.name.clone(), key.clone()).is_some() {
            return Err(Error::internal(format!("tensor {} is wanted twice", quoted(&want.name))));
        }
        if let Some(tensor) = resident.get(&key) {
            same_kind(tensor, &key, device)?;
            if counted.insert(key) {
                weights.shared += want.bytes();
            }
            weights.tensors.insert(want.name.clone(), tensor.clone());
        } else {
            let info = find(want, index)?;
            let digest = digest_of(info, index, manifest)?;
            let read = Read { info, dtype: want.dtype, layout: want.layout, digest, names: Vec::new() };
            // Tensors with equal bytes (tied weights that were saved twice) are read once.
            reads.entry(key).or_insert(read).names.push(want.name.clone());
        }
    }
    drop(resident);
    let mut reads: Vec<Read<'_>> = reads.into_values().collect();
    reads.sort_by_key(|read| Reverse((read.info.file, read.info.offset)));
    progress.begin(reads.iter().map(|read| read.info.len).sum());
    let mut reader = Reader { source: Source { index, progress, open: None }, buffer: Buffer::new(CHUNK), device };
    while let Some(read) = reads.pop() {
        let tensor = reader.read(&read)?;
        weights.exclusive += (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64;
        weights.tensors.extend(read.names.into_iter().map(|name| (name, tensor.clone())));
    }
    progress.check()?;
    Ok(weights)
}

fn find<'a>(wanted: &Wanted, index: &'a Index) -> Result<&'a TensorInfo> {
    let name = quoted(&wanted.name);
    let info = index.get(&wanted.name);
    let info = info.ok_or_else(|| Error::unloadable(index.label(""), format!("tensor {name} is missing")))?;
    if info.shape != wanted.shape {
        let reason = format!("tensor {name} has shape {:?}, not {:?}", info.shape, wanted.shape);
        return Err(Error::unloadable(index.label_of(info), reason));
    }
    Ok(info)
}

fn digest_of<'a>(info: &TensorInfo, index: &Index, manifest: &'a Manifest) -> Result<&'a str> {
    let unknown = || {
        let reason = format!("the manifest knows no tensor {}: the folder changed", quoted(&info.name));
        Error::unloadable(index.label_of(info), reason)
    };
    manifest.tensors.get(&info.name).map(String::as_str).ok_or_else(unknown)
}

fn same_kind(tensor: &Tensor, key: &TensorKey, device: &Device) -> Result<()> {
    let shape = key.layout.stored(&key.shape);
    let fits = tensor.dtype() == key.dtype && tensor.dims() == shape && tensor.device().same_device(device);
    if fits { Ok(()) } else { Err(Error::internal("a resident tensor is not what its key says")) }
}

/// One tensor to read, and the names that it goes by.
struct Read<'a> {
    info: &'a TensorInfo,
    dtype: DType,
    layout: WeightLayout,
    digest: &'a str,
    names: Vec<String>,
}

impl Read<'_> {
    fn elements(&self) -> usize {
        // Cannot overflow: the header's check multiplied the same numbers.
        self.info.shape.iter().product()
    }
}

type ReadAs<'a> = fn(&mut Reader<'a>, &Read<'_>) -> Result<Tensor>;

/// How a number format in a file becomes one on a device; none where it does not.
///
/// Between floating-point formats, any that rounds at most once; integers only as they are, since a token table or a mask that changes its width is
/// more often a mistake than a wish.
fn read_as<'a>(source: SourceDtype, target: DType) -> Option<ReadAs<'a>> {
    let read: ReadAs<'a> = match (source, target) {
        (SourceDtype::F32, DType::F32) => Reader::same::<f32>,
        (SourceDtype::F16, DType::F16) => Reader::same::<f16>,
        (SourceDtype::Bf16, DType::BF16) => Reader::same::<bf16>,
        (SourceDtype::U8, DType::U8) => Reader::same::<u8>,
        (SourceDtype::U32, DType::U32) => Reader::same::<u32>,
        (SourceDtype::I16, DType::I16) => Reader::same::<i16>,
        (SourceDtype::I32, DType::I32) => Reader::same::<i32>,
        (SourceDtype::I64, DType::I64) => Reader::same::<i64>,
        (SourceDtype::F64, DType::F64) => Reader::same::<f64>,
        (SourceDtype::F16, DType::F32) => Reader::cast::<f16, f32>,
        (SourceDtype::Bf16, DType::F32) => Reader::cast::<bf16, f32>,
        (SourceDtype::F64, DType::F32) => Reader::cast::<f64, f32>,
        (SourceDtype::F32, DType::F16) => Reader::cast::<f32, f16>,
        (SourceDtype::Bf16, DType::F16) => Reader::cast::<bf16, f16>,
        (SourceDtype::F32, DType::BF16) => Reader::cast::<f32, bf16>,
        (SourceDtype::F16, DType::BF16) => Reader::cast::<f16, bf16>,
        _ => return None,
    };
    Some(read)
}

/// What was seen while a tensor's bytes went by.
struct Seen {
    hasher: blake3::Hasher,
    /// Every value so far was a number in the file.
    finite: bool,
    /// And still is one in the wanted dtype.
    fits: bool,
}

impl Seen {
    fn nothing() -> Self {
        Seen { hasher: blake3::Hasher::new(), finite: true, fits: true }
    }
}

struct Reader<'a> {
    source: Source<'a>,
    buffer: Buffer,
    device: &'a Device,
}

impl Reader<'_> {
    fn read(&mut self, read: &Read<'_>) -> Result<Tensor> {
        let how = read_as(read.info.dtype, read.dtype).ok_or_else(|| {
            let (from, to) = (read.info.dtype, read.dtype.as_str());
            self.source.refused(read, format!("tensor {} is {from}, which cannot become {to}", quoted(&read.info.name)))
        })?;
        how(self, read)
    }

    /// The file's own format is the wanted one: where rows stay rows, bytes go to where they stay.
    fn same<T: Element>(&mut self, read: &Read<'_>) -> Result<Tensor> {
        let mut values = reserve::<T>(read)?;
        let mut seen = Seen::nothing();
        match read.layout {
            WeightLayout::Rows => {
                while values.len() < read.elements() {
                    let at = values.len();
                    let end = read.elements().min(at + CHUNK / size_of::<T>());
                    values.resize(end, T::default());
                    let piece = &mut values[at..];
                    self.source.fill(read, at * size_of::<T>(), bytes_mut(piece), &mut seen.hasher)?;
                    seen.finite &= T::all_finite(piece);
                }
            }
            WeightLayout::Panels => {
                values.resize(values.capacity(), T::default());
                let mut at = 0;
                while at < read.elements() {
                    let piece = self.buffer.numbers::<T>(read.elements() - at);
                    self.source.fill(read, at * size_of::<T>(), bytes_mut(piece), &mut seen.hasher)?;
                    seen.finite &= T::all_finite(piece);
                    read.layout.place(&mut values, &read.info.shape, at, piece);
                    at += piece.len();
                }
            }
        }
        self.finish(read, values, &seen)
    }

    /// Through the buffer into the wanted format, and through another where it is arranged anew.
    fn cast<S: Element, T: CastFrom<S>>(&mut self, read: &Read<'_>) -> Result<Tensor> {
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
            self.source.fill(read, at * size_of::<S>(), bytes_mut(piece), &mut seen.hasher)?;
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
        let name = quoted(&read.info.name);
        // First, since the values of a file that changed mean nothing.
        if seen.hasher.finalize().to_hex().as_str() != read.digest {
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
        Tensor::from_vec(values, read.layout.stored(&read.info.shape), self.device)
            .map_err(|error| Error::internal(format!("tensor {name} could not be put on its device: {error}")))
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
struct Source<'a> {
    index: &'a Index,
    progress: &'a Progress,
    /// The file of the last read: reads come in file order, so one is enough.
    open: Option<(usize, File)>,
}

impl Source<'_> {
    fn refused(&self, read: &Read<'_>, reason: String) -> Error {
        Error::unloadable(self.index.label_of(read.info), reason)
    }

    /// The tensor's bytes from `at`, as many as `piece` has.
    fn fill(&mut self, read: &Read<'_>, at: usize, piece: &mut [u8], hasher: &mut blake3::Hasher) -> Result<()> {
        self.progress.between_chunks()?;
        let offset = read.info.offset + at as u64;
        let result = self.file(read)?.read_exact_at(piece, offset);
        result.map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => self.refused(read, "the file ended early: it changed".to_owned()),
            _ => self.refused(read, format!("cannot read it: {error}")),
        })?;
        hasher.update(piece);
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

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
