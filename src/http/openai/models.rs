//! `/v1/models`.
//!
//! Source: OpenAI API reference, "Models".

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::http::App;
use crate::http::reply::{Dialect, Failure};
use crate::http::routes::Named;
use crate::slot::Slot;

pub(super) async fn list(State(app): State<Arc<App>>) -> Response {
    let data: Vec<Value> = app.registry.slots().values().map(|slot| card(slot.name(), slot)).collect();
    Json(json!({ "object": "list", "data": data })).into_response()
}

pub(super) async fn one(State(app): State<Arc<App>>, Named(reference): Named) -> Response {
    match app.registry.resolve(&reference) {
        Ok(target) => Json(card(&reference, &target.slot)).into_response(),
        Err(error) => Failure::new(Dialect::OpenAi, error).into_response(),
    }
}

fn card(id: &str, slot: &Slot) -> Value {
    let route = slot.route();
    let version = route.as_ref().map(|route| route.live.version());
    // Of a model that serves nothing there is nothing yet.
    let since = route.as_ref().and_then(|route| route.live.resident_since.duration_since(UNIX_EPOCH).ok());
    let created = since.unwrap_or_default().as_secs();
    let task = slot.task();
    let mut card = json!({ "id": id, "object": "model", "created": created, "owned_by": "cutover", "task": task, "version": version });
    // As vLLM tells it.
    if let Some(writer) = route.as_ref().and_then(|route| route.live.processor.writer().ok()) {
        card["max_model_len"] = json!(writer.context());
    }
    card
}
