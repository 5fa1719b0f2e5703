//! Handing a sample of what was answered to whoever runs it again elsewhere (shadow traffic). Nobody waits for it here:
//! what finds no room is dropped and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use super::split::{Sampler, Share};
use crate::process::{FinishOptions, PrepareOptions};
use crate::value::{Output, RawInput};

/// A request that was answered, to be run again.
#[derive(Debug, Clone)]
pub enum Mirrored {
    Answered {
        inputs: Arc<[RawInput]>,
        prepare: PrepareOptions,
        finish: FinishOptions,
        outputs: Vec<Output>,
        took: Duration,
    },
    /// Token ids of a prompt, and of what was written after it.
    Wrote { prompt: Arc<[u32]>, written: Vec<u32>, took: Duration },
}

/// Part of a route: which share of the live generation's answers is handed on.
#[derive(Debug)]
pub struct Shadow {
    sampler: Sampler,
    sink: mpsc::Sender<Mirrored>,
    dropped: AtomicU64,
}

impl Shadow {
    pub fn new(share: Share, sink: mpsc::Sender<Mirrored>) -> Shadow {
        Shadow { sampler: Sampler::new(share), sink, dropped: AtomicU64::new(0) }
    }

    /// Whether the next answer is one of the sample.
    pub(super) fn takes(&self) -> bool {
        self.sampler.takes()
    }

    pub(super) fn offer(&self, mirrored: Mirrored) {
        if self.sink.try_send(mirrored).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Answers of the sample that found no room.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_dropped_and_counted() {
        let (sink, mut source) = mpsc::channel(2);
        let shadow = Shadow::new(Share::of(0.5), sink);
        let wrote = |token| Mirrored::Wrote { prompt: vec![token].into(), written: vec![], took: Duration::ZERO };
        let taken = (0..10).filter(|_| shadow.takes()).inspect(|n| shadow.offer(wrote(*n as u32))).count();
        assert_eq!((taken, shadow.dropped()), (5, 3));
        assert!(source.try_recv().is_ok() && source.try_recv().is_ok() && source.try_recv().is_err());
    }
}
