//! Telling every receiver what it wants to hear, each through a queue and a task of its own: one that hangs holds up nobody
//! else, and nobody waits for any of them.
//!
//! What is told is tried until it is taken, until the receiver says that it never will be, or until its time is over; then a line in
//! the log says what was not told, and to whom.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use reqwest::header::HeaderValue;
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::Count;
use super::alert::Alert;
use super::body::{self, DELIVERY, SIGNATURE};
use super::config::{AlertTarget, Cause, Kind, parse_url};
use super::feed::Feed;
use super::post::{Address, Receiver, Refusal, secret};
use super::retry::pause;
use super::seen::Seen;
use crate::error::{Error, Result};

/// Alerts that wait for one receiver.
const QUEUE: usize = 256;

/// Somebody who is told.
struct Target {
    name: String,
    config: AlertTarget,
    receiver: Receiver,
    /// What bodies are signed with.
    key: Option<String>,
}

/// Receivers that are configured, their files read.
pub struct Targets(Vec<Arc<Target>>);

impl Targets {
    /// Reads the files that the configuration names; `file` is what it is called in errors.
    ///
    /// # Errors
    /// `Config`, with the key of the target that cannot be used.
    pub fn open(configured: &[AlertTarget], file: &str) -> Result<Targets> {
        let mut targets: Vec<Arc<Target>> = Vec::new();
        for (number, config) in (1..).zip(configured) {
            let wrong = |(key, reason): (&str, String)| Error::Config {
                file: file.to_owned(),
                key: format!("alerts[{number}].{key}"),
                reason,
            };
            let target = Target::open(config, number).map_err(wrong)?;
            if targets.iter().any(|other| other.name == target.name) {
                return Err(wrong(("name", format!("'{}' is the name of another", target.name))));
            }
            targets.push(Arc::new(target));
        }
        Ok(Targets(targets))
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|target| target.name.as_str())
    }
}

impl Target {
    fn open(config: &AlertTarget, number: usize) -> Result<Target, (&'static str, String)> {
        config.check()?;
        let read = |key: &'static str, path: &Option<PathBuf>| {
            path.as_deref().map(secret).transpose().map_err(|reason| (key, reason))
        };
        let address = match (&config.url, read("url_file", &config.url_file)?) {
            (Some(url), _) => parse_url(url).map_err(|reason| ("url", reason))?,
            (None, Some(url)) => parse_url(&url).map_err(|reason| ("url_file", reason))?,
            (None, None) => return Err(("url", "is missing".to_owned())),
        };
        let url = match config.kind {
            // The base address is what Prometheus is configured with, too.
            Kind::Alertmanager if !address.path().ends_with("/api/v2/alerts") => {
                let path = format!("{}/api/v2/alerts", address.path().trim_end_matches('/'));
                let mut url = address;
                url.set_path(&path);
                url
            }
            _ => address,
        };
        let secret = read("secret_file", &config.secret_file)?;
        let (key, token) = match config.kind {
            Kind::Alertmanager => (None, secret),
            Kind::Json | Kind::Slack => (secret, None),
        };
        let (ca_file, timeout) = (config.ca_file.as_deref(), config.timeout);
        let receiver = Receiver::new(Address { url, ca_file, token: token.as_deref(), timeout })?;
        Ok(Target { name: config.called(number), config: config.clone(), receiver, key })
    }

    /// Whether it is to be told of this. A rule that was broken is told once: by what it led to, where that is told.
    fn wants(&self, alert: &Alert) -> bool {
        let causes = self.config.causes();
        let by_its_end =
            alert.what == "breach" && [Cause::RolledBack, Cause::Refused].iter().all(|end| causes.contains(end));
        causes.contains(&alert.cause) && !by_its_end
    }

    /// Sends it once.
    async fn send(&self, alert: &Alert) -> Result<u16, Refusal> {
        let body = body::body(self.config.kind, alert, self.config.repeat).to_string().into_bytes();
        let mut headers = Vec::new();
        let mut put = |name, value: String| {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.push((name, value));
            }
        };
        if self.config.kind == Kind::Json {
            put(DELIVERY, format!("{}-{}", alert.seq, alert.at_ms));
        }
        if let Some(key) = &self.key {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            put(SIGNATURE, body::signature(key.as_bytes(), now, &body));
        }
        self.receiver.post(body, headers, self.config.timeout).await
    }

    /// Sends it until it is told, and says what became of it.
    async fn tell(&self, alert: &Alert, mut stopping: watch::Receiver<bool>) -> &'static str {
        let (target, host, what, model) = (&self.name, self.receiver.host(), &alert.what, &alert.model);
        let until = Instant::now() + self.config.give_up_after;
        let mut attempt = 1u32;
        loop {
            // One that begins after the end was announced is the last.
            let last = *stopping.borrow();
            let refusal = match self.send(alert).await {
                Ok(status) => {
                    tracing::debug!(target, host, what, model, status, attempt, "alert delivered");
                    return "delivered";
                }
                Err(refusal) => refusal,
            };
            let wait = pause(attempt, rand::random(), refusal.retry_after());
            let over = Instant::now() + wait >= until;
            if !refusal.is_worth_a_retry() || over || last {
                let why = match (refusal.is_worth_a_retry(), last) {
                    (false, _) => "trying again would not help",
                    (true, true) => "the server stops",
                    (true, false) => "its time is over",
                };
                let (message, seq) = (&alert.message, alert.seq);
                tracing::error!(
                    target,
                    host,
                    what,
                    model,
                    seq,
                    attempt,
                    "an alert was not told, {why}: {refusal} (it was: {message})"
                );
                return "given_up";
            }
            tracing::warn!(target, host, what, model, attempt, again_in = ?wait, "an alert was not taken: {refusal}");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // Once more at once, and then it has to be enough.
                _ = stopping.wait_for(|stopping| *stopping) => {}
            }
            attempt += 1;
        }
    }
}

