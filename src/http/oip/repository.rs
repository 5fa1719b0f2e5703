//! The model repository extension: which versions there are, and changing which one serves.
//!
//! `load` is a whole promote: load beside, gate, switch; it answers when the version is live, or with why it is not.
//! `unload` drops a version that is not live. Beside `admin` the only dialect that knows the supervisor.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::messages::ModelIndex;
use super::plain;
use crate::error::{Error, Result};
use crate::http::reply::Failure;
use crate::http::rollout_reply::{self, Wait};
use crate::http::routes::{Named, Routes};
use crate::http::{App, body};
use crate::rollout::{Answer, ModelReport, Options, Released};

const MOST_ORDER_BYTES: usize = 64 << 10;

pub(in crate::http) fn orders() -> Routes {
    Routes::default()
        .post("/v2/repository/models/{model}/load", load)
        .post("/v2/repository/models/{model}/unload", unload)
}

#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
pub(in crate::http) struct IndexOrder {
    /// Only versions that can be asked.
    #[serde(default)]
    ready: bool,
}

#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
pub(in crate::http) struct RepositoryOrder {
    #[serde(default)]
    #[schema(value_type = crate::http::openapi::RepositoryParameters)]
    parameters: Map<String, Value>,
}

pub(super) async fn index(State(app): State<Arc<App>>, request: Request) -> Response {
    let work = async {
        let IndexOrder { ready } = read(&app, request).await?;
        Ok(Json(indexed(&app, ready).await).into_response())
    };
    work.await.unwrap_or_else(|failure: Failure| failure.into_response())
}

async fn load(State(app): State<Arc<App>>, Named(model): Named, request: Request) -> Response {
    let work = async {
        let order: RepositoryOrder = read(&app, request).await?;
        loaded(&app, &model, &order.parameters).await.map_err(plain)?;
        Ok(StatusCode::OK.into_response())
    };
    work.await.unwrap_or_else(|failure: Failure| failure.into_response())
}

async fn unload(State(app): State<Arc<App>>, Named(model): Named, request: Request) -> Response {
    let work = async {
        let order: RepositoryOrder = read(&app, request).await?;
        unloaded(&app, &model, &order.parameters).await.map_err(plain)?;
        Ok(StatusCode::OK.into_response())
    };
    work.await.unwrap_or_else(|failure: Failure| failure.into_response())
}

async fn read<T: serde::de::DeserializeOwned + Default>(app: &App, request: Request) -> Result<T, Failure> {
    let bytes = body::read(request, app.limits.bounds(MOST_ORDER_BYTES)).await.map_err(plain)?;
    body::json_or_default(&bytes).map_err(plain)
}

/// Every version of every model, or only those that can be asked.
pub(super) async fn indexed(app: &App, ready: bool) -> Vec<ModelIndex> {
    let models = app.supervisor.models().await;
    models.iter().flat_map(rows).filter(|row| !ready || row.state == READY).collect()
}

const READY: &str = "READY";

/// Every version of a model: those that can be asked, and the others with why not.
fn rows(model: &ModelReport) -> Vec<ModelIndex> {
    let serves =
        [&model.live, &model.previous, &model.candidate].map(|place| place.as_ref().map(|place| &place.version));
    let mut versions: Vec<&String> = model.versions.iter().collect();
    for version in serves.into_iter().flatten() {
        if !versions.contains(&version) {
            versions.push(version);
        }
    }
    let row = |version: &String| {
        let live = model.live.as_ref().is_some_and(|place| place.version == *version);
        let previous = model.previous.as_ref().is_some_and(|place| place.version == *version);
        let candidate = model.candidate.as_ref().filter(|place| place.version == *version);
        let (state, reason) = match candidate {
            _ if live || previous => (READY, String::new()),
            Some(place) if place.phase.name() == "ready" => (READY, String::new()),
            Some(place) => ("LOADING", place.phase.name().to_owned()),
            None => ("UNAVAILABLE", model.not_serving.clone().unwrap_or_else(|| "not loaded".into())),
        };
        ModelIndex { name: model.name.clone(), version: version.clone(), state: state.into(), reason }
    };
    versions.into_iter().map(row).collect()
}

/// Promotes a version, and returns once it is live. Without a version, some version is.
pub(super) async fn loaded(app: &App, model: &str, parameters: &Map<String, Value>) -> Result<()> {
    let unsupported = |name: &&String| *name == "config" || name.starts_with("file:");
    if let Some(name) = parameters.keys().find(unsupported) {
        let message = format!("{name} is not supported: versions are folders below the model's");
        return Err(Error::bad_param("parameters", message));
    }
    let target = app.supervisor.resolve(&reference(model, parameters)?).await?;
    let (model, versions) = (target.slot.name(), target.slot.versions());
    let version = match (&target.version, versions.as_slice()) {
        (Some(version), _) => version,
        // Without a version a model that serves is left as it is.
        (None, _) if target.slot.route().is_some() => return Ok(()),
        // And of one that does not it is the one there is.
        (None, [only]) => only,
        (None, several) => {
            let message = format!("which version of {model}? There are {}", several.join(", "));
            return Err(Error::bad_param("parameters", format!("{message}; say it as model@version")));
        }
    };
    let reference = format!("{model}@{version}");
    let options = Options { reason: Some("repository load".into()), ..Options::default() };
    match app.supervisor.promote(&reference, options).await? {
        Answer::Already { .. } => Ok(()),
        Answer::Rollout(handle) => rollout_reply::reached(handle, Wait::Switched).await,
    }
}

/// Drops a version that is not live, and returns once it is gone.
pub(super) async fn unloaded(app: &App, model: &str, parameters: &Map<String, Value>) -> Result<()> {
    let reference = reference(model, parameters)?;
    if let Released::Ends(mut handle) = app.supervisor.release(&reference).await? {
        handle.until(|view| view.phase.is_end()).await?;
    }
    Ok(())
}

fn reference(model: &str, parameters: &Map<String, Value>) -> Result<String> {
    match parameters.get("version") {
        None => Ok(model.to_owned()),
        Some(Value::String(version)) if !model.contains('@') => Ok(format!("{model}@{version}")),
        Some(other) => {
            Err(Error::bad_param("parameters", format!("version: expected a name, and one only, found {other}")))
        }
    }
}
