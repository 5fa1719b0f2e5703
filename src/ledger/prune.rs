//! Letting go of old history without breaking what is left.
//!
//! A record may go while events still tell of its rollout: `pruned` has the names of those, so that one which is gone
//! otherwise is missed.

use rusqlite::{Transaction, params};
use serde::{Deserialize, Serialize};

use super::chain::Chain;
use super::{Ledger, fault::Fault};
use crate::error::Result;

/// How much history is kept, the newest of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// That have ended. One is kept in any case.
    pub rollouts: usize,
    pub events: usize,
}

impl Keep {
    pub const ALL: Keep = Keep { rollouts: usize::MAX, events: usize::MAX };

    fn bounded(self) -> (i64, i64) {
        let bounded = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        (bounded(self.rollouts.max(1)), bounded(self.events))
    }
}

/// How much was let go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    pub rollouts: u64,
    pub events: u64,
}

impl Ledger {
    /// Lets go of what is more than `keep`.
    ///
    /// Never goes what is live, a rollout that is open or that made something live, or an event since the first one of a
    /// rollout that is open. The chain goes on from the hash of the last event that went.
    pub fn prune(&self, keep: Keep) -> Result<Pruned> {
        let (rollouts, events) = keep.bounded();
        self.write("prune it", |transaction| {
            let events = prune_events(transaction, events)?;
            let rollouts = prune_rollouts(transaction, rollouts)?;
            Ok(Pruned { rollouts, events })
        })
    }

    /// Whether there is more than `keep`: found out without keeping a switch from being written.
    pub fn has_more_than(&self, keep: Keep) -> Result<bool> {
        let (rollouts, events) = keep.bounded();
        self.read("count what it has", |transaction| {
            let chain = Chain::of(transaction)?;
            let ended: i64 = transaction
                .prepare_cached("SELECT count(*) FROM rollouts WHERE ended_ms IS NOT NULL")?
                .query_row([], |row| row.get(0))?;
            Ok(ended > rollouts || chain.head_seq - chain.base_seq > events)
        })
    }
}

fn prune_rollouts(transaction: &Transaction<'_>, keep: i64) -> Result<u64, Fault> {
    let gone: Vec<String> = transaction
        .prepare_cached(
            "DELETE FROM rollouts WHERE ended_ms IS NOT NULL
                AND id NOT IN (SELECT rollout FROM live WHERE rollout IS NOT NULL)
                AND number NOT IN (SELECT number FROM rollouts WHERE ended_ms IS NOT NULL
                    ORDER BY started_ms DESC, number DESC LIMIT ?)
                RETURNING id",
        )?
        .query_map([keep], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let mut note = transaction.prepare_cached(
        "INSERT OR IGNORE INTO pruned SELECT :id WHERE EXISTS (SELECT 1 FROM events WHERE rollout = :id)",
    )?;
    for id in &gone {
        note.execute([id])?;
    }
    Ok(gone.len() as u64)
}

fn prune_events(transaction: &Transaction<'_>, keep: i64) -> Result<u64, Fault> {
    let chain = Chain::of(transaction)?;
    let first_open: Option<i64> = transaction
        .prepare_cached(
            "SELECT min(seq) FROM events WHERE rollout IN (SELECT id FROM rollouts WHERE ended_ms IS NULL)",
        )?
        .query_row([], |row| row.get(0))?;
    let last = (chain.head_seq - keep).min(first_open.map_or(i64::MAX, |seq| seq - 1));
    if last <= chain.base_seq {
        return Ok(0);
    }
    let hash: String = transaction.query_row("SELECT hash FROM events WHERE seq = ?", [last], |row| row.get(0))?;
    let told: Vec<String> = transaction
        .prepare_cached("SELECT DISTINCT rollout FROM events WHERE seq <= ? AND rollout IS NOT NULL")?
        .query_map([last], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    transaction.execute("UPDATE chain SET base_seq = ?, base_hash = ?", params![last, hash])?;
    let events = transaction.execute("DELETE FROM events WHERE seq <= ?", [last])?;
    let mut forget = transaction.prepare_cached(
        "DELETE FROM pruned WHERE rollout = :id AND NOT EXISTS (SELECT 1 FROM events WHERE rollout = :id)",
    )?;
    for id in &told {
        forget.execute([id])?;
    }
    Ok(events as u64)
}
