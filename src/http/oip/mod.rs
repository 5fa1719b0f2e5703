//! The Open Inference Protocol, version 2, over HTTP: `/v2/…`, as tritonclient and KServe's SDK speak it.
//!
//! `json` and `tensor` read and write what goes over the wire, `infer` knows which tensors a task takes and gives, `about`
//! tells of the server and its models in the `messages` of the protocol; here are the routes. `repository` changes
//! versions, under the admin rules. `grpc` is the same protocol over gRPC.
//!
//! Source: the protocol's REST specification with its binary tensor data, parameters, statistics and model configuration
//! extensions.

mod about;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub(super) mod grpc;
mod infer;
mod json;
mod messages;
pub(super) mod repository;
mod tensor;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

use super::received::Received;
use super::reply::{Dialect, Failure, put_stamp};
use super::routes::Routes;
use super::{App, request};
use crate::error::{Error, Result};
use crate::generation::Stamp;
use crate::slot::{Admission, Slot, Target};
use crate::value::Task;

/// Bytes of the body that are JSON; tensors follow. 0: the body is the one element of the only input.
const JSON_BYTES: HeaderName = HeaderName::from_static("inference-header-content-length");

pub(super) fn routes() -> Routes {
    Routes::default()
        .get("/v2", server)
        .get("/v2/models", models)
        .get("/v2/models/{model}", metadata)
        .get("/v2/models/{model}/versions/{version}", metadata)
        .get("/v2/models/{model}/config", config)
        .get("/v2/models/{model}/versions/{version}/config", config)
        .get("/v2/models/{model}/ready", ready)
        .get("/v2/models/{model}/versions/{version}/ready", ready)
        .get("/v2/models/stats", statistics)
        .get("/v2/models/{model}/stats", statistics_of)
        .get("/v2/models/{model}/versions/{version}/stats", statistics_of)
        .post("/v2/models/{model}/infer", infer)
        .post("/v2/models/{model}/versions/{version}/infer", infer)
        .post("/v2/repository/index", repository::index)
}

/// A model, and its version where one is named.
struct At {
    model: String,
    version: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for At {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let path = Path::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        let mut names = path.map_err(|e| plain(Error::bad_request(e.body_text())))?.0.into_iter().map(|(_, name)| name);
        Ok(At { model: names.next().unwrap_or_default(), version: names.next() })
    }
}

impl At {
    /// As the rest of the server writes it.
    fn reference(&self) -> Result<String> {
        match &self.version {
            None => Ok(self.model.clone()),
            Some(_) if self.model.contains('@') => {
                Err(Error::bad_request(format!("'{}' names a version, and so does the path", self.model)))
            }
            Some(version) => Ok(format!("{}@{version}", self.model)),
        }
    }

    fn admit(&self, app: &App) -> Result<(Arc<Slot>, Admission)> {
        let target = app.registry.resolve(&self.reference()?)?;
        let admission = target.slot.admit(target.version.as_deref(), None)?;
        Ok((target.slot, admission))
    }
}

fn plain(error: Error) -> Failure {
    Failure::new(Dialect::Oip, error)
}

async fn infer(State(app): State<Arc<App>>, at: At, request: Request) -> Response {
    answer(&app, &at, request).await.unwrap_or_else(Failure::into_response)
}

async fn answer(app: &App, at: &At, request: Request) -> Result<Response, Failure> {
    let json = json_bytes(request.headers()).map_err(plain)?;
    let received = Received::of(app, request).await.map_err(plain)?;
    let asked = Inference { dialect: Dialect::Oip, at, received, patience: None };
    let Inferred { id, outputs, stamp } = asked.run(app, |body, task| read(body, json, task)).await?;
    let failed = |error| Failure { error, dialect: Dialect::Oip, stamp: Some(stamp.clone()) };
    let written = json::write((id.as_deref(), &stamp.model, &stamp.version), &outputs).map_err(failed)?;
    let mut response = Response::new(Body::from(written.body));
    let kind = if written.json.is_some() { "application/octet-stream" } else { "application/json" };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(json) = written.json {
        response.headers_mut().insert(JSON_BYTES, HeaderValue::from(json));
    }
    put_stamp(&mut response, &stamp);
    Ok(response)
}

/// A request for inference, whichever way it came.
struct Inference<'a> {
    dialect: Dialect,
    at: &'a At,
    received: Received,
    /// How long its client will wait.
    patience: Option<Duration>,
}

