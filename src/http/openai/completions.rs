//! `/v1/completions`.
//!
//! Source: OpenAI API reference, "Completions".

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::stream::{Form, Spelled, respond};
use super::writing::{Shape, begin, refuse};
use crate::error::{Error, Result};
use crate::http::reply::{Dialect, Failure};
use crate::http::{App, body};
use crate::process::RawPrompt;

/// Tokens where nothing is said, as OpenAI has it.
const DEFAULT_MOST: usize = 16;

/// OpenAI's request for a completion; other fields of theirs are taken and have no effect.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct CompletionRequest {
    /// A model, or `model@version`.
    model: String,
    #[schema(schema_with = crate::http::openapi::openai_prompt)]
    prompt: Prompt,
    #[serde(flatten)]
    shape: Shape,
    /// How likely each token was, and so many others in its place.
    #[schema(minimum = 0, maximum = 20)]
    logprobs: Option<i64>,
    /// Not supported.
    #[schema(schema_with = crate::http::openapi::nothing)]
    suffix: Option<Value>,
    /// Not supported.
    #[serde(default)]
    echo: bool,
    /// Only as many as `n`.
    best_of: Option<i64>,
}

/// One prompt: a text, or token ids.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "prompt is a string or a list of token ids; a list may hold one of either")]
enum Prompt {
    One(String),
    Tokens(Vec<u32>),
    Listed([String; 1]),
    ListedTokens([Vec<u32>; 1]),
}

pub(in crate::http) async fn answer(State(app): State<Arc<App>>, request: Request) -> Response {
    match complete(&app, request).await {
        Ok(response) => response,
        Err(failure) => failure.into_response(),
    }
}

async fn complete(app: &App, request: Request) -> Result<Response, Failure> {
    let plain = |error| Failure::new(Dialect::OpenAi, error);
    let bytes = body::read(request, app.limits.bounds(app.limits.max_body_bytes)).await.map_err(plain)?;
    let request: CompletionRequest = body::json(&bytes).map_err(plain)?;
    request.check().map_err(plain)?;
    let logprobs = request.alternatives().map_err(plain)?;
    let CompletionRequest { model, prompt, shape, .. } = request;
    let (streams, usage) = (shape.streams(), shape.tells_usage());
    let answers = begin(app, (&model, bytes.len()), |writer| {
        let prompt = match prompt {
            Prompt::One(text) | Prompt::Listed([text]) => RawPrompt::Text(text),
            Prompt::Tokens(ids) | Prompt::ListedTokens([ids]) => RawPrompt::Tokens(ids),
        };
        shape.ask(writer, prompt, (Some(DEFAULT_MOST), logprobs))
    })
    .map_err(|failure| *failure)?;
    Ok(respond(app, answers, &COMPLETION, (streams, usage, logprobs.is_some())).await)
}

impl CompletionRequest {
    fn check(&self) -> Result<()> {
        refuse("suffix", &self.suffix)?;
        if self.echo {
            return Err(Error::bad_param("echo", "echo is not supported"));
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

/// In the lists of the older interface; `before`: bytes of text that came before.
fn logprobs(tokens: &[Spelled], before: usize) -> Value {
    let mut offset = before;
    let mut offsets = Vec::with_capacity(tokens.len());
    for token in tokens {
        offsets.push(offset);
        offset += token.chosen.1.len();
    }
    let top = |token: &Spelled| -> Map<String, Value> {
        let own = std::iter::once(&token.chosen).chain(&token.top);
        own.map(|(spelling, _, logprob)| (spelling.clone(), json!(logprob))).collect()
    };
    json!({
        "tokens": tokens.iter().map(|token| &token.chosen.0).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| token.chosen.2).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}
