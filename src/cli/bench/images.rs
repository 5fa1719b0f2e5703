//! Image requests from a folder of encoded files, sent as they are.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::super::output::Failure;
use super::target::Payload;
use crate::value::RawInput;

const MAX_FILE_BYTES: u64 = 32 << 20;
const MAX_TOTAL_BYTES: u64 = 1 << 30;

/// One raw image a request, or several as base64 when the batch is larger; files in the order of their names.
pub(super) fn payloads(dir: &Path, batch: usize, count: usize) -> Result<Vec<Payload>, Failure> {
    let files = list(dir)?;
    let mut total = 0;
    let mut images = Vec::new();
    for path in files.into_iter().take(count.saturating_mul(batch)) {
        let bytes = read(&path)?;
        total += bytes.len() as u64;
        if total > MAX_TOTAL_BYTES {
            return Err(Failure::Failed(format!("{}: more than 1 GiB of images; use --corpus", dir.display())));
        }
        images.push((kind(&path), bytes));
    }
    if images.is_empty() {
        return Err(Failure::Failed(format!("{}: no .png or .jpg files", dir.display())));
    }
    if batch == 1 {
        return Ok(images.into_iter().map(|(kind, bytes)| Payload::raw(kind, bytes)).collect());
    }
    let requests = images.len().div_ceil(batch);
    let body = |request: usize| {
        let inputs: Vec<RawInput> =
            (0..batch).map(|at| RawInput::Image(images[(request * batch + at) % images.len()].1.clone())).collect();
        Payload::json(&json!({ "inputs": inputs }))
    };
    Ok((0..requests).map(body).collect())
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed = |e: std::io::Error| Failure::Failed(format!("--images {}: {e}", dir.display()));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if !kind(&path).is_empty() && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |e: std::io::Error| Failure::Failed(format!("{}: {e}", path.display()));
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > MAX_FILE_BYTES {
        return Err(Failure::Failed(format!("{}: larger than 32 MiB", path.display())));
    }
    std::fs::read(path).map_err(failed)
}

/// The media type that the name says, empty for what is no image.
fn kind(path: &Path) -> &'static str {
    let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    match extension.as_deref() {
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_becomes_raw_requests_or_batches() {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in [("b.png", "two"), ("a.JPG", "one"), ("c.png", "three"), ("notes.txt", "no")] {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        let single = payloads(dir.path(), 1, 512).unwrap();
        let told: Vec<_> = single.iter().map(|p| (p.content_type.to_str().unwrap(), &p.body[..])).collect();
        assert_eq!(told, [("image/jpeg", &b"one"[..]), ("image/png", b"two"), ("image/png", b"three")]);
        let batches = payloads(dir.path(), 2, 512).unwrap();
        assert_eq!(batches.len(), 2);
        assert_eq!(&batches[1].body[..], br#"{"inputs":[{"image":"dGhyZWU="},{"image":"b25l"}]}"#);
        assert_eq!(payloads(dir.path(), 1, 2).unwrap().len(), 2);
    }

    #[test]
    fn a_folder_without_images_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        assert!(payloads(dir.path(), 1, 1).unwrap_err().to_string().contains("no .png"));
        assert!(payloads(&dir.path().join("gone"), 1, 1).unwrap_err().to_string().contains("--images"));
    }
}
