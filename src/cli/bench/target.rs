//! What a load asks, and of whom: bodies made beforehand, and the request that each of them goes into. Sends nothing.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use hyper::{Method, Request, Uri};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;

use super::super::client::Connection;
use super::super::output::Failure;
use super::check::Checker;

/// One request's body, ready to be sent.
#[derive(Debug, Clone)]
pub(super) struct Payload {
    pub body: Bytes,
    pub content_type: HeaderValue,
}

impl Payload {
    pub(super) fn json(body: &Value) -> Self {
        Payload { body: body.to_string().into(), content_type: HeaderValue::from_static("application/json") }
    }

    pub(super) fn raw(content_type: &'static str, bytes: Vec<u8>) -> Self {
        Payload { body: bytes.into(), content_type: HeaderValue::from_static(content_type) }
    }
}

/// Where the requests go and what they are.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) addresses: Vec<std::net::SocketAddr>,
    /// The name that the server's certificate must have, where it speaks TLS.
    pub(super) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    path: Uri,
    headers: HeaderMap,
    pub(super) payloads: Vec<Payload>,
    pub(super) timeout: Duration,
    pub(super) checker: Option<Checker>,
    /// The threads that make the load take real-time priority.
    pub(super) realtime: bool,
}

impl Target {
    pub(super) async fn new(
        connection: &Connection,
        path: &str,
        payloads: Vec<Payload>,
        timeout: Duration,
        checker: Option<Checker>,
        realtime: bool,
    ) -> Result<Target, Failure> {
        let unreachable = |reason: String| Failure::Unreachable { url: connection.url.to_string(), reason };
        let host = connection.url.host_str().unwrap_or_default();
        let port = connection.url.port_or_known_default().unwrap_or(80);
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let addresses: Vec<_> =
            tokio::net::lookup_host((name, port)).await.map_err(|e| unreachable(e.to_string()))?.collect();
        let tls = match connection.tls()? {
            None => None,
            Some(config) => {
                let name = ServerName::try_from(name.to_owned()).map_err(|e| unreachable(e.to_string()))?;
                Some((config, name))
            }
        };
        let invalid = |e: &dyn std::fmt::Display| Failure::Failed(format!("cannot form the requests: {e}"));
        let mut headers = connection.credentials()?;
        headers.insert(HOST, HeaderValue::from_str(&format!("{host}:{port}")).map_err(|e| invalid(&e))?);
        let path = path.parse().map_err(|e| invalid(&e))?;
        Ok(Target { addresses, tls, path, headers, payloads, timeout, checker, realtime })
    }

    pub(super) fn request(&self, payload: &Payload) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(payload.body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.path.clone();
        request.headers_mut().clone_from(&self.headers);
        request.headers_mut().insert(CONTENT_TYPE, payload.content_type.clone());
        request
    }
}
