//! One version made resident once: its identity, its processor, its lane into the engine, and its counters.
//!
//! A generation never changes. Whoever holds an `Arc<Generation>` keeps it resident: the route that names it and
//! every request that is on it. When the last of them is gone, its `Drained` signal fires, and only then may the
//! rollout controller retire it. That is the whole drain protocol; nothing counts in-flight requests by hand.
//! It must not know routes, rollouts or HTTP.

mod agreements;
mod observed;
mod scores;
mod stats;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use serde::Serialize;
use tokio::sync::{Semaphore, oneshot};

pub use agreements::Agreements;
pub use observed::{Observed, histogram};
pub use scores::Scores;
pub use stats::{Beat, Mark, Passed, Seen, Snapshot, Spent, Stage, Stats};

use crate::engine::Lane;
use crate::process::Processor;
use crate::repository::{Contract, Limits};

/// Identity of a generation within this process's life and, by its starting point, beyond it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct GenerationId(pub u64);

impl std::fmt::Display for GenerationId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Hands out ids. Starts after the last one that the ledger knows.
#[derive(Debug)]
pub struct GenerationIds(AtomicU64);

impl GenerationIds {
    pub fn after(last: u64) -> Self {
        GenerationIds(AtomicU64::new(last + 1))
    }

    pub fn next(&self) -> GenerationId {
        GenerationId(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

/// What an answer says of who made it. Cheap to keep after the generation itself was let go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    pub model: Arc<str>,
    pub version: Arc<str>,
    pub generation: GenerationId,
}

#[derive(Debug)]
pub struct Generation {
    pub stamp: Stamp,
    /// Digest of the version's files.
    pub digest: String,
    pub contract: Contract,
    pub processor: Arc<Processor>,
    pub lane: Lane,
    pub limits: Limits,
    pub stats: Arc<Stats>,
    pub resident_since: SystemTime,
    /// Heavy inputs that may be prepared at once: as many as there are processors for models. More would take no less time,
    /// and each decoded image takes memory of its own.
    pub preparing: Arc<Semaphore>,
    drained: Option<oneshot::Sender<()>>,
}

/// Fires when nothing holds the generation any more.
#[derive(Debug)]
pub struct Drained(oneshot::Receiver<()>);

impl Drained {
    pub async fn wait(&mut self) {
        // An error means that the sender was dropped without sending, which only its `Drop` could do: drained too.
        let _ = (&mut self.0).await;
    }
}

/// Everything that makes a generation, before it is shared.
pub struct Parts {
    pub stamp: Stamp,
    pub digest: String,
    pub contract: Contract,
    pub processor: Arc<Processor>,
    pub lane: Lane,
    pub limits: Limits,
    /// Heavy inputs that may be prepared at once.
    pub preparing: usize,
}

impl Generation {
    pub fn new(parts: Parts) -> (Arc<Self>, Drained) {
        let (sender, receiver) = oneshot::channel();
        let generation = Generation {
            stamp: parts.stamp,
            digest: parts.digest,
            contract: parts.contract,
            processor: parts.processor,
            lane: parts.lane,
            limits: parts.limits,
            stats: Arc::new(Stats::new()),
            resident_since: SystemTime::now(),
            preparing: Arc::new(Semaphore::new(parts.preparing)),
            drained: Some(sender),
        };
        (Arc::new(generation), Drained(receiver))
    }

    pub fn id(&self) -> GenerationId {
        self.stamp.generation
    }

    pub fn version(&self) -> &str {
        &self.stamp.version
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if let Some(sender) = self.drained.take() {
            // Nobody listening means that nobody will retire it: the process is stopping.
            let _ = sender.send(());
        }
    }
}
