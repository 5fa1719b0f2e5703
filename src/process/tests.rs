//! Whole processors against the fixtures of `tests/fixtures`, and against version folders that are wrong.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;
use crate::model::Tokens;
use crate::repository::{EmbeddingSpec, F32Matmul, Pooling};

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn json_of(path: &Path) -> Option<Value> {
    fs::read(path).ok().map(|bytes| serde_json::from_slice(&bytes).unwrap())
}

/// The description of a fixture, as far as processors look at it.
pub(super) fn spec(name: &str) -> Spec {
    let dir = fixture(name);
    let read = |file: &str| json_of(&dir.join(file));
    let config = read("config.json").unwrap();
    let mut labels: Vec<(u32, String)> = match config.get("id2label") {
        None => Vec::new(),
        Some(map) => serde_json::from_value::<std::collections::BTreeMap<String, String>>(map.clone())
            .unwrap()
            .into_iter()
            .map(|(id, label)| (id.parse().unwrap(), label))
            .collect(),
    };
    labels.sort();
    let embedding = read("modules.json").map(|modules| {
        let sentence = read("sentence_bert_config.json").unwrap();
        EmbeddingSpec {
            pooling: Pooling::Mean,
            dense: Vec::new(),
            normalize: modules.to_string().contains("Normalize"),
            max_seq_length: sentence["max_seq_length"].as_u64().map(|n| n as usize),
            do_lower_case: sentence["do_lower_case"].as_bool().unwrap(),
        }
    });
    Spec {
        model: "model".into(),
        version: name.into(),
        task: serde_json::from_value(read("expected.json").unwrap()["task"].clone()).unwrap(),
        family: config["model_type"].as_str().unwrap().into(),
        preprocessor: read("preprocessor_config.json"),
        embedding,
        config,
        dir,
        weight_files: Vec::new(),
        labels: labels.into_iter().map(|(_, label)| label).collect(),
        f32_matmul: F32Matmul::F32,
        cache_tokens: None,
        sequences: None,
    }
}

pub(super) fn expected(name: &str) -> Vec<Value> {
    json_of(&fixture(name).join("expected.json")).unwrap()["cases"].as_array().unwrap().clone()
}

fn load(spec: &Spec) -> Result<Processor> {
    Processor::load(spec, &Limits::default())
}

fn tokens(processor: &Processor, input: impl TestInput) -> Tokens {
    match processor.prepare(&input.raw(), &PrepareOptions::default()).unwrap() {
        Input::Tokens(tokens) => tokens,
        Input::Pixels(_) => panic!("pixels from a text"),
    }
}

/// So that tests can write a text as a literal.
trait TestInput {
    fn raw(self) -> RawInput;
}

impl TestInput for &str {
    fn raw(self) -> RawInput {
        RawInput::Text(self.into())
    }
}

impl TestInput for RawInput {
    fn raw(self) -> RawInput {
        self
    }
}

/// A copy of a fixture's small files that a test may change.
struct Folder {
    dir: tempfile::TempDir,
    spec: Spec,
}

impl Folder {
    fn of(name: &str) -> Folder {
        let dir = tempfile::tempdir().unwrap();
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(fixture(name).join(file), dir.path().join(file)).unwrap();
        }
        let mut spec = spec(name);
        spec.dir = dir.path().into();
        Folder { dir, spec }
    }

    fn edit(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let path = self.dir.path().join(file);
        let mut json = json_of(&path).unwrap();
        change(&mut json);
        fs::write(path, json.to_string()).unwrap();
    }

    fn load(&self) -> Result<Processor> {
        load(&self.spec)
    }
}

