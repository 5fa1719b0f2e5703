//! Weight files: what they hold (`index`), what their bytes are (`manifest`, by `digests`), how they become tensors (`load`),
//! how they are kept ready for a GPU in host memory (`parked`),
//! and in what two versions differ (`difference`, `distance`).
//!
//! Knows files and tensors; must not know models, versions in service, budgets or who asks. safetensors is read, and GGUF;
//! a header is believed only after every offset in it was checked, and a byte only after its digest was.
//!
//! Deliberately absent: memory maps. A mapped file that changes or shrinks is undefined behaviour or a SIGBUS in the
//! serving process; a file that is read can only give an error.

mod blocks;
mod cast;
mod copy;
mod difference;
mod digests;
mod distance;
mod gguf;
mod header;
mod index;
mod load;
mod manifest;
#[cfg(feature = "cuda")]
mod packed;
mod parked;
mod progress;
mod read;
mod source;
#[cfg(feature = "cuda")]
mod staged;
mod throttle;

pub use copy::copy;
pub use difference::{TensorChanges, Tensors};
pub use distance::{Distances, distances};
pub use header::SourceDtype;
pub use index::{Index, TensorInfo};
pub use load::{Below, CacheFootprint, Footprint, Known, TensorKey, Wanted, Weights, check, key_of, load, stacked};
pub use manifest::{FileDigest, Manifest};
pub use parked::{Pace, Parked, park};
pub use progress::Progress;
pub use throttle::Throttle;

/// Bytes read at a time, and so what a load holds beyond its tensors and how much passes between two looks at the
/// cancel flag. Small enough to stay in the second-level cache between being read, hashed and cast.
const CHUNK: usize = 1 << 20;

/// Threads that read files: each copies 7 GB/s out of the page cache, and twelve of them fill the bus where eight reach four fifths of
/// it (measured on an H100: `staging` of `benches/gpu/probe`). At most three of four processors: the others answer clients, and
/// before these.
const READERS: usize = 12;

/// How many of them for so many pieces.
fn readers(pieces: usize) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    (processors * 3 / 4).clamp(1, READERS).min(pieces.max(1))
}

/// A name from a file, made safe for one line of a log.
fn quoted(name: &str) -> String {
    const LONGEST: usize = 120;
    let shown: String = name.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if name.chars().nth(LONGEST).is_some() { format!("'{shown}…'") } else { format!("'{shown}'") }
}

#[cfg(test)]
mod fixtures;
