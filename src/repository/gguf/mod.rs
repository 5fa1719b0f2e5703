//! A GGUF file as the small files of Hugging Face's layout that would describe the same version: `config.json`,
//! `tokenizer.json` and `tokenizer_config.json`. Everybody else reads those, wherever they come from.
//!
//! Knows the vocabulary of such files and llama.cpp's defaults for what they leave out. Whatever would make a model compute
//! something else than Hugging Face's keys can say is refused. It must not know what an architecture computes or how a text
//! is cut, and reads no weights but the table that rotary frequencies are divided by, which is configuration in a tensor's
//! clothes.

mod byte_level;
mod config;
mod sentence_piece;
mod tokenizer;
mod vocabulary;

pub use config::gguf_config;
pub use tokenizer::TokenizerFiles;
