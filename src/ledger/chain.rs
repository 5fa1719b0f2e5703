//! Events: appended, never changed, each holding the hash of the one before it.
//!
//! `hash = blake3(scheme | prev_hash | every field, with its length before it)`. The `chain` row records where the chain
//! is kept from (what was pruned is one hash) and where it ends, so that a missing tail is seen as well as a changed middle;
//! rows of other tables note where it ended when they were written, so that it cannot be moved back unseen.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, named_params, params};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fault::Fault;
use super::{Ledger, live, rollouts};
use crate::error::Result;

const SCHEME: &[u8] = b"cutover event 1\n";

/// Something that happened, as its teller knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewEvent {
    pub model: String,
    pub rollout: Option<String>,
    /// "phase", "switched", "rolled_back", "fault", "alert", "started", "stopped", "manifest"
    pub kind: String,
    /// Unix time in milliseconds, by the caller's clock.
    pub at_ms: i64,
    pub actor: Option<String>,
    pub body: Value,
}

/// An event as it is recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// From 1, without gaps; below 0 of one that the ledger could not take (see [`NewEvent::unwritten`]).
    pub seq: i64,
    /// Of the event before; empty for the first one.
    pub prev_hash: String,
    pub hash: String,
    pub model: String,
    pub rollout: Option<String>,
    pub kind: String,
    pub at_ms: i64,
    pub actor: Option<String>,
    pub body: Value,
}

impl NewEvent {
    /// As it is told where it could not be recorded: it has no place in the chain. `number` tells such events apart, from 1.
    pub fn unwritten(&self, number: i64) -> Event {
        let NewEvent { model, rollout, kind, at_ms, actor, body } = self.clone();
        Event { seq: -number, prev_hash: String::new(), hash: String::new(), model, rollout, kind, at_ms, actor, body }
    }
}

impl Event {
    /// Whether the ledger has it.
    pub fn is_written(&self) -> bool {
        self.seq > 0
    }
}

/// What a look at everything found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// How many were read.
    pub events: u64,
    /// Where the chain breaks first.
    pub first_bad: Option<BadEvent>,
    /// Rows of other tables that are not what was written or are gone, and what is wrong with each.
    pub bad_rows: Vec<String>,
    /// Events with a smaller number are gone by rule; 1 when none are.
    pub pruned_before: i64,
    pub ok: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadEvent {
    pub seq: i64,
    pub reason: String,
}

impl VerifyReport {
    pub(super) fn first_problem(&self) -> Option<String> {
        let event = self.first_bad.as_ref().map(|bad| format!("event {}: {}", bad.seq, bad.reason));
        event.or_else(|| self.bad_rows.first().cloned())
    }
}

impl Ledger {
    pub fn append(&self, event: &NewEvent) -> Result<Event> {
        self.write("append an event", |transaction| append(transaction, event))
    }

    /// Events after `after_seq`, oldest first.
    pub fn events(&self, after_seq: i64, model: Option<&str>, limit: usize) -> Result<Vec<Event>> {
        self.read("read events", |transaction| {
            // Two statements, so that each has its index.
            let by_model = "SELECT * FROM events WHERE model = :model AND seq > :after ORDER BY seq LIMIT :limit";
            let all = "SELECT * FROM events WHERE :model IS NULL AND seq > :after ORDER BY seq LIMIT :limit";
            let mut statement = transaction.prepare_cached(if model.is_some() { by_model } else { all })?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let mut rows = statement.query(named_params! {":model": model, ":after": after_seq, ":limit": limit})?;
            let mut events = Vec::new();
            while let Some(row) = rows.next()? {
                events.push(Stored::of(row)?.checked()?);
            }
            Ok(events)
        })
    }

