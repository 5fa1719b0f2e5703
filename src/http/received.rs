//! A request for inference as it came: its body, and what says who sends it, where versions share requests by it.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue};

use super::App;
use super::auth::KeyName;
use super::body::{self, Bounds};
use crate::error::Result;
use crate::slot::Asker;

/// What its answer is called.
#[derive(Debug, Clone)]
pub(super) struct RequestId(pub(super) HeaderValue);

#[derive(Debug)]
pub(super) struct Received {
    pub(super) body: Bytes,
    headers: HeaderMap,
    key: Option<Arc<str>>,
    id: Option<HeaderValue>,
}

impl Received {
    /// Reads a request's body, whole.
    pub(super) async fn of(app: &App, request: Request) -> Result<Received> {
        let (mut received, request) = Self::without_body(request);
        received.body = body::read(request, app.limits.bounds(app.limits.max_body_bytes)).await?;
        Ok(received)
    }

    /// The same of a body that is encoded in its dialect's own way.
    pub(super) async fn encoded(request: Request, bounds: Bounds<'_>) -> Result<Received> {
        let (mut received, request) = Self::without_body(request);
        received.body = body::read_encoded(request, bounds).await?;
        Ok(received)
    }

    fn without_body(request: Request) -> (Received, Request) {
        let (headers, extensions) = (request.headers().clone(), request.extensions());
        let key = extensions.get::<KeyName>().map(|KeyName(name)| Arc::clone(name));
        let id = extensions.get::<RequestId>().map(|RequestId(id)| id.clone());
        (Received { body: Bytes::new(), headers, key, id }, request)
    }
}

impl Asker for Received {
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.get(name).map(HeaderValue::as_bytes)
    }

    fn api_key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    fn body(&self) -> &[u8] {
        &self.body
    }

    fn id(&self) -> Option<&str> {
        self.id.as_ref()?.to_str().ok()
    }
}
