//! From files to tensors: each wanted tensor is read once, in file order, straight into its final memory.
//!
//! At any moment a load holds the tensors that it has made, the one that it is making, and buffers of 1 MiB (of a GGUF file
//! also one head of queries or keys). Tensors that are resident already are not read at all. Every byte is held against the
//! manifest before it is used.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use candle_core::DType;

use super::read::{Part, Read, Reader, read_as};
use super::{Index, Manifest, Parked, Progress, SourceDtype, TensorInfo, quoted};
use crate::error::{Error, Result};
use crate::ops::{Device, Tensor, WeightLayout};

/// How many tensors an error names before it only counts.
const NAMED: usize = 8;

/// A tensor that a family asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    pub name: String,
    /// Others whose rows come below its own: together they are one tensor, which goes by the first's name.
    pub below: Vec<Below>,
    /// Of the first; the others differ from it in how many rows they have, if at all.
    pub shape: Vec<usize>,
    /// What it becomes, whatever its file holds.
    pub dtype: DType,
    /// How it is arranged on its device.
    pub layout: WeightLayout,
}

/// A tensor that is stacked below others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Below {
    pub name: String,
    /// Its first dimension; 1 for a number.
    pub rows: usize,
}

impl Wanted {
    /// What the checkpoint calls its parts, from the top down.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.name.as_str()).chain(self.below.iter().map(|part| part.name.as_str()))
    }

    /// The same, with the shape that each has.
    pub fn parts(&self) -> impl Iterator<Item = (&str, Vec<usize>)> {
        let below = self.below.iter().map(|part| match self.shape.as_slice() {
            [] => (part.name.as_str(), Vec::new()),
            [_, rest @ ..] => (part.name.as_str(), [&[part.rows], rest].concat()),
        });
        std::iter::once((self.name.as_str(), self.shape.clone())).chain(below)
    }

    /// The shape of all of it.
    pub fn whole(&self) -> Vec<usize> {
        stacked(&self.shape, self.below.iter().map(|part| part.rows))
    }

    fn bytes(&self) -> u64 {
        let stored = self.layout.stored(&self.whole());
        let elements = stored.iter().fold(1u64, |product, &size| product.saturating_mul(size as u64));
        elements.saturating_mul(self.dtype.size_in_bytes() as u64)
    }
}

/// The shape of a tensor with others of so many rows below it.
pub fn stacked(shape: &[usize], below: impl ExactSizeIterator<Item = usize>) -> Vec<usize> {
    let add = |first: usize, below: &mut dyn Iterator<Item = usize>| below.fold(first, usize::saturating_add);
    let mut below = below;
    match shape {
        _ if below.len() == 0 => shape.to_vec(),
        [] => vec![add(1, &mut below)],
        [rows, rest @ ..] => [&[add(*rows, &mut below)], rest].concat(),
    }
}

/// What a version takes on a device: an upper bound, known from headers alone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Footprint {
    pub wanted: Vec<Wanted>,
    /// Bytes of activations at the largest batch, and of a cache.
    pub workspace: u64,
    /// Of what is written, where it is kept.
    pub cache: Option<CacheFootprint>,
}

/// Keys and values of what a version writes, as part of its workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheFootprint {
    pub bytes_per_block: u64,
    pub block_tokens: usize,
    pub blocks: usize,
    /// Tokens of the longest text that the version takes.
    pub longest: usize,
    /// Texts that it writes at once.
    pub sequences: usize,
}

impl CacheFootprint {
    pub fn bytes(&self) -> u64 {
        self.bytes_per_block.saturating_mul(self.blocks as u64)
    }

    pub fn tokens(&self) -> usize {
        self.blocks.saturating_mul(self.block_tokens)
    }
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
    /// Each source's number format and the digest of its bytes: the same bytes as f16 and as bf16 are other numbers, and so
    /// are rows that are put in another order.
    pub digest: String,
    pub dtype: DType,
    /// Of all of it.
    pub shape: Vec<usize>,
    pub layout: WeightLayout,
}

/// What need not be read of a version's files.
#[derive(Debug, Default)]
pub struct Known {
    /// On the device already: shared.
    pub resident: HashMap<TensorKey, Tensor>,
    /// In host memory, ready to be copied to the device.
    pub parked: Option<Arc<Parked>>,
}

impl From<HashMap<TensorKey, Tensor>> for Known {
    fn from(resident: HashMap<TensorKey, Tensor>) -> Self {
        Known { resident, parked: None }
    }
}

