//! The valve of a load: how many bytes a second its readers may take, together.
//!
//! Somebody else turns it; readers only wait, each for its own turn, before they take what they fill: whoever waits holds nothing.
//! They go on at once when it is opened, and when the load is given up. Must not know why it is turned.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
pub struct Throttle {
    /// Bytes a second; zero while it is open.
    rate: AtomicU64,
    /// Nobody waits any more.
    ended: AtomicBool,
    /// Until when everything that was taken is paid for.
    paid: Mutex<Option<Instant>>,
    /// Wakes those who wait when it is opened, or has ended.
    opened: Condvar,
}

impl Throttle {
    /// For what is taken from now on. `None` opens it, for those too who wait already.
    pub fn set(&self, bytes_per_second: Option<u64>) {
        let rate = bytes_per_second.map_or(0, |rate| rate.max(1));
        // Readers have the lowest priority, and may be interrupted while they hold the lock: it is taken for this turn only.
        if self.rate.swap(rate, Ordering::Relaxed) > 0 && rate == 0 {
            *self.lock() = None;
            self.opened.notify_all();
        }
    }

    /// Bytes a second; `None` while it is open.
    pub fn rate(&self) -> Option<u64> {
        Some(self.rate.load(Ordering::Relaxed)).filter(|&rate| rate > 0)
    }

    /// Lets everybody go who waits or would, for good.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        // Else somebody who has looked already, and does not wait yet, would not be woken.
        drop(self.lock());
        self.opened.notify_all();
    }

    /// Waits until so many more bytes may have been taken.
    pub(super) fn pay(&self, bytes: u64) {
        let Some(rate) = self.rate().filter(|_| bytes > 0) else { return };
        let (now, mut paid) = (Instant::now(), self.lock());
        // Time in which nothing was taken is not saved up.
        let until = paid.map_or(now, |paid| paid.max(now)) + Duration::from_secs_f64(bytes as f64 / rate as f64);
        *paid = Some(until);
        while self.rate().is_some() && !self.ended.load(Ordering::Relaxed) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            (paid, _) = self.opened.wait_timeout(paid, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.paid.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Readers that would wait for a day; how long after `turn` they do.
    fn waited(throttle: &Throttle, turn: impl FnOnce()) -> Duration {
        throttle.set(Some(1));
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..3).map(|_| scope.spawn(|| throttle.pay(86_400))).collect();
            while throttle.lock().is_none_or(|paid| paid < Instant::now() + Duration::from_secs(2 * 86_400)) {
                std::thread::yield_now();
            }
            let turned = Instant::now();
            turn();
            readers.into_iter().for_each(|reader| reader.join().unwrap());
            turned.elapsed()
        })
    }

    #[test]
    fn who_waits_goes_on_when_it_is_opened_and_when_the_load_is_given_up() {
        let throttle = Throttle::default();
        assert!(waited(&throttle, || throttle.set(None)) < Duration::from_secs(10));
        // What they owed is forgotten.
        throttle.set(Some(1 << 20));
        let began = Instant::now();
        throttle.pay(1 << 10);
        assert!(began.elapsed() < Duration::from_secs(10));
        assert!(waited(&throttle, || throttle.end()) < Duration::from_secs(10));
        throttle.pay(86_400);
        assert!(began.elapsed() < Duration::from_secs(60), "and nobody waits from then on");
    }
}
