//! The header of one safetensors file: eight bytes of length, JSON, and offsets that must tile the rest exactly.
//!
//! Pure: bytes in, entries or a reason out. The `safetensors` crate reads the same format, but keeps the last of two
//! entries with one name; here that is an error. Whatever is accepted here, that crate accepts too (tested).

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io::Read;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::quoted;
use crate::gguf::Format;
use crate::ops::QuantFormat;

/// The limit of the reference implementation.
const LONGEST_HEADER: u64 = 100_000_000;
const LENGTH_BYTES: u64 = 8;
const METADATA: &str = "__metadata__";

/// The number formats that a file for this server may hold: those of safetensors whose elements are whole bytes, and of
/// GGUF's quantised ones, whose values come in blocks that share what they are scaled by, these.
#[allow(non_camel_case_types, reason = "as ggml writes them")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SourceDtype {
    Bool,
    U8,
    I8,
    U16,
    I16,
    F16,
    Bf16,
    U32,
    I32,
    F32,
    U64,
    I64,
    F64,
    Q4_0,
    Q4_1,
    Q8_0,
    Q4_K,
    Q6_K,
}

impl SourceDtype {
    /// What safetensors has.
    const ALL: [SourceDtype; 13] = [
        SourceDtype::Bool,
        SourceDtype::U8,
        SourceDtype::I8,
        SourceDtype::U16,
        SourceDtype::I16,
        SourceDtype::F16,
        SourceDtype::Bf16,
        SourceDtype::U32,
        SourceDtype::I32,
        SourceDtype::F32,
        SourceDtype::U64,
        SourceDtype::I64,
        SourceDtype::F64,
    ];

    /// As the file writes it.
    pub fn name(self) -> &'static str {
        match self {
            SourceDtype::Bool => "BOOL",
            SourceDtype::U8 => "U8",
            SourceDtype::I8 => "I8",
            SourceDtype::U16 => "U16",
            SourceDtype::I16 => "I16",
            SourceDtype::F16 => "F16",
            SourceDtype::Bf16 => "BF16",
            SourceDtype::U32 => "U32",
            SourceDtype::I32 => "I32",
            SourceDtype::F32 => "F32",
            SourceDtype::U64 => "U64",
            SourceDtype::I64 => "I64",
            SourceDtype::F64 => "F64",
            SourceDtype::Q4_0 => "Q4_0",
            SourceDtype::Q4_1 => "Q4_1",
            SourceDtype::Q8_0 => "Q8_0",
            SourceDtype::Q4_K => "Q4_K",
            SourceDtype::Q6_K => "Q6_K",
        }
    }

    /// Of a quantised format: what its kernels know it as.
    pub(crate) fn blocks(self) -> Option<QuantFormat> {
        match self {
            SourceDtype::Q4_0 => Some(QuantFormat::Q4_0),
            SourceDtype::Q4_1 => Some(QuantFormat::Q4_1),
            SourceDtype::Q8_0 => Some(QuantFormat::Q8_0),
            SourceDtype::Q4_K => Some(QuantFormat::Q4_K),
            SourceDtype::Q6_K => Some(QuantFormat::Q6_K),
            _ => None,
        }
    }

    /// Values of one block, and bytes of it: blocks of one value but for the quantised formats.
    pub fn block(self) -> (usize, u64) {
        match self {
            SourceDtype::Bool | SourceDtype::U8 | SourceDtype::I8 => (1, 1),
            SourceDtype::U16 | SourceDtype::I16 | SourceDtype::F16 | SourceDtype::Bf16 => (1, 2),
            SourceDtype::U32 | SourceDtype::I32 | SourceDtype::F32 => (1, 4),
            SourceDtype::U64 | SourceDtype::I64 | SourceDtype::F64 => (1, 8),
            SourceDtype::Q4_0 => Format::Q4_0.block(),
            SourceDtype::Q4_1 => Format::Q4_1.block(),
            SourceDtype::Q8_0 => Format::Q8_0.block(),
            SourceDtype::Q4_K => Format::Q4_K.block(),
            SourceDtype::Q6_K => Format::Q6_K.block(),
        }
    }

    /// Whether its values come in blocks.
    pub fn is_quantised(self) -> bool {
        self.block().0 > 1
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }
}

impl fmt::Display for SourceDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<Format> for SourceDtype {
    fn from(format: Format) -> Self {
        match format {
            Format::F32 => SourceDtype::F32,
            Format::F16 => SourceDtype::F16,
            Format::BF16 => SourceDtype::Bf16,
            Format::Q4_0 => SourceDtype::Q4_0,
            Format::Q4_1 => SourceDtype::Q4_1,
            Format::Q8_0 => SourceDtype::Q8_0,
            Format::Q4_K => SourceDtype::Q4_K,
            Format::Q6_K => SourceDtype::Q6_K,
        }
    }
}

