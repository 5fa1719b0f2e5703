//! The file: how it comes to be, what its tables are, and whether a file is one of ours.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::beside;
use super::fault::Fault;

/// Marks the file as a ledger of Cutover ("CUTO"), in SQLite's own header.
const APPLICATION_ID: i64 = 0x4355_544f;
const PATIENCE: Duration = Duration::from_secs(5);
/// The write-ahead log is cut back to this when it has grown beyond.
const LOG_LIMIT: i64 = 16 << 20;

/// One step a version of the schema; `user_version` counts those that were taken. Steps are never changed, only added.
const MIGRATIONS: &[&str] = &[
    "
    -- One row: from where the chain of events is kept, and where it ends.
    CREATE TABLE chain (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        base_seq INTEGER NOT NULL, base_hash TEXT NOT NULL,
        head_seq INTEGER NOT NULL, head_hash TEXT NOT NULL
    ) STRICT;
    INSERT INTO chain VALUES (1, 0, '', 0, '');
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY,
        at_ms INTEGER NOT NULL, model TEXT NOT NULL, rollout TEXT, kind TEXT NOT NULL, actor TEXT,
        body TEXT NOT NULL, prev_hash TEXT NOT NULL, hash TEXT NOT NULL
    ) STRICT;
    CREATE INDEX events_by_model ON events (model, seq);
    CREATE TABLE live (
        model TEXT PRIMARY KEY,
        version TEXT NOT NULL, digest TEXT NOT NULL, rollout TEXT, since_ms INTEGER NOT NULL, previous TEXT,
        seal TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE rollouts (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE, model TEXT NOT NULL, started_ms INTEGER NOT NULL, ended_ms INTEGER,
        record TEXT NOT NULL, seal TEXT NOT NULL
    ) STRICT;
    CREATE INDEX rollouts_by_start ON rollouts (started_ms, number);
    CREATE TABLE manifests (
        model TEXT NOT NULL, version TEXT NOT NULL, manifest TEXT NOT NULL, seal TEXT NOT NULL,
        PRIMARY KEY (model, version)
    ) STRICT, WITHOUT ROWID;
",
    "
    -- Where the chain of events ended when the row was written.
    ALTER TABLE live ADD COLUMN head_seq INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE rollouts ADD COLUMN head_seq INTEGER NOT NULL DEFAULT 0;
",
    "
    -- Rollouts whose records went by rule while events still tell of them. What went before this was kept is not told apart
    -- from what was lost, and is taken for the former once.
    CREATE TABLE pruned (rollout TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
    INSERT INTO pruned SELECT DISTINCT rollout FROM events
        WHERE kind = 'phase' AND rollout IS NOT NULL
            AND CASE WHEN json_valid(body) THEN json_extract(body, '$.phase') END IN ('draining', 'reserving')
            AND rollout NOT IN (SELECT id FROM rollouts);
    CREATE INDEX events_by_rollout ON events (rollout, seq) WHERE rollout IS NOT NULL;
",
];

/// Makes an empty ledger under another name and renames it: a file that is there is a whole one, so that an empty one
/// is known for what it is, a lost history.
pub(super) fn create(path: &Path) -> Result<(), Fault> {
    if beside(path, "-wal").exists() {
        return Err(Fault::Damaged("the file is gone, but its write-ahead log is there".to_owned()));
    }
    let unfinished = beside(path, ".new");
    for left_over in [unfinished.clone(), beside(&unfinished, "-journal")] {
        match fs::remove_file(left_over) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    let mut connection = Connection::open(&unfinished)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    migrate(&mut connection)?;
    connection.close().map_err(|(_, error)| error)?;
    fs::rename(&unfinished, path)?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Who else may look at the file while it is open.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sharing {
    /// Anybody, by an index of the write-ahead log in a file that all of them map: it needs room on the disk.
    Readers,
    /// Nobody: the index is in this process's memory.
    Nobody,
}

/// Connects to an existing ledger to write it, brings its schema up to date and checks the structure of the file.
pub(super) fn connect(path: &Path, sharing: Sharing) -> Result<Connection, Fault> {
    check_presence(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    configure(&connection)?;
    if sharing == Sharing::Nobody {
        // Answers with the mode that is set.
        connection.pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |_| Ok(()))?;
    }
    check_ours(&connection)?;
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        return Err(Fault::Foreign(format!("its file system cannot hold a write-ahead log (journal mode {mode})")));
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    // Answers with the limit that is set.
    connection.pragma_update_and_check(None, "journal_size_limit", LOG_LIMIT, |_| Ok(()))?;
    migrate(&mut connection)?;
    // Not quick_check: that one does not compare indexes with their tables, and a damaged index hides rows.
    let problem: String = connection.pragma_query_value(None, "integrity_check", |row| row.get(0))?;
    if problem != "ok" { Err(Fault::Damaged(problem)) } else { Ok(connection) }
}

pub(super) fn connect_read_only(path: &Path) -> Result<Connection, Fault> {
    check_presence(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    configure(&connection)?;
    let version = check_ours(&connection)?;
    if version < MIGRATIONS.len() {
        let older = "an older version wrote it; start the server once to bring it up to date";
        return Err(Fault::Foreign(older.to_owned()));
    }
    Ok(connection)
}

fn check_presence(path: &Path) -> Result<(), Fault> {
    let meta = fs::metadata(path)?;
    if !meta.is_file() {
        return Err(Fault::Foreign("it is not a file".to_owned()));
    }
    if meta.len() == 0 { Err(Fault::Damaged("it is empty".to_owned())) } else { Ok(()) }
}

fn configure(connection: &Connection) -> Result<(), Fault> {
    connection.busy_timeout(PATIENCE)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    Ok(())
}

/// The number of migrations that the file has seen.
fn check_ours(connection: &Connection) -> Result<usize, Fault> {
    let id: i64 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if id != APPLICATION_ID {
        return Err(Fault::Foreign("it is a database, but not a ledger of cutover".to_owned()));
    }
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    match usize::try_from(version) {
        Ok(version @ 1..) if version <= MIGRATIONS.len() => Ok(version),
        _ => {
            let known = MIGRATIONS.len();
            Err(Fault::Foreign(format!("its schema is version {version}, this program knows versions 1 to {known}")))
        }
    }
}

fn migrate(connection: &mut Connection) -> Result<(), Fault> {
    let seen: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    for (step, sql) in (1i64..).zip(MIGRATIONS).skip_while(|(step, _)| *step <= seen) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(sql)?;
        transaction.pragma_update(None, "user_version", step)?;
        transaction.commit()?;
    }
    Ok(())
}