struct Inferred {
    id: Option<String>,
    /// Each with whether it comes as bytes.
    outputs: Vec<(tensor::Output, bool)>,
    stamp: Stamp,
}

impl Inference<'_> {
    /// Admits it and answers what `read` reads, once the model's task is known.
    async fn run(
        self,
        app: &App,
        read: impl FnOnce(&[u8], Task) -> Result<tensor::Asked>,
    ) -> Result<Inferred, Failure> {
        let Inference { dialect, at, received, patience } = self;
        let reference = at.reference().map_err(|error| Failure::new(dialect, error))?;
        // The same for every version of a model, and known wherever one of them serves.
        let task = OnceLock::new();
        let fits = |target: &Target| {
            target.slot.task().map(|known| task.get_or_init(|| known));
            Ok(())
        };
        let mut asked = None;
        let ask = |body: &[u8]| {
            let task = *task.get().ok_or_else(|| Error::internal("a model without a task was admitted"))?;
            let tensor::Asked { id, parameters, inputs, outputs, binary } = read(body, task)?;
            let outputs = infer::wanted(task, outputs.as_deref(), binary)?;
            asked = Some((id, outputs));
            let mut ask = infer::ask(task, inputs, &parameters)?;
            ask.deadline = ask.deadline.into_iter().chain(patience).min();
            Ok(ask)
        };
        let answer = request::answer(app, dialect, &reference, fits, received, ask).await?;
        let (id, wanted) = asked.unwrap_or_default();
        let stamp = answer.stamp;
        match infer::outputs(answer.outputs, &wanted) {
            Ok(outputs) => Ok(Inferred { id, outputs, stamp }),
            Err(error) => Err(Failure { error, dialect, stamp: Some(stamp) }),
        }
    }
}

/// What the header says of a body.
fn json_bytes(headers: &HeaderMap) -> Result<Option<usize>> {
    let Some(value) = headers.get(JSON_BYTES) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    number.map(Some).ok_or_else(|| Error::bad_request(format!("{JSON_BYTES} is a number of bytes, found {value:?}")))
}

fn read(bytes: &[u8], json: Option<usize>, task: Task) -> Result<tensor::Asked> {
    match json {
        None => json::read(bytes, &[]),
        Some(0) => match infer::inputs_of(task).as_slice() {
            [only] => Ok(tensor::raw(only.name, bytes.to_vec())),
            [] => Err(infer::no_tensors()),
            _ => Err(Error::bad_request("a body without JSON is for models with one input; this one has several")),
        },
        Some(length) => match bytes.split_at_checked(length) {
            Some((json, binary)) => json::read(json, binary),
            None => {
                let got = bytes.len();
                Err(Error::bad_request(format!("{JSON_BYTES} is {length}, the body has {got} bytes")))
            }
        },
    }
}

async fn server() -> Response {
    Json(about::server()).into_response()
}

async fn models(State(app): State<Arc<App>>) -> Response {
    Json(json!({ "models": app.registry.slots().keys().collect::<Vec<_>>() })).into_response()
}

async fn ready(State(app): State<Arc<App>>, at: At) -> Response {
    match at.admit(&app) {
        Ok((slot, _)) => Json(json!({ "name": slot.name(), "ready": true })).into_response(),
        Err(error) => plain(error).into_response(),
    }
}

async fn metadata(State(app): State<Arc<App>>, at: At) -> Response {
    told(&app, &at, about::metadata)
}

async fn config(State(app): State<Arc<App>>, at: At) -> Response {
    told(&app, &at, about::config)
}

async fn statistics(State(app): State<Arc<App>>) -> Response {
    Json(about::all_statistics(&app)).into_response()
}

async fn statistics_of(State(app): State<Arc<App>>, at: At) -> Response {
    told(&app, &at, about::statistics)
}

/// An answer about a generation, with its stamp.
fn told<T: Serialize>(app: &App, at: &At, tell: impl FnOnce(&Slot, &Admission) -> T) -> Response {
    match at.admit(app) {
        Ok((slot, admission)) => {
            let mut response = Json(tell(&slot, &admission)).into_response();
            put_stamp(&mut response, &admission.generation().stamp);
            response
        }
        Err(error) => plain(error).into_response(),
    }
}
