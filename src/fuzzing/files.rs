//! Several files in one input, and a version folder that holds them.
//!
//! Each file comes after a line `-- name --`, so that a case can be read and written by hand.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::repository::safe_relative;

pub(super) struct File {
    pub(super) name: String,
    pub(super) body: Vec<u8>,
}

/// What stands before the first file is nothing. The line break before a file's line is that line's.
pub(super) fn split(data: &[u8]) -> Vec<File> {
    let mut files: Vec<File> = Vec::new();
    for line in data.split_inclusive(|byte| *byte == b'\n') {
        let last = files.last_mut().map(|file| &mut file.body);
        match (name_in(line), last) {
            (Some(name), last) => {
                last.and_then(|body| body.pop_if(|byte| *byte == b'\n'));
                files.push(File { name: name.to_owned(), body: Vec::new() });
            }
            (None, Some(body)) => body.extend_from_slice(line),
            (None, None) => {}
        }
    }
    files
}

fn name_in(line: &[u8]) -> Option<&str> {
    let name = line.strip_suffix(b"\n")?.strip_prefix(b"-- ")?.strip_suffix(b" --")?;
    std::str::from_utf8(name).ok()
}

/// `<temporary>/model/v1`, gone when it is dropped.
pub(super) struct Version {
    _root: TempDir,
    pub(super) dir: PathBuf,
}

impl Version {
    pub(super) fn with(files: &[File]) -> Version {
        let root = TempDir::new().unwrap();
        let dir = root.path().join("model/v1");
        fs::create_dir_all(&dir).unwrap();
        write(&dir, files);
        Version { _root: root, dir }
    }

    pub(super) fn read(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.dir.join(name)).ok()
    }
}

/// Names that would leave the folder are left out, and so is what cannot stand beside what is there.
pub(super) fn write(dir: &Path, files: &[File]) {
    for File { name, body } in files {
        if let Ok(path) = safe_relative(name) {
            let path = dir.join(path);
            let _ = path.parent().map(fs::create_dir_all);
            let _ = fs::write(path, body);
        }
    }
}
