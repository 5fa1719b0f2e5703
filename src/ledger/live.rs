//! What is live, and what each version's bytes were when it was first seen.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::chain::{self, Event, Head, NewEvent, digest};
use super::{Ledger, fault::Fault};
use crate::error::Result;

const LIVE_SCHEME: &[u8] = b"cutover live 1\n";
const MANIFEST_SCHEME: &[u8] = b"cutover manifest 1\n";

/// The version that serves a model: what the next start loads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    pub model: String,
    pub version: String,
    /// The version's digest when it was switched to.
    pub digest: String,
    pub rollout: Option<String>,
    /// Unix time in milliseconds.
    pub since_ms: i64,
    /// The version that was live before.
    pub previous: Option<String>,
}

impl Live {
    fn seal(&self, head: Head) -> String {
        let Live { model, version, digest: weights, rollout, since_ms, previous } = self;
        let (since, head) = (since_ms.to_string(), head.field());
        let mut fields = vec![Some(model.as_str()), Some(version), Some(weights), rollout.as_deref()];
        fields.extend([Some(since.as_str()), previous.as_deref()]);
        fields.extend(head.as_deref().map(Some));
        digest(LIVE_SCHEME, &fields)
    }

    /// The row, and whether it is as it was written.
    fn of(row: &Row<'_>) -> Result<(Live, bool), Fault> {
        let live = Live {
            model: row.get("model")?,
            version: row.get("version")?,
            digest: row.get("digest")?,
            rollout: row.get("rollout")?,
            since_ms: row.get("since_ms")?,
            previous: row.get("previous")?,
        };
        let intact = row.get::<_, String>("seal")? == live.seal(Head(row.get("head_seq")?));
        Ok((live, intact))
    }

    fn checked(row: &Row<'_>) -> Result<Live, Fault> {
        match Live::of(row)? {
            (live, true) => Ok(live),
            (live, false) => Err(Fault::Damaged(format!("{} is not what was recorded", live.row_name()))),
        }
    }

    fn row_name(&self) -> String {
        format!("the live version of '{}'", self.model)
    }
}

impl Ledger {
    /// Records, as one, that a version is live and the event that made it so. Both are on disk when this returns.
    pub fn commit_live(&self, live: &Live, event: &NewEvent) -> Result<Event> {
        self.write("record what is live", |transaction| {
            if live.model != event.model {
                return Err(Fault::Misused(format!("an event of '{}' for '{}'", event.model, live.model)));
            }
            let event = chain::append(transaction, event)?;
            let Live { model, version, digest, rollout, since_ms, previous } = live;
            let head = Head(event.seq);
            transaction
                .prepare_cached("INSERT OR REPLACE INTO live VALUES (?, ?, ?, ?, ?, ?, ?, ?)")?
                .execute(params![model, version, digest, rollout, since_ms, previous, live.seal(head), head.0])?;
            Ok(event)
        })
    }

    pub fn live(&self, model: &str) -> Result<Option<Live>> {
        self.read("read what is live", |transaction| {
            let mut statement = transaction.prepare_cached("SELECT * FROM live WHERE model = ?")?;
            let mut rows = statement.query([model])?;
            match rows.next()? {
                Some(row) => Live::checked(row).map(Some),
                None => match gone(transaction)?.into_iter().find(|(gone, _)| gone == model) {
                    Some(gone) => Err(Fault::Damaged(gone_name(&gone))),
                    None => Ok(None),
                },
            }
        })
    }

    /// By model, sorted.
    pub fn all_live(&self) -> Result<Vec<Live>> {
        self.read("read what is live", |transaction| {
            let mut statement = transaction.prepare_cached("SELECT * FROM live ORDER BY model")?;
            let mut rows = statement.query([])?;
            let mut all = Vec::new();
            while let Some(row) = rows.next()? {
                all.push(Live::checked(row)?);
            }
            Ok(all)
        })
    }

