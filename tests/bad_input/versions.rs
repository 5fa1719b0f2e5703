//! Version folders that are broken, lie, changed, or are gone.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::common::inputs::digit;
use crate::common::tensors::with_tensors;
use crate::common::{DIGITS, Server, Site, copy_folder, fixture, root};

fn with_json(path: PathBuf, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

fn append(path: PathBuf, text: &str) {
    let mut all = fs::read_to_string(&path).unwrap();
    all.push_str(text);
    fs::write(path, all).unwrap();
}

/// What is done to a copy of a good version, and what its refusal must say.
type Damage = (&'static str, fn(&Path), &'static [&'static str]);

const WEIGHTS: &str = "model.safetensors";

/// Of the digits.
const DAMAGES: &[Damage] = &[
    (
        "weights that are cut off",
        |dir| {
            let bytes = fs::read(dir.join(WEIGHTS)).unwrap();
            fs::write(dir.join(WEIGHTS), &bytes[..bytes.len() - 1000]).unwrap();
        },
        &[WEIGHTS],
    ),
    ("no weights in the file", |dir| fs::write(dir.join(WEIGHTS), b"").unwrap(), &[WEIGHTS]),
    (
        "a header that claims to be longer than the file",
        |dir| {
            let mut bytes = fs::read(dir.join(WEIGHTS)).unwrap();
            bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
            fs::write(dir.join(WEIGHTS), bytes).unwrap();
        },
        &[WEIGHTS],
    ),
    (
        "tensors that lie on each other",
        |dir| {
            with_tensors(dir, |tensors| {
                let name = tensors.matrix();
                let other =
                    tensors.header.as_object().unwrap().keys().find(|key| **key != name && *key != "__metadata__");
                let place = tensors.header[other.unwrap()]["data_offsets"].clone();
                tensors.header[&name]["data_offsets"] = place;
            });
        },
        &[WEIGHTS],
    ),
    (
        "a missing tensor",
        |dir| {
            with_json(dir.join("config.json"), |config| {
                let layers = config["num_hidden_layers"].as_u64().unwrap();
                config["num_hidden_layers"] = json!(layers + 1);
            });
        },
        &["encoder.layer.4", "missing"],
    ),
    (
        "tensors that nobody asked for",
        |dir| {
            with_json(dir.join("config.json"), |config| {
                let layers = config["num_hidden_layers"].as_u64().unwrap();
                config["num_hidden_layers"] = json!(layers - 1);
            });
        },
        &["encoder.layer.3"],
    ),
    (
        "tensors of another shape",
        |dir| with_json(dir.join("config.json"), |config| config["intermediate_size"] = json!(100)),
        &["100"],
    ),
    (
        "weights that are not numbers",
        |dir| with_tensors(dir, |tensors| tensors.data[..4].copy_from_slice(&f32::NAN.to_le_bytes())),
        &["finite"],
    ),
    (
        "an architecture that nobody knows",
        |dir| with_json(dir.join("config.json"), |config| config["model_type"] = json!("perceiver")),
        &["perceiver"],
    ),
    ("no configuration", |dir| fs::remove_file(dir.join("config.json")).unwrap(), &["config.json", "missing"]),
    (
        "a configuration that is no JSON",
        |dir| fs::write(dir.join("config.json"), "{\"hidden_size\": ").unwrap(),
        &["config.json", "not valid JSON"],
    ),
    (
        "no preprocessor",
        |dir| fs::remove_file(dir.join("preprocessor_config.json")).unwrap(),
        &["preprocessor_config.json"],
    ),
    (
        "a golden file with a broken line",
        |dir| append(dir.join("golden.jsonl"), "{\"id\": \"half a ca"),
        &["golden.jsonl:6"],
    ),
    (
        "a golden case of another task",
        |dir| {
            append(
                dir.join("golden.jsonl"),
                "{\"id\": \"x\", \"input\": \"text\", \"expect\": {\"embedding\": [1.0], \"min_cosine\": 0.9}}\n",
            );
        },
        &["golden.jsonl", "'x'"],
    ),
    (
        "a link to nowhere",
        |dir| std::os::unix::fs::symlink("nowhere", dir.join("extra.json")).unwrap(),
        &["extra.json"],
    ),
];

/// Of a text model.
const TEXT_DAMAGES: &[Damage] = &[
    ("no tokenizer", |dir| fs::remove_file(dir.join("tokenizer.json")).unwrap(), &["tokenizer.json"]),
    (
        "a foreign tokenizer, of a larger vocabulary",
        |dir| {
            fs::copy(fixture("xlmr-embed").join("tokenizer.json"), dir.join("tokenizer.json")).unwrap();
        },
        &["tokenizer.json"],
    ),
    (
        "a tokenizer that is none",
        |dir| fs::write(dir.join("tokenizer.json"), "{\"model\": {\"type\": \"WordPiece\"}}").unwrap(),
        &["tokenizer.json"],
    ),
    (
        "a pooling that nobody knows",
        |dir| {
            with_json(dir.join("1_Pooling/config.json"), |config| {
                config.as_object_mut().unwrap().retain(|key, _| !key.starts_with("pooling_mode"));
                config["pooling_mode_weightedmean_tokens"] = json!(true);
            });
        },
        &["1_Pooling/config.json"],
    ),
];

/// Copies a version, damages it, and has it refused; whatever served before goes on.
async fn refuse(server: &Server, site: &Site, model: &str, from: &Path, damages: &[Damage]) {
    let before = server.reserved().await;
    let live = server.live(model).await;
    for (at, (what, damage, parts)) in damages.iter().enumerate() {
        let fresh = site.path().join("fresh");
        copy_folder(from, &fresh);
        damage(&fresh);
        let version = format!("bad-{at}");
        fs::rename(&fresh, site.models().join(model).join(&version)).unwrap();
        let refused = server.promote(&format!("{model}@{version}"), json!({})).await;
        assert_eq!((refused.status, refused.kind()), (422, "refused"), "{what}: {}", refused.body);
        for part in *parts {
            assert!(refused.message().contains(part), "{what}: '{part}' is missing: {}", refused.message());
        }
        let known_to = refused.message();
        assert!(!known_to.contains(site.path().to_str().unwrap()), "{what}: a path of this machine: {known_to}");
        assert_eq!(server.live(model).await, live, "{what}");
        let now = server.reserved().await;
        assert_eq!(now, before, "{what}: bytes reserved");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_version_that_is_broken_is_refused_by_its_file_and_reason() {
    let site = Site::digits();
    let server = site.start().await;
    refuse(&server, &site, "digits", &root().join("models/digits/v2"), DAMAGES).await;
    assert_eq!(server.image("digits", &digit(7)).await.expect(200).label(), "7");
    assert_eq!(server.promote("v2", json!({})).await.expect(200).phase(), "observing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_version_that_is_broken_is_refused_by_its_file_and_reason() {
    let site = Site::new();
    site.model("texts", "task = 'embed'\nlive = 'mean'\n");
    site.version("texts", "mean", &fixture("bert-embed-mean"));
    let server = site.start().await;
    refuse(&server, &site, "texts", &fixture("bert-embed-mean"), TEXT_DAMAGES).await;
    assert_eq!(server.texts("texts", &["harbour"]).await.expect(200).version(), "mean");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_folder_that_changed_after_it_was_seen_is_refused_until_it_is_as_it_was() {
    let site = Site::digits();
    let server = site.start().await;
    server.post("/models/v2/stage", json!({})).await.expect(200);
    server.delete("/models/v2").await.expect(200);
    let weights = site.models().join("digits/v2").join(WEIGHTS);
    let sound = fs::read(&weights).unwrap();
    let mut changed = sound.clone();
    let last = changed.len() - 1;
    changed[last] ^= 1;
    fs::write(&weights, &changed).unwrap();
    let refused = server.promote("v2", json!({})).await.expect(422);
    for part in ["digits@v2", "changed", WEIGHTS] {
        assert!(refused.message().contains(part), "'{part}' is missing: {}", refused.message());
    }
    assert_eq!(server.live("digits").await, "v1");
    fs::write(&weights, &sound).unwrap();
    server.promote("v2", json!({})).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_version_that_is_gone_at_the_start_is_not_replaced_by_another() {
    let site = Site::digits();
    site.add_digits("numbers");
    drop(site.start().await);
    fs::rename(site.models().join("digits/v1"), site.path().join("kept")).unwrap();
    let server = site.start().await;
    let refused = server.image("digits", &digit(1)).await.expect(503);
    assert_eq!(refused.kind(), "not_serving");
    assert!(refused.message().contains("v1"), "{}", refused.message());
    assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    assert_eq!(server.image("numbers", &digit(1)).await.expect(200).label(), "1");
    let ready = server.get("/ready").await.expect(503);
    assert_eq!(ready.body["not_serving"][0]["model"], "digits");
    let model = server.model("digits").await;
    assert_eq!((&model["live"], &model["versions"]), (&Value::Null, &json!(["v2", "v3"])));

    // An operator may choose another one.
    server.promote("digits@v2", json!({})).await.expect(200);
    assert_eq!(server.image("digits", &digit(1)).await.expect(200).version(), "v2");
    server.get("/ready").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_version_that_changed_while_the_server_was_down_does_not_serve() {
    let site = Site::digits();
    site.add_digits("numbers");
    drop(site.start().await);
    let weights = site.models().join("digits/v1").join(WEIGHTS);
    let sound = fs::read(&weights).unwrap();
    let mut changed = sound.clone();
    let last = changed.len() - 1;
    changed[last] ^= 1;
    fs::write(&weights, &changed).unwrap();
    let server = site.start().await;
    let refused = server.image("digits", &digit(1)).await.expect(503);
    assert!(refused.message().contains("changed"), "{}", refused.message());
    server.image("numbers", &digit(1)).await.expect(200);
    drop(server);
    // A copy that is put back is the same version, whatever its times are.
    fs::write(&weights, &sound).unwrap();
    let server = site.start().await;
    assert_eq!(server.image("digits", &digit(1)).await.expect(200).version(), "v1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_vanished_before_it_was_promoted_is_unknown() {
    let site = Site::digits();
    let server = site.start().await;
    fs::remove_dir_all(site.models().join("digits/v2")).unwrap();
    let refused = server.promote("v2", json!({})).await.expect(404);
    assert_eq!(refused.kind(), "not_found");
    assert_eq!(server.live("digits").await, "v1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_golden_file_refuses_what_is_new_and_not_what_serves() {
    let site = Site::digits();
    drop(site.start().await);
    append(site.models().join("digits/golden.jsonl"), "{\"id\": \"half\n");
    let server = site.start().await;
    assert_eq!(server.image("digits", &digit(2)).await.expect(200).version(), "v1");
    let refused = server.promote("v2", json!({})).await.expect(422);
    assert!(refused.message().contains("golden.jsonl:41"), "{}", refused.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_model_toml_refuses_promotes_by_file_and_key_and_leaves_the_rest_alone() {
    let site = Site::digits();
    site.add_digits("numbers");
    let server = site.start().await;
    site.model("digits", &DIGITS.replace("latency_rounds = 2", "latency_rounds = 'two'"));
    let refused = server.promote("digits@v2", json!({})).await.expect(422);
    for part in ["digits/model.toml", "gate.latency_rounds"] {
        assert!(refused.message().contains(part), "'{part}' is missing: {}", refused.message());
    }
    server.image("digits", &digit(2)).await.expect(200);
    server.promote("numbers@v2", json!({})).await.expect(200);
    drop(server);
    let server = site.start().await;
    assert_eq!(server.image("numbers", &digit(2)).await.expect(200).version(), "v2");
    server.says("digits/model.toml").await;
}
