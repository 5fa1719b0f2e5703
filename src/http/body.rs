//! Reading request bodies: whole, bounded, and with errors that say what was expected.

use axum::body::{Body, Bytes};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// The whole body, at most `limit` bytes.
pub(super) async fn read(body: Body, limit: usize) -> Result<Bytes> {
    // What is announced as too long is not read at all.
    let announced = axum::body::HttpBody::size_hint(&body).lower();
    if announced > limit as u64 {
        return Err(Error::TooLarge { what: "request body in bytes", got: announced, limit: limit as u64 });
    }
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
            Err(Error::TooLarge { what: "request body in bytes", got: limit as u64 + 1, limit: limit as u64 })
        }
        Err(error) => Err(Error::bad_request(format!("the request body could not be read: {error}"))),
    }
}

/// Parses JSON; the error says where it broke.
pub(super) fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::bad_request(format!("the body is not what was expected: {e}")))
}

/// Parses JSON where no body at all means the default.
pub(super) fn json_or_default<T: DeserializeOwned + Default>(bytes: &[u8]) -> Result<T> {
    if bytes.iter().all(u8::is_ascii_whitespace) { Ok(T::default()) } else { json(bytes) }
}
