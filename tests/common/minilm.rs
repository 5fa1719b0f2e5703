//! all-MiniLM-L6-v2.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;

use super::fetched::{Fetched, RULES};
use super::{Site, fixture, root};

static MODEL: Fetched = Fetched::new("minilm", "all-MiniLM-L6-v2");

pub(crate) fn is_here() -> bool {
    MODEL.is_here()
}

/// Inputs with the embeddings that sentence-transformers gives.
pub(crate) fn reference() -> Vec<(String, Vec<f64>)> {
    let file: Value = serde_json::from_slice(&fs::read(fixture("minilm-reference.json")).unwrap()).unwrap();
    let cases = file["cases"].as_array().unwrap().iter();
    let floats = |value: &Value| value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    cases.map(|case| (case["input"].as_str().unwrap().to_owned(), floats(&case["output"]))).collect()
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
