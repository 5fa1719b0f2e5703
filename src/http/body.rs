//! Reading request bodies: whole, bounded each by itself and all of them together. `json` reads what is in them.

mod json;

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

pub(super) use self::json::{MOST_VALUES, Object, json, json_or_default};
use crate::error::{Error, Result};

/// Bytes beyond the limit that are read and thrown away, so that a client that is still sending sees the refusal and
/// not a connection that breaks.
const DISCARDED: u64 = 64 << 20;
/// Between two parts of a body that nobody wants.
const REFUSED_PATIENCE: Duration = Duration::from_secs(2);

/// Bytes a second that a body must come with on the whole, lest one that trickles holds its connection for ever.
const SLOWEST: f64 = 4096.0;

/// So much of each body counts for nothing: small requests are read however many large ones are in hand.
const UNCOUNTED: u64 = 64 << 10;
/// Room is counted in pieces of so many bytes.
const PIECE: u64 = 1 << 10;

/// Room for bodies, for all requests of the server together.
#[derive(Debug, Clone)]
pub struct Room(Arc<Semaphore>);

impl Room {
    pub fn new(bytes: usize) -> Room {
        Room(Arc::new(Semaphore::new((bytes / PIECE as usize).min(Semaphore::MAX_PERMITS))))
    }
}

/// What a body may be, and how long it may take to come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds<'a> {
    pub(super) bytes: usize,
    pub(super) patience: Duration,
    pub(super) room: &'a Room,
}

/// The whole body, each part of it within the patience for the one before. A compressed one is refused: what it would
/// come to cannot be told before.
pub(super) async fn read(request: Request, bounds: Bounds<'_>) -> Result<Bytes> {
    let plain = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    let coding = request.headers().get_all(header::CONTENT_ENCODING).into_iter().find(|value| !plain(value));
    if let Some(coding) = coding {
        let coding = String::from_utf8_lossy(coding.as_bytes());
        let reason = format!("the body is encoded as '{coding}' (content-encoding); send it as it is");
        discard(request).await;
        return Err(Error::Unsupported { reason });
    }
    read_encoded(request, bounds).await
}

/// The same, as it came, however it is encoded.
pub(super) async fn read_encoded(request: Request, bounds: Bounds<'_>) -> Result<Bytes> {
    let Bounds { bytes, patience, room } = bounds;
    let limit = bytes as u64;
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
    let mut held = Held { room, permit: None };
    while let Some(part) = body.next().await? {
        let refused = match body.got > limit {
            true => Some(too_large(body.got, limit)),
            false => held.grow(body.got).err(),
        };
        if let Some(error) = refused {
            drop((parts, held));
            body.discard().await;
            return Err(error);
        }
        parts.push(part);
    }
    // Most bodies come in one part, which is handed on as it is.
    let whole = if parts.len() == 1 { parts.swap_remove(0) } else { parts.concat().into() };
    Ok(held.with(whole))
}

/// Room that a body takes, until its last byte is let go.
struct Held<'a> {
    room: &'a Room,
    permit: Option<OwnedSemaphorePermit>,
}

impl Held<'_> {
    /// Takes room for so many bytes in all.
    fn grow(&mut self, bytes: u64) -> Result<()> {
        let pieces = bytes.saturating_sub(UNCOUNTED).div_ceil(PIECE);
        let more = pieces.saturating_sub(self.permit.as_ref().map_or(0, |permit| permit.num_permits() as u64));
        if more == 0 {
            return Ok(());
        }
        let busy = || Error::Busy {
            reason: "the bodies of other requests take all the room there is".into(),
            retry_after: Duration::from_secs(1),
        };
        let more = u32::try_from(more).map_err(|_| busy())?;
        let more = Arc::clone(&self.room.0).try_acquire_many_owned(more).map_err(|_| busy())?;
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        Ok(())
    }

    fn with(self, bytes: Bytes) -> Bytes {
        struct Owner {
            bytes: Bytes,
            _permit: OwnedSemaphorePermit,
        }
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                &self.bytes
            }
        }
        match self.permit {
            Some(permit) => Bytes::from_owner(Owner { bytes, _permit: permit }),
            None => bytes,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    async fn reads(bytes: usize, room: &Room) -> Result<Bytes> {
        let request = Request::new(Body::from(vec![7; bytes]));
        read(request, Bounds { bytes: 1 << 20, patience: Duration::from_secs(1), room }).await
    }

    #[tokio::test]
    async fn large_bodies_share_the_room_and_small_ones_need_none() {
        let room = Room::new(300 << 10);
        let first = reads(256 << 10, &room).await.unwrap();
        assert_eq!((first.len(), first[9]), (256 << 10, 7));
        let error = reads(256 << 10, &room).await.unwrap_err();
        assert!(matches!(error, Error::Busy { .. }), "{error}");
        assert_eq!(reads(60 << 10, &room).await.unwrap().len(), 60 << 10);
        // A part of it holds all of it.
        let part = first.slice(..1);
        drop(first);
        assert!(reads(256 << 10, &room).await.is_err());
        drop(part);
        assert!(reads(256 << 10, &room).await.is_ok());
    }
}
