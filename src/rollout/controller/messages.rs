//! What a controller is told and what it tells: commands and their answers, reports of its tasks, and what anybody may read.

use std::time::Duration;

use arc_swap::ArcSwapOption;
use serde::Serialize;
use tokio::sync::oneshot;

use super::shelf::Coming;
use crate::error::Result;
use crate::repository::{Difference, Sticky};
use crate::rollout::experiment::Named;
use crate::rollout::gate::Findings;
use crate::rollout::parking;
use crate::rollout::record::Handle;
use crate::rollout::residents::Reclaimed;
use crate::rollout::shadow;
use crate::rollout::state::Phase;
use crate::rollout::steps::Done;

/// What an operator may say with a stage or promote.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub observe: Option<Duration>,
    pub reason: Option<String>,
    pub actor: Option<String>,
    pub accept_contract_change: bool,
    /// Each instead of what `model.toml` says.
    pub canary: Option<Vec<f64>>,
    pub canary_step: Option<Duration>,
    pub canary_requests: Option<u64>,
    pub sticky: Option<Sticky>,
    /// The share of answers to be computed again by the other version.
    pub shadow: Option<f64>,
}

/// What a command came to.
#[derive(Debug, Clone)]
pub enum Answer {
    /// A rollout does it, or did.
    Rollout(Handle),
    /// It was so already, and nothing changed.
    Already { model: String, version: String },
}

pub(in crate::rollout) enum Command {
    Stage(String, Options, oneshot::Sender<Result<Answer>>),
    Promote(String, Options, oneshot::Sender<Result<Answer>>),
    /// To this version, where that is said.
    Rollback(Option<String>, Options, oneshot::Sender<Result<Answer>>),
    /// This one, where that is said.
    Settle(Option<String>, oneshot::Sender<Result<Answer>>),
    /// Has a staged version answer a share for as long as is wanted.
    Compare(String, Named, Options, oneshot::Sender<Result<Answer>>),
    /// Ends that by its name; the version stays staged.
    StopComparing(String, oneshot::Sender<Result<Answer>>),
    Abort(Option<String>, Options, oneshot::Sender<Result<Answer>>),
    /// Into host memory only, for whom.
    ReadAhead(String, Option<String>, oneshot::Sender<Result<Coming>>),
    Release(String, oneshot::Sender<Result<Freed>>),
    /// The first version of a model that had none is here.
    ComeUp,
    Shutdown(oneshot::Sender<()>),
    /// As the one before, and what is live is served no more.
    Forget(oneshot::Sender<()>),
}

/// What `DELETE` of a version came to.
#[derive(Debug)]
pub(in crate::rollout) struct Freed {
    pub(in crate::rollout) answer: Answer,
    /// Its host memory is free, too.
    pub(in crate::rollout) unparked: bool,
}

/// The candidate as listings show it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Candidate {
    pub version: String,
    pub generation: u64,
    pub phase: Phase,
    pub rollout: String,
}

/// What anybody may read of a controller without asking it.
#[derive(Default)]
pub struct Status {
    pub(in crate::rollout) candidate: ArcSwapOption<Candidate>,
    pub(in crate::rollout) last_reclaim: ArcSwapOption<Reclaimed>,
    pub(in crate::rollout) handle: ArcSwapOption<Handle>,
    /// What the last shadow has seen.
    pub(in crate::rollout) shadow: ArcSwapOption<shadow::Seen>,
}

/// What tasks send back.
pub(super) enum Report {
    Step {
        rollout: String,
        done: Box<Done>,
    },
    Drained {
        rollout: String,
        result: Result<Reclaimed>,
    },
    Reclaimed {
        rollout: String,
        result: Result<Reclaimed>,
    },
    Golden {
        rollout: String,
        findings: Option<Findings>,
    },
    /// What the version changes, with distances.
    Measured {
        rollout: String,
        differences: Vec<Difference>,
    },
    /// Of no rollout.
    Parked(parking::Outcome),
}
