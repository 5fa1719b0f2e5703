//! Placeholder: see `repository`.

use std::path::PathBuf;

use crate::value::Task;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    Mean,
    Cls,
    Max,
}

#[derive(Debug, Clone)]
pub struct DenseSpec {
    pub dir: String,
    pub in_features: usize,
    pub out_features: usize,
    pub bias: bool,
    pub activation: String,
}

#[derive(Debug, Clone)]
pub struct EmbeddingSpec {
    pub pooling: Pooling,
    pub dense: Vec<DenseSpec>,
    pub normalize: bool,
    pub max_seq_length: Option<usize>,
    pub do_lower_case: bool,
}

#[derive(Debug, Clone)]
pub struct Spec {
    pub model: String,
    pub version: String,
    pub dir: PathBuf,
    pub task: Task,
    pub family: String,
    pub config: serde_json::Value,
    pub embedding: Option<EmbeddingSpec>,
    pub preprocessor: Option<serde_json::Value>,
    pub weight_files: Vec<PathBuf>,
    pub labels: Vec<String>,
}
