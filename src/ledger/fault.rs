//! What may go wrong with the file, and the sentence that tells a person what to do.

use std::path::Path;

use rusqlite::ErrorCode;

use crate::error::Error;

#[derive(Debug)]
pub(super) enum Fault {
    Sqlite(rusqlite::Error),
    Io(std::io::Error),
    /// The content is not what was written.
    Damaged(String),
    /// Another process has it, as far as is known which.
    InUse(String),
    /// The file that is open is not the one that is there any more.
    Gone,
    /// It is not for this program.
    Foreign(String),
    /// The caller asked for nonsense.
    Misused(String),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Fault::Sqlite(error)
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Fault::Io(error)
    }
}

const RESTORE: &str = "restore a copy, or move the file and those that begin with its name away: a server without a \
                       ledger starts with the versions that each model.toml names";

impl Fault {
    /// Whether the file that shares an index of the write-ahead log could not be made or grow: on a full disk.
    pub(super) fn denies_an_index(&self) -> bool {
        use rusqlite::ffi::{SQLITE_IOERR_SHMMAP, SQLITE_IOERR_SHMOPEN, SQLITE_IOERR_SHMSIZE};
        let Fault::Sqlite(rusqlite::Error::SqliteFailure(error, _)) = self else { return false };
        [SQLITE_IOERR_SHMMAP, SQLITE_IOERR_SHMOPEN, SQLITE_IOERR_SHMSIZE].contains(&error.extended_code)
    }

    /// The error: what was being done to which file, why it failed, what to do.
    pub(super) fn told(self, path: &Path, doing: &str) -> Error {
        let (why, remedy) = match &self {
            Fault::Sqlite(error) => (error.to_string(), remedy(error)),
            Fault::Io(error) => (error.to_string(), None),
            Fault::Damaged(what) => (format!("it is damaged: {what}"), Some(RESTORE)),
            Fault::InUse(holder) => {
                (format!("another server is using it{holder}"), Some("stop that one, or give this one its own --state"))
            }
            Fault::Gone => (
                "its file was deleted or replaced while this server has it open".to_owned(),
                Some(
                    "nothing can be recorded until the server is started again; put the file back before that, if it can be had",
                ),
            ),
            Fault::Foreign(what) => (what.clone(), None),
            Fault::Misused(what) => return Error::internal(format!("ledger: cannot {doing}: {what}")),
        };
        let remedy = remedy.map(|remedy| format!("; {remedy}")).unwrap_or_default();
        Error::Ledger { reason: format!("'{}': cannot {doing}: {why}{remedy}", path.display()) }
    }
}

fn remedy(error: &rusqlite::Error) -> Option<&'static str> {
    if let rusqlite::Error::SqliteFailure(_, Some(text)) | rusqlite::Error::SqlInputError { msg: text, .. } = error
        && text.starts_with("no such ")
    {
        // A table or a column that this program made.
        return Some(RESTORE);
    }
    match error.sqlite_error_code()? {
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Some(RESTORE),
        ErrorCode::DiskFull => Some("make room on its disk; what was recorded before is intact"),
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Some("another program holds it: close that one"),
        ErrorCode::ReadOnly => Some("it was opened to be read, or its file may not be written"),
        _ => None,
    }
}
