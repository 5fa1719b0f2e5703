//! One unary call: its message in, its message or its status out.
//!
//! Source: gRPC over HTTP/2. The body is read whole and in time, as any request's is, before tonic reads the message in it.

use std::sync::OnceLock;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use prost::Message;
use tonic::server::Grpc;
use tonic_prost::ProstCodec;

use super::{plain, wire};
use crate::error::{Error, Result};
use crate::generation::Stamp;
use crate::http::received::Received;
use crate::http::reply::{Failure, put_stamp};
use crate::http::{App, body};

/// Bytes before a message: whether it is compressed, and how long it is.
const PREFIX: usize = 5;

/// What a client calls with.
pub(super) struct Call<T> {
    pub(super) message: T,
    /// The body that it came in.
    pub(super) received: Received,
    /// How long the client will wait.
    pub(super) timeout: Option<Duration>,
}

/// What it is answered with, and by whom where a generation answers.
pub(super) struct Outcome<T> {
    pub(super) message: T,
    pub(super) stamp: Option<Stamp>,
}

impl<T> From<T> for Outcome<T> {
    fn from(message: T) -> Self {
        Outcome { message, stamp: None }
    }
}

/// Reads a call, lets `work` answer it, and writes the answer.
pub(super) async fn unary<I, O, W>(app: &App, request: Request, work: W) -> Response
where
    I: Message + Default + 'static,
    O: Message + 'static,
    W: AsyncFnOnce(Call<I>) -> Result<Outcome<O>, Failure>,
{
    let (request, received, timeout) = match arrived(app, request).await {
        Ok(arrived) => arrived,
        Err(error) => return plain(error).into_response(),
    };
    // What went wrong here is told by the one table, and not by what tonic makes of it.
    let (failed, stamped) = (OnceLock::new(), OnceLock::new());
    let most = received.body.len();
    let mut work = Some((work, received));
    let service = tower::service_fn(|request: tonic::Request<I>| {
        let work = work.take();
        let (failed, stamped) = (&failed, &stamped);
        async move {
            let Some((work, received)) = work else {
                return Err(tonic::Status::internal("a unary call is one message"));
            };
            match work(Call { message: request.into_inner(), received, timeout }).await {
                Ok(Outcome { message, stamp }) => {
                    stamp.map(|stamp| stamped.get_or_init(|| stamp));
                    Ok(tonic::Response::new(message))
                }
                Err(failure) => {
                    let _ = failed.set(failure);
                    Err(tonic::Status::internal("told elsewhere"))
                }
            }
        }
    });
    let mut grpc = Grpc::new(ProstCodec::<O, I>::default()).apply_max_message_size_config(Some(most), None);
    let mut response = grpc.unary(service, request).await.map(Body::new);
    match (failed.into_inner(), tonic::Status::from_header_map(response.headers())) {
        (Some(failure), _) => failure.into_response(),
        (None, Some(status)) if status.code() != tonic::Code::Ok => {
            plain(Error::bad_request(format!("the call could not be read: {}", status.message()))).into_response()
        }
        (None, _) => {
            if let Some(stamp) = stamped.into_inner() {
                put_stamp(&mut response, &stamp);
            }
            response
        }
    }
}

/// A call whose body has come whole, what came, and its timeout.
async fn arrived(app: &App, request: Request) -> Result<(Request, Received, Option<Duration>)> {
    let headers = request.headers();
    let text = |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let refused = match (text(header::CONTENT_TYPE.as_str()), text("grpc-encoding")) {
        (Some(kind), encoding) if kind.starts_with("application/grpc") => encoding
            .filter(|encoding| encoding != "identity")
            .map(|encoding| format!("messages that are compressed ({encoding}) are not read; send them as they are")),
        (kind, _) => Some(format!("this listener speaks gRPC; the request's content type is {kind:?}")),
    };
    let timeout = timeout(headers);
    if let Some(reason) = refused {
        body::discard(request).await;
        return Err(Error::Unsupported { reason });
    }
    let timeout = timeout?;
    let (parts, incoming) = request.into_parts();
    let most = app.limits.max_body_bytes.saturating_add(PREFIX);
    let mut received = Received::encoded(Request::from_parts(parts.clone(), incoming), app.limits.bounds(most)).await?;
    let whole = Request::from_parts(parts, Body::from(received.body.clone()));
    // The message alone is what is asked.
    received.body = received.body.slice(PREFIX.min(received.body.len())..);
    // Each takes a byte at least.
    if received.body.len() as u64 > body::MOST_VALUES {
        let got = wire::fields(&received.body);
        if got > body::MOST_VALUES {
            return Err(Error::TooLarge { what: "number of fields", got, limit: body::MOST_VALUES });
        }
    }
    Ok((whole, received, timeout))
}

/// How long the client will wait: at most eight digits, and a unit (gRPC over HTTP/2, "Timeout").
fn timeout(headers: &HeaderMap) -> Result<Option<Duration>> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|text| {
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number: u64 = digits.parse().ok().filter(|_| plain)?;
        Some(match unit {
            "H" => Duration::from_secs(number * 3600),
            "M" => Duration::from_secs(number * 60),
            "S" => Duration::from_secs(number),
            "m" => Duration::from_millis(number),
            "u" => Duration::from_micros(number),
            "n" => Duration::from_nanos(number),
            _ => return None,
        })
    });
    parsed.map(Some).ok_or_else(|| Error::bad_request(format!("grpc-timeout is no timeout: {value:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_units() {
        let read = |text: &str| {
            let value = text.parse().unwrap();
            timeout(&HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), value)]))
        };
        for (text, expected) in [
            ("2H", Duration::from_secs(7200)),
            ("3M", Duration::from_secs(180)),
            ("1S", Duration::from_secs(1)),
            ("99999999m", Duration::from_millis(99_999_999)),
            ("5u", Duration::from_micros(5)),
            ("0n", Duration::ZERO),
        ] {
            assert_eq!(read(text).unwrap(), Some(expected), "{text}");
        }
        for text in ["", "S", "1", "1s", "-1S", "+1S", "123456789S", "1.5S", " 1S"] {
            assert!(read(text).is_err(), "{text}");
        }
        assert_eq!(timeout(&HeaderMap::new()).unwrap(), None);
    }
}
