//! Against a small hub in this process, which serves folders of fixtures as the real one does, and fails on demand.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use clap::Parser as _;
use futures_util::{StreamExt as _, stream};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use tokio::net::TcpListener;

use super::*;
use crate::cli::{Cli, Command};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the hub misbehaves.
#[derive(Default)]
struct Faults {
    /// The listing is refused with this status and `X-Error-Code`.
    list: Option<(u16, &'static str)>,
    /// Files are refused so.
    file: Option<(u16, &'static str)>,
    /// Names that are listed beside the real ones.
    listed: Vec<&'static str>,
    /// This file's bytes are not those that are listed.
    corrupt: Option<&'static str>,
    /// So many answers for this file break off half-way.
    cut: Mutex<HashMap<&'static str, usize>>,
    /// Whether a part of a file can be asked for.
    no_ranges: bool,
    /// Where weights are redirected to, as the real hub does.
    elsewhere: Option<String>,
}

struct Mock {
    folder: PathBuf,
    faults: Faults,
    asked: Mutex<Vec<Asked>>,
}

/// Path, range and token of a request.
type Asked = (String, Option<String>, Option<String>);

impl Mock {
    async fn start(folder: &Path, faults: Faults) -> (Arc<Mock>, String) {
        let mock = Arc::new(Mock { folder: folder.to_owned(), faults, asked: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&mock));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (mock, url)
    }

    fn names(&self) -> Vec<String> {
        fn walk(dir: &Path, prefix: &str, names: &mut Vec<String>) {
            for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
                let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
                match entry.path().is_dir() {
                    true => walk(&entry.path(), &format!("{name}/"), names),
                    false => names.push(name),
                }
            }
        }
        let mut names = Vec::new();
        walk(&self.folder, "", &mut names);
        names
    }

    fn listing(&self) -> Value {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let mut siblings: Vec<Value> = Vec::new();
        for name in self.names() {
            let bytes = fs::read(self.folder.join(&name)).unwrap();
            let mut blob = format!("blob {}\0", bytes.len()).into_bytes();
            blob.extend(&bytes);
            let blob = hex(digest(&SHA1_FOR_LEGACY_USE_ONLY, &blob).as_ref());
            let mut sibling = json!({"rfilename": name, "blobId": blob, "size": bytes.len()});
            if name.ends_with(".safetensors") {
                let sha256 = hex(digest(&SHA256, &bytes).as_ref());
                sibling["lfs"] = json!({"sha256": sha256, "size": bytes.len(), "pointerSize": 130});
            }
            siblings.push(sibling);
        }
        let more = self.faults.listed.iter();
        siblings.extend(more.map(|name| json!({"rfilename": name, "blobId": COMMIT, "size": 3})));
        json!({"id": "org/model", "sha": COMMIT, "private": false, "siblings": siblings})
    }

    fn asked_for(&self, file: &str) -> Vec<Option<String>> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|(path, ..)| path.ends_with(file)).map(|(_, range, _)| range.clone()).collect()
    }
}

async fn answer(State(mock): State<Arc<Mock>>, request: Request) -> Response {
    let header = |name| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let path = request.uri().path().to_owned();
    mock.asked.lock().unwrap().push((path.clone(), header(header::RANGE), header(header::AUTHORIZATION)));
    let refused = |(status, code): (u16, &'static str)| {
        (StatusCode::from_u16(status).unwrap(), [("x-error-code", code), ("x-error-message", "words")], "")
            .into_response()
    };
    if path == "/api/models/org/model/revision/main" {
        assert_eq!(request.uri().query(), Some("blobs=true"));
        return mock.faults.list.map_or_else(|| axum::Json(mock.listing()).into_response(), refused);
    }
    let prefix = format!("/org/model/resolve/{COMMIT}/");
    match path.strip_prefix(&prefix).or_else(|| path.strip_prefix("/cdn/")) {
        Some(file) => match (mock.faults.file, &mock.faults.elsewhere) {
            (Some(refusal), _) => refused(refusal),
            (None, Some(host)) if file.ends_with(".safetensors") => {
                (StatusCode::FOUND, [(header::LOCATION, format!("{host}/cdn/{file}"))]).into_response()
            }
            _ => mock.file(file, request.headers()),
        },
        None => refused((404, "RepoNotFound")),
    }
}

impl Mock {
    fn file(&self, file: &str, headers: &HeaderMap) -> Response {
        let Ok(mut bytes) = fs::read(self.folder.join(file)) else {
            return (StatusCode::NOT_FOUND, [("x-error-code", "EntryNotFound")]).into_response();
        };
        if self.faults.corrupt == Some(file) {
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
        }
        let range = headers.get(header::RANGE).map(|value| value.to_str().unwrap());
        let from = range.map(|range| range["bytes=".len()..range.len() - 1].parse::<usize>().unwrap());
        let from = from.filter(|_| !self.faults.no_ranges);
        let whole = bytes.len();
        let part = bytes.split_off(from.unwrap_or(0));
        let mut response = match self.is_cut(file) {
            true => {
                let half = Bytes::from(part[..part.len() / 2].to_vec());
                // A pause, in which the half goes out.
                let cut = async {
                    tokio::task::yield_now().await;
                    Err(io::Error::other("cut"))
                };
                let broken = stream::once(std::future::ready(Ok(half))).chain(stream::once(cut));
                let mut response = Body::from_stream(broken).into_response();
                response.headers_mut().insert(header::CONTENT_LENGTH, part.len().into());
                response
            }
            false => part.into_response(),
        };
        if let Some(from) = from {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let range = format!("bytes {from}-{}/{whole}", whole - 1);
            response.headers_mut().insert(header::CONTENT_RANGE, range.parse().unwrap());
        }
        response
    }

    fn is_cut(&self, file: &str) -> bool {
        let mut cut = self.faults.cut.lock().unwrap();
        cut.get_mut(file).filter(|left| **left > 0).map(|left| *left -= 1).is_some()
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

struct Outcome {
    result: Result<()>,
    shown: String,
    mock: Arc<Mock>,
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
    let mut out = Vec::new();
    let result = pull(&args, &mut out).await;
    Outcome { result, shown: String::from_utf8(out).unwrap(), mock }
}

/// Everything below a folder, by path.
fn files(dir: &Path) -> Vec<String> {
    let (mock, mut names) =
        (Mock { folder: dir.to_owned(), faults: Faults::default(), asked: Mutex::default() }, vec![]);
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
    assert!(given_up.result.is_err());
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
