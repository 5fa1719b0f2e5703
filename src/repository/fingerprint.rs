//! What a folder looks like without reading its bytes: every regular file's size, mtime and inode.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

const MAX_FILES: usize = 100_000;
const MAX_DEPTH: usize = 32;

/// Every regular file below a folder (symlinks followed), by its relative path with `/` between parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint(BTreeMap<String, Stamp>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    size: u64,
    mtime_ns: i128,
    inode: u64,
}

impl Fingerprint {
    pub fn of(dir: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        walk(dir, "", 0, &mut files)?;
        Ok(Fingerprint(files))
    }

    /// Relative paths, sorted.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

fn walk(dir: &Path, prefix: &str, depth: usize, files: &mut BTreeMap<String, Stamp>) -> Result<()> {
    let failed = |error: std::io::Error| Error::unloadable(if prefix.is_empty() { "." } else { prefix }, error);
    if depth > MAX_DEPTH {
        return Err(Error::unloadable(prefix, "folders are nested too deeply"));
    }
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let name = name.to_str().ok_or_else(|| Error::unloadable(name.display(), "the name is not UTF-8"))?;
        let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
        let meta = std::fs::metadata(entry.path()).map_err(|error| Error::unloadable(&path, error))?;
        if meta.is_dir() {
            walk(&entry.path(), &path, depth + 1, files)?;
        } else if meta.is_file() {
            let mtime_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
            files.insert(path, Stamp { size: meta.len(), mtime_ns, inode: meta.ino() });
        }
        if files.len() > MAX_FILES {
            return Err(Error::unloadable(prefix, format!("more than {MAX_FILES} files")));
        }
    }
    Ok(())
}
