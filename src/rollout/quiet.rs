//! Work for a rollout that blocks and takes processor time, on a thread that yields to live traffic (promise 5).

use tokio::sync::oneshot;

use crate::device::lower_thread_priority;
use crate::error::{Error, Result};

/// Runs `work` on a thread of its own at the lowest priority. A panic there is an error here.
///
/// Not on the runtime's blocking pool: its threads are used again, and one that was lowered stays low.
pub(super) async fn quietly<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            lower_thread_priority();
            // Nobody listens when the rollout's task is gone: the process is stopping.
            let _ = sender.send(work());
        })
        .map_err(|e| Error::internal(format!("could not start a thread to {name}: {e}")))?;
    receiver.await.map_err(|_| Error::internal(format!("the thread to {name} panicked")))?
}
