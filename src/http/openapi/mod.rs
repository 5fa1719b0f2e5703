//! `/openapi.json`: what this server's interface is, so that tools can read it.
//!
//! Every operation is described in `operations`, every body in `schemas`. A listener tells of the routes that it
//! answers and of no others; the tests hold the description against the routes, and against real answers.

mod operations;
mod schemas;

use axum::body::Bytes;
use axum::http::header;
use axum::response::IntoResponse;
use utoipa::openapi::path::HttpMethod;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{InfoBuilder, OpenApi, OpenApiBuilder, PathItem, PathsBuilder};

use super::routes::{Mounted, Routes};
pub(super) use schemas::Input;

const PATH: &str = "/openapi.json";

/// These routes, and the one that describes them all.
pub(super) fn described(routes: Routes) -> Routes {
    let mounted: Vec<Mounted> = routes.mounted().iter().copied().chain([("GET", PATH)]).collect();
    // What is described is constant, so a document that cannot be written fails every test.
    let text = Bytes::from(document(&mounted).to_json().unwrap_or_default());
    routes.get(PATH, || std::future::ready(([(header::CONTENT_TYPE, "application/json")], text).into_response()))
}

/// The description of these routes.
fn document(mounted: &[Mounted]) -> OpenApi {
    let info = InfoBuilder::new()
        .title("Cutover")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(include_str!("about.md")))
        .build();
    let described = operations::all().into_iter().filter(|(at, _)| mounted.contains(at));
    let paths = described.fold(PathsBuilder::new(), |paths, ((method, path), operation)| {
        paths.path(path, PathItem::new(http_method(method), operation))
    });
    let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(operations::TOKEN)).build();
    let key = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(operations::KEY)).build();
    let components = schemas::components()
        .security_scheme("admin-token", SecurityScheme::Http(token))
        .security_scheme("api-key", SecurityScheme::Http(key))
        .build();
    OpenApiBuilder::new().info(info).paths(paths).components(Some(components)).build()
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
