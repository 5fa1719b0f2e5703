//! The tensors of a version's weight files: which file, where in it, what shape. No weight bytes are read.

use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};

use candle_core::DType;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::header::{self, Entry, Header, SourceDtype};
use super::{gguf, quoted};
use crate::error::{Error, Result};

const SINGLE: &str = "model.safetensors";
const SHARD_INDEX: &str = "model.safetensors.index.json";

/// One tensor as its file holds it: row-major, little-endian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    pub dtype: SourceDtype,
    pub shape: Vec<usize>,
    /// So many heads have their rows in another order in the file: llama.cpp turns neighbours where Hugging Face turns the
    /// halves of a head, so its converter moves row `i` of a head's first half to `2i`, and of its second to `2i + 1`.
    /// Reading moves them back.
    pub heads: Option<usize>,
    /// Which of [`Index::files`].
    pub file: usize,
    /// In bytes, from the start of that file.
    pub offset: u64,
    /// In bytes.
    pub len: u64,
}

/// Every tensor of a version folder, by name.
///
/// A tensor of a file that is in another folder than the first file has that folder in its name
/// (`2_Dense/linear.weight`), since every dense module of a sentence-transformers model uses the same names.
#[derive(Clone, Debug)]
pub struct Index {
    pub dir: PathBuf,
    /// Relative to `dir`, `/` between parts.
    pub files: Vec<String>,
    /// Whether weights are read past the page cache where memory and file system allow it.
    pub direct_reads: bool,
    headers: Vec<HeaderId>,
    tensors: BTreeMap<String, TensorInfo>,
}

/// What a file's header was when it was read.
#[derive(Clone, Debug)]
pub(super) struct HeaderId {
    pub(super) len: u64,
    pub(super) digest: blake3::Hash,
    /// Of the whole file, what follows the last tensor included.
    pub(super) file_len: u64,
}

impl Index {
    /// The floating-point format that most bytes are in, of those that a GPU computes with; f32 where there is none. Where most
    /// values are quantised it is bf16: what such models are published in, and it holds whatever f32 does.
    pub fn main_format(&self) -> DType {
        let bytes = |format: SourceDtype| {
            self.iter().filter(|tensor| tensor.dtype == format).map(|tensor| tensor.len).sum::<u64>()
        };
        let [half, brain, single] = [SourceDtype::F16, SourceDtype::Bf16, SourceDtype::F32].map(bytes);
        let values = |quantised: bool| {
            let tensors = self.iter().filter(|tensor| tensor.dtype.is_quantised() == quantised);
            tensors.map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum::<u64>()
        };
        match half.max(brain) > single {
            _ if values(true) > values(false) => DType::BF16,
            true if half > brain => DType::F16,
            true => DType::BF16,
            false => DType::F32,
        }
    }

