//! Changing versions and telling of it: the only dialect that knows the supervisor.

mod events;
mod lists;
mod order;

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::sse::{Event as SseEvent, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};

use super::reply::{About, Failure};
use super::rollout_reply::{self, Wait};
use super::routes::{Named, Routes};
use super::{App, body};
use crate::error::Result;
use crate::repository::Park;
use crate::rollout::state::Phase;
use crate::rollout::{Ahead, Answer, Handle, Released};
use order::MOST_ORDER_BYTES;
pub(super) use order::Order;

pub(super) fn routes() -> Routes {
    Routes::default()
        .delete("/models/{ref}", release)
        .get("/models/{ref}/diff", lists::diff)
        .post("/models/{ref}/stage", stage)
        .post("/models/{ref}/promote", promote)
        .post("/admin/rollback", rollback)
        .post("/admin/settle", settle)
        .get("/admin/rollouts", lists::rollouts)
        .get("/admin/rollouts/{id}", lists::rollout)
        .get("/admin/rollouts/{id}/shadow", lists::shadow)
        .post("/admin/rollouts/{id}/abort", abort)
        .get("/admin/events", events::events)
        .get("/admin/live", events::live)
        .get("/admin/memory", lists::memory)
        .post("/admin/alerts/test", test_alerts)
}

/// Lists change nothing, so they need no token and stand on every listener.
pub(super) fn lists() -> Routes {
    Routes::default().get("/models", lists::models).get("/models/{ref}", lists::model)
}

async fn stage(State(app): State<Arc<App>>, Named(reference): Named, request: Request) -> Response {
    let work = async {
        let (order, streams) = Order::read(&app, request).await?;
        let options = order.options().map_err(Failure::native)?;
        order.agrees_with(&app, &reference).await?;
        if order.park == Some(Park::Host) {
            return read_ahead(&app, &reference, order, streams).await;
        }
        let answer = app.supervisor.stage(&reference, options).await.map_err(Failure::native)?;
        told(answer, order.wait.unwrap_or(Wait::Ready), streams).await
    };
    work.await.unwrap_or_else(Failure::into_response)
}

/// Answers when the version is in host memory, or at once where that is not waited for.
async fn read_ahead(app: &App, reference: &str, order: Order, streams: bool) -> Result<Response, Failure> {
    let coming = app.supervisor.read_ahead(reference, order.actor).await.map_err(Failure::native)?;
    if order.wait == Some(Wait::None) && !streams {
        let location = [(header::LOCATION, "/admin/memory")];
        return Ok((StatusCode::ACCEPTED, location, Json(json!({ "parked": false }))).into_response());
    }
    let ahead: Ahead = coming.await.map_err(Failure::native)?;
    Ok(if streams { done(&json!(ahead)) } else { Json(ahead).into_response() })
}

async fn promote(State(app): State<Arc<App>>, Named(reference): Named, request: Request) -> Response {
    let work = async {
        let (order, streams) = Order::read(&app, request).await?;
        let order = order.parks_nothing().map_err(Failure::native)?;
        let options = order.options().map_err(Failure::native)?;
        order.agrees_with(&app, &reference).await?;
        let answer = app.supervisor.promote(&reference, options).await.map_err(Failure::native)?;
        told(answer, order.wait.unwrap_or(Wait::Switched), streams).await
    };
    work.await.unwrap_or_else(Failure::into_response)
}

async fn rollback(State(app): State<Arc<App>>, request: Request) -> Response {
    let work = async {
        let (order, streams) = Order::read(&app, request).await?;
        let order = order.parks_nothing().map_err(Failure::native)?;
        let options = order.options().map_err(Failure::native)?;
        let answer = app.supervisor.rollback(order.model.as_deref(), options).await.map_err(Failure::native)?;
        if let Answer::Rollout(handle) = &answer
            && handle.now().phase == Phase::Reclaiming
            && !handle.now().switched
        {
            return taken_back(handle.clone(), order.wait, streams).await;
        }
        // An instant one is in force already; a cold one is when it has switched.
        told(answer, order.wait.unwrap_or(Wait::Switched), streams).await
    };
    work.await.unwrap_or_else(Failure::into_response)
}

/// A version that had a share only has it no more: for whoever asked for that, this is no failure.
async fn taken_back(mut handle: Handle, wait: Option<Wait>, streams: bool) -> Result<Response, Failure> {
    let settles = wait == Some(Wait::Settled);
    let view = handle.until(|_| !settles).await.map_err(Failure::native)?;
    Ok(if streams { done(&json!(view.as_ref())) } else { Json(view.as_ref()).into_response() })
}

