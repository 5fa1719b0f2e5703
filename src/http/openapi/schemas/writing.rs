//! Answers of OpenAI's routes for text, and of vLLM's beside them.

use serde_json::Value;
use utoipa::ToSchema;

/// OpenAI's answer to a chat. As server-sent events: chunks with a `delta` in the message's place.
#[derive(ToSchema)]
pub(super) struct ChatCompletion {
    id: String,
    /// `chat.completion`
    object: String,
    /// Seconds since 1970.
    created: u64,
    model: String,
    /// `model@version`
    system_fingerprint: String,
    choices: Vec<ChatChoice>,
    usage: TokenUsage,
}

#[derive(ToSchema)]
struct ChatChoice {
    index: usize,
    message: ChatAnswer,
    #[schema(value_type = Option<Object>)]
    logprobs: Option<Value>,
    /// `stop`, `length`, or `tool_calls` where tools are called and the answer ended by itself
    finish_reason: String,
}

#[derive(ToSchema)]
struct ChatAnswer {
    /// `assistant`
    role: String,
    /// Nothing where tools are called and nothing is said beside.
    content: Option<String>,
    /// There only where tools are called. In a stream each of them comes whole, with its `index`.
    #[schema(nullable = false)]
    tool_calls: Option<Vec<ToolCall>>,
    /// Always null.
    refusal: Option<String>,
}

#[derive(ToSchema)]
struct ToolCall {
    /// `call_…`; nine letters and digits where the model is one of Mistral's.
    id: String,
    /// `function`
    r#type: String,
    function: CalledFunction,
}

#[derive(ToSchema)]
struct CalledFunction {
    name: String,
    /// A JSON object as text. Whether it is as the tool's `parameters` say is the model's doing: nothing sees to it.
    arguments: String,
}

/// OpenAI's answer to a prompt. As server-sent events: chunks of the same form.
#[derive(ToSchema)]
pub(super) struct Completion {
    id: String,
    /// `text_completion`
    object: String,
    created: u64,
    model: String,
    /// `model@version`
    system_fingerprint: String,
    choices: Vec<CompletionChoice>,
    usage: TokenUsage,
}

#[derive(ToSchema)]
struct CompletionChoice {
    index: usize,
    text: String,
    #[schema(value_type = Option<Object>)]
    logprobs: Option<Value>,
    /// `stop` or `length`
    finish_reason: String,
}

#[derive(ToSchema)]
struct TokenUsage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
}

/// A prompt's tokens.
#[derive(ToSchema)]
pub(super) struct Tokenized {
    count: usize,
    /// Tokens of prompt and answer together.
    max_model_len: usize,
    tokens: Vec<u32>,
    token_strs: Option<Vec<String>>,
}

/// The text of tokens.
#[derive(ToSchema)]
pub(super) struct Detokenized {
    prompt: String,
}
