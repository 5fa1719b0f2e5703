//! Listeners: who is connected, how long each may keep us waiting, and what happens when there are too many.
//!
//! It knows sockets and time, and hands whole requests to a router; it must not know routes, models or dialects. Each
//! listener counts its own connections, so that a flood of one does not shut the other. A connection that waits for a
//! request may be closed in favour of a new one; one with a request in hand never is (promise 1).

mod connection;
mod crowd;
mod http2;
mod patience;
mod tls;
mod turned_away;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use connection::Connection;
use crowd::{Crowd, Seat};
pub use tls::Tls;

/// Who is told so at once that there is no room; the rest are closed without a word.
const TOLD_AT_ONCE: usize = 64;
/// Between two tries when the process has no descriptor left.
const OUT_OF_FILES_PAUSE: Duration = Duration::from_millis(20);
/// For a client to hear that it shall go, and for what it sent before it heard.
const FAREWELL: Duration = Duration::from_secs(1);
/// A flood of failures is one line in so long a time.
const QUIET: Duration = Duration::from_secs(5);

/// What a connection may cost.
#[derive(Debug, Clone)]
pub struct ListenLimits {
    /// Open connections of one listener.
    pub max_connections: usize,
    /// A request's head must be there so long after its first byte, the first one after the connection.
    pub head: Duration,
    /// How long a connection may idle between two requests.
    pub keep_alive: Duration,
    /// A client that takes nothing of an answer for so long is gone.
    pub write: Duration,
    /// How long a TLS handshake may take, from the connection on.
    pub handshake: Duration,
}

/// How far the end of a server has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Open,
    /// Everybody is served still, as whoever spreads clients over servers takes a while to look away. In HTTP/1 they are told
    /// to come by another connection next time.
    Leaving,
    /// Nobody new is let in, and those who are here finish what they do.
    Closed,
}

/// What a listener speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    /// From the first byte, as gRPC's clients do (RFC 9113, 3.3 "prior knowledge"; over TLS, "h2").
    Http2,
}

/// One listener, until it is closed: then its connections finish what they do.
pub struct Door {
    pub listener: TcpListener,
    pub router: Router,
    pub limits: ListenLimits,
    pub protocol: Protocol,
    /// Without it, plain HTTP.
    pub tls: Option<Arc<Tls>>,
}

impl Door {
    pub async fn serve(self, mut stage: watch::Receiver<Stage>) {
        let graceful = GracefulShutdown::new();
        let crowd = Arc::new(Crowd::new(self.limits.max_connections));
        let telling = Arc::new(Semaphore::new(TOLD_AT_ONCE));
        let (mut full, mut failed) = (Rarely::default(), Rarely::default());
        let Door { router, limits, protocol, tls, .. } = self;
        let connection = Connection { router, limits, protocol, tls, stage: stage.clone() };
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = closed(&mut stage) => break,
            };
            match accepted {
                Ok((stream, _)) => match crowd.enter().await {
                    Some(seat) => open(stream, seat, &connection, &graceful),
                    None => {
                        // An answer in HTTP/1.1 says nothing to a client of HTTP/2.
                        let plain = connection.tls.is_none() && protocol == Protocol::Http1;
                        full.say(|times| tracing::warn!(times, "a connection was turned away: too many are open"));
                        // Without a permit the stream is closed here; a handshake for it would cost too much.
                        if let (true, Ok(permit)) = (plain, Arc::clone(&telling).try_acquire_owned()) {
                            tokio::spawn(async move {
                                turned_away::no_room(stream).await;
                                drop(permit);
                            });
                        }
                    }
                },
                // The client left again before it was accepted.
                Err(error) if is_the_clients(&error) => tracing::debug!(%error, "a connection was lost"),
                Err(error) => {
                    // Out of descriptors, mostly. Idle connections hold some.
                    crowd.make_room();
                    failed.say(|times| tracing::warn!(%error, times, "a connection could not be accepted"));
                    tokio::time::sleep(OUT_OF_FILES_PAUSE).await;
                }
            }
        }
        drop(self.listener);
        graceful.shutdown().await;
    }
}

fn open(stream: TcpStream, seat: Seat, connection: &Connection, graceful: &GracefulShutdown) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    tokio::spawn(connection.clone().serve(stream, seat, graceful.watcher()));
}

/// Errors of accept(2) that are about the one connection.
fn is_the_clients(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Resolves when the server closes, or the sender is gone.
async fn closed(stage: &mut watch::Receiver<Stage>) {
    drop(stage.wait_for(|stage| *stage == Stage::Closed).await);
}

/// Says what happens often once in a while, with how often it was.
#[derive(Default)]
struct Rarely {
    last: Option<Instant>,
    times: u64,
}

impl Rarely {
    fn say(&mut self, say: impl FnOnce(u64)) {
        self.times += 1;
        if self.last.is_none_or(|last| last.elapsed() >= QUIET) {
            say(self.times);
            (self.last, self.times) = (Some(Instant::now()), 0);
        }
    }
}
