use super::super::CHUNK;
use super::super::fixtures::{Folder, f32s, serialised};
use super::*;

fn folder() -> Folder {
    let folder = Folder::with(&[f32s("one", &[2], &[1.0, 2.0]), f32s("two", &[1], &[3.0]), f32s("none", &[0], &[])]);
    folder.write("config.json", b"{}");
    folder.write("1_Pooling/config.json", b"{\"a\": 1}");
    folder
}

#[test]
fn digests_are_those_of_the_files_and_of_each_tensors_bytes() {
    let folder = folder();
    let (index, manifest) = folder.indexed();
    for (path, digest) in &manifest.files {
        let bytes = std::fs::read(folder.path().join(path)).unwrap();
        assert_eq!(digest.size, bytes.len() as u64);
        assert_eq!(digest.blake3, blake3::hash(&bytes).to_hex().as_str());
    }
    let paths: Vec<_> = manifest.files.keys().collect();
    assert_eq!(paths, ["1_Pooling/config.json", "config.json", "model.safetensors"]);
    let bytes = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    assert_eq!(manifest.tensors.len(), 3);
    for tensor in index.iter() {
        let (from, to) = (tensor.offset as usize, (tensor.offset + tensor.len) as usize);
        assert_eq!(manifest.tensors[&tensor.name], blake3::hash(&bytes[from..to]).to_hex().as_str());
    }
}

#[test]
fn files_larger_than_the_buffer_have_the_same_digest() {
    let values: Vec<f32> = (0..700_000).map(|value| value as f32).collect();
    let folder = Folder::with(&[f32s("large", &[700_000], &values)]);
    folder.write("vocab.txt", &vec![7; 3 * CHUNK + 5]);
    let (_, manifest) = folder.indexed();
    for (path, digest) in &manifest.files {
        let bytes = std::fs::read(folder.path().join(path)).unwrap();
        assert_eq!(digest.blake3, blake3::hash(&bytes).to_hex().as_str(), "{path}");
    }
}

#[test]
fn two_copies_of_a_version_are_one_version() {
    let (_, first) = folder().indexed();
    let (_, second) = folder().indexed();
    assert_eq!(first.digest, second.digest);
    assert_ne!(first.fingerprint, second.fingerprint);
    assert!(first.differences(&second).is_empty());
}

#[test]
fn any_change_of_a_byte_a_name_or_the_set_of_files_is_another_version() {
    let (_, before) = folder().indexed();
    type Change = fn(&Folder);
    let changes: [(Change, &str); 5] = [
        (|folder| folder.write("config.json", b"[]"), "'config.json' has other bytes"),
        (|folder| folder.write("config.json", b"{} "), "'config.json' had 2 bytes and has 3"),
        (|folder| std::fs::remove_file(folder.path().join("config.json")).unwrap(), "'config.json' is gone"),
        (|folder| folder.write("golden.jsonl", b""), "'golden.jsonl' is new"),
        (
            |folder| {
                let len = std::fs::metadata(folder.path().join("model.safetensors")).unwrap().len();
                folder.patch("model.safetensors", len - 1, &[1]);
            },
            "'model.safetensors' has other bytes",
        ),
    ];
    for (change, expected) in changes {
        let folder = folder();
        change(&folder);
        let (_, after) = folder.indexed();
        assert_ne!(before.digest, after.digest);
        assert_eq!(before.differences(&after), [expected]);
    }
}

#[test]
fn moving_bytes_between_files_is_another_version() {
    let of = |files: [(&str, &str); 2]| {
        let files = files.map(|(path, blake3)| (path.to_owned(), FileDigest { size: 1, blake3: blake3.to_owned() }));
        identity(&files.into_iter().collect())
    };
    let all = [of([("ab", "c"), ("d", "e")]), of([("a", "bc"), ("d", "e")]), of([("ab", "c"), ("de", "")])];
    assert!(all[0] != all[1] && all[0] != all[2] && all[1] != all[2]);
}

#[test]
fn a_header_that_changed_after_it_was_indexed_is_refused() {
    let folder = Folder::with(&[f32s("one", &[2], &[1.0, 2.0])]);
    let index = folder.open();
    folder.write("model.safetensors", &serialised(&[f32s("two", &[2], &[1.0, 2.0])]));
    let error = Manifest::compute(folder.path(), &index).unwrap_err().to_string();
    assert!(error.contains("changed after its header was read"), "{error}");
}

#[test]
fn a_file_that_shrank_or_grew_after_it_was_indexed_is_refused() {
    for (change, expected) in [(-1i64, "ended early"), (1, "changed after its header was read")] {
        let folder = Folder::with(&[f32s("one", &[2], &[1.0, 2.0])]);
        let index = folder.open();
        let file = std::fs::OpenOptions::new().write(true).open(folder.path().join("model.safetensors")).unwrap();
        file.set_len(file.metadata().unwrap().len().strict_add_signed(change)).unwrap();
        let error = Manifest::compute(folder.path(), &index).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_weight_file_that_is_gone_is_named() {
    let folder = folder();
    let index = folder.open();
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let error = Manifest::compute(folder.path(), &index).unwrap_err().to_string();
    assert_eq!(error, "model/v1/model.safetensors: the weight file is gone");
}

#[test]
fn a_manifest_survives_being_stored() {
    let (_, manifest) = folder().indexed();
    let stored = serde_json::to_value(&manifest).unwrap();
    assert_eq!(serde_json::from_value::<Manifest>(stored).unwrap(), manifest);
}

#[test]
fn digesting_tells_how_far_it_is_and_can_be_cancelled() {
    let folder = folder();
    let index = folder.open();
    let progress = Progress::new();
    Manifest::compute_watched(folder.path(), &index, &progress).unwrap();
    assert!(progress.total() > 0);
    assert_eq!(progress.done(), progress.total());
    progress.cancel();
    let error = Manifest::compute_watched(folder.path(), &index, &progress).unwrap_err();
    assert_eq!(error.kind(), crate::error::Kind::Conflict);
    assert_eq!(progress.done(), 0);
}
