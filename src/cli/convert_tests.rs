use std::collections::BTreeSet;

use tempfile::TempDir;

use super::*;
use crate::repository::{Contract, ModelConfig, Spec};
use crate::value::Task;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf").join(name)
}

fn converted(source: &Path, dest: &Path, dtype: WeightDtype) -> Result<String> {
    let mut out = Vec::new();
    run(&ConvertArgs { source: source.to_owned(), dest: dest.to_owned(), dtype }, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

fn names(dir: &Path) -> BTreeSet<String> {
    dir.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_file_becomes_a_version_in_hugging_faces_layout_that_says_the_same() {
    let dir = TempDir::new().unwrap();
    let gguf = dir.path().join("m/q8_0");
    fs::create_dir_all(&gguf).unwrap();
    fs::copy(fixture("tiny.gguf"), gguf.join("tiny.gguf")).unwrap();
    let spec = |version: &str| {
        Spec::read(&dir.path().join("m").join(version), "m", version, &ModelConfig::new(Task::Generate)).unwrap()
    };
    for (version, dtype, bytes) in
        [("f32", WeightDtype::F32, 4), ("f16", WeightDtype::F16, 2), ("bf16", WeightDtype::Bf16, 2)]
    {
        let dest = dir.path().join("m").join(version);
        let told = converted(&gguf, &dest, dtype).unwrap();
        assert!(told.contains("11 tensors"), "{told}");
        let files = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
        assert_eq!(names(&dest), files.map(str::to_owned).into());
        let (one, other) = (spec("q8_0"), spec(version));
        for (key, value) in one.config.as_object().unwrap() {
            assert_eq!(other.config.get(key), Some(value), "{key}");
        }
        // A client of the one would find nothing changed in the other.
        assert_eq!(Contract::of(&one, Some(128), None).unwrap(), Contract::of(&other, Some(128), None).unwrap());
        let [theirs, ours] = [&one, &other].map(|spec| Index::open(&spec.dir, &spec.all_weight_files()).unwrap());
        let shapes = |index: &Index| index.iter().map(|t| (t.name.clone(), t.shape.clone())).collect::<Vec<_>>();
        assert_eq!(shapes(&theirs), shapes(&ours));
        let kind = formats(dtype).1;
        for tensor in theirs.iter() {
            let [from, to] = [&theirs, &ours].map(|index| {
                let mut bytes = Vec::new();
                let mut keep = |piece: &[u8]| {
                    bytes.extend_from_slice(piece);
                    Ok(())
                };
                weights::copy(index, &tensor.name, kind, &mut keep).unwrap();
                bytes
            });
            assert_eq!(from.len(), tensor.shape.iter().product::<usize>() * bytes);
            assert_eq!(from, to, "{}", tensor.name);
        }
        let json: Value = serde_json::from_slice(&fs::read(dest.join("tokenizer_config.json")).unwrap()).unwrap();
        assert_eq!(json["chat_template"], "{{ messages[0]['content'] }}");
    }
}

#[test]
fn what_is_there_is_never_written_over() {
    let dir = TempDir::new().unwrap();
    let dest = dir.path().join("there");
    fs::create_dir(&dest).unwrap();
    let error = converted(&fixture("tiny.gguf"), &dest, WeightDtype::F16).unwrap_err();
    assert!(error.to_string().contains("is there already"), "{error}");
    assert!(names(&dest).is_empty());
}

#[test]
fn what_cannot_be_converted_leaves_nothing_behind() {
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("cut.gguf");
    let whole = fs::read(fixture("tiny.gguf")).unwrap();
    fs::write(&source, &whole[..whole.len() - 100]).unwrap();
    let error = converted(&source, &dir.path().join("f16"), WeightDtype::F16).unwrap_err();
    assert!(error.to_string().contains("cut.gguf: truncated"), "{error}");
    // Of its tensors only: it has no vocabulary.
    let error = converted(&fixture("formats.gguf"), &dir.path().join("f16"), WeightDtype::F16).unwrap_err();
    assert!(error.to_string().contains("formats.gguf: tensor 'token_embd.weight' is missing"), "{error}");
    assert_eq!(names(dir.path()), ["cut.gguf".to_owned()].into());
    let two = dir.path().join("two");
    fs::create_dir(&two).unwrap();
    ["a.gguf", "b.gguf"].iter().for_each(|name| fs::write(two.join(name), &whole).unwrap());
    let error = converted(&two, &dir.path().join("f16"), WeightDtype::F16).unwrap_err();
    assert!(error.to_string().contains("holds 2 GGUF files, expected one"), "{error}");
}
