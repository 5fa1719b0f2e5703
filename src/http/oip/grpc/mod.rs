//! The Open Inference Protocol over gRPC, as tritonclient and KServe's SDK speak it: `inference.GRPCInferenceService`.
//!
//! Methods are routes like any other's, so that calls pass the same guard, keys, spans and counters; they answer with what
//! the protocol's HTTP routes answer with. `call` is one call on the wire, `wire` how much is in it, `tensors` its values.
//! Not here: streams (`ModelStreamInfer`), shared memory, settings of traces and logs; they answer UNIMPLEMENTED.
//!
//! Source: the protocol's gRPC specification; gRPC health checking protocol, version 1.

mod call;
mod tensors;
mod wire;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Map, Value};

use self::call::{Call, Outcome, unary};
use super::messages::{
    Empty, Health, HealthOf, Index, IndexRequest, InferRequest, InferResponse, Live, ModelConfigResponse, OfModel,
    Ready, RepositoryParameter, RepositoryRequest, RepositoryValue,
};
use super::{At, Inference, Inferred, about, repository};
use crate::error::{Error, Kind, Result};
use crate::http::App;
use crate::http::reply::{Dialect, Failure};
use crate::http::routes::Routes;
use crate::slot::{Admission, Slot};

const SERVICE: &str = "inference.GRPCInferenceService";

/// Whether the server is there, and up.
pub(in crate::http) fn health() -> Routes {
    Routes::default()
        .post("/inference.GRPCInferenceService/ServerLive", server_live)
        .post("/inference.GRPCInferenceService/ServerReady", server_ready)
        .post("/grpc.health.v1.Health/Check", check)
}

pub(in crate::http) fn routes() -> Routes {
    Routes::default()
        .post("/inference.GRPCInferenceService/ServerMetadata", server_metadata)
        .post("/inference.GRPCInferenceService/ModelReady", model_ready)
        .post("/inference.GRPCInferenceService/ModelMetadata", model_metadata)
        .post("/inference.GRPCInferenceService/ModelConfig", model_config)
        .post("/inference.GRPCInferenceService/ModelStatistics", model_statistics)
        .post("/inference.GRPCInferenceService/ModelInfer", model_infer)
        .post("/inference.GRPCInferenceService/RepositoryIndex", repository_index)
}

/// What changes models.
pub(in crate::http) fn orders() -> Routes {
    Routes::default()
        .post("/inference.GRPCInferenceService/RepositoryModelLoad", repository_load)
        .post("/inference.GRPCInferenceService/RepositoryModelUnload", repository_unload)
}

fn plain(error: Error) -> Failure {
    Failure::new(Dialect::Grpc, error)
}

async fn server_live(State(app): State<Arc<App>>, request: Request) -> Response {
    unary(&app, request, async |_: Call<Empty>| Ok(Live { live: true }.into())).await
}

async fn server_ready(State(app): State<Arc<App>>, request: Request) -> Response {
    unary(&app, request, async |_: Call<Empty>| Ok(Ready { ready: app.is_ready() }.into())).await
}

async fn check(State(app): State<Arc<App>>, request: Request) -> Response {
    let work = async |call: Call<HealthOf>| match call.message.service.as_str() {
        "" | SERVICE => Ok(Health::of(app.is_ready()).into()),
        other => Err(plain(Error::NotFound { what: "service", id: other.to_owned() })),
    };
    unary(&app, request, work).await
}

async fn server_metadata(State(app): State<Arc<App>>, request: Request) -> Response {
    unary(&app, request, async |_: Call<Empty>| Ok(about::server().into())).await
}

/// As Triton answers (`InferenceServer::ModelIsReady`): a model or version that is not there, or not resident, is not ready, and
/// no error.
async fn model_ready(State(app): State<Arc<App>>, request: Request) -> Response {
    let work = async |call: Call<OfModel>| match At::from(call.message).admit(&app) {
        Ok(_) => Ok(Ready { ready: true }.into()),
        // A name that could be several things says nothing of any of them.
        Err(error @ Error::Ambiguous { .. }) => Err(plain(error)),
        Err(error) => match error.kind() {
            Kind::NotFound | Kind::Conflict | Kind::NotServing => Ok(Ready { ready: false }.into()),
            _ => Err(plain(error)),
        },
    };
    unary(&app, request, work).await
}

