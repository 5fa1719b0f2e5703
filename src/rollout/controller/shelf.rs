//! The version that waits in host memory: which it is, and who may take it from there.
//!
//! At most one a model, and one thing done with it at a time: read into memory, or let go of. What is asked for meanwhile gives up
//! what goes on and comes next; only the last that was asked for is waited for. Nothing here touches a rollout or a route.

use std::sync::{Arc, Weak};

use serde_json::json;
use tokio::sync::oneshot;

use super::super::journal::event;
use super::super::parking::{self, Parking};
use super::{Controller, Report};
use crate::device::Kind;
use crate::error::{Error, Result};
use crate::ledger::NewEvent;
use crate::repository::{ModelConfig, Park};
use crate::weights::{Pace, Parked, Progress};

/// A version that was read ahead.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Ahead {
    pub model: String,
    pub version: String,
    pub parked: bool,
    pub digest: String,
    /// Of host memory.
    pub bytes: u64,
    /// It was so before.
    pub unchanged: bool,
}

/// What becomes of an order to read ahead.
pub(in crate::rollout) type Coming = oneshot::Receiver<Result<Ahead>>;

#[derive(Default)]
pub(super) struct Shelf {
    kept: Option<Kept>,
    job: Option<Job>,
    next: Option<Wish>,
    /// The server stops: nothing begins any more.
    closed: bool,
}

struct Kept {
    version: String,
    parked: Arc<Parked>,
}

/// What goes on.
struct Job {
    version: Option<String>,
    /// What it lets go of, once it must; a load may still take it until then.
    instead_of: Option<(String, Weak<Parked>)>,
    actor: Option<String>,
    progress: Arc<Progress>,
    pace: Arc<Pace>,
    waiting: Vec<Waiter>,
    /// It is not wanted any more.
    given_up: bool,
}

impl Job {
    fn give_up(&mut self) {
        self.given_up = true;
        self.progress.cancel();
    }
}

/// What shall be in host memory; nothing, where there is no version.
#[derive(Default)]
struct Wish {
    version: Option<(String, ModelConfig)>,
    actor: Option<String>,
    waiting: Vec<Waiter>,
}

/// Who waits for the end of what goes on.
enum Waiter {
    Ahead(oneshot::Sender<Result<Ahead>>),
    Gone(oneshot::Sender<()>),
}

impl Controller {
    /// `stage` into host memory. What comes of it is told later.
    ///
    /// # Errors
    /// What can be said at once: that there is no GPU, no such folder, or that a rollout has the version.
    pub(super) fn read_ahead(&mut self, version: String, actor: Option<String>) -> Result<Coming> {
        if self.ctx.opened.kind() == Kind::Cpu {
            let reason = "weights lie in host memory already: only for a GPU is a version read ahead into it";
            return Err(Error::conflict(reason));
        }
        let holds = |resident: &Option<super::Resident>| resident.as_ref().is_some_and(|r| r.version == version);
        if holds(&self.live) || holds(&self.previous) {
            let model = self.slot.name();
            return Err(Error::conflict(format!("'{version}' of '{model}' is on the device already")));
        }
        if let Some(active) = &self.active
            && active.recorder.view().record.to == version
        {
            let id = &active.id;
            return Err(Error::conflict(format!("rollout {id} brings '{version}' to the device already")));
        }
        let config = self.folder()?.config?;
        self.ctx.repository.version_dir(self.slot.name(), &version)?;
        let (reply, coming) = oneshot::channel();
        self.want(Wish { version: Some((version, config)), actor, waiting: vec![Waiter::Ahead(reply)] });
        Ok(coming)
    }

    /// What a load of `version` may take its tensors from.
    pub(super) fn parked(&self, version: &str) -> Option<Arc<Parked>> {
        let kept = self.shelf.kept.as_ref().map(|kept| (&kept.version, Some(Arc::clone(&kept.parked))));
        let going = || self.shelf.job.as_ref()?.instead_of.as_ref().map(|(name, parked)| (name, parked.upgrade()));
        kept.or_else(going).filter(|(name, _)| *name == version)?.1
    }

    /// A load of `version` begins: whoever still reads it ahead comes too late.
    pub(super) fn overtake(&mut self, version: &str) {
        let named = |wish: &Wish| wish.version.as_ref().is_some_and(|(name, _)| name == version);
        if self.shelf.next.as_ref().is_some_and(named) {
            self.shelf.next = None;
        }
        if let Some(job) = self.shelf.job.as_mut().filter(|job| job.version.as_deref() == Some(version)) {
            job.give_up();
        }
    }

    /// A rollout has settled: the version that was live before is kept, when that is wanted, and the one that is live now no more.
    pub(super) fn settled(&mut self, before: Option<String>, live: &str, config: &ModelConfig) {
        if self.ctx.opened.kind() == Kind::Cpu {
            return;
        }
        match before.filter(|_| config.rollout.park == Park::Host) {
            Some(before) => self.want(Wish { version: Some((before, config.clone())), ..Wish::default() }),
            None if self.parked(live).is_some() => self.want(Wish::default()),
            None => {}
        }
    }

    /// Frees a version's host memory; fires when it is free. None where it holds none.
    pub(super) fn unpark(&mut self, version: &str) -> Option<oneshot::Receiver<()>> {
        let is_read = self.shelf.job.as_ref().is_some_and(|job| job.version.as_deref() == Some(version));
        if !is_read && self.parked(version).is_none() {
            return None;
        }
        let (reply, gone) = oneshot::channel();
        self.want(Wish { waiting: vec![Waiter::Gone(reply)], ..Wish::default() });
        Some(gone)
    }

