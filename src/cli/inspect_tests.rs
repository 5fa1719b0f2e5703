use std::fs;

use serde_json::json;

use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A copy of a fixture as `model/v1`, to be changed.
fn copied(name: &str) -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("model/v1");
    copy(&fixture(name), &dir);
    (root, dir)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

fn inspect(dir: &Path, task: Option<Task>) -> (bool, Value) {
    let mut out = Vec::new();
    let loadable = run(&InspectArgs { dir: dir.to_owned(), task, json: true }, &mut out).unwrap();
    (loadable, serde_json::from_slice(&out).unwrap())
}

fn problems(report: &Value) -> Vec<String> {
    report["problems"].as_array().unwrap().iter().map(|it| it["message"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_version_is_described_from_its_headers_and_small_files() {
    let (_root, dir) = copied("bert-embed-f16");
    let (loadable, report) = inspect(&dir, None);
    assert!(loadable, "{report:#}");
    assert_eq!((&report["model"], &report["version"]), (&json!("model"), &json!("v1")));
    assert_eq!((&report["task"], &report["family"]), (&json!("embed"), &json!("bert")));
    assert_eq!(report["pooling"], "mean");
    assert_eq!(report["tokenizer"]["kind"], "WordPiece");
    assert_eq!(report["weights"]["dtypes"], json!({"F16": report["weights"]["tensors"]}));
    // Half as stored, whole as used: four bytes for each number, whatever the file holds.
    let memory = &report["memory"];
    assert_eq!(memory["dtype"], "f32");
    assert_eq!(memory["weights"].as_u64().unwrap(), 4 * report["weights"]["parameters"].as_u64().unwrap());
    let sum = memory["weights"].as_u64().unwrap() + memory["workspace"].as_u64().unwrap();
    assert_eq!(memory["total"], sum);
    let config = report["files"].as_array().unwrap().iter().find(|file| file["path"] == "config.json").unwrap();
    assert_eq!(config["size"], fs::metadata(dir.join("config.json")).unwrap().len());
}

#[test]
fn what_is_told_is_what_the_server_would_reserve() {
    let digits = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/digits/v1");
    let (loadable, report) = inspect(&digits, None);
    assert!(loadable);
    let config = ModelConfig::new(Task::ImageClassify);
    let survey = Survey::of(&digits, ("digits", "v1"), &config, Home::alone(Kind::Cpu));
    let footprint = survey.footprint.unwrap();
    assert_eq!(report["memory"]["total"], footprint.total());
    let index = survey.index.unwrap();
    assert_eq!(report["digest"], Manifest::compute(&digits, &index).unwrap().digest);
    assert_eq!((&report["model"], &report["version"]), (&json!("digits"), &json!("v1")));
    assert_eq!(report["labels"].as_array().unwrap().len(), 10);
    assert_eq!(report["tokens_per_image"], 17);
    assert!(report["golden"]["model"].as_u64().unwrap() > 0 && report["golden"]["version"].as_u64().unwrap() > 0);
}

#[test]
fn every_problem_is_told_and_not_only_the_first() {
    let (_root, dir) = copied("bert-classify");
    fs::remove_file(dir.join("tokenizer.json")).unwrap();
    let weights = fs::read(dir.join("model.safetensors")).unwrap();
    fs::write(dir.join("model.safetensors"), &weights[..weights.len() - 1]).unwrap();
    fs::write(dir.join("golden.jsonl"), "{\"id\": \"x\"}\n").unwrap();
    let (loadable, report) = inspect(&dir, None);
    let problems = problems(&report);
    assert!(!loadable);
    for part in ["model/v1/model.safetensors", "tokenizer.json", "v1/golden.jsonl:1"] {
        assert!(problems.iter().any(|problem| problem.contains(part)), "{part} is missing from {problems:?}");
    }
    // What could be found out is there all the same.
    assert_eq!((&report["task"], &report["family"]), (&json!("classify"), &json!("bert")));
    assert!(report["memory"].is_null() && report["digest"].is_null());
}

#[test]
fn tensors_and_families_that_do_not_fit_are_problems() {
    let (_root, dir) = copied("bert-classify");
    let config = fs::read_to_string(dir.join("config.json")).unwrap();
    let mut changed: Value = serde_json::from_str(&config).unwrap();
    changed["intermediate_size"] = json!(7);
    fs::write(dir.join("config.json"), changed.to_string()).unwrap();
    assert!(problems(&inspect(&dir, None).1)[0].contains("has shape"));
    changed["model_type"] = json!("mamba");
    fs::write(dir.join("config.json"), changed.to_string()).unwrap();
    assert!(problems(&inspect(&dir, None).1)[0].contains("'mamba' is not supported"));
}

#[test]
fn golden_cases_of_another_task_are_a_problem() {
    let (_root, dir) = copied("bert-classify");
    fs::write(dir.join("golden.jsonl"), r#"{"id": "x", "input": "a", "expect": {"score": 1, "max_abs": 1}}"#).unwrap();
    let (loadable, report) = inspect(&dir, None);
    assert!(!loadable && problems(&report)[0].contains("case 'x'"), "{report:#}");
}

#[test]
fn model_toml_goes_before_a_guess_and_what_is_told_before_both() {
    let (_root, dir) = copied("bert-classify");
    fs::write(dir.parent().unwrap().join("model.toml"), "task = 'embed'").unwrap();
    assert_eq!(inspect(&dir, None).1["task"], "embed");
    assert_eq!(inspect(&dir, Some(Task::Classify)).1["task"], "classify");
    fs::write(dir.parent().unwrap().join("model.toml"), "task = 'embedd'").unwrap();
    let (loadable, report) = inspect(&dir, None);
    assert!(!loadable && report["task"].is_null());
    assert!(problems(&report)[0].contains("model/model.toml: task"), "{report:#}");
    assert!(report["digest"].is_string() && report["files"].as_array().unwrap().len() > 3);
}

#[test]
fn what_a_gpu_makes_products_of_is_told_and_where_the_choice_means_nothing() {
    for (fixture, toml, dtype, said) in [
        ("bert-embed-mean", "", "f32", "f32"),
        ("bert-embed-mean", "[gpu]\nf32_matmul = 'tf32'", "f32", "tf32"),
        ("bert-embed-f16", "", "f16", "f16"),
        ("bert-embed-bf16", "[gpu]\nf32_matmul = 'tf32'", "bf16", "bf16; f32_matmul = \"tf32\" means nothing for it"),
    ] {
        let (_root, dir) = copied(fixture);
        fs::write(dir.parent().unwrap().join("model.toml"), format!("task = 'embed'\n{toml}")).unwrap();
        let report = inspect(&dir, None).1;
        let asked = if toml.is_empty() { "f32" } else { "tf32" };
        assert_eq!((&report["gpu_dtype"], &report["f32_matmul"]), (&json!(dtype), &json!(asked)), "{fixture}");
        let mut out = Vec::new();
        run(&InspectArgs { dir, task: None, json: false }, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let line = text.lines().find(|line| line.starts_with("products on a GPU")).unwrap();
        assert_eq!(line.trim_start_matches("products on a GPU").trim(), said, "{text}");
    }
    let (_root, dir) = copied("bert-embed-mean");
    fs::write(dir.parent().unwrap().join("model.toml"), "task = 'embed'\n[gpu]\nf32_matmul = 'f16'").unwrap();
    let told = &problems(&inspect(&dir, None).1)[0];
    assert!(told.contains("model/model.toml: gpu.f32_matmul") && told.contains("expected `f32` or `tf32`"), "{told}");
}

#[test]
fn without_a_task_to_be_seen_it_is_asked_for() {
    let (_root, dir) = copied("bert-classify");
    fs::write(dir.join("config.json"), r#"{"model_type": "bert", "architectures": ["BertForCausality"]}"#).unwrap();
    let (loadable, report) = inspect(&dir, None);
    assert!(!loadable && problems(&report)[0].contains("--task"), "{report:#}");
}

#[test]
fn the_table_names_what_matters_and_says_why_it_cannot_be_loaded() {
    let (_root, dir) = copied("bert-rerank");
    let text = |dir: &Path| {
        let mut out = Vec::new();
        let loadable = run(&InspectArgs { dir: dir.to_owned(), task: None, json: false }, &mut out).unwrap();
        (loadable, String::from_utf8(out).unwrap())
    };
    let (loadable, shown) = text(&dir);
    assert!(loadable && !shown.contains("cannot be loaded"));
    for part in ["model@v1", "rerank", "weights as f32", "to reserve", "model.safetensors", "longest input"] {
        assert!(shown.contains(part), "{part} is missing from\n{shown}");
    }
    fs::remove_file(dir.join("model.safetensors")).unwrap();
    let (loadable, shown) = text(&dir);
    assert!(!loadable && shown.contains("it cannot be loaded:\n  model/v1/model.safetensors: is missing"), "{shown}");
}

#[test]
fn a_path_that_is_no_folder_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    let place = |dir: &Path| Place::of(dir).err().unwrap().to_string();
    assert!(place(&root.path().join("nothing")).ends_with("is missing"));
    fs::write(root.path().join("file"), "").unwrap();
    assert!(place(&root.path().join("file")).ends_with("is not a folder"));
    fs::create_dir_all(root.path().join("m/v1/1_Pooling")).unwrap();
    fs::write(root.path().join("m/model.toml"), "task = 'embed'").unwrap();
    assert!(place(&root.path().join("m")).ends_with("m: is the folder of a model that has no version yet"));
    fs::write(root.path().join("m/v1/config.json"), "{}").unwrap();
    assert!(place(&root.path().join("m")).ends_with("is a model's folder; name one of its versions: v1"));
    assert!(place(root.path()).ends_with("is a folder of models; name one of their versions: m/v1"));
    let up = Place::of(&root.path().join("m/v1/1_Pooling/..")).unwrap();
    assert_eq!((up.model.as_str(), up.version.as_str()), ("m", "v1"));
}
