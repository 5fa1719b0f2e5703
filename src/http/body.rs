//! Reading request bodies: whole, bounded, and with errors that say what was expected.

use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::Request;
use axum::http::header;
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Bytes beyond the limit that are read and thrown away, so that a client that is still sending sees the refusal and
/// not a connection that breaks.
const DISCARDED: u64 = 64 << 20;

/// The whole body, at most `limit` bytes, each part of it within `patience` of the one before.
pub(super) async fn read(request: Request, limit: usize, patience: Duration) -> Result<Bytes> {
    let limit = limit as u64;
    // Such a client sends nothing before it is told to, and need not be.
    let waits = request.headers().contains_key(header::EXPECT);
    let mut body = request.into_body();
    let announced = body.size_hint().lower();
    if announced > limit {
        if !waits && announced - limit <= DISCARDED {
            discard(&mut body, patience).await;
        }
        return Err(too_large(announced, limit));
    }
    let (mut parts, mut got): (Vec<Bytes>, u64) = (Vec::new(), 0);
    while let Some(part) = next(&mut body, patience).await? {
        got += part.len() as u64;
        if got > limit {
            discard(&mut body, patience).await;
            return Err(too_large(got, limit));
        }
        parts.push(part);
    }
    // Most bodies come in one part, which is handed on as it is.
    Ok(if parts.len() == 1 { parts.swap_remove(0) } else { parts.concat().into() })
}

/// The next part of the body; none at its end.
async fn next(body: &mut Body, patience: Duration) -> Result<Option<Bytes>> {
    loop {
        let stalled =
            |_| Error::bad_request(format!("nothing of the request body came for {} ms", patience.as_millis()));
        match tokio::time::timeout(patience, body.frame()).await.map_err(stalled)? {
            None => return Ok(None),
            Some(Err(error)) => {
                return Err(Error::bad_request(format!("the request body could not be read: {error}")));
            }
            Some(Ok(frame)) => {
                // Trailers say nothing here.
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// Reads on for nothing, as far as that may go. How it ends is no matter: the request is refused already.
async fn discard(body: &mut Body, patience: Duration) {
    let mut left = DISCARDED;
    while let Ok(Some(part)) = next(body, patience).await {
        left = left.saturating_sub(part.len() as u64);
        if left == 0 {
            return;
        }
    }
}

fn too_large(got: u64, limit: u64) -> Error {
    Error::TooLarge { what: "request body in bytes", got, limit }
}

/// Parses a JSON object; the error says where it broke.
pub(super) fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let text = std::str::from_utf8(bytes)
        .map_err(|e| Error::bad_request(format!("the body is not UTF-8 (at byte {})", e.valid_up_to())))?;
    // Without this an array would be taken for the fields in their order.
    if !text.trim_start().starts_with('{') {
        return Err(Error::bad_request("the body is not a JSON object"));
    }
    serde_json::from_str(text).map_err(|e| Error::bad_request(format!("the body is not what was expected: {e}")))
}

/// Parses JSON where no body at all means the default.
pub(super) fn json_or_default<T: DeserializeOwned + Default>(bytes: &[u8]) -> Result<T> {
    if bytes.iter().all(u8::is_ascii_whitespace) { Ok(T::default()) } else { json(bytes) }
}
