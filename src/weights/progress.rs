//! How far a read of many bytes has come, and the flag that ends it early.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::Notify;

use super::Throttle;
use crate::device::give_way;
use crate::error::{Error, Result};

/// Shared (in an `Arc`) between the thread that reads and those who watch or cancel it.
///
/// The counters are for people: relaxed, and not a synchronisation of anything.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
    /// Wakes those who wait for the cancellation.
    bell: Notify,
    throttle: Throttle,
}

impl Progress {
    pub fn new() -> Self {
        Self::default()
    }

    /// Source bytes read so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Source bytes to read in all; zero until that is known.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Asks the reader to stop; it does so before its next chunk, with an error. Cannot be taken back.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        self.throttle.end();
        self.bell.notify_waiters();
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// Ends when it is cancelled: at once where it is already.
    pub async fn cancelled(&self) {
        // Made before the flag is read: a bell that rings in between is not missed.
        let rung = self.bell.notified();
        if !self.is_cancelled() {
            rung.await;
        }
    }

    /// How fast it may be.
    pub fn throttle(&self) -> &Throttle {
        &self.throttle
    }

    pub(super) fn begin(&self, total: u64) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    /// Counts what was read.
    pub(super) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What a reader does before its next chunk of so many bytes: it gives way to forward passes, waits as long as they ought to
    /// take, and ends when it was asked to.
    pub(super) fn before_chunk(&self, bytes: u64) -> Result<()> {
        give_way();
        self.throttle.pay(bytes);
        self.check()
    }

    /// Lets its readers go on without a wait, to where they see that it has failed.
    #[cfg(feature = "cuda")]
    pub(super) fn hurry(&self) {
        self.throttle.end();
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::conflict("reading the weights was cancelled")) } else { Ok(()) }
    }
}
