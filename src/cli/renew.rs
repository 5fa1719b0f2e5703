//! Reads keys and certificates again when their files change, so that they can be exchanged without a restart.
//!
//! Files are looked at every few seconds (as model folders are), and at once on SIGHUP. What cannot be read leaves in force
//! what was, with a warning; it is tried again when the files change again.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

use crate::error::Result;

const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Files, and what reads them again. What it read is told in the log.
pub(super) struct Renewed {
    what: &'static str,
    files: Vec<PathBuf>,
    seen: Vec<Option<Stamp>>,
    reload: Box<dyn Fn() -> Result<String> + Send>,
}

/// What changes when a file is written or another one takes its place; links are followed.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

impl Renewed {
    pub(super) fn new(
        what: &'static str,
        files: Vec<PathBuf>,
        reload: impl Fn() -> Result<String> + Send + 'static,
    ) -> Self {
        let seen = stamps(&files);
        Renewed { what, files, seen, reload: Box::new(reload) }
    }

    /// Reads again if a file changed, or if it is told to.
    fn step(&mut self, told: bool) {
        // Before they are read: a change while they are is seen the next time.
        let now = stamps(&self.files);
        if now == self.seen && !told {
            return;
        }
        self.seen = now;
        match (self.reload)() {
            Ok(read) => tracing::info!(read, "the {} were read again", self.what),
            Err(error) => tracing::warn!(%error, "the {} stay as they were", self.what),
        }
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    let stamp = |file: &PathBuf| {
        let meta = std::fs::metadata(file).ok()?;
        let modified = (meta.mtime(), meta.mtime_nsec());
        Some(Stamp { device: meta.dev(), inode: meta.ino(), bytes: meta.len(), modified })
    };
    files.iter().map(stamp).collect()
}

/// Looks for as long as the process lives.
pub(super) async fn keep_fresh(mut all: Vec<Renewed>) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut hangups = match signal(SignalKind::hangup()) {
        Ok(hangups) => Some(hangups),
        Err(error) => {
            tracing::warn!(%error, "SIGHUP cannot be listened to");
            None
        }
    };
    loop {
        let told = tokio::select! {
            _ = ticks.tick() => false,
            Some(()) = async { hangups.as_mut()?.recv().await } => true,
        };
        all.iter_mut().for_each(|files| files.step(told));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn files_are_read_again_when_they_change_and_only_then() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        std::fs::write(&file, "one").unwrap();
        let reads = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&reads);
        let mut files = Renewed::new("keys", vec![file.clone()], move || {
            counter.fetch_add(1, Ordering::Relaxed);
            Ok(String::new())
        });
        let mut read_after = |told: bool| {
            files.step(told);
            reads.load(Ordering::Relaxed)
        };
        assert_eq!(read_after(false), 0);
        std::fs::write(&file, "another").unwrap();
        assert_eq!((read_after(false), read_after(false)), (1, 1));
        // Another file of the same size under the same name.
        std::fs::write(folder.path().join("new"), "ANOTHER").unwrap();
        std::fs::rename(folder.path().join("new"), &file).unwrap();
        assert_eq!((read_after(false), read_after(false)), (2, 2));
        std::fs::remove_file(&file).unwrap();
        assert_eq!((read_after(false), read_after(false), read_after(true)), (3, 3, 4));
    }
}
