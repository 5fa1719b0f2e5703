//! Letting go of old history without breaking what is left.

use rusqlite::{Transaction, params};
use serde::{Deserialize, Serialize};

use super::chain::Chain;
use super::{Ledger, fault::Fault};
use crate::error::Result;

/// How much was let go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    pub rollouts: u64,
    pub events: u64,
}

impl Ledger {
    /// Keeps the newest `keep` rollouts that ended and the newest `keep_events` events.
    ///
    /// Never goes what is live, a rollout that is open or that made something live, or an event since the first one of a
    /// rollout that is open. The chain goes on from the hash of the last event that went.
    pub fn prune(&self, keep: usize, keep_events: usize) -> Result<Pruned> {
        let bounded = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.write("prune it", |transaction| {
            let rollouts = transaction.execute(
                "DELETE FROM rollouts WHERE ended_ms IS NOT NULL
                    AND id NOT IN (SELECT rollout FROM live WHERE rollout IS NOT NULL)
                    AND number NOT IN (SELECT number FROM rollouts WHERE ended_ms IS NOT NULL
                        ORDER BY started_ms DESC, number DESC LIMIT ?)",
                // At least one: a ledger that has events and no rollout has lost some.
                [bounded(keep.max(1))],
            )?;
            let events = prune_events(transaction, bounded(keep_events))?;
            Ok(Pruned { rollouts: rollouts as u64, events })
        })
    }
}

fn prune_events(transaction: &Transaction<'_>, keep: i64) -> Result<u64, Fault> {
    let chain = Chain::of(transaction)?;
    let first_open: Option<i64> = transaction.query_row(
        "SELECT min(seq) FROM events WHERE rollout IN (SELECT id FROM rollouts WHERE ended_ms IS NULL)",
        [],
        |row| row.get(0),
    )?;
    let last = (chain.head_seq - keep).min(first_open.map_or(i64::MAX, |seq| seq - 1));
    if last <= chain.base_seq {
        return Ok(0);
    }
    let hash: String = transaction.query_row("SELECT hash FROM events WHERE seq = ?", [last], |row| row.get(0))?;
    transaction.execute("UPDATE chain SET base_seq = ?, base_hash = ?", params![last, hash])?;
    Ok(transaction.execute("DELETE FROM events WHERE seq <= ?", [last])? as u64)
}
