//! Against a small hub in this process.

mod mock;

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser as _;

use self::mock::{Asked, COMMIT, Faults, Mock};
use super::*;
use crate::cli::{Cli, Command};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

struct Outcome {
    result: Result<()>,
    shown: String,
    mock: Arc<Mock>,
    /// What was waited for: after which attempt, and how long the hub had asked for.
    pauses: Vec<(u32, Option<Duration>)>,
}

impl Outcome {
    fn refusal(&self) -> String {
        self.result.as_ref().unwrap_err().to_string()
    }
}

async fn pull_from(folder: &Path, faults: Faults, models: &Path, more: &str) -> Outcome {
    let (mock, url) = Mock::start(folder, faults).await;
    let models = models.to_str().unwrap();
    let mut words = vec!["cutover", "pull", "org/model", "--endpoint", &url, "--models", models];
    words.extend(more.split_whitespace());
    let Command::Pull(mut args) = Cli::try_parse_from(words).unwrap().command else { panic!("pull") };
    // Whatever the machine's own environment says.
    if !more.contains("--token") {
        args.token = None;
    }
    let (mut out, pauses) = (Vec::new(), RefCell::default());
    let pause = |attempt, asked| {
        RefCell::<Vec<_>>::borrow_mut(&pauses).push((attempt, asked));
        Duration::ZERO
    };
    let result = pull(&args, &pause, &mut out).await;
    Outcome { result, shown: String::from_utf8(out).unwrap(), mock, pauses: pauses.into_inner() }
}

/// Everything below a folder, by path.
fn files(dir: &Path) -> Vec<String> {
    let mock = Mock { folder: dir.to_owned(), faults: Faults::default(), asked: Mutex::default() };
    let mut names = vec![];
    if dir.exists() {
        names = mock.names();
        names.sort();
    }
    names
}

#[tokio::test]
async fn a_model_is_pulled_whole_and_can_be_served() {
    let models = tempfile::tempdir().unwrap();
    let pulled = pull_from(&fixture("bert-embed-dense"), Faults::default(), models.path(), "").await;
    pulled.result.unwrap();
    assert!(pulled.shown.contains("as model@01234567 (embed)"), "{}", pulled.shown);
    let dir = models.path().join("model/01234567");
    let got = files(&dir);
    for file in ["config.json", "modules.json", "2_Dense/model.safetensors", "1_Pooling/config.json", "tokenizer.json"]
    {
        assert!(got.iter().any(|name| name == file), "{file} is missing from {got:?}");
        assert_eq!(fs::read(dir.join(file)).unwrap(), fs::read(fixture("bert-embed-dense").join(file)).unwrap());
    }
    // expected.json belongs to the fixture, not to the model
    assert!(!got.contains(&"expected.json".to_owned()) && pulled.mock.asked_for("expected.json").is_empty());
    let config = ModelConfig::read(&models.path().join("model/model.toml"), "model/model.toml").unwrap();
    assert_eq!((config.task.name(), config.live.as_deref()), ("embed", Some("01234567")));
    assert!(config.description.unwrap().contains(COMMIT));
    assert!(
        Survey::of(&dir, ("model", "01234567"), &ModelConfig::new(config.task), Home::alone(Kind::Cpu))
            .problems
            .is_empty()
    );
    let beside = fs::read_dir(models.path().join("model")).unwrap().count();
    assert_eq!(beside, ["01234567", "model.toml"].len());
}

#[tokio::test]
async fn shards_are_pulled_by_their_index_and_names_can_be_given() {
    let models = tempfile::tempdir().unwrap();
    let more = "--as mine@first --json";
    let pulled = pull_from(&fixture("bert-embed-sharded"), Faults::default(), models.path(), more).await;
    pulled.result.unwrap();
    let report: Value = serde_json::from_str(&pulled.shown).unwrap();
    assert_eq!(
        (&report["model"], &report["version"], &report["commit"]),
        (&json!("mine"), &json!("first"), &json!(COMMIT))
    );
    let got = files(&models.path().join("mine/first"));
    assert_eq!(json!(got), report["files"]);
    assert!(got.iter().filter(|name| name.ends_with(".safetensors")).count() >= 2, "{got:?}");
}