    /// Reads and checks the headers of `files`, which are relative to `dir`: safetensors, or one GGUF file, whose tensors
    /// then go by their names in Hugging Face's layout.
    ///
    /// Refuses (as [`Error::Unloadable`], naming the file) a file that is missing, truncated or padded, a header that is too
    /// long or not JSON, offsets that overlap, leave gaps, pass the end or do not match dtype and shape, a dtype that is
    /// not supported, a name that is there twice, in one file or two, a shard index that says otherwise, and of GGUF files
    /// what [`crate::gguf::open`] refuses, architectures and tensors without a name there, and a file beside others.
    pub fn open(dir: &Path, files: &[PathBuf]) -> Result<Index> {
        let (headers, tensors) = (Vec::new(), BTreeMap::new());
        let mut index = Index { dir: dir.to_owned(), files: Vec::new(), direct_reads: false, headers, tensors };
        if files.is_empty() {
            return Err(Error::unloadable(index.label(""), "there are no weight files"));
        }
        if let Some(file) = files.iter().find(|file| crate::gguf::is_named(file)).filter(|_| files.len() > 1) {
            let file = index.label(&file.display().to_string());
            return Err(Error::unloadable(file, "a GGUF file holds a whole model: it cannot be one of several"));
        }
        for file in files {
            let name = relative_name(file).ok_or_else(|| {
                Error::unloadable(index.label(&file.display().to_string()), "not a plain path in the version's folder")
            })?;
            if index.files.contains(&name) {
                return Err(Error::unloadable(index.label(&name), "the weight file is named twice"));
            }
            index.add(name)?;
        }
        for folder in index.folders() {
            index.check_shards(&folder)?;
        }
        Ok(index)
    }

    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// By name, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.values()
    }

    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Of all tensors, as the files hold them.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|tensor| tensor.len).sum()
    }

    /// How a person knows a file: `model/version/file`, without the machine's own path.
    pub(super) fn label(&self, file: &str) -> String {
        let last = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let parts = [self.dir.parent().and_then(last), last(&self.dir), Some(file.to_owned())];
        parts.into_iter().flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
    }

    /// A tensor as whoever made the files knows it, for errors.
    pub(super) fn named(&self, tensor: &str) -> String {
        match self.files.first().is_some_and(|file| crate::gguf::is_named(Path::new(file))) {
            true => gguf::named(tensor),
            false => quoted(tensor),
        }
    }

    pub(super) fn label_of(&self, tensor: &TensorInfo) -> String {
        self.label(self.files.get(tensor.file).map_or("", String::as_str))
    }

    pub(super) fn header(&self, file: usize) -> Option<&HeaderId> {
        self.headers.get(file)
    }

    /// In the order of their bytes.
    pub(super) fn tensors_of(&self, file: usize) -> Vec<&TensorInfo> {
        let mut tensors: Vec<_> = self.tensors.values().filter(|tensor| tensor.file == file).collect();
        // Empty tensors share the offset of the next one; the length puts them before it.
        tensors.sort_by_key(|tensor| (tensor.offset, tensor.len));
        tensors
    }

    fn add(&mut self, file: String) -> Result<()> {
        let Header { len, digest, file_len, entries } =
            read_header(&self.dir.join(&file)).map_err(|reason| Error::unloadable(self.label(&file), reason))?;
        let number = self.files.len();
        let prefix = match self.files.first() {
            Some(first) if folder_of(first) != folder_of(&file) => format!("{}/", folder_of(&file)),
            _ => String::new(),
        };
        self.files.push(file);
        self.headers.push(HeaderId { len, digest, file_len });
        for entry in entries {
            let name = format!("{prefix}{}", entry.name);
            match self.tensors.entry(name) {
                Slot::Vacant(slot) => {
                    let name = slot.key().clone();
                    let Entry { dtype, shape, heads, offset, len, .. } = entry;
                    slot.insert(TensorInfo { name, dtype, shape, heads, file: number, offset, len });
                }
                Slot::Occupied(slot) => {
                    let other = self.files.get(slot.get().file).map_or("", String::as_str);
                    let reason = format!("tensor {} is in '{other}' too", quoted(slot.key()));
                    return Err(Error::unloadable(self.label(&self.files[number]), reason));
                }
            }
        }
        Ok(())
    }

    fn folders(&self) -> BTreeSet<String> {
        self.files.iter().map(|file| folder_of(file).to_owned()).collect()
    }

    /// A folder without `model.safetensors` but with a shard index: the index and the shards must agree.
    fn check_shards(&self, folder: &str) -> Result<()> {
        let path = |name: &str| if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
        let index_file = path(SHARD_INDEX);
        if self.files.contains(&path(SINGLE)) || !self.dir.join(&index_file).is_file() {
            return Ok(());
        }
        let wrong = |reason: String| Error::unloadable(self.label(&index_file), reason);
        let bytes = fs::read(self.dir.join(&index_file)).map_err(|error| wrong(format!("cannot read it: {error}")))?;
        let map: ShardIndex = serde_json::from_slice(&bytes).map_err(|error| wrong(format!("bad JSON: {error}")))?;
        let main = self.files.first().is_none_or(|first| folder_of(first) == folder);
        for (tensor, shard) in &map.weight_map {
            let shard = path(shard);
            let Some(file) = self.files.iter().position(|file| *file == shard) else {
                return Err(wrong(format!("it names the shard {}, which is not loaded", quoted(&shard))));
            };
            let name = if main { tensor.clone() } else { path(tensor) };
            match self.tensors.get(&name) {
                Some(info) if info.file == file => {}
                Some(info) => {
                    let actual = quoted(&self.files[info.file]);
                    let reason =
                        format!("it puts tensor {} in {}, which is in {actual}", quoted(tensor), quoted(&shard));
                    return Err(wrong(reason));
                }
                None => return Err(wrong(format!("tensor {} is not in {}", quoted(tensor), quoted(&shard)))),
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct ShardIndex {
    #[serde(rename = "metadata")]
    _metadata: Option<IgnoredAny>,
    weight_map: BTreeMap<String, String>,
}

fn read_header(path: &Path) -> Result<Header, String> {
    if crate::gguf::is_named(path) {
        return gguf::header(path);
    }
    // Asked first: opening a FIFO would wait for a writer.
    let meta = fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "the file is missing".to_owned(),
        _ => error.to_string(),
    })?;
    if !meta.is_file() {
        return Err("not a regular file".to_owned());
    }
    let file = File::open(path).map_err(|error| format!("cannot open it: {error}"))?;
    let len = file.metadata().map_err(|error| error.to_string())?.len();
    header::read(file, len)
}

/// `a/b.safetensors` for a path of plain parts only; none for `..`, `.`, a root, or what is not UTF-8.
fn relative_name(path: &Path) -> Option<String> {
    let parts: Option<Vec<&str>> = path
        .components()
        .map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    parts.filter(|parts| !parts.is_empty()).map(|parts| parts.join("/"))
}

fn folder_of(file: &str) -> &str {
    file.rsplit_once('/').map_or("", |(folder, _)| folder)
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
