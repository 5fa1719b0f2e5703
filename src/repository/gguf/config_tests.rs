use std::fs;
use std::path::PathBuf;

use super::*;
use crate::gguf::Format;
use crate::gguf::writer::{Given, Writer};
use crate::repository::{ModelConfig, Spec};
use crate::value::Task;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf").join(name)
}

/// Without a vocabulary; the table has four rows.
fn whole(architecture: &str) -> Writer {
    let key = |name: &str| format!("{architecture}.{name}");
    Writer::new()
        .with("general.architecture", architecture)
        .with(&key("context_length"), 128u32)
        .with(&key("embedding_length"), 8u32)
        .with(&key("block_count"), 2u32)
        .with(&key("feed_forward_length"), 16u32)
        .with(&key("attention.head_count"), 2u32)
        .with(&key("attention.head_count_kv"), 1u32)
        .with(&key("attention.layer_norm_rms_epsilon"), 1e-5f32)
        .with(&key("rope.freq_base"), 100_000f32)
        .with("tokenizer.ggml.bos_token_id", 1u32)
        .with("tokenizer.ggml.eos_token_id", 2u32)
        .f32s("token_embd.weight", &[8, 4], &[0.0; 32])
}

fn config(writer: &Writer) -> Result<Value, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    fs::write(&path, writer.bytes()).unwrap();
    gguf_config(&path, &crate::gguf::open(&path).unwrap()).map(Value::Object)
}

fn refused(writer: Writer) -> String {
    config(&writer).unwrap_err()
}

#[test]
fn a_llama_is_described_in_hugging_faces_keys() {
    assert_eq!(
        config(&whole("llama")).unwrap(),
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": 4,
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 4,
            "hidden_act": "silu",
            "max_position_embeddings": 128,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100_000.0,
            "rope_scaling": null,
            "tie_word_embeddings": true,
            "attention_bias": false,
            "mlp_bias": false,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": null,
        })
    );
}

#[test]
fn what_a_file_leaves_out_has_llama_cpps_defaults() {
    let bare = whole("llama").without("llama.rope.freq_base").without("llama.attention.head_count_kv");
    let config = config(&bare.f32s("output.weight", &[8, 4], &[0.0; 32])).unwrap();
    assert_eq!(config["rope_theta"], 10_000.0);
    assert_eq!(config["num_key_value_heads"], 2);
    assert_eq!(config["tie_word_embeddings"], false);
}

#[test]
fn variations_are_told_by_their_keys() {
    let wide = whole("qwen3").with("qwen3.attention.key_length", 6u32).with("qwen3.attention.value_length", 6u32);
    let config_of = |writer: &Writer| config(writer).unwrap();
    let found = config_of(&wide);
    assert_eq!((&found["model_type"], &found["head_dim"]), (&json!("qwen3"), &json!(6)));
    assert_eq!(found.get("attention_bias"), None);
    let biased = whole("llama").f32s("blk.0.attn_q.bias", &[8], &[0.0; 8]);
    assert_eq!(config_of(&biased)["attention_bias"], true);
    let window = config_of(&whole("qwen2").with("qwen2.attention.sliding_window", 64u32));
    assert_eq!((&window["sliding_window"], &window["use_sliding_window"]), (&json!(64), &json!(true)));
    assert_eq!(config_of(&whole("llama").with("llama.attention.sliding_window", 0u32)).get("sliding_window"), None);
    // What Hugging Face calls a Llama with a window.
    let windowed = whole("llama").with("llama.attention.sliding_window", 64u32);
    let mistral = config_of(&windowed);
    assert_eq!((&mistral["model_type"], &mistral["sliding_window"]), (&json!("mistral"), &json!(64)));
    assert_eq!(mistral["architectures"], json!(["MistralForCausalLM"]));
    assert_eq!(mistral.get("attention_bias"), None);
    assert!(refused(windowed.f32s("blk.0.attn_q.bias", &[8], &[0.0; 8])).contains("and biases together are not read"));
}

