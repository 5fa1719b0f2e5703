//! `/openapi.json`: what this server's interface is, so that tools can read it.

use axum::response::{IntoResponse, Response};

pub(super) async fn document() -> Response {
    axum::Json(serde_json::json!({})).into_response()
}
