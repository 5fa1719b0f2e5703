//! OpenAI's dialect: `/v1/models`, `/v1/embeddings`, `/v1/completions`, `/v1/chat/completions`, and `/tokenize` and
//! `/detokenize` as vLLM has them beside these.
//!
//! Source: OpenAI API reference; vLLM's `entrypoints/openai/protocol.py` for what is not in it. `writing` has what chats and
//! completions ask for alike, `stream` how their answers are sent, `spelled` what is told of their tokens, `calls` what of tools that are
//! called; `fields` and `others` read what is in requests.

mod calls;
mod chat;
mod completions;
mod embeddings;
mod fields;
mod models;
mod others;
mod spelled;
mod stream;
mod tokens;
mod writing;

pub(super) use self::chat::ChatRequest;
pub(super) use self::completions::CompletionRequest;
pub(super) use self::completions::DEFAULT_MOST;
pub(super) use self::embeddings::{EmbeddingsRequest, MOST_INPUTS};
pub(super) use self::fields::Stop;
pub(super) use self::stream::collect;
pub(super) use self::tokens::{DetokenizeRequest, TokenizeRequest};
pub(super) use self::writing::{Rules, Shape, begin};
use serde::Deserialize;

use super::App;
use super::body::Object;
use super::request::fits;
use super::routes::Routes;
use crate::error::{Error, Result};
use crate::slot::Target;
use crate::value::Task;

pub(super) fn routes() -> Routes {
    Routes::default()
        .get("/v1/models", models::list)
        .get("/v1/models/{ref}", models::one)
        .post("/v1/embeddings", embeddings::answer)
        .post("/v1/completions", completions::answer)
        .post("/v1/chat/completions", chat::answer)
        .post("/tokenize", tokens::tokenize)
        .post("/detokenize", tokens::detokenize)
}

/// Refuses a body that is larger than the model takes which it names, before the rest of it is read.
fn fits_its_model(app: &App, request: &Object) -> Result<()> {
    /// Smaller ones are read as soon as the name in them.
    const SMALL: usize = 64 << 10;
    #[derive(Deserialize)]
    struct Named {
        model: String,
    }
    if request.len() <= SMALL {
        return Ok(());
    }
    let Named { model } = request.read()?;
    fits(&app.registry.resolve(&model)?.slot, request.len())
}

/// Refuses a model that does something else. One whose task nobody knows serves nothing, which its admission says.
fn does(task: Task, verb: &'static str) -> impl Fn(&Target) -> Result<()> {
    move |target| match target.slot.task() {
        None => Ok(()),
        Some(own) if own == task => Ok(()),
        Some(other) => {
            let message = format!("'{}' does not {verb}: its task is {other}", target.slot.name());
            Err(Error::bad_param("model", message))
        }
    }
}