#[tokio::test]
async fn a_model_that_is_there_keeps_its_configuration() {
    let models = tempfile::tempdir().unwrap();
    fs::create_dir(models.path().join("model")).unwrap();
    let toml = models.path().join("model/model.toml");
    fs::write(&toml, "task = 'rerank'\nlive = 'v0'\n").unwrap();
    let faults = Faults::default();
    pull_from(&fixture("bert-rerank"), faults, models.path(), "--task classify").await.result.unwrap();
    assert_eq!(fs::read_to_string(toml).unwrap(), "task = 'rerank'\nlive = 'v0'\n");
    let again = pull_from(&fixture("bert-rerank"), Faults::default(), models.path(), "").await;
    assert!(again.refusal().contains("is there already"), "{}", again.refusal());
}

#[tokio::test]
async fn bytes_that_are_not_the_hubs_are_thrown_away() {
    for file in ["model.safetensors", "tokenizer.json"] {
        let models = tempfile::tempdir().unwrap();
        let faults = Faults { corrupt: Some(file), ..Faults::default() };
        let refused = pull_from(&fixture("bert-rerank"), faults, models.path(), "").await.refusal();
        assert!(refused.contains(file) && refused.contains("not the hub's"), "{refused}");
        assert!(!models.path().join("model/01234567").exists());
        // The next pull is not misled by what this one left.
        pull_from(&fixture("bert-rerank"), Faults::default(), models.path(), "").await.result.unwrap();
    }
}

#[tokio::test]
async fn a_transfer_that_breaks_goes_on_where_it_was() {
    let models = tempfile::tempdir().unwrap();
    let cut = Mutex::new(HashMap::from([("model.safetensors", 2)]));
    let faults = Faults { cut, ..Faults::default() };
    let pulled = pull_from(&fixture("bert-rerank"), faults, models.path(), "").await;
    pulled.result.unwrap();
    let size = fs::metadata(fixture("bert-rerank/model.safetensors")).unwrap().len();
    let (half, quarter) = (size / 2, size / 2 + (size - size / 2) / 2);
    let expected = [None, Some(format!("bytes={half}-")), Some(format!("bytes={quarter}-"))];
    assert_eq!(pulled.mock.asked_for("model.safetensors"), expected);
}

#[tokio::test]
async fn a_pull_that_was_given_up_goes_on_at_the_next() {
    let models = tempfile::tempdir().unwrap();
    let cut = Mutex::new(HashMap::from([("model.safetensors", usize::MAX)]));
    let faults = Faults { cut, ..Faults::default() };
    let given_up = pull_from(&fixture("bert-rerank"), faults, models.path(), "").await;
    assert!(given_up.result.is_err() && given_up.pauses.len() > 3, "{:?}", given_up.pauses);
    assert!(!models.path().join("model/model.toml").exists(), "a server would see a model without its version");
    let rest = pull_from(&fixture("bert-rerank"), Faults::default(), models.path(), "").await;
    rest.result.unwrap();
    assert!(rest.mock.asked_for("/config.json").is_empty(), "what was there is not fetched again");
    assert!(rest.mock.asked_for("model.safetensors")[0].as_deref().unwrap().starts_with("bytes="));
}

#[tokio::test]
async fn a_hub_without_ranges_sends_the_whole_file_again() {
    let models = tempfile::tempdir().unwrap();
    let cut = Mutex::new(HashMap::from([("model.safetensors", 1)]));
    let faults = Faults { cut, no_ranges: true, ..Faults::default() };
    let pulled = pull_from(&fixture("bert-rerank"), faults, models.path(), "").await;
    pulled.result.unwrap();
    assert_eq!(pulled.mock.asked_for("model.safetensors").len(), 2);
}

#[tokio::test]
async fn what_the_hub_refuses_is_told_in_words_that_help() {
    for (faults, parts) in [
        (
            Faults { list: Some((404, "RepoNotFound")), ..Faults::default() },
            ["no model on the hub", "org/model at main"],
        ),
        (Faults { list: Some((404, "RevisionNotFound")), ..Faults::default() }, ["no revision", "org/model at main"]),
        (Faults { list: Some((401, "RepoNotFound")), ..Faults::default() }, ["no such repository", "HF_TOKEN"]),
        (Faults { list: Some((403, "")), ..Faults::default() }, ["terms must be accepted at http://", "words"]),
        (Faults { file: Some((401, "GatedRepo")), ..Faults::default() }, ["terms must be accepted", "HF_TOKEN"]),
        (Faults { file: Some((404, "EntryNotFound")), ..Faults::default() }, ["no file on the hub", "config.json"]),
        (Faults { list: Some((503, "")), ..Faults::default() }, ["answered 503", "words"]),
    ] {
        let models = tempfile::tempdir().unwrap();
        let refused = pull_from(&fixture("bert-rerank"), faults, models.path(), "").await.refusal();
        assert!(parts.iter().all(|part| refused.contains(part)), "{parts:?}: {refused}");
        assert!(fs::read_dir(models.path()).unwrap().next().is_none(), "{refused}");
    }
}

