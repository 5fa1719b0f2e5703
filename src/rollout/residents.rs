//! Generations that are resident, as their controller holds them, and giving their memory back.
//!
//! A `Resident` never holds the `Generation` itself: routes and requests do. So when those are gone the drain
//! signal fires, and what is left to do is here: let the engine drop the model on its own thread, purge the
//! arena, measure what came back, and return the reservation.

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::device::{Measured, Memory, Reservation, resident_bytes};
use crate::engine::{Engine, Held};
use crate::error::Result;
use crate::generation::{Drained, GenerationId, Stats};
use crate::model::Model;
use crate::repository::{Contract, OnDrainTimeout};

/// Memory that a candidate took before it became a generation.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) memory: Arc<Memory>,
    pub(super) reservation: Reservation,
}

#[derive(Debug)]
pub(super) struct Resident {
    pub(super) id: GenerationId,
    pub(super) version: String,
    pub(super) contract: Contract,
    pub(super) stats: Arc<Stats>,
    pub(super) room: Room,
    pub(super) drained: Drained,
    /// After this long it is said that requests hold the generation; it is waited for all the same.
    pub(super) drain_timeout: Duration,
    pub(super) on_drain_timeout: OnDrainTimeout,
}

/// What a reclaim promised and what it measured. Bytes and milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reclaimed {
    pub generation: GenerationId,
    /// Weights that nobody else held: these had to come back.
    pub promised: u64,
    /// What the allocator counted as freed in the generation's arena.
    pub returned: u64,
    /// Weights that another generation goes on holding.
    pub kept_shared: u64,
    pub resident_before: Option<u64>,
    pub resident_after: Option<u64>,
    /// Of a GPU: before anything was dropped, and at the end, when used and reserved are what others share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vram_before: Option<Measured>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vram_after: Option<Measured>,
    /// Waiting for requests that were still on it.
    pub drain_ms: f64,
    /// Dropping, purging, measuring.
    pub free_ms: f64,
}

/// Rooms that outlive their generation: shared tensors still in use, or a thread that hangs inside one.
#[derive(Debug, Default)]
pub(super) struct Lingering {
    shared: Mutex<Vec<Room>>,
    abandoned: Mutex<Vec<(Room, ThreadLife)>>,
}

/// Whether a thread that hangs has ended after all: it holds the other end as long as it runs.
#[derive(Debug, Clone, Default)]
pub(super) struct ThreadLife(Weak<()>);

impl ThreadLife {
    /// What the thread drops last, and what tells of it.
    pub(super) fn begin() -> (Arc<()>, ThreadLife) {
        let held = Arc::new(());
        let life = ThreadLife(Arc::downgrade(&held));
        (held, life)
    }

    fn is_over(&self) -> bool {
        self.0.strong_count() == 0
    }
}

impl Lingering {
    /// Keeps what a hanging thread may still touch, until that has ended after all: for good, if it never does.
    pub(super) fn abandon(&self, room: Room, thread: ThreadLife) {
        self.abandoned.lock().unwrap_or_else(|e| e.into_inner()).push((room, thread));
    }

    pub(super) fn abandoned_bytes(&self) -> u64 {
        self.abandoned.lock().unwrap_or_else(|e| e.into_inner()).iter().map(|(room, _)| room.reservation.bytes()).sum()
    }

    /// Lowers each reservation to what its arena still holds and lets go of those that hold nothing.
    pub(super) fn sweep(&self) -> Result<()> {
        let ended: Vec<(Room, ThreadLife)> = {
            let mut abandoned = self.abandoned.lock().unwrap_or_else(|e| e.into_inner());
            abandoned.extract_if(.., |(_, thread)| thread.is_over()).collect()
        };
        for (room, _) in ended {
            tracing::info!(bytes = room.reservation.bytes(), "an abandoned thread has ended; its memory comes back");
            self.linger(room);
        }
        let mut shared = self.shared.lock().unwrap_or_else(|e| e.into_inner());
        let used = Memory::used_by(shared.iter().map(|room| room.memory.as_ref()))?;
        let mut used = used.into_iter();
        shared.retain(|room| {
            let used = used.next().unwrap_or_default();
            room.reservation.settle(used);
            used > 0
        });
        Ok(())
    }

    fn linger(&self, room: Room) {
        room.reservation.rename(|holder| format!("{holder}, retired: weights that other versions share"));
        self.shared.lock().unwrap_or_else(|e| e.into_inner()).push(room);
    }
}

/// Gives back a generation that no route names any more. Waits until the last request on it is answered.
pub(super) async fn reclaim(engine: &Engine, lingering: &Lingering, mut resident: Resident) -> Result<Reclaimed> {
    let began = Instant::now();
    if tokio::time::timeout(resident.drain_timeout, resident.drained.wait()).await.is_err() {
        tracing::warn!(version = resident.version, waited = ?resident.drain_timeout, alert = true,
            "requests still hold a version that is to be reclaimed; waiting on");
        if resident.on_drain_timeout == OnDrainTimeout::Length {
            engine.cut_short(resident.id)?;
        }
        resident.drained.wait().await;
    }
    let drain_ms = began.elapsed().as_secs_f64() * 1e3;
    let Resident { id, room, .. } = resident;
    free(engine, lingering, id, None, room, drain_ms).await
}

/// Gives back what a candidate held that never became a generation.
pub(super) async fn discard(
    engine: &Engine,
    lingering: &Lingering,
    id: GenerationId,
    model: Option<Box<Model>>,
    room: Room,
) -> Result<Reclaimed> {
    free(engine, lingering, id, model, room, 0.0).await
}

async fn free(
    engine: &Engine,
    lingering: &Lingering,
    id: GenerationId,
    model: Option<Box<Model>>,
    room: Room,
    drain_ms: f64,
) -> Result<Reclaimed> {
    let began = Instant::now();
    let (used_before, resident_before, vram_before) = (room.memory.used()?, resident_bytes(), room.memory.measured()?);
    let Held { exclusive, shared } = engine.retire(id, model).await?;
    room.memory.trim()?;
    let (used_after, vram_after) = (room.memory.used()?, room.memory.measured()?);
    lingering.linger(room);
    lingering.sweep()?;
    Ok(Reclaimed {
        generation: id,
        promised: exclusive,
        returned: used_before.saturating_sub(used_after),
        kept_shared: shared,
        resident_before,
        resident_after: resident_bytes(),
        vram_before,
        vram_after,
        drain_ms,
        free_ms: began.elapsed().as_secs_f64() * 1e3,
    })
}

impl Reclaimed {
    /// Of a candidate that never took room.
    pub(super) fn nothing(generation: GenerationId) -> Self {
        Reclaimed {
            generation,
            promised: 0,
            returned: 0,
            kept_shared: 0,
            resident_before: None,
            resident_after: None,
            vram_before: None,
            vram_after: None,
            drain_ms: 0.0,
            free_ms: 0.0,
        }
    }
}
