//! all-MiniLM-L6-v2, fetched on first use by the script that ships with the repository.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use super::{Site, root, skipped};

/// For tests: no verdict on timings, and a window that ends when a test says so.
const MINILM: &str = "task = 'embed'\nlive = 'f32'\n[gate]\nmax_latency_ratio = 1000\nlatency_rounds = 2\n\
                      [observe]\nwindow = '1h'\ngolden_every = '1h'\nmax_p99_ratio = 1000\n";

/// Whether both versions are in `models/minilm`, brought there when they are not. Where they cannot be had, the test
/// that asks is skipped, and that is said.
pub(crate) fn is_here() -> bool {
    static HERE: OnceLock<Result<(), String>> = OnceLock::new();
    match HERE.get_or_init(fetch) {
        Ok(()) => true,
        Err(why) => {
            skipped(&format!("all-MiniLM-L6-v2 could not be fetched (try 'models/fetch minilm' yourself): {why}"));
            false
        }
    }
}

/// The script takes a lock of its own and leaves alone what is there and right.
fn fetch() -> Result<(), String> {
    let output = Command::new("python3").arg(root().join("models/fetch")).arg("minilm").output();
    let output = output.map_err(|e| format!("python3 could not be run: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

impl Site {
    /// Adds `minilm` with `f32` live, and `f16`.
    pub(crate) fn add_minilm(&self) {
        self.model("minilm", MINILM);
        let (from, to) = (root().join("models/minilm"), self.models().join("minilm"));
        fs::copy(from.join("golden.jsonl"), to.join("golden.jsonl")).unwrap();
        for version in ["f32", "f16"] {
            let folder: &Path = &from.join(version);
            symlink(fs::canonicalize(folder).unwrap(), to.join(version)).unwrap();
        }
    }
}