/// What a test alert came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tried {
    pub target: String,
    pub kind: &'static str,
    /// The rest of an address may be a secret.
    pub host: String,
    pub delivered: bool,
    pub status: Option<u16>,
    pub error: Option<String>,
    /// How long it took, in milliseconds.
    pub ms: f64,
}

/// The tasks that tell.
pub struct Telling {
    targets: Vec<Arc<Target>>,
    stop: watch::Sender<bool>,
    tasks: std::sync::Mutex<Vec<JoinHandle<()>>>,
}

impl Telling {
    /// Tells from now on what the feed brings, on the runtime that this is called on.
    pub fn start(Targets(targets): Targets, feed: Feed, count: Count) -> Telling {
        let stop = watch::Sender::new(false);
        let mut queues = Vec::new();
        let mut tasks = Vec::new();
        for target in &targets {
            let (queue, waiting) = mpsc::channel(QUEUE);
            queues.push((Arc::clone(target), queue));
            tasks.push(tokio::spawn(work(Arc::clone(target), waiting, stop.subscribe(), Arc::clone(&count))));
        }
        if !targets.is_empty() {
            tasks.push(tokio::spawn(listen(feed, queues, stop.subscribe(), Arc::clone(&count))));
        }
        Telling { targets, stop, tasks: std::sync::Mutex::new(tasks) }
    }

    /// Nobody is told.
    pub fn none() -> Telling {
        Telling { targets: Vec::new(), stop: watch::Sender::new(false), tasks: Default::default() }
    }

    /// Tells one receiver, or all of them, that nothing has happened: once, and at once.
    ///
    /// # Errors
    /// `Conflict` where there is none; `BadRequest` for a name that none has.
    pub async fn test(&self, only: Option<&str>, at_ms: i64) -> Result<Vec<Tried>> {
        if self.targets.is_empty() {
            return Err(Error::conflict("no receiver of alerts is configured: cutover.toml has no [[alerts]]"));
        }
        let chosen: Vec<&Arc<Target>> =
            self.targets.iter().filter(|target| only.is_none_or(|name| target.name == name)).collect();
        if chosen.is_empty() {
            let names = self.targets.iter().map(|target| target.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Error::bad_param("target", format!("target: expected one of {names}")));
        }
        let alert = Alert::test(at_ms);
        let tried = chosen.into_iter().map(|target| {
            let alert = &alert;
            async move {
                let began = Instant::now();
                // Whoever asked is told, and the counters that rules watch are of what has happened.
                let answer = target.send(alert).await;
                Tried {
                    target: target.name.clone(),
                    kind: target.config.kind.name(),
                    host: target.receiver.host(),
                    delivered: answer.is_ok(),
                    status: answer.as_ref().map_or_else(Refusal::status, |status| Some(*status)),
                    error: answer.err().map(|refusal| refusal.to_string()),
                    ms: began.elapsed().as_secs_f64() * 1e3,
                }
            }
        });
        Ok(futures_util::future::join_all(tried).await)
    }

    /// Ends: what waits is sent once more, for as long as that may take.
    pub async fn stop(&self, patience: Duration) {
        self.stop.send_replace(true);
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(|e| e.into_inner()));
        let all = futures_util::future::join_all(tasks);
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::error!(
                "alerts were still being sent when the server stopped; the ledger has what they were about"
            );
        }
    }
}

/// Hands each alert to those who want it.
async fn listen(
    mut feed: Feed,
    queues: Vec<(Arc<Target>, mpsc::Sender<Arc<Alert>>)>,
    mut stopping: watch::Receiver<bool>,
    count: Count,
) {
    let mut seen: Vec<Seen> = queues.iter().map(|_| Seen::default()).collect();
    loop {
        let Some(event) = feed.next_until(&mut stopping).await else { return };
        let Some(alert) = Alert::of(&event).map(Arc::new) else { continue };
        for ((target, queue), seen) in queues.iter().zip(&mut seen) {
            if !target.wants(&alert) {
                continue;
            }
            if !seen.is_news(&alert, Instant::now(), target.config.repeat) {
                count(&target.name, "duplicate");
                continue;
            }
            if queue.try_send(Arc::clone(&alert)).is_err() {
                let (target, seq, what) = (&target.name, alert.seq, &alert.what);
                count(target, "dropped");
                tracing::error!(
                    target,
                    seq,
                    what,
                    "an alert was not told: {QUEUE} wait already (it was: {})",
                    alert.message
                );
            }
        }
    }
}

async fn work(
    target: Arc<Target>,
    mut waiting: mpsc::Receiver<Arc<Alert>>,
    stopping: watch::Receiver<bool>,
    count: Count,
) {
    while let Some(alert) = waiting.recv().await {
        let outcome = target.tell(&alert, stopping.clone()).await;
        count(&target.name, outcome);
    }
}

#[cfg(test)]
#[path = "deliver_tests.rs"]
mod tests;