/// The tensors of one version, until its model takes them.
pub struct Weights {
    tensors: HashMap<String, Tensor>,
    keys: HashMap<String, TensorKey>,
    exclusive: u64,
    shared: u64,
    /// Of the exclusive ones.
    parked: u64,
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

    /// How one that is not taken yet is arranged, and what its numbers are.
    pub fn kept_as(&self, name: &str) -> Option<(WeightLayout, DType)> {
        let key = self.keys.get(name).filter(|_| self.has(name))?;
        Some((key.layout, key.dtype))
    }

    /// Whether there is one of this name that is not taken yet.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensors that are not taken yet, with what they may be shared by; one that has several names comes several times.
    pub fn entries(&self) -> impl Iterator<Item = (&TensorKey, &Tensor)> {
        self.tensors.iter().filter_map(|(name, tensor)| Some((self.keys.get(name)?, tensor)))
    }

    /// One that was loaded, under every name that it goes by.
    fn add(&mut self, names: Vec<String>, tensor: &Tensor) {
        self.exclusive += bytes_of(tensor);
        self.tensors.extend(names.into_iter().map(|name| (name, tensor.clone())));
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

    /// Of the exclusive bytes, those that no file was read for.
    pub fn parked_bytes(&self) -> u64 {
        self.parked
    }
}

fn bytes_of(tensor: &Tensor) -> u64 {
    (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Weights { tensors, exclusive, shared, parked, .. } = self;
        f.debug_struct("Weights")
            .field("tensors", &tensors.len())
            .field("exclusive", exclusive)
            .field("shared", shared)
            .field("parked", parked)
            .finish()
    }
}

/// Compares what is wanted with what is there, before anything is reserved or read.
///
/// Missing and misshapen tensors, number formats that cannot be converted, and tensors that nobody wants and `ignored`
/// does not know are one error that names the first eight of them.
pub fn check(index: &Index, wanted: &[Wanted], ignored: &dyn Fn(&str) -> bool) -> Result<()> {
    let mut wrong = Vec::new();
    let names = names_of(wanted)?;
    for (want, (name, shape)) in wanted.iter().flat_map(|want| want.parts().map(move |part| (want, part))) {
        let (info, name) = (index.get(name), index.named(name));
        match info {
            None => wrong.push(format!("{name} is missing")),
            Some(info) if info.shape != shape => {
                wrong.push(format!("{name} has shape {:?}, not {shape:?}", info.shape));
            }
            Some(info) if !can_become(info.dtype, want) => {
                wrong.push(format!("{name} is {}, which cannot become {}", info.dtype, want.dtype.as_str()));
            }
            Some(_) => {}
        }
    }
    let extra = index.iter().filter(|info| !names.contains(info.name.as_str()) && !ignored(&info.name));
    wrong.extend(extra.map(|info| format!("{} is not part of this architecture", index.named(&info.name))));
    if wrong.is_empty() {
        return Ok(());
    }
    let more = wrong.len().saturating_sub(NAMED);
    let tail = if more > 0 { format!(", and {more} more") } else { String::new() };
    wrong.truncate(NAMED);
    Err(Error::unloadable(index.label(""), format!("the tensors do not fit: {}{tail}", wrong.join(", "))))
}

/// Blocks that are kept become nothing; else formats become others as they are read.
fn can_become(source: SourceDtype, wanted: &Wanted) -> bool {
    match wanted.layout {
        WeightLayout::Quantized(blocks) | WeightLayout::Packed(blocks) => source.blocks() == Some(blocks),
        WeightLayout::Rows | WeightLayout::Panels => read_as(source, wanted.dtype).is_some(),
    }
}

/// The checkpoint's names of what is wanted: each once, by itself or as a part.
fn names_of(wanted: &[Wanted]) -> Result<HashSet<&str>> {
    let mut names = HashSet::new();
    match wanted.iter().flat_map(Wanted::names).find(|name| !names.insert(*name)) {
        Some(name) => Err(Error::internal(format!("tensor {} is wanted twice", quoted(name)))),
        None => Ok(names),
    }
}

/// Under which key a wanted tensor may be found among the resident ones.
pub fn key_of(wanted: &Wanted, index: &Index, manifest: &Manifest) -> Result<TensorKey> {
    let parts = parts(wanted, index, manifest)?;
    // Neither formats nor digests have a plus in them, so that no two lists are written alike.
    let digests = parts.iter().map(|part| {
        let turned = part.info.heads.map_or(String::new(), |heads| format!("/{heads}"));
        format!("{}{turned}:{}", part.info.dtype, part.digest)
    });
    let digest = digests.collect::<Vec<_>>().join("+");
    Ok(TensorKey { digest, dtype: wanted.dtype, shape: wanted.whole(), layout: wanted.layout })
}

/// Reads the wanted tensors, but for those that are known, and puts them on `device`.
///
/// Fails, and drops what it made, when a tensor is missing or misshapen, a file cannot be read or its bytes are not those
/// of the manifest, a value is not finite or does not fit the wanted dtype, memory is short, or `progress` was cancelled.
pub fn load(
    index: &Index,
    manifest: &Manifest,
    wanted: &[Wanted],
    known: impl Into<Known>,
    device: &Device,
    progress: &Progress,
) -> Result<Weights> {
    let Known { resident, parked } = known.into();
    let mut weights = Weights { tensors: HashMap::new(), keys: HashMap::new(), exclusive: 0, shared: 0, parked: 0 };
    let mut reads: HashMap<TensorKey, Read<'_>> = HashMap::new();
    let mut counted = HashSet::new();
    names_of(wanted)?;
    for want in wanted {
        let key = key_of(want, index, manifest)?;
        weights.keys.insert(want.name.clone(), key.clone());
        if let Some(tensor) = resident.get(&key) {
            same_kind(tensor, &key, device)?;
            if counted.insert(key) {
                weights.shared += want.bytes();
            }
            weights.tensors.insert(want.name.clone(), tensor.clone());
            continue;
        }
        // Tensors with equal bytes (tied weights that were saved twice) are read once.
        let read = match reads.entry(key) {
            Entry::Occupied(read) => read.into_mut(),
            Entry::Vacant(free) => {
                let read = Read::of(want, (index, manifest))?;
                #[cfg(feature = "cuda")]
                let read = Read { parked: parked.as_ref().and_then(|parked| parked.extent(free.key())), ..read };
                free.insert(read)
            }
        };
        read.names.push(want.name.clone());
    }
    drop(resident);
    let mut reads: Vec<Read<'_>> = reads.into_values().collect();
    reads.sort_by_key(|read| Reverse(read.place()));
    progress.begin(reads.iter().map(Read::bytes).sum());
    #[cfg(feature = "cuda")]
    if let Device::Cuda(place) = device {
        let unread = reads.iter().filter(|read| read.parked.is_some());
        weights.parked = unread.map(|read| read.device_bytes() as u64).sum();
        for (names, tensor) in super::staged::upload(place, (index, manifest), reads, parked.as_deref(), progress)? {
            weights.add(names, &tensor);
        }
        return Ok(weights);
    }
    // On a CPU weights lie in host memory, and nothing is parked.
    drop(parked);
    let mut reader = Reader::new((index, progress), device);
    while let Some(read) = reads.pop() {
        let tensor = reader.read(&read)?;
        weights.add(read.names, &tensor);
    }
    progress.check()?;
    Ok(weights)
}

/// What a wanted tensor is made of, from the top down.
pub(super) fn parts<'a>(wanted: &Wanted, index: &'a Index, manifest: &'a Manifest) -> Result<Vec<Part<'a>>> {
    let mut first = 0;
    let part = |(name, shape): (&str, Vec<usize>)| {
        let info = find((name, &shape), index)?;
        let part = Part { info, digest: digest_of(info, index, manifest)?, first };
        first += part.elements();
        Ok(part)
    };
    wanted.parts().map(part).collect()
}

fn find<'a>((name, shape): (&str, &[usize]), index: &'a Index) -> Result<&'a TensorInfo> {
    let info = index.get(name);
    let missing = || Error::unloadable(index.label(""), format!("tensor {} is missing", index.named(name)));
    let info = info.ok_or_else(missing)?;
    if info.shape != shape {
        let reason = format!("tensor {} has shape {:?}, not {shape:?}", index.named(name), info.shape);
        return Err(Error::unloadable(index.label_of(info), reason));
    }
    Ok(info)
}

pub(super) fn digest_of<'a>(info: &TensorInfo, index: &Index, manifest: &'a Manifest) -> Result<&'a str> {
    let unknown = || {
        let reason = format!("the manifest knows no tensor {}: the folder changed", quoted(&info.name));
        Error::unloadable(index.label_of(info), reason)
    };
    manifest.tensors.get(&info.name).map(String::as_str).ok_or_else(unknown)
}

fn same_kind(tensor: &Tensor, key: &TensorKey, device: &Device) -> Result<()> {
    let shape = key.layout.stored(&key.shape);
    let fits = tensor.dtype() == key.dtype && tensor.dims() == shape && tensor.is_on(device);
    if fits { Ok(()) } else { Err(Error::internal("a resident tensor is not what its key says")) }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "stacked_tests.rs"]
mod stacked_tests;
