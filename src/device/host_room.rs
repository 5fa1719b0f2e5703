//! Room in the machine's memory for what is pinned there: promised before a byte is touched, as a device's is.
//!
//! What was touched the operating system counts itself; what is promised and not touched yet is counted here, so that two who
//! ask at the same time are not promised the same pages. A part of the machine stays free: pinned pages can be neither
//! swapped nor dropped. It must not know what is kept, nor how memory is pinned.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::json;

use super::HostMemory;
use super::budget::mib;
use crate::error::{Error, Result};

/// One part in so many of the machine's memory is never taken.
const FREE: u64 = 8;

#[derive(Debug, Default)]
pub struct HostRoom {
    promises: Mutex<Promises>,
}

#[derive(Debug, Default)]
struct Promises {
    next: u64,
    made: BTreeMap<u64, Pinning>,
}

/// What is pinned for somebody, or on its way. Bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinning {
    /// Whom it is for, as people read it: `minilm@f16`.
    pub holder: String,
    pub bytes: u64,
    /// Of them, what the operating system does not count yet.
    pub untouched: u64,
    /// It is there whole, and may be used.
    pub ready: bool,
}

impl HostRoom {
    /// Promises room to `holder`, or says with the whole sum why there is none. A machine that does not tell what it has free
    /// is taken at the caller's word.
    pub fn take(self: &Arc<Self>, holder: &str, bytes: u64, memory: Option<HostMemory>) -> Result<Promise> {
        let mut promises = self.lock();
        if let Some(HostMemory { total, available }) = memory {
            let promised: u64 = promises.made.values().map(|made| made.untouched).sum();
            let stays = total / FREE;
            let room = available.saturating_sub(promised).saturating_sub(stays);
            if bytes > room {
                let sum = format!(
                    "{holder} needs {} of host memory; {} are available, {} of them promised to others, and {} have to stay \
                     free (an eighth of the machine)",
                    mib(bytes),
                    mib(available),
                    mib(promised),
                    mib(stays),
                );
                let details = json!({
                    "holder": holder, "needed": bytes, "available": available, "promised": promised, "stays_free": stays,
                });
                return Err(Error::NoRoom { sum, details });
            }
        }
        let id = promises.next;
        promises.next += 1;
        promises.made.insert(id, Pinning { holder: holder.to_owned(), bytes, untouched: bytes, ready: false });
        Ok(Promise { room: Arc::clone(self), id })
    }

    pub fn pinnings(&self) -> Vec<Pinning> {
        self.lock().made.values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Promises> {
        self.promises.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room that is held until this is dropped, after the memory itself.
#[derive(Debug)]
pub struct Promise {
    room: Arc<HostRoom>,
    id: u64,
}

impl Promise {
    /// So many bytes more are the operating system's to count from now on.
    pub fn touched(&self, bytes: u64) {
        self.change(|made| made.untouched = made.untouched.saturating_sub(bytes));
    }

    /// It may be used from now on.
    pub fn is_ready(&self) {
        self.change(|made| made.ready = true);
    }

    /// It may not be used any more: it is given back, which takes its time.
    pub fn leaves(&self) {
        self.change(|made| made.ready = false);
    }

    fn change(&self, change: impl FnOnce(&mut Pinning)) {
        if let Some(made) = self.room.lock().made.get_mut(&self.id) {
            change(made);
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.room.lock().made.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn machine(available: u64) -> Option<HostMemory> {
        Some(HostMemory { total: 800 * MIB, available: available * MIB })
    }

    #[test]
    fn what_is_promised_and_not_touched_is_not_promised_again() {
        let room = Arc::new(HostRoom::default());
        let first = room.take("a@1", 150 * MIB, machine(300)).unwrap();
        assert!(room.take("b@1", 51 * MIB, machine(300)).is_err(), "150 promised, 100 have to stay");
        let second = room.take("b@1", 50 * MIB, machine(300)).unwrap();
        drop(second);
        // What was touched is no longer available, as the operating system counts.
        first.touched(150 * MIB);
        assert!(room.take("b@1", 51 * MIB, machine(150)).is_err());
        assert!(room.take("b@1", 50 * MIB, machine(150)).is_ok());
    }

    #[test]
    fn a_refusal_shows_the_whole_sum() {
        let room = Arc::new(HostRoom::default());
        let _first = room.take("a@1", 100 * MIB, machine(300)).unwrap();
        let Err(Error::NoRoom { sum, details }) = room.take("a@2", 101 * MIB, machine(300)) else {
            panic!("101 MiB do not fit")
        };
        for part in
            ["a@2 needs 101.0 MiB", "300.0 MiB are available", "100.0 MiB of them promised", "100.0 MiB have to"]
        {
            assert!(sum.contains(part), "{part} is missing from: {sum}");
        }
        assert_eq!((&details["needed"], &details["stays_free"]), (&json!(101 * MIB), &json!(100 * MIB)));
    }

    #[test]
    fn it_is_told_who_has_what_until_it_is_dropped() {
        let room = Arc::new(HostRoom::default());
        let promise = room.take("a@1", 10, None).unwrap();
        promise.touched(4);
        let told = |untouched, ready| Pinning { holder: "a@1".into(), bytes: 10, untouched, ready };
        assert_eq!(room.pinnings(), [told(6, false)]);
        promise.touched(7);
        promise.is_ready();
        assert_eq!(room.pinnings(), [told(0, true)]);
        promise.leaves();
        assert_eq!(room.pinnings(), [told(0, false)]);
        drop(promise);
        assert!(room.pinnings().is_empty());
    }
}
