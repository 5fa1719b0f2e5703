//! Texts as a server streams them.

use reqwest::Method;
use serde_json::{Value, json};

use super::Client;

/// A text as it was streamed.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Streamed {
    /// What the header said.
    pub(crate) version: String,
    pub(crate) text: String,
    /// Every version that wrote at it, in order.
    pub(crate) versions: Vec<String>,
    pub(crate) reason: Option<String>,
    pub(crate) error: Option<String>,
    /// The stream ended as it should.
    pub(crate) done: bool,
}

pub(crate) fn order(model: &str, prompt: &str, most: usize) -> Value {
    json!({ "model": model, "prompt": prompt, "max_tokens": most, "temperature": 0, "ignore_eos": true, "stream": true })
}

/// Begins to read a stream, and comes back once the first piece is there.
pub(crate) async fn begun(client: &Client, order: Value) -> tokio::task::JoinHandle<Streamed> {
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let client = client.another();
    let text = tokio::spawn(async move { streamed(&client, order, move || begun.send(()).unwrap()).await });
    has_begun.await.unwrap();
    text
}

/// Reads a whole stream. `began` is told once the first piece is there.
pub(crate) async fn streamed(client: &Client, order: Value, began: impl FnOnce()) -> Streamed {
    let response = client.request(Method::POST, "/v1/completions").json(&order).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let version = response.headers()["x-cutover-version"].to_str().unwrap().to_owned();
    let mut read = Streamed { version, ..Streamed::default() };
    let (mut bytes, mut began, mut response) = (Vec::new(), Some(began), response);
    while let Some(piece) = response.chunk().await.unwrap() {
        bytes.extend_from_slice(&piece);
        if let Some(began) = began.take() {
            began();
        }
    }
    let text = String::from_utf8(bytes).unwrap();
    for data in text.lines().filter_map(|line| line.strip_prefix("data: ")) {
        assert!(!read.done, "something after the end");
        if data == "[DONE]" {
            read.done = true;
            continue;
        }
        let chunk: Value = serde_json::from_str(data).unwrap();
        if let Some(error) = chunk.get("error") {
            read.error = Some(error["message"].as_str().unwrap().to_owned());
            continue;
        }
        let version = chunk["system_fingerprint"].as_str().unwrap().to_owned();
        if read.versions.last() != Some(&version) {
            read.versions.push(version);
        }
        read.text.push_str(chunk["choices"][0]["text"].as_str().unwrap());
        read.reason = chunk["choices"][0]["finish_reason"].as_str().map(str::to_owned).or(read.reason);
    }
    read
}

pub(crate) async fn alone(client: &Client, model: &str, prompt: &str, most: usize) -> String {
    streamed(client, order(model, prompt, most), || ()).await.text
}
