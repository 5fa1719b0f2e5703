//! Changing versions and telling of it: the only dialect that knows the supervisor.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;

use super::reply::{About, Failure};
use super::rollout_reply::{self, Wait};
use super::routes::{Asked, Named, Routes};
use super::{App, body};
use crate::error::{Error, Result};
use crate::ledger::Event;
use crate::repository::{CanaryConfig, Park, duration};
use crate::rollout::state::Phase;
use crate::rollout::{Ahead, Answer, Handle, Options, Released};

pub(super) fn routes() -> Routes {
    Routes::default()
        .delete("/models/{ref}", release)
        .get("/models/{ref}/diff", diff)
        .post("/models/{ref}/stage", stage)
        .post("/models/{ref}/promote", promote)
        .post("/admin/rollback", rollback)
        .post("/admin/settle", settle)
        .get("/admin/rollouts", rollouts)
        .get("/admin/rollouts/{id}", rollout)
        .get("/admin/rollouts/{id}/shadow", shadow)
        .post("/admin/rollouts/{id}/abort", abort)
        .get("/admin/events", events)
        .get("/admin/live", live)
        .get("/admin/memory", memory)
        .post("/admin/alerts/test", test_alerts)
}

/// Lists change nothing, so they need no token and stand on every listener.
pub(super) fn lists() -> Routes {
    Routes::default().get("/models", models).get("/models/{ref}", model)
}

/// The body of stage, promote, rollback, settle and abort; each takes what makes sense for it.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Order {
    /// Which model, where the path does not say it and several are served. Beside a path that does, the same one.
    model: Option<String>,
    /// How long the previous version stays resident after the switch: `90s`, `5m`, `1h30m`; a year at most.
    #[schema(pattern = "^(0|(?=[0-9])([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?)$")]
    observe: Option<String>,
    #[schema(inline)]
    wait: Option<Wait>,
    /// For the record.
    reason: Option<String>,
    /// Who orders it, for the record.
    actor: Option<String>,
    /// Let a version serve that clients of the live one could not rely on.
    #[serde(default)]
    accept_contract_change: bool,
    /// Percent of requests that it answers step by step before it answers all, instead of what the model says; `[]`: all at once.
    #[schema(schema_with = super::openapi::percentages)]
    canary: Option<Vec<f64>>,
    /// How long each step lasts.
    #[schema(pattern = "^(?=.*[1-9])(?=[0-9])([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$")]
    canary_step: Option<String>,
    /// Or until it has answered so many requests in it.
    #[schema(minimum = 1)]
    canary_requests: Option<u64>,
    /// By what clients stay with the version that answered them: `request`, `api-key` or `header:<name>`.
    #[schema(pattern = "^(request|api-key|header:.+)$")]
    sticky: Option<String>,
    /// Of requests, the share that the other version computes too, for comparison.
    #[schema(minimum = 0, maximum = 1)]
    shadow: Option<f64>,
    /// For `stage` alone, which has a body of its own in the description.
    #[schema(ignore)]
    park: Option<Park>,
}

const MOST_ORDER_BYTES: usize = 64 << 10;

impl Order {
    async fn read(app: &App, request: Request) -> Result<(Order, bool), Failure> {
        let streams = rollout_reply::wants_events(request.headers());
        if let Some(query) = request.uri().query().filter(|query| !query.is_empty()) {
            // It was to change how traffic moves, and would be lost in silence.
            let message = format!("'?{query}' means nothing here: what is ordered stands in the body, as JSON");
            return Err(Failure::native(Error::BadRequest { message, param: None }));
        }
        let bytes = body::read(request, app.limits.bounds(MOST_ORDER_BYTES)).await.map_err(Failure::native)?;
        let order: Order = body::json_or_default(&bytes).map_err(Failure::native)?;
        Ok((order, streams))
    }

