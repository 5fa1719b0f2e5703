//! How a rollout is told: as one answer when the wanted point is reached, or as a stream of events.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};

use super::reply::Failure;
use crate::error::{Error, Result};
use crate::rollout::state::Phase;
use crate::rollout::{Handle, View};

/// How far the caller wants to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Wait {
    /// Not at all: 202 and where to look.
    None,
    /// Until it has passed its gate.
    Ready,
    /// Until it is live.
    Switched,
    /// Until the rollout has ended.
    Settled,
}

impl Wait {
    fn is_reached(self, view: &View) -> bool {
        match self {
            Wait::None => true,
            Wait::Ready => {
                matches!(view.phase, Phase::Ready | Phase::Canary | Phase::Experiment)
                    || view.switched
                    || view.phase.is_end()
            }
            Wait::Switched => view.switched || view.phase.is_end(),
            Wait::Settled => view.phase.is_end(),
        }
    }
}

/// Answers once `wait` is reached.
pub(super) async fn answer(mut handle: Handle, wait: Wait) -> Response {
    if wait == Wait::None {
        let view = handle.now();
        let location = format!("/admin/rollouts/{}", view.record.id);
        let mut response = (StatusCode::ACCEPTED, Json(view.as_ref())).into_response();
        if let Ok(location) = HeaderValue::from_str(&location) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        return response;
    }
    match handle.until(|view| wait.is_reached(view)).await {
        Ok(view) => finished(&view),
        Err(error) => Failure::native(error).into_response(),
    }
}

/// Waits until `wait` is reached.
///
/// # Errors
/// What kept it from being reached.
pub(super) async fn reached(mut handle: Handle, wait: Wait) -> Result<()> {
    outcome(handle.until(|view| wait.is_reached(view)).await?.as_ref())
}

/// A view as the answer to the request that waited for it.
fn finished(view: &View) -> Response {
    match outcome(view) {
        Ok(()) => Json(view).into_response(),
        Err(error) => Failure::native(error).into_response(),
    }
}

/// What did not come to what was asked for is an error; its details name the rollout.
fn outcome(view: &View) -> Result<()> {
    match (view.phase, &view.error) {
        (Phase::Refused | Phase::Failed | Phase::Aborted, Some(error)) => Err(named(error.clone(), view)),
        (Phase::Refused | Phase::Failed | Phase::Aborted | Phase::Interrupted, None) => Err(ended(view)),
        // Before it was live: it was given a share, and that was taken back.
        (Phase::RolledBack, _) if !view.switched => Err(ended(view)),
        _ => Ok(()),
    }
}

/// What came to nothing, as an error.
fn ended(view: &View) -> Error {
    let record = &view.record;
    let reason = record.reason.as_deref().unwrap_or("no reason was given");
    let message = format!("rollout {} ended {}: {reason}", record.id, record.phase);
    Error::Conflict { message, details: json!({ "rollout": record.id }) }
}

/// Adds the rollout's id to what the gate found.
fn named(error: Error, view: &View) -> Error {
    match error {
        Error::Gate { version, failed, checks, mut details } => {
            details["rollout"] = json!(view.record.id);
            details["gate"] = json!(view.record.gate);
            Error::Gate { version, failed, checks, details }
        }
        other => other,
    }
}

/// Streams what changes: `progress` events, then `done` or `error`, which hold the whole rollout. A `progress` event
/// leaves `gate` out when the one before it had the same checks, and `diff` when that was the same.
pub(super) fn events(handle: Handle, wait: Wait) -> Response {
    // A stream is a way of waiting; who wants none of it still gets all of it.
    let wait = if wait == Wait::None { Wait::Settled } else { wait };
    let first = handle.now();
    let stream = stream::unfold(Step::Show(handle, first), move |step| async move {
        match step {
            Step::Show(handle, view) if wait.is_reached(&view) => {
                Some((Ok::<_, Infallible>(last(&view)), Step::Over(handle)))
            }
            Step::Show(handle, view) => {
                let mut told = Told::default();
                Some((Ok(event("progress", &told.news(&view)?)), Step::Wait(handle, told)))
            }
            Step::Wait(mut handle, mut told) => loop {
                let view = handle.changed().await?;
                if wait.is_reached(&view) {
                    break Some((Ok(last(&view)), Step::Over(handle)));
                }
                if let Some(news) = told.news(&view) {
                    break Some((Ok(event("progress", &news)), Step::Wait(handle, told)));
                }
            },
            Step::Over(_) => None,
        }
    });
    Sse::new(stream).keep_alive(KeepAlive::default()).into_response()
}

enum Step {
    Show(Handle, Arc<View>),
    Wait(Handle, Told),
    Over(#[expect(dead_code, reason = "keeps the watch open until the stream is dropped")] Handle),
}

/// What a stream has told so far.
#[derive(Default)]
struct Told {
    /// Without the gate's checks, and what it changes.
    rollout: Value,
    /// What it changes.
    diff: Value,
    checks: usize,
}

impl Told {
    /// The rollout as it is now, less what was told before; `None` when that is all of it.
    fn news(&mut self, view: &View) -> Option<Value> {
        let mut rollout = serde_json::to_value(view).unwrap_or_default();
        let gate = rollout.as_object_mut().and_then(|fields| fields.remove("gate"));
        let checks = std::mem::replace(&mut self.checks, view.record.gate.len());
        let more_checks = checks != self.checks;
        let diff = rollout.as_object_mut().and_then(|fields| fields.remove("diff")).unwrap_or_default();
        let other_diff = diff != self.diff;
        if !more_checks && !other_diff && rollout == self.rollout {
            return None;
        }
        self.rollout = rollout.clone();
        if other_diff {
            rollout["diff"] = diff.clone();
            self.diff = diff;
        }
        if let (true, Some(gate)) = (more_checks, gate) {
            rollout["gate"] = gate;
        }
        Some(rollout)
    }
}

fn last(view: &View) -> Event {
    match outcome(view) {
        Ok(()) => event("done", &serde_json::to_value(view).unwrap_or_default()),
        Err(error) => {
            let kind = error.kind();
            let mut body = super::reply::body(super::Dialect::Native, kind, &error.to_string(), error.details());
            body["rollout"] = serde_json::to_value(view).unwrap_or_default();
            event("error", &body)
        }
    }
}

fn event(name: &str, data: &serde_json::Value) -> Event {
    Event::default().event(name).data(data.to_string())
}

/// Whether the client asked for a stream.
pub(super) fn wants_events(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/event-stream"))
}
