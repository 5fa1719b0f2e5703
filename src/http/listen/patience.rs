//! Streams that give up: on a client that sends no request, and on one that takes no answer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::ListenLimits;
use super::crowd::{Doing, Place, State};

/// A timer that is made when it is needed first, and only turned on from then on.
#[derive(Debug, Default)]
struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
    at: Option<Instant>,
}

impl Alarm {
    /// Whether it is time.
    fn is_over(&mut self, at: Instant, cx: &mut Context<'_>) -> bool {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at.into())));
        if self.at != Some(at) {
            sleep.as_mut().reset(at.into());
            self.at = Some(at);
        }
        sleep.as_mut().poll(cx).is_ready()
    }
}

/// Ends when a client has taken nothing for too long although there is something to take.
#[derive(Debug)]
pub(super) struct Unstalled<S> {
    stream: S,
    patience: Duration,
    stalled: Option<Instant>,
    alarm: Alarm,
}

impl<S> Unstalled<S> {
    pub(super) fn new(stream: S, patience: Duration) -> Self {
        Unstalled { stream, patience, stalled: None, alarm: Alarm::default() }
    }

    fn watched<T>(&mut self, polled: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let since = *self.stalled.get_or_insert_with(Instant::now);
        match self.alarm.is_over(since + self.patience, cx) {
            true => Poll::Ready(Err(late("the client takes nothing of its answer"))),
            false => Poll::Pending,
        }
    }
}

fn late(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl<S: AsyncRead + Unpin> AsyncRead for Unstalled<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Unstalled<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watched(polled, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watched(polled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.watched(polled, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watched(polled, cx)
    }
}

/// After its last byte was sent, what still comes is read for so long, and so much of it.
const FAREWELL: Duration = Duration::from_secs(1);
const MOST_FAREWELL_BYTES: usize = 1 << 20;

/// Ends when a client keeps its next request waiting for too long, and tells its place what comes and goes.
#[derive(Debug)]
pub(super) struct Punctual<S> {
    stream: S,
    place: Arc<Place>,
    limits: ListenLimits,
    alarm: Alarm,
    farewell: Farewell,
}

/// Closing a socket with bytes unread resets the connection, and a client that is still sending may never see its answer.
/// So its bytes are read for a moment (as RFC 9112, 9.6 has it).
#[derive(Debug, Default)]
struct Farewell {
    /// The client will send no more.
    ended: bool,
    since: Option<Instant>,
    read: usize,
}

impl<S> Punctual<S> {
    pub(super) fn new(stream: S, place: Arc<Place>, limits: ListenLimits) -> Self {
        place.greeted(Instant::now());
        Punctual { stream, place, limits, alarm: Alarm::default(), farewell: Farewell::default() }
    }

    /// When the client must have sent more; a request in hand has its own limits.
    fn deadline(&self, state: State) -> Option<Instant> {
        match state.doing {
            Doing::Waiting if state.known => Some(state.since + self.limits.keep_alive),
            Doing::Waiting | Doing::Head => Some(state.since + self.limits.head),
            Doing::Busy => None,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Punctual<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, buf) {
            // Nothing read is the end.
            match buf.filled().len() > before {
                true => self.place.bytes_came(Instant::now()),
                false => self.farewell.ended = true,
            }
            return Poll::Ready(read);
        }
        match self.deadline(self.place.look()) {
            Some(at) if self.alarm.is_over(at, cx) => Poll::Ready(Err(late("no request came"))),
            _ => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Punctual<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.place.writes(true);
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.place.writes(true);
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        if polled.is_ready() {
            self.place.writes(false);
        }
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.farewell.since.is_none() {
            std::task::ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.farewell.since = Some(Instant::now());
        }
        let until = self.farewell.since.map_or_else(Instant::now, |since| since + FAREWELL);
        while !self.farewell.ended && self.farewell.read < MOST_FAREWELL_BYTES {
            let mut bytes = [std::mem::MaybeUninit::uninit(); 4096];
            let mut buffer = ReadBuf::uninit(&mut bytes);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Pending if self.alarm.is_over(until, cx) => break,
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => self.farewell.read += buffer.filled().len(),
                // It is gone, one way or the other.
                Poll::Ready(_) => self.farewell.ended = true,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_given_up_and_one_that_takes_a_little_is_not() {
        let (near, mut far) = duplex(8);
        let patience = Duration::from_millis(400);
        let mut stream = Unstalled::new(near, patience);
        let reader = tokio::spawn(async move {
            let mut byte = [0];
            for _ in 0..20 {
                tokio::time::sleep(patience / 8).await;
                far.read_exact(&mut byte).await.unwrap();
            }
            // From here on it only holds the connection.
            far
        });
        let began = Instant::now();
        let error = stream.write_all(&[7; 100]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // What it took, and then its patience.
        assert!(began.elapsed() >= patience / 8 * 20 + patience, "{:?}", began.elapsed());
        drop(reader.await);
    }

    #[tokio::test]
    async fn a_client_that_sends_no_whole_head_is_given_up_and_a_request_in_hand_is_not() {
        let short = Duration::from_millis(50);
        let limits =
            ListenLimits { max_connections: 1, head: short, keep_alive: 4 * short, write: short, handshake: short };
        let (near, mut far) = duplex(64);
        let place = Arc::new(Place::new(Instant::now()));
        let mut stream = Punctual::new(near, Arc::clone(&place), limits);
        let mut byte = [0];
        far.write_all(b"G").await.unwrap();
        stream.read_exact(&mut byte).await.unwrap();
        assert_eq!(stream.read(&mut byte).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let turn = place.turn();
        assert!(tokio::time::timeout(3 * short, stream.read(&mut byte)).await.is_err(), "it was busy");
        drop(turn);
        let began = Instant::now();
        assert_eq!(stream.read(&mut byte).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= 3 * short, "an idle connection has longer: {:?}", began.elapsed());
    }
}
