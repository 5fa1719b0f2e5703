//! What fuzzers call (`fuzz/`), and `cargo test` with every case that one of them found.
//!
//! One function a kind of file or body that a stranger may write. Each hands the bytes to the code that a server hands
//! them to, and holds what comes of it to more than that nothing panics: what is accepted adds up, and what is refused is
//! refused as that stranger's mistake, in a line of bounded length.
//!
//! Compiled for fuzzers and tests; the server has none of it.

mod config;
mod files;
mod gguf;
mod golden;
mod image;
mod requests;
mod safetensors;

use crate::error::{Error, Kind, Result};

/// A target, named as the folder of its cases in `fuzz/cases`; it tells whether its input was accepted.
pub type Target = (&'static str, fn(&[u8]) -> bool);

pub const TARGETS: [Target; 7] = [
    ("binary_tensors", binary_tensors),
    ("config", config),
    ("gguf", gguf),
    ("golden", golden),
    ("image", image),
    ("requests", requests),
    ("safetensors", safetensors),
];

/// A request of the Open Inference Protocol: its task and the header that says how much of it is JSON, then its body.
pub fn binary_tensors(data: &[u8]) -> bool {
    accepted(crate::http::fuzzing::binary_tensors(data), &[Kind::BadRequest])
}

/// `model.toml`, `cutover.toml` and the small files of a version.
pub fn config(data: &[u8]) -> bool {
    accepted(config::check(data), &[Kind::Refused])
}

/// A GGUF file: what it is, its tokenizer and its weights.
pub fn gguf(data: &[u8]) -> bool {
    accepted(gguf::check(data), &[Kind::Refused])
}

/// A `golden.jsonl`.
pub fn golden(data: &[u8]) -> bool {
    accepted(golden::check(data), &[Kind::Refused])
}

/// An image, and how it is prepared.
pub fn image(data: &[u8]) -> bool {
    accepted(image::check(data), &[Kind::BadRequest, Kind::TooLarge])
}

/// A request to a model, in any dialect.
pub fn requests(data: &[u8]) -> bool {
    accepted(requests::check(data), &[Kind::BadRequest])
}

/// Weight files and their index.
pub fn safetensors(data: &[u8]) -> bool {
    accepted(safetensors::check(data), &[Kind::Refused])
}

/// No error takes more than a page, however long what it is about. Characters.
const LONGEST_ERROR: usize = 5_000;

/// Whether it was. A refusal must be of one of these kinds, and one line: it is logged.
#[track_caller]
fn accepted(outcome: Result<()>, kinds: &[Kind]) -> bool {
    let Err(error) = outcome else { return true };
    let (kind, text) = (error.kind(), error.to_string());
    assert!(kinds.contains(&kind), "{kind:?}: {text}");
    assert!(!text.chars().any(char::is_control), "not one line: {text:?}");
    assert!(text.chars().count() <= LONGEST_ERROR, "{} bytes: {text}", text.len());
    if let Error::TooLarge { got, limit, .. } = error {
        assert!(got > limit, "{text}");
    }
    false
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::panic::catch_unwind;
    use std::path::{Path, PathBuf};

    use super::*;

    /// What is in this folder of a target, and whether it is accepted; none where it does not hold.
    fn replayed(kind: &str, (name, target): Target) -> Vec<(String, Option<bool>)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(kind).join(name);
        let replay = |path: PathBuf| {
            let data = fs::read(&path).unwrap();
            let label = format!("{name}/{}", path.file_name().unwrap().to_string_lossy());
            (label, catch_unwind(|| target(&data)).ok())
        };
        fs::read_dir(folder).into_iter().flatten().map(|entry| replay(entry.unwrap().path())).collect()
    }

    #[test]
    fn what_fuzzers_found_holds_now() {
        let cases: Vec<_> = TARGETS.into_iter().flat_map(|target| replayed("cases", target)).collect();
        let failed: Vec<_> = cases.iter().filter(|(_, outcome)| outcome.is_none()).map(|(label, _)| label).collect();
        assert!(!cases.is_empty() && failed.is_empty(), "{failed:#?}");
    }

    /// Else a fuzzer begins before the door.
    #[test]
    fn every_seed_is_accepted() {
        for target in TARGETS {
            let seeds = replayed("seeds", target);
            let refused: Vec<_> = seeds.iter().filter(|(_, accepted)| *accepted != Some(true)).collect();
            assert!(!seeds.is_empty() && refused.is_empty(), "{refused:?}");
        }
    }
}
