//! Rollouts: one record each, as the interface shows it, replaced as the rollout goes on.

use rusqlite::{Connection, Row, Transaction, named_params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::chain::{self, Event, Head, NewEvent, digest};
use super::{Ledger, fault::Fault};
use crate::error::Result;
use crate::repository::Difference;

const SCHEME: &[u8] = b"cutover rollout 1\n";

/// The journey of one version. What tools read of it keeps its names.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RolloutRecord {
    pub id: String,
    pub model: String,
    /// The version that was live; none for the first one.
    pub from: Option<String>,
    pub to: String,
    pub phase: String,
    pub reason: Option<String>,
    /// How it went back: "instant", "parked" or "cold".
    pub kind: Option<String>,
    pub actor: Option<String>,
    /// RFC 3339 in UTC with milliseconds: see [`super::rfc3339`].
    pub started: String,
    /// Unix time in milliseconds.
    pub started_ms: i64,
    /// None while it is open.
    pub ended_ms: Option<i64>,
    pub phases: Vec<PhaseAt>,
    pub gate: Vec<GateCheck>,
    /// What it changes of what `from` was, the gravest first; empty for a first version, and in records from before this was kept.
    #[serde(default)]
    pub diff: Vec<Difference>,
    /// Measures by name, `downtime_ms` and `rollback_ms` among them.
    pub figures: Map<String, Value>,
    /// Of the version that it goes to.
    pub digest: Option<String>,
    pub error: Option<Value>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseAt {
    pub phase: String,
    /// When it began, in RFC 3339.
    pub at: String,
    /// How long it took; 0 while it lasts.
    pub ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateCheck {
    pub check: String,
    pub passed: bool,
    pub measure: Value,
    pub limit: Value,
    pub case: Option<String>,
    /// What was found, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Which rollouts to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    pub model: Option<String>,
    pub limit: usize,
    /// Only those that have not ended.
    pub open_only: bool,
}

impl Default for Filter {
    /// The newest hundred.
    fn default() -> Self {
        Filter { model: None, limit: 100, open_only: false }
    }
}

impl Ledger {
    /// Records a rollout, in place of what was recorded under its id.
    pub fn save_rollout(&self, rollout: &RolloutRecord) -> Result<()> {
        self.write("record a rollout", |transaction| {
            let head = Head::of(transaction)?;
            save(transaction, rollout, head)
        })
    }

    /// Records what has become known of a rollout in the phase that it is in; nothing where the ledger has it in another by now,
    /// so that whoever writes late overwrites nothing.
    pub fn refresh_rollout(&self, rollout: &RolloutRecord) -> Result<()> {
        self.write("record a rollout's figures", |transaction| {
            let known = {
                let mut statement = transaction.prepare_cached("SELECT * FROM rollouts WHERE id = ?")?;
                let mut rows = statement.query([&rollout.id])?;
                rows.next()?.map(checked).transpose()?
            };
            match known.is_some_and(|known| known.ended_ms.is_none() && known.phase == rollout.phase) {
                true => {
                    let head = Head::of(transaction)?;
                    save(transaction, rollout, head)
                }
                false => Ok(()),
            }
        })
    }

    /// Records a rollout and what happened to it, as one.
    pub fn save_rollout_with(&self, rollout: &RolloutRecord, event: &NewEvent) -> Result<Event> {
        self.write("record a rollout and its event", |transaction| {
            let event = chain::append(transaction, event)?;
            save(transaction, rollout, Head(event.seq))?;
            Ok(event)
        })
    }

    pub fn rollout(&self, id: &str) -> Result<Option<RolloutRecord>> {
        self.read("read a rollout", |transaction| {
            let mut statement = transaction.prepare_cached("SELECT * FROM rollouts WHERE id = ?")?;
            let mut rows = statement.query([id])?;
            rows.next()?.map(checked).transpose()
        })
    }

    /// Newest first.
    pub fn rollouts(&self, filter: &Filter) -> Result<Vec<RolloutRecord>> {
        self.read("read rollouts", |transaction| select(transaction, filter))
    }

    /// How many are kept, of a model or of all.
    pub fn rollouts_kept(&self, model: Option<&str>) -> Result<u64> {
        self.read("count rollouts", |transaction| {
            let counted = "SELECT count(*) FROM rollouts WHERE :model IS NULL OR model = :model";
            let count = transaction.query_row(counted, named_params! {":model": model}, |row| row.get::<_, i64>(0))?;
            Ok::<_, Fault>(count.unsigned_abs())
        })
    }
}

fn save(transaction: &Transaction<'_>, rollout: &RolloutRecord, head: Head) -> Result<(), Fault> {
    let record = serde_json::to_string(rollout).map_err(|error| Fault::Misused(error.to_string()))?;
    let RolloutRecord { id, model, started_ms, ended_ms, .. } = rollout;
    let seal = seal((id, model), (*started_ms, *ended_ms), &record, head);
    transaction
        .prepare_cached(
            "INSERT INTO rollouts (id, model, started_ms, ended_ms, record, seal, head_seq)
             VALUES (:id, :model, :started, :ended, :record, :seal, :head)
             ON CONFLICT (id) DO UPDATE SET model = excluded.model, started_ms = excluded.started_ms,
                ended_ms = excluded.ended_ms, record = excluded.record, seal = excluded.seal,
                head_seq = excluded.head_seq",
        )?
        .execute(named_params! {
            ":id": id, ":model": model, ":started": started_ms, ":ended": ended_ms,
            ":record": record, ":seal": seal, ":head": head.0,
        })?;
    Ok(())
}

pub(super) fn select(connection: &Connection, filter: &Filter) -> Result<Vec<RolloutRecord>, Fault> {
    let mut records = Vec::new();
    each(connection, filter, &mut |record| {
        records.push(parsed(record)?);
        Ok(())
    })?;
    Ok(records)
}

/// Calls `see` with the text of every record that fits, the newest first. Only one is in memory at a time: a history may
/// be long, and what a gate has checked takes tens of kilobytes.
pub(super) fn each(
    connection: &Connection,
    filter: &Filter,
    see: &mut dyn FnMut(&str) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut statement = connection.prepare_cached(
        "SELECT * FROM rollouts WHERE (:model IS NULL OR model = :model) AND (NOT :open OR ended_ms IS NULL)
         ORDER BY started_ms DESC, number DESC LIMIT :limit",
    )?;
    let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
    let mut rows =
        statement.query(named_params! {":model": filter.model, ":open": filter.open_only, ":limit": limit})?;
    while let Some(row) = rows.next()? {
        see(&sound(row)?)?;
    }
    Ok(())
}

/// The names of rollouts that are not as they were written.
pub(super) fn bad_rows(connection: &Connection) -> Result<Vec<String>, Fault> {
    let mut bad = Vec::new();
    let mut statement = connection.prepare_cached("SELECT * FROM rollouts ORDER BY number")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if let Err(name) = intact(row)? {
            bad.push(format!("{name} is not what was recorded"));
        }
    }
    bad.extend(missing(connection)?);
    Ok(bad)
}

/// Rollouts whose beginning is told and whose record is gone, and not by rule. A record is written with its first event
/// ([`Ledger::save_rollout_with`]).
fn missing(connection: &Connection) -> Result<Vec<String>, Fault> {
    let mut statement = connection.prepare_cached(
        "SELECT DISTINCT rollout FROM events
            WHERE kind = 'phase' AND json_extract(body, '$.phase') IN ('draining', 'reserving') AND rollout IS NOT NULL
                AND rollout NOT IN (SELECT id FROM rollouts) AND rollout NOT IN (SELECT rollout FROM pruned)
            ORDER BY 1",
    )?;
    let gone = statement.query_map([], |row| row.get::<_, String>(0))?;
    Ok(gone.map(|id| id.map(|id| format!("rollout '{id}' is gone"))).collect::<rusqlite::Result<_>>()?)
}

fn checked(row: &Row<'_>) -> Result<RolloutRecord, Fault> {
    parsed(&sound(row)?)
}

fn sound(row: &Row<'_>) -> Result<String, Fault> {
    intact(row)?.map_err(|name| Fault::Damaged(format!("{name} is not what was recorded")))
}

/// A record, or as much of one as is asked for.
pub(super) fn parsed<T: DeserializeOwned>(record: &str) -> Result<T, Fault> {
    serde_json::from_str(record)
        .map_err(|error| Fault::Damaged(format!("the record of a rollout cannot be read: {error}")))
}

/// The record's text, or the name of the row when it is not as it was written.
fn intact(row: &Row<'_>) -> Result<Result<String, String>, Fault> {
    let (id, model): (String, String) = (row.get("id")?, row.get("model")?);
    let record: String = row.get("record")?;
    let (times, head) = ((row.get("started_ms")?, row.get("ended_ms")?), Head(row.get("head_seq")?));
    let expected = seal((&id, &model), times, &record, head);
    let same = row.get::<_, String>("seal")? == expected;
    Ok(if same { Ok(record) } else { Err(format!("rollout '{id}'")) })
}

fn seal((id, model): (&str, &str), (started, ended): (i64, Option<i64>), record: &str, head: Head) -> String {
    let (started, ended) = (started.to_string(), ended.map(|ended| ended.to_string()));
    let head = head.field();
    let mut fields = vec![Some(id), Some(model), Some(&started), ended.as_deref(), Some(record)];
    fields.extend(head.as_deref().map(Some));
    digest(SCHEME, &fields)
}
