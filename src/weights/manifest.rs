//! Digests: what a version's bytes are, file by file and tensor by tensor.
//!
//! The manifest is the version's identity: recorded at first sight, compared with afterwards, and what every tensor
//! is held against while it is read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{CHUNK, Index, Progress};
use crate::error::{Error, Result};
use crate::repository::Fingerprint;

/// What every digest of a version begins with, so that a change of the scheme changes every digest.
const SCHEME: &[u8] = b"cutover version digest 1\n";

/// All digests are BLAKE3, in lowercase hexadecimal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Of the sorted list of paths, sizes and file digests: two folders with the same files have the same one.
    pub digest: String,
    /// By path in the folder.
    pub files: BTreeMap<String, FileDigest>,
    /// By tensor name (as the [`Index`] has it): of the tensor's bytes in its file.
    pub tensors: BTreeMap<String, String>,
    /// What the folder looked like when it was read: where this is unchanged, it need not be read again.
    pub fingerprint: Fingerprint,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    /// In bytes.
    pub size: u64,
    pub blake3: String,
}

impl Manifest {
    /// Reads every file below `dir` once, in pieces of 1 MiB. `index` must be of the same folder.
    pub fn compute(dir: &Path, index: &Index) -> Result<Manifest> {
        Self::compute_watched(dir, index, &Progress::new())
    }

    /// [`Manifest::compute`] that tells how far it is and can be cancelled.
    pub fn compute_watched(dir: &Path, index: &Index, progress: &Progress) -> Result<Manifest> {
        let fingerprint = Fingerprint::of(dir)?;
        let paths: Vec<&str> = fingerprint.files().iter().map(|file| file.path.as_str()).collect();
        if let Some(missing) = index.files.iter().find(|file| !paths.contains(&file.as_str())) {
            return Err(Error::unloadable(index.label(missing), "the weight file is gone"));
        }
        let mut pass = Pass { dir, index, progress, buffer: vec![0; CHUNK], tensors: BTreeMap::new() };
        progress.begin(fingerprint.files().iter().map(|file| file.size).sum());
        let mut files = BTreeMap::new();
        for path in paths {
            let digest = match index.files.iter().position(|file| file == path) {
                Some(number) => pass.weight_file(path, number)?,
                None => pass.plain_file(path)?,
            };
            files.insert(path.to_owned(), digest);
        }
        let tensors = pass.tensors;
        if Fingerprint::of(dir)? != fingerprint {
            return Err(Error::unloadable(index.label(""), "the folder changed while its digests were computed"));
        }
        Ok(Manifest { digest: identity(&files), files, tensors, fingerprint })
    }

    /// What `now` has otherwise than this manifest, a phrase for each file; empty when they are the same version.
    pub fn differences(&self, now: &Manifest) -> Vec<String> {
        let mut differences = Vec::new();
        for (path, was) in &self.files {
            match now.files.get(path) {
                None => differences.push(format!("'{path}' is gone")),
                Some(is) if is.size != was.size => {
                    differences.push(format!("'{path}' had {} bytes and has {}", was.size, is.size));
                }
                Some(is) if is != was => differences.push(format!("'{path}' has other bytes")),
                Some(_) => {}
            }
        }
        let added = now.files.keys().filter(|path| !self.files.contains_key(*path));
        differences.extend(added.map(|path| format!("'{path}' is new")));
        differences
    }
}

/// Every field has its length before it, so that no two lists are written alike.
fn identity(files: &BTreeMap<String, FileDigest>) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(SCHEME);
    for (path, file) in files {
        for field in [path.as_bytes(), file.blake3.as_bytes()] {
            hasher.update(&(field.len() as u64).to_le_bytes()).update(field);
        }
        hasher.update(&file.size.to_le_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// One pass over a folder.
struct Pass<'a> {
    dir: &'a Path,
    index: &'a Index,
    progress: &'a Progress,
    buffer: Vec<u8>,
    tensors: BTreeMap<String, String>,
}

impl Pass<'_> {
    fn unreadable(&self, path: &str, error: std::io::Error) -> Error {
        let changed = "the file ended early: it changed while its digest was computed";
        match error.kind() {
            ErrorKind::UnexpectedEof => Error::unloadable(self.index.label(path), changed),
            _ => Error::unloadable(self.index.label(path), format!("cannot read it: {error}")),
        }
    }

    fn open(&self, path: &str) -> Result<File> {
        File::open(self.dir.join(path)).map_err(|error| self.unreadable(path, error))
    }

    fn plain_file(&mut self, path: &str) -> Result<FileDigest> {
        let mut file = self.open(path)?;
        let mut hasher = blake3::Hasher::new();
        // How long a file is comes out when it ends: what was read last is waited for.
        let mut last = 0;
        loop {
            self.progress.before_chunk(last)?;
            let read = match file.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.unreadable(path, error)),
            };
            hasher.update(&self.buffer[..read]);
            last = read as u64;
            self.progress.advance(last);
        }
        Ok(FileDigest { size: hasher.count(), blake3: hasher.finalize().to_hex().to_string() })
    }

    /// The header, then tensor after tensor: the index has checked that they tile the file, but for padding.
    fn weight_file(&mut self, path: &str, number: usize) -> Result<FileDigest> {
        let index = self.index;
        let changed = || Error::unloadable(index.label(path), "the file changed after its header was read");
        let header = index.header(number).ok_or_else(|| Error::internal("an index without a header"))?;
        let mut file = self.open(path)?;
        let mut whole = blake3::Hasher::new();
        if self.section(path, &mut file, header.len, &mut whole)? != header.digest {
            return Err(changed());
        }
        for tensor in index.tensors_of(number) {
            let padding = tensor.offset.saturating_sub(whole.count());
            self.section(path, &mut file, padding, &mut whole)?;
            let digest = self.section(path, &mut file, tensor.len, &mut whole)?;
            self.tensors.insert(tensor.name.clone(), digest.to_hex().to_string());
        }
        let rest = header.file_len.saturating_sub(whole.count());
        self.section(path, &mut file, rest, &mut whole)?;
        let past_the_end = file.read(&mut [0]).map_err(|error| self.unreadable(path, error))?;
        if past_the_end != 0 {
            return Err(changed());
        }
        Ok(FileDigest { size: whole.count(), blake3: whole.finalize().to_hex().to_string() })
    }

    /// Hashes the next `len` bytes, by themselves and as part of the whole file.
    fn section(&mut self, path: &str, file: &mut File, len: u64, whole: &mut blake3::Hasher) -> Result<blake3::Hash> {
        let mut own = blake3::Hasher::new();
        let mut left = len;
        while left > 0 {
            let piece = left.min(CHUNK as u64) as usize;
            self.progress.before_chunk(piece as u64)?;
            file.read_exact(&mut self.buffer[..piece]).map_err(|error| self.unreadable(path, error))?;
            own.update(&self.buffer[..piece]);
            whole.update(&self.buffer[..piece]);
            self.progress.advance(piece as u64);
            left -= piece as u64;
        }
        Ok(own.finalize())
    }
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
