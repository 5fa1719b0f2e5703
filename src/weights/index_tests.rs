use super::super::fixtures::{Folder, f32s, serialised, with_header};
use super::*;

fn shards() -> Folder {
    let folder = Folder::new();
    folder.write("a.safetensors", &serialised(&[f32s("one", &[2], &[1.0, 2.0])]));
    folder.write("b.safetensors", &serialised(&[f32s("two", &[1], &[3.0])]));
    folder
}

fn open_shards(folder: &Folder, map: &str) -> String {
    folder.write(SHARD_INDEX, map.as_bytes());
    folder.open_files(&["a.safetensors", "b.safetensors"]).unwrap_err().to_string()
}

#[test]
fn tensors_of_all_shards_are_found_by_name() {
    let folder = shards();
    folder.write(
        SHARD_INDEX,
        br#"{"metadata":{"total_size":12},"weight_map":{"one":"a.safetensors","two":"b.safetensors"}}"#,
    );
    let index = folder.open_files(&["a.safetensors", "b.safetensors"]).unwrap();
    assert_eq!(index.iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(index.get("two").unwrap().file, 1);
    assert_eq!(index.total_bytes(), 12);
    assert!(index.get("three").is_none());
}

#[test]
fn a_missing_file_is_named_as_a_person_knows_it() {
    let error = Folder::new().open_files(&["model.safetensors"]).unwrap_err();
    assert_eq!(error.to_string(), "model/v1/model.safetensors: the file is missing");
}

#[test]
fn a_name_in_two_shards_is_refused() {
    let folder = shards();
    folder.write("b.safetensors", &serialised(&[f32s("one", &[1], &[3.0])]));
    let error = folder.open_files(&["a.safetensors", "b.safetensors"]).unwrap_err().to_string();
    assert_eq!(error, "model/v1/b.safetensors: tensor 'one' is in 'a.safetensors' too");
}

#[test]
fn a_shard_index_that_disagrees_with_the_shards_is_refused() {
    let cases = [
        (r#"{"weight_map":{"one":"c.safetensors"}}"#, "it names the shard 'c.safetensors', which is not loaded"),
        (
            r#"{"weight_map":{"one":"b.safetensors"}}"#,
            "it puts tensor 'one' in 'b.safetensors', which is in 'a.safetensors'",
        ),
        (r#"{"weight_map":{"six":"b.safetensors"}}"#, "tensor 'six' is not in 'b.safetensors'"),
        (r#"{"weight_map":["#, "bad JSON"),
        (r#"{}"#, "bad JSON: missing field `weight_map`"),
    ];
    for (map, expected) in cases {
        let error = open_shards(&shards(), map);
        assert!(error.contains(expected) && error.starts_with("model/v1/model.safetensors.index.json: "), "{error}");
    }
}

#[test]
fn a_shard_index_beside_a_single_file_is_not_asked() {
    let folder = Folder::with(&[f32s("one", &[1], &[1.0])]);
    folder.write(SHARD_INDEX, br#"{"weight_map":{"one":"gone.safetensors"}}"#);
    assert_eq!(folder.open().len(), 1);
}

#[test]
fn dense_modules_may_use_the_same_names() {
    let folder = Folder::with(&[f32s("weight", &[1], &[1.0])]);
    let dense = serialised(&[f32s("linear.weight", &[1], &[2.0])]);
    folder.write("2_Dense/model.safetensors", &dense);
    folder.write("3_Dense/model.safetensors", &dense);
    let files = ["model.safetensors", "2_Dense/model.safetensors", "3_Dense/model.safetensors"];
    let index = folder.open_files(&files).unwrap();
    let names: Vec<_> = index.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["2_Dense/linear.weight", "3_Dense/linear.weight", "weight"]);
}

#[test]
fn a_transformer_in_a_folder_of_its_own_keeps_its_names() {
    let folder = Folder::new();
    folder.write("0_Transformer/model.safetensors", &serialised(&[f32s("weight", &[1], &[1.0])]));
    assert!(folder.open_files(&["0_Transformer/model.safetensors"]).unwrap().get("weight").is_some());
}

#[test]
fn only_plain_paths_below_the_folder_are_opened() {
    let folder = Folder::with(&[f32s("one", &[1], &[1.0])]);
    for path in ["../v1/model.safetensors", "/etc/hostname", "./model.safetensors", "", "a/../model.safetensors"] {
        let error = folder.open_files(&[path]).unwrap_err().to_string();
        assert!(error.contains("not a plain path"), "{path}: {error}");
    }
    assert!(folder.open_files(&["model.safetensors"; 2]).unwrap_err().to_string().contains("named twice"));
    assert!(folder.open_files(&[]).unwrap_err().to_string().contains("no weight files"));
}

#[test]
fn what_is_not_a_regular_file_is_refused() {
    let folder = Folder::new();
    fs::create_dir(folder.path().join("model.safetensors")).unwrap();
    let error = folder.open_files(&["model.safetensors"]).unwrap_err().to_string();
    assert_eq!(error, "model/v1/model.safetensors: not a regular file");
}

#[test]
fn a_weight_file_may_be_a_link_into_a_cache() {
    let folder = Folder::new();
    folder.write("blobs/0af3", &serialised(&[f32s("one", &[1], &[1.0])]));
    std::os::unix::fs::symlink("blobs/0af3", folder.path().join("model.safetensors")).unwrap();
    assert_eq!(folder.open().len(), 1);
}

#[test]
fn a_bad_header_is_told_with_its_file() {
    let folder = Folder::new();
    folder.write("model.safetensors", &with_header("[]", 0));
    let error = folder.open_files(&["model.safetensors"]).unwrap_err();
    assert_eq!(error.kind(), crate::error::Kind::Refused);
    assert!(error.to_string().starts_with("model/v1/model.safetensors: not safetensors"), "{error}");
    // What comes in place of weights most often.
    for (text, told) in [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a pointer of Git LFS"),
        ("<!DOCTYPE html><title>404</title>", "as a web page does"),
    ] {
        folder.write("model.safetensors", text.as_bytes());
        let error = folder.open_files(&["model.safetensors"]).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
}
