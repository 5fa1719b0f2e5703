//! The Open Inference Protocol, version 2, over HTTP: `/v2/…`, as tritonclient and KServe's SDK speak it.
//!
//! `tensor` reads and writes what goes over the wire, `infer` knows which tensors a task takes and gives; here are the
//! routes of inference and of what is told about models. `repository` changes versions, under the admin rules.
//!
//! Source: the protocol's REST specification with its binary tensor data, parameters and model configuration extensions.

mod infer;
pub(super) mod repository;
mod tensor;

use std::sync::{Arc, OnceLock};

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::reply::{Dialect, Failure, put_stamp};
use super::routes::Routes;
use super::{App, body, request};
use crate::error::{Error, Result};
use crate::slot::{Admission, Slot, Target};

/// Bytes of the body that are JSON; tensors follow. 0: the body is the one element of the only input.
const JSON_BYTES: HeaderName = HeaderName::from_static("inference-header-content-length");

/// What the metadata of the server claims, no more than works.
const EXTENSIONS: [&str; 4] = ["binary_tensor_data", "parameters", "model_configuration", "model_repository"];

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

/// A model of a path, and its version where the path names one.
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
        let admission = target.slot.admit(target.version.as_deref())?;
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
    let bytes = body::read(request, app.limits.max_body_bytes, app.limits.read_timeout).await.map_err(plain)?;
    let reference = at.reference().map_err(plain)?;
    // The same for every version of a model, and known wherever one of them serves.
    let task = OnceLock::new();
    let fits = |target: &Target| {
        target.slot.task().map(|known| task.get_or_init(|| known));
        Ok(())
    };
    let mut asked = None;
    let ask = || {
        let task = *task.get().ok_or_else(|| Error::internal("a model without a task was admitted"))?;
        let tensor::Asked { id, parameters, inputs, outputs, binary } = read(&bytes, json, task)?;
        let outputs = infer::wanted(task, outputs.as_deref(), binary)?;
        asked = Some((id, outputs));
        infer::ask(task, inputs, &parameters)
    };
    let answer = request::answer(app, Dialect::Oip, &reference, fits, bytes.len(), ask).await?;
    let (id, wanted) = asked.unwrap_or_default();
    let stamp = answer.stamp;
    let failed = |error| Failure { error, dialect: Dialect::Oip, stamp: Some(stamp.clone()) };
    let outputs = infer::outputs(answer.outputs, &wanted).map_err(failed)?;
    let written = tensor::write((id.as_deref(), &stamp.model, &stamp.version), &outputs).map_err(failed)?;
    let mut response = Response::new(Body::from(written.body));
    let kind = if written.json.is_some() { "application/octet-stream" } else { "application/json" };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(json) = written.json {
        response.headers_mut().insert(JSON_BYTES, HeaderValue::from(json));
    }
    put_stamp(&mut response, &stamp);
    Ok(response)
}

/// What the header says of a body.
fn json_bytes(headers: &HeaderMap) -> Result<Option<usize>> {
    let Some(value) = headers.get(JSON_BYTES) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    number.map(Some).ok_or_else(|| Error::bad_request(format!("{JSON_BYTES} is a number of bytes, found {value:?}")))
}

fn read(bytes: &[u8], json: Option<usize>, task: crate::value::Task) -> Result<tensor::Asked> {
    match json {
        None => tensor::read(bytes, &[]),
        Some(0) => match infer::inputs_of(task).as_slice() {
            [only] => Ok(tensor::raw(only.name, bytes.to_vec())),
            _ => Err(Error::bad_request("a body without JSON is for models with one input; this one has several")),
        },
        Some(length) => match bytes.split_at_checked(length) {
            Some((json, binary)) => tensor::read(json, binary),
            None => {
                let got = bytes.len();
                Err(Error::bad_request(format!("{JSON_BYTES} is {length}, the body has {got} bytes")))
            }
        },
    }
}

async fn server() -> Response {
    Json(json!({ "name": "cutover", "version": env!("CARGO_PKG_VERSION"), "extensions": EXTENSIONS })).into_response()
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

/// An answer about a generation, with its stamp.
fn told(app: &App, at: &At, tell: impl FnOnce(&Slot, &Admission) -> Value) -> Response {
    match at.admit(app) {
        Ok((slot, admission)) => {
            let mut response = Json(tell(&slot, &admission)).into_response();
            put_stamp(&mut response, &admission.generation().stamp);
            response
        }
        Err(error) => plain(error).into_response(),
    }
}

async fn metadata(State(app): State<Arc<App>>, at: At) -> Response {
    told(&app, &at, |slot, admission| {
        let contract = &admission.generation().contract;
        let tensors = |all: Vec<infer::Told>| -> Value {
            let one = |told: infer::Told| json!({ "name": told.name, "datatype": told.datatype, "shape": told.shape });
            all.into_iter().map(one).collect()
        };
        json!({
            "name": slot.name(),
            // Those that can be asked now.
            "versions": slot.route().map(|route| route.versions().iter().map(|v| (*v).to_owned()).collect::<Vec<_>>()),
            "platform": "cutover",
            "inputs": tensors(infer::inputs_of(contract.task)),
            "outputs": tensors(infer::outputs_of(contract)),
        })
    })
}

async fn config(State(app): State<Arc<App>>, at: At) -> Response {
    told(&app, &at, |slot, admission| {
        let contract = &admission.generation().contract;
        let tensors = |all: Vec<infer::Told>| -> Value {
            let kind = |datatype| if datatype == "BYTES" { "TYPE_STRING" } else { "TYPE_FP32" };
            let one =
                |told: infer::Told| json!({ "name": told.name, "data_type": kind(told.datatype), "dims": told.shape });
            all.into_iter().map(one).collect()
        };
        json!({
            "name": slot.name(),
            "platform": "cutover",
            "backend": "cutover",
            // The first dimension is the client's to choose, and stands in every shape.
            "max_batch_size": 0,
            "input": tensors(infer::inputs_of(contract.task)),
            "output": tensors(infer::outputs_of(contract)),
        })
    })
}

async fn statistics(State(app): State<Arc<App>>) -> Response {
    let all = app.registry.slots();
    let all = all.values().filter_map(|slot| Some(statistics_by(slot, &slot.admit(None).ok()?)));
    Json(json!({ "model_stats": all.collect::<Vec<_>>() })).into_response()
}

async fn statistics_of(State(app): State<Arc<App>>, at: At) -> Response {
    told(&app, &at, |slot, admission| json!({ "model_stats": [statistics_by(slot, admission)] }))
}

/// What is counted of a generation since it began. Times are told by `/metrics`.
fn statistics_by(slot: &Slot, admission: &Admission) -> Value {
    let generation = admission.generation();
    let seen = generation.stats.snapshot();
    let (success, fail) = (seen.answered + seen.named, seen.blamed + seen.unexplained);
    json!({
        "name": slot.name(),
        "version": generation.version(),
        "inference_stats": { "success": { "count": success }, "fail": { "count": fail } },
    })
}
