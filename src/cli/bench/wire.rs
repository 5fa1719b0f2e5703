//! One client's connection: a request out, an answer in, and of the answer no more than is asked for.

use std::sync::Arc;

use http_body_util::{BodyExt as _, Full};
use hyper::Response;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::load::{Outcome, Shared};
use super::target::Target;

/// Answers that are read for checking or for telling an error are not read further than this.
const MAX_READ_BYTES: usize = 64 << 20;

/// A kept-alive connection, opened when it is needed.
#[derive(Debug, Default)]
pub(super) struct Wire {
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Wire {
    /// The next request gets a new connection.
    pub(super) fn close(&mut self) {
        self.sender = None;
    }

    /// Sends a request and receives its answer; how it ended, and the stamp's index.
    pub(super) async fn exchange(&mut self, shared: &Shared, payload: usize) -> (Outcome, u16) {
        let response = match self.send(&shared.target, payload).await {
            Ok(response) => response,
            Err((outcome, reason)) => {
                shared.example(|| format!("{}: {reason}", outcome.name()));
                return (outcome, 0);
            }
        };
        let stamp = shared.stamp(response.headers());
        let outcome = Outcome::Status(response.status().as_u16());
        let checker = shared.target.checker.as_ref().filter(|_| outcome.ok());
        if outcome.ok() && checker.is_none() {
            return (drain(response).await.unwrap_or(outcome), stamp);
        }
        let version = response.headers().get("x-cutover-version").and_then(|v| v.to_str().ok()).map(str::to_owned);
        let Some(body) = read(response).await else {
            shared.example(|| format!("{}: the answer ended early", outcome.name()));
            return (Outcome::Broken, stamp);
        };
        match checker.map(|checker| checker.check(version.as_deref(), payload, &body)) {
            None => {
                shared.example(|| {
                    format!("{}: {}", outcome.name(), String::from_utf8_lossy(&body[..body.len().min(300)]))
                });
                (outcome, stamp)
            }
            Some(Ok(())) => (outcome, stamp),
            Some(Err(reason)) => {
                shared.example(|| format!("wrong answer: {reason}"));
                (Outcome::Wrong, stamp)
            }
        }
    }

    /// Sends on the connection that there is. If it turns out to have been closed while it was idle and not a byte
    /// of the request was written, once more on a new one: no request was lost, so none is counted.
    pub(super) async fn send(
        &mut self,
        target: &Target,
        payload: usize,
    ) -> Result<Response<Incoming>, (Outcome, String)> {
        let mut request = target.request(&target.payloads[payload]);
        loop {
            let kept = self.sender.take().filter(|sender| !sender.is_closed());
            let reused = kept.is_some();
            let mut sender = match kept {
                Some(sender) => sender,
                None => connect(target).await.map_err(|reason| (Outcome::Unreachable, reason))?,
            };
            if let Err(e) = sender.ready().await {
                if reused {
                    continue;
                }
                return Err((Outcome::Broken, e.to_string()));
            }
            match sender.try_send_request(request).await {
                Ok(response) => {
                    self.sender = Some(sender);
                    return Ok(response);
                }
                Err(mut e) => match e.take_message() {
                    Some(unsent) if reused => request = unsent,
                    _ => return Err((Outcome::Broken, e.into_error().to_string())),
                },
            }
        }
    }
}

async fn connect(target: &Target) -> Result<SendRequest<Full<Bytes>>, String> {
    let stream = TcpStream::connect(&target.addresses[..]).await.map_err(|e| e.to_string())?;
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    match &target.tls {
        None => speak(stream).await,
        Some((config, name)) => {
            let connector = TlsConnector::from(Arc::clone(config));
            speak(connector.connect(name.clone(), stream).await.map_err(|e| e.to_string())?).await
        }
    }
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<SendRequest<Full<Bytes>>, String> {
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(async move {
        // Its end reaches the request that is on it, which records it.
        let _seen_by_the_request = connection.await;
    });
    Ok(sender)
}

/// Receives a body and drops it; an outcome only when it did not come whole.
async fn drain(response: Response<Incoming>) -> Option<Outcome> {
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        if frame.is_err() {
            return Some(Outcome::Broken);
        }
    }
    None
}

async fn read(response: Response<Incoming>) -> Option<Vec<u8>> {
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.ok()?.into_data() {
            if bytes.len() + data.len() > MAX_READ_BYTES {
                return None;
            }
            bytes.extend_from_slice(&data);
        }
    }
    Some(bytes)
}