    /// Whoever wants something in host memory must not believe that it comes there.
    fn parks_nothing(self) -> Result<Self> {
        match self.park {
            Some(_) => Err(Error::bad_param("park", "park: only `stage` takes it")),
            None => Ok(self),
        }
    }

    /// The path decides; a body that says otherwise was meant for something else.
    fn agrees(&self, model: &str) -> Result<()> {
        match self.model.as_deref() {
            Some(named) if named != model => {
                Err(Error::bad_param("model", format!("model: expected '{model}', as the path says, found '{named}'")))
            }
            _ => Ok(()),
        }
    }

    /// The same for a path that names a version, which is only looked up where there is something to compare.
    async fn agrees_with(&self, app: &App, reference: &str) -> Result<(), Failure> {
        if self.model.is_none() {
            return Ok(());
        }
        let target = app.supervisor.resolve(reference).await.map_err(Failure::native)?;
        self.agrees(target.slot.name()).map_err(Failure::native)
    }

    fn options(&self) -> Result<Options> {
        let time = |name: &'static str, text: &Option<String>| {
            let read = |text: &str| {
                duration::parse(text).map_err(|reason| Error::bad_param(name, format!("{name}: {reason}")))
            };
            text.as_deref().map(read).transpose()
        };
        let wrong = |name: &'static str| move |reason| Error::bad_param(name, format!("{name}: {reason}"));
        if let Some(steps) = &self.canary {
            CanaryConfig::check_steps(steps).map_err(wrong("canary"))?;
        }
        let canary_step = time("canary_step", &self.canary_step)?;
        if canary_step.is_some_and(|step| step.is_zero()) {
            return Err(wrong("canary_step")("a duration of zero, expected a longer one".to_owned()));
        }
        if canary_step.is_some() && self.canary_requests.is_some() {
            let message = "canary_step and canary_requests: a step lasts for a time or for so many requests, not both";
            return Err(Error::bad_param("canary_requests", message));
        }
        if self.canary_requests == Some(0) {
            return Err(wrong("canary_requests")("0, expected a whole number of at least 1".to_owned()));
        }
        if let Some(share) = self.shadow.filter(|share| !(0.0..=1.0).contains(share)) {
            return Err(wrong("shadow")(format!("{share}, expected a share from 0.0 to 1.0")));
        }
        Ok(Options {
            observe: time("observe", &self.observe)?,
            canary: self.canary.clone(),
            canary_step,
            canary_requests: self.canary_requests,
            sticky: self.sticky.as_deref().map(str::parse).transpose().map_err(wrong("sticky"))?,
            shadow: self.shadow,
            reason: self.reason.clone(),
            actor: self.actor.clone(),
            accept_contract_change: self.accept_contract_change,
        })
    }
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

async fn models(State(app): State<Arc<App>>) -> Response {
    Json(json!({ "models": app.supervisor.models().await })).into_response()
}

