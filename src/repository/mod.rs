//! Placeholder for the repository room: only the fingerprint, which `weights` records. The owner's replaces it.

pub mod fingerprint;

pub use fingerprint::Fingerprint;
