//! The HTTP client that every command shares: where the server is, the token, errors as facts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Response, Url};
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use rustls_platform_verifier::BuilderVerifierExt as _;
use serde_json::Value;

use super::output::{Failure, Refusal};
use super::sse;

/// The largest JSON answer that is read: a history or a gate report is far below it.
const MAX_BODY_BYTES: usize = 256 << 20;
/// Beside `Authorization`, which holds the admin token.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// On a stream of events the server says something every 15 seconds at least, be it that it has nothing to tell.
const SILENCE: Duration = Duration::from_secs(60);
/// Reads are quick; what changes something may wait for a whole rollout and has no limit here.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Args)]
pub struct Connection {
    /// Where the server listens
    #[arg(long, value_name = "URL", env = "CUTOVER_URL", default_value = "http://127.0.0.1:8080", value_parser = parse_url)]
    pub url: Url,
    /// A file holding the bearer token of the admin routes
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// A file holding an API key, for a server whose models ask for one
    #[arg(long, value_name = "FILE", env = "CUTOVER_API_KEY_FILE")]
    pub api_key_file: Option<PathBuf>,
    /// The authority that vouches for the server's certificate, in PEM [default: those of this machine]
    #[arg(long, value_name = "FILE", env = "CUTOVER_CA_CERT")]
    pub ca_cert: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub struct ClientArgs {
    #[command(flatten)]
    pub connection: Connection,
    /// Print the server's JSON
    #[arg(long)]
    pub json: bool,
}

fn parse_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|e| format!("{e}; expected something like http://127.0.0.1:8080"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err("expected http://HOST:PORT or https://HOST:PORT".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("credentials do not belong in the URL; use --token-file".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("expected no query and no fragment".to_owned());
    }
    Ok(url)
}

impl Connection {
    /// The headers that say who asks: the admin token and the API key, where they were given. Each has its own, so that
    /// both can be sent.
    pub fn credentials(&self) -> Result<HeaderMap, Failure> {
        let mut headers = HeaderMap::new();
        if let Some(path) = &self.token_file {
            headers.insert(AUTHORIZATION, secret("--token-file", path, "Bearer ")?);
        }
        if let Some(path) = &self.api_key_file {
            headers.insert(API_KEY, secret("--api-key-file", path, "")?);
        }
        Ok(headers)
    }

    /// For those who speak TLS without `Api`: none with a plain URL.
    pub(super) fn tls(&self) -> Result<Option<Arc<ClientConfig>>, Failure> {
        if self.url.scheme() != "https" {
            return Ok(None);
        }
        let failed = |e: rustls::Error| Failure::Failed(format!("cannot set up TLS: {e}"));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(failed)?;
        let config = match &self.ca_cert {
            None => builder.with_platform_verifier().map_err(failed)?.with_no_client_auth(),
            Some(path) => {
                let mut roots = rustls::RootCertStore::empty();
                let usage = |reason: String| Failure::Usage(format!("--ca-cert {}: {reason}", path.display()));
                for certificate in CertificateDer::pem_file_iter(path).map_err(|e| usage(e.to_string()))? {
                    let certificate = certificate.map_err(|e| usage(e.to_string()))?;
                    roots.add(certificate).map_err(|e| usage(e.to_string()))?;
                }
                builder.with_root_certificates(roots).with_no_client_auth()
            }
        };
        Ok(Some(Arc::new(config)))
    }

    /// The URL's path, without a slash at its end: what every route is put behind.
    pub fn base_path(&self) -> &str {
        self.url.path().trim_end_matches('/')
    }
}

/// The certificates of a PEM file, instead of those that the machine trusts.
fn authorities(path: &Path) -> Result<Vec<reqwest::Certificate>, Failure> {
    let usage = |reason: &dyn std::fmt::Display| Failure::Usage(format!("--ca-cert {}: {reason}", path.display()));
    let pem = std::fs::read(path).map_err(|e| usage(&e))?;
    let found = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| usage(&chain(&e)))?;
    if found.is_empty() { Err(usage(&"holds no certificate in PEM")) } else { Ok(found) }
}

/// A header's value from a file with one secret in it.
fn secret(option: &str, path: &Path, prefix: &str) -> Result<HeaderValue, Failure> {
    let usage = |reason: &dyn std::fmt::Display| Failure::Usage(format!("{option} {}: {reason}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| usage(&e))?;
    let text = text.trim();
    if text.is_empty() || text.contains(char::is_whitespace) {
        return Err(usage(&"expected one secret, and nothing else"));
    }
    let mut value = HeaderValue::from_str(&format!("{prefix}{text}")).map_err(|_| usage(&"no header can carry it"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A server, as seen by the commands.
#[derive(Debug, Clone)]
pub(super) struct Api {
    http: reqwest::Client,
    base: String,
}

/// An answer that may be a document or a stream of events.
#[derive(Debug)]
pub(super) enum Reply {
    Json(Value),
    Events(Box<Events>),
}

impl Api {
    pub(super) fn new(connection: &Connection) -> Result<Api, Failure> {
        let headers = connection.credentials()?;
        // Another part of the process may have installed one already; any will do.
        let _already = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .default_headers(headers)
            .user_agent(concat!("cutover/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        if connection.url.scheme() == "http" {
            // Plain HTTP must work where no root certificates are installed.
            builder = builder.tls_certs_only(std::iter::empty());
        } else if let Some(path) = &connection.ca_cert {
            builder = builder.tls_certs_only(authorities(path)?);
        }
        let http = builder.build().map_err(|e| Failure::Failed(format!("cannot set up the client: {}", chain(&e))))?;
        let base = connection.url.as_str().trim_end_matches('/').to_owned();
        Ok(Api { http, base })
    }

    pub(super) async fn get(&self, path: &str) -> Result<Value, Failure> {
        let request = self.http.get(self.route(path)).timeout(READ_TIMEOUT).header(ACCEPT, "application/json");
        let response = self.send(request).await?;
        self.json(response).await
    }

    /// A document that is plain text.
    pub(super) async fn get_text(&self, path: &str) -> Result<String, Failure> {
        let response = self.send(self.http.get(self.route(path)).timeout(READ_TIMEOUT)).await?;
        String::from_utf8(self.body(response).await?).map_err(|e| self.protocol(&format!("not text: {e}")))
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        match self.post_accepting(path, body, "application/json").await? {
            Reply::Json(value) => Ok(value),
            Reply::Events(_) => Err(self.protocol("a stream of events where a document was asked for")),
        }
    }

    pub(super) async fn delete(&self, path: &str) -> Result<Value, Failure> {
        let request = self.http.request(Method::DELETE, self.route(path)).header(ACCEPT, "application/json");
        let response = self.send(request).await?;
        self.json(response).await
    }

    /// Posts and takes a stream of progress events, or a document from a server that has none to tell.
    pub(super) async fn post_following(&self, path: &str, body: &Value) -> Result<Reply, Failure> {
        self.post_accepting(path, body, "text/event-stream, application/json;q=0.5").await
    }

    async fn post_accepting(&self, path: &str, body: &Value, accept: &'static str) -> Result<Reply, Failure> {
        let request = self.http.request(Method::POST, self.route(path)).header(ACCEPT, accept).json(body);
        let response = self.send(request).await?;
        if is_event_stream(&response) {
            return Ok(Reply::Events(Box::new(self.events_of(response))));
        }
        self.json(response).await.map(Reply::Json)
    }

    /// Opens a stream of events, continuing after `last_id` when there is one.
    pub(super) async fn events(&self, path: &str, last_id: Option<&str>) -> Result<Events, Failure> {
        let mut request = self.http.get(self.route(path)).header(ACCEPT, "text/event-stream");
        if let Some(id) = last_id {
            request = request.header("last-event-id", id);
        }
        let response = self.send(request).await?;
        if !is_event_stream(&response) {
            return Err(self.protocol("no stream of events"));
        }
        Ok(self.events_of(response))
    }

    fn route(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn events_of(&self, response: Response) -> Events {
        Events { response, parser: sse::Parser::default(), url: self.base.clone() }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let body = self.body(response).await?;
        Err(Failure::Refused(Box::new(Refusal::read(status, &body))))
    }

    async fn json(&self, response: Response) -> Result<Value, Failure> {
        let body = self.body(response).await?;
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body).map_err(|e| self.protocol(&format!("not JSON: {e}")))
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        let lost = |error| Failure::Lost { url: self.base.clone(), reason: chain(&error) };
        while let Some(chunk) = response.chunk().await.map_err(lost)? {
            if body.len() + chunk.len() > MAX_BODY_BYTES {
                return Err(self.protocol("an answer larger than 256 MiB"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let hint = if error.is_connect() { "; --url, or CUTOVER_URL, says where the server is" } else { "" };
        Failure::Unreachable { url: self.base.clone(), reason: format!("{}{hint}", chain(error)) }
    }

    pub(super) fn protocol(&self, reason: &str) -> Failure {
        Failure::Protocol { url: self.base.clone(), reason: reason.to_owned() }
    }
}

/// A stream of events from the server.
#[derive(Debug)]
pub(super) struct Events {
    response: Response,
    parser: sse::Parser,
    url: String,
}

impl Events {
    /// The next event; `None` when the server has ended the stream.
    pub(super) async fn next(&mut self) -> Result<Option<sse::Event>, Failure> {
        loop {
            if let Some(event) = self.parser.next() {
                return Ok(Some(event));
            }
            let lost = |reason| Failure::Lost { url: self.url.clone(), reason };
            let chunk = tokio::time::timeout(SILENCE, self.response.chunk()).await;
            let chunk = chunk.map_err(|_| lost(format!("nothing came for {} s", SILENCE.as_secs())))?;
            let chunk = chunk.map_err(|e| lost(chain(&e)))?;
            let Some(chunk) = chunk else { return Ok(None) };
            self.parser.push(&chunk).map_err(|reason| Failure::Protocol { url: self.url.clone(), reason })?;
        }
    }

    /// What a stream that goes on after this one names.
    pub(super) fn last_id(&self) -> Option<&str> {
        self.parser.last_id()
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }
}

fn is_event_stream(response: &Response) -> bool {
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(|value| value.starts_with("text/event-stream"))
}

/// An error and what lies under it; reqwest's own text leaves out the cause.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let told = cause.to_string();
        if !text.contains(&told) {
            text = format!("{text}: {told}");
        }
        source = cause.source();
    }
    text
}

/// `/models/{ref}{tail}` with the reference taken literally.
pub(super) fn model_path(reference: &str, tail: &str) -> String {
    format!("/models/{}{tail}", segment(reference))
}

/// A reference that can stand in a path: dots alone would be resolved away before they are sent.
pub(super) fn parse_reference(text: &str) -> Result<String, String> {
    match text {
        "" | "." | ".." => Err("expected a model, a version, or model@version".to_owned()),
        text if text.contains('/') => {
            Err("a reference has no '/'; expected a model, a version, or model@version".to_owned())
        }
        text => Ok(text.to_owned()),
    }
}

/// One path segment: everything but unreserved characters and `@` percent-encoded.
pub(super) fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for &byte in text.as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'@' => encoded.push(byte as char),
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_taken_literally_in_a_path() {
        assert_eq!(model_path("minilm@f16", "/promote"), "/models/minilm@f16/promote");
        assert_eq!(model_path("a b?c%/ü", ""), "/models/a%20b%3Fc%25%2F%C3%BC");
    }

    #[test]
    fn a_reference_that_would_change_the_path_is_refused() {
        assert_eq!(parse_reference("minilm@f16"), Ok("minilm@f16".to_owned()));
        for bad in ["", ".", "..", "a/b", "../admin"] {
            assert!(parse_reference(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_plain_server_urls_are_taken() {
        assert_eq!(parse_url("http://localhost:1/behind/").unwrap().path(), "/behind/");
        for bad in ["localhost:8080", "ftp://x", "http://", "http://a:b@c", "http://c?x=1", "http://c#f", "unix:/x"] {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_named_with_the_reason() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let url_only =
            Connection { url: parse_url(&url).unwrap(), token_file: None, api_key_file: None, ca_cert: None };
        let api = Api::new(&url_only).unwrap();
        let message = api.get("/models").await.unwrap_err().to_string();
        assert!(
            message.contains(&url)
                && message.contains("refused")
                && message.ends_with("--url, or CUTOVER_URL, says where the server is"),
            "{message}"
        );
    }
}
