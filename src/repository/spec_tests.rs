use std::fs;

use super::*;
use serde_json::json;
use tempfile::TempDir;

/// A version folder that is made for one test.
struct Version(TempDir);

impl Version {
    fn new(config: Value) -> Self {
        Version(tempfile::tempdir().unwrap()).json(CONFIG, config).text(SINGLE, "")
    }

    /// A bert of width 8 with the modules given as (type, path).
    fn sentence(modules: &[(&str, &str)]) -> Self {
        let modules: Vec<Value> = modules
            .iter()
            .enumerate()
            .map(|(idx, (class, path))| json!({"idx": idx, "name": idx.to_string(), "path": path, "type": class}))
            .collect();
        Version::new(json!({"model_type": "bert", "hidden_size": 8})).json("modules.json", Value::Array(modules))
    }

    fn text(self, name: &str, text: &str) -> Self {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn json(self, name: &str, value: Value) -> Self {
        self.text(name, &value.to_string())
    }

    fn without(self, name: &str) -> Self {
        fs::remove_file(self.0.path().join(name)).unwrap();
        self
    }

    fn read(&self, task: Task) -> Result<Spec> {
        Spec::read(self.0.path(), "m", "v", &ModelConfig::new(task))
    }

    /// The error of a folder that must not be read: file and reason.
    #[track_caller]
    fn refused(&self, task: Task) -> (String, String) {
        match self.read(task) {
            Err(Error::Unloadable { file, reason }) => (file, reason),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn assert_refused(&self, task: Task, file: &str, expected: &str) {
        let (found, reason) = self.refused(task);
        assert_eq!(found, format!("m/v/{file}"), "{reason}");
        assert!(reason.contains(expected), "{reason}");
    }
}

const TRANSFORMER: (&str, &str) = ("sentence_transformers.models.Transformer", "");
const POOLING: (&str, &str) = ("sentence_transformers.models.Pooling", "1_Pooling");
const DENSE: (&str, &str) = ("sentence_transformers.models.Dense", "2_Dense");
const NORMALIZE: (&str, &str) = ("sentence_transformers.models.Normalize", "3_Normalize");

#[test]
fn a_plain_encoder_is_pooled_by_the_mean_and_normalised() {
    let spec = Version::new(json!({"model_type": "bert", "hidden_size": 8})).read(Task::Embed).unwrap();
    let embedding = spec.embedding.clone().unwrap();
    assert_eq!((embedding.pooling, embedding.normalize), (Pooling::Mean, true));
    assert_eq!((spec.family.as_str(), spec.dimension()), ("bert", Some(8)));
    assert_eq!(spec.weight_files, [PathBuf::from(SINGLE)]);
    assert_eq!(spec.reference(), "m@v");
    assert!(spec.labels.is_empty());
}

#[test]
fn the_modules_of_sentence_transformers_are_read() {
    let version = Version::sentence(&[TRANSFORMER, POOLING, DENSE, NORMALIZE])
        .json("1_Pooling/config.json", json!({"word_embedding_dimension": 8, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}))
        .json("2_Dense/config.json", json!({"in_features": 8, "out_features": 4, "bias": false, "activation_function": "torch.nn.modules.linear.Identity"}))
        .json("sentence_bert_config.json", json!({"max_seq_length": 77, "do_lower_case": true}));
    let spec = version.read(Task::Embed).unwrap();
    let embedding = spec.embedding.clone().unwrap();
    assert_eq!((embedding.pooling, embedding.normalize), (Pooling::Cls, true));
    assert_eq!((embedding.max_seq_length, embedding.do_lower_case), (Some(77), true));
    let dense = &embedding.dense[0];
    assert_eq!((dense.in_features, dense.out_features, dense.bias), (8, 4, false));
    assert_eq!(dense.weights_file(), PathBuf::from("2_Dense/model.safetensors"));
    assert_eq!(spec.dimension(), Some(4));
}

#[test]
fn either_form_of_the_pooling_mode_is_read() {
    let cases = [
        (json!({}), Pooling::Mean),
        (json!({"pooling_mode": "cls"}), Pooling::Cls),
        (json!({"pooling_mode": ["max"]}), Pooling::Max),
        (json!({"pooling_mode_max_tokens": true, "pooling_mode_mean_tokens": false}), Pooling::Max),
        (json!({"pooling_mode": "mean", "embedding_dimension": 8}), Pooling::Mean),
    ];
    for (config, expected) in cases {
        let version = Version::sentence(&[TRANSFORMER, POOLING]).json("1_Pooling/config.json", config.clone());
        let embedding = version.read(Task::Embed).unwrap().embedding.unwrap();
        assert_eq!((embedding.pooling, embedding.normalize), (expected, false), "{config}");
    }
}

#[test]
fn a_pooling_that_would_give_other_numbers_is_refused() {
    let cases = [
        (json!({"pooling_mode_cls_token": true}), "found mean and cls"),
        (json!({"pooling_mode": ["mean", "max"]}), "found mean and max"),
        (json!({"pooling_mode": "lasttoken"}), "\"lasttoken\" is not supported"),
        (
            json!({"pooling_mode_mean_tokens": false, "pooling_mode_weightedmean_tokens": true}),
            "\"weightedmean\" is not supported",
        ),
        (
            json!({"pooling_mode_mean_tokens": false, "pooling_mode_of_next_year": true}),
            "\"of_next_year\" is not supported",
        ),
        (json!({"pooling_mode_mean_tokens": false}), "no mode is on"),
        (json!({"pooling_mode_mean_tokens": "yes"}), "expected true or false"),
        (json!({"pooling_mode": 3}), "expected a name"),
        (json!({"word_embedding_dimension": 9}), "hidden size 8, found 9"),
        (json!([]), "expected an object"),
    ];
    for (config, expected) in cases {
        let version = Version::sentence(&[TRANSFORMER, POOLING]).json("1_Pooling/config.json", config);
        version.assert_refused(Task::Embed, "1_Pooling/config.json", expected);
    }
}

#[test]
fn modules_in_an_order_or_of_a_type_that_is_not_known_are_refused() {
    let custom = ("custom_st.Transformer", "");
    let lstm = ("sentence_transformers.models.LSTM", "2_LSTM");
    let cases: [(&[(&str, &str)], &str); 9] = [
        (&[custom, POOLING], "\"custom_st.Transformer\" is not supported"),
        (&[TRANSFORMER, lstm, POOLING], "\"sentence_transformers.models.LSTM\" is not supported"),
        (&[], "Transformer as the first"),
        (&[POOLING, TRANSFORMER], "Transformer as the first"),
        (&[TRANSFORMER, NORMALIZE], "Pooling as the second"),
        (&[(TRANSFORMER.0, "0_Transformer"), POOLING], "\"0_Transformer\""),
        (&[TRANSFORMER, POOLING, NORMALIZE, DENSE], "nothing after Normalize"),
        (&[TRANSFORMER, POOLING, POOLING], "one Pooling"),
        (&[TRANSFORMER, (POOLING.0, "")], "expected a folder"),
    ];
    for (modules, expected) in cases {
        let version = Version::sentence(modules).json("1_Pooling/config.json", json!({}));
        version.assert_refused(Task::Embed, "modules.json", expected);
    }
}

#[test]
fn a_module_path_that_leaves_the_folder_is_refused() {
    for path in ["../other", "/etc", "1_Pooling/../..", "a\0b"] {
        let version = Version::sentence(&[TRANSFORMER, (POOLING.0, path)]);
        version.assert_refused(Task::Embed, "modules.json", "not a path inside the folder");
    }
}

#[test]
fn a_missing_module_file_is_named() {
    Version::sentence(&[TRANSFORMER, POOLING]).assert_refused(Task::Embed, "1_Pooling/config.json", "is missing");
}

#[test]
fn dense_layers_must_fit_what_comes_before() {
    let wrong = Version::sentence(&[TRANSFORMER, POOLING, DENSE])
        .json("1_Pooling/config.json", json!({}))
        .json("2_Dense/config.json", json!({"in_features": 7, "out_features": 4}));
    wrong.assert_refused(Task::Embed, "2_Dense/config.json", "in_features: expected 8");
    wrong
        .json(
            "2_Dense/config.json",
            json!({"in_features": 8, "out_features": 4, "module_input_name": "token_embeddings"}),
        )
        .assert_refused(Task::Embed, "2_Dense/config.json", "module_input_name");
}

#[test]
fn a_default_prompt_is_refused_because_it_would_change_every_embedding() {
    const FILE: &str = "config_sentence_transformers.json";
    let mut version = Version::sentence(&[TRANSFORMER, POOLING]).json("1_Pooling/config.json", json!({}));
    let prompts = json!({"query": "q: ", "document": ""});
    for harmless in [json!(null), json!("document")] {
        version = version.json(FILE, json!({"prompts": prompts, "default_prompt_name": harmless}));
        assert!(version.read(Task::Embed).is_ok(), "{harmless}");
    }
    for name in ["query", "not there"] {
        version = version.json(FILE, json!({"prompts": prompts, "default_prompt_name": name}));
        version.assert_refused(Task::Embed, FILE, name);
    }
}

#[test]
fn labels_come_in_the_order_of_their_ids() {
    let names: Map<String, Value> = (0..12).rev().map(|id| (id.to_string(), json!(format!("l{id}")))).collect();
    let spec = Version::new(json!({"model_type": "vit", "id2label": names})).read(Task::ImageClassify).unwrap();
    assert_eq!(spec.labels, (0..12).map(|id| format!("l{id}")).collect::<Vec<_>>());
    let three = Version::new(json!({"model_type": "bert", "num_labels": 3})).read(Task::Classify).unwrap();
    assert_eq!(three.labels, ["LABEL_0", "LABEL_1", "LABEL_2"]);
    let absent = Version::new(json!({"model_type": "bert"})).read(Task::Classify).unwrap();
    assert_eq!(absent.labels.len(), 2);
}

#[test]
fn labels_with_gaps_or_of_another_number_are_refused() {
    let cases = [
        (json!({"id2label": {"0": "a", "2": "b"}}), "found \"2\""),
        (json!({"id2label": {"0": "a", "00": "b"}}), "found \"00\""),
        (json!({"id2label": {"-1": "a"}}), "found \"-1\""),
        (json!({"id2label": {"0": null}}), "expected a string"),
        (json!({"id2label": {}}), "at least one"),
        (json!({"id2label": ["a"]}), "expected an object"),
        (json!({"id2label": {"0": "a"}, "num_labels": 2}), "as many as id2label"),
        (json!({"num_labels": 0}), "expected 1 to"),
        (json!({"num_labels": 18446744073709551615u64}), "expected 1 to"),
    ];
    for (mut config, expected) in cases {
        config["model_type"] = json!("bert");
        Version::new(config).assert_refused(Task::Classify, CONFIG, expected);
    }
}

#[test]
fn shards_are_named_by_their_index_each_once() {
    let spec = Version::new(json!({"model_type": "bert"}))
        .without(SINGLE)
        .json(SHARDS, json!({"weight_map": {"a": "2.safetensors", "b": "1.safetensors", "c": "2.safetensors"}}))
        .read(Task::Embed)
        .unwrap();
    assert_eq!(spec.weight_files, [PathBuf::from("1.safetensors"), PathBuf::from("2.safetensors")]);
}

#[test]
fn a_shard_index_that_cannot_be_used_is_refused() {
    let cases = [
        (json!({}), "weight_map: expected an object"),
        (json!({"weight_map": {}}), "at least one tensor"),
        (json!({"weight_map": {"t": 3}}), "t: expected a file name"),
        (json!({"weight_map": {"t": "../../etc/passwd"}}), "not a path inside"),
        (json!({"weight_map": {"t": "/etc/passwd"}}), "not a path inside"),
    ];
    for (index, expected) in cases {
        let version = Version::new(json!({"model_type": "bert"})).without(SINGLE).json(SHARDS, index);
        version.assert_refused(Task::Embed, SHARDS, expected);
    }
}

#[test]
fn a_folder_without_readable_weights_says_what_it_found_instead() {
    let version = Version::new(json!({"model_type": "bert"})).without(SINGLE);
    version.assert_refused(Task::Embed, SINGLE, "is missing");
    version.text("pytorch_model.bin", "").assert_refused(Task::Embed, SINGLE, "\"pytorch_model.bin\" is not read");
}

#[test]
fn a_broken_config_is_refused_with_its_file_and_key() {
    let version = Version::new(json!({}));
    version.assert_refused(Task::Embed, CONFIG, "model_type: is missing");
    let version = version.text(CONFIG, "{\"model_type\": ");
    version.assert_refused(Task::Embed, CONFIG, "not valid JSON");
    let version = version.text(CONFIG, "[]");
    version.assert_refused(Task::Embed, CONFIG, "expected an object, found an array");
    let version = version.without(CONFIG);
    version.assert_refused(Task::Embed, CONFIG, "is missing");
    let version = version.text(CONFIG, &"[".repeat(10_000));
    version.assert_refused(Task::Embed, CONFIG, "not valid JSON");
    let gone = Spec::read(Path::new("/nowhere/at/all"), "m", "v", &ModelConfig::new(Task::Embed)).unwrap_err();
    assert_eq!(gone.to_string(), "m/v: is not a folder");
}

#[test]
fn the_family_of_model_toml_goes_before_model_type() {
    let version = Version::new(json!({"model_type": "bert"}));
    let config = ModelConfig { family: Some("mine".to_owned()), ..ModelConfig::new(Task::Embed) };
    assert_eq!(Spec::read(version.0.path(), "m", "v", &config).unwrap().family, "mine");
}

#[test]
fn keys_of_the_config_are_read_with_errors_that_name_them() {
    let spec = Version::new(
        json!({"model_type": "bert", "n": 3, "f": 1e-12, "s": "gelu", "b": true, "none": null, "neg": -1}),
    )
    .read(Task::Embed)
    .unwrap();
    assert_eq!((spec.usize("n").unwrap(), spec.usize_or("none", 9).unwrap()), (3, 9));
    assert_eq!((spec.f64("f").unwrap(), spec.f64_or("x", 0.5).unwrap()), (1e-12, 0.5));
    assert_eq!((spec.str("s").unwrap(), spec.str_or("x", "relu").unwrap()), ("gelu", "relu"));
    assert!(spec.bool_or("b", false).unwrap() && spec.value("none").is_none());
    assert_eq!(spec.usize("x").unwrap_err().to_string(), "m/v/config.json: x: is missing");
    assert_eq!(spec.usize("neg").unwrap_err().to_string(), "m/v/config.json: neg: expected a whole number, found -1");
    assert!(spec.usize_or("s", 1).is_err() && spec.bool_or("n", true).is_err() && spec.str("n").is_err());
}

/// As Qwen2.5 and Qwen3 are published with it; what is said of a whole that has been stretched already stays as it is.
#[test]
fn yarn_makes_the_context_as_long_as_its_factor_says() {
    let context = |positions: usize, scaling: Value| {
        let config = json!({"model_type": "qwen3", "max_position_embeddings": positions, "rope_scaling": scaling});
        Version::new(config).read(Task::Generate).unwrap().context().unwrap()
    };
    let yarn = |kind: &str| json!({kind: "yarn", "factor": 4.0, "original_max_position_embeddings": 32768});
    assert_eq!(context(40960, yarn("rope_type")), Some(131_072));
    assert_eq!(context(32768, yarn("type")), Some(131_072));
    assert_eq!(context(262_144, yarn("type")), Some(262_144));
    assert_eq!(context(8192, json!({"rope_type": "yarn", "factor": 4.0})), Some(8192));
    assert_eq!(context(8192, json!({"rope_type": "linear", "factor": 4.0})), Some(8192));
    assert_eq!(context(8192, Value::Null), Some(8192));
    let none = Version::new(json!({"model_type": "bert"})).read(Task::Embed).unwrap();
    assert_eq!(none.context().unwrap(), None);
}