/// One file's header, checked.
#[derive(Debug, PartialEq)]
pub(super) struct Header {
    /// Where the data begins: the length field and the JSON.
    pub(super) len: u64,
    /// Of the length field and the JSON, to know that a later read sees the same header.
    pub(super) digest: blake3::Hash,
    /// Where the file ends.
    pub(super) file_len: u64,
    /// In the order of their bytes.
    pub(super) entries: Vec<Entry>,
}

#[derive(Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dtype: SourceDtype,
    pub(super) shape: Vec<usize>,
    /// See [`super::TensorInfo::heads`].
    pub(super) heads: Option<usize>,
    /// From the start of the file.
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// Reads and checks the header at the start of `source`, a file of `file_len` bytes.
pub(super) fn read(mut source: impl Read, file_len: u64) -> Result<Header, String> {
    let mut prefix = [0; LENGTH_BYTES as usize];
    if file_len < LENGTH_BYTES {
        return Err(format!("truncated: {file_len} bytes is too short for a safetensors file"));
    }
    source.read_exact(&mut prefix).map_err(|error| format!("cannot read its header: {error}"))?;
    let json_len = u64::from_le_bytes(prefix);
    if json_len > LONGEST_HEADER {
        // What comes in place of weights most often.
        if &prefix == b"version " {
            return Err("a pointer of Git LFS, not the weights: fetch them with `git lfs pull`".to_owned());
        }
        if prefix.trim_ascii_start().first() == Some(&b'<') {
            return Err("not safetensors: it begins with '<', as a web page does".to_owned());
        }
        return Err(format!("not safetensors: its header claims {json_len} bytes, the limit is {LONGEST_HEADER}"));
    }
    let len = LENGTH_BYTES + json_len;
    if len > file_len {
        return Err(format!("truncated: its header ends at byte {len}, the file at {file_len}"));
    }
    let mut json = vec![0; json_len as usize];
    source.read_exact(&mut json).map_err(|error| format!("cannot read its header: {error}"))?;
    let digest = blake3::Hasher::new().update(&prefix).update(&json).finalize();
    Ok(Header { len, digest, file_len, entries: parse(&json, len, file_len)? })
}

fn parse(json: &[u8], header_len: u64, file_len: u64) -> Result<Vec<Entry>, String> {
    if json.first() != Some(&b'{') {
        return Err("not safetensors: its header does not begin with '{'".to_owned());
    }
    // All of it, also what is passed over: a file is read the same by every reader of the format, or by none.
    let json = std::str::from_utf8(json).map_err(|error| format!("bad header: {error}"))?;
    let RawHeader(mut raw) = serde_json::from_str(json).map_err(|error| format!("bad header: {error}"))?;
    raw.sort_by_key(|(_, info)| info.data_offsets);
    let mut entries = Vec::with_capacity(raw.len());
    let mut end = 0;
    for (name, info) in raw {
        let wrong = |reason: String| format!("tensor {}: {reason}", quoted(&name));
        let dtype = SourceDtype::parse(&info.dtype)
            .ok_or_else(|| wrong(format!("dtype {} is not supported", quoted(&info.dtype))))?;
        let len = byte_len(&info.shape, dtype).ok_or_else(|| wrong(format!("shape {:?} overflows", info.shape)))?;
        let (from, to) = info.data_offsets;
        if from != end {
            let how = if from < end { "overlap the tensor before" } else { "leave a gap" };
            return Err(wrong(format!("its offsets {from}..{to} {how}: {end} is where the tensor before ends")));
        }
        if to.checked_sub(from) != Some(len) {
            let takes = format!("{dtype} of shape {:?} takes {len} bytes", info.shape);
            return Err(wrong(format!("its offsets are {from}..{to}, but {takes}")));
        }
        let in_file = header_len.checked_add(to).is_some_and(|last| last <= file_len);
        if !in_file {
            let left = file_len - header_len;
            return Err(format!("truncated: tensor {} ends at byte {to} of {left} bytes of data", quoted(&name)));
        }
        end = to;
        entries.push(Entry { name, dtype, shape: info.shape, heads: None, offset: header_len + from, len });
    }
    if header_len + end != file_len {
        return Err(format!("{} bytes follow the last tensor", file_len - header_len - end));
    }
    Ok(entries)
}

fn byte_len(shape: &[usize], dtype: SourceDtype) -> Option<u64> {
    let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size))?;
    (elements as u64).checked_mul(dtype.block().1)
}

struct RawHeader(Vec<(String, RawInfo)>);

#[derive(Deserialize)]
struct RawInfo {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut seen = BTreeSet::new();
        let mut tensors = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("tensor {} is there twice", quoted(&name))));
            }
            if name == METADATA {
                map.next_value::<Option<HashMap<String, String>>>()?;
                continue;
            }
            let info = map
                .next_value::<RawInfo>()
                .map_err(|error| A::Error::custom(format!("tensor {}: {error}", quoted(&name))))?;
            tensors.push((name, info));
        }
        Ok(RawHeader(tensors))
    }
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
