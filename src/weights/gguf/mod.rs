//! A GGUF file as the weights of Hugging Face's layout: its tensors under that layout's names, in its shapes, with the rows
//! of queries and keys in its order once they are read.
//!
//! Knows what llama.cpp's converter did to a checkpoint, and undoes it; must not know what an architecture computes.

mod names;

use std::path::Path;

use self::names::{Place, place};
use super::header::{Entry, Header};
use crate::gguf::{self, Metadata, shown};

const ARCHITECTURE: &str = "general.architecture";
/// A model in several files says so here.
const PARTS: &str = "split.count";

/// Architectures, and whether llama.cpp's converter reorders the rows of their queries and keys (`permute` of
/// `convert_hf_to_gguf.py`, which it calls for the first alone). Mistral and SmolLM2 are `llama` there.
const ARCHITECTURES: [(&str, bool); 3] = [("llama", true), ("qwen2", false), ("qwen3", false)];

/// A tensor of Hugging Face's layout as an error about a GGUF file names it: by the file's own name where it has one.
pub(super) fn named(name: &str) -> String {
    match names::theirs(name) {
        Some(theirs) => format!("{} (in Hugging Face's layout {})", shown(&theirs), shown(name)),
        None => shown(name),
    }
}

/// Reads and checks the header of a file; errors as those of [`gguf::open`], and what [`super::Index::open`] says.
pub(super) fn header(path: &Path) -> Result<Header, String> {
    translated(gguf::open(path)?)
}

fn translated(file: gguf::Header) -> Result<Header, String> {
    let parts = file.metadata.usize(PARTS)?.unwrap_or(0);
    if parts > 1 {
        return Err(format!("it is one of {parts} parts of a model: join them first (llama-gguf-split --merge)"));
    }
    let (architecture, turned) = architecture(&file.metadata)?;
    let heads = if turned { Some(Heads::read(&file.metadata, architecture)?) } else { None };
    let mut entries = Vec::with_capacity(file.tensors.len());
    for tensor in file.tensors {
        let wrong = |why: &str| format!("tensor {}: {why}", shown(&tensor.name));
        let place = place(&tensor.name).ok_or_else(|| wrong("it is not part of the architectures that are read"))?;
        let Place::Tensor { name, rotary } = place else { continue };
        let shape: Vec<usize> = tensor.dims.iter().rev().copied().collect();
        let heads = match (&heads, rotary) {
            (Some(heads), Some(rotary)) => Some(heads.of(rotary, &shape).map_err(|why| wrong(&why))?),
            _ => None,
        };
        entries.push(Entry { name, dtype: tensor.format.into(), shape, heads, offset: tensor.offset, len: tensor.len });
    }
    Ok(Header { len: file.len, digest: file.digest, file_len: file.file_len, entries })
}

fn architecture(metadata: &Metadata) -> Result<(&'static str, bool), String> {
    let name = metadata.str(ARCHITECTURE)?.ok_or_else(|| format!("{ARCHITECTURE} is missing"))?;
    let known = ARCHITECTURES.into_iter().find(|(known, _)| *known == name);
    known.ok_or_else(|| {
        let names = ARCHITECTURES.map(|(name, _)| name).join(", ");
        format!("the architecture {} is not read; {names} are", shown(name))
    })
}

/// Which of a layer's projections are turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rotary {
    Query,
    Key,
}

/// How many heads a file says its layers have.
struct Heads {
    query: usize,
    key: usize,
}

impl Heads {
    fn read(metadata: &Metadata, architecture: &str) -> Result<Heads, String> {
        let key = format!("{architecture}.attention.head_count");
        let query = metadata.usize(&key)?.ok_or_else(|| format!("{key} is missing"))?;
        let grouped = metadata.usize(&format!("{key}_kv"))?;
        Ok(Heads { query, key: grouped.unwrap_or(query) })
    }

    fn of(&self, rotary: Rotary, shape: &[usize]) -> Result<usize, String> {
        let heads = match rotary {
            Rotary::Query => self.query,
            Rotary::Key => self.key,
        };
        let rows = shape.first().copied().unwrap_or(0);
        let halves = heads.checked_mul(2).filter(|halves| *halves > 0 && rows.is_multiple_of(*halves));
        halves.map(|_| heads).ok_or_else(|| format!("its {rows} rows are no {heads} heads of two halves each"))
    }
}

#[cfg(test)]
mod tests;
