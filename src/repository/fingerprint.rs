//! A folder's fingerprint: enough to notice, without reading a byte of content, that it changed.
//!
//! A version folder is immutable. Digests prove it and cost a read of every byte; the fingerprint is
//! what is compared before that. It must not know what the files are.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

const MAX_FILES: usize = 100_000;
/// Folders in folders; version folders have two levels.
const MAX_DEPTH: usize = 16;

/// Every regular file below a folder, sorted by path.
///
/// Links to files are followed, because Hugging Face's cache is made of them: what counts is the file
/// that would be read. Links to folders are refused, as is everything that is neither file nor folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint(Vec<FileStat>);

/// What the file system says about one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStat {
    /// Below the folder, with `/`.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub mtime_ns: i64,
    pub inode: u64,
}

impl Fingerprint {
    /// Looks at every file below `dir`.
    ///
    /// Errors: [`Error::Unloadable`] with the path that cannot be part of a version: `model/version/path`.
    pub fn of(dir: &Path) -> Result<Fingerprint> {
        let mut files = Vec::new();
        collect(dir, "", 0, &mut files).map_err(|error| named(dir, error))?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Fingerprint(files))
    }

    pub fn files(&self) -> &[FileStat] {
        &self.0
    }

    /// Paths that were added, went or changed since `self` was taken.
    pub fn differences(&self, now: &Fingerprint) -> Vec<String> {
        let missing_in = |here: &[FileStat], there: &[FileStat]| -> Vec<String> {
            here.iter().filter(|file| !there.contains_sorted(file)).map(|file| file.path.clone()).collect()
        };
        let mut paths = missing_in(&self.0, &now.0);
        paths.extend(missing_in(&now.0, &self.0));
        paths.sort();
        paths.dedup();
        paths
    }
}

/// The error, told of a path in this version of this model.
fn named(dir: &Path, error: Error) -> Error {
    let part = |dir: Option<&Path>| dir.and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    match error {
        Error::Unloadable { file, reason } => {
            Error::unloadable(format!("{}/{}/{file}", part(dir.parent()), part(Some(dir))), reason)
        }
        other => other,
    }
}

trait ContainsSorted {
    fn contains_sorted(&self, file: &FileStat) -> bool;
}

impl ContainsSorted for [FileStat] {
    fn contains_sorted(&self, file: &FileStat) -> bool {
        self.binary_search_by(|other| other.path.cmp(&file.path)).is_ok_and(|at| self[at] == *file)
    }
}