#[test]
fn every_token_that_ends_an_answer_is_told() {
    let words = ["a", "<|im_end|>", "b", "<|eot_id|>"];
    let with = |kinds: [i32; 4]| {
        whole("llama")
            .with("tokenizer.ggml.tokens", Given::strings(&words))
            .with("tokenizer.ggml.token_type", Given::i32s(&kinds))
    };
    assert_eq!(config(&with([1, 3, 3, 3])).unwrap()["eos_token_id"], json!([2, 1, 3]));
    // What only looks like one is none.
    assert_eq!(config(&with([1, 1, 3, 1])).unwrap()["eos_token_id"], 2);
    let named = with([1, 1, 3, 1]).with("tokenizer.ggml.eot_token_id", 3u32);
    assert_eq!(config(&named).unwrap()["eos_token_id"], json!([2, 3]));
}

#[test]
fn positions_beyond_the_training_are_reached_as_the_file_says() {
    let scaled = |kind: &str| whole("llama").with("llama.rope.scaling.type", kind);
    let factor = |kind: &str| scaled(kind).with("llama.rope.scaling.factor", 4f32);
    assert_eq!(config(&scaled("none")).unwrap()["rope_scaling"], Value::Null);
    assert_eq!(config(&factor("linear")).unwrap()["rope_scaling"], json!({ "rope_type": "linear", "factor": 4.0 }));
    let yarn = factor("yarn").with("llama.rope.scaling.original_context_length", 32u32);
    let expected = json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32 });
    assert_eq!(config(&yarn).unwrap()["rope_scaling"], expected);
    assert!(refused(factor("longrope")).contains("'longrope' is not read"));
    assert!(refused(scaled("yarn")).contains("rope.scaling.factor is missing"));
    assert!(refused(scaled("linear").with("llama.rope.scaling.factor", 0f32)).contains("not above 0"));
}

#[test]
fn a_factor_without_a_type_is_a_linear_scaling_as_llama_cpp_has_it() {
    let linear = json!({ "rope_type": "linear", "factor": 4.0 });
    let [new, old] = ["llama.rope.scaling.factor", "llama.rope.scale_linear"];
    let scaling = |writer: Writer| config(&writer).unwrap()["rope_scaling"].clone();
    for key in [new, old] {
        assert_eq!(scaling(whole("llama").with(key, 4f32)), linear, "{key}");
        for nothing in [0f32, 1.0] {
            assert_eq!(scaling(whole("llama").with(key, nothing)), Value::Null, "{key} {nothing}");
        }
        assert!(refused(whole("llama").with(key, -2f32)).contains(&format!("{key} is missing, or not above 0")));
        let kind = |kind: &str| whole("llama").with(key, 4f32).with("llama.rope.scaling.type", kind);
        assert_eq!(scaling(kind("linear")), linear, "{key}");
        assert_eq!(scaling(kind("none")), Value::Null, "{key}");
        let both = whole("llama").with(key, 4f32).f32s("rope_freqs.weight", &[2], &[1.0, 2.0]);
        assert!(refused(both).starts_with(&format!("{key} is 4, and there is a tensor")));
    }
    // The newer key is meant where both are there.
    assert_eq!(scaling(whole("llama").with(new, 4f32).with(old, 8f32)), linear);
    assert_eq!(scaling(whole("llama").with(new, 1f32).with(old, 8f32)), Value::Null);
}

#[test]
fn what_yarn_makes_of_attention_is_llama_cpps_product_and_nothing_beside_yarn() {
    const KEY: &str = "llama.rope.scaling.attn_factor";
    let of = |kind: &str, attention: f32| {
        let scaled = whole("llama").with("llama.rope.scaling.type", kind).with("llama.rope.scaling.factor", 4f32);
        scaled.with(KEY, attention)
    };
    let yarn = config(&of("yarn", 0.5)).unwrap()["rope_scaling"].clone();
    // `rope_yarn` has cos and sin times attn_factor * (1 + 0.1 ln(1 / freq_scale)).
    let found = yarn["attention_factor"].as_f64().unwrap();
    assert!((found - 0.5 * (1.0 + 0.1 * 4f64.ln())).abs() < 1e-12, "{yarn}");
    for kind in ["yarn", "linear", "none"] {
        assert_eq!(config(&of(kind, 1.0)).unwrap()["rope_scaling"].get("attention_factor"), None, "{kind}");
    }
    for (kind, attention) in [("linear", 0.5), ("none", 0.5), ("yarn", 0.0), ("yarn", -1.0)] {
        let why = refused(of(kind, attention));
        assert!(why.starts_with(&format!("{KEY} is {attention}, and llama.rope.scaling.type is '{kind}'")), "{why}");
    }
    assert!(refused(whole("llama").with(KEY, 0.5f32)).contains("llama.rope.scaling.type is not there"));
}

