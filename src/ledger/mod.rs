//! The durable history: what is live, every rollout, every event, and the digests of every version at first sight.
//!
//! One SQLite file, written by one server at a time (a lock file beside it says so) and readable by others meanwhile.
//! Synchronous: whoever calls it from async code does so on a blocking thread. It records what it is told and decides
//! nothing; it reads no clock.
//!
//! Nothing is read back unchecked: events are a hash chain with its head recorded, every other row carries a digest of
//! itself, and a file that fails either is refused at open with what to do about it.

mod chain;
mod fault;
mod figures;
mod live;
mod prune;
mod rollouts;
mod schema;
mod time;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction, TransactionBehavior};

pub use chain::{BadEvent, Event, NewEvent, VerifyReport};
pub use figures::{Counts, Figures, Spread};
pub use live::Live;
pub use prune::{Keep, Pruned};
pub use rollouts::{Filter, GateCheck, PhaseAt, RolloutRecord};
pub(crate) use time::date_of_day;
pub use time::rfc3339;

use crate::error::Result;
use fault::Fault;
use schema::Sharing;

pub struct Ledger {
    path: PathBuf,
    /// Reads have a connection of their own, so that none delays the write that a switch waits for; where the file is open
    /// for this server alone they share the other. Before it, so that it is closed first: the last one merges the log.
    reading: Option<Mutex<Connection>>,
    // Before the lock, so that it is closed before another server may open the file.
    connection: Mutex<Connection>,
    /// Which file that is.
    file: Option<(u64, u64)>,
    /// The last write failed.
    failing: AtomicBool,
    _lock: Option<File>,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").field("path", &self.path).field("read_only", &self._lock.is_none()).finish()
    }
}

impl Ledger {
    /// Opens the ledger for the one server that writes it, creating it and its folder where there is none.
    ///
    /// Checks the whole file. What is damaged, cut, changed by hand, of a newer server, in use by another one, or no ledger
    /// at all is refused as [`crate::error::Error::Ledger`].
    pub fn open(path: &Path) -> Result<Ledger> {
        let told = |fault: Fault| fault.told(path, "open it");
        let lock = lock(path).map_err(told)?;
        if !path.exists() {
            schema::create(path).map_err(told)?;
        }
        let (connection, reading) = connect(path).map_err(told)?;
        let ledger = Ledger { reading: reading.map(Mutex::new), ..Ledger::with(path, connection, Some(lock)) };
        let report = ledger.verify()?;
        match report.first_problem() {
            Some(problem) => Err(told(Fault::Damaged(problem))),
            None => {
                ledger.fold();
                Ok(ledger)
            }
        }
    }

    fn with(path: &Path, connection: Connection, lock: Option<File>) -> Ledger {
        let (file, failing) = (identity(path), AtomicBool::new(false));
        let (path, connection) = (path.to_owned(), Mutex::new(connection));
        Ledger { path, reading: None, connection, file, failing, _lock: lock }
    }

    /// Opens an existing ledger to look at it, also while a server writes it, and also one whose [`Ledger::verify`] fails.
    pub fn open_read_only(path: &Path) -> Result<Ledger> {
        let connection = schema::connect_read_only(path).map_err(|fault| fault.told(path, "open it"))?;
        Ok(Ledger::with(path, connection, None))
    }

    /// Merges the write-ahead log into the file, so that a copy of the file alone has it all, as far as nobody reads an older
    /// state: it waits for no reader, since a switch would wait with it. (SQLite, "PRAGMA wal_checkpoint", PASSIVE.) Where that
    /// cannot be, as on a full disk, what is recorded is as durable as before.
    pub fn fold(&self) {
        // Of this process nobody reads meanwhile.
        let _reading = self.reading.as_ref().map(held);
        let folded = self.connection().query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        if let Err(error) = folded {
            tracing::debug!(%error, "the ledger's log is not merged");
        }
    }

    /// Whether what happens can be recorded. Where the last write failed, another one that changes nothing is tried.
    pub fn can_be_written(&self) -> bool {
        let try_to = |transaction: &Transaction<'_>| Ok(transaction.execute("UPDATE chain SET only = only", [])?);
        !self.failing.load(Ordering::Relaxed) || self.write("write to it", try_to).is_ok()
    }

