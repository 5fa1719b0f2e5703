//! The clients: each asks, reads to the end, and asks again, until the load is over. What they saw is recorded.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use hyper::Response;
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::super::super::output::{Failure, Refusal};
use super::super::load::{Clock, Outcome, Stamp, in_a_thread};
use super::super::target::Target;
use super::super::wire::Wire;
use super::stream::{Read, Reader};

const MAX_EXAMPLES: usize = 5;
/// Bytes.
const MOST_OF_A_REFUSAL: usize = 64 << 10;
/// How long a client waits after a request that was not answered, so that it does not spin.
const PAUSE: Duration = Duration::from_millis(50);

/// One answer. Times are nanoseconds of the run.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) started: u64,
    pub(super) ended: u64,
    /// Index in [`Recording::stamps`].
    pub(super) stamp: u16,
    pub(super) outcome: Outcome,
    /// When each piece of text came.
    pub(super) pieces: Vec<u64>,
    pub(super) tokens: u64,
    pub(super) prompt_tokens: u64,
}

/// What a load left behind.
#[derive(Debug, Default)]
pub(super) struct Recording {
    /// In the order of their ends.
    pub(super) answers: Vec<Answer>,
    pub(super) stamps: Vec<Stamp>,
    /// The first few failures, as they read.
    pub(super) examples: Vec<String>,
    /// Answers that were held against another.
    pub(super) compared: u64,
}

/// Clients at work.
pub(super) struct Load {
    shared: Arc<Shared>,
    ended: oneshot::Receiver<Result<(), Failure>>,
}

struct Shared {
    target: Arc<Target>,
    clock: Clock,
    check: bool,
    stopping: AtomicBool,
    claimed: AtomicU64,
    notes: Mutex<Notes>,
}

#[derive(Default)]
struct Notes {
    recording: Recording,
    /// The first text of a version, by its stamp's version and the question.
    texts: HashMap<(Option<String>, usize), String>,
}

impl Load {
    /// `(clients, check)`: how many there are, and whether they hold answers against earlier ones.
    pub(super) fn start(target: Arc<Target>, (clients, check): (usize, bool), clock: Clock) -> Result<Load, Failure> {
        let realtime = target.realtime;
        let shared = Arc::new(Shared {
            target,
            clock,
            check,
            stopping: AtomicBool::new(false),
            claimed: AtomicU64::new(0),
            notes: Mutex::default(),
        });
        let ended = {
            let shared = Arc::clone(&shared);
            in_a_thread("bench-chat", realtime, move || drive(&shared, clients))?
        };
        Ok(Load { shared, ended })
    }

    /// Asks no more, waits for the answers that are on their way, and gives the record.
    pub(super) async fn finish(self) -> Result<Recording, Failure> {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.ended.await.map_err(|_| Failure::Failed("the thread of the load panicked".to_owned()))??;
        Ok(std::mem::take(&mut self.shared.notes().recording))
    }
}

