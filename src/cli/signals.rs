//! Being asked to end. It must not know what ends.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What asks this process to end. One that comes while nobody waits is kept.
pub(super) struct Signals(Option<[Signal; 2]>);

impl Signals {
    pub(super) fn listen() -> Signals {
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(term), Ok(int)) => Signals(Some([term, int])),
            _ => {
                tracing::error!("signals cannot be listened to; only killing ends this process");
                Signals(None)
            }
        }
    }

    pub(super) async fn next(&mut self) -> &'static str {
        let Some([term, int]) = &mut self.0 else { return std::future::pending().await };
        tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
        }
    }
}
