//! A rollout's record while it runs: its phases timed, and every change published to whoever waits for it.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::journal::now_ms;
use super::state::Phase;
use crate::error::{Error, Result};
use crate::ledger::{GateCheck, PhaseAt, RolloutRecord, rfc3339};
use crate::repository::Difference;

/// What a client sees of a rollout at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct View {
    #[serde(flatten)]
    pub record: RolloutRecord,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Bytes>,
    /// What an operator should know that is no reason to fail.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Whether the new version has been live.
    #[serde(skip)]
    pub switched: bool,
    #[serde(skip)]
    pub phase: Phase,
    /// Why it ended badly, when it did.
    #[serde(skip)]
    pub error: Option<Error>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bytes {
    pub done: u64,
    pub total: u64,
}

/// To follow a rollout.
#[derive(Debug, Clone)]
pub struct Handle {
    view: watch::Receiver<Arc<View>>,
}

impl Handle {
    pub fn now(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// Waits until `done` holds or the rollout has ended.
    pub async fn until(&mut self, done: impl Fn(&View) -> bool) -> Result<Arc<View>> {
        let seen = self.view.wait_for(|view| view.phase.is_end() || done(view)).await;
        seen.map(|view| Arc::clone(&view)).map_err(|_| Error::internal("the rollout controller has stopped"))
    }

    /// The next change; `None` when there will be none.
    pub async fn changed(&mut self) -> Option<Arc<View>> {
        self.view.changed().await.ok()?;
        Some(Arc::clone(&self.view.borrow_and_update()))
    }
}

pub(super) struct Recorder {
    view: watch::Sender<Arc<View>>,
    current: View,
    entered_ms: i64,
}

/// What is known of a rollout when it begins.
pub(super) struct Opening {
    pub(super) id: String,
    pub(super) model: String,
    pub(super) from: Option<String>,
    pub(super) to: String,
    pub(super) actor: Option<String>,
    pub(super) reason: Option<String>,
    pub(super) kind: Option<String>,
}

impl Recorder {
    pub(super) fn new(opening: Opening, phase: Phase) -> (Recorder, Handle) {
        let now = now_ms();
        let record = RolloutRecord {
            id: opening.id,
            model: opening.model,
            from: opening.from,
            to: opening.to,
            phase: phase.name().into(),
            reason: opening.reason,
            kind: opening.kind,
            actor: opening.actor,
            started: rfc3339(now),
            started_ms: now,
            ended_ms: None,
            phases: vec![PhaseAt { phase: phase.name().into(), at: rfc3339(now), ms: 0 }],
            gate: Vec::new(),
            diff: Vec::new(),
            figures: serde_json::Map::new(),
            digest: None,
            error: None,
        };
        let current = View { record, progress: None, warnings: Vec::new(), switched: false, phase, error: None };
        let (view, receiver) = watch::channel(Arc::new(current.clone()));
        (Recorder { view, current, entered_ms: now }, Handle { view: receiver })
    }

    pub(super) fn handle(&self) -> Handle {
        Handle { view: self.view.subscribe() }
    }

    pub(super) fn view(&self) -> &View {
        &self.current
    }

    pub(super) fn record(&self) -> RolloutRecord {
        self.current.record.clone()
    }

    /// Enters a phase; without `publish` nothing is told yet.
    pub(super) fn enter(&mut self, phase: Phase) {
        if phase == self.current.phase {
            return;
        }
        let now = now_ms();
        let record = &mut self.current.record;
        if let Some(last) = record.phases.last_mut() {
            last.ms = now.saturating_sub(self.entered_ms).max(0) as u64;
        }
        self.entered_ms = now;
        record.phases.push(PhaseAt { phase: phase.name().into(), at: rfc3339(now), ms: 0 });
        record.phase = phase.name().into();
        self.current.phase = phase;
        if phase.is_end() {
            record.ended_ms = Some(now);
        }
        if phase != Phase::Loading {
            self.current.progress = None;
        }
    }

    pub(super) fn publish(&self) {
        self.view.send_replace(Arc::new(self.current.clone()));
    }

    pub(super) fn progress(&mut self, bytes: Bytes) {
        if self.current.progress != Some(bytes) {
            self.current.progress = Some(bytes);
            self.publish();
        }
    }

    pub(super) fn gate(&mut self, checks: Vec<GateCheck>) {
        self.current.record.gate.extend(checks);
    }

    pub(super) fn differences(&mut self, differences: Vec<Difference>) {
        self.current.record.diff = differences;
    }

    pub(super) fn figure(&mut self, name: &str, value: impl Into<Value>) {
        self.current.record.figures.insert(name.to_owned(), value.into());
    }

    pub(super) fn switched(&mut self) {
        self.current.switched = true;
    }

    pub(super) fn warn(&mut self, warning: String) {
        if !self.current.warnings.contains(&warning) {
            self.current.warnings.push(warning);
        }
    }

    pub(super) fn digest(&mut self, digest: &str) {
        self.current.record.digest = Some(digest.to_owned());
    }

    pub(super) fn kind(&mut self, kind: &str) {
        self.current.record.kind = Some(kind.to_owned());
    }

    /// The reason that the record keeps; an operator's own reason for promoting stays beside it.
    pub(super) fn reason(&mut self, reason: &str) {
        let record = &mut self.current.record;
        if let Some(given) = record.reason.take() {
            record.figures.insert("promote_reason".into(), Value::String(given));
        }
        record.reason = Some(reason.to_owned());
    }

    pub(super) fn error(&mut self, error: &Error) {
        self.current.record.error = Some(json!({
            "kind": error.kind().name(), "message": error.to_string(), "details": error.details(),
        }));
        self.current.error = Some(error.clone());
    }
}
