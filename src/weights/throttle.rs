//! The valve of a load: how many bytes a second its readers may take, together.
//!
//! Somebody else turns it; readers only wait. Must not know why it is turned.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
pub struct Throttle {
    /// Bytes a second; zero while it is open.
    rate: AtomicU64,
    /// Until when everything that was taken is paid for.
    paid: Mutex<Option<Instant>>,
}

impl Throttle {
    /// From the next chunk on. `None` opens it.
    pub fn set(&self, bytes_per_second: Option<u64>) {
        self.rate.store(bytes_per_second.map_or(0, |rate| rate.max(1)), Ordering::Relaxed);
    }

    /// Bytes a second; `None` while it is open.
    pub fn rate(&self) -> Option<u64> {
        Some(self.rate.load(Ordering::Relaxed)).filter(|&rate| rate > 0)
    }

    /// Waits until so many more bytes might have been taken.
    pub(super) fn pay(&self, bytes: u64) {
        let Some(rate) = self.rate() else { return };
        let now = Instant::now();
        let until = {
            let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
            // Time in which nothing was taken is not saved up.
            let until = paid.map_or(now, |paid| paid.max(now)) + Duration::from_secs_f64(bytes as f64 / rate as f64);
            *paid = Some(until);
            until
        };
        std::thread::sleep(until.saturating_duration_since(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_together_take_no_more_than_the_rate() {
        let throttle = Throttle::default();
        let began = Instant::now();
        (0..1000).for_each(|_| throttle.pay(1 << 30));
        assert!(began.elapsed() < Duration::from_secs(1), "it is open");

        throttle.set(Some(100 << 20));
        let began = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..5).for_each(|_| throttle.pay(1 << 20)));
            }
        });
        assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
    }
}