async fn settle(State(app): State<Arc<App>>, request: Request) -> Response {
    let work = async {
        let (order, streams) = Order::read(&app, request).await?;
        let order = order.parks_nothing().map_err(Failure::native)?;
        // What does not make sense here must make sense all the same.
        order.options().map_err(Failure::native)?;
        let answer = app.supervisor.settle(order.model.as_deref()).await.map_err(Failure::native)?;
        told(answer, order.wait.unwrap_or(Wait::Settled), streams).await
    };
    work.await.unwrap_or_else(Failure::into_response)
}

async fn abort(State(app): State<Arc<App>>, Named(id): Named, request: Request) -> Response {
    let work = async {
        let order = Order::read(&app, request).await?.0.parks_nothing().map_err(Failure::native)?;
        let options = order.options().map_err(Failure::native)?;
        if order.model.is_some() {
            let view = app.supervisor.rollout(&id).await.map_err(Failure::native)?;
            order.agrees(&view.record.model).map_err(Failure::native)?;
        }
        match app.supervisor.abort(&id, options).await.map_err(Failure::native)? {
            Answer::Rollout(mut handle) => {
                // It was asked to end aborted, so that is no error here.
                let view = handle.until(|view| view.phase.is_end()).await.map_err(Failure::native)?;
                Ok(Json(view.as_ref()).into_response())
            }
            Answer::Already { model, version } => Ok(Json(already(&model, &version)).into_response()),
        }
    };
    work.await.unwrap_or_else(|failure: Failure| failure.into_response())
}

async fn release(State(app): State<Arc<App>>, Named(reference): Named) -> Response {
    let work = async {
        match app.supervisor.release(&reference).await.map_err(Failure::native)? {
            Released::Ends(mut handle) => {
                let view = handle.until(|view| view.phase.is_end()).await.map_err(Failure::native)?;
                Ok(Json(view.as_ref()).into_response())
            }
            Released::NotResident { model, version, unparked } => {
                let mut body = json!({ "model": model, "version": version, "resident": false, "unchanged": !unparked });
                if unparked {
                    body["unparked"] = json!(true);
                }
                Ok(Json(body).into_response())
            }
            Released::Forgotten { model } => Ok(Json(json!({ "model": model, "forgotten": true })).into_response()),
        }
    };
    work.await.unwrap_or_else(|failure: Failure| failure.into_response())
}

async fn told(answer: Answer, wait: Wait, streams: bool) -> Result<Response, Failure> {
    let about = match &answer {
        Answer::Rollout(handle) => {
            let record = &handle.now().record;
            About { model: record.model.clone(), version: record.to.clone() }
        }
        Answer::Already { model, version } => About { model: model.clone(), version: version.clone() },
    };
    let mut response = match answer {
        Answer::Rollout(handle) if streams => rollout_reply::events(handle, wait),
        Answer::Rollout(handle) => rollout_reply::answer(handle, wait).await,
        Answer::Already { model, version } if streams => done(&already(&model, &version)),
        Answer::Already { model, version } => Json(already(&model, &version)).into_response(),
    };
    response.extensions_mut().insert(about);
    Ok(response)
}

/// A stream that has come to its end already.
fn done(body: &Value) -> Response {
    let done = SseEvent::default().event("done").data(body.to_string());
    Sse::new(stream::iter([Ok::<_, Infallible>(done)])).into_response()
}

/// It was so before: 200, and nothing changed.
fn already(model: &str, version: &str) -> Value {
    json!({ "model": model, "to": version, "phase": "settled", "unchanged": true })
}

/// The body of `alerts/test`.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TestOrder {
    /// Only this receiver; all of them where it is not said.
    target: Option<String>,
}

/// Answers with what each receiver said: that one does not take it is what was asked, and no error here.
async fn test_alerts(State(app): State<Arc<App>>, request: Request) -> Response {
    let work = async {
        let bytes = body::read(request, app.limits.bounds(MOST_ORDER_BYTES)).await.map_err(Failure::native)?;
        let order: TestOrder = body::json_or_default(&bytes).map_err(Failure::native)?;
        let tried =
            app.telling.test(order.target.as_deref(), crate::rollout::now_ms()).await.map_err(Failure::native)?;
        Ok(Json(json!({ "alerts": tried })).into_response())
    };
    work.await.unwrap_or_else(|failure: Failure| failure.into_response())
}
