//! Rollouts, their history, and what orders come to.
#![expect(dead_code, reason = "mirrors are described, never made")]

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

use super::{Facts, Phase};
use crate::http::rollout_reply::Wait;

#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum Outcome {
    Rollout(Box<Rollout>),
    Unchanged(Unchanged),
}

/// The body of `stage`.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StageOrder {
    /// Beside the path, the same model.
    model: Option<String>,
    /// For a promote that follows.
    #[schema(pattern = "^(0|(?=[0-9])([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?)$")]
    observe: Option<String>,
    #[schema(inline)]
    wait: Option<Wait>,
    /// For the record.
    reason: Option<String>,
    /// Who orders it, for the record.
    actor: Option<String>,
    /// Let a version pass that clients of the live one could not rely on.
    #[serde(default)]
    accept_contract_change: bool,
    /// Of requests, the share that the staged version computes too, for comparison.
    #[schema(minimum = 0, maximum = 1)]
    shadow: Option<f64>,
    /// For a promote that follows, as the three after it.
    #[schema(schema_with = super::inputs::percentages)]
    canary: Option<Vec<f64>>,
    #[schema(pattern = "^(?=.*[1-9])(?=[0-9])([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$")]
    canary_step: Option<String>,
    #[schema(minimum = 1)]
    canary_requests: Option<u64>,
    #[schema(pattern = "^(request|api-key|header:.+)$")]
    sticky: Option<String>,
    /// `host`: read it into pinned host memory and no further, in place of what waits there of this model. No rollout begins; a
    /// later one, or a rollback, takes the tensors from there and passes every check. Refused (409) where there is no GPU.
    #[schema(inline)]
    park: Option<Park>,
}

#[derive(ToSchema)]
#[serde(rename_all = "kebab-case")]
enum Park {
    None,
    Host,
}

#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum Staged {
    Rollout(Box<Rollout>),
    Unchanged(Unchanged),
    Ahead(Ahead),
}

/// The version waits in host memory.
#[derive(ToSchema)]
pub(super) struct Ahead {
    model: String,
    version: String,
    parked: bool,
    /// Of the version's files.
    digest: String,
    /// Of host memory.
    bytes: u64,
    /// It was so before.
    unchanged: bool,
}

/// The version is on its way to host memory: `GET /admin/memory` says when it is there.
#[derive(ToSchema)]
pub(super) struct Coming {
    parked: bool,
}

/// What `stage` begins.
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum Begun {
    Rollout(Box<Rollout>),
    Coming(Coming),
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

/// The version held no memory of the device.
#[derive(ToSchema)]
pub(super) struct NotResident {
    model: String,
    version: String,
    resident: bool,
    unchanged: bool,
    /// The host memory that it waited in is free.
    #[schema(nullable = false)]
    unparked: Option<bool>,
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
    /// What it changes of what `from` was, the gravest first; distances come once they are measured. Left out of a `progress` event
    /// where it is as in the event before it.
    #[schema(nullable = false)]
    diff: Option<Vec<Difference>>,
    /// Measures by name: `downtime_ms`, `rollback_ms`, and for a `parked` or `cold` one `cold_rollback_ms`, are among them once they
    /// are known; `parked_bytes` is how much came from host memory, where the version waited there; `graphs` and `graphs_ms`, how
    /// many CUDA graphs a load has recorded, and in what time.
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

/// One thing that is not the same in two versions.
#[derive(ToSchema)]
struct Difference {
    /// `labels`, `config.hidden_size`, `tensors`: the same whichever of the two is compared with the other.
    what: String,
    #[schema(inline)]
    severity: Severity,
    /// In words.
    message: String,
    from: Value,
    to: Value,
    /// Of `tensors` alone.
    #[schema(nullable = false)]
    tensors: Option<TensorCounts>,
}

/// `breaking` is what the contract gate refuses, and nothing else.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
enum Severity {
    Harmless,
    Notable,
    Breaking,
}

#[derive(ToSchema)]
struct TensorCounts {
    /// Of those with the same name and shape in both.
    changed: usize,
    of: usize,
    /// Of those that changed, how many distances are known.
    measured: usize,
    #[schema(nullable = false)]
    largest: Option<Distance>,
    #[schema(nullable = false)]
    median: Option<f64>,
}

/// Of one tensor to another, both in f32: the length of their difference over that of the longer one.
#[derive(ToSchema)]
struct Distance {
    tensor: String,
    #[schema(minimum = 0, maximum = 2)]
    distance: f64,
}

/// Two versions, side by side.
#[derive(ToSchema)]
pub(super) struct Comparison {
    /// `model@version`
    from: String,
    to: String,
    /// Whether the contract gate would let `to` take the place of `from`.
    compatible: bool,
    differences: Vec<Difference>,
    /// What is the same, where that is worth saying.
    same: Vec<String>,
    /// What the two do not both say, or what is not known of them yet.
    incomparable: Vec<String>,
}

#[derive(ToSchema)]
struct Bytes {
    done: u64,
    total: u64,
}

#[derive(ToSchema)]
pub(super) struct Rollouts {
    rollouts: Vec<Rollout>,
    /// How many there are, of which these are the newest.
    kept: u64,
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
    /// From 1, without gaps. Below 0 of one that has happened and that the ledger could not take; it comes without an id, and once
    /// more when it is written, if it ever is.
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

/// What became of test alerts.
#[derive(ToSchema)]
pub(super) struct TestedAlerts {
    alerts: Vec<TestedAlert>,
}

#[derive(ToSchema)]
struct TestedAlert {
    target: String,
    /// `json`, `slack` or `alertmanager`.
    kind: String,
    host: String,
    /// Whether the receiver took it.
    delivered: bool,
    /// What it answered, if it did.
    #[schema(required)]
    status: Option<u16>,
    #[schema(required)]
    error: Option<String>,
    ms: f64,
}