    /// Events of one kind of a rollout, oldest first.
    pub fn rollout_events(&self, rollout: &str, kind: &str) -> Result<Vec<Event>> {
        self.read("read a rollout's events", |transaction| {
            let mut statement = transaction
                .prepare_cached("SELECT * FROM events WHERE rollout = :rollout AND kind = :kind ORDER BY seq")?;
            let mut rows = statement.query(named_params! {":rollout": rollout, ":kind": kind})?;
            let mut events = Vec::new();
            while let Some(row) = rows.next()? {
                events.push(Stored::of(row)?.checked()?);
            }
            Ok(events)
        })
    }

    /// The number of the last event; 0 when there is none.
    pub fn last_seq(&self) -> Result<i64> {
        self.read("read the chain", |transaction| Ok(Chain::of(transaction)?.head_seq))
    }

    /// Recomputes the chain of events and the digests of all other rows.
    pub fn verify(&self) -> Result<VerifyReport> {
        self.read("verify it", |transaction| {
            let chain = Chain::of(transaction)?;
            let (events, first_bad) = walk(transaction, &chain)?;
            let first_bad = match first_bad {
                None => cut(transaction, &chain)?,
                bad => bad,
            };
            let mut bad_rows = live::bad_rows(transaction)?;
            bad_rows.extend(rollouts::bad_rows(transaction)?);
            let ok = first_bad.is_none() && bad_rows.is_empty();
            Ok(VerifyReport { events, first_bad, bad_rows, pruned_before: chain.base_seq + 1, ok })
        })
    }
}

pub(super) fn append(transaction: &Transaction<'_>, event: &NewEvent) -> Result<Event, Fault> {
    let chain = Chain::of(transaction)?;
    let stored = Stored {
        seq: chain.head_seq + 1,
        at_ms: event.at_ms,
        model: event.model.clone(),
        rollout: event.rollout.clone(),
        kind: event.kind.clone(),
        actor: event.actor.clone(),
        body: event.body.to_string(),
        prev_hash: chain.head_hash,
        hash: String::new(),
    };
    let stored = Stored { hash: stored.expected_hash(), ..stored };
    let Stored { seq, at_ms, model, rollout, kind, actor, body, prev_hash, hash } = &stored;
    transaction
        .prepare_cached("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")?
        .execute(params![seq, at_ms, model, rollout, kind, actor, body, prev_hash, hash])?;
    transaction.prepare_cached("UPDATE chain SET head_seq = ?, head_hash = ?")?.execute(params![seq, hash])?;
    stored.into_event()
}

/// How many events there are, and where the chain breaks.
fn walk(connection: &Connection, chain: &Chain) -> Result<(u64, Option<BadEvent>), Fault> {
    let bad = |seq: i64, reason: &str| Some(BadEvent { seq, reason: reason.to_owned() });
    let mut statement = connection.prepare_cached("SELECT * FROM events ORDER BY seq")?;
    let mut rows = statement.query([])?;
    let (mut events, mut last_seq, mut last_hash) = (0, chain.base_seq, chain.base_hash.clone());
    while let Some(row) = rows.next()? {
        let event = Stored::of(row)?;
        events += 1;
        let due = last_seq + 1;
        if event.seq != due {
            let seq = event.seq.min(due);
            return Ok((
                events,
                bad(seq, if event.seq > due { "it is missing" } else { "it was pruned, but is there" }),
            ));
        }
        if event.prev_hash != last_hash {
            return Ok((events, bad(event.seq, "it does not follow the event before it")));
        }
        if event.hash != event.expected_hash() {
            return Ok((events, bad(event.seq, "it was changed after it was recorded")));
        }
        (last_seq, last_hash) = (event.seq, event.hash);
    }
    if last_seq < chain.head_seq {
        return Ok((events, bad(last_seq + 1, "it is missing, with all that followed")));
    }
    if (last_seq, &last_hash) != (chain.head_seq, &chain.head_hash) {
        return Ok((events, bad(last_seq, "it is not the last one that was recorded")));
    }
    Ok((events, None))
}

