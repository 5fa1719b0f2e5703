//! One model's rollouts: an actor that owns what is resident for it, and is the only one to store its route.
//!
//! Commands and reports come in through channels and are taken one at a time; long work runs in tasks that hand
//! the candidate back with an event. The state machine says what an event means; `actions` performs it. Beside it, `shelf` keeps
//! a version in host memory, and `differing` measures what a rollout changes.

mod actions;
mod back;
mod boot;
mod calm;
mod commands;
mod differing;
mod messages;
mod recovery;
mod shadowing;
mod sharing;
mod shelf;
mod window;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::Context;
use super::difference::Before;
use super::judge::Judge;
use super::recheck::Watched;
use super::record::{Bytes, Recorder};
use super::residents::{Reclaimed, Resident};
use super::shadow;
use super::state::{self, Event, Phase, State};
use super::steps::{self, Done};
use crate::error::{Error, Result};
use crate::generation::{GenerationId, Observed, Stats};
use crate::repository::ModelConfig;
use crate::slot::Slot;
use calm::Calm;
use messages::Report;
pub use messages::{Answer, Candidate, Options, Status};
pub(super) use messages::{Command, Freed};
use sharing::Sharing;
pub use shelf::Ahead;
use shelf::Shelf;
pub(super) use shelf::given_up;

/// How often the progress of a load is told.
const PROGRESS: Duration = Duration::from_millis(100);

pub(super) struct Controller {
    ctx: Arc<Context>,
    slot: Arc<Slot>,
    status: Arc<Status>,
    inbox: mpsc::Receiver<Command>,
    reports: mpsc::UnboundedReceiver<Report>,
    reporter: mpsc::UnboundedSender<Report>,
    live: Option<Resident>,
    previous: Option<Resident>,
    active: Option<Active>,
    /// What a canary is compared with beside the live version of its own time.
    calm: Option<Calm>,
    shelf: Shelf,
    /// The process ends: nothing is loaded any more.
    stopping: bool,
}

/// The rollout that goes on.
struct Active {
    id: String,
    generation: GenerationId,
    state: State,
    recorder: Recorder,
    /// Absent while a step works on it.
    candidate: Option<Box<steps::Candidate>>,
    progress: Arc<crate::weights::Progress>,
    config: ModelConfig,
    options: Options,
    /// It brings back the version that was live before and is not resident any more, from host memory or from disk.
    cold_rollback: bool,
    /// What was live when it began: what the candidate is compared with, also when that was drained meanwhile.
    before: Option<Before>,
    measuring: Option<differing::Measuring>,
    /// To run golden cases again in the window.
    watched: Option<Watched>,
    window: Option<Window>,
    /// While the candidate answers a share.
    sharing: Option<Sharing>,
    shadow: Option<shadow::Run>,
    /// When its figures were last looked at, while it waits and a shadow runs.
    looked: Instant,
    /// When the ledger was last told what they are, in the phase that it is in.
    kept: Instant,
    /// Reclaim was ordered while a step had the candidate: it happens when the step hands it back.
    reclaim_on_return: bool,
    /// Replace mode: what was drained, and must come back if the rollout fails.
    drained: Option<String>,
    /// Since when nothing answers for that.
    dark_since: Option<Instant>,
    switched_at: Option<u64>,
    /// When the sample was there that broke a rule.
    proven: Option<Instant>,
    /// Somebody asked to go back.
    asked: bool,
}

struct Window {
    since: Instant,
    until: Instant,
    judge: Judge,
    /// What the version before did.
    before: Option<Observed>,
    next_look: Instant,
    next_told: Instant,
    /// An answer that calls for the next look came then.
    hastened: Option<Instant>,
    next_golden: Option<Instant>,
    golden_runs: u64,
}

/// The controller of a model, from outside.
#[derive(Clone)]
pub(super) struct Reins {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) status: Arc<Status>,
    pub(super) slot: Arc<Slot>,
}

