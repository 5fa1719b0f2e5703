//! The events of the ledger in order, none left out: a listener that falls behind reads from the ledger what it missed.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::broadcast::{self, error::RecvError};

use crate::ledger::{Event, Ledger};

/// Events that are read from the ledger at a time.
const PAGE: usize = 1000;

pub struct Feed {
    live: broadcast::Receiver<Event>,
    ledger: Arc<Ledger>,
    /// The newest that was given out.
    last: i64,
    missed: VecDeque<Event>,
}

impl Feed {
    /// What happens from now on: `live` must listen already. `last`: the newest event that is known.
    pub fn new(live: broadcast::Receiver<Event>, ledger: Arc<Ledger>, last: i64) -> Feed {
        Feed { live, ledger, last, missed: VecDeque::new() }
    }

    pub fn ledger(&self) -> Arc<Ledger> {
        Arc::clone(&self.ledger)
    }

    /// The next one; none when nobody tells any more.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            let event = match self.missed.pop_front() {
                Some(event) => event,
                None => match self.live.recv().await {
                    Ok(event) => event,
                    Err(RecvError::Closed) => return None,
                    Err(RecvError::Lagged(_)) => {
                        self.catch_up().await;
                        continue;
                    }
                },
            };
            // What was read from the ledger comes once more by itself.
            if event.seq > self.last {
                self.last = event.seq;
                return Some(event);
            }
        }
    }

    async fn catch_up(&mut self) {
        let (ledger, after) = (Arc::clone(&self.ledger), self.last);
        let read = tokio::task::spawn_blocking(move || ledger.events(after, None, PAGE)).await;
        match read {
            Ok(Ok(events)) => self.missed = events.into(),
            Ok(Err(error)) => tracing::error!(%error, "events that were missed could not be read from the ledger"),
            Err(error) => tracing::error!(%error, "events that were missed could not be read from the ledger"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::NewEvent;

    #[tokio::test]
    async fn a_listener_that_falls_behind_misses_nothing_and_hears_nothing_twice() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Arc::new(Ledger::open(&dir.path().join("ledger.sqlite")).unwrap());
        let (told, live) = broadcast::channel(4);
        let mut feed = Feed::new(live, Arc::clone(&ledger), 0);
        let mut happens = |number: i64| {
            let event = NewEvent {
                model: "digits".to_owned(),
                rollout: None,
                kind: "alert".to_owned(),
                at_ms: number,
                actor: None,
                body: serde_json::json!({}),
            };
            told.send(ledger.append(&event).unwrap()).unwrap();
        };
        (0..20).for_each(&mut happens);
        for expected in 1..=10 {
            assert_eq!(feed.next().await.unwrap().seq, expected);
        }
        (20..40).for_each(&mut happens);
        for expected in 11..=40 {
            assert_eq!(feed.next().await.unwrap().seq, expected);
        }
        drop(told);
        assert_eq!(feed.next().await, None);
    }
}
