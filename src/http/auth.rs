//! API keys and the admin token: who may ask models, and who may change them.
//!
//! Keys stand in files of `name:key` lines. Only their digests are kept; what a request bears is digested and held
//! against all of them, each in constant time. The key's name goes into the request's span and counters, the key
//! nowhere. The admin token opens the admin routes and the list of models, and no model answers to it.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::body;
use super::guard::Guard;
use super::reply::{Dialect, Failure};
use crate::error::{Error, Result};

pub(super) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Shorter keys could be guessed.
const SHORTEST_KEY: usize = 16;
const LONGEST_NAME: usize = 64;

/// Which key a request was let in by, for its span and counters.
#[derive(Debug, Clone)]
pub(super) struct KeyName(pub(super) Arc<str>);

/// One key that lets requests in.
#[derive(Debug)]
struct Key {
    name: Arc<str>,
    digest: blake3::Hash,
}

/// The keys of one or more files, read anew when told to.
#[derive(Debug)]
pub struct ApiKeys {
    files: Vec<PathBuf>,
    keys: ArcSwap<Vec<Key>>,
}

impl ApiKeys {
    /// Reads the files.
    ///
    /// # Errors
    /// `Config`, naming file and line: what is not `name:key`, a name or a key that stands there twice, a key that is
    /// too short; files that hold no key at all, since nobody could come in.
    pub fn open(files: Vec<PathBuf>) -> Result<ApiKeys> {
        let keys = read(&files)?;
        warn_of_readers(&files);
        Ok(ApiKeys { files, keys: ArcSwap::from_pointee(keys) })
    }

    /// Reads the files again. How many keys there are now.
    ///
    /// # Errors
    /// As for `open`; the keys stay as they were.
    pub fn reload(&self) -> Result<usize> {
        let keys = read(&self.files)?;
        warn_of_readers(&self.files);
        let count = keys.len();
        self.keys.store(Arc::new(keys));
        Ok(count)
    }

    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The name of the key that a request bears.
    fn name_of(&self, headers: &HeaderMap) -> Option<Arc<str>> {
        let keys = self.keys.load();
        credentials(headers).find_map(|credential| {
            let digest = blake3::hash(credential.as_bytes());
            // All of them are looked at, whichever fits: how long it takes says nothing.
            keys.iter().fold(None, |found, key| if key.digest == digest { Some(Arc::clone(&key.name)) } else { found })
        })
    }
}

fn read(files: &[PathBuf]) -> Result<Vec<Key>> {
    // Where a name and a digest were seen first.
    let (mut names, mut digests) = (BTreeMap::new(), BTreeMap::new());
    let mut keys = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).map_err(|e| wrong(file, "", format!("could not be read: {e}")))?;
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let place = format!("line {}", at + 1);
            let (name, key) = parse(line).map_err(|reason| wrong(file, &place, reason))?;
            let told = format!("{} {place}", file.display());
            if let Some(first) = names.insert(name.to_owned(), told.clone()) {
                return Err(wrong(file, &place, format!("the name '{name}' stands in {first} already")));
            }
            let digest = blake3::hash(key.as_bytes());
            if let Some(first) = digests.insert(*digest.as_bytes(), told) {
                return Err(wrong(file, &place, format!("the key of '{name}' stands in {first} already")));
            }
            keys.push(Key { name: name.into(), digest });
        }
    }
    match (keys.is_empty(), files.first()) {
        (true, Some(file)) => Err(wrong(file, "", "holds no key; expected lines of name:key".into())),
        _ => Ok(keys),
    }
}

/// One line; errors never repeat it, since it may hold a key.
fn parse(line: &str) -> Result<(&str, &str), String> {
    let (name, key) = line.split_once(':').ok_or("expected name:key")?;
    let (name, key) = (name.trim(), key.trim());
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(plain) {
        return Err(format!("a name has 1 to {LONGEST_NAME} letters, digits, '-', '_' and '.'"));
    }
    if key.len() < SHORTEST_KEY {
        return Err(format!("the key of '{name}' has {} characters, expected at least {SHORTEST_KEY}", key.len()));
    }
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("the key of '{name}' holds what no header can carry: blanks, or what is not ASCII"));
    }
    Ok((name, key))
}

fn wrong(file: &Path, place: &str, reason: String) -> Error {
    Error::Config { file: file.display().to_string(), key: place.to_owned(), reason }
}

/// Says when others than the file's owner and group can read a secret.
pub(super) fn warn_of_readers(files: &[PathBuf]) {
    for file in files {
        if std::fs::metadata(file).is_ok_and(|meta| meta.mode() & 0o004 != 0) {
            tracing::warn!(file = %file.display(), "everybody on this machine can read this secret; chmod o-r");
        }
    }
}

/// What a listener asks of those who come in.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Digest of the token that admin routes ask for. Digests are compared in constant time.
    token: Option<blake3::Hash>,
    keys: Option<Arc<ApiKeys>>,
}

impl Access {
    pub fn new(token: Option<&str>, keys: Option<Arc<ApiKeys>>) -> Self {
        Access { token: token.map(|token| blake3::hash(token.as_bytes())), keys }
    }

    pub(super) fn asks_for_token(&self) -> bool {
        self.token.is_some()
    }

    pub(super) fn asks_for_key(&self) -> bool {
        self.keys.is_some()
    }

    fn is_admin(&self, headers: &HeaderMap) -> bool {
        let bears = |expected| bearers(headers).any(|token| blake3::hash(token.as_bytes()) == expected);
        self.token.is_some_and(bears)
    }
}

/// Asks admin routes for the token.
pub(super) async fn admin(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    if !guard.access.asks_for_token() || guard.access.is_admin(request.headers()) {
        return next.run(request).await;
    }
    refuse(request, "this route needs the admin token (Authorization: Bearer …)").await
}