/// As llama.cpp's converter computes them.
fn factors(head_dim: usize, theta: f64, (factor, low, high, length): (f64, f64, f64, f64)) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|i| {
            let wavelength = 2.0 * PI * theta.powf(2.0 * i as f64 / head_dim as f64);
            if wavelength < length / high {
                1.0
            } else if wavelength > length / low {
                factor as f32
            } else {
                let smooth = (length / wavelength - low) / (high - low);
                (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
            }
        })
        .collect()
}

#[test]
fn the_scaling_of_llama_3_is_found_again_in_its_factors() {
    for (head_dim, factor, high, length) in [(128, 8.0, 4.0, 8192.0), (64, 32.0, 4.0, 8192.0), (128, 4.0, 8.0, 4096.0)]
    {
        let theta = 500_000.0;
        let table = factors(head_dim, theta, (factor, 1.0, high, length));
        let file = whole("llama")
            .instead("llama.rope.freq_base", theta as f32)
            .with("llama.attention.key_length", head_dim as u32)
            .f32s("rope_freqs.weight", &[head_dim as u64 / 2], &table);
        assert_eq!(
            config(&file).unwrap()["rope_scaling"],
            json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": high,
                "original_max_position_embeddings": length as u64,
            }),
            "{head_dim} {factor}"
        );
    }
}

#[test]
fn factors_that_are_not_llama_3s_are_refused() {
    let with = |table: &[f32]| {
        let file = whole("llama").instead("llama.rope.freq_base", 500_000f32);
        refused(file.with("llama.attention.key_length", 128u32).f32s("rope_freqs.weight", &[table.len() as u64], table))
    };
    let right = factors(128, 500_000.0, (8.0, 1.0, 4.0, 8192.0));
    let mut bent = right.clone();
    bent[32] *= 1.01;
    for table in [bent, right[1..].to_vec(), vec![1.0; 64], vec![f32::NAN; 64], vec![0.0; 64], vec![-1.0; 64]] {
        assert!(with(&table).contains("is not what Llama 3's scaling makes"), "{table:?}");
    }
    let halves = whole("llama").tensor("rope_freqs.weight", &[2], Format::F16, &[0; 4]);
    assert!(refused(halves).contains("tensor 'rope_freqs.weight': expected f32"));
    let both = whole("llama").with("llama.rope.scaling.type", "linear").f32s("rope_freqs.weight", &[2], &[1.0, 2.0]);
    assert!(refused(both).contains("too"));
}

#[test]
fn a_vocabulary_that_does_not_match_the_weights_is_refused() {
    let words = |count: usize| (0..count).map(|word| format!("w{word}")).collect::<Vec<_>>();
    let with = |count: usize| whole("llama").with("tokenizer.ggml.tokens", Given::strings(&words(count)));
    assert!(config(&with(4)).is_ok());
    let expected = "tokenizer.ggml.tokens has 5 tokens, but tensor 'token_embd.weight' has rows for 4";
    assert_eq!(refused(with(5)), expected);
    assert!(refused(whole("llama").with("llama.vocab_size", 3u32)).contains("llama.vocab_size is 3"));
    let beyond = whole("llama").instead("tokenizer.ggml.eos_token_id", 4u32);
    assert_eq!(refused(beyond), "tokenizer.ggml.eos_token_id is 4, the vocabulary has 4 tokens");
}

