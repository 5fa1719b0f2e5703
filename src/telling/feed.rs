//! The events of the ledger in order, none left out: a listener that falls behind reads from the ledger what it missed.
//!
//! It relies on them being told in the ledger's order (`rollout::Journal`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, watch};

use crate::error::{Error, Result};
use crate::ledger::{Event, Ledger};

/// Events that are read from the ledger at a time.
const PAGE: usize = 1000;
/// How often what was missed is tried to be read before it is left out: a ledger that cannot be read at all must not keep what
/// happens from now on from being told.
const ATTEMPTS: u32 = 5;
/// Between two attempts, longer each time.
const RETRY: Duration = Duration::from_millis(200);

pub struct Feed {
    live: broadcast::Receiver<Event>,
    ledger: Arc<Ledger>,
    /// The newest that was given out.
    last: i64,
    /// Those that are next.
    waiting: VecDeque<Event>,
    /// Between them and what is told live the ledger may have more.
    behind: bool,
    failed: u32,
    page: usize,
    retry: Duration,
}

impl Feed {
    /// What happens from now on: `live` must listen already. `last`: the newest event that is known.
    pub fn new(live: broadcast::Receiver<Event>, ledger: Arc<Ledger>, last: i64) -> Feed {
        Feed { live, ledger, last, waiting: VecDeque::new(), behind: false, failed: 0, page: PAGE, retry: RETRY }
    }

    pub fn ledger(&self) -> Arc<Ledger> {
        Arc::clone(&self.ledger)
    }

    /// The same with what has happened since the newest event that was known.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub async fn with_missed(mut self) -> Result<Feed> {
        self.read_on().await?;
        Ok(self)
    }

    /// The next one; none when nobody tells any more. Whoever gives up waiting loses nothing.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.known().await {
                return Some(event);
            }
            match self.live.recv().await {
                Ok(event) => self.waiting.push_back(event),
                Err(RecvError::Lagged(_)) => self.behind = true,
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// The next one; once it stops, those that have happened by then, and none after them.
    pub async fn next_until(&mut self, stopping: &mut watch::Receiver<bool>) -> Option<Event> {
        tokio::select! {
            biased;
            event = self.next() => return event,
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
        self.next_known().await
    }

    /// The next one that has happened already; none where there is none.
    async fn next_known(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.known().await {
                return Some(event);
            }
            match self.live.try_recv() {
                Ok(event) => self.waiting.push_back(event),
                Err(TryRecvError::Lagged(_)) => self.behind = true,
                Err(TryRecvError::Empty | TryRecvError::Closed) => return None,
            }
        }
    }

    /// The next one before what is told live.
    async fn known(&mut self) -> Option<Event> {
        loop {
            while let Some(event) = self.waiting.pop_front() {
                // What could not be written has no place in the order: it is told when it comes, or never.
                if !event.is_written() {
                    return Some(event);
                }
                // What was read from the ledger comes once more by itself.
                if event.seq > self.last {
                    self.last = event.seq;
                    return Some(event);
                }
            }
            if !self.behind {
                return None;
            }
            match self.read_on().await {
                Ok(()) => self.failed = 0,
                Err(error) if self.failed < ATTEMPTS => {
                    self.failed += 1;
                    tracing::warn!(%error, "events that were missed cannot be read from the ledger yet");
                    tokio::time::sleep(self.retry * self.failed).await;
                }
                Err(error) => {
                    tracing::error!(%error, after = self.last, "events that were missed could not be read from the ledger");
                    (self.behind, self.failed) = (false, 0);
                }
            }
        }
    }

    /// Reads what follows the last one; nothing waits before it.
    async fn read_on(&mut self) -> Result<()> {
        let (ledger, after, page) = (Arc::clone(&self.ledger), self.last, self.page);
        let read = tokio::task::spawn_blocking(move || ledger.events(after, None, page))
            .await
            .map_err(|e| Error::internal(format!("a ledger task failed: {e}")))??;
        self.behind = read.len() == self.page;
        self.waiting.extend(read);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::NewEvent;

    struct Happening {
        told: broadcast::Sender<Event>,
        ledger: Arc<Ledger>,
        dir: tempfile::TempDir,
    }

    fn new_event() -> NewEvent {
        NewEvent {
            model: "digits".to_owned(),
            rollout: None,
            kind: "alert".to_owned(),
            at_ms: 0,
            actor: None,
            body: serde_json::json!({}),
        }
    }

    impl Happening {
        /// A listener may be four events behind, and reads seven at a time.
        fn start() -> (Happening, Feed) {
            let dir = tempfile::tempdir().unwrap();
            let ledger = Arc::new(Ledger::open(&dir.path().join("ledger.sqlite")).unwrap());
            let (told, live) = broadcast::channel(4);
            let feed = Feed { page: 7, retry: Duration::ZERO, ..Feed::new(live, Arc::clone(&ledger), 0) };
            (Happening { told, ledger, dir }, feed)
        }

        fn happens(&self, times: usize) {
            for _ in 0..times {
                self.told.send(self.ledger.append(&new_event()).unwrap()).unwrap();
            }
        }
    }

    async fn gives(feed: &mut Feed, numbers: impl IntoIterator<Item = i64>) {
        for expected in numbers {
            assert_eq!(feed.next().await.unwrap().seq, expected);
        }
    }

    #[tokio::test]
    async fn a_listener_that_falls_behind_misses_nothing_and_hears_nothing_twice() {
        let (happening, mut feed) = Happening::start();
        happening.happens(20);
        gives(&mut feed, 1..=10).await;
        happening.happens(20);
        gives(&mut feed, 11..=40).await;
        happening.happens(3);
        gives(&mut feed, 41..=43).await;
        // As many as are read at a time, and then one that is told live.
        happening.happens(14);
        gives(&mut feed, 44..=57).await;
        happening.happens(1);
        drop(happening);
        gives(&mut feed, [58]).await;
        assert_eq!(feed.next().await, None);
    }

    #[tokio::test]
    async fn what_was_missed_before_comes_first_and_what_waits_is_given_without_waiting() {
        let (happening, feed) = Happening::start();
        happening.happens(16);
        let mut feed = feed.with_missed().await.unwrap();
        happening.happens(2);
        let (_stop, mut stopped) = watch::channel(true);
        for expected in 1..=18 {
            assert_eq!(feed.next_until(&mut stopped).await.unwrap().seq, expected);
        }
        assert_eq!(feed.next_until(&mut stopped).await, None, "nobody waits for more");
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_left_out_and_what_happens_goes_on_being_told() {
        let (happening, mut feed) = Happening::start();
        happening.happens(12);
        let other = rusqlite::Connection::open(happening.dir.path().join("ledger.sqlite")).unwrap();
        other.execute("UPDATE events SET body = '{\"changed\": true}' WHERE seq = 3", []).unwrap();
        gives(&mut feed, 9..=12).await;
        happening.happens(1);
        gives(&mut feed, [13]).await;
    }

    #[tokio::test]
    async fn what_the_ledger_could_not_take_is_given_when_it_comes() {
        let (happening, mut feed) = Happening::start();
        happening.happens(1);
        happening.told.send(new_event().unwritten(1)).unwrap();
        happening.happens(1);
        gives(&mut feed, [1, -1, 2]).await;
    }
}
