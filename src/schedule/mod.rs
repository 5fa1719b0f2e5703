//! Who runs next, with whom, and how fast weights come in beside them: decisions only.
//!
//! `Batcher` orders one generation's waiting inputs and cuts batches from them; `Turns` decides whose batch the
//! engine runs next and how much background work it may slip in; `LoadRate` how many bytes a load may move; `decode`
//! which tokens of a language model's sequences a step computes. Pure: time is an argument (nanoseconds since
//! the engine began), and nothing here knows a device, a channel, a thread or a clock.

mod batcher;
pub mod decode;
mod load_rate;
mod turns;

pub use batcher::{Batch, BatchLimits, Batcher, Queued};
pub use load_rate::{LoadRate, Looked};
pub use turns::{Choice, Class, Turns};

/// Nanoseconds since the engine began.
pub type Nanos = u64;
