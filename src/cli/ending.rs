//! How a server ends: in order where it can, at once where its device has failed or somebody insists.
//!
//! Order: rollouts end, admitted requests finish, or are cut short after a while where they write, what is worth telling is
//! told, the engine stops. A forward pass that never returns keeps all of that from coming to an end, so the whole of it is
//! raced against the watchdog's verdict.

use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::signals::Signals;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::http::App;
use crate::ledger::Ledger;

/// The device stalled or failed; a supervisor should start the process anew (sysexits.h, EX_SOFTWARE).
const EXIT_DEVICE: i32 = 70;
/// Somebody would not wait for the end.
const EXIT_INSISTED: i32 = 1;
/// For alerts and spans that wait, when the server stops.
const LAST_ALERTS: Duration = Duration::from_secs(5);
/// For answers to leave after the device has failed, or after they were cut short.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What ends.
pub(super) struct Ending {
    pub(super) app: Arc<App>,
    pub(super) engine: Engine,
    pub(super) engine_thread: JoinHandle<()>,
    pub(super) ledger: Arc<Ledger>,
    /// After this, what is still being written ends where it is.
    pub(super) drain_timeout: Duration,
}

impl Ending {
    /// Ends everything; `closed` resolves once no connection is open. Does not return where the device fails meanwhile, or where
    /// somebody asks once more after what was being written has been cut short.
    pub(super) async fn run(self, signals: &mut Signals, closed: impl Future<Output = ()>) -> Result<()> {
        let (app, engine) = (Arc::clone(&self.app), self.engine.clone());
        let mut ended = pin!(self.in_order(signals, closed));
        tokio::select! {
            biased;
            ended = &mut ended => ended,
            reason = engine.fatal() => device_failed(&app, &reason, ended).await,
        }
    }

    async fn in_order(self, signals: &mut Signals, closed: impl Future<Output = ()>) -> Result<()> {
        let Ending { app, engine, engine_thread, ledger, drain_timeout } = self;
        // A rollout's end may wait for texts of the version that it reclaims, as connections do for theirs.
        let mut drained = pin!(async {
            app.supervisor.shut_down().await;
            app.closing.send_replace(true);
            closed.await;
        });
        let cut = tokio::select! {
            () = &mut drained => None,
            () = tokio::time::sleep(drain_timeout) => Some("the drain timeout"),
            again = signals.next() => Some(again),
        };
        let was_cut = cut.is_some();
        let rest = async {
            if let Some(cut) = cut {
                // A text may be as long as the context, and whoever stops this process waits for no such time.
                tracing::info!(after = cut, "waiting no longer for what is being written");
                engine.cut_short(None)?;
                if tokio::time::timeout(LAST_WORDS, drained).await.is_err() {
                    tracing::warn!("a rollout was still ending, or some connections were still open");
                }
            }
            // Whatever the end itself is worth telling is among it.
            app.telling.stop(LAST_ALERTS).await;
            if let Some(traces) = &app.traces {
                traces.stop(LAST_ALERTS).await;
            }
            engine.stop();
            let joined = move || {
                let _ended = engine_thread.join();
                // A copy of the file alone has it all.
                ledger.fold();
            };
            let joined = tokio::task::spawn_blocking(joined).await;
            joined.map_err(|e| Error::internal(format!("waiting for the engine failed: {e}")))
        };
        tokio::select! {
            biased;
            ended = rest => ended,
            again = insists(signals, was_cut) => {
                tracing::error!(reason = again, "ending at once; what had not come to its end is cut off as by a crash");
                std::process::exit(EXIT_INSISTED)
            }
        }
    }
}

/// Until somebody asks once more than it takes to cut short what is being written.
async fn insists(signals: &mut Signals, was_cut: bool) -> &'static str {
    if !was_cut {
        signals.next().await;
    }
    signals.next().await
}

/// Ends the process for its supervisor: a forward pass that never returns cannot be stopped any other way. Those who waited for
/// it have their errors now; they go out first, for which `last` is waited for.
pub(super) async fn device_failed<T>(app: &App, reason: &str, last: impl Future<Output = T>) -> ! {
    tracing::error!(reason, "the device failed; ending the process for its supervisor");
    app.closing.send_replace(true);
    if tokio::time::timeout(LAST_WORDS, last).await.is_err() {
        tracing::warn!("some connections were still open, or the engine did not end");
    }
    std::process::exit(EXIT_DEVICE)
}