fn collect(dir: &Path, prefix: &str, depth: usize, files: &mut Vec<FileStat>) -> Result<()> {
    let here = if prefix.is_empty() { "." } else { prefix };
    let unreadable = |e: std::io::Error| Error::unloadable(here, format!("cannot be read: {e}"));
    if depth > MAX_DEPTH {
        return Err(Error::unloadable(here, format!("is more than {MAX_DEPTH} folders deep")));
    }
    for entry in dir.read_dir().map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            return Err(Error::unloadable(here, format!("holds a name that is not UTF-8: {}", name.to_string_lossy())));
        };
        let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
        let kind = entry.file_type().map_err(unreadable)?;
        if kind.is_dir() {
            collect(&entry.path(), &path, depth + 1, files)?;
            continue;
        }
        let target =
            fs::metadata(entry.path()).map_err(|e| Error::unloadable(&path, format!("cannot be read: {e}")))?;
        if !target.is_file() {
            let what = if target.is_dir() { "is a link to a folder" } else { "is neither a file nor a folder" };
            return Err(Error::unloadable(&path, what));
        }
        if files.len() == MAX_FILES {
            return Err(Error::unloadable(here, format!("the folder holds more than {MAX_FILES} files")));
        }
        let mtime_ns = target.mtime().saturating_mul(1_000_000_000).saturating_add(target.mtime_nsec());
        files.push(FileStat { path, size: target.size(), mtime_ns, inode: target.ino() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::time::{Duration, SystemTime};

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("1_Pooling")).unwrap();
        fs::write(dir.path().join("1_Pooling/config.json"), "{}").unwrap();
        fs::write(dir.path().join("config.json"), "{}").unwrap();
        fs::write(dir.path().join(".hidden"), "").unwrap();
        dir
    }

    #[test]
    fn every_file_below_the_folder_counts_in_the_order_of_paths() {
        let dir = folder();
        let print = Fingerprint::of(dir.path()).unwrap();
        let paths: Vec<_> = print.files().iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, [".hidden", "1_Pooling/config.json", "config.json"]);
        assert_eq!(print, Fingerprint::of(dir.path()).unwrap());
        let stored: Fingerprint = serde_json::from_str(&serde_json::to_string(&print).unwrap()).unwrap();
        assert_eq!(stored, print);
    }

    #[test]
    fn a_file_that_is_added_removed_rewritten_or_replaced_is_named() {
        let dir = folder();
        let before = Fingerprint::of(dir.path()).unwrap();
        let now = || before.differences(&Fingerprint::of(dir.path()).unwrap());
        assert!(now().is_empty());

        fs::write(dir.path().join("added"), "").unwrap();
        assert_eq!(now(), ["added"]);
        fs::remove_file(dir.path().join("added")).unwrap();

        // the same size and the same time, but another file
        let old = fs::metadata(dir.path().join("config.json")).unwrap().modified().unwrap();
        fs::write(dir.path().join("new"), "[]").unwrap();
        fs::File::options().write(true).open(dir.path().join("new")).unwrap().set_modified(old).unwrap();
        fs::rename(dir.path().join("new"), dir.path().join("config.json")).unwrap();
        assert_eq!(now(), ["config.json"]);

        let nested = dir.path().join("1_Pooling/config.json");
        let later = SystemTime::now() + Duration::from_secs(5);
        fs::File::options().write(true).open(&nested).unwrap().set_modified(later).unwrap();
        assert_eq!(now(), ["1_Pooling/config.json", "config.json"]);
        fs::remove_file(nested).unwrap();
        assert_eq!(now(), ["1_Pooling/config.json", "config.json"]);
    }

    #[test]
    fn a_link_to_a_file_stands_for_the_file() {
        let dir = folder();
        let blobs = tempfile::tempdir().unwrap();
        fs::write(blobs.path().join("a"), "1234").unwrap();
        fs::write(blobs.path().join("b"), "1234").unwrap();
        symlink(blobs.path().join("a"), dir.path().join("model.safetensors")).unwrap();
        let before = Fingerprint::of(dir.path()).unwrap();
        assert!(before.files().iter().any(|file| file.path == "model.safetensors" && file.size == 4));
        fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        symlink(blobs.path().join("b"), dir.path().join("model.safetensors")).unwrap();
        assert_eq!(before.differences(&Fingerprint::of(dir.path()).unwrap()), ["model.safetensors"]);
    }

    #[test]
    fn what_cannot_be_part_of_a_version_is_refused_by_name() {
        let refused = |name: &str, target: &str| {
            let dir = folder();
            let version = dir.path().join("minilm/f32");
            fs::create_dir_all(&version).unwrap();
            symlink(target, version.join(name)).unwrap();
            Fingerprint::of(&version).unwrap_err().to_string()
        };
        assert!(refused("loop", ".").starts_with("minilm/f32/loop: is a link to a folder"));
        assert!(refused("dangling", "nowhere").starts_with("minilm/f32/dangling: cannot be read"));
        assert!(refused("device", "/dev/null").starts_with("minilm/f32/device: is neither"));
        let dir = folder();
        fs::create_dir_all(dir.path().join("d/".repeat(MAX_DEPTH + 1))).unwrap();
        assert!(Fingerprint::of(dir.path()).unwrap_err().to_string().contains("folders deep"));
        assert!(Fingerprint::of(&dir.path().join("missing")).is_err());
    }
}
