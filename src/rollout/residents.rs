//! Generations that are resident, as their controller holds them, and giving their memory back.
//!
//! A `Resident` never holds the `Generation` itself: routes and requests do. So when those are gone the drain
//! signal fires, and what is left to do is here: let the engine drop the model on its own thread, purge the
//! arena, measure what came back, and return the reservation.

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::device::{Count, Measured, Memory, Reservation, resident_bytes};
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
    /// Weights that nobody else held: these had to come back, whoever had loaded them.
    pub promised: u64,
    /// What the allocator counted as freed: in the generation's memory, and in that of versions before it whose weights it
    /// was the last to hold.
    pub returned: u64,
    /// Weights that another generation goes on holding.
    pub kept_shared: u64,
    pub resident_before: Option<u64>,
    pub resident_after: Option<u64>,
    /// Of a GPU, all pools together that something came back of: before anything was dropped, and at the end, when used and
    /// reserved are what others share.
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
    /// One reclaim measures at a time, or what comes back of a memory that lingers would count for two.
    measuring: tokio::sync::Mutex<()>,
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

    /// Lowers each reservation to what is still held for it and lets go of those in which nothing is used.
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
        // What a thread that was abandoned left, and what was freed since: nobody else returns it.
        shared.iter().try_for_each(|room| room.memory.trim())?;
        let counts = Memory::counts(shared.iter().map(|room| room.memory.as_ref()))?;
        let mut counts = counts.into_iter();
        shared.retain(|room| {
            let Count { used, held } = counts.next().unwrap_or_default();
            room.reservation.settle(held);
            used > 0
        });
        Ok(())
    }

    fn memories(&self) -> Vec<Arc<Memory>> {
        self.shared.lock().unwrap_or_else(|e| e.into_inner()).iter().map(|room| Arc::clone(&room.memory)).collect()
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
            engine.cut_short(Some(resident.id))?;
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
    let _measuring = lingering.measuring.lock().await;
    // Weights that it was the last to hold may lie with those who had loaded them.
    let memories: Vec<Arc<Memory>> = std::iter::once(Arc::clone(&room.memory)).chain(lingering.memories()).collect();
    let count = || Memory::counts(memories.iter().map(Arc::as_ref));
    let (before, resident_before, measured_before) = (count()?, resident_bytes(), room.memory.measured()?);
    let Held { exclusive, shared } = engine.retire(id, model).await?;
    let dropped = count()?;
    for ((memory, before), dropped) in memories.iter().zip(&before).zip(&dropped).skip(1) {
        if dropped.used < before.used {
            memory.trim()?;
        }
    }
    room.memory.trim()?;
    let (after, measured_after) = (count()?, room.memory.measured()?);
    drop(memories);
    lingering.linger(room);
    lingering.sweep()?;
    let (freed, [held, left]) = came_back(&before, &after);
    let all = |Count { used, held }: Count| move |own: Measured| Measured { used, reserved: held, free: own.free };
    Ok(Reclaimed {
        generation: id,
        promised: exclusive,
        returned: freed,
        kept_shared: shared,
        resident_before,
        resident_after: resident_bytes(),
        vram_before: measured_before.map(all(held)),
        vram_after: measured_after.map(all(left)),
        drain_ms,
        free_ms: began.elapsed().as_secs_f64() * 1e3,
    })
}

/// Bytes that are not used any more; and what was counted, before and after, of the first memory and of others of which
/// something came back.
fn came_back(before: &[Count], after: &[Count]) -> (u64, [Count; 2]) {
    let of = |(at, (before, after)): (usize, (&Count, &Count))| (at, *before, *after);
    let counts = before.iter().zip(after).enumerate().map(of);
    let concerned = counts.filter(|(at, before, after)| *at == 0 || after.used < before.used);
    concerned.fold((0, [Count::default(); 2]), |(freed, [held, left]), (_, before, after)| {
        (freed + before.used.saturating_sub(after.used), [held + before, left + after])
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_is_counted_wherever_it_lay_and_of_others_memory_only_where_something_did() {
        let count = |used, held| Count { used, held };
        // Its own, one that kept what it was the last to hold, one that keeps what others hold, and one that nothing changed in.
        let before = [count(10, 32), count(90, 96), count(50, 64), count(7, 32)];
        let after = [count(0, 0), count(0, 0), count(30, 32), count(7, 32)];
        assert_eq!(came_back(&before, &after), (120, [count(150, 192), count(30, 32)]));
        // Its own counts also where nothing was its own.
        assert_eq!(came_back(&[count(5, 32)], &[count(5, 32)]), (0, [count(5, 32), count(5, 32)]));
    }
}
