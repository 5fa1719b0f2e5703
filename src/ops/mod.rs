//! The tensor operations that models are made of, each with its CPU reference.
//!
//! `cpu_fwd` of every op is the specification: f32 in, f32 accumulation, f32 out, on *packed* batches
//! (`[tokens, width]`, no padding; [`Segments`] says which rows belong to which sequence). A kernel of the same
//! name must agree with it. The CPU side runs on rayon's current pool, which the engine chooses, and never on
//! candle's process-wide elementwise pool.
//!
//! This room knows tensors only: nothing of checkpoints, models, batching or devices' memory.

mod activation;
mod attention;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod embed;
mod gate;
mod layer_norm;
mod likeliest;
mod likely;
mod linear;
pub mod logits;
mod matmul;
mod paged;
mod patches;
mod pool;
mod quantized;
mod recorded;
mod rms_norm;
mod rotary;
mod segments;
mod simd;
mod take_rows;
mod tensor;
#[cfg(test)]
mod testing;
mod told;

pub use activation::Activation;
pub use attention::{attention, attention_of_rows, attention_scratch_bytes, self_attention};
pub use cpu::{serially, threads};
pub use embed::{TokenTables, embed_patches, embed_tokens};
pub use gate::gated;
pub use layer_norm::{LayerNorm, layer_norm};
pub use likeliest::{Likeliest, likeliest, likeliest_device_bytes};
pub use likely::{Likely, likely};
pub use linear::{Epilogue, linear, linear_in_f32, linear_side_by_side};
pub use matmul::{Matrix, PANEL, WeightLayout};
pub use paged::{
    Given, KvCache, KvSpec, Run, Runs, paged_attention, paged_device_bytes, paged_scratch_bytes, place_heads,
};
pub use patches::{Grid, patches};
pub use pool::{Reduce, l2_normalize, reduce};
pub use quantized::QuantFormat;
pub use recorded::{Begun, Form, Recorded, RecordedStep, Recorder, StepForm};
pub use rms_norm::{RmsNorm, rms_norm};
pub use rotary::Rotary;
pub use segments::Segments;
pub use tensor::{Device, Keeping, Landed, Landing, Machine, Tensor};
pub use told::{Ask, Scored, Told, tell};