#[tokio::test]
async fn names_that_leave_the_folder_are_refused_before_anything_is_written() {
    for name in ["../../evil.json", "/etc/evil", "a/../../evil", "tokenizer/../../evil.json"] {
        let models = tempfile::tempdir().unwrap();
        let faults = Faults { listed: vec![name], ..Faults::default() };
        let refused = pull_from(&fixture("bert-rerank"), faults, models.path(), "").await.refusal();
        assert!(refused.contains("lists a file that cannot be one"), "{name}: {refused}");
        assert!(files(models.path()).is_empty());
    }
}

#[tokio::test]
async fn a_token_goes_to_the_hub_and_not_where_it_redirects_to() {
    let (cdn, elsewhere) = Mock::start(&fixture("bert-rerank"), Faults::default()).await;
    let models = tempfile::tempdir().unwrap();
    let faults = Faults { elsewhere: Some(elsewhere), ..Faults::default() };
    let pulled = pull_from(&fixture("bert-rerank"), faults, models.path(), "--token secret").await;
    pulled.result.unwrap();
    let tokens = |mock: &Mock| mock.asked.lock().unwrap().iter().map(|(.., token)| token.clone()).collect::<Vec<_>>();
    assert!(tokens(&pulled.mock).iter().all(|token| token.as_deref() == Some("Bearer secret")));
    assert_eq!(tokens(&cdn), [None]);
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_and_leaves_nothing() {
    let models = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| fs::write(folder.path().join(file), text).unwrap();
    write("config.json", r#"{"model_type": "bert"}"#);
    write("pytorch_model.bin", "");
    let refused = pull_from(folder.path(), Faults::default(), models.path(), "").await;
    assert!(refused.refusal().contains("only pytorch_model.bin"), "{}", refused.refusal());

    write("model.safetensors", "");
    write("config.json", r#"{"model_type": "mamba"}"#);
    let refused = pull_from(folder.path(), Faults::default(), models.path(), "").await;
    assert!(refused.refusal().contains("\"mamba\" is not supported"), "{}", refused.refusal());
    assert!(refused.mock.asked_for("model.safetensors").is_empty(), "weights that are of no use are not fetched");

    write("config.json", r#"{"model_type": "bert", "architectures": ["BertForCausality"]}"#);
    let refused = pull_from(folder.path(), Faults::default(), models.path(), "").await;
    assert!(refused.refusal().contains("--task"), "{}", refused.refusal());
    let refused = pull_from(folder.path(), Faults::default(), models.path(), "--task embed").await;
    assert!(refused.refusal().contains("model.safetensors: truncated"), "{}", refused.refusal());
    assert!(fs::read_dir(models.path()).unwrap().next().is_none());
}

#[tokio::test]
async fn a_hub_with_too_much_to_do_is_asked_again_after_the_pause_that_it_asks_for() {
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    for path in ["/revision/main", "model.safetensors"] {
        let models = tempfile::tempdir().unwrap();
        let busy = Mutex::new(vec![(path, 429, "7"), (path, 503, ""), (path, 502, "Fri, 31 Dec 1999 23:59:59 GMT")]);
        let pulled = pull_from(&fixture("bert-rerank"), Faults { busy, ..Faults::default() }, models.path(), "").await;
        pulled.result.unwrap();
        assert_eq!(pulled.pauses, [(1, seconds(7)), (2, None), (3, None)], "{path}");
    }
    // Not for ever, and not for as long as it likes; what has come meanwhile is kept.
    for (answers, expected, pauses) in [(vec![(503, "1"); 20], "answered 503", 5), (vec![(429, "3600")], "3600 s", 0)] {
        let models = tempfile::tempdir().unwrap();
        let busy = answers.iter().map(|(status, wait)| ("model.safetensors", *status, *wait)).collect();
        let faults = Faults { busy: Mutex::new(busy), ..Faults::default() };
        let given_up = pull_from(&fixture("bert-rerank"), faults, models.path(), "").await;
        assert!(given_up.refusal().contains(expected), "{}", given_up.refusal());
        assert_eq!(given_up.pauses.len(), pauses);
        let rest = pull_from(&fixture("bert-rerank"), Faults::default(), models.path(), "").await;
        rest.result.unwrap();
        assert!(rest.mock.asked_for("/config.json").is_empty() && rest.pauses.is_empty());
    }
}

#[tokio::test]
async fn what_can_be_mended_here_throws_no_download_away() {
    let models = tempfile::tempdir().unwrap();
    let toml = models.path().join("model/model.toml");
    let pull = async |more: &str| pull_from(&fixture("bert-rerank"), Faults::default(), models.path(), more).await;
    let refused = pull("--task image-classify").await;
    assert!(refused.refusal().contains("cannot be served"), "{}", refused.refusal());
    assert_eq!(refused.mock.asked_for("model.safetensors").len(), 1);
    for (text, part) in [("task = ", "model.toml"), ("task = 'image-classify'", "cannot be served")] {
        fs::write(&toml, text).unwrap();
        let refused = pull("").await;
        assert!(refused.refusal().contains(part), "{}", refused.refusal());
    }
    fs::remove_file(&toml).unwrap();
    let pulled = pull("").await;
    pulled.result.unwrap();
    let path = |(path, ..): &Asked| path.clone();
    let asked: Vec<String> = pulled.mock.asked.lock().unwrap().iter().map(path).collect();
    assert_eq!(asked, ["/api/models/org/model/revision/main"], "everything else was here");
    assert_eq!(fs::read_dir(models.path().join("model")).unwrap().count(), ["01234567", "model.toml"].len());
}

#[tokio::test]
async fn golden_cases_are_in_the_folder_before_a_server_can_see_it() {
    let models = tempfile::tempdir().unwrap();
    let (inputs, more) =
        (models.path().join("inputs"), |file: &Path| format!("--device cpu --golden {}", file.display()));
    fs::write(&inputs, "[\"a question\", \"an answer\"]\n[\"a question\", \"another\"]\n").unwrap();
    let pull = async |more: &str| pull_from(&fixture("bert-rerank"), Faults::default(), models.path(), more).await;
    let pulled = pull(&more(&inputs)).await;
    pulled.result.unwrap();
    assert!(
        pulled.shown.contains("recorded 2 golden cases") && !pulled.shown.contains("golden record"),
        "{}",
        pulled.shown
    );
    let dir = models.path().join("model/01234567");
    assert_eq!(crate::repository::read_golden(&dir.join(golden::FILE)).unwrap().len(), 2);

    // What cannot be recorded is no version yet, and what cannot be read is told before anything is asked for.
    for (line, part, asks) in [("\"%\"\n", "the version cannot answer it", true), ("{\n", "inputs:1", false)] {
        fs::write(&inputs, line).unwrap();
        let refused = pull(&format!("{} --as model@b", more(&inputs))).await;
        assert!(refused.refusal().contains(part), "{}", refused.refusal());
        assert_eq!(!refused.mock.asked.lock().unwrap().is_empty(), asks);
        assert!(!models.path().join("model/b").exists());
    }
    // A pull that asks for none has none, whatever was left by one that did.
    fs::write(models.path().join("model/.pull-b-01234567/golden.jsonl"), "left").unwrap();
    let plain = pull("--as model@b").await;
    plain.result.unwrap();
    assert!(
        !models.path().join("model/b/golden.jsonl").exists() && plain.mock.asked_for("model.safetensors").is_empty()
    );
    let advice = format!("golden record model@b --models {} --inputs FILE --state DIR", models.path().display());
    assert!(plain.shown.contains(&advice) && plain.shown.contains("--golden FILE"), "{}", plain.shown);
}

#[tokio::test]
async fn two_pulls_of_one_version_do_not_meet() {
    let models = tempfile::tempdir().unwrap();
    let target = Reference { model: "model".into(), version: "01234567".into() };
    let _first = Draft::begin(models.path(), &target, COMMIT).unwrap();
    let second = pull_from(&fixture("bert-rerank"), Faults::default(), models.path(), "").await;
    assert!(second.refusal().contains("is being pulled already"), "{}", second.refusal());
}

#[test]
fn names_and_endpoints_that_are_none_are_refused() {
    for name in ["", "/", "a/b/c", "../x", "org/..", "org/a b", "org/.x", "org/", "https://huggingface.co/org/name"] {
        assert!(Hub::new("http://localhost", name, None).is_err(), "{name:?}");
    }
    for endpoint in ["hub", "ftp://hub", "file:///tmp", "data:,"] {
        assert!(Hub::new(endpoint, "org/name", None).is_err(), "{endpoint}");
    }
    assert!(Hub::new("http://localhost/mirror/", "bert-base-uncased", None).is_ok());
}