async fn model_metadata(State(app): State<Arc<App>>, request: Request) -> Response {
    unary(&app, request, async |call| told(&app, call, about::metadata).map_err(plain)).await
}

async fn model_config(State(app): State<Arc<App>>, request: Request) -> Response {
    let tell =
        |slot: &Slot, admission: &Admission| ModelConfigResponse { config: Some(about::config(slot, admission)) };
    unary(&app, request, async |call| told(&app, call, tell).map_err(plain)).await
}

async fn model_statistics(State(app): State<Arc<App>>, request: Request) -> Response {
    let work = async |call: Call<OfModel>| match call.message.name.is_empty() {
        true => Ok(about::all_statistics(&app).into()),
        false => told(&app, call, about::statistics).map_err(plain),
    };
    unary(&app, request, work).await
}

/// An answer about a generation, with its stamp.
fn told<T>(app: &App, call: Call<OfModel>, tell: impl FnOnce(&Slot, &Admission) -> T) -> Result<Outcome<T>> {
    let (slot, admission) = At::from(call.message).admit(app)?;
    let stamp = Some(admission.generation().stamp.clone());
    Ok(Outcome { message: tell(&slot, &admission), stamp })
}

async fn model_infer(State(app): State<Arc<App>>, request: Request) -> Response {
    unary(&app, request, async |call| infer(&app, call).await).await
}

async fn infer(app: &App, call: Call<InferRequest>) -> Result<Outcome<InferResponse>, Failure> {
    let Call { mut message, received, timeout } = call;
    let at = At::from(OfModel {
        name: std::mem::take(&mut message.model_name),
        version: std::mem::take(&mut message.model_version),
    });
    let asked = Inference { dialect: Dialect::Grpc, at: &at, received, patience: timeout };
    let Inferred { id, outputs, stamp } = asked.run(app, |_, _| tensors::read(message)).await?;
    Ok(Outcome { message: tensors::write(id, &stamp, outputs), stamp: Some(stamp) })
}

async fn repository_index(State(app): State<Arc<App>>, request: Request) -> Response {
    let work = async |call: Call<IndexRequest>| {
        Ok(Index { models: repository::indexed(&app, call.message.ready).await }.into())
    };
    unary(&app, request, work).await
}

async fn repository_load(State(app): State<Arc<App>>, request: Request) -> Response {
    let work = async |call: Call<RepositoryRequest>| {
        let parameters = parameters(call.message.parameters).map_err(plain)?;
        repository::loaded(&app, &call.message.model_name, &parameters).await.map_err(plain)?;
        Ok(Empty {}.into())
    };
    unary(&app, request, work).await
}

async fn repository_unload(State(app): State<Arc<App>>, request: Request) -> Response {
    let work = async |call: Call<RepositoryRequest>| {
        let parameters = parameters(call.message.parameters).map_err(plain)?;
        repository::unloaded(&app, &call.message.model_name, &parameters).await.map_err(plain)?;
        Ok(Empty {}.into())
    };
    unary(&app, request, work).await
}

/// An order's parameters as the HTTP routes have them.
fn parameters(all: impl IntoIterator<Item = (String, RepositoryParameter)>) -> Result<Map<String, Value>> {
    let one = |(name, parameter): (String, RepositoryParameter)| {
        let value = match parameter.value {
            None => Value::Null,
            Some(RepositoryValue::Bool(value)) => value.into(),
            Some(RepositoryValue::Int64(value)) => value.into(),
            Some(RepositoryValue::String(value)) => value.into(),
            Some(RepositoryValue::Bytes(_)) => {
                let message = format!("{name} is not supported: versions are folders below the model's");
                return Err(Error::bad_param("parameters", message));
            }
        };
        Ok((name, value))
    };
    all.into_iter().map(one).collect()
}

impl From<OfModel> for At {
    fn from(OfModel { name, version }: OfModel) -> At {
        At { model: name, version: Some(version).filter(|version| !version.is_empty()) }
    }
}
