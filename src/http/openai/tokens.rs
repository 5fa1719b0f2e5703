//! `/tokenize` and `/detokenize`, as vLLM has them.
//!
//! Source: vLLM's `entrypoints/openai/protocol.py`, `TokenizeCompletionRequest`, `TokenizeChatRequest`, `DetokenizeRequest`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::chat::rendered;
use super::fits_its_model;
use crate::error::{Error, Result};
use crate::generation::Generation;
use crate::http::body::Object;
use crate::http::reply::{Dialect, Failure, put_stamp};
use crate::http::request::no_larger;
use crate::http::{App, body};
use crate::process::{Message, RawPrompt};
use crate::slot::heavy;
use crate::value::Task;

/// A text, or a chat.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct TokenizeRequest {
    /// A model, or `model@version`.
    model: String,
    prompt: Option<String>,
    #[schema(schema_with = crate::http::openapi::openai_messages_or_null)]
    messages: Option<Vec<Message>>,
    /// Whether the tokens that the version puts round a prompt are among them; they are.
    add_special_tokens: Option<bool>,
    /// For a chat: whether its template ends with what begins an answer; it does.
    add_generation_prompt: Option<bool>,
    /// For a chat, as for an answer to it.
    continue_final_message: Option<bool>,
    #[schema(value_type = Option<Vec<Object>>)]
    tools: Option<Vec<Value>>,
    #[schema(value_type = Option<Object>)]
    chat_template_kwargs: Option<Map<String, Value>>,
    /// Whether the tokens' spellings are told.
    return_token_strs: Option<bool>,
}

#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct DetokenizeRequest {
    /// A model, or `model@version`.
    model: String,
    #[schema(schema_with = crate::http::openapi::openai_tokens)]
    tokens: Vec<u32>,
}

pub(in crate::http) async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Response {
    told(asked(&app, request, |request: &TokenizeRequest| &request.model, tokens).await)
}

pub(in crate::http) async fn detokenize(State(app): State<Arc<App>>, request: Request) -> Response {
    told(asked(&app, request, |request: &DetokenizeRequest| &request.model, text).await)
}

fn told(answer: Result<Response, Failure>) -> Response {
    answer.unwrap_or_else(Failure::into_response)
}

/// What the version that serves a reference makes of a request.
async fn asked<T: serde::de::DeserializeOwned + Send + 'static>(
    app: &App,
    request: Request,
    model: impl Fn(&T) -> &String,
    answer: impl FnOnce(T, &Generation) -> Result<Value> + Send + 'static,
) -> Result<Response, Failure> {
    let plain = |error| Failure::new(Dialect::OpenAi, error);
    let bytes = body::read(request, app.limits.bounds(app.limits.max_body_bytes)).await.map_err(plain)?;
    let object = Object::of(&bytes).map_err(plain)?;
    fits_its_model(app, &object).map_err(plain)?;
    let request: T = object.read().map_err(plain)?;
    let target = app.registry.resolve(model(&request)).map_err(plain)?;
    super::does(Task::Generate, "write text")(&target).map_err(plain)?;
    let admission = target.slot.admit(target.version.as_deref(), None).map_err(plain)?;
    let generation = admission.generation();
    let stamp = generation.stamp.clone();
    let stamped = |error| Failure { error, dialect: Dialect::OpenAi, stamp: Some(stamp.clone()) };
    no_larger(bytes.len(), generation).map_err(stamped)?;
    drop(bytes);
    // A chat's template may take long, however short it is: as everything here, it is kept off the threads that serve connections.
    let body = heavy(generation, move |generation| answer(request, generation)).await.map_err(stamped)?;
    let mut response = Json(body).into_response();
    put_stamp(&mut response, &stamp);
    Ok(response)
}

/// Of a prompt however long: whether it fits is what is to be found out.
fn tokens(request: TokenizeRequest, generation: &Generation) -> Result<Value> {
    let writer = generation.processor.writer()?;
    let TokenizeRequest { prompt, messages, add_special_tokens, add_generation_prompt, continue_final_message, .. } =
        request;
    let ids = match (prompt, messages) {
        (Some(text), None) if add_special_tokens.unwrap_or(true) => writer.tokens(&RawPrompt::Text(text))?,
        (Some(text), None) => writer.tokens_bare(&text)?,
        (None, Some(messages)) => {
            let manner = (continue_final_message, add_generation_prompt);
            let options = rendered(manner, request.tools, request.chat_template_kwargs);
            writer.tokens(&RawPrompt::Chat { messages, options })?
        }
        _ => return Err(Error::bad_param("prompt", "either prompt or messages is needed")),
    };
    let spell = || ids.iter().map(|id| writer.spelling(*id)).collect::<Vec<_>>();
    let spelled = request.return_token_strs.unwrap_or(false).then(spell);
    Ok(json!({ "count": ids.len(), "max_model_len": writer.context(), "tokens": ids, "token_strs": spelled }))
}

/// Of as many as a text may have that is taken here, or the context takes several times: what is told may be a hundred times as long.
fn text(request: DetokenizeRequest, generation: &Generation) -> Result<Value> {
    const CONTEXTS: usize = 4;
    let writer = generation.processor.writer()?;
    let most = writer.context().saturating_mul(CONTEXTS).max(generation.limits.max_text_bytes);
    if request.tokens.len() > most {
        let got = request.tokens.len() as u64;
        return Err(Error::TooLarge { what: "number of tokens", got, limit: most as u64 });
    }
    Ok(json!({ "prompt": writer.decode(&request.tokens)? }))
}
