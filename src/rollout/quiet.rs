//! Work for a rollout that blocks and takes processor time, on a thread that yields to live traffic (promise 5).

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::device::{Processors, lower_thread_priority};
use crate::error::{Error, Result};

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
