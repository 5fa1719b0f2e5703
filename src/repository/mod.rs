//! Placeholder for the repository room (the types of interfaces.md only): its owner's files replace these at merge.

pub mod model_toml;
pub mod spec;

pub use model_toml::Limits;
pub use spec::{DenseSpec, EmbeddingSpec, Pooling, Spec};
