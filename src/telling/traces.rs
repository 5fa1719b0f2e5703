//! Sending spans to a collector, in batches, from a task of its own.
//!
//! Whoever has a span puts it into a bounded queue and goes on; what finds no room is counted and gone. A collector that is away
//! costs the spans of that time, and nothing else.

use std::time::Duration;

use reqwest::Url;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::Count;
use super::config::{TelemetryTarget, parse_url};
use super::feed::Feed;
use super::otlp;
use super::post::{Address, Receiver, Refusal, secret};
use super::retry::pause;
use super::span::{Begun, Ended, Parent, Span, of_rollout};
use crate::error::{Error, Result};

/// Spans that wait.
const QUEUE: usize = 4096;
/// Spans of one request.
const BATCH: usize = 512;
/// How long the first span of a batch waits for others.
const COMPANY: Duration = Duration::from_secs(1);
const ATTEMPTS: u32 = 5;
const PATH: &str = "/v1/traces";
/// Whose counts these are.
const WHO: &str = "otlp";

/// A collector that is configured, its files read.
pub struct Collector {
    receiver: Receiver,
    timeout: Duration,
    sample: f64,
}

impl Collector {
    /// None where nothing is traced.
    ///
    /// # Errors
    /// `Config`, with the key that is wrong; `file` is what the configuration is called.
    pub fn open(config: &TelemetryTarget, file: &str) -> Result<Option<Collector>> {
        let wrong = |(key, reason): (&str, String)| Error::Config {
            file: file.to_owned(),
            key: format!("telemetry.{key}"),
            reason,
        };
        config.check().map_err(wrong)?;
        let Some(otlp) = &config.otlp else { return Ok(None) };
        let url = traces_of(parse_url(otlp).map_err(|reason| wrong(("otlp", reason)))?);
        let token = config.secret_file.as_deref().map(secret).transpose();
        let token = token.map_err(|reason| wrong(("secret_file", reason)))?;
        let address =
            Address { url, ca_file: config.ca_file.as_deref(), token: token.as_deref(), timeout: config.timeout };
        let receiver =
            Receiver::new(address).map_err(|(key, reason)| wrong((if key == "url" { "otlp" } else { key }, reason)))?;
        Ok(Some(Collector { receiver, timeout: config.timeout, sample: config.sample }))
    }
}

/// Behind a base address, as exporters of OpenTelemetry put it (`OTEL_EXPORTER_OTLP_ENDPOINT`).
fn traces_of(mut url: Url) -> Url {
    if !url.path().ends_with(PATH) {
        let path = format!("{}{PATH}", url.path().trim_end_matches('/'));
        url.set_path(&path);
    }
    url
}

/// Traces that are being told.
pub struct Traces {
    spans: mpsc::Sender<Span>,
    sample: f64,
    count: Count,
    stop: watch::Sender<bool>,
    tasks: std::sync::Mutex<Vec<JoinHandle<()>>>,
}

impl Traces {
    /// Exports from now on: what requests bring, and every rollout that ends. On the runtime that this is called on.
    pub fn start(collector: Collector, feed: Feed, count: Count) -> Traces {
        let (spans, waiting) = mpsc::channel(QUEUE);
        let stop = watch::Sender::new(false);
        let sample = collector.sample;
        let tasks = vec![
            tokio::spawn(export(collector, waiting, stop.subscribe(), count.clone())),
            tokio::spawn(rollouts(feed, spans.clone(), stop.subscribe(), count.clone())),
        ];
        Traces { spans, sample, count, stop, tasks: std::sync::Mutex::new(tasks) }
    }

    /// Begins the span of a request, if it is to be traced: as the trace says that it is part of (`traceparent`), else by chance.
    pub fn begin(&self, traceparent: Option<&str>) -> Option<Begun> {
        let parent = traceparent.and_then(Parent::read);
        let sampled = match parent {
            Some(parent) => parent.sampled,
            None => self.sample >= 1.0 || rand::random::<f64>() < self.sample,
        };
        sampled.then(|| Begun::new(parent))
    }

    pub fn end(&self, begun: Begun, ended: Ended) {
        if self.spans.try_send(begun.end(ended)).is_err() {
            (self.count)(WHO, "dropped");
        }
    }

