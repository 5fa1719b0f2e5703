//! Rollouts, their history, and what orders come to.
#![expect(dead_code, reason = "mirrors are described, never made")]

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

use super::{Facts, Phase};

#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum Outcome {
    Rollout(Box<Rollout>),
    Unchanged(Unchanged),
}

/// It was so before.
#[derive(ToSchema)]
pub(super) struct Unchanged {
    model: String,
    /// The version.
    to: String,
    #[schema(pattern = "^settled$")]
    phase: String,
    unchanged: bool,
}

/// What became of a version whose memory was to be freed.
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum Released {
    Rollout(Box<Rollout>),
    NotResident(NotResident),
    Forgotten(Forgotten),
}

/// The version held no memory.
#[derive(ToSchema)]
pub(super) struct NotResident {
    model: String,
    version: String,
    resident: bool,
    unchanged: bool,
}

/// The model's folder was gone, and it is served no more.
#[derive(ToSchema)]
pub(super) struct Forgotten {
    model: String,
    forgotten: bool,
}

/// The journey of one version.
#[derive(ToSchema)]
pub(super) struct Rollout {
    id: String,
    model: String,
    /// The version that was live; null for the first.
    #[schema(required)]
    from: Option<String>,
    to: String,
    phase: Phase,
    #[schema(required)]
    reason: Option<String>,
    /// How it went back: `instant`, `parked` or `cold`.
    #[schema(required)]
    kind: Option<String>,
    #[schema(required)]
    actor: Option<String>,
    /// RFC 3339, in UTC.
    started: String,
    /// Unix time in milliseconds.
    started_ms: i64,
    #[schema(required)]
    ended_ms: Option<i64>,
    phases: Vec<PhaseAt>,
    /// Left out of a `progress` event that has none to add to the event before it.
    #[schema(nullable = false)]
    gate: Option<Vec<GateCheck>>,
    /// Measures by name: `downtime_ms`, `rollback_ms` and `cold_rollback_ms` are among them once they are known.
    figures: BTreeMap<String, Value>,
    /// Of the version's files.
    #[schema(required)]
    digest: Option<String>,
    #[schema(required)]
    error: Option<Facts>,
    /// While it loads.
    #[schema(nullable = false)]
    progress: Option<Bytes>,
    /// What an operator should know that was no reason to fail.
    #[schema(nullable = false)]
    warnings: Option<Vec<String>>,
}

#[derive(ToSchema)]
struct PhaseAt {
    phase: Phase,
    /// When it began, in RFC 3339.
    at: String,
    /// How long it took; 0 while it lasts.
    ms: u64,
}

#[derive(ToSchema)]
struct GateCheck {
    check: String,
    passed: bool,
    measure: Value,
    limit: Value,
    /// Of which golden case.
    #[schema(required)]
    case: Option<String>,
    #[schema(nullable = false)]
    message: Option<String>,
}

#[derive(ToSchema)]
struct Bytes {
    done: u64,
    total: u64,
}

#[derive(ToSchema)]
pub(super) struct Rollouts {
    rollouts: Vec<Rollout>,
    figures: Figures,
}

/// Over every rollout that has ended and is still kept.
#[derive(ToSchema)]
struct Figures {
    deployments: u64,
    /// How many ended in each phase.
    ends: BTreeMap<String, u64>,
    /// The share that settled, of those that no operator stopped.
    #[schema(required)]
    success_rate: Option<f64>,
    rollbacks: u64,
    #[schema(required)]
    downtime_ms: Option<Spread>,
    #[schema(required)]
    rollback_ms: Option<Spread>,
}

#[derive(ToSchema)]
struct Spread {
    count: u64,
    median: f64,
    max: f64,
}

/// What the ledger recorded, chained to what it recorded before.
#[derive(ToSchema)]
pub(super) struct Event {
    seq: i64,
    prev_hash: String,
    hash: String,
    model: String,
    #[schema(required)]
    rollout: Option<String>,
    kind: String,
    /// Unix time in milliseconds.
    at_ms: i64,
    #[schema(required)]
    actor: Option<String>,
    body: Value,
}
