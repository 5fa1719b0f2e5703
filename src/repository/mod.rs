//! Models on disk: what an operator wrote about them, and what their version folders hold.
//!
//! A leaf: files in, descriptions out. It must not know tensors, tokenizers, devices or HTTP, and it
//! changes nothing on disk.

pub mod duration;
mod files;
pub mod model_toml;
pub mod name;
mod sentence_transformers;
pub mod spec;

pub use model_toml::ModelConfig;
pub use spec::Spec;
