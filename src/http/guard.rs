//! From where one may come in.
//!
//! On a loopback listener a request whose `Host` or `Origin` is not this machine is refused: a web page that
//! somebody looks at can reach 127.0.0.1, but it cannot forge those (DNS rebinding changes the address behind a
//! foreign `Host`). Who may ask and who may change things is `auth`'s; the command line refuses to start without an admin
//! token on a listener that others can reach.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::auth::Access;
use super::reply::{Dialect, Failure};
use crate::error::Error;

#[derive(Clone)]
pub struct Guard {
    /// Only names of this machine may stand in `Host` and `Origin`.
    pub loopback: bool,
    pub access: Access,
}

/// Refuses foreign origins on a loopback listener, and on every one what does not say where it is meant for.
pub(super) async fn origin(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    // Whoever reads another one of them than we do sends elsewhere what we answer (RFC 9112, 3.2).
    if request.headers().get_all(header::HOST).iter().count() > 1 {
        let error = Error::bad_request("the request has more than one Host");
        return Failure::new(Dialect::of(request.uri().path()), error).into_response();
    }
    if guard.loopback
        && let Err(reason) = local(request.headers(), request.uri())
    {
        tracing::warn!(reason, path = request.uri().path(), "refused a request that a foreign web page may have made");
        let dialect = Dialect::of(request.uri().path());
        return Failure::new(dialect, Error::Forbidden { reason }).into_response();
    }
    next.run(request).await
}

fn local(headers: &HeaderMap, uri: &Uri) -> Result<(), String> {
    // HTTP/1.1 requires `Host`; an absolute request target overrides it (RFC 9112, 3.2.2).
    let host = uri.authority().map(|authority| authority.as_str().to_owned());
    let host = host.or_else(|| text(headers, &header::HOST)).ok_or("the request has no Host")?;
    if !is_local(&host) {
        return Err(format!("Host '{host}' is not this machine"));
    }
    let Some(origin) = text(headers, &header::ORIGIN) else { return Ok(()) };
    let authority = origin.split_once("://").map(|(_, rest)| rest);
    match authority {
        Some(authority) if is_local(authority) => Ok(()),
        _ => Err(format!("Origin '{origin}' is not this machine")),
    }
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// `localhost`, or a loopback address, with or without a port.
fn is_local(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(rest, |(host, _)| host),
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn judge(host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, HeaderValue::from_str(origin).unwrap());
        }
        local(&headers, &Uri::from_static("/models")).is_ok()
    }

    #[test]
    fn only_this_machine_may_stand_in_host_and_origin() {
        for host in ["127.0.0.1:8080", "localhost:8080", "LOCALHOST", "[::1]:8080", "127.1.2.3"] {
            assert!(judge(host, None), "{host}");
        }
        for host in ["evil.example:8080", "127.0.0.1.evil.example", "192.168.0.5:8080", "localhost.evil.example", ""] {
            assert!(!judge(host, None), "{host}");
        }
        assert!(judge("localhost:8080", Some("http://localhost:8080")));
        assert!(judge("localhost:8080", Some("http://127.0.0.1:3000")));
        for origin in ["https://evil.example", "null", "http://localhost.evil.example:8080"] {
            assert!(!judge("localhost:8080", Some(origin)), "{origin}");
        }
    }
}
