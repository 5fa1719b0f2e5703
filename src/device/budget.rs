//! Room on a device is promised before the first byte of a version is read (promise 8).
//!
//! A `Budget` is the sum of what may be resident; a `Reservation` is one holder's part of it, given back
//! when dropped. It only ever shrinks (`settle`): estimates are upper bounds, measurements lower them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde::Serialize;
use serde_json::json;

use crate::error::{Error, Result};

/// What somebody asks room for. Bytes.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Whom it is for, as people read it: `minilm@f16`.
    pub holder: String,
    pub weights: u64,
    pub workspace: u64,
}

impl Claim {
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.workspace)
    }
}

/// The memory of one device that generations may take.
#[derive(Debug)]
pub struct Budget {
    device: String,
    capacity: u64,
    holders: Mutex<Holders>,
}

#[derive(Debug, Default)]
struct Holders {
    next: u64,
    held: BTreeMap<u64, Held>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Held {
    pub holder: String,
    pub bytes: u64,
}

impl Budget {
    pub fn new(device: impl Into<String>, capacity: u64) -> Arc<Self> {
        Arc::new(Budget { device: device.into(), capacity, holders: Mutex::default() })
    }

    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    pub fn reserved(&self) -> u64 {
        self.lock().held.values().map(|held| held.bytes).sum()
    }

    pub fn holders(&self) -> Vec<Held> {
        self.lock().held.values().cloned().collect()
    }

    /// Takes room for `claim`, or says with the whole sum why there is none.
    ///
    /// `available` is what the operating system or the driver reports as free right now, when it is known:
    /// a budget larger than the machine's free memory is no promise.
    pub fn reserve(self: &Arc<Self>, claim: &Claim, available: Option<u64>) -> Result<Reservation> {
        let mut holders = self.lock();
        let reserved: u64 = holders.held.values().map(|held| held.bytes).sum();
        let room = self.capacity.saturating_sub(reserved);
        let room = available.map_or(room, |available| room.min(available));
        if claim.total() > room {
            return Err(self.refusal(claim, reserved, available, &holders));
        }
        let id = holders.next;
        holders.next += 1;
        holders.held.insert(id, Held { holder: claim.holder.clone(), bytes: claim.total() });
        Ok(Reservation { budget: Arc::clone(self), id })
    }

    fn refusal(&self, claim: &Claim, reserved: u64, available: Option<u64>, holders: &Holders) -> Error {
        let by: Vec<String> = holders.held.values().map(|h| format!("{} {}", h.holder, mib(h.bytes))).collect();
        let by = if by.is_empty() { String::new() } else { format!(" ({})", by.join(", ")) };
        let free = available.map(|a| format!(", {} free on the machine", mib(a))).unwrap_or_default();
        let sum = format!(
            "{} needs {} (weights {} + workspace {}); {} has a budget of {}, {} of it reserved{by}{free}",
            claim.holder,
            mib(claim.total()),
            mib(claim.weights),
            mib(claim.workspace),
            self.device,
            mib(self.capacity),
            mib(reserved),
        );
        let details = json!({
            "holder": claim.holder, "needed": claim.total(), "weights": claim.weights, "workspace": claim.workspace,
            "capacity": self.capacity, "reserved": reserved, "available": available,
            "holders": holders.held.values().collect::<Vec<_>>(),
        });
        Error::NoRoom { sum, details }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Holders> {
        self.holders.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Room that is held until this is dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Budget>,
    id: u64,
}

impl Reservation {
    pub fn bytes(&self) -> u64 {
        self.budget.lock().held.get(&self.id).map_or(0, |held| held.bytes)
    }

    /// Lowers the reservation to what was measured; a measurement above the promise changes nothing.
    pub fn settle(&self, measured: u64) {
        if let Some(held) = self.budget.lock().held.get_mut(&self.id) {
            held.bytes = held.bytes.min(measured);
        }
    }

    /// Says from now on what the room is held for, from what was said before.
    pub fn rename(&self, name: impl FnOnce(&str) -> String) {
        if let Some(held) = self.budget.lock().held.get_mut(&self.id) {
            held.holder = name(&held.holder);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.lock().held.remove(&self.id);
    }
}

/// Bytes for people.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(holder: &str, weights: u64, workspace: u64) -> Claim {
        Claim { holder: holder.into(), weights, workspace }
    }

    #[test]
    fn room_comes_back_when_a_reservation_is_dropped() {
        let budget = Budget::new("cpu", 100);
        let a = budget.reserve(&claim("a@1", 50, 10), None).unwrap();
        assert_eq!((a.bytes(), budget.reserved()), (60, 60));
        drop(a);
        assert_eq!(budget.reserved(), 0);
    }

    #[test]
    fn a_refusal_shows_the_whole_sum() {
        let budget = Budget::new("cpu", 100 << 20);
        let _a = budget.reserve(&claim("a@1", 60 << 20, 0), None).unwrap();
        let Err(Error::NoRoom { sum, details }) = budget.reserve(&claim("a@2", 40 << 20, 1 << 20), None) else {
            panic!("41 MiB do not fit beside 60 of 100")
        };
        for part in ["a@2 needs 41.0 MiB", "weights 40.0 MiB", "budget of 100.0 MiB", "60.0 MiB of it", "a@1 60.0 MiB"]
        {
            assert!(sum.contains(part), "{part} is missing from: {sum}");
        }
        assert_eq!(details["needed"], 41 << 20);
    }

    #[test]
    fn what_the_machine_has_free_bounds_the_budget() {
        let budget = Budget::new("cpu", 1000);
        assert!(budget.reserve(&claim("a", 500, 0), Some(499)).is_err());
        assert!(budget.reserve(&claim("a", 500, 0), Some(500)).is_ok());
    }

    #[test]
    fn settling_only_lowers() {
        let budget = Budget::new("cpu", 100);
        let a = budget.reserve(&claim("a", 50, 0), None).unwrap();
        a.settle(70);
        assert_eq!(a.bytes(), 50);
        a.settle(20);
        assert_eq!((a.bytes(), budget.reserved()), (20, 20));
    }

    proptest::proptest! {
        #[test]
        fn the_budget_is_never_exceeded_and_nothing_is_lost(ops in proptest::collection::vec((0u64..60, 0usize..4), 1..60)) {
            let budget = Budget::new("cpu", 100);
            let mut held: Vec<(Reservation, u64)> = Vec::new();
            for (bytes, action) in ops {
                match (action, held.is_empty()) {
                    (0, false) => { held.remove(0); }
                    (1, false) => { let (r, b) = &mut held[0]; r.settle(bytes); *b = (*b).min(bytes); }
                    _ => if let Ok(r) = budget.reserve(&claim("x", bytes, 0), None) { held.push((r, bytes)); }
                }
                let sum: u64 = held.iter().map(|(_, b)| b).sum();
                proptest::prop_assert_eq!(budget.reserved(), sum);
                proptest::prop_assert!(sum <= 100);
            }
        }
    }
}