    /// Ends: what waits is sent, for as long as that may take.
    pub async fn stop(&self, patience: Duration) {
        self.stop.send_replace(true);
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(|e| e.into_inner()));
        if tokio::time::timeout(patience, futures_util::future::join_all(tasks)).await.is_err() {
            tracing::warn!("spans were still being sent when the server stopped");
        }
    }
}

/// A rollout is told once, when it has ended: then its record says how long each phase took.
async fn rollouts(mut feed: Feed, spans: mpsc::Sender<Span>, mut stopping: watch::Receiver<bool>, count: Count) {
    loop {
        let Some(event) = feed.next_until(&mut stopping).await else { return };
        let ended = match event.kind.as_str() {
            "phase" => matches!(
                event.body["phase"].as_str(),
                Some("settled" | "refused" | "failed" | "aborted" | "rolled_back")
            ),
            "interrupted" => true,
            _ => false,
        };
        // Of what could not be written the record is an older one, or there is none: such a rollout is not traced.
        let ended = ended && event.is_written();
        let Some(id) = event.rollout.filter(|_| ended) else { continue };
        let ledger = feed.ledger();
        let record = match tokio::task::spawn_blocking(move || ledger.rollout(&id)).await {
            Ok(Ok(Some(record))) => record,
            Ok(Ok(None)) => continue,
            Ok(Err(error)) => {
                tracing::warn!(%error, "a rollout was not traced: its record cannot be read");
                continue;
            }
            Err(error) => {
                tracing::warn!(%error, "a rollout was not traced: its record cannot be read");
                continue;
            }
        };
        for span in of_rollout(&record) {
            if spans.try_send(span).is_err() {
                count(WHO, "dropped");
            }
        }
    }
}

async fn export(
    collector: Collector,
    mut waiting: mpsc::Receiver<Span>,
    mut stopping: watch::Receiver<bool>,
    count: Count,
) {
    let mut batch = Vec::new();
    loop {
        let stops = *stopping.borrow();
        let first = match stops {
            true => waiting.try_recv().ok(),
            false => tokio::select! {
                biased;
                span = waiting.recv() => span,
                // What is in the queue goes out first.
                _ = stopping.wait_for(|stopping| *stopping) => continue,
            },
        };
        let Some(first) = first else { return };
        batch.push(first);
        let company = tokio::time::sleep(if stops { Duration::ZERO } else { COMPANY });
        tokio::pin!(company);
        while batch.len() < BATCH {
            tokio::select! {
                biased;
                span = waiting.recv() => match span {
                    Some(span) => batch.push(span),
                    None => break,
                },
                () = &mut company => break,
                _ = stopping.wait_for(|stopping| *stopping), if !stops => break,
            }
        }
        let body = otlp::request(&batch).to_string().into_bytes();
        let outcome = match send(&collector, body, &stopping).await {
            Ok(()) => "delivered",
            Err(refusal) => {
                let (host, spans) = (collector.receiver.host(), batch.len());
                tracing::warn!(host, spans, "spans were not taken and are lost: {refusal}");
                "given_up"
            }
        };
        batch.drain(..).for_each(|_| count(WHO, outcome));
    }
}

async fn send(collector: &Collector, body: Vec<u8>, stopping: &watch::Receiver<bool>) -> Result<(), Refusal> {
    let mut attempt = 1;
    loop {
        // One that begins after the end was announced is the last.
        let last = *stopping.borrow();
        let refusal = match collector.receiver.post(body.clone(), [], collector.timeout).await {
            Ok(_) => return Ok(()),
            Err(refusal) => refusal,
        };
        if !refusal.is_worth_a_retry() || attempt == ATTEMPTS || last {
            return Err(refusal);
        }
        let mut stopping = stopping.clone();
        tokio::select! {
            () = tokio::time::sleep(pause(attempt, rand::random(), refusal.retry_after())) => {}
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
        attempt += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_go_behind_the_base_address() {
        for (base, expected) in [
            ("http://c:4318", "http://c:4318/v1/traces"),
            ("http://c:4318/", "http://c:4318/v1/traces"),
            ("https://c/otlp/", "https://c/otlp/v1/traces"),
            ("http://c:4318/v1/traces", "http://c:4318/v1/traces"),
        ] {
            assert_eq!(traces_of(parse_url(base).unwrap()).as_str(), expected);
        }
    }
}
