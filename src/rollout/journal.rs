//! Writing down what happens: the ledger on disk, and the event stream for whoever listens.
//!
//! The ledger blocks, so every write goes to a thread that may. Writes of one controller keep their order
//! because it awaits each. What is written is told on that thread, in the order of the ledger: whoever listens may take an
//! event with a smaller number than the last one for an event that it knows.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tokio::sync::broadcast;

use crate::error::{Error, Result};
use crate::ledger::{Counts, Event, Keep, Ledger, Live, NewEvent, RolloutRecord};
use crate::telling::Feed;

/// Events that a slow listener may lag behind before it has to read them from the ledger.
const BACKLOG: usize = 1024;
/// Between attempts to write what must be written.
const RETRY: Duration = Duration::from_millis(500);

/// What becomes of an event that cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unwritten {
    /// It has happened all the same. A full disk is no reason that nobody hears of a breach, and it is not the ledger that tells.
    /// Where a write hangs nothing is told before it ends: nobody knows that it will fail.
    IsTold,
    /// It has not happened unless it is written, or it was told already.
    IsNot,
}

#[derive(Clone)]
pub struct Journal {
    ledger: Arc<Ledger>,
    keep: Keep,
    events: broadcast::Sender<Event>,
    /// How many events the ledger could not take. Held from before a write until it is told, on threads that may block.
    unwritten: Arc<Mutex<i64>>,
    /// How often each model's live version was committed, so that what is tried again does not undo what came later.
    commits: Arc<Mutex<BTreeMap<String, u64>>>,
    /// How the rollouts went that have ended since this process began, whatever the ledger still has of them.
    counts: Arc<Mutex<Counts>>,
}

impl Journal {
    /// `keep`: how much of its history the ledger holds on to when rollouts end.
    pub fn new(ledger: Arc<Ledger>, keep: Keep) -> Self {
        let (events, _) = broadcast::channel(BACKLOG);
        let (unwritten, commits, counts) = (Arc::default(), Arc::default(), Arc::default());
        Journal { ledger, keep, events, unwritten, commits, counts }
    }

    /// For threads that may block.
    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Appends an event on this thread, which may block.
    pub(super) fn append_blocking(&self, event: &NewEvent) -> Result<()> {
        self.record_blocking(event, Unwritten::IsNot, |ledger, event| ledger.append(event).map(Some))
    }

    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// What happens from now on, none left out. `last`: the newest event that is known.
    pub fn feed(&self, last: i64) -> Feed {
        Feed::new(self.subscribe(), Arc::clone(&self.ledger), last)
    }

