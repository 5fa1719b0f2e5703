//! `/openapi.json`: what this server's interface is, so that tools can read it.
//!
//! Every operation is described in `operations`, in the words of `describe`, every body in `schemas`. A listener tells of
//! the routes that it answers and of no others, and of the credentials that it asks for; the tests hold the description
//! against the routes, and against real answers.

mod describe;
mod operations;
mod schemas;

use axum::body::Bytes;
use axum::http::header;
use axum::response::IntoResponse;
use utoipa::openapi::path::{HttpMethod, Operation};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{InfoBuilder, OpenApi, OpenApiBuilder, PathItem, PathsBuilder};

use super::routes::{Mounted, Routes};
pub(super) use schemas::Input;
pub(super) use schemas::inputs::{
    deadline, nothing, nothings, openai_input, openai_messages, openai_messages_or_null, openai_prompt, openai_stop,
    openai_tokens, percentages, tei_embed_inputs, tei_predict_inputs,
};
pub(super) use schemas::oip::RepositoryParameters;

const PATH: &str = "/openapi.json";

/// Which credentials a listener asks for. Where it asks for none, it says that some may be given.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asks {
    pub(super) key: bool,
    pub(super) token: bool,
    /// Either, for the lists of models.
    pub(super) lists: bool,
}

/// These routes, and the one that describes them all.
pub(super) fn described(routes: Routes, asks: Asks) -> Routes {
    let mounted: Vec<Mounted> = routes.mounted().iter().copied().chain([("GET", PATH)]).collect();
    // What is described is constant, so a document that cannot be written fails every test.
    let text = Bytes::from(document(&mounted, asks).to_json().unwrap_or_default());
    routes.get(PATH, || std::future::ready(([(header::CONTENT_TYPE, "application/json")], text).into_response()))
}

/// The description of these routes.
fn document(mounted: &[Mounted], asks: Asks) -> OpenApi {
    let info = InfoBuilder::new()
        .title("Cutover")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(include_str!("about.md")))
        .build();
    let described = operations::all().into_iter().filter(|(at, _)| mounted.contains(at));
    let paths = described.fold(PathsBuilder::new(), |paths, ((method, path), operation)| {
        paths.path(path, PathItem::new(http_method(method), asking(operation, asks)))
    });
    let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(describe::TOKEN)).build();
    let key = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(describe::KEY)).build();
    let header = ApiKeyValue::with_description(describe::X_API_KEY, describe::KEY);
    let components = schemas::components()
        .security_scheme(describe::ADMIN_TOKEN, SecurityScheme::Http(token))
        .security_scheme(describe::API_KEY, SecurityScheme::Http(key))
        .security_scheme(describe::X_API_KEY, SecurityScheme::ApiKey(ApiKey::Header(header)))
        .build();
    OpenApiBuilder::new().info(info).paths(paths).components(Some(components)).build()
}

/// The same operation, without the way in that needs nothing, where this listener has none such.
fn asking(mut operation: Operation, asks: Asks) -> Operation {
    let Some(ways) = &mut operation.security else { return operation };
    let way = |scheme| SecurityRequirement::new(scheme, Vec::<String>::new());
    let (key, token) = (way(describe::API_KEY), way(describe::ADMIN_TOKEN));
    let is_closed = match (ways.contains(&key), ways.contains(&token)) {
        (true, true) => asks.lists,
        (true, false) => asks.key,
        (false, _) => asks.token,
    };
    ways.retain(|way| !is_closed || *way != SecurityRequirement::default());
    operation
}

fn http_method(name: &str) -> HttpMethod {
    match name {
        "POST" => HttpMethod::Post,
        "DELETE" => HttpMethod::Delete,
        _ => HttpMethod::Get,
    }
}

#[cfg(test)]
mod tests;