    /// The models that have a live version, whether or not its row is intact: for finding models, not for starting them.
    pub fn models_once_live(&self) -> Result<Vec<String>> {
        self.read("read which models were live", |transaction| {
            let mut statement = transaction.prepare_cached("SELECT model FROM live ORDER BY model")?;
            let models = statement.query_map([], |row| row.get(0))?;
            Ok(models.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// The next start does not look for the model that the event names. Its history stays.
    pub fn forget(&self, event: &NewEvent) -> Result<Event> {
        self.write("forget a model", |transaction| {
            transaction.prepare_cached("DELETE FROM live WHERE model = ?")?.execute([&event.model])?;
            chain::append(transaction, event)
        })
    }

    /// Records a version's manifest at first sight. A later one is not recorded and is no error: compare it with
    /// [`Ledger::manifest`].
    pub fn record_manifest(&self, model: &str, version: &str, manifest: &Value) -> Result<()> {
        self.write("record a manifest", |transaction| {
            let text = manifest.to_string();
            let seal = digest(MANIFEST_SCHEME, &[Some(model), Some(version), Some(&text)]);
            transaction
                .prepare_cached("INSERT INTO manifests VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING")?
                .execute(params![model, version, text, seal])?;
            Ok(())
        })
    }

    pub fn manifest(&self, model: &str, version: &str) -> Result<Option<Value>> {
        self.read("read a manifest", |transaction| manifest(transaction, model, version))
    }
}

fn manifest(transaction: &Transaction<'_>, model: &str, version: &str) -> Result<Option<Value>, Fault> {
    let row: Option<(String, String)> = transaction
        .prepare_cached("SELECT manifest, seal FROM manifests WHERE model = ? AND version = ?")?
        .query_row([model, version], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((text, seal)) = row else {
        let seen: bool = transaction
            .prepare_cached(&format!("SELECT EXISTS ({SEEN} AND model = ? AND json_extract(body, '$.version') = ?)"))?
            .query_row([model, version], |row| row.get(0))?;
        return match seen {
            true => Err(Fault::Damaged(format!("{} is gone", manifest_name(model, version)))),
            false => Ok(None),
        };
    };
    let damaged = || Fault::Damaged(format!("{} is not what was recorded", manifest_name(model, version)));
    if digest(MANIFEST_SCHEME, &[Some(model), Some(version), Some(&text)]) != seal {
        return Err(damaged());
    }
    serde_json::from_str(&text).map(Some).map_err(|_| damaged())
}

fn manifest_name(model: &str, version: &str) -> String {
    format!("the manifest of '{model}@{version}'")
}

/// Models that the chain says have a live version, with the event that made it so, and that have no row of it.
fn gone(connection: &Connection) -> Result<Vec<(String, i64)>, Fault> {
    // Kinds that are written together with a row (`commit_live`), and the one that takes it away.
    let mut statement = connection.prepare_cached(
        "SELECT model, max(seq), kind FROM events WHERE kind IN ('seeded', 'switched', 'rolled_back', 'forgotten')
            GROUP BY model HAVING kind <> 'forgotten' AND model NOT IN (SELECT model FROM live) ORDER BY model",
    )?;
    let models = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(models.collect::<rusqlite::Result<_>>()?)
}

fn gone_name((model, since): &(String, i64)) -> String {
    format!("the live version of '{model}' is gone: event {since} made it so")
}

/// Events that say that a manifest was recorded.
const SEEN: &str = "SELECT model, json_extract(body, '$.version') FROM events WHERE kind = 'manifest'";

/// The names of live rows and manifests that are not as they were written, or are gone.
pub(super) fn bad_rows(connection: &Connection) -> Result<Vec<String>, Fault> {
    let mut bad = Vec::new();
    let mut statement = connection.prepare_cached("SELECT * FROM live ORDER BY model")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if let (live, false) = Live::of(row)? {
            bad.push(format!("{} is not what was recorded", live.row_name()));
        }
    }
    let mut statement = connection.prepare_cached("SELECT model, version, manifest, seal FROM manifests")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (model, version, text, seal): (String, String, String, String) =
            (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        if digest(MANIFEST_SCHEME, &[Some(&model), Some(&version), Some(&text)]) != seal {
            bad.push(format!("{} is not what was recorded", manifest_name(&model, &version)));
        }
    }
    bad.extend(gone(connection)?.iter().map(gone_name));
    let mut statement =
        connection.prepare_cached(&format!("{SEEN} EXCEPT SELECT model, version FROM manifests ORDER BY 1, 2"))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (model, version): (String, Option<String>) = (row.get(0)?, row.get(1)?);
        bad.push(format!("{} is gone", manifest_name(&model, &version.unwrap_or_default())));
    }
    Ok(bad)
}