/// Asks for an API key where keys are configured.
pub(super) async fn inference(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let Some(keys) = &guard.access.keys else { return next.run(request).await };
    match keys.name_of(request.headers()) {
        Some(name) => admitted(name, request, next).await,
        None => refuse(request, NEEDS_KEY).await,
    }
}

/// Asks for an API key or the admin token: whoever may change models may see which there are.
pub(super) async fn lists(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let Some(keys) = &guard.access.keys else { return next.run(request).await };
    match keys.name_of(request.headers()) {
        Some(name) => admitted(name, request, next).await,
        None if guard.access.is_admin(request.headers()) => next.run(request).await,
        None => refuse(request, NEEDS_KEY).await,
    }
}

const NEEDS_KEY: &str = "this route needs an API key (Authorization: Bearer …, or x-api-key)";

async fn admitted(name: Arc<str>, mut request: Request, next: Next) -> Response {
    tracing::Span::current().record("key", &*name);
    request.extensions_mut().insert(KeyName(Arc::clone(&name)));
    let mut response = next.run(request).await;
    response.extensions_mut().insert(KeyName(name));
    response
}

async fn refuse(request: Request, reason: &str) -> Response {
    let dialect = Dialect::of(request.uri().path());
    tracing::debug!(reason, "refused a request");
    // A client that is still sending sees the refusal, and not a connection that breaks.
    body::discard(request).await;
    Failure::new(dialect, Error::Unauthorised { reason: reason.to_owned() }).into_response()
}

/// Everything that could be a key.
fn credentials(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let own = headers.get_all(API_KEY).into_iter().filter_map(|value| value.to_str().ok()).map(str::trim);
    bearers(headers).chain(own)
}

/// Tokens of `Authorization: Bearer` (RFC 6750, 2.1).
fn bearers(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers.get_all(header::AUTHORIZATION).into_iter().filter_map(|value| {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const ALICE: &str = "alice:0123456789abcdef";

    fn written(text: &str) -> (tempfile::NamedTempFile, Vec<PathBuf>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let paths = vec![file.path().to_owned()];
        (file, paths)
    }

    fn with(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn a_key_is_known_by_its_name_in_either_header() {
        let (_file, paths) = written(&format!("# who\n\n {ALICE} \nbob: fedcba:9876543210\n"));
        let keys = ApiKeys::open(paths).unwrap();
        let name = |headers: HeaderMap| keys.name_of(&headers).map(|name| name.to_string());
        assert_eq!(name(with(header::AUTHORIZATION, "Bearer 0123456789abcdef")).as_deref(), Some("alice"));
        assert_eq!(name(with(API_KEY, "fedcba:9876543210")).as_deref(), Some("bob"));
        for (header, value) in [
            (header::AUTHORIZATION, "Bearer 0123456789abcde"),
            (header::AUTHORIZATION, "Bearer alice:0123456789abcdef"),
            (header::AUTHORIZATION, "Basic 0123456789abcdef"),
            (API_KEY, "alice"),
            (API_KEY, ""),
        ] {
            assert_eq!(name(with(header, value)), None, "{value}");
        }
        assert_eq!(name(HeaderMap::new()), None);
    }

    #[test]
    fn files_that_make_no_sense_are_refused_by_line_and_without_the_key() {
        for (text, parts) in [
            ("alice 0123456789abcdef", &["line 1", "name:key"][..]),
            ("\n\nalice:short", &["line 3", "'alice' has 5 characters, expected at least 16"]),
            ("al ice:0123456789abcdef", &["line 1", "a name has"]),
            (":0123456789abcdef", &["line 1", "a name has"]),
            ("alice:0123456789 abcdef", &["line 1", "blanks"]),
            ("alice:0123456789abcdef\nalice:fedcba9876543210", &["line 2", "line 1 already"]),
            ("alice:0123456789abcdef\nbob:0123456789abcdef", &["line 2", "'bob'", "line 1 already"]),
            ("# nobody\n", &["holds no key"]),
        ] {
            let (file, paths) = written(text);
            let said = ApiKeys::open(paths).unwrap_err().to_string();
            for part in parts.iter().copied().chain([file.path().to_str().unwrap()]) {
                assert!(said.contains(part), "{text:?}: '{part}' is missing in {said}");
            }
            assert!(!said.contains("456789"), "a key is told: {said}");
        }
        assert!(ApiKeys::open(vec!["/nowhere/keys".into()]).unwrap_err().to_string().contains("/nowhere/keys"));
    }

    #[test]
    fn a_broken_file_leaves_the_keys_that_there_were() {
        let (file, paths) = written(ALICE);
        let keys = ApiKeys::open(paths).unwrap();
        let alice = with(API_KEY, "0123456789abcdef");
        std::fs::write(file.path(), "alice:short").unwrap();
        keys.reload().unwrap_err();
        assert!(keys.name_of(&alice).is_some());
        std::fs::write(file.path(), "bob:fedcba9876543210").unwrap();
        assert_eq!(keys.reload().unwrap(), 1);
        assert!(keys.name_of(&alice).is_none());
    }

    #[test]
    fn the_admin_token_must_be_the_one() {
        let access = Access::new(Some("secret"), None);
        let admin = |value: &str| access.is_admin(&with(header::AUTHORIZATION, value));
        assert!(admin("Bearer secret") && admin("bearer secret"));
        assert!(!admin("Bearer secret2") && !admin("Basic secret") && !admin("secret"));
        assert!(!access.is_admin(&HeaderMap::new()) && !access.is_admin(&with(API_KEY, "secret")));
    }
}
