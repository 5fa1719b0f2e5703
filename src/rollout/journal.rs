//! Writing down what happens: the ledger on disk, and the event stream for whoever listens.
//!
//! The ledger blocks, so every write goes to a thread that may. Writes of one controller keep their order
//! because it awaits each.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tokio::sync::broadcast;

use crate::error::{Error, Result};
use crate::ledger::{Event, Ledger, Live, NewEvent, RolloutRecord};

/// Events that a slow listener may lag behind before it loses some (it can read them from the ledger).
const BACKLOG: usize = 1024;
/// Between attempts to write what must be written.
const RETRY: Duration = Duration::from_millis(500);

#[derive(Clone)]
pub struct Journal {
    ledger: Arc<Ledger>,
    events: broadcast::Sender<Event>,
    /// How often each model's live version was committed, so that what is tried again does not undo what came later.
    commits: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl Journal {
    pub fn new(ledger: Arc<Ledger>) -> Self {
        Journal { ledger, events: broadcast::channel(BACKLOG).0, commits: Arc::default() }
    }

    /// For threads that may block.
    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Like `append`, for threads that may block.
    pub(super) fn append_blocking(&self, event: &NewEvent) -> Result<()> {
        self.tell(self.ledger.append(event)?);
        Ok(())
    }

    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Reads (or writes) the ledger on a thread that may block.
    pub async fn with<T: Send + 'static>(&self, work: impl FnOnce(&Ledger) -> Result<T> + Send + 'static) -> Result<T> {
        let ledger = Arc::clone(&self.ledger);
        tokio::task::spawn_blocking(move || work(&ledger))
            .await
            .map_err(|e| Error::internal(format!("a ledger task failed: {e}")))?
    }

    pub async fn append(&self, event: NewEvent) -> Result<()> {
        let event = self.with(move |ledger| ledger.append(&event)).await?;
        self.tell(event);
        Ok(())
    }

    /// Like `append`, for what is worth recording but not worth failing for: a failure is logged.
    pub async fn note(&self, event: NewEvent) {
        let kind = event.kind.clone();
        if let Err(error) = self.append(event).await {
            tracing::error!(%error, kind, "an event could not be written to the ledger");
        }
    }

    /// A rollout as it is now, and what made it so: one write to the disk.
    pub async fn save(&self, record: RolloutRecord, event: NewEvent) -> Result<()> {
        let event = self.with(move |ledger| ledger.save_rollout_with(&record, &event)).await?;
        self.tell(event);
        Ok(())
    }

    /// The commit of a switch: the model's live version and the event, in one transaction.
    pub async fn commit(&self, live: Live, event: NewEvent) -> Result<()> {
        self.commit_after(None, live, event).await
    }

    /// Takes away what was live of the event's model.
    pub async fn forget(&self, event: NewEvent) -> Result<()> {
        let event = self.with(move |ledger| ledger.forget(&event)).await?;
        self.tell(event);
        Ok(())
    }

    /// Commits, unless something was committed for the model since `count`.
    async fn commit_after(&self, count: Option<u64>, live: Live, event: NewEvent) -> Result<()> {
        let commits = Arc::clone(&self.commits);
        let told = self.with(move |ledger| {
            // Held while writing, on a thread that may block: the count and the ledger agree.
            let mut commits = commits.lock().unwrap_or_else(|e| e.into_inner());
            let now = commits.entry(live.model.clone()).or_default();
            if count.is_some_and(|count| count != *now) {
                return Ok(None);
            }
            let event = ledger.commit_live(&live, &event)?;
            *now += 1;
            Ok(Some(event))
        });
        if let Some(event) = told.await? {
            self.tell(event);
        }
        Ok(())
    }

    /// Commits in the background until it succeeds or something newer was committed: for a rollback, which has
    /// happened already.
    pub fn commit_until_done(&self, live: Live, event: NewEvent) {
        let count = {
            let commits = self.commits.lock().unwrap_or_else(|e| e.into_inner());
            commits.get(&live.model).copied().unwrap_or(0)
        };
        self.until_done("a rollback", move |journal| {
            let (live, event) = (live.clone(), event.clone());
            async move { journal.commit_after(Some(count), live, event).await }
        });
    }

    /// Records how a rollout ended, now or as soon as it can be written: what stays open in the ledger would be taken
    /// for interrupted at the next start.
    pub async fn save_end(&self, record: RolloutRecord) {
        let first = record.clone();
        if let Err(error) = self.with(move |ledger| ledger.save_rollout(&first)).await {
            tracing::error!(%error, rollout = record.id, "the end of a rollout could not be written to the ledger yet");
            self.until_done("the end of a rollout", move |journal| {
                let record = record.clone();
                async move { journal.with(move |ledger| ledger.save_rollout(&record)).await }
            });
        }
    }

    /// Tries again in the background until it succeeds.
    fn until_done<F>(&self, what: &'static str, write: impl Fn(Journal) -> F + Send + 'static)
    where
        F: Future<Output = Result<()>> + Send,
    {
        let journal = self.clone();
        tokio::spawn(async move {
            let mut attempt = 1u32;
            loop {
                tokio::time::sleep(RETRY * attempt.min(20)).await;
                match write(journal.clone()).await {
                    Ok(()) => return,
                    Err(error) => tracing::error!(%error, attempt, alert = true,
                        "{what} is in force but could not be written to the ledger; trying again"),
                }
                attempt += 1;
            }
        });
    }

    fn tell(&self, event: Event) {
        // No listener is no error.
        let _ = self.events.send(event);
    }
}

/// Milliseconds since 1970, now.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

pub(super) fn event(model: &str, rollout: Option<&str>, kind: &str, body: Value) -> NewEvent {
    NewEvent {
        model: model.to_owned(),
        rollout: rollout.map(str::to_owned),
        kind: kind.to_owned(),
        at_ms: now_ms(),
        actor: None,
        body,
    }
}
