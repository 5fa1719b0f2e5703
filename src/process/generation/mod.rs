//! The text side of generation: token ids to text.
//!
//! Sampled ids become text ([`Detokenizer`]), in which stop strings are looked for ([`StopStrings`]). Everything is made
//! from plain values: it must not know version folders, engines or HTTP.

mod detokenizer;
mod steps;
mod stop;
#[cfg(test)]
mod testing;

pub use detokenizer::{Detokenizer, Specials, TextDecoder};
pub use stop::{Passed, StopStrings};
