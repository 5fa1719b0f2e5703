//! `/v1/chat/completions`.
//!
//! Source: OpenAI API reference, "Chat completions" and "Chat completions: streaming".

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::fits_its_model;
use super::spelled::Spelled;
use super::stream::{Form, Manner, respond};
use super::writing::{Rules, Shape, begin};
use crate::error::{Error, Result};
use crate::http::App;
use crate::http::body::Object;
use crate::http::received::Received;
use crate::http::reply::{Dialect, Failure};
use crate::process::{CallReader, MOST_LOGPROBS, Message, RawPrompt, RenderOptions};
use crate::slot::WriteAsk;

/// OpenAI's request for a chat; other fields of theirs are taken and have no effect.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct ChatRequest {
    /// A model, or `model@version`.
    model: String,
    #[schema(schema_with = crate::http::openapi::openai_messages)]
    messages: Vec<Message>,
    #[serde(skip)]
    shape: Shape,
    /// Whether how likely each token was is told.
    #[serde(default)]
    logprobs: Option<bool>,
    /// And of how many others in its place.
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<i64>,
    /// For the model's chat template, which shows in which form they are called; one of a form that is not read is refused.
    #[schema(value_type = Option<Vec<Object>>)]
    tools: Option<Vec<Value>>,
    /// Only `none` and `auto`: whether a tool is called is the model's choice.
    #[schema(value_type = Option<Object>)]
    tool_choice: Option<Value>,
    /// With `false` an answer tells no more than the first of its calls.
    parallel_tool_calls: Option<bool>,
    /// Not OpenAI's: go on with the last message.
    continue_final_message: Option<bool>,
    /// Not OpenAI's: whether the template ends with what begins an answer; it does where nothing is continued.
    add_generation_prompt: Option<bool>,
    /// Not OpenAI's: more variables for the model's chat template.
    #[schema(value_type = Option<Object>)]
    chat_template_kwargs: Option<Map<String, Value>>,
}

pub(in crate::http) async fn answer(State(app): State<Arc<App>>, request: Request) -> Response {
    match chat(&app, request).await {
        Ok(response) => response,
        Err(failure) => failure.into_response(),
    }
}

async fn chat(app: &App, request: Request) -> Result<Response, Failure> {
    let plain = |error| Failure::new(Dialect::OpenAi, error);
    let received = Received::of(app, request).await.map_err(plain)?;
    let mut request = ChatRequest::of(app, &received.body).map_err(plain)?;
    let logprobs = request.alternatives().map_err(plain)?;
    request.check().map_err(plain)?;
    let shape = std::mem::take(&mut request.shape);
    let (streams, usage) = (shape.streams(), shape.tells_usage());
    let reference = std::mem::take(&mut request.model);
    let mut form = None;
    let answers = begin(app, Dialect::OpenAi, (&reference, received), |writer| {
        let only_first = request.parallel_tool_calls == Some(false);
        let (messages, options) = request.rendering();
        let calls = writer.call_reader(&options, only_first)?;
        form = calls.as_ref().map(CallReader::form);
        let prompt = RawPrompt::Chat { messages, options };
        let ask = shape.ask(writer, vec![prompt], Rules { logprobs, ..Rules::default() })?;
        Ok(WriteAsk { calls, ..ask })
    })
    .await
    .map_err(|failure| *failure)?;
    let tells_logprobs = logprobs.is_some();
    let manner = Manner { streams, tells_usage: usage, tells_logprobs, echoes: Vec::new(), calls: form };
    Ok(respond(app, answers, &CHAT, manner).await)
}

impl ChatRequest {
    fn of(app: &App, body: &[u8]) -> Result<ChatRequest> {
        let object = Object::of(body)?;
        fits_its_model(app, &object)?;
        Ok(ChatRequest { shape: Shape::of(&object)?, ..object.read()? })
    }

    fn check(&self) -> Result<()> {
        if self.messages.is_empty() {
            return Err(Error::bad_param("messages", "messages is empty; at least one is needed"));
        }
        match self.tool_choice.as_ref().map(|choice| choice.as_str()) {
            None | Some(Some("none" | "auto")) => Ok(()),
            Some(_) => {
                let message = "only none and auto are supported: that a tool is called, or which, could only be \
                               seen to by constraining what is written, which is not done here";
                Err(Error::bad_param("tool_choice", message))
            }
        }
    }

    fn alternatives(&self) -> Result<Option<usize>> {
        match (self.logprobs.unwrap_or(false), self.top_logprobs) {
            (false, None | Some(0)) => Ok(None),
            (false, Some(_)) => Err(Error::bad_param("top_logprobs", "top_logprobs needs logprobs to be true")),
            (true, most) => {
                let most = most.unwrap_or(0);
                let possible = usize::try_from(most).ok().filter(|most| *most <= MOST_LOGPROBS);
                let wrong = || {
                    Error::bad_param(
                        "top_logprobs",
                        format!("top_logprobs is {most}; 0 to {MOST_LOGPROBS} are possible"),
                    )
                };
                possible.map(Some).ok_or_else(wrong)
            }
        }
    }

    fn rendering(self) -> (Vec<Message>, RenderOptions) {
        let ChatRequest { tools, continue_final_message, add_generation_prompt, chat_template_kwargs, .. } = self;
        let tools_rest = self.tool_choice.is_some_and(|choice| choice.as_str() == Some("none"));
        let options = rendered((continue_final_message, add_generation_prompt), tools, chat_template_kwargs);
        (self.messages, RenderOptions { tools_rest, ..options })
    }
}

/// How a chat is rendered: as one that is continued, and with what begins an answer, where that is said; now.
pub(super) fn rendered(
    (continues, begins): (Option<bool>, Option<bool>),
    tools: Option<Vec<Value>>,
    variables: Option<Map<String, Value>>,
) -> RenderOptions {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let continue_final_message = continues.unwrap_or(false);
    RenderOptions {
        add_generation_prompt: begins.unwrap_or(!continue_final_message),
        continue_final_message,
        tools,
        tools_rest: false,
        variables: variables.unwrap_or_default(),
        now: now.as_secs() as i64,
    }
}

/// The bodies of this route.
const CHAT: Form = Form {
    id: "chatcmpl-",
    whole: "chat.completion",
    chunk: "chat.completion.chunk",
    choice: |index, text, logprobs, reason| {
        let message = json!({ "role": "assistant", "content": text, "refusal": null });
        json!({ "index": index, "message": message, "logprobs": logprobs, "finish_reason": reason })
    },
    opening: Some(|index| {
        let delta = json!({ "role": "assistant", "content": "" });
        json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": null })
    }),
    delta: |index, text, logprobs| json!({ "index": index, "delta": { "content": text }, "logprobs": logprobs, "finish_reason": null }),
    closing: |index, reason| json!({ "index": index, "delta": {}, "logprobs": null, "finish_reason": reason }),
    logprobs: |tokens, _| json!({ "content": tokens.iter().map(told).collect::<Vec<_>>(), "refusal": null }),
};

fn told(token: &Spelled) -> Value {
    let one =
        |spelled: &(String, Vec<u8>, f32)| json!({ "token": spelled.0, "bytes": spelled.1, "logprob": spelled.2 });
    let mut whole = one(&token.chosen);
    whole["top_logprobs"] = token.top.iter().map(one).collect();
    whole
}
