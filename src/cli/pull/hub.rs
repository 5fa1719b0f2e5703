//! The Hugging Face hub's interface: what a repository holds at a commit, and the bytes of its files.
//!
//! Source: the hub's API, `GET /api/models/{name}/revision/{revision}?blobs=true`, and `huggingface_hub`'s
//! `file_download.py` (the `resolve` route, `X-Error-Code`). It knows nothing of models; it writes no files.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RANGE, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use serde::Deserialize;

use super::again::Trouble;
use crate::cli::args::Secret;
use crate::cli::client::chain;
use crate::error::{Error, Result};
use crate::repository::safe_relative;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two pieces of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// The list of a repository's files.
const MAX_JSON_BYTES: usize = 64 << 20;
/// A hub that asks for a longer pause is not waited for.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// One repository of a hub.
pub(super) struct Hub {
    http: Client,
    endpoint: Url,
    /// `org/name`, or a name alone for the oldest ones.
    name: String,
}

/// What the repository holds at one commit.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: BTreeMap<String, Remote>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remote {
    /// Bytes.
    pub(super) size: u64,
    pub(super) digest: Digest,
}

/// How the hub names a file's bytes. Lowercase hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Digest {
    Sha256(String),
    /// SHA-1 of `blob {size}\0` and the bytes: for files that are in git itself.
    GitBlob(String),
}

