//! What architectures are assembled from: linear layers, self-attention, feed-forward, blocks, pooling heads.
//!
//! Layers see packed rows `[tokens, width]`. They hold tensors as they were loaded (no transposed or fused
//! copies), because versions share unchanged tensors.

mod block;
mod config;
mod embedding;
mod linear;

pub(super) use block::{Block, BlockNames, NormOrder};
pub(super) use config::{Encoder, size};
pub(super) use embedding::EmbeddingHead;
pub(super) use linear::{Linear, Part};
