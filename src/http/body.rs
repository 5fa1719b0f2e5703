//! Reading request bodies: whole, bounded, and with errors that say what was expected.

use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::error::{Error, Result};

/// Bytes beyond the limit that are read and thrown away, so that a client that is still sending sees the refusal and
/// not a connection that breaks.
const DISCARDED: u64 = 64 << 20;
/// Between two parts of a body that nobody wants.
const REFUSED_PATIENCE: Duration = Duration::from_secs(2);

/// Bytes a second that a body must come with on the whole, lest one that trickles holds its connection for ever.
const SLOWEST: f64 = 4096.0;

/// The whole body, at most `limit` bytes, each part of it within `patience` of the one before. A compressed one is
/// refused: what it would come to cannot be told before.
pub(super) async fn read(request: Request, limit: usize, patience: Duration) -> Result<Bytes> {
    let plain = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    let coding = request.headers().get_all(header::CONTENT_ENCODING).into_iter().find(|value| !plain(value));
    if let Some(coding) = coding {
        let coding = String::from_utf8_lossy(coding.as_bytes());
        let reason = format!("the body is encoded as '{coding}' (content-encoding); send it as it is");
        discard(request).await;
        return Err(Error::Unsupported { reason });
    }
    read_encoded(request, limit, patience).await
}

/// The same, as it came, however it is encoded.
pub(super) async fn read_encoded(request: Request, limit: usize, patience: Duration) -> Result<Bytes> {
    let limit = limit as u64;
    // Such a client sends nothing before it is told to, and need not be.
    let waits = request.headers().contains_key(header::EXPECT);
    let mut body = Incoming::new(request.into_body(), patience);
    let announced = body.body.size_hint().lower();
    if announced > limit {
        if !waits && announced - limit <= DISCARDED {
            body.discard().await;
        }
        return Err(too_large(announced, limit));
    }
    let mut parts: Vec<Bytes> = Vec::new();
    while let Some(part) = body.next().await? {
        if body.got > limit {
            let got = body.got;
            body.discard().await;
            return Err(too_large(got, limit));
        }
        parts.push(part);
    }
    // Most bodies come in one part, which is handed on as it is.
    Ok(if parts.len() == 1 { parts.swap_remove(0) } else { parts.concat().into() })
}

/// Throws the body of a request away that was refused by its head.
pub(super) async fn discard(request: Request) {
    if !request.headers().contains_key(header::EXPECT) {
        Incoming::new(request.into_body(), REFUSED_PATIENCE).discard().await;
    }
}

/// A body on its way in, and how long it may take.
struct Incoming {
    body: Body,
    began: Instant,
    patience: Duration,
    /// Bytes so far.
    got: u64,
}

impl Incoming {
    fn new(body: Body, patience: Duration) -> Self {
        Incoming { body, began: Instant::now(), patience, got: 0 }
    }

    /// The next part of the body; none at its end.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let earned = Duration::from_secs_f64(self.got as f64 / SLOWEST);
            let (next, whole) = (Instant::now() + self.patience, self.began + 2 * self.patience + earned);
            let frame = match tokio::time::timeout_at(next.min(whole), self.body.frame()).await {
                Ok(frame) => frame,
                Err(_) if whole < next => {
                    let told = format!("the request body came too slowly: {} bytes so far", self.got);
                    return Err(Error::bad_request(told));
                }
                Err(_) => {
                    let ms = self.patience.as_millis();
                    return Err(Error::bad_request(format!("nothing of the request body came for {ms} ms")));
                }
            };
            match frame {
                None => return Ok(None),
                Some(Err(error)) => {
                    return Err(Error::bad_request(format!("the request body could not be read: {error}")));
                }
                Some(Ok(frame)) => {
                    // Trailers say nothing here.
                    if let Ok(data) = frame.into_data() {
                        self.got += data.len() as u64;
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// Reads on for nothing, as far as that may go. How it ends is no matter: the request is refused already.
    async fn discard(&mut self) {
        let most = self.got + DISCARDED;
        while let Ok(Some(_)) = self.next().await {
            if self.got >= most {
                return;
            }
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
