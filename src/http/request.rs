//! What every request passes through: an id, a span, counters; and what dialects share in answering one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::body::{Body, HttpBody as _};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt as _;
use tracing::Instrument;

use super::App;
use super::auth::KeyName;
use super::received::{Received, RequestId};
use super::reply::{self, About, Dialect, Failure};
use crate::error::{Error, Kind, Result};
use crate::generation::{Generation, Stamp};
use crate::slot::{Answer, Ask, Slot};
use crate::telemetry::Answered;
use crate::telling::{Begun, Ended, Traces};
use crate::value::RawInput;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Which trace a request is part of (W3C Trace Context).
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Longer ids of clients are not taken over.
const LONGEST_ID: usize = 128;

/// Gives the request an id, a span and a place in the counters.
pub(super) async fn observe(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = request.headers().get(REQUEST_ID).filter(|id| id.len() <= LONGEST_ID).cloned();
    let id = id.unwrap_or_else(fresh_id);
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", |path| path.as_str()).to_owned();
    let span = tracing::info_span!(
        "request", id = id.to_str().unwrap_or("?"), method = %request.method(), path = request.uri().path(),
        key = tracing::field::Empty,
        model = tracing::field::Empty, version = tracing::field::Empty, generation = tracing::field::Empty,
        status = tracing::field::Empty, ms = tracing::field::Empty,
    );
    let traced = app.traces.as_ref().and_then(|traces| {
        let parent = request.headers().get(TRACEPARENT).and_then(|value| value.to_str().ok());
        Some((Arc::clone(traces), traces.begin(parent)?, request.method().clone()))
    });
    let dialect = Dialect::of(request.uri().path());
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = next.run(request).instrument(span.clone()).await;
    let took = began.elapsed();
    let stamp = response.extensions_mut().remove::<Stamp>();
    let about = response.extensions_mut().remove::<About>();
    let key = response.extensions_mut().remove::<KeyName>();
    let key = key.as_ref().map_or("", |KeyName(name)| name);
    let status = match (dialect, response.extensions().get::<Kind>()) {
        // gRPC's own is always 200; this is what the same would be elsewhere.
        (Dialect::Grpc, Some(kind)) => reply::status(Dialect::Native, *kind),
        _ => response.status(),
    };
    let status = status.as_u16();
    app.metrics.request(&Answered { route: &route, dialect, key, stamp: stamp.as_ref(), status, took });
    if let Some((traces, begun, method)) = traced {
        let answered = stamp.as_ref().map(|stamp| (stamp.model.to_string(), stamp.version.to_string()));
        let ended = Ended {
            method: method.to_string(),
            route,
            status,
            request_id: id.to_str().unwrap_or("?").to_owned(),
            version: answered.or(about.map(|about| (about.model, about.version))),
            generation: stamp.as_ref().map(|stamp| stamp.generation.0),
        };
        response = traced_to_its_end(response, Answering { traces, span: Some((begun, ended)) });
    }
    // Known last, and so of use to this event only; writing each into the span costs as much as making the span.
    if tracing::enabled!(tracing::Level::DEBUG) {
        span.record("status", status);
        span.record("ms", took.as_secs_f64() * 1e3);
        if let Some(stamp) = &stamp {
            span.record("model", &*stamp.model);
            span.record("version", &*stamp.version);
            span.record("generation", stamp.generation.0);
        }
        span.in_scope(|| tracing::debug!("answered"));
    }
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// The span of a request that is being answered. It ends with this, so also where nobody wants the rest of the answer.
struct Answering {
    traces: Arc<Traces>,
    span: Option<(Begun, Ended)>,
}

impl Drop for Answering {
    fn drop(&mut self) {
        if let Some((begun, ended)) = self.span.take() {
            self.traces.end(begun, ended);
        }
    }
}

/// An answer that is whole has ended; one that comes bit by bit holds its span.
fn traced_to_its_end(response: Response, answering: Answering) -> Response {
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _until_the_body_is_gone = &answering;
            frame
        }))
    })
}

fn fresh_id() -> HeaderValue {
    HeaderValue::from_str(&fresh()).unwrap_or(HeaderValue::from_static("-"))
}

/// Unique within the process, and with its start time among processes.
pub(super) fn fresh() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    static START: std::sync::LazyLock<u64> = std::sync::LazyLock::new(|| crate::rollout::now_ms() as u64);
    format!("{:x}-{:x}", *START, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Refuses a body that is larger than any version takes that may answer it, before it is parsed: who does is decided after that,
/// and has the last word. Where the model serves nothing, its admission says so.
pub(super) fn fits(slot: &Slot, bytes: usize) -> Result<()> {
    let Some(route) = slot.route() else { return Ok(()) };
    let shared = route.split.as_ref().map(|split| &split.to);
    let resident = [Some(&route.live), route.previous.as_ref(), route.standby.as_ref(), shared].into_iter().flatten();
    let most_generous = resident.max_by_key(|generation| generation.limits.max_body_bytes);
    most_generous.map_or(Ok(()), |generation| no_larger(bytes, generation))
}

/// Refuses a body that is larger than a generation takes.
pub(super) fn no_larger(bytes: usize, generation: &Generation) -> Result<()> {
    let (got, limit) = (bytes as u64, generation.limits.max_body_bytes);
    if got > limit { Err(Error::TooLarge { what: "request body in bytes", got, limit }) } else { Ok(()) }
}

/// Admits and answers: the path that every dialect's inference takes.
///
/// `reference` names the model (and perhaps the version); `task` refuses models that do something else.
pub(super) async fn answer(
    app: &App,
    dialect: Dialect,
    reference: &str,
    fits: impl FnOnce(&crate::slot::Target) -> Result<()>,
    received: Received,
    ask: impl FnOnce(&[u8]) -> Result<Ask>,
) -> Result<Answer, Failure> {
    let plain = |error| Failure::new(dialect, error);
    let target = app.registry.resolve(reference).map_err(plain)?;
    fits(&target).map_err(plain)?;
    let admission = target.slot.admit(target.version.as_deref(), Some(&received)).map_err(plain)?;
    let generation = admission.generation();
    let stamp = generation.stamp.clone();
    let stamped = |error| Failure { error, dialect, stamp: Some(stamp.clone()) };
    no_larger(received.body.len(), generation).map_err(stamped)?;
    let ask = ask(&received.body).map_err(stamped)?;
    // A request that waits holds what is asked, and not its body as well.
    drop(received);
    // A query that stands once for many texts is worked on once for each of them.
    let spelled: u64 = ask.inputs.iter().map(RawInput::bytes).sum();
    let limit = generation.limits.max_body_bytes;
    if spelled > limit {
        let what = "request in bytes, its query counted for each text,";
        return Err(stamped(Error::TooLarge { what, got: spelled, limit }));
    }
    let answer = admission.answer(ask).await.map_err(stamped)?;
    if answer.failed_over_from.is_some() {
        app.metrics.failed_over(&answer.stamp.model);
    }
    Ok(answer)
}
