//! Every fixture's model against what Hugging Face's own implementation answered, and how models fail.
//!
//! Fixtures are version folders with `expected.json`; `tests/fixtures/make.py` writes and explains them. Token ids
//! and resized pixels are taken from there, so a failure here is the model's, not the tokenizer's or the decoder's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use candle_core::DType;
use common::models::{Fixture, Version, all_fixtures, assert_same, fixtures, floats, json_file, prepare_tokens, run};
use cutover::error::{Error, Kind};
use cutover::model::{Input, Model, Pixels, Tokens, family};
use cutover::ops::{Device, Keeping};
use cutover::value::Task;
use cutover::weights::{Footprint, Manifest, Progress, load};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

#[test]
fn every_fixture_gives_the_reference_outputs() {
    for name in all_fixtures() {
        let Fixture { version, inputs, expected } = Fixture::open(&name);
        let mut model = version.load();
        for (i, (input, want)) in inputs.iter().zip(&expected).enumerate() {
            let got = run(&mut model, std::slice::from_ref(input));
            assert_same(&got[0], want, 1e-4, &format!("{name}, case {i}"));
        }
    }
}

#[test]
fn a_row_of_a_batch_is_the_row_it_would_be_alone() {
    for name in all_fixtures() {
        let Fixture { version, inputs, .. } = Fixture::open(&name);
        let mut model = version.load();
        let mut order: Vec<usize> = (0..inputs.len()).chain([0, inputs.len() - 1]).collect();
        order.rotate_left(2);
        let batch: Vec<Input> = order.iter().map(|&i| inputs[i].clone()).collect();
        let rows = run(&mut model, &batch);
        assert_eq!(rows.len(), batch.len());
        for (row, &i) in rows.iter().zip(&order) {
            let alone = run(&mut model, &inputs[i..=i]);
            assert_same(row, &alone[0], 5e-6, &format!("{name}, case {i}"));
        }
    }
}

#[test]
fn the_footprint_is_exactly_the_tensors_that_the_model_takes() {
    for name in all_fixtures() {
        let Fixture { version, .. } = Fixture::open(&name);
        for keeping in [Keeping::Cpu, Keeping::Cuda(DType::F16)] {
            let Footprint { wanted, .. } = version.footprint_for(keeping).unwrap();
            let mut read = HashSet::new();
            for (want, tensor) in wanted.iter().flat_map(|want| want.names().map(move |tensor| (want, tensor))) {
                assert_eq!(version.index.get(tensor).unwrap().shape, want.shape, "{name}: {tensor}");
                assert!(read.insert(tensor), "{name}: {tensor}");
            }
            for info in version.index.iter().filter(|info| !read.contains(info.name.as_str())) {
                let unused = info.name.contains("pooler.") && version.spec.task == Task::Embed;
                assert!(unused, "{name} leaves {} unread", info.name);
            }
        }
        let Footprint { mut wanted, .. } = version.footprint().unwrap();
        // one too few is an error, not a guess
        wanted.pop();
        let manifest = Manifest::compute(&version.spec.dir, &version.index).unwrap();
        let (device, progress) = (Device::Cpu, Progress::new());
        let weights = load(&version.index, &manifest, &wanted, HashMap::new(), &device, &progress).unwrap();
        let built = (family(&version.spec).unwrap().load)(&version.spec, weights, &device);
        assert!(matches!(built, Err(Error::Internal { .. })), "{name}");
    }
}

