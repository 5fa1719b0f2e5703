//! A connection of HTTP/2: many requests at once, and an orderly end.
//!
//! Where HTTP/1 has a head, a body and an answer in turn, here are streams: a connection is idle while it has none, and is
//! told to go away (GOAWAY) before it is closed, so that a client loses no request that it just sent. An answer whose
//! client takes nothing of it ends the connection, whatever else it carries: credit that never comes would hold the
//! answer, and its connection's place, for ever.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::ready;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{Request, Response};
use futures_util::future::Either;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::{Attended, Connection, Held, MOST_HEAD_BYTES, too_long};
use super::crowd::{Doing, Place, Seat, Turn};
use super::{FAREWELL, ListenLimits, closed};

/// Requests of one connection at once.
const MOST_STREAMS: u32 = 256;
/// An idle client is asked whether it is there.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(20);

impl Connection {
    /// Serves until the client ends it, the server stops, or it has to go; `graceful` keeps the server from ending before.
    pub(super) async fn http2<S>(self, stream: S, seat: &Seat, graceful: Watcher)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Connection { router, limits, mut stage, .. } = self;
        seat.place.greeted(Instant::now());
        let router = TowerToHyperService::new(router);
        let answers = Arc::new(Answers::default());
        let service = service_fn(|request: Request<Incoming>| {
            let turn = seat.place.turn();
            let answer = match too_long(&request) {
                None => Either::Left(router.call(request)),
                Some(refusal) => Either::Right(ready(Ok(refusal))),
            };
            let answers = Arc::clone(&answers);
            async move {
                let response: Response<_> = answer.await?;
                let begun = answers.begin(turn);
                Ok::<_, Infallible>(response.map(|body| Attended { body, held: begun }))
            }
        });
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(MOST_STREAMS)
            .max_header_list_size(MOST_HEAD_BYTES as u32)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG);
        let farewell = GracefulShutdown::new();
        let mut connection = pin!(farewell.watch(builder.serve_connection(TokioIo::new(stream), service)));
        let mut ended = tokio::select! {
            biased;
            ended = &mut connection => Some(ended),
            () = stalled(&answers, limits.write) => return,
            () = closed(&mut stage) => None,
            () = seat.place.asked_to_leave() => None,
            () = idle(&seat.place, &limits) => None,
        };
        if ended.is_none() {
            let leave = async { tokio::join!(&mut connection, farewell.shutdown()).0 };
            ended = tokio::select! {
                ended = leave => Some(ended),
                () = stalled(&answers, limits.write) => None,
                // A client that does not go is closed once nothing of it is in hand.
                () = gone_quiet(&seat.place, FAREWELL) => None,
            };
        }
        if let Some(Err(error)) = ended {
            tracing::debug!(%error, "a connection ended with an error");
        }
        drop(graceful);
    }
}

/// Resolves when a connection has had no request for as long as it may.
async fn idle(place: &Place, limits: &ListenLimits) {
    loop {
        let state = place.look();
        let patience = if state.known { limits.keep_alive } else { limits.head };
        if rested(place, patience).await {
            return;
        }
    }
}

/// Resolves when that long from now has passed, and then no request is in hand.
async fn gone_quiet(place: &Place, patience: Duration) {
    tokio::time::sleep(patience).await;
    while !rested(place, patience).await {}
}

/// Waits until `patience` has passed since the last request, or since now if there is one. Whether it had passed before.
async fn rested(place: &Place, patience: Duration) -> bool {
    let state = place.look();
    let (busy, now) = (state.doing == Doing::Busy, Instant::now());
    let until = if busy { now } else { state.since } + patience;
    if !busy && until <= now {
        return true;
    }
    tokio::time::sleep_until(until.into()).await;
    false
}

/// Resolves when an answer was not taken for too long.
async fn stalled(answers: &Answers, patience: Duration) {
    loop {
        let until = answers.oldest().unwrap_or_else(Instant::now) + patience;
        if until <= Instant::now() {
            tracing::debug!("a client takes nothing of its answer");
            return;
        }
        tokio::time::sleep_until(until.into()).await;
    }
}

/// Answers on their way out, by when something of them was taken last.
#[derive(Debug, Default)]
struct Answers(Mutex<Begun>);

#[derive(Debug, Default)]
struct Begun {
    next: u64,
    since: HashMap<u64, Instant>,
}

/// One answer, until it was handed over; its request is in hand as long.
struct Answering {
    answers: Arc<Answers>,
    number: u64,
    _turn: Turn,
}

impl Answers {
    fn lock(&self) -> MutexGuard<'_, Begun> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(self: &Arc<Self>, turn: Turn) -> Answering {
        let mut begun = self.lock();
        let number = begun.next;
        begun.next += 1;
        begun.since.insert(number, Instant::now());
        drop(begun);
        Answering { answers: Arc::clone(self), number, _turn: turn }
    }

    fn oldest(&self) -> Option<Instant> {
        self.lock().since.values().min().copied()
    }
}

impl Held for Answering {
    fn moved(&self) {
        if let Some(since) = self.answers.lock().since.get_mut(&self.number) {
            *since = Instant::now();
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.answers.lock().since.remove(&self.number);
    }
}