impl Hub {
    pub(super) fn new(endpoint: &str, name: &str, token: Option<&Secret>) -> Result<Hub> {
        let wrong = |reason: String| Error::bad_param("endpoint", format!("--endpoint {endpoint}: {reason}"));
        let url = Url::parse(endpoint).map_err(|e| wrong(e.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() || url.cannot_be_a_base() {
            return Err(wrong("expected http://HOST or https://HOST".to_owned()));
        }
        check_name(name)?;
        let mut headers = HeaderMap::new();
        if let Some(token) = token.map(Secret::reveal).filter(|token| !token.is_empty()) {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|_| Error::bad_param("token", "HF_TOKEN (or --token) is not a token"))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        // Another part of the process may have installed one already; any will do.
        let _already = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Client::builder()
            .default_headers(headers)
            .user_agent(concat!("cutover/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT);
        if url.scheme() == "http" && matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]")) {
            // A mirror on this machine must work where no certificates are installed, and without a proxy.
            builder = builder.tls_certs_only(std::iter::empty()).no_proxy();
        }
        let http = builder.build().map_err(|e| Error::internal(format!("cannot set up the client: {}", chain(&e))))?;
        Ok(Hub { http, endpoint: url, name: name.to_owned() })
    }

    /// What the repository holds at a branch, tag or commit.
    pub(super) async fn listing(&self, revision: &str) -> Result<Listing, Trouble> {
        let parts = ["api", "models"].into_iter().chain(self.name.split('/')).chain(["revision", revision]);
        let mut url = self.url(parts).map_err(Trouble::Final)?;
        url.query_pairs_mut().append_pair("blobs", "true");
        let what = format!("{} at {revision}", self.name);
        // An address where nobody is at the first asking is more likely wrong than away for a moment.
        let response = self.http.get(url).send().await.map_err(|e| Trouble::Final(self.unreachable(&e)))?;
        let body = self.body(self.accepted(response, &what)?).await.map_err(Trouble::Final)?;
        let listed: Result<Listed, _> = serde_json::from_slice(&body);
        let unexpected = |e: serde_json::Error| format!("the hub's answer is not what was expected: {e}");
        let checked = listed.map_err(unexpected).and_then(Listed::checked);
        checked.map_err(|reason| Trouble::Final(Error::unloadable(what, reason)))
    }

    /// Asks for a file's bytes from an offset on. The status is the caller's to judge.
    pub(super) async fn file(&self, commit: &str, file: &str, from: u64) -> Result<Response, Trouble> {
        let parts = self.name.split('/').chain(["resolve", commit]).chain(file.split('/'));
        let mut request = self.http.get(self.url(parts).map_err(Trouble::Final)?);
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        request.send().await.map_err(|e| self.broken(&e))
    }

    /// The answer, or what its status means for somebody who pulls.
    pub(super) fn accepted(&self, response: Response, what: &str) -> Result<Response, Trouble> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let code = header("x-error-code");
        let said = header("x-error-message").map(|said| format!(" (the hub says: {said})")).unwrap_or_default();
        let page = format!("{}/{}", self.endpoint.as_str().trim_end_matches('/'), self.name);
        let missing = |thing: &'static str, id: &str| Error::NotFound { what: thing, id: id.to_owned() };
        Err(Trouble::Final(match (status, code) {
            (_, Some("GatedRepo")) | (StatusCode::FORBIDDEN, _) => Error::Forbidden {
                reason: format!("{what}: its terms must be accepted at {page}; then give a token in HF_TOKEN{said}"),
            },
            (_, Some("RevisionNotFound")) => missing("revision on the hub", what),
            (_, Some("EntryNotFound")) => missing("file on the hub", what),
            // To those who may not see it, the hub answers 401 whether there is such a repository or not.
            (StatusCode::UNAUTHORIZED, _) => Error::Unauthorised {
                reason: format!(
                    "{what}: there is no such repository at {page}, or it is private: check the name, and HF_TOKEN{said}"
                ),
            },
            (StatusCode::NOT_FOUND, _) => missing("model on the hub", what),
            _ => {
                let answered = format!("the hub answered {status}{said}");
                let busy = matches!(status.as_u16(), 408 | 425 | 429) || status.is_server_error();
                return Err(match (busy, retry_after(response.headers())) {
                    (true, Some(asked)) if asked > LONGEST_PAUSE => {
                        let reason = format!("{answered}, and asks not to be asked for {} s", asked.as_secs());
                        Trouble::Final(Error::unloadable(what, reason))
                    }
                    (true, asked) => Trouble::Passing(Error::unloadable(what, answered).into(), asked),
                    (false, _) => Trouble::Final(Error::unloadable(what, answered)),
                });
            }
        }))
    }

    fn unreachable(&self, error: &reqwest::Error) -> Error {
        Error::unloadable(&self.endpoint, format!("cannot be reached: {}", chain(error)))
    }

    /// The connection broke: what has come is good, and the rest can be asked for.
    pub(super) fn broken(&self, error: &reqwest::Error) -> Trouble {
        Trouble::Passing(self.unreachable(error).into(), None)
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.unreachable(&e))? {
            if body.len() + chunk.len() > MAX_JSON_BYTES {
                return Err(Error::unloadable(&self.endpoint, format!("answered more than {MAX_JSON_BYTES} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// Every part is encoded: a `/` in a revision stays inside its part.
    fn url<'a>(&self, parts: impl Iterator<Item = &'a str>) -> Result<Url> {
        let mut url = self.endpoint.clone();
        match url.path_segments_mut() {
            Ok(mut segments) => segments.pop_if_empty().extend(parts),
            Err(()) => return Err(Error::internal("an endpoint without a path")),
        };
        Ok(url)
    }
}

/// Only seconds: the other form, a date, is as good as none.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// Names as the hub allows them; anything else would be another route of it.
fn check_name(name: &str) -> Result<()> {
    let part = |part: &str| {
        let plain = part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        !part.is_empty() && part.len() <= 96 && plain && !part.starts_with('.') && !part.contains("..")
    };
    if name.split('/').count() <= 2 && name.split('/').all(part) {
        return Ok(());
    }
    Err(Error::bad_param("name", format!("'{name}' is not a repository of the hub: expected ORG/NAME")))
}

/// The API's answer, as far as it is of use. More fields may come.
#[derive(Deserialize)]
struct Listed {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Listed {
    fn checked(self) -> Result<Listing, String> {
        let Listed { sha, siblings } = self;
        // It becomes part of a path here.
        if !is_hex(&sha, 40) {
            return Err(format!("the hub's commit {sha:?} is not one"));
        }
        let mut files = BTreeMap::new();
        for sibling in siblings {
            let name = sibling.rfilename.clone();
            safe_relative(&name).map_err(|why| format!("the hub lists a file that cannot be one: {why}"))?;
            // Files that no digest is known of are left out here, and so missed where they are needed.
            if let Some(remote) = sibling.remote() {
                files.insert(name, remote);
            }
        }
        Ok(Listing { commit: sha, files })
    }
}

impl Sibling {
    fn remote(self) -> Option<Remote> {
        match (self.lfs, self.blob_id, self.size) {
            (Some(Lfs { sha256, size }), ..) if is_hex(&sha256, 64) => {
                Some(Remote { size, digest: Digest::Sha256(sha256) })
            }
            (None, Some(blob), Some(size)) if is_hex(&blob, 40) => Some(Remote { size, digest: Digest::GitBlob(blob) }),
            _ => None,
        }
    }
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