    /// Reads (or writes) the ledger on a thread that may block.
    pub async fn with<T: Send + 'static>(&self, work: impl FnOnce(&Ledger) -> Result<T> + Send + 'static) -> Result<T> {
        let ledger = Arc::clone(&self.ledger);
        tokio::task::spawn_blocking(move || work(&ledger))
            .await
            .map_err(|e| Error::internal(format!("a ledger task failed: {e}")))?
    }

    /// Writes an event with what belongs to it, and tells it. Nothing is told where `write` finds nothing to be written.
    async fn record(
        &self,
        event: NewEvent,
        otherwise: Unwritten,
        write: impl FnOnce(&Ledger, &NewEvent) -> Result<Option<Event>> + Send + 'static,
    ) -> Result<()> {
        let journal = self.clone();
        tokio::task::spawn_blocking(move || journal.record_blocking(&event, otherwise, write))
            .await
            .map_err(|e| Error::internal(format!("a ledger task failed: {e}")))?
    }

    fn record_blocking(
        &self,
        event: &NewEvent,
        otherwise: Unwritten,
        write: impl FnOnce(&Ledger, &NewEvent) -> Result<Option<Event>>,
    ) -> Result<()> {
        let mut unwritten = self.unwritten.lock().unwrap_or_else(|e| e.into_inner());
        let (told, written) = match write(&self.ledger, event) {
            Ok(event) => (event, Ok(())),
            Err(error) if otherwise == Unwritten::IsTold => {
                *unwritten += 1;
                (Some(event.unwritten(*unwritten)), Err(error))
            }
            Err(error) => (None, Err(error)),
        };
        if let Some(event) = told {
            // No listener is no error.
            let _ = self.events.send(event);
        }
        written
    }

    /// What is worth recording but not worth failing for: it is told in any case, and that it could not be written is logged.
    pub async fn note(&self, event: NewEvent) {
        let kind = event.kind.clone();
        let written = self.record(event, Unwritten::IsTold, |ledger, event| ledger.append(event).map(Some));
        if let Err(error) = written.await {
            tracing::error!(%error, kind, "an event could not be written to the ledger");
        }
    }

    /// A rollout as it is now, and what made it so: one write to the disk. It is so, and told, even where that fails.
    /// An end is saved once.
    pub async fn save(&self, record: RolloutRecord, event: NewEvent) -> Result<()> {
        self.count(&record);
        let write = move |ledger: &Ledger, event: &NewEvent| ledger.save_rollout_with(&record, event).map(Some);
        self.record(event, Unwritten::IsTold, write).await
    }

    /// The commit of a switch: the model's live version and the event, in one transaction. It happens only if this succeeds.
    pub async fn commit(&self, live: Live, event: NewEvent) -> Result<()> {
        self.commit_after(None, live, (event, Unwritten::IsNot)).await
    }

    /// The commit of what is in force already, a rollback: told in any case, and where it cannot be written, tried again in the
    /// background.
    pub async fn commit_anyway(&self, live: Live, event: NewEvent) -> Result<()> {
        let written = self.commit_after(None, live.clone(), (event.clone(), Unwritten::IsTold)).await;
        if written.is_err() {
            self.commit_until_done(live, event);
        }
        written
    }

    /// Takes away what was live of the event's model.
    pub async fn forget(&self, event: NewEvent) -> Result<()> {
        self.record(event, Unwritten::IsNot, |ledger, event| ledger.forget(event).map(Some)).await
    }

    /// Commits, unless something was committed for the model since `count`.
    async fn commit_after(
        &self,
        count: Option<u64>,
        live: Live,
        (event, otherwise): (NewEvent, Unwritten),
    ) -> Result<()> {
        let commits = Arc::clone(&self.commits);
        let write = move |ledger: &Ledger, event: &NewEvent| {
            // Held while writing, on a thread that may block: the count and the ledger agree.
            let mut commits = commits.lock().unwrap_or_else(|e| e.into_inner());
            let now = commits.entry(live.model.clone()).or_default();
            if count.is_some_and(|count| count != *now) {
                return Ok(None);
            }
            let event = ledger.commit_live(&live, event)?;
            *now += 1;
            Ok(Some(event))
        };
        self.record(event, otherwise, write).await
    }

    /// Commits in the background until it succeeds or something newer was committed.
    fn commit_until_done(&self, live: Live, event: NewEvent) {
        let count = {
            let commits = self.commits.lock().unwrap_or_else(|e| e.into_inner());
            commits.get(&live.model).copied().unwrap_or(0)
        };
        self.until_done("a rollback", move |journal| {
            let (live, event) = (live.clone(), event.clone());
            async move { journal.commit_after(Some(count), live, (event, Unwritten::IsNot)).await }
        });
    }

    /// Records how a rollout ended, now or as soon as it can be written: what stays open in the ledger would be taken
    /// for interrupted at the next start.
    pub async fn save_end(&self, record: RolloutRecord) {
        if let Err(error) = self.try_to_end(record.clone()).await {
            tracing::error!(%error, rollout = record.id, "the end of a rollout could not be written to the ledger yet");
            self.until_done("the end of a rollout", move |journal| {
                let record = record.clone();
                async move { journal.try_to_end(record).await }
            });
        }
    }

    async fn try_to_end(&self, record: RolloutRecord) -> Result<()> {
        // From here on the file alone has it all.
        self.with(move |ledger| ledger.save_rollout(&record).map(|()| ledger.fold())).await?;
        // One more than is kept, perhaps. Nobody waits for that.
        let (ledger, keep) = (Arc::clone(&self.ledger), self.keep);
        drop(tokio::task::spawn_blocking(move || let_go(&ledger, keep)));
        Ok(())
    }

    /// How often each has happened since this process began. That only grows, as a counter must.
    pub fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Counts a rollout that has ended.
    pub(super) fn count(&self, record: &RolloutRecord) {
        *self.counts.lock().unwrap_or_else(|e| e.into_inner()) += Counts::of(record);
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
}