/// Whether events are gone that another table knows of, although the chain ends as if they had never been.
fn cut(connection: &Connection, chain: &Chain) -> Result<Option<BadEvent>, Fault> {
    let known: i64 = connection.query_row(
        "SELECT max(coalesce((SELECT max(head_seq) FROM live), 0), coalesce((SELECT max(head_seq) FROM rollouts), 0))",
        [],
        |row| row.get(0),
    )?;
    let reason = || format!("it is missing: what is live, or a rollout, was recorded after event {known}");
    Ok((known > chain.head_seq).then(|| BadEvent { seq: chain.head_seq + 1, reason: reason() }))
}

/// Where the chain ended when another row was written: that many events there have been.
#[derive(Clone, Copy)]
pub(super) struct Head(pub(super) i64);

impl Head {
    pub(super) fn of(connection: &Connection) -> Result<Head, Fault> {
        Ok(Head(Chain::of(connection)?.head_seq))
    }

    /// For the row's digest; nothing in rows of a ledger that did not note it yet.
    pub(super) fn field(self) -> Option<String> {
        (self.0 > 0).then(|| self.0.to_string())
    }
}

/// The one row that says which events there must be.
pub(super) struct Chain {
    pub(super) base_seq: i64,
    pub(super) base_hash: String,
    pub(super) head_seq: i64,
    pub(super) head_hash: String,
}

impl Chain {
    pub(super) fn of(connection: &Connection) -> Result<Chain, Fault> {
        let row = connection
            .prepare_cached("SELECT base_seq, base_hash, head_seq, head_hash FROM chain WHERE only = 1")?
            .query_row([], |row| {
                let (base_seq, base_hash, head_seq, head_hash) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
                Ok(Chain { base_seq, base_hash, head_seq, head_hash })
            })
            .optional()?;
        row.ok_or_else(|| Fault::Damaged("the row that describes its events is gone".to_owned()))
    }
}

/// An event with its body as it was written: the hash is of these bytes, not of a later reading of them.
struct Stored {
    seq: i64,
    at_ms: i64,
    model: String,
    rollout: Option<String>,
    kind: String,
    actor: Option<String>,
    body: String,
    prev_hash: String,
    hash: String,
}

impl Stored {
    fn of(row: &Row<'_>) -> Result<Stored, Fault> {
        Ok(Stored {
            seq: row.get("seq")?,
            at_ms: row.get("at_ms")?,
            model: row.get("model")?,
            rollout: row.get("rollout")?,
            kind: row.get("kind")?,
            actor: row.get("actor")?,
            body: row.get("body")?,
            prev_hash: row.get("prev_hash")?,
            hash: row.get("hash")?,
        })
    }

    fn expected_hash(&self) -> String {
        digest(
            SCHEME,
            &[
                Some(&self.prev_hash),
                Some(&self.seq.to_string()),
                Some(&self.at_ms.to_string()),
                Some(&self.model),
                self.rollout.as_deref(),
                Some(&self.kind),
                self.actor.as_deref(),
                Some(&self.body),
            ],
        )
    }

    fn checked(self) -> Result<Event, Fault> {
        if self.hash != self.expected_hash() {
            return Err(Fault::Damaged(format!("event {} was changed after it was recorded", self.seq)));
        }
        self.into_event()
    }

    fn into_event(self) -> Result<Event, Fault> {
        let Stored { seq, at_ms, model, rollout, kind, actor, body, prev_hash, hash } = self;
        let body = serde_json::from_str(&body)
            .map_err(|error| Fault::Damaged(format!("the body of event {seq} is not JSON: {error}")))?;
        Ok(Event { seq, prev_hash, hash, model, rollout, kind, at_ms, actor, body })
    }
}

/// BLAKE3 in hexadecimal of some fields; absent and empty, and any two divisions of the same text, differ.
pub(super) fn digest(scheme: &[u8], fields: &[Option<&str>]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(scheme);
    for field in fields {
        match field {
            None => hasher.update(&[0]),
            Some(text) => hasher.update(&[1]).update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes()),
        };
    }
    hasher.finalize().to_hex().to_string()
}
