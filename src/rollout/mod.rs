//! Changing versions: one controller task per model takes a version from its folder to live, watches it, and
//! goes back or gives memory back.
//!
//! `survey` says what a folder holds and costs, and `home` how much of a device it is to have; `state` is the pure machine; `controller` performs its actions; `steps` are those that take long; `gate` is
//! what a candidate must pass; `easing` holds a load back while clients notice it; `judge` says whether a version keeps its rules, and `recheck` runs the window's golden cases; `residents` gives memory back and measures it;
//! `parking` keeps a version in host memory; `difference` says what a rollout would change; `shadow` computes live answers again on the other version and
//! compares; `experiment` says which of two is better, and `interval` how sure that is;
//! `record` and `journal` say what happened; `supervisor` is the door for the `http` room's admin routes; `alone` loads a
//! version by itself, without any of them, and `rehearsal` judges one so.
//! It must not know HTTP or the command line.

mod alone;
mod controller;
mod difference;
mod easing;
mod experiment;
mod gate;
mod home;
mod interval;
mod journal;
pub mod judge;
mod load;
mod parking;
mod quiet;
mod recheck;
mod record;
mod rehearsal;
mod residents;
mod shadow;
mod sight;
pub mod state;
mod steps;
mod supervisor;
mod survey;

use std::sync::Arc;

pub use alone::Alone;
pub use controller::{Ahead, Answer, Candidate as CandidateStatus, Options, Status};
pub use difference::Comparison;
pub use experiment::{ExperimentPlan, Named as NamedExperiment};
pub use gate::Golden;
pub use home::Home;
pub use journal::{Journal, now_ms};
pub use record::{Bytes, Handle, View};
pub use rehearsal::Rehearsal;
pub use residents::Reclaimed;
pub use supervisor::{
    ArmSeen, MemoryReport, ModelReport, Released, Sample, ShadowSeen, Shares, Supervisor, SupervisorConfig,
};
pub use survey::Survey;

use crate::device::{Budget, HostRoom, Opened};
use crate::engine::Engine;
use crate::generation::GenerationIds;
use crate::ops::Machine;
use crate::repository::Repository;
use crate::slot::Registry;
use residents::Lingering;

/// What every controller shares.
pub struct Context {
    /// Where rollouts run, apart from the threads that answer clients.
    pub(self) runtime: tokio::runtime::Handle,
    pub(crate) repository: Arc<Repository>,
    /// Whose clients a load gives way to.
    pub(crate) registry: Arc<Registry>,
    pub(crate) engine: Engine,
    pub(crate) opened: Opened,
    pub(crate) machine: Machine,
    pub(crate) budget: Arc<Budget>,
    /// For versions that wait in host memory.
    pub(crate) host_room: Arc<HostRoom>,
    pub(crate) journal: Journal,
    pub(crate) ids: GenerationIds,
    /// Tokens per batch where `model.toml` does not say.
    pub(crate) default_batch_tokens: usize,
    /// Whether loads record what small batches run, where the device can.
    pub(crate) graphs: bool,
    pub(crate) faults: Vec<crate::faults::Fault>,
    lingering: Lingering,
}
