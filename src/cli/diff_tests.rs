use std::fs;

use clap::Parser as _;
use serde_json::json;

use super::super::{Cli, Command};
use super::*;

fn bundled(name: &str) -> String {
    format!("{}/models/digits/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// What the command prints, and what it ends with.
fn diff(line: &[&str]) -> (String, Result<bool>) {
    let words = ["cutover", "diff"].iter().chain(line);
    let Command::Diff(args) = Cli::try_parse_from(words).unwrap().command else { panic!("not diff") };
    assert!(args.are_folders());
    let mut out = Vec::new();
    let ended = run(&args, &mut out);
    (String::from_utf8(out).unwrap(), ended)
}

/// A copy of a folder, with one of its files rewritten.
fn copied(from: &str, file: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> (tempfile::TempDir, String) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("digits/copy");
    fs::create_dir_all(&dir).unwrap();
    fs::write(root.path().join("digits/model.toml"), "task = 'image-classify'\n").unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
    fs::write(dir.join(file), change(fs::read(dir.join(file)).unwrap())).unwrap();
    (root, dir.display().to_string())
}

#[test]
fn two_bundled_versions_differ_in_size_and_in_nothing_that_clients_rely_on() {
    let (shown, ended) = diff(&[&bundled("v1"), &bundled("v2"), "--check"]);
    assert!(ended.unwrap(), "{shown}");
    assert!(shown.starts_with("digits@v1 → digits@v2: keeps its contract\n"), "{shown}");
    for part in ["config: hidden_size is 64, and was 32", "tensors.shapes", "tensors.names", "the same: task, labels"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let (shown, ended) = diff(&[&bundled("v1"), &bundled("v1")]);
    ended.unwrap();
    assert!(shown.starts_with("digits@v1 → digits@v1: nothing differs\n"), "{shown}");
}

/// `v3` is `v2` with broken weights: same form, other values.
#[test]
fn versions_of_one_form_are_told_apart_by_the_distance_of_their_tensors() {
    let (shown, ended) = diff(&[&bundled("v2"), &bundled("v3"), "--json"]);
    assert!(ended.unwrap());
    let told: Value = serde_json::from_str(&shown).unwrap();
    let differences = told["differences"].as_array().unwrap();
    let tensors = differences.iter().find(|difference| difference["what"] == "tensors").unwrap();
    let counts = &tensors["tensors"];
    assert_eq!((&counts["measured"], &tensors["severity"]), (&counts["changed"], &json!("notable")), "{tensors}");
    let (median, largest) = (counts["median"].as_f64().unwrap(), counts["largest"]["distance"].as_f64().unwrap());
    assert!(0.0 < median && median <= largest && largest <= 2.0, "{tensors}");
}

#[test]
fn a_label_that_changes_is_breaking_and_the_check_says_no() {
    let (_root, other) = copied(&bundled("v1"), "config.json", |bytes| {
        let mut config: Value = serde_json::from_slice(&bytes).unwrap();
        config["id2label"]["7"] = json!("sieben");
        config.to_string().into_bytes()
    });
    let (shown, ended) = diff(&[&bundled("v1"), &other, "--check"]);
    assert!(!ended.unwrap(), "{shown}");
    assert!(shown.contains("the gate refuses it in its place"), "{shown}");
    assert!(shown.contains(r#"breaking  labels  1 of 10 labels are others: 7 is "sieben", and was "7""#), "{shown}");
    let (_, ended) = diff(&[&bundled("v1"), &other]);
    assert!(ended.unwrap(), "without --check a difference is no failure");
}

/// The same checkpoint as one GGUF file and as Hugging Face writes it.
#[test]
fn a_gguf_file_and_its_conversion_are_the_same_numbers_in_two_forms() {
    let root = tempfile::tempdir().unwrap();
    let place = |version: &str| root.path().join("tiny").join(version);
    fs::create_dir_all(place("gguf")).unwrap();
    fs::write(root.path().join("tiny/model.toml"), "task = 'generate'\n").unwrap();
    let file = format!("{}/tests/fixtures/gguf/tiny.gguf", env!("CARGO_MANIFEST_DIR"));
    fs::copy(file, place("gguf").join("tiny.gguf")).unwrap();
    let args =
        super::super::ConvertArgs { source: place("gguf"), dest: place("f32"), dtype: super::super::WeightDtype::F32 };
    super::super::convert::run(&args, &mut Vec::new()).unwrap();
    let (shown, ended) = diff(&[place("gguf").to_str().unwrap(), place("f32").to_str().unwrap(), "--check"]);
    assert!(ended.unwrap(), "{shown}");
    assert!(shown.contains("the weights come as safetensors, and came as GGUF"), "{shown}");
    assert!(shown.contains("hold the same numbers") && shown.contains("the same: task, tokenizer"), "{shown}");
    assert!(!shown.contains("notable  tensors "), "{shown}");
}

#[test]
fn folders_that_cannot_be_compared_say_why() {
    let (_, ended) = diff(&["./missing", &bundled("v1")]);
    assert!(ended.unwrap_err().to_string().contains("is missing"));
    let (_, ended) = diff(&[&bundled("v1")]);
    assert!(ended.unwrap_err().to_string().contains("expected two"));
    let (_root, broken) = copied(&bundled("v1"), "model.safetensors", |mut bytes| {
        bytes.truncate(100);
        bytes
    });
    let (_, ended) = diff(&[&bundled("v1"), &broken]);
    assert!(ended.unwrap_err().to_string().contains("model.safetensors"));
}
