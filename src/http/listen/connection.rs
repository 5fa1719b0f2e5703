//! One connection, from its first byte to its last.

use std::convert::Infallible;
use std::future::ready;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Request, Response, StatusCode};
use futures_util::future::Either;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::Watcher;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;

use super::crowd::{Doing, Seat, Turn};
use super::patience::{Punctual, Unstalled};
use super::{FAREWELL, ListenLimits, Protocol, Stage, Tls, closed, turned_away};

/// Bytes of a request's head, all headers with it; also what is read or written at once. (Answered with 431.)
pub(super) const MOST_HEAD_BYTES: usize = 64 << 10;
/// Headers of a request. (431.)
const MOST_HEADERS: usize = 100;
/// Bytes of a request's target. (414; RFC 9110, 4.1 asks for 8000 at least.)
const MOST_TARGET_BYTES: usize = 16 << 10;

/// How connections of a listener are served.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) router: Router,
    pub(super) limits: ListenLimits,
    pub(super) protocol: Protocol,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) stage: watch::Receiver<Stage>,
}

impl Connection {
    pub(super) async fn serve(self, stream: TcpStream, seat: Seat, graceful: Watcher) {
        let Some(tls) = self.tls.clone() else {
            let stream = Unstalled::new(stream, self.limits.write);
            return self.speak(stream, &seat, graceful).await;
        };
        let greeted = tokio::select! {
            biased;
            () = seat.place.asked_to_leave() => return,
            greeted = tokio::time::timeout(self.limits.handshake, self.greet(stream, &tls)) => greeted,
        };
        match greeted {
            Ok(Ok(Some(stream))) => self.speak(stream, &seat, graceful).await,
            Ok(Ok(None)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    /// Shakes hands. None when the client speaks something else, and was told so.
    async fn greet(&self, stream: TcpStream, tls: &Tls) -> std::io::Result<Option<TlsStream<Unstalled<TcpStream>>>> {
        let mut first = [0];
        // A TLS record that begins a connection is a handshake (RFC 8446, 5.1); methods of HTTP are letters.
        if stream.peek(&mut first).await? == 1 && first[0].is_ascii_alphabetic() {
            turned_away::not_tls(stream).await;
            return Ok(None);
        }
        tls.acceptor(self.protocol).accept(Unstalled::new(stream, self.limits.write)).await.map(Some)
    }

    async fn speak<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
        self,
        stream: S,
        seat: &Seat,
        graceful: Watcher,
    ) {
        match self.protocol {
            Protocol::Http1 => self.http1(stream, seat, graceful).await,
            Protocol::Http2 => self.http2(stream, seat, graceful).await,
        }
    }

    /// Serves until the client ends it, it has to go, or the server closes; `graceful` keeps the server from ending before.
    ///
    /// A server that closes an idle connection at once breaks the request that is on its way to it (RFC 9112, 9.3.1), and
    /// that most clients do not send again. Whoever is idle then has a moment, and one answer more.
    async fn http1<S: AsyncRead + AsyncWrite + Unpin + 'static>(self, stream: S, seat: &Seat, graceful: Watcher) {
        let Connection { router, limits, mut stage, .. } = self;
        let stream = Punctual::new(stream, seat.place.clone(), limits);
        let router = TowerToHyperService::new(router);
        // Of this connection alone: no request looks at what all of them share.
        let leaving = AtomicBool::new(false);
        let service = service_fn(|request: Request<Incoming>| {
            let turn = seat.place.turn();
            let answer = match too_long(&request) {
                None => Either::Left(router.call(request)),
                Some(refusal) => Either::Right(ready(Ok(refusal))),
            };
            let leaving = &leaving;
            async move {
                let mut response: Response<_> = answer.await?;
                if leaving.load(Ordering::Relaxed) {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response.map(|body| Attended { body, held: turn }))
            }
        });
        let mut builder = http1::Builder::new();
        // Heads have their time in `Punctual`, which also knows idle connections.
        builder.header_read_timeout(None).max_buf_size(MOST_HEAD_BYTES).max_headers(MOST_HEADERS);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let farewell = async {
            drop(stage.wait_for(|stage| *stage > Stage::Open).await);
            leaving.store(true, Ordering::Relaxed);
            closed(&mut stage).await;
            if seat.place.look().doing != Doing::Busy {
                tokio::time::sleep(FAREWELL).await;
            }
        };
        let mut ended = tokio::select! {
            biased;
            () = seat.place.asked_to_leave() => return tracing::debug!("an idle connection made room for a new one"),
            () = farewell => None,
            ended = &mut connection => Some(ended),
        };
        if ended.is_none() {
            connection.as_mut().graceful_shutdown();
            ended = Some(connection.await);
        }
        if let Some(Err(error)) = ended {
            tracing::debug!(%error, "a connection ended with an error");
        }
        drop(graceful);
    }
}

/// The answer to a request whose head is too long. The buffer alone does not bound it: what arrives at once with its end
/// is read whole.
pub(super) fn too_long<T>(request: &Request<T>) -> Option<Response<Body>> {
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    let (status, what, most) = if target > MOST_TARGET_BYTES {
        (StatusCode::URI_TOO_LONG, "target", MOST_TARGET_BYTES)
    } else if head_bytes(request, target) > MOST_HEAD_BYTES {
        (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "head", MOST_HEAD_BYTES)
    } else {
        return None;
    };
    let mut response = Response::new(Body::from(format!("the request's {what} is longer than {most} bytes\n")));
    *response.status_mut() = status;
    Some(response)
}

/// As it is written in HTTP/1.1: `GET /target HTTP/1.1`, a line for each header, an empty line.
fn head_bytes<T>(request: &Request<T>, target: usize) -> usize {
    let authority = request.uri().authority().map_or(0, |authority| authority.as_str().len());
    let first = request.method().as_str().len() + authority + target + " ".len() + " HTTP/1.1\r\n".len();
    let headers = request.headers().iter();
    first
        + headers.map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len()).sum::<usize>()
        + "\r\n".len()
}

/// An answer's body, and what is held until its last byte was handed over.
pub(super) struct Attended<T> {
    pub(super) body: Body,
    pub(super) held: T,
}

pub(super) trait Held: Unpin {
    /// More of the answer is wanted: what there was of it has been taken.
    fn moved(&self) {}
}

/// That a client takes nothing is seen by the stream.
impl Held for Turn {}

impl<T: Held> HttpBody for Attended<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.held.moved();
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
