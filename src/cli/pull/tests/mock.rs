//! A hub in this process, which serves folders of fixtures as the real one does, and fails on demand.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{AppendHeaders, IntoResponse, Response};
use futures_util::{StreamExt as _, stream};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use serde_json::{Value, json};
use tokio::net::TcpListener;

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the hub misbehaves.
#[derive(Default)]
pub(super) struct Faults {
    /// The listing is refused with this status and `X-Error-Code`.
    pub(super) list: Option<(u16, &'static str)>,
    /// Files are refused so.
    pub(super) file: Option<(u16, &'static str)>,
    /// Requests whose path ends so are answered with this status and `Retry-After`, one each and in this order.
    pub(super) busy: Mutex<Vec<(&'static str, u16, &'static str)>>,
    /// Names that are listed beside the real ones.
    pub(super) listed: Vec<&'static str>,
    /// This file's bytes are not those that are listed.
    pub(super) corrupt: Option<&'static str>,
    /// So many answers for this file break off half-way.
    pub(super) cut: Mutex<HashMap<&'static str, usize>>,
    /// Whether a part of a file can be asked for.
    pub(super) no_ranges: bool,
    /// Where weights are redirected to, as the real hub does.
    pub(super) elsewhere: Option<String>,
}

pub(super) struct Mock {
    pub(super) folder: PathBuf,
    pub(super) faults: Faults,
    pub(super) asked: Mutex<Vec<Asked>>,
}

/// Path, range and token of a request.
pub(super) type Asked = (String, Option<String>, Option<String>);

impl Mock {
    pub(super) async fn start(folder: &Path, faults: Faults) -> (Arc<Mock>, String) {
        let mock = Arc::new(Mock { folder: folder.to_owned(), faults, asked: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&mock));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (mock, url)
    }

    pub(super) fn names(&self) -> Vec<String> {
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

    pub(super) fn asked_for(&self, file: &str) -> Vec<Option<String>> {
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
    if let Some((status, wait)) = mock.is_busy(&path) {
        let wait = (!wait.is_empty()).then_some((header::RETRY_AFTER, wait));
        return (StatusCode::from_u16(status).unwrap(), AppendHeaders(wait)).into_response();
    }
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

    fn is_busy(&self, path: &str) -> Option<(u16, &'static str)> {
        let mut busy = self.faults.busy.lock().unwrap();
        let at = busy.iter().position(|(end, ..)| path.ends_with(end))?;
        let (_, status, wait) = busy.remove(at);
        Some((status, wait))
    }

    fn is_cut(&self, file: &str) -> bool {
        let mut cut = self.faults.cut.lock().unwrap();
        cut.get_mut(file).filter(|left| **left > 0).map(|left| *left -= 1).is_some()
    }
}
