//! Who runs next, and with whom: decisions only.
//!
//! `Batcher` orders one generation's waiting inputs and cuts batches from them; `Turns` decides whose batch the
//! engine runs next and how much background work it may slip in. Pure: time is an argument (nanoseconds since
//! the engine began), and nothing here knows a device, a channel, a thread or a clock.

mod batcher;
mod turns;

pub use batcher::{Batch, BatchLimits, Batcher, Queued};
pub use turns::{Choice, Class, Turns};

/// Nanoseconds since the engine began.
pub type Nanos = u64;
