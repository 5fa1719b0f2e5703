//! Digests: what a version's bytes are, file by file and tensor by tensor.
//!
//! The manifest is the version's identity: recorded at first sight, compared with afterwards, and what every tensor
//! is held against while it is read.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::digests::{Digests, Hashed, digests};
use super::index::HeaderId;
use super::{Index, Progress, TensorInfo};
use crate::error::{Error, Result};
use crate::repository::{FileStat, Fingerprint};

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
    /// Reads every file below `dir` once. `index` must be of the same folder.
    pub fn compute(dir: &Path, index: &Index) -> Result<Manifest> {
        Self::compute_watched(dir, index, &Progress::new())
    }

    /// [`Manifest::compute`] that tells how far it is and can be cancelled.
    pub fn compute_watched(dir: &Path, index: &Index, progress: &Progress) -> Result<Manifest> {
        let fingerprint = Fingerprint::of(dir)?;
        let found = fingerprint.files();
        if let Some(missing) = index.files.iter().find(|file| !found.iter().any(|found| found.path == **file)) {
            return Err(Error::unloadable(index.label(missing), "the weight file is gone"));
        }
        progress.begin(found.iter().map(|file| file.size).sum());
        let sheets: Vec<Sheet<'_>> = found.iter().map(|file| Sheet::of(index, file)).collect::<Result<_>>()?;
        let hashed: Vec<Hashed> = sheets.iter().map(|sheet| sheet.hashed(dir)).collect();
        let unreadable = |file: usize, error| unreadable(index, found.get(file), &error);
        let digests = digests(&hashed, progress, unreadable)?;
        if Fingerprint::of(dir)? != fingerprint {
            return Err(Error::unloadable(index.label(""), "the folder changed while its digests were computed"));
        }
        let (mut files, mut tensors) = (BTreeMap::new(), BTreeMap::new());
        for (sheet, digests) in sheets.iter().zip(digests) {
            tensors.extend(sheet.tensors(index, &digests)?);
            let Digests { whole, .. } = digests;
            let digest = FileDigest { size: sheet.file.size, blake3: whole.to_hex().to_string() };
            files.insert(sheet.file.path.clone(), digest);
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

fn unreadable(index: &Index, file: Option<&FileStat>, error: &io::Error) -> Error {
    let label = index.label(file.map_or("", |file| file.path.as_str()));
    match error.kind() {
        ErrorKind::UnexpectedEof => Error::unloadable(label, ENDED_EARLY),
        _ => Error::unloadable(label, format!("cannot read it: {error}")),
    }
}

const ENDED_EARLY: &str = "the file ended early: it changed while its digest was computed";

/// A file of the folder, and what of it has digests of its own.
struct Sheet<'a> {
    file: &'a FileStat,
    weights: Option<WeightFile<'a>>,
}

struct WeightFile<'a> {
    header: &'a HeaderId,
    /// In the order of their bytes. The index has checked that they tile the file, but for padding.
    tensors: Vec<&'a TensorInfo>,
}

impl<'a> Sheet<'a> {
    fn of(index: &'a Index, file: &'a FileStat) -> Result<Sheet<'a>> {
        let Some(number) = index.files.iter().position(|path| *path == file.path) else {
            return Ok(Sheet { file, weights: None });
        };
        let header = index.header(number).ok_or_else(|| Error::internal("an index without a header"))?;
        match file.size.cmp(&header.file_len) {
            Ordering::Less => Err(Error::unloadable(index.label(&file.path), ENDED_EARLY)),
            Ordering::Greater => Err(changed(index, file)),
            Ordering::Equal => {
                let tensors = index.tensors_of(number);
                Ok(Sheet { file, weights: Some(WeightFile { header, tensors }) })
            }
        }
    }

    /// Of a weight file: the header, then tensor after tensor.
    fn hashed(&self, dir: &Path) -> Hashed {
        let tensors = |weights: &WeightFile<'_>| {
            let tensors = weights.tensors.iter().map(|tensor| tensor.offset..tensor.offset + tensor.len);
            std::iter::once(0..weights.header.len).chain(tensors).collect()
        };
        let stretches = self.weights.as_ref().map(tensors).unwrap_or_default();
        Hashed { path: dir.join(&self.file.path), len: self.file.size, stretches }
    }

    fn tensors(&self, index: &Index, digests: &Digests) -> Result<Vec<(String, String)>> {
        let Some(WeightFile { header, tensors }) = &self.weights else { return Ok(Vec::new()) };
        match digests.stretches.split_first() {
            Some((first, rest)) if *first == header.digest => {
                let named = tensors.iter().zip(rest);
                Ok(named.map(|(tensor, digest)| (tensor.name.clone(), digest.to_hex().to_string())).collect())
            }
            _ => Err(changed(index, self.file)),
        }
    }
}

fn changed(index: &Index, file: &FileStat) -> Error {
    Error::unloadable(index.label(&file.path), "the file changed after its header was read")
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
