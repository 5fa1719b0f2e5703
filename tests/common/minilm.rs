//! all-MiniLM-L6-v2.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::fetched::{Fetched, RULES};
use super::{Site, root};

static MODEL: Fetched = Fetched::new("minilm", "all-MiniLM-L6-v2");

pub(crate) fn is_here() -> bool {
    MODEL.is_here()
}

impl Site {
    /// Adds `minilm` with `f32` live, and `f16`.
    pub(crate) fn add_minilm(&self) {
        self.model("minilm", &format!("task = 'embed'\nlive = 'f32'\n{RULES}"));
        let (from, to) = (root().join("models/minilm"), self.models().join("minilm"));
        fs::copy(from.join("golden.jsonl"), to.join("golden.jsonl")).unwrap();
        for version in ["f32", "f16"] {
            let folder: &Path = &from.join(version);
            symlink(fs::canonicalize(folder).unwrap(), to.join(version)).unwrap();
        }
    }
}
