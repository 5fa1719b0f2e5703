//! The text side of generation: prompts to token ids, and token ids to text.
//!
//! A chat becomes one text ([`ChatTemplate`]) and then ids ([`PromptEncoder`]); sampled ids become text again
//! ([`Detokenizer`]), in which stop strings are looked for ([`StopStrings`]) and calls of tools ([`CallReader`]);
//! [`EndSources`] tells which ids end an answer. Everything is made from plain values: it must not know version folders, engines or HTTP.

mod added;
mod calls;
mod control;
mod detokenizer;
mod encode;
mod eos;
mod steps;
mod stop;
mod template;
#[cfg(test)]
mod testing;

pub use calls::{Call, CallForm, CallReader, CallRules, Read};
pub use detokenizer::{Detokenizer, Specials, TextDecoder};
pub use encode::{Around, PromptEncoder, PromptLimits, Reading};
pub use eos::EndSources;
pub use stop::{Passed, StopStrings};
pub use template::{ChatTemplate, Content, Message, Part, RenderOptions, Rendered, TemplateSource};