#[test]
fn token_ids_and_types_are_hugging_faces() {
    let mut cases = 0;
    for folder in fs::read_dir(fixture("")).unwrap() {
        let path = folder.unwrap().path();
        if !path.join("tokenizer.json").exists() || !path.join("expected.json").exists() {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        let processor = load(&spec(name)).unwrap();
        for case in expected(name) {
            let input: RawInput = serde_json::from_value(case["input"].clone()).unwrap();
            let got = tokens(&processor, input);
            assert_eq!(json!(got.ids), case["tokens"], "{name}: {}", case["input"]);
            let types = case.get("types").cloned().unwrap_or_else(|| json!(vec![0; got.ids.len()]));
            assert_eq!(json!(got.type_ids), types, "{name}: {}", case["input"]);
            cases += 1;
        }
    }
    assert!(cases >= 150, "only {cases} cases were found");
}

#[test]
fn scores_are_the_references_for_its_logits() {
    for name in ["bert-classify", "bert-regression-multilabel", "bert-rerank", "roberta-rerank", "distilbert-classify"]
    {
        let spec = spec(name);
        let processor = load(&spec).unwrap();
        for case in expected(name) {
            let logits: Vec<f32> = serde_json::from_value(case["logits"].clone()).unwrap();
            let wanted: Vec<f32> = serde_json::from_value(case["output"].clone()).unwrap();
            let scores = match processor.finish(logits, &FinishOptions::default()).unwrap() {
                Output::Score { score } => vec![score],
                Output::Labels { labels } => {
                    assert!(labels.is_sorted_by(|a, b| a.score >= b.score), "{name}");
                    let of = |label| labels.iter().find(|l| &l.label == label).unwrap().score;
                    spec.labels.iter().map(of).collect()
                }
                other => panic!("{name} answers with {other:?}"),
            };
            let worst = scores.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(scores.len() == wanted.len() && worst < 1e-5, "{name}: {scores:?} {wanted:?}");
        }
    }
}

#[test]
fn what_tokenizer_json_says_of_padding_and_truncation_is_ignored() {
    // as in all-MiniLM-L6-v2: both to 128 there, while sentence_bert_config.json says 256
    let folder = Folder::of("bert-embed-mean");
    folder.edit("tokenizer.json", |json| {
        json["truncation"] = json!({"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0});
        json["padding"] = json!({"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"});
    });
    let processor = folder.load().unwrap();
    assert_eq!(processor.max_tokens(), Some(48));
    for case in expected("bert-embed-mean") {
        assert_eq!(json!(tokens(&processor, case["input"].as_str().unwrap()).ids), case["tokens"]);
    }
}

#[test]
fn the_longest_input_is_the_least_of_what_the_files_and_the_operator_allow() {
    type Change = fn(&mut Spec, &mut Limits, &mut Value);
    let changes: [(&str, Change, usize); 8] = [
        ("bert-classify", |_, _, _| {}, 64),
        ("bert-classify", |spec, _, _| spec.config["max_position_embeddings"] = json!(40), 40),
        ("bert-classify", |_, _, config| config["model_max_length"] = json!(30), 30),
        ("bert-classify", |_, _, config| config["model_max_length"] = json!(1e30), 64),
        ("bert-classify", |_, limits, _| limits.max_tokens = Some(20), 20),
        ("bert-classify", |_, limits, _| limits.max_tokens = Some(1000), 64),
        ("bert-embed-max", |_, _, _| {}, 33),
        // 66 positions, of which RoBERTa never uses the first two
        ("roberta-classify", |_, _, config| config["model_max_length"] = json!(512), 64),
    ];
    for (at, (name, change, wanted)) in changes.into_iter().enumerate() {
        let mut folder = Folder::of(name);
        let mut limits = Limits::default();
        let mut config = json_of(&folder.dir.path().join("tokenizer_config.json")).unwrap();
        change(&mut folder.spec, &mut limits, &mut config);
        folder.edit("tokenizer_config.json", |json| *json = config);
        let processor = Processor::load(&folder.spec, &limits).unwrap();
        assert_eq!(processor.max_tokens(), Some(wanted), "change {at}");
        assert_eq!(tokens(&processor, "word ".repeat(500).as_str()).len(), wanted, "change {at}");
    }
}

#[test]
fn limits_without_room_for_a_token_are_refused_at_load() {
    let limits = Limits { max_tokens: Some(3), ..Default::default() };
    assert!(Processor::load(&spec("bert-embed-mean"), &limits).is_ok());
    let error = Processor::load(&spec("bert-rerank"), &limits).unwrap_err().to_string();
    assert!(error.contains("at most 3 tokens leave no room beside 3 special tokens"), "{error}");
}

#[test]
fn a_long_input_is_refused_with_the_numbers_when_it_may_not_be_cut() {
    let processor = load(&spec("bert-rerank")).unwrap();
    let options = PrepareOptions { truncate: false };
    let long = RawInput::Pair("the ship ".repeat(50).into(), "a".into());
    let error = processor.prepare(&long, &options).unwrap_err();
    assert!(matches!(error, Error::ContextExceeded { .. }));
    let message = error.to_string();
    assert!(message.ends_with("tokens long, this version takes 64"), "{message}");
    let short = RawInput::Pair("the ship".into(), "a".into());
    let Input::Tokens(uncut) = processor.prepare(&short, &options).unwrap() else { panic!("pixels") };
    assert_eq!(uncut, tokens(&processor, short));
}

#[test]
fn a_very_long_pair_is_cut_in_the_time_that_tokenizing_takes() {
    // the tokenizers library would keep every pair of the cut-off pieces: millions of them
    let processor = load(&spec("bert-rerank")).unwrap();
    let text = "harbour ".repeat(30_000);
    assert_eq!(tokens(&processor, RawInput::Pair(text.as_str().into(), text)).len(), 64);
}

#[test]
fn the_end_of_a_text_stays_where_the_version_truncates_on_the_left() {
    let folder = Folder::of("bert-classify");
    folder.edit("tokenizer_config.json", |json| json["truncation_side"] = json!("left"));
    let right = load(&folder.spec).unwrap();
    let text = format!("{} the end of it", "pilot ".repeat(200));
    let (cut, end) = (tokens(&right, text.as_str()), tokens(&right, "the end of it"));
    assert_eq!(cut.len(), 64);
    assert!(cut.ids.ends_with(&end.ids[1..]));
    folder.edit("tokenizer_config.json", |json| json["truncation_side"] = json!("both"));
    assert!(folder.load().unwrap_err().to_string().contains("'truncation_side' is \"both\", expected right or left"));
}

#[test]
fn any_text_is_allowed_the_empty_one_too() {
    for name in ["bert-embed-mean", "xlmr-embed", "roberta-classify", "bert-classify"] {
        let processor = load(&spec(name)).unwrap();
        assert_eq!(tokens(&processor, "").len(), 2, "{name}");
        for text in
            ["\0", "a\0b", "\u{feff}\u{200d}", "👩‍👩‍👧‍👦", "\u{10ffff}", "عربي 中文 ไทย", "[CLS] </s> [SEP]", "\r\n\t"]
        {
            assert!(tokens(&processor, text).len() >= 2, "{name}: {text:?}");
        }
    }
}

#[test]
fn an_embedding_does_not_depend_on_white_space_around_the_text() {
    let processor = load(&spec("xlmr-embed")).unwrap();
    assert_eq!(tokens(&processor, "\u{1c} the pilot \n"), tokens(&processor, "the pilot"));
    let classifier = load(&spec("roberta-classify")).unwrap();
    assert_ne!(tokens(&classifier, " the pilot"), tokens(&classifier, "the pilot"), "pipelines do not trim");
}

#[test]
fn settings_of_tokenizer_config_overrule_the_tokenizer_as_in_transformers() {
    let folder = Folder::of("bert-classify");
    let lower = tokens(&folder.load().unwrap(), "the harbour");
    assert_eq!(tokens(&folder.load().unwrap(), "The HARBOUR"), lower);
    folder.edit("tokenizer_config.json", |json| json["do_lower_case"] = json!(false));
    assert_ne!(tokens(&folder.load().unwrap(), "The HARBOUR"), lower);
    let roberta = Folder::of("roberta-classify");
    let spaced = tokens(&roberta.load().unwrap(), " the pilot");
    roberta.edit("tokenizer_config.json", |json| json["add_prefix_space"] = json!(true));
    assert_eq!(tokens(&roberta.load().unwrap(), "the pilot"), spaced);
}

#[test]
fn sentence_transformers_lower_case_is_done_before_the_tokenizer() {
    let mut folder = Folder::of("bert-embed-mean");
    folder.edit("tokenizer_config.json", |json| json["do_lower_case"] = json!(false));
    let lower = tokens(&folder.load().unwrap(), "the harbour");
    assert_ne!(tokens(&folder.load().unwrap(), "The HARBOUR"), lower);
    folder.spec.embedding.as_mut().unwrap().do_lower_case = true;
    assert_eq!(tokens(&folder.load().unwrap(), "The HARBOUR"), lower);
}

#[test]
fn token_ids_are_taken_literally_within_the_vocabulary() {
    let processor = load(&spec("bert-embed-mean")).unwrap();
    let got = tokens(&processor, RawInput::Tokens(vec![2, 17, 239, 3]));
    assert_eq!(got, Tokens { ids: vec![2, 17, 239, 3], type_ids: vec![0; 4] });
    assert_eq!(tokens(&processor, RawInput::Tokens((0..100).collect())).ids, (0..48).collect::<Vec<u32>>());
    let refused = |ids: Vec<u32>, truncate| {
        processor.prepare(&RawInput::Tokens(ids), &PrepareOptions { truncate }).unwrap_err().to_string()
    };
    assert_eq!(refused(vec![1, 240], true), "token id 240 is not in the vocabulary of 240");
    assert_eq!(refused(vec![], true), "the input has no tokens");
    assert_eq!(refused(vec![1; 49], false), "the input is 49 tokens long, this version takes 48");
}

#[test]
fn the_wrong_kind_of_input_is_told_what_the_task_takes() {
    let text = || "a".raw();
    let both = || RawInput::Pair("a".into(), "b".into());
    let image = || RawInput::Image(vec![]);
    for (name, input, told) in [
        ("bert-embed-mean", both(), "this model's task is embed: it takes a text or token ids, not a pair of texts"),
        ("bert-embed-mean", image(), "not an image"),
        ("bert-rerank", text(), "this model's task is rerank: it takes a pair of texts, not a text"),
        ("bert-rerank", RawInput::Tokens(vec![1]), "not token ids"),
        ("bert-classify", image(), "not an image"),
        ("vit-classify", text(), "this model's task is image-classify: it takes an image, not a text"),
    ] {
        let error = load(&spec(name)).unwrap().prepare(&input, &PrepareOptions::default()).unwrap_err();
        assert!(matches!(error, Error::BadRequest { .. }));
        assert!(error.to_string().ends_with(told), "{error}");
    }
    assert_eq!(load(&spec("vit-classify")).unwrap().max_tokens(), None);
}

#[test]
fn a_missing_broken_or_foreign_tokenizer_is_refused() {
    let mut folder = Folder::of("bert-classify");
    folder.spec.config["vocab_size"] = json!(200);
    let error = folder.load().unwrap_err().to_string();
    assert!(error.contains("its largest token id is 239, but the model's vocab_size is 200"), "{error}");
    folder.spec.config["vocab_size"] = Value::Null;
    assert!(folder.load().unwrap_err().to_string().ends_with("config.json: 'vocab_size' is missing"));

    let folder = Folder::of("bert-rerank");
    folder.edit("tokenizer.json", |json| json["model"] = json!({"type": "Riddle"}));
    assert!(folder.load().unwrap_err().to_string().starts_with("model/bert-rerank/tokenizer.json: "));
    fs::write(folder.dir.path().join("tokenizer.json"), "{").unwrap();
    assert!(folder.load().is_err());
    fs::remove_file(folder.dir.path().join("tokenizer.json")).unwrap();
    let error = folder.load().unwrap_err().to_string();
    assert_eq!(error, "model/bert-rerank/tokenizer.json: missing; a model of texts needs its tokenizer");
}

#[test]
fn a_tokenizer_that_makes_more_token_types_than_the_model_has_is_refused() {
    let folder = Folder::of("bert-rerank");
    folder.edit("tokenizer.json", |json| {
        for piece in json["post_processor"]["pair"].as_array_mut().unwrap() {
            let (_, of) = piece.as_object_mut().unwrap().iter_mut().next().unwrap();
            of["type_id"] = json!(of["type_id"].as_u64().unwrap() * 2);
        }
    });
    let error = folder.load().unwrap_err().to_string();
    assert!(error.contains("and type 2, the model has 240 and 2"), "{error}");
    let mut one = folder;
    one.spec.config["type_vocab_size"] = json!(1);
    let got = tokens(&one.load().unwrap(), RawInput::Pair("a".into(), "b".into()));
    assert_eq!(got.type_ids, vec![0; got.ids.len()]);
}

#[test]
fn tokenizer_config_may_be_absent_but_not_wrong() {
    let folder = Folder::of("bert-classify");
    let path = folder.dir.path().join("tokenizer_config.json");
    folder.edit("tokenizer_config.json", |json| json["model_max_length"] = json!("long"));
    let error = folder.load().unwrap_err().to_string();
    assert_eq!(error, "model/bert-classify/tokenizer_config.json: 'model_max_length' is \"long\", expected a number");
    fs::remove_file(path).unwrap();
    assert_eq!(folder.load().unwrap().max_tokens(), Some(64));
}

#[test]
fn heads_follow_the_configuration() {
    let mut ranker = spec("bert-rerank");
    let score = |spec: &Spec| match load(spec).unwrap().finish(vec![2.0], &FinishOptions::default()).unwrap() {
        Output::Score { score } => score,
        other => panic!("{other:?}"),
    };
    assert!((score(&ranker) - 0.880_797).abs() < 1e-5);
    let identity = "torch.nn.modules.linear.Identity";
    ranker.config["sbert_ce_default_activation_function"] = json!(identity);
    assert_eq!(score(&ranker), 2.0);
    ranker.config["sentence_transformers"] = json!({"activation_fn": "torch.nn.modules.activation.Sigmoid"});
    assert!((score(&ranker) - 0.880_797).abs() < 1e-5);
    ranker.config["sentence_transformers"] = json!({"activation_fn": "torch.nn.modules.activation.Tanh"});
    assert!(load(&ranker).unwrap_err().to_string().contains("activation.Tanh' is not supported"));

    let mut two = spec("bert-rerank");
    two.labels.push("LABEL_1".into());
    assert!(load(&two).unwrap_err().to_string().contains("a reranker has 1 label, this has 2"));

    let mut classifier = spec("bert-classify");
    classifier.config["problem_type"] = json!("regression");
    let row: Vec<f32> = (0..classifier.labels.len()).map(|n| n as f32).collect();
    match load(&classifier).unwrap().finish(row.clone(), &FinishOptions::default()).unwrap() {
        Output::Labels { labels } => assert_eq!(labels[0].score, row[row.len() - 1]),
        other => panic!("{other:?}"),
    }
    classifier.config["problem_type"] = json!("guessing");
    assert!(load(&classifier).unwrap_err().to_string().contains("'problem_type' is \"guessing\""));
}
