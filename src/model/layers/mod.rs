//! What architectures are assembled from: linear layers, self-attention, feed-forward, blocks, pooling heads, rotary
//! embeddings.
//!
//! Layers see packed rows `[tokens, width]`. They hold tensors as they were loaded and make none of them (no transposed or
//! fused copies), because versions share unchanged tensors; what shall lie together is loaded so.

mod attention;
mod block;
mod config;
mod embedding;
mod linear;
mod rope;
mod side_by_side;

pub(super) use block::{Block, BlockNames, NormOrder};
pub(super) use config::{Encoder, activation, size};
pub(super) use embedding::EmbeddingHead;
pub(super) use linear::{Linear, Part};
pub(super) use rope::Rope;
pub(super) use side_by_side::SideBySide;