/// All clients, on this thread.
fn drive(shared: &Arc<Shared>, clients: usize) -> Result<(), Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::Failed(format!("the load failed: {e}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| failed(&e))?;
    runtime.block_on(async {
        let mut workers = JoinSet::new();
        for _ in 0..clients {
            workers.spawn(client(Arc::clone(shared)));
        }
        while let Some(joined) = workers.join_next().await {
            joined.map_err(|e| failed(&e))?;
        }
        Ok(())
    })
}

async fn client(shared: Arc<Shared>) {
    let mut wire = Wire::default();
    while !shared.stopping.load(Ordering::Relaxed) {
        let payload = (shared.claimed.fetch_add(1, Ordering::Relaxed) % shared.target.payloads.len() as u64) as usize;
        let started = shared.clock.now();
        let exchange = shared.exchange(&mut wire, payload);
        let answered = match tokio::time::timeout(shared.target.timeout, exchange).await {
            Ok(answered) => answered,
            Err(_elapsed) => Answered::failed(Outcome::TimedOut, "the answer took too long".to_owned()),
        };
        let ended = shared.clock.now();
        let outcome = answered.outcome;
        shared.record((started, ended), payload, answered);
        if !outcome.ok() {
            // What may still come on this connection belongs to the answer that was given up.
            wire.close();
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// What a server says of a request that it refuses, which is no stream.
async fn refusal(status: u16, body: Incoming) -> String {
    let Ok(said) = Limited::new(body, MOST_OF_A_REFUSAL).collect().await else {
        return "what was said of it could not be read".to_owned();
    };
    Refusal::read(status, &said.to_bytes()).message
}

/// How a request ended.
struct Answered {
    outcome: Outcome,
    stamp: Stamp,
    read: Read,
    wrong: Option<String>,
}

impl Answered {
    fn failed(outcome: Outcome, wrong: String) -> Answered {
        Answered { outcome, stamp: Stamp::default(), read: Read::default(), wrong: Some(wrong) }
    }
}

impl Shared {
    fn notes(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn exchange(&self, wire: &mut Wire, payload: usize) -> Answered {
        let response = match wire.send(&self.target, payload).await {
            Ok(response) => response,
            Err((outcome, reason)) => return Answered::failed(outcome, reason),
        };
        let text = |name| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
        let stamp = Stamp { version: text("x-cutover-version"), generation: text("x-cutover-generation") };
        let stamped =
            text("x-cutover-model").zip(stamp.version.clone()).map(|(model, version)| format!("{model}@{version}"));
        let status = response.status().as_u16();
        let outcome = Outcome::Status(status);
        if !outcome.ok() {
            let wrong = Some(refusal(status, response.into_body()).await);
            return Answered { outcome, stamp, read: Read::default(), wrong };
        }
        let (read, wrong) = self.read(response, stamped.as_deref()).await;
        let outcome = if wrong.is_none() { outcome } else { Outcome::Wrong };
        Answered { outcome, stamp, read, wrong }
    }

    async fn read(&self, response: Response<Incoming>, stamped: Option<&str>) -> (Read, Option<String>) {
        let mut body = response.into_body();
        let mut reader = Reader::default();
        while let Some(frame) = body.frame().await {
            let taken = match frame.map(|frame| frame.into_data()) {
                Ok(Ok(data)) => reader.push(self.clock.now(), &data),
                Ok(Err(_trailers)) => Ok(()),
                Err(error) => Err(format!("the connection ended: {error}")),
            };
            if let Err(wrong) = taken {
                return (reader.end(stamped).0, Some(wrong));
            }
        }
        reader.end(stamped)
    }

    fn record(&self, (started, ended): (u64, u64), payload: usize, answered: Answered) {
        let Answered { mut outcome, stamp, read, mut wrong } = answered;
        let mut notes = self.notes();
        if self.check && outcome.ok() {
            let differs = match notes.texts.entry((stamp.version.clone(), payload)) {
                Entry::Vacant(place) => {
                    place.insert(read.text);
                    None
                }
                Entry::Occupied(first) => Some(*first.get() != read.text),
            };
            notes.recording.compared += u64::from(differs.is_some());
            if differs == Some(true) {
                outcome = Outcome::Wrong;
                wrong = Some(format!("question {payload} was answered differently before by the same version"));
            }
        }
        let recording = &mut notes.recording;
        if let Some(wrong) = wrong.filter(|_| recording.examples.len() < MAX_EXAMPLES) {
            recording.examples.push(format!("{}: {wrong}", outcome.name()));
        }
        let known = recording.stamps.iter().position(|known| *known == stamp);
        let at = known.unwrap_or_else(|| {
            recording.stamps.push(stamp);
            recording.stamps.len() - 1
        });
        recording.answers.push(Answer {
            started,
            ended,
            stamp: u16::try_from(at).unwrap_or(u16::MAX),
            outcome,
            pieces: read.pieces,
            tokens: read.tokens,
            prompt_tokens: read.prompt_tokens,
        });
    }
}
