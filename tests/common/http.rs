//! A client as tests want it: every answer as status, headers and JSON, and streams event by event.

use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

/// No answer takes this long but a promote that waits.
const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    pub(crate) url: String,
}

#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    /// The body when it is JSON, else its text as a string.
    pub(crate) body: Value,
}

impl Client {
    /// A client with connections of its own.
    pub(crate) fn new(url: &str) -> Client {
        // Another test may have installed one already; any will do.
        let _already = rustls::crypto::ring::default_provider().install_default();
        let builder = reqwest::Client::builder().no_proxy().tls_certs_only(std::iter::empty()).timeout(TIMEOUT);
        Client { http: builder.build().unwrap(), url: url.to_owned() }
    }

    /// As another client, with other connections.
    pub(crate) fn another(&self) -> Client {
        Client::new(&self.url)
    }

    pub(crate) fn address(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        answered(self.request(Method::GET, path)).await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        answered(self.request(Method::POST, path).json(&body)).await.unwrap()
    }

    pub(crate) async fn post_bytes(&self, path: &str, kind: &str, body: impl Into<reqwest::Body>) -> Answer {
        answered(self.request(Method::POST, path).header(CONTENT_TYPE, kind).body(body)).await.unwrap()
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        answered(self.request(Method::DELETE, path)).await.unwrap()
    }

    /// Sends one image; an error only when no answer came.
    pub(crate) async fn try_image(&self, model: &str, png: &[u8]) -> reqwest::Result<Answer> {
        let request = self.request(Method::POST, &format!("/models/{model}/infer"));
        answered(request.header(CONTENT_TYPE, "image/png").body(png.to_vec())).await
    }

    pub(crate) async fn image(&self, model: &str, png: &[u8]) -> Answer {
        self.try_image(model, png).await.unwrap()
    }

    pub(crate) async fn try_texts(&self, model: &str, texts: &[&str]) -> reqwest::Result<Answer> {
        let request = self.request(Method::POST, &format!("/models/{model}/infer"));
        answered(request.json(&json!({ "inputs": texts }))).await
    }

    pub(crate) async fn texts(&self, model: &str, texts: &[&str]) -> Answer {
        self.try_texts(model, texts).await.unwrap()
    }

    pub(crate) async fn promote(&self, version: &str, body: Value) -> Answer {
        self.post(&format!("/models/{version}/promote"), body).await
    }

    /// A model as `GET /models/{ref}` tells it.
    pub(crate) async fn model(&self, name: &str) -> Value {
        self.get(&format!("/models/{name}")).await.expect(200).body
    }

    /// The live version of a model.
    pub(crate) async fn live(&self, name: &str) -> String {
        self.model(name).await["live"]["version"].as_str().unwrap_or("nothing").to_owned()
    }

    pub(crate) async fn rollout(&self, id: &str) -> Value {
        self.get(&format!("/admin/rollouts/{id}")).await.expect(200).body
    }

    pub(crate) async fn memory(&self) -> Value {
        self.get("/admin/memory").await.expect(200).body
    }

    pub(crate) async fn reserved(&self) -> u64 {
        self.memory().await["reserved"].as_u64().unwrap()
    }

    /// Opens a stream of events.
    pub(crate) async fn stream(&self, method: Method, path: &str, body: Value) -> Events {
        let request = self.request(method, path).header(ACCEPT, "text/event-stream");
        let request = if body.is_null() { request } else { request.json(&body) };
        Events::open(request).await
    }

    /// Promotes with a stream of progress.
    pub(crate) async fn follow(&self, version: &str, body: Value) -> Events {
        self.stream(Method::POST, &format!("/models/{version}/promote"), body).await
    }
}

pub(crate) async fn answered(request: RequestBuilder) -> reqwest::Result<Answer> {
    let response = request.send().await?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let bytes = response.bytes().await?;
    let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| text());
    Ok(Answer { status, headers, body })
}

impl Answer {
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "{}", self.body);
        self
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The version that the stamp names.
    pub(crate) fn version(&self) -> &str {
        self.header("x-cutover-version")
    }

    /// `error.kind` of the native dialect.
    pub(crate) fn kind(&self) -> &str {
        self.body["error"]["kind"].as_str().unwrap_or("")
    }

    pub(crate) fn message(&self) -> &str {
        self.body["error"]["message"].as_str().unwrap_or("")
    }

    pub(crate) fn phase(&self) -> &str {
        self.body["phase"].as_str().unwrap_or("")
    }

    pub(crate) fn id(&self) -> String {
        self.body["id"].as_str().unwrap_or_else(|| panic!("not a rollout: {}", self.body)).to_owned()
    }

    /// The best label of the first output.
    pub(crate) fn label(&self) -> &str {
        self.body["outputs"][0]["labels"][0]["label"].as_str().unwrap_or("")
    }
}

/// A stream of server-sent events.
pub(crate) struct Events {
    response: reqwest::Response,
    buffer: Vec<u8>,
}

#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) id: Option<i64>,
    pub(crate) name: String,
    pub(crate) data: Value,
}

impl Events {
    pub(crate) async fn open(request: RequestBuilder) -> Events {
        let response = request.send().await.unwrap();
        let (status, kind) = (response.status(), response.headers().get(CONTENT_TYPE).cloned());
        let is_stream = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        if !is_stream {
            panic!("not a stream but {status}: {}", response.text().await.unwrap());
        }
        Events { response, buffer: Vec::new() }
    }

    /// The next event; none when the stream has ended.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                if let Some(event) = parse(std::str::from_utf8(&block).unwrap()) {
                    return Some(event);
                }
                continue;
            }
            match tokio::time::timeout(super::PATIENCE, self.response.chunk()).await.expect("an event in time") {
                Ok(Some(bytes)) => self.buffer.extend_from_slice(&bytes),
                // A server that was killed closes the connection in the middle of a stream.
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Reads until an event fits; fails when the stream ends before.
    pub(crate) async fn until(&mut self, what: &str, mut fits: impl FnMut(&Event) -> bool) -> Event {
        loop {
            match self.next().await {
                Some(event) if fits(&event) => return event,
                Some(_) => {}
                None => panic!("the stream ended before {what}"),
            }
        }
    }

    /// Reads until the rollout is in this phase; the rollout.
    pub(crate) async fn phase(&mut self, phase: &str) -> Value {
        self.until(phase, |event| event.data["phase"] == phase).await.data
    }
}

/// A comment alone is no event.
fn parse(block: &str) -> Option<Event> {
    let field = |name: &str| block.lines().find_map(|line| Some(line.strip_prefix(name)?.trim_start().to_owned()));
    let data = field("data:")?;
    Some(Event {
        id: field("id:").and_then(|id| id.parse().ok()),
        name: field("event:").unwrap_or_else(|| "message".into()),
        data: serde_json::from_str(&data).unwrap(),
    })
}