    /// What the ledger takes on disk, its write-ahead log included.
    pub fn bytes(&self) -> Result<u64> {
        let size = |path: &Path| match std::fs::metadata(path) {
            Ok(meta) => Ok(meta.len()),
            // Between two servers, or while one has the ledger for itself, there may be no log.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
            Err(error) => Err(Fault::from(error).told(&self.path, "look at it")),
        };
        Ok(size(&self.path)? + size(&beside(&self.path, "-wal"))?)
    }

    /// Runs `act` as one transaction that is there whole, on disk, when this returns `Ok`, and not at all otherwise.
    fn write<T>(&self, doing: &str, act: impl FnOnce(&Transaction<'_>) -> Result<T, Fault>) -> Result<T> {
        let written = match identity(&self.path) {
            there if there == self.file => transact(self.connection(), TransactionBehavior::Immediate, act),
            // It would be written to a file that no start finds.
            _ => Err(Fault::Gone),
        };
        let failing = !matches!(&written, Ok(_) | Err(Fault::Misused(_)));
        self.failing.store(failing, Ordering::Relaxed);
        written.map_err(|fault| fault.told(&self.path, doing))
    }

    /// Runs `act` on one unchanging state of the ledger.
    fn read<T>(&self, doing: &str, act: impl FnOnce(&Transaction<'_>) -> Result<T, Fault>) -> Result<T> {
        let connection = held(self.reading.as_ref().unwrap_or(&self.connection));
        transact(connection, TransactionBehavior::Deferred, act).map_err(|fault| fault.told(&self.path, doing))
    }

    /// The one that writes.
    fn connection(&self) -> MutexGuard<'_, Connection> {
        held(&self.connection)
    }
}

fn held(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    // A panic in a transaction has rolled it back: the connection is as good as before.
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

fn transact<T>(
    mut connection: MutexGuard<'_, Connection>,
    behavior: TransactionBehavior,
    act: impl FnOnce(&Transaction<'_>) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let transaction = connection.transaction_with_behavior(behavior)?;
    let done = act(&transaction)?;
    transaction.commit()?;
    Ok(done)
}

/// The connection that writes and, where the file is shared, one that reads.
fn connect(path: &Path) -> Result<(Connection, Option<Connection>), Fault> {
    let shared = schema::connect(path, Sharing::Readers)
        .and_then(|connection| Ok((connection, Some(schema::connect_read_only(path)?))));
    match shared {
        // What is live can be read all the same; nobody else can look meanwhile.
        Err(fault) if fault.denies_an_index() => {
            tracing::error!(path = %path.display(), "no room beside the ledger: it is opened for this server alone");
            Ok((schema::connect(path, Sharing::Nobody)?, None))
        }
        shared => shared,
    }
}

/// `ledger.db.lock`, held for as long as the returned file lives; the system lets go of it when the process dies.
fn lock(path: &Path) -> Result<File, Fault> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(beside(path, ".lock"))?;
    match lock_soon(&file) {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only for the message: whoever holds the lock may not have written its number yet.
            let known = file.read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
            let holder = if known { format!(" (process {})", holder.trim()) } else { String::new() };
            return Err(Fault::InUse(holder));
        }
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    let named = file.set_len(0).and_then(|()| file.rewind());
    let named = named.and_then(|()| file.write_all(std::process::id().to_string().as_bytes()));
    if let Err(error) = named {
        // It is the lock that counts; a full disk is no reason not to serve.
        tracing::warn!(%error, "the ledger's lock file does not name this process");
    }
    Ok(file)
}

/// A server that was just killed holds its lock until the system has taken its memory apart: not long, but longer than
/// its supervisor takes to start the next one.
const DYING: Duration = Duration::from_secs(2);

fn lock_soon(file: &File) -> Result<(), TryLockError> {
    let began = Instant::now();
    loop {
        match file.try_lock() {
            // The system wakes nobody for a bounded wait.
            Err(TryLockError::WouldBlock) if began.elapsed() < DYING => std::thread::sleep(DYING / 100),
            outcome => return outcome,
        }
    }
}

/// What tells a file from another of the same name; nothing where there is none.
fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// A path that ends in something more.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests;