#[test]
fn what_cannot_be_said_or_does_not_add_up_is_refused() {
    for (writer, why) in [
        (whole("gemma"), "the architecture 'gemma' is not read"),
        (whole("llama").without("general.architecture"), "general.architecture is missing"),
        (whole("llama").with("llama.expert_count", 8u32), "a mixture of experts is not read"),
        (whole("llama").without("llama.block_count"), "llama.block_count is missing"),
        (whole("llama").instead("llama.block_count", 0u32), "llama.block_count is 0"),
        (whole("llama").instead("llama.block_count", "two"), "expected a whole number, found 'two'"),
        (whole("llama").instead("llama.embedding_length", 9u32), "but the rows of tensor 'token_embd.weight' have 8"),
        (whole("llama").instead("llama.attention.head_count", 3u32), "8 values are no 3 heads"),
        (whole("llama").instead("llama.attention.head_count", Given::i32s(&[2, 2])), "found an array of 2 numbers"),
        (whole("llama").with("llama.rope.dimension_count", 2u32), "llama.rope.dimension_count is 2, but heads are 4"),
        (whole("llama").instead("llama.rope.freq_base", f32::NAN), "expected a finite number"),
        (whole("llama").without("llama.attention.layer_norm_rms_epsilon"), "layer_norm_rms_epsilon is missing"),
    ] {
        let error = refused(writer);
        assert!(error.contains(why), "{why}: {error}");
    }
    let no_table = Writer::new().with("general.architecture", "llama");
    assert!(refused(no_table).contains("tensor 'token_embd.weight' is missing"));
}

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    files.iter().for_each(|(name, bytes)| fs::write(dir.path().join(name), bytes).unwrap());
    dir
}

fn spec(dir: &tempfile::TempDir) -> crate::error::Result<Spec> {
    Spec::read(dir.path(), "m", "v1", &ModelConfig::new(Task::Generate))
}

#[test]
fn a_folder_of_one_gguf_file_is_a_version() {
    let tiny = fs::read(fixture("tiny.gguf")).unwrap();
    let dir = folder(&[("tiny.gguf", &tiny), ("README.md", b"")]);
    let found = spec(&dir).unwrap();
    assert_eq!((found.family.as_str(), found.task), ("llama", Task::Generate));
    assert_eq!(found.weight_files, [PathBuf::from("tiny.gguf")]);
    assert_eq!(found.gguf(), Some(dir.path().join("tiny.gguf")));
    assert_eq!(found.usize("hidden_size").unwrap(), 32);
    assert_eq!(found.config_error("hidden_size", "no").to_string(), "m/v1/tiny.gguf: hidden_size: no");
    // Its own tokenizer, whatever else lies there.
    for (name, there) in [("tokenizer.json", true), ("tokenizer_config.json", true), ("README.md", false)] {
        assert_eq!(found.read_file(name).unwrap().is_some(), there, "{name}");
    }
    let index = crate::weights::Index::open(dir.path(), &found.all_weight_files()).unwrap();
    assert_eq!(index.len(), 11);
}

#[test]
fn safetensors_go_before_a_gguf_file_and_two_of_those_are_refused() {
    let tiny = fs::read(fixture("tiny.gguf")).unwrap();
    let both = folder(&[("a.gguf", &tiny), ("model.safetensors", b""), ("config.json", br#"{"model_type": "llama"}"#)]);
    assert_eq!(spec(&both).unwrap().gguf(), None);
    let two = folder(&[("a.gguf", &tiny), ("b.gguf", &tiny)]);
    assert_eq!(spec(&two).unwrap_err().to_string(), "m/v1/b.gguf: is one of 2 GGUF files, a version is one");
    let broken = folder(&[("a.gguf", &tiny[..1000])]);
    let error = spec(&broken).unwrap_err().to_string();
    assert!(error.starts_with("m/v1/a.gguf: truncated"), "{error}");
    let none = folder(&[("a.gguf", &whole("llama").bytes())]);
    let error = spec(&none).unwrap().read_file("tokenizer.json").unwrap_err().to_string();
    assert_eq!(error, "m/v1/a.gguf: tokenizer.ggml.model is missing");
}
