//! `cutover convert`: a GGUF file as a folder in Hugging Face's layout, its quantised weights spelled out.
//!
//! The folder is written under a name that the server does not look at, and renamed when it is whole. At any moment one
//! piece of one tensor is in memory.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use candle_core::DType;
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::args::{ConvertArgs, WeightDtype};
use super::output::human_bytes;
use crate::error::{Error, Result};
use crate::gguf;
use crate::repository::{TokenizerFiles, gguf_config};
use crate::weights::{self, Index};

const WEIGHTS: &str = "model.safetensors";

pub(super) fn run(args: &ConvertArgs, out: &mut dyn Write) -> Result<bool> {
    let source = source(&args.source)?;
    let draft = Draft::begin(&args.dest)?;
    let written = write(&source, &draft.path, args.dtype)?;
    draft.finish(&args.dest)?;
    let Written { tensors, bytes } = written;
    let dest = args.dest.display();
    writeln!(out, "wrote {dest}: {tensors} tensors, {}", human_bytes(bytes))
        .map_err(|e| Error::internal(format!("cannot write: {e}")))?;
    Ok(true)
}

/// The file itself, or the only one of its kind in a folder.
fn source(given: &Path) -> Result<PathBuf> {
    let wrong = |why: String| Error::unloadable(given.display(), why);
    if !given.is_dir() {
        return Ok(given.to_owned());
    }
    let entries = given.read_dir().map_err(|e| wrong(format!("cannot be read: {e}")))?;
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| gguf::is_named(path)).collect();
    match (files.len(), files.pop()) {
        (1, Some(file)) => Ok(file),
        (count, _) => Err(wrong(format!("holds {count} GGUF files, expected one"))),
    }
}

struct Written {
    tensors: usize,
    /// Of the weights.
    bytes: u64,
}

fn write(source: &Path, dir: &Path, dtype: WeightDtype) -> Result<Written> {
    let wrong = |why: String| Error::unloadable(source.display(), why);
    let header = gguf::open(source).map_err(wrong)?;
    let mut config = gguf_config(source, &header).map_err(wrong)?;
    config.insert("torch_dtype".into(), json!(torch_name(dtype)));
    let files = TokenizerFiles::of(&header.metadata).map_err(wrong)?;
    drop(header);
    let tokenizer = serde_json::to_vec(&files.tokenizer).map_err(Error::internal)?;
    // What could not be read again is not written.
    Tokenizer::from_bytes(&tokenizer).map_err(|e| wrong(format!("its tokenizer cannot be built: {e}")))?;
    put(dir, "config.json", &pretty(&Value::Object(config))?)?;
    put(dir, "tokenizer.json", &tokenizer)?;
    put(dir, "tokenizer_config.json", &pretty(&files.config)?)?;
    let (folder, name) = (source.parent().unwrap_or(Path::new("")), source.file_name().unwrap_or_default());
    let index = Index::open(folder, &[name.into()])?;
    let bytes = write_weights(&index, &dir.join(WEIGHTS), dtype)?;
    // As the server will look at it.
    let tensors = Index::open(dir, &[WEIGHTS.into()])?.len();
    Ok(Written { tensors, bytes })
}

/// The header of a safetensors file, and each tensor in the order of names.
fn write_weights(index: &Index, path: &Path, dtype: WeightDtype) -> Result<u64> {
    let (format, kind) = formats(dtype);
    let (mut entries, mut end) = (Map::new(), 0u64);
    entries.insert("__metadata__".into(), json!({ "format": "pt" }));
    for tensor in index.iter() {
        let elements: usize = tensor.shape.iter().product();
        let start = end;
        end += (elements * kind.size_in_bytes()) as u64;
        entries.insert(
            tensor.name.clone(),
            json!({ "dtype": format, "shape": tensor.shape, "data_offsets": [start, end] }),
        );
    }
    let mut header = serde_json::to_vec(&entries).map_err(Error::internal)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let failed = |e: io::Error| Error::unloadable(path.display(), format!("cannot be written: {e}"));
    let mut file = BufWriter::new(File::create_new(path).map_err(failed)?);
    file.write_all(&(header.len() as u64).to_le_bytes()).and_then(|()| file.write_all(&header)).map_err(failed)?;
    for tensor in index.iter() {
        weights::copy(index, &tensor.name, kind, &mut |piece| file.write_all(piece).map_err(failed))?;
    }
    let file = file.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed)?;
    Ok(end)
}

/// What safetensors calls it, and the loader.
fn formats(dtype: WeightDtype) -> (&'static str, DType) {
    match dtype {
        WeightDtype::F32 => ("F32", DType::F32),
        WeightDtype::F16 => ("F16", DType::F16),
        WeightDtype::Bf16 => ("BF16", DType::BF16),
    }
}

/// What transformers calls it.
fn torch_name(dtype: WeightDtype) -> &'static str {
    match dtype {
        WeightDtype::F32 => "float32",
        WeightDtype::F16 => "float16",
        WeightDtype::Bf16 => "bfloat16",
    }
}

fn pretty(value: &Value) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(Error::internal)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn put(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = dir.join(name);
    let written = File::create_new(&path).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.map_err(|e| Error::unloadable(path.display(), format!("cannot be written: {e}")))
}

/// A folder that is being written beside its place; gone with this unless it was finished.
struct Draft {
    path: PathBuf,
}

impl Draft {
    fn begin(dest: &Path) -> Result<Draft> {
        let name = dest.file_name().ok_or_else(|| Error::conflict(format!("{} is no name", dest.display())))?;
        taken(dest)?;
        let path = dest.with_file_name(format!(".{}.{}.new", name.to_string_lossy(), std::process::id()));
        fs::create_dir(&path).map_err(|e| Error::unloadable(path.display(), format!("cannot be made: {e}")))?;
        Ok(Draft { path })
    }

    fn finish(self, dest: &Path) -> Result<()> {
        taken(dest)?;
        fs::rename(&self.path, dest)
            .map_err(|e| Error::unloadable(dest.display(), format!("cannot be put in its place: {e}")))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Renamed already where it was finished.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn taken(dest: &Path) -> Result<()> {
    match dest.symlink_metadata() {
        Ok(_) => Err(Error::conflict(format!("{} is there already, and versions are immutable", dest.display()))),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
