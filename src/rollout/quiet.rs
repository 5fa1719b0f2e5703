//! Work for a rollout that blocks and takes processor time, on a thread that yields to live traffic (promise 5).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::device::{Processors, lower_thread_priority};
use crate::error::{Error, Result};
use crate::weights::Progress;

/// How long what was cancelled may take to notice: a forward pass ends first, and a loader reads its chunk.
const GRACE: Duration = Duration::from_secs(1);

/// Whether anybody's requests wait for a piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// Live traffic goes first: the work of a rollout.
    Quiet,
    /// Nothing is served until it is done: a version that is brought up again.
    Awaited,
}

impl Urgency {
    /// Gives the current thread, which ends with its work, the priority of that work, and what forward passes leave of the
    /// processors.
    pub(super) fn take(self, processors: &Arc<Processors>) {
        processors.join(self.rests());
        match self {
            Urgency::Quiet => lower_thread_priority(),
            Urgency::Awaited => {}
        }
    }

    /// How many times as long as it works it may have to rest: it gets a twentieth of the time even where passes never end,
    /// as background work on the engine does, or a half of it.
    fn rests(self) -> u32 {
        match self {
            Urgency::Quiet => 19,
            Urgency::Awaited => 1,
        }
    }
}

/// Runs `work` on a thread of its own, at the lowest priority where it is quiet. A panic there is an error here.
///
/// Not on the runtime's blocking pool: its threads are used again, and one that was lowered stays low.
pub(super) async fn quietly<T: Send + 'static>(
    (urgency, processors): (Urgency, &Arc<Processors>),
    name: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = oneshot::channel();
    let processors = Arc::clone(processors);
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            urgency.take(&processors);
            // Nobody listens when the rollout's task is gone: the process is stopping.
            let _ = sender.send(work());
        })
        .map_err(|e| Error::internal(format!("could not start a thread to {name}: {e}")))?;
    receiver.await.map_err(|_| Error::internal(format!("the thread to {name} panicked")))?
}

/// Why work has not ended in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    /// Its patience is over.
    Out,
    /// It was cancelled, and did not notice.
    Cancelled,
}

/// Waits for `work` for as long as `patience`, and only a moment once `progress` was cancelled.
pub(super) async fn within<F: Future>(patience: Duration, progress: &Progress, work: F) -> Result<F::Output, Late> {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        biased;
        answer = &mut work => Ok(answer),
        () = progress.cancelled() => {
            tokio::time::timeout(GRACE.min(patience), work).await.map_err(|_| Late::Cancelled)
        }
        () = tokio::time::sleep(patience) => Err(Late::Out),
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn what_is_cancelled_is_waited_for_a_moment_only() {
        let (progress, long) = (Arc::new(Progress::new()), Duration::from_secs(3600));
        assert_eq!(within(long, &progress, ready(7)).await, Ok(7));
        assert_eq!(within(Duration::from_millis(20), &progress, pending::<u8>()).await, Err(Late::Out));

        let began = Instant::now();
        let waiting = tokio::spawn({
            let progress = Arc::clone(&progress);
            async move { within(long, &progress, pending::<u8>()).await }
        });
        tokio::task::yield_now().await;
        progress.cancel();
        assert_eq!(waiting.await.unwrap(), Err(Late::Cancelled));
        assert!(began.elapsed() >= GRACE, "{:?}", began.elapsed());
        // What ends by itself in that moment has ended well, and what was cancelled before is no other case.
        let soon = tokio::time::sleep(GRACE / 20);
        assert_eq!(within(long, &progress, soon).await, Ok(()));
        assert_eq!(within(long, &progress, pending::<u8>()).await, Err(Late::Cancelled));
    }
}