async fn model(State(app): State<Arc<App>>, Named(reference): Named) -> Response {
    match app.supervisor.resolve(&reference).await {
        Ok(target) => match app.supervisor.model(target.slot.name()).await {
            Some(report) => Json(report).into_response(),
            None => Failure::native(Error::Unknown { reference, known: Vec::new() }).into_response(),
        },
        Err(error) => Failure::native(error).into_response(),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Against {
    /// The version that is compared with; the live one where it is not said.
    against: Option<String>,
}

/// Changes nothing, but reads files and takes a thread: for operators.
async fn diff(State(app): State<Arc<App>>, Named(reference): Named, Asked(other): Asked<Against>) -> Response {
    match app.supervisor.diff(&reference, other.against.as_deref()).await {
        Ok(comparison) => Json(comparison).into_response(),
        Err(error) => Failure::native(error).into_response(),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listing {
    model: Option<String>,
    limit: Option<u32>,
}

async fn rollouts(State(app): State<Arc<App>>, Asked(listing): Asked<Listing>) -> Response {
    let work = async {
        let limit = listing.limit.map_or(50, |limit| limit.min(1000) as usize);
        let rollouts = app.supervisor.rollouts(listing.model.clone(), limit).await?;
        let figures = app.supervisor.figures(listing.model).await?;
        Ok(Json(json!({ "rollouts": rollouts, "figures": figures })).into_response())
    };
    work.await.unwrap_or_else(|error| Failure::native(error).into_response())
}

async fn rollout(State(app): State<Arc<App>>, Named(id): Named) -> Response {
    match app.supervisor.rollout(&id).await {
        Ok(view) => Json(view).into_response(),
        Err(error) => Failure::native(error).into_response(),
    }
}

async fn shadow(State(app): State<Arc<App>>, Named(id): Named) -> Response {
    match app.supervisor.shadow(&id).await {
        Ok(seen) => Json(seen).into_response(),
        Err(error) => Failure::native(error).into_response(),
    }
}

async fn memory(State(app): State<Arc<App>>) -> Response {
    match app.supervisor.memory().await {
        Ok(report) => Json(report).into_response(),
        Err(error) => Failure::native(error).into_response(),
    }
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

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Since {
    /// Events after this sequence number come first.
    after: Option<i64>,
}

/// Events as they happen. `Last-Event-ID` or `?after=` brings those that were missed, from the ledger.
async fn events(State(app): State<Arc<App>>, Asked(since): Asked<Since>, request: Request) -> Response {
    let last = request.headers().get("last-event-id").and_then(|value| value.to_str().ok()?.parse().ok());
    // Subscribe before reading, so that nothing falls between.
    let live = app.supervisor.journal().subscribe();
    let missed = match since.after.or(last) {
        Some(after) => match app.supervisor.events_after(after, 10_000).await {
            Ok(events) => events,
            Err(error) => return Failure::native(error).into_response(),
        },
        None => Vec::new(),
    };
    let newest = missed.last().map_or(i64::MIN, |event| event.seq);
    let old = stream::iter(missed);
    let new = subscription(live, app.closing.subscribe()).filter(move |event| std::future::ready(event.seq > newest));
    let stream = old.chain(new).map(|event| {
        let data = serde_json::to_string(&event).unwrap_or_default();
        Ok::<_, Infallible>(SseEvent::default().id(event.seq.to_string()).event(event.kind).data(data))
    });
    Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response()
}

/// Everything at one moment: at once, then each second and after each event.
async fn live(State(app): State<Arc<App>>) -> Response {
    let told = app.supervisor.overviews();
    let first = app.supervisor.overview().await;
    let new = stream::unfold((told, app.closing.subscribe()), |(mut told, mut closing)| async move {
        tokio::select! {
            biased;
            changed = told.changed() => changed.ok()?,
            _ = closing.wait_for(|closing| *closing) => return None,
        }
        // Who reads slowly gets the newest.
        let overview = Arc::clone(&told.borrow_and_update());
        Some((overview, (told, closing)))
    });
    let all = stream::once(std::future::ready(Arc::from(json!(first).to_string()))).chain(new);
    let events =
        all.map(|overview: Arc<str>| Ok::<_, Infallible>(SseEvent::default().event("overview").data(overview)));
    Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response()
}

/// A listener that falls too far behind goes on with what is newest; its ids show the hole. A server that stops does
/// not wait for its listeners: they get what happened, and then the end.
fn subscription(live: broadcast::Receiver<Event>, closing: watch::Receiver<bool>) -> impl Stream<Item = Event> {
    stream::unfold((live, closing), |(mut live, mut closing)| async move {
        loop {
            let event = tokio::select! {
                biased;
                event = live.recv() => event,
                _ = closing.wait_for(|closing| *closing) => return None,
            };
            match event {
                Ok(event) => return Some((event, (live, closing))),
                Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "an event listener fell behind"),
                Err(RecvError::Closed) => return None,
            }
        }
    })
}
