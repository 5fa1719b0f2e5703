//! `/v1/completions`.
//!
//! Source: OpenAI API reference, "Completions".

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::fits_its_model;
use super::others::{Sent, unsupported};
use super::spelled::{Characters, Spelled};
use super::stream::{Form, Manner, respond};
use super::writing::{Rules, Shape, begin};
use crate::error::{Error, Result};
use crate::http::App;
use crate::http::body::Object;
use crate::http::received::Received;
use crate::http::reply::{Dialect, Failure};
use crate::process::{RawPrompt, Writer};
use crate::value::Texts;

/// Tokens where nothing is said, as OpenAI has it.
pub(in crate::http) const DEFAULT_MOST: usize = 16;

/// OpenAI's request for a completion; other fields of theirs are taken and have no effect.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct CompletionRequest {
    /// A model, or `model@version`.
    model: String,
    #[schema(schema_with = crate::http::openapi::openai_prompt)]
    prompt: Texts,
    #[serde(skip)]
    shape: Shape,
    /// How likely each token was, and so many others in its place.
    #[schema(minimum = 0, maximum = 20)]
    logprobs: Option<i64>,
    /// Not supported.
    #[schema(schema_with = crate::http::openapi::nothing)]
    suffix: Option<Sent>,
    /// Each answer begins with its prompt; not together with `logprobs`. Nothing may be written after it then
    /// (`max_tokens` 0).
    #[serde(default)]
    echo: Option<bool>,
    /// Only as many as `n`.
    best_of: Option<i64>,
}

/// A prompt as a text or as token ids, or several of either.
fn prompts(prompt: Texts) -> Vec<RawPrompt> {
    match prompt {
        Texts::One(text) => vec![RawPrompt::Text(text)],
        Texts::Ids(ids) => vec![RawPrompt::Tokens(ids)],
        // Refused as a prompt of no tokens is.
        Texts::Many(texts) if texts.is_empty() => vec![RawPrompt::Tokens(Vec::new())],
        Texts::Many(texts) => texts.into_iter().map(RawPrompt::Text).collect(),
        Texts::ManyIds(lists) => lists.into_iter().map(RawPrompt::Tokens).collect(),
    }
}

pub(in crate::http) async fn answer(State(app): State<Arc<App>>, request: Request) -> Response {
    match complete(&app, request).await {
        Ok(response) => response,
        Err(failure) => failure.into_response(),
    }
}

async fn complete(app: &App, request: Request) -> Result<Response, Failure> {
    let plain = |error| Failure::new(Dialect::OpenAi, error);
    let received = Received::of(app, request).await.map_err(plain)?;
    let request = CompletionRequest::of(app, &received.body).map_err(plain)?;
    request.check().map_err(plain)?;
    let logprobs = request.alternatives().map_err(plain)?;
    let echo = request.echo();
    let CompletionRequest { model, prompt, shape, .. } = request;
    let (streams, tells_usage) = (shape.streams(), shape.tells_usage());
    let mut echoes = Vec::new();
    let answers = begin(app, Dialect::OpenAi, (&model, received), |writer| {
        let prompts = prompts(prompt);
        if echo {
            echoes = prompts.iter().map(|prompt| spelled(writer, prompt)).collect::<Result<_>>()?;
        }
        shape.ask(writer, prompts, Rules { default_most: Some(DEFAULT_MOST), may_be_none: echo, logprobs })
    })
    .await
    .map_err(|failure| *failure)?;
    let manner = Manner { streams, tells_usage, tells_logprobs: logprobs.is_some(), echoes, calls: None };
    Ok(respond(app, answers, &COMPLETION, manner).await)
}

/// A prompt as a text.
fn spelled(writer: &Writer, prompt: &RawPrompt) -> Result<String> {
    match prompt {
        RawPrompt::Text(text) => Ok(text.clone()),
        RawPrompt::Tokens(ids) => writer.decode(ids),
        RawPrompt::Chat { .. } => Err(Error::internal("a completion of a chat")),
    }
}

impl CompletionRequest {
    fn of(app: &App, body: &[u8]) -> Result<CompletionRequest> {
        let object = Object::with_ids(body)?;
        fits_its_model(app, &object)?;
        let mut shape = Shape::of(&object)?;
        shape.others.forget("echo");
        Ok(CompletionRequest { shape, ..object.read()? })
    }

    fn echo(&self) -> bool {
        self.echo.unwrap_or(false)
    }

    fn check(&self) -> Result<()> {
        if self.suffix.is_some() {
            return Err(unsupported("suffix"));
        }
        if self.echo() && self.logprobs.is_some() {
            return Err(Error::bad_param("echo", "echo is not supported together with logprobs"));
        }
        match self.best_of {
            Some(best_of) if best_of != self.shape.answers() => {
                Err(Error::bad_param("best_of", format!("best_of is {best_of}; only as many as n is supported")))
            }
            _ => Ok(()),
        }
    }

    fn alternatives(&self) -> Result<Option<usize>> {
        let wrong = |most| Error::bad_param("logprobs", format!("logprobs is {most}; 0 to 20 are possible"));
        self.logprobs.map(|most| usize::try_from(most).map_err(|_| wrong(most))).transpose()
    }
}

/// The bodies of this route.
const COMPLETION: Form = Form {
    id: "cmpl-",
    whole: "text_completion",
    chunk: "text_completion",
    choice,
    opening: None,
    delta: |index, text, logprobs| json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": null }),
    closing: |index, reason| choice(index, "", Value::Null, reason),
    logprobs,
};

fn choice(index: usize, text: &str, logprobs: Value, reason: &str) -> Value {
    json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": reason })
}

/// In the lists of the older interface. Offsets are of characters of the answer.
fn logprobs(tokens: &[Spelled], characters: &mut Characters) -> Value {
    let offsets: Vec<usize> = tokens.iter().map(|token| characters.place(token)).collect();
    let top = |token: &Spelled| -> Map<String, Value> {
        let mut all = Map::new();
        // The chosen one first: of those that are spelled alike, the first is told.
        for (spelling, bytes, logprob) in std::iter::once(&token.chosen).chain(&token.top) {
            all.entry(named(spelling, bytes)).or_insert_with(|| json!(logprob));
        }
        all
    };
    json!({
        "tokens": tokens.iter().map(|token| named(&token.chosen.0, &token.chosen.1)).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| token.chosen.2).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

/// A token as a text; one that is no text by itself by its bytes, as OpenAI has it (`bytes:\xe2\x82`).
fn named(spelling: &str, bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(_) => spelling.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |all, byte| all + &format!("\\x{byte:02x}")),
    }
}
