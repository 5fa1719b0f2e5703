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
    #[schema(value_type = Object)]
    message: Value,
    #[schema(value_type = Option<Object>)]
    logprobs: Option<Value>,
    /// `stop` or `length`
    finish_reason: String,
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