    fn want(&mut self, wish: Wish) {
        if self.shelf.closed {
            return;
        }
        let name = wish.version.as_ref().map(|(name, _)| name);
        let Some(job) = &mut self.shelf.job else { return self.begin(wish) };
        if job.version.as_ref() == name && !job.given_up {
            job.waiting.extend(wish.waiting);
            self.shelf.next = None;
            return;
        }
        job.give_up();
        // Whoever waited for what was to come next hears that it does not.
        self.shelf.next = Some(wish);
    }

    fn begin(&mut self, wish: Wish) {
        let Wish { version, actor, waiting } = wish;
        let name = version.as_ref().map(|(name, _)| name.clone());
        if let (Some(name), Some(kept)) = (&name, &self.shelf.kept)
            && *name == kept.version
        {
            let ahead = self.ahead(&kept.parked, name, true);
            return waiting.into_iter().for_each(|waiter| waiter.tell(Ok(ahead.clone())));
        }
        let old = self.shelf.kept.take();
        let instead_of = old.as_ref().map(|old| (old.version.clone(), Arc::downgrade(&old.parked)));
        let (progress, pace) = (Arc::new(Progress::new()), Arc::new(Pace::default()));
        let parking = Parking {
            model: self.slot.name().to_owned(),
            instead_of: old.map(|old| old.parked),
            version,
            progress: Arc::clone(&progress),
            pace: Arc::clone(&pace),
        };
        let (ctx, reporter) = (Arc::clone(&self.ctx), self.reporter.clone());
        tokio::spawn(async move {
            let outcome = parking::park(ctx, parking).await;
            // The controller waits for it, unless the process ends otherwise.
            let _ = reporter.send(Report::Parked(outcome));
        });
        self.shelf.job = Some(Job { version: name, instead_of, actor, progress, pace, waiting, given_up: false });
    }

    /// What was done is over: it is told, and the next begins.
    pub(super) async fn job_done(&mut self, outcome: parking::Outcome) {
        let parking::Outcome { result, left } = outcome;
        let Some(job) = self.shelf.job.take() else { return };
        let mut notes = Vec::new();
        match (job.instead_of, left) {
            (Some((version, _)), Some(parked)) => self.shelf.kept = Some(Kept { version, parked }),
            (Some((version, _)), None) => notes.push(("unparked", json!({ "version": version }))),
            (None, _) => {}
        }
        let told = match (result, &job.version) {
            (Ok(Some(parked)), Some(version)) => {
                parked.is_ready();
                let ahead = self.ahead(&parked, version, false);
                tracing::info!(model = ahead.model, version, bytes = ahead.bytes, "kept in host memory");
                notes.push(("parked", json!({ "version": version, "digest": ahead.digest, "bytes": ahead.bytes })));
                self.shelf.kept = Some(Kept { version: version.clone(), parked });
                Ok(ahead)
            }
            (Err(error), Some(version)) if !job.given_up => {
                let model = self.slot.name();
                tracing::warn!(model, version, %error, "not kept in host memory: going back to it takes longer");
                notes.push(("park_failed", json!({ "version": version, "reason": error.to_string() })));
                Err(error)
            }
            (Err(error), None) => {
                tracing::warn!(model = self.slot.name(), %error, "host memory of a version may not be free");
                Err(error)
            }
            _ => Err(given_up()),
        };
        job.waiting.into_iter().for_each(|waiter| waiter.tell(told.clone()));
        if let Some(wish) = self.shelf.next.take() {
            self.begin(wish);
        }
        for (kind, body) in notes {
            let note = NewEvent { actor: job.actor.clone(), ..event(self.slot.name(), None, kind, body) };
            self.ctx.journal.note(note).await;
        }
    }

    /// The server stops: nothing is read any more.
    pub(super) fn close_shelf(&mut self) {
        (self.shelf.closed, self.shelf.next) = (true, None);
        if let Some(job) = &mut self.shelf.job {
            job.pace.hurry();
            job.give_up();
        }
    }

    /// Frees everything, without rests: nothing is served any more. Waits for what goes on.
    pub(super) async fn clear_shelf(&mut self) {
        self.close_shelf();
        while self.shelf.job.is_some() {
            match self.reports.recv().await {
                Some(report) => self.report(report).await,
                None => break,
            }
        }
        let Some(Kept { parked, .. }) = self.shelf.kept.take() else { return };
        let freed = tokio::task::spawn_blocking(move || {
            let pace = Pace::default();
            pace.hurry();
            parked.let_go(&pace);
        });
        if let Err(error) = freed.await {
            tracing::error!(%error, "host memory of a version was not freed");
        }
    }

    fn ahead(&self, parked: &Parked, version: &str, unchanged: bool) -> Ahead {
        let (digest, bytes) = (parked.digest().to_owned(), parked.bytes());
        Ahead {
            model: self.slot.name().to_owned(),
            version: version.to_owned(),
            parked: true,
            digest,
            bytes,
            unchanged,
        }
    }
}

impl Waiter {
    fn tell(self, ahead: Result<Ahead>) {
        // Whoever asked may have hung up.
        match self {
            Waiter::Ahead(reply) => drop(reply.send(ahead)),
            Waiter::Gone(reply) => drop(reply.send(())),
        }
    }
}

/// To whoever waited for a version that is not to be read ahead any more.
pub(in crate::rollout) fn given_up() -> Error {
    Error::conflict("it is not to be read ahead any more: another version was, or it is loaded itself, or let go of")
}