impl Controller {
    /// Starts the task. It begins by bringing up the version that was live last (or that `model.toml` names).
    /// The receiver fires when that has succeeded or failed.
    pub(super) fn start(ctx: Arc<Context>, slot: Arc<Slot>) -> (Reins, oneshot::Receiver<()>) {
        let (commands, inbox) = mpsc::channel(64);
        let (reporter, reports) = mpsc::unbounded_channel();
        let status = Arc::new(Status::default());
        let (up, booted) = oneshot::channel();
        let controller = Controller {
            ctx: Arc::clone(&ctx),
            slot: Arc::clone(&slot),
            status: Arc::clone(&status),
            inbox,
            reports,
            reporter,
            live: None,
            previous: None,
            active: None,
            calm: None,
            shelf: Shelf::default(),
            stopping: false,
        };
        ctx.runtime.spawn(controller.run(up));
        (Reins { commands, status, slot }, booted)
    }

    async fn run(mut self, up: oneshot::Sender<()>) {
        self.boot().await;
        // Nobody waits when the server stops already.
        let _ = up.send(());
        loop {
            let next_look = self.active.as_ref().and_then(Active::next_look);
            let (live, candidate) = self.watched_stats();
            let fault = async {
                tokio::select! {
                    () = notified(&live) => {}
                    () = notified(&candidate) => {}
                }
            };
            let slow = async {
                tokio::select! {
                    () = slowed(&live) => {}
                    () = slowed(&candidate) => {}
                }
            };
            tokio::select! {
                command = self.inbox.recv() => match command {
                    Some(Command::Shutdown(done)) => {
                        self.shut_down().await;
                        let _ = done.send(());
                        return;
                    }
                    Some(Command::Forget(done)) => {
                        self.let_go();
                        self.shut_down().await;
                        let _ = done.send(());
                        return;
                    }
                    Some(command) => self.command(command).await,
                    None => return,
                },
                Some(report) = self.reports.recv() => self.report(report).await,
                () = fault => self.look(true).await,
                () = slow => self.hasten(),
                () = sleep_until(next_look) => self.look(false).await,
            }
        }
    }

    /// Feeds the machine and performs what it orders. On `Err` nothing changed.
    async fn feed(&mut self, event: Event) -> Result<()> {
        let mut events = std::collections::VecDeque::from([event]);
        let mut first = true;
        while let Some(event) = events.pop_front() {
            let Some(active) = &mut self.active else { return Err(Error::conflict("no rollout goes on")) };
            let (to, actions) = match state::next(&active.state, event) {
                Ok(step) => step,
                Err(illegal) if first => return Err(Error::conflict(illegal.message)),
                Err(illegal) => {
                    tracing::debug!(reason = illegal.message, "a follow-up event came to nothing");
                    continue;
                }
            };
            first = false;
            let entered = (to.phase != active.state.phase).then_some(to.phase);
            active.state = to;
            if let Some(phase) = entered {
                self.entered(phase).await;
            }
            for action in actions {
                events.extend(self.perform(action).await);
            }
        }
        if let Some(active) = &self.active {
            active.recorder.publish();
        }
        Ok(())
    }

    async fn report(&mut self, report: Report) {
        let current = self.active.as_ref().map(|active| active.id.clone());
        let ours = |rollout: &String| current.as_ref() == Some(rollout);
        let event = match report {
            Report::Step { rollout, done } if ours(&rollout) => return self.step_done(*done).await,
            // A step's rollout cannot end before the step hands its candidate back.
            Report::Step { rollout, .. } => return tracing::error!(rollout, "a step outlived its rollout"),
            Report::Drained { rollout, result } if ours(&rollout) => {
                self.reclaimed(result);
                Event::Drained
            }
            Report::Reclaimed { rollout, result } if ours(&rollout) => {
                self.reclaimed(result);
                Event::Reclaimed
            }
            Report::Parked(outcome) => return self.job_done(outcome).await,
            Report::Measured { rollout, differences } if ours(&rollout) => return self.measured(differences),
            Report::Golden { rollout, findings } if ours(&rollout) => match self.golden_seen(findings) {
                Some(reason) => {
                    self.feed_late(Event::Breach(reason.clone())).await;
                    return self.alert("breach", &reason).await;
                }
                None => return,
            },
            Report::Drained { .. } | Report::Reclaimed { .. } | Report::Golden { .. } | Report::Measured { .. } => {
                return;
            }
        };
        self.feed_late(event).await;
    }