/// A copy of a fixture whose config and tensor names may be changed.
fn changed(name: &str, config: impl Fn(&mut Value), rename: impl Fn(&str) -> Option<String>) -> tempfile::TempDir {
    let (from, to) = (fixtures().join(name), tempfile::tempdir().unwrap());
    let mut settings = json_file(&from.join("config.json"));
    config(&mut settings);
    fs::write(to.path().join("config.json"), settings.to_string()).unwrap();
    for file in ["modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "preprocessor_config.json"] {
        if from.join(file).is_file() {
            fs::create_dir_all(to.path().join(file).parent().unwrap()).unwrap();
            fs::copy(from.join(file), to.path().join(file)).unwrap();
        }
    }
    let bytes = fs::read(from.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let renamed: Vec<(String, TensorView<'_>)> =
        tensors.tensors().into_iter().filter_map(|(name, view)| Some((rename(&name)?, view))).collect();
    safetensors::serialize_to_file(renamed, None, &to.path().join("model.safetensors")).unwrap();
    to
}

fn same(name: &str) -> Option<String> {
    Some(name.to_owned())
}

/// What a changed fixture's footprint says against it.
#[track_caller]
fn refusal(name: &str, config: impl Fn(&mut Value), rename: impl Fn(&str) -> Option<String>) -> String {
    let dir = changed(name, config, rename);
    let task = json_file(&fixtures().join(name).join("expected.json"))["task"].as_str().unwrap().to_owned();
    let error = Version::open(dir.path(), &task).footprint().expect_err("it should have been refused");
    assert_eq!(error.kind(), Kind::Refused, "{error}");
    error.to_string()
}

#[test]
fn a_checkpoint_may_have_or_lack_its_prefix_and_use_the_old_names_of_norms() {
    let add = |prefix: &'static str| move |name: &str| Some(format!("{prefix}{name}"));
    let strip = |prefix: &'static str| move |name: &str| Some(name.strip_prefix(prefix).unwrap_or(name).to_owned());
    let old = |name: &str| Some(name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta"));
    type Rename = Box<dyn Fn(&str) -> Option<String>>;
    let forms: [(&str, Rename); 8] = [
        ("bert-embed-mean", Box::new(add("bert."))),
        ("bert-classify", Box::new(strip("bert."))),
        ("bert-embed-cls", Box::new(old)),
        ("bert-rerank", Box::new(old)),
        ("xlmr-embed", Box::new(add("roberta."))),
        ("roberta-classify", Box::new(strip("roberta."))),
        ("distilbert-classify", Box::new(strip("distilbert."))),
        ("vit-classify", Box::new(strip("vit."))),
    ];
    for (name, rename) in forms {
        let Fixture { version, inputs, expected } = Fixture::open(name);
        let dir = changed(name, |_| (), rename);
        let mut model = Version::open(dir.path(), version.spec.task.name()).load();
        for (row, want) in run(&mut model, &inputs).iter().zip(&expected) {
            assert_same(row, want, 1e-4, name);
        }
    }
}

#[test]
fn configurations_that_would_change_the_numbers_are_refused_by_name() {
    let cases: [(&str, &str, Value, &str); 17] = [
        ("bert-classify", "hidden_act", json!("gelu_10"), "'gelu_10' is not supported"),
        ("distilbert-classify", "activation", json!("mish"), "'mish' is not supported"),
        ("vit-classify", "hidden_act", json!("laplace"), "'laplace' is not supported"),
        ("bert-classify", "position_embedding_type", json!("relative_key"), "'relative_key' is not supported"),
        ("bert-classify", "is_decoder", json!(true), "only encoders"),
        ("bert-classify", "num_attention_heads", json!(5), "5 heads do not divide"),
        ("bert-classify", "num_attention_heads", json!(0), "found 0"),
        ("bert-classify", "num_hidden_layers", json!(5000), "at most 1024"),
        ("bert-classify", "num_hidden_layers", json!(1_000_000_000_000u64), "found 1000000000000"),
        ("bert-classify", "hidden_size", json!(1u64 << 40), "found 1099511627776"),
        ("bert-classify", "layer_norm_eps", json!(-1.0), "found -1"),
        ("roberta-classify", "pad_token_id", json!(65), "leaves no position"),
        ("vit-classify", "patch_size", json!(64), "do not hold a patch of 64x64"),
        ("vit-classify", "image_size", json!(100_000), "found 100000"),
        ("vit-classify", "image_size", json!([32, 32, 3]), "expected [height, width], found 3"),
        ("vit-classify", "image_size", json!([32, "a"]), "found [32,\"a\"]"),
        ("vit-classify", "num_channels", json!(0), "found 0"),
    ];
    for (name, key, value, reason) in cases {
        let message = refusal(name, |config| config[key] = value.clone(), same);
        assert!(message.contains(reason), "{name}, {key}: {message}");
    }
}

#[test]
fn checkpoints_that_do_not_fit_their_configuration_are_refused_before_a_byte_is_read() {
    let message = refusal("bert-classify", |_| (), |name| (!name.ends_with("pooler.dense.bias")).then(|| name.into()));
    assert!(message.contains("'bert.pooler.dense.bias' is missing"), "{message}");
    let message = refusal("bert-classify", |config| config["vocab_size"] = json!(241), same);
    assert!(message.contains("[240, 32], not [241, 32]"), "{message}");
    let message = refusal("bert-classify", |config| config["num_hidden_layers"] = json!(3), same);
    assert!(message.contains("layer.2"), "{message}");
    let message = refusal("bert-classify", |config| config["num_hidden_layers"] = json!(1), same);
    assert!(message.contains("'bert.encoder.layer.1.attention.output.LayerNorm.bias' is not part"), "{message}");
    let message = refusal("vit-classify", |config| config["image_size"] = json!(40), same);
    assert!(message.contains("[1, 17, 32], not [1, 26, 32]"), "{message}");
    let labels = |config: &mut Value| config["id2label"] = json!({"0": "yes", "1": "no"});
    let message = refusal("bert-rerank", labels, same);
    assert!(message.contains("'rerank' takes 1, found 2"), "{message}");
}

#[test]
fn a_gpu_has_query_key_and_value_as_one_of_the_same_bytes() {
    for (name, layers) in
        [("bert-embed-mean", 2), ("roberta-classify", 2), ("distilbert-embed", 2), ("vit-classify", 2)]
    {
        let Fixture { version, .. } = Fixture::open(name);
        let footprint = version.footprint_for(Keeping::Cuda(DType::F32)).unwrap();
        let together: Vec<_> = footprint.wanted.iter().filter(|want| !want.below.is_empty()).collect();
        assert_eq!(together.len(), 2 * layers, "{name}");
        for want in together {
            let parts: Vec<&str> = want.names().collect();
            assert!(parts.len() == 3 && parts[0].contains(".q"), "{name}: {parts:?}");
            assert_eq!(want.whole()[0], 3 * want.shape[0]);
        }
        let read = |tensor: &str| version.index.get(tensor).unwrap().shape.iter().product::<usize>() as u64;
        let elements: u64 = footprint.wanted.iter().flat_map(|want| want.names().map(read)).sum();
        assert_eq!(footprint.weight_bytes(), 4 * elements, "{name}");
        assert!(version.footprint().unwrap().wanted.iter().all(|want| want.below.is_empty()), "{name}");
    }
}

#[test]
fn a_query_key_or_value_that_does_not_fit_is_refused_by_its_own_name_on_a_gpu_too() {
    for (name, broken) in [
        ("bert-classify", "bert.encoder.layer.1.attention.self.key.weight"),
        ("roberta-rerank", "roberta.encoder.layer.0.attention.self.value.bias"),
        ("distilbert-classify", "distilbert.transformer.layer.1.attention.q_lin.weight"),
        ("vit-classify", "vit.encoder.layer.0.attention.attention.key.bias"),
    ] {
        let dir = changed(name, |_| (), |tensor| (tensor != broken).then(|| tensor.into()));
        let task = json_file(&fixtures().join(name).join("expected.json"))["task"].as_str().unwrap().to_owned();
        let version = Version::open(dir.path(), &task);
        for keeping in [Keeping::Cpu, Keeping::Cuda(DType::BF16)] {
            let message = version.footprint_for(keeping).unwrap_err().to_string();
            assert!(message.contains(&format!("the tensors do not fit: '{broken}' is missing")), "{message}");
        }
    }
}

#[test]
fn a_family_refuses_a_task_that_it_does_not_answer() {
    for (name, task) in [("bert-classify", "image-classify"), ("vit-classify", "classify")] {
        let message = Version::open(&fixtures().join(name), task).footprint().unwrap_err().to_string();
        assert!(message.contains(&format!("does not answer task '{task}'")), "{message}");
    }
}

#[test]
fn inputs_beyond_the_tables_are_the_clients_fault_and_leave_the_model_whole() {
    let Fixture { version, inputs, expected } = Fixture::open("roberta-classify");
    let mut model = version.load();
    let text = |ids: Vec<u32>, type_ids: Vec<u32>| Input::Tokens(Tokens { ids, type_ids });
    let image = Input::Pixels(Pixels { data: vec![0.0; 3], channels: 3, height: 1, width: 1 });
    for (bad, reason) in [
        (text(vec![], vec![]), "an input of 0 tokens"),
        (text(vec![5; 65], vec![0; 65]), "takes 1 to 64"),
        (text(vec![5, 320], vec![0; 2]), "token id 320"),
        (text(vec![5, 6], vec![0, 1]), "token type 1"),
        (text(vec![5, 6], vec![0]), "2 tokens with 1 types"),
        (image, "texts or images, not both"),
    ] {
        let error = model.forward_all(vec![inputs[0].clone(), bad]).unwrap_err();
        assert_eq!(error.kind(), Kind::BadRequest, "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    let longest = text(vec![5; 64], vec![0; 64]);
    assert_eq!(run(&mut model, &[longest])[0].len(), 3);
    assert_same(&run(&mut model, &inputs[..1])[0], &expected[0], 1e-4, "afterwards");
    assert!(run(&mut model, &[]).is_empty());
}

#[test]
fn an_image_of_another_size_is_refused() {
    let Fixture { version, .. } = Fixture::open("vit-classify");
    let mut model = version.load();
    let pixels = |channels, height, width, len| Input::Pixels(Pixels { data: vec![0.0; len], channels, height, width });
    for bad in [pixels(3, 32, 16, 3 * 512), pixels(1, 32, 32, 1024), pixels(3, 32, 32, 5)] {
        assert_eq!(model.forward_all(vec![bad]).unwrap_err().kind(), Kind::BadRequest);
    }
    assert_eq!(family(&version.spec).unwrap().tokens_per_image.unwrap()(&version.spec).unwrap(), 17);
}

#[test]
fn padding_inside_a_text_keeps_its_own_position_as_in_the_reference() {
    // transformers gives <pad> (id 1) position 1 wherever it stands and does not count it
    let Fixture { version, .. } = Fixture::open("roberta-classify");
    let mut model = version.load();
    let row = |model: &mut Model, ids: Vec<u32>| {
        let type_ids = vec![0; ids.len()];
        run(model, &[Input::Tokens(Tokens { ids, type_ids })]).remove(0)
    };
    // attention is a set of (token, position) pairs beside the first token: where padding stands cannot matter
    let (a, b) = (row(&mut model, vec![0, 40, 1, 50, 2]), row(&mut model, vec![0, 40, 50, 1, 2]));
    assert_same(&a, &b, 1e-5, "padding moved");
    let c = row(&mut model, vec![0, 50, 1, 40, 2]);
    assert!(a.iter().zip(&c).any(|(x, y)| (x - y).abs() > 1e-3), "positions must matter");
}

#[test]
fn the_bundled_digits_read_as_many_held_out_images_as_they_did_when_they_were_trained() {
    let mut held_out = Vec::new();
    let file = fs::File::open(fixtures().join("digits-heldout.bin.gz")).unwrap();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(file), &mut held_out).unwrap();
    // 784 pixels, white on black, and the digit
    let records: Vec<(&[u8], u8)> = held_out.chunks_exact(785).map(|r| (&r[..784], r[784])).collect();
    assert_eq!(records.len(), 2000);
    // counted by transformers: models/digits/README.md
    for (version, right) in [("v1", 1865), ("v2", 1969), ("v3", 317)] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/digits").join(version);
        let mut model = Version::open(&dir, "image-classify").load();
        let inputs = records.iter().map(|(pixels, _)| {
            let data = pixels.iter().map(|p| (f32::from(*p) / 255.0 - 0.5) / 0.5).collect();
            Input::Pixels(Pixels { data, channels: 1, height: 28, width: 28 })
        });
        let rows = run(&mut model, &inputs.collect::<Vec<_>>());
        let best = |row: &[f32]| (0..10u8).max_by(|a, b| row[*a as usize].total_cmp(&row[*b as usize])).unwrap();
        let got = rows.iter().zip(&records).filter(|(row, (_, digit))| best(row) == *digit).count();
        assert!(usize::abs_diff(got, right) <= 1, "{version}: {got} of 2000, expected {right}");
    }
}

#[test]
fn minilm_gives_what_sentence_transformers_gives() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/minilm/f32");
    if !common::minilm::is_here() {
        return;
    }
    let mut model = Version::open(&dir, "embed").load();
    let reference = json_file(&fixtures().join("minilm-reference.json"));
    let cases = reference["cases"].as_array().unwrap();
    let inputs: Vec<Input> = cases.iter().map(prepare_tokens).collect();
    let batch = run(&mut model, &inputs);
    for (i, (row, case)) in batch.iter().zip(cases).enumerate() {
        assert_same(row, &floats(&case["output"]), 1e-4, &format!("minilm, case {i}"));
        assert_same(&run(&mut model, &inputs[i..=i])[0], row, 1e-5, &format!("minilm alone, case {i}"));
    }
}

/// A server that has seen a version refuses it once a file of it is another.
#[test]
fn fetch_touches_no_version_that_is_there_and_says_how_to_have_newer_golden_cases() {
    if !common::minilm::is_here() {
        return;
    }
    let (models, here) = (tempfile::tempdir().unwrap(), Path::new(env!("CARGO_MANIFEST_DIR")).join("models"));
    let version = |name: &str| models.path().join("minilm").join(name);
    for name in ["f32", "f16"] {
        fs::create_dir_all(version(name)).unwrap();
        for entry in here.join("minilm").join(name).read_dir().unwrap().map(Result::unwrap) {
            symlink(entry.path(), version(name).join(entry.file_name())).unwrap();
        }
    }
    let golden = version("f16").join("golden.jsonl");
    fs::remove_file(&golden).unwrap();
    fs::write(&golden, "older\n").unwrap();
    let fetch = || {
        let script =
            Command::new("python3").arg(here.join("fetch")).arg("minilm").arg("--models").arg(models.path()).output();
        let Output { status, stdout, stderr } = script.unwrap();
        (status.success(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
    };
    let (done, said, _) = fetch();
    assert!(done && said.contains("golden-f16.jsonl has other golden cases"), "{said}");
    assert_eq!(fs::read_to_string(&golden).unwrap(), "older\n");

    let advice = said.lines().find(|line| line.starts_with("  cp ")).unwrap();
    assert!(Command::new("sh").args(["-c", advice]).status().unwrap().success(), "{advice}");
    let newer = fs::read(here.join("minilm/golden-f16.jsonl")).unwrap();
    assert_eq!(fs::read(version("f16-2").join("golden.jsonl")).unwrap(), newer);
    let (done, said, _) = fetch();
    assert!(done && !said.contains("golden cases"), "{said}");

    fs::remove_file(version("f16").join("config.json")).unwrap();
    let (done, _, why) = fetch();
    assert!(!done && why.contains("lacks config.json: it stays as it is"), "{why}");
    assert_eq!(fs::read_to_string(&golden).unwrap(), "older\n");
}