fn let_go(ledger: &Ledger, keep: Keep) {
    let pruned = ledger.has_more_than(keep).and_then(|more| if more { ledger.prune(keep).map(Some) } else { Ok(None) });
    match pruned {
        Ok(Some(pruned)) => {
            tracing::debug!(?pruned, "old history is gone from the ledger");
            ledger.fold();
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "old history stays in the ledger"),
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

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Instant;

    use futures_util::FutureExt as _;
    use serde_json::json;

    use super::*;

    fn ledger(dir: &tempfile::TempDir) -> Arc<Ledger> {
        Arc::new(Ledger::open(&dir.path().join("ledger.sqlite")).unwrap())
    }

    /// On this thread: nothing that awaits goes on meanwhile.
    fn wait_for_event(ledger: &Ledger, seq: i64) {
        let began = Instant::now();
        while ledger.last_seq().unwrap() < seq {
            assert!(began.elapsed() < Duration::from_secs(60), "event {seq} is not written");
            std::thread::yield_now();
        }
    }

    #[tokio::test]
    async fn what_is_written_first_is_told_first_whichever_task_goes_on_first() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(&dir);
        let journal = Journal::new(Arc::clone(&ledger), Keep::ALL);
        let mut told = journal.subscribe();
        let mut first = pin!(journal.note(event("a", None, "rolled_back", json!({}))));
        assert!(first.as_mut().now_or_never().is_none());
        wait_for_event(&ledger, 1);
        journal.note(event("b", None, "switched", json!({}))).await;
        first.await;
        for (seq, model) in [(1, "a"), (2, "b")] {
            let event = told.recv().await.unwrap();
            assert_eq!((event.seq, event.model.as_str()), (seq, model));
        }
    }

    #[tokio::test]
    async fn what_has_happened_is_told_where_it_cannot_be_written_and_what_has_not_is_not() {
        let dir = tempfile::tempdir().unwrap();
        drop(ledger(&dir));
        let unwritable = Ledger::open_read_only(&dir.path().join("ledger.sqlite")).unwrap();
        let journal = Journal::new(Arc::new(unwritable), Keep::ALL);
        let mut told = journal.subscribe();
        let live = Live {
            model: "digits".into(),
            version: "v1".into(),
            digest: String::new(),
            rollout: None,
            since_ms: 0,
            previous: None,
        };
        let note = |kind: &str| event("digits", None, kind, json!({ "reason": "a rule" }));
        journal.note(note("alert")).await;
        assert!(journal.commit(live.clone(), note("switched")).await.is_err(), "the old version stays");
        assert!(journal.forget(note("forgotten")).await.is_err());
        assert!(journal.commit_anyway(live, note("rolled_back")).await.is_err());
        assert!(journal.save(RolloutRecord::default(), note("phase")).await.is_err());
        for (seq, kind) in [(-1, "alert"), (-2, "rolled_back"), (-3, "phase")] {
            let event = told.try_recv().unwrap();
            assert_eq!((event.seq, event.kind.as_str(), event.is_written()), (seq, kind, false));
            assert_eq!(event.body["reason"], "a rule");
        }
        assert!(told.try_recv().is_err());
    }

    #[tokio::test]
    async fn what_is_more_than_is_kept_goes_when_a_rollout_ends_and_stays_counted() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(&dir);
        let journal = Journal::new(Arc::clone(&ledger), Keep { rollouts: 1, events: 2 });
        for at in 1..=3 {
            let begun = RolloutRecord { id: format!("r{at}"), started_ms: at, ..RolloutRecord::default() };
            let told = |phase: &str| event("digits", Some(&begun.id), "phase", json!({ "phase": phase }));
            journal.save(begun.clone(), told("reserving")).await.unwrap();
            let over = RolloutRecord { phase: "settled".into(), ended_ms: Some(at), ..begun.clone() };
            journal.save(over.clone(), told("settled")).await.unwrap();
            journal.save_end(over).await;
        }
        let began = Instant::now();
        while (ledger.figures(None).unwrap().deployments, ledger.verify().unwrap().events) != (1, 2) {
            assert!(began.elapsed() < Duration::from_secs(60), "old history stays");
            tokio::task::yield_now().await;
        }
        assert!(ledger.rollout("r3").unwrap().is_some() && ledger.verify().unwrap().ok);
        assert_eq!(journal.counts(), Counts { deployments: 3, switches: 3, rollbacks: 0 });
    }
}