    /// Feeds what a task reported; it may have been overtaken by an operator.
    async fn feed_late(&mut self, event: Event) {
        if let Err(error) = self.feed(event).await {
            tracing::debug!(%error, "a report came too late");
        }
    }

    async fn step_done(&mut self, done: Done) {
        let Done { candidate, event, notes } = done;
        let Some(active) = &mut self.active else { return };
        for (name, value) in notes.figures {
            active.recorder.figure(name, value);
        }
        active.recorder.gate(notes.checks);
        if !notes.differences.is_empty() {
            active.recorder.differences(notes.differences);
        }
        if active.cold_rollback && candidate.came_parked {
            active.recorder.kind("parked");
        }
        if let Some(digest) = &candidate.digest {
            active.recorder.digest(digest);
        }
        active.candidate = Some(Box::new(candidate));
        if active.reclaim_on_return {
            active.reclaim_on_return = false;
            self.reclaim_candidate().await;
            return;
        }
        if let Some(error) = &notes.error {
            active.recorder.error(error);
        }
        self.feed_late(event).await;
    }

    fn reclaimed(&mut self, result: Result<Reclaimed>) {
        let Some(active) = &mut self.active else { return };
        match result {
            Ok(reclaimed) => {
                if reclaimed.returned < reclaimed.promised {
                    tracing::warn!(?reclaimed, "less memory came back than was promised");
                }
                active.recorder.figure("reclaim", serde_json::to_value(&reclaimed).unwrap_or_default());
                if reclaimed != Reclaimed::nothing(reclaimed.generation) {
                    self.status.last_reclaim.store(Some(Arc::new(reclaimed)));
                }
            }
            Err(error) => {
                tracing::error!(%error, alert = true, "reclaiming failed");
                active.recorder.figure("reclaim_error", error.to_string());
            }
        }
    }

    /// Whose faults are looked at at once: the live version's, and those of a candidate that answers.
    fn watched_stats(&self) -> (Option<Arc<Stats>>, Option<Arc<Stats>>) {
        let live = self.live.as_ref().map(|live| Arc::clone(&live.stats));
        (live, self.active.as_ref().and_then(Active::candidate_stats))
    }

    fn publish_candidate(&self) {
        let candidate = self.active.as_ref().and_then(|active| {
            let before_switch = !active.recorder.view().switched && !active.state.phase.is_end();
            before_switch.then(|| Candidate {
                version: active.recorder.view().record.to.clone(),
                generation: active.generation.0,
                phase: active.state.phase,
                rollout: active.id.clone(),
            })
        });
        self.status.candidate.store(candidate.map(Arc::new));
        self.status.handle.store(self.active.as_ref().map(|active| Arc::new(active.recorder.handle())));
    }
}

impl Active {
    /// Of a candidate that is resident and in nobody's hands.
    fn candidate_stats(&self) -> Option<Arc<Stats>> {
        let resident = self.candidate.as_ref()?.resident.as_ref()?;
        Some(Arc::clone(&resident.stats))
    }

    /// When the controller must look after this rollout without being asked.
    fn next_look(&self) -> Option<Instant> {
        if self.state.phase == Phase::Loading {
            return Some(Instant::now() + PROGRESS);
        }
        let window = self.window.as_ref().map(|window| window.until.min(window.next_look));
        let sharing = self.sharing.as_ref().map(|sharing| sharing.next_look(&self.config));
        let shadow = self.shadow.as_ref().map(|_| self.looked + window::LOOK);
        [window, sharing, shadow].into_iter().flatten().min()
    }

    fn tell_progress(&mut self) {
        let (done, total) = (self.progress.done(), self.progress.total());
        if total > 0 {
            self.recorder.progress(Bytes { done, total });
        }
    }
}

/// Woken by a fault of a generation.
async fn notified(stats: &Option<Arc<Stats>>) {
    match stats {
        Some(stats) => stats.fault.notified().await,
        None => std::future::pending().await,
    }
}

/// Woken by an answer that may prove a generation slow.
async fn slowed(stats: &Option<Arc<Stats>>) {
    match stats {
        Some(stats) => stats.slow.notified().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
