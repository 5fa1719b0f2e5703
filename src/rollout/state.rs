//! One version's journey as a pure machine: `next(state, event) -> (state, actions)`.
//!
//! It knows no clock, no runtime and no I/O; the controller performs the actions and reports back with events.
//! What an operator may not do now is an error and changes nothing; what cannot happen at all is one too, so
//! that a late report from an abandoned worker is dropped and not acted on.
//!
//! Invariants (proptest below): an ended rollout stays ended; whatever was reserved is reclaimed exactly once,
//! before the end; the route is stored at most once forward and once back; nothing is reclaimed while a switch
//! is being made; requests are shared only between a live version and a candidate that has passed its gate.

use serde::{Deserialize, Serialize};

use crate::repository::Mode;

/// Where a rollout is. Names as in the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Draining,
    Reserving,
    Loading,
    Warming,
    Validating,
    Ready,
    /// The candidate answers a growing share of requests.
    Canary,
    /// It answers a share for as long as somebody compares.
    Experiment,
    Observing,
    Reclaiming,
    Settled,
    Refused,
    Failed,
    Aborted,
    RolledBack,
    Interrupted,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Phase::Draining => "draining",
            Phase::Reserving => "reserving",
            Phase::Loading => "loading",
            Phase::Warming => "warming",
            Phase::Validating => "validating",
            Phase::Ready => "ready",
            Phase::Canary => "canary",
            Phase::Experiment => "experiment",
            Phase::Observing => "observing",
            Phase::Reclaiming => "reclaiming",
            Phase::Settled => "settled",
            Phase::Refused => "refused",
            Phase::Failed => "failed",
            Phase::Aborted => "aborted",
            Phase::RolledBack => "rolled_back",
            Phase::Interrupted => "interrupted",
        }
    }

    /// Past its gate: ready, or whatever follows, but for what is still being reclaimed, whose end says more.
    pub fn is_proven(self) -> bool {
        !matches!(
            self,
            Phase::Draining
                | Phase::Reserving
                | Phase::Loading
                | Phase::Warming
                | Phase::Validating
                | Phase::Reclaiming
        )
    }

    pub fn is_end(self) -> bool {
        matches!(
            self,
            Phase::Settled | Phase::Refused | Phase::Failed | Phase::Aborted | Phase::RolledBack | Phase::Interrupted
        )
    }
}

/// How far the rollout shall go by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    Ready,
    Live,
}

/// How it will end once what it held is reclaimed, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    pub phase: Phase,
    pub reason: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub phase: Phase,
    pub goal: Goal,
    pub mode: Mode,
    /// There is a version to compare with, to fall back on and to go back to.
    pub has_live: bool,
    /// Shares that the candidate answers before it answers all, and which of them is next or in force.
    pub steps: usize,
    pub step: usize,
    pub begun: bool,
    /// A switch was ordered and has not been reported yet.
    pub switching: bool,
    pub ending: Option<Ending>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Begin,
    Drained,
    Reserved,
    Loaded,
    Warmed,
    GatePassed,
    GateRefused(String),
    /// Something before the switch did not work.
    Failed(String),
    Promote,
    /// A canary's step has lasted as long as it was to.
    StepOver,
    /// No further steps.
    SkipSteps,
    StartExperiment,
    StopExperiment,
    Switched,
    SwitchFailed(String),
    WindowOver,
    Settle,
    /// A rule was broken, of the window, a canary or an experiment.
    Breach(String),
    Rollback(String),
    Abort(String),
    Reclaimed,
    /// The server stops.
    Shutdown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Replace mode: stop serving, and reclaim the live version.
    DrainLive,
    Reserve,
    Load,
    Warm,
    Validate,
    /// Make the candidate reachable by name.
    Stand,
    /// Have the candidate answer the share of the step, or of the experiment.
    Share,
    /// The live version answers everything again.
    Unshare,
    /// Write the ledger, store the route.
    Switch,
    StartWindow,
    /// Store the old route, write the ledger.
    SwitchBack,
    /// Store the route without its previous version, and reclaim that.
    ReclaimPrevious,
    /// Cancel what is being done for the candidate, take it off the route, and reclaim it.
    ReclaimCandidate,
    /// Replace mode: load again what was drained.
    RestoreLive,
    /// Record the end.
    Finish(Ending),
}

/// Why an event was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Illegal {
    pub message: String,
}

pub fn begin(goal: Goal, mode: Mode, has_live: bool) -> State {
    State {
        phase: Phase::Reserving,
        goal,
        mode,
        has_live,
        steps: 0,
        step: 0,
        begun: false,
        switching: false,
        ending: None,
    }
}

/// The machine. On `Err` nothing changes.
pub fn next(state: &State, event: Event) -> Result<(State, Vec<Action>), Illegal> {
    use Action as A;
    use Event as E;
    use Phase as P;
    let mut to = state.clone();
    let actions = match (state.phase, event) {
        (P::Reserving, E::Begin) if !state.begun => {
            to.begun = true;
            match state.mode == Mode::Replace && state.has_live {
                true => advance(&mut to, P::Draining, A::DrainLive),
                false => vec![A::Reserve],
            }
        }
        (P::Draining, E::Drained) => advance(&mut to, P::Reserving, A::Reserve),
        (P::Reserving, E::Reserved) if state.begun => advance(&mut to, P::Loading, A::Load),
        (P::Loading, E::Loaded) => advance(&mut to, P::Warming, A::Warm),
        (P::Warming, E::Warmed) => advance(&mut to, P::Validating, A::Validate),
        (P::Validating, E::GatePassed) => {
            to.phase = P::Ready;
            match state.goal {
                Goal::Ready => vec![A::Stand],
                Goal::Live => vec![A::Stand, go_live(&mut to)],
            }
        }
        // What is staged may still be found wanting, by what its shadow says.
        (P::Reserving | P::Warming | P::Validating | P::Ready, E::GateRefused(reason)) if !state.switching => {
            give_up(&mut to, P::Refused, Some(reason))
        }
        (P::Reserving | P::Loading | P::Warming | P::Validating, E::Failed(reason)) => {
            give_up(&mut to, P::Failed, Some(reason))
        }
        (P::Ready, E::Promote) if !state.switching => {
            to.goal = Goal::Live;
            vec![go_live(&mut to)]
        }
        (P::Ready, E::StartExperiment) if !state.switching && state.has_live && state.mode == Mode::Beside => {
            advance(&mut to, P::Experiment, A::Share)
        }
        (P::Experiment, E::StopExperiment) if !state.switching => {
            to.goal = Goal::Ready;
            advance(&mut to, P::Ready, A::Unshare)
        }
        (P::Experiment, E::Promote) if !state.switching => {
            to.goal = Goal::Live;
            to.switching = true;
            vec![A::Switch]
        }
        (P::Canary, E::StepOver) if !state.switching && state.step + 1 < state.steps => {
            to.step += 1;
            vec![A::Share]
        }
        (P::Canary, E::StepOver | E::SkipSteps) if !state.switching => {
            to.switching = true;
            vec![A::Switch]
        }
        (P::Canary | P::Experiment, E::Breach(reason) | E::Rollback(reason)) if !state.switching => {
            let mut actions = vec![A::Unshare];
            actions.extend(give_up(&mut to, P::RolledBack, Some(reason)));
            actions
        }
        // Asking again joins what goes on.
        (phase, E::Promote) if before_switch(phase) => {
            to.goal = Goal::Live;
            vec![]
        }
        (P::Observing, E::Promote) => vec![],
        (P::Ready | P::Canary | P::Experiment, E::Switched) if state.switching => {
            to.switching = false;
            to.phase = P::Observing;
            vec![A::StartWindow]
        }
        (P::Ready | P::Canary | P::Experiment, E::SwitchFailed(reason)) if state.switching => {
            to.switching = false;
            give_up(&mut to, P::Aborted, Some(reason))
        }
        (P::Observing, E::WindowOver | E::Settle) => settle(&mut to, None),
        (P::Observing, E::Shutdown) => settle(&mut to, Some("the server stopped; the version stays live".into())),
        (P::Observing, E::Breach(reason) | E::Rollback(reason)) if state.has_live && state.mode == Mode::Beside => {
            let mut actions = vec![A::SwitchBack];
            actions.extend(give_up(&mut to, P::RolledBack, Some(reason)));
            actions
        }
        (phase, E::Abort(reason)) if may_stop(phase) && !state.switching => give_up(&mut to, P::Aborted, Some(reason)),
        (phase, E::Shutdown) if may_stop(phase) && !state.switching => {
            give_up(&mut to, P::Aborted, Some("the server stopped".into()))
        }
        (P::Reclaiming, E::Reclaimed) => match state.ending.clone() {
            Some(ending) => {
                to.phase = ending.phase;
                // What was drained for the candidate comes back into the room that the candidate left.
                let restore = state.mode == Mode::Replace && state.has_live && ending.phase != P::Settled;
                restore.then_some(A::RestoreLive).into_iter().chain([A::Finish(ending)]).collect()
            }
            None => return Err(illegal(state, "reclaimed")),
        },
        (_, event) => return Err(illegal(state, event_name(&event))),
    };
    Ok((to, actions))
}

fn advance(to: &mut State, phase: Phase, action: Action) -> Vec<Action> {
    to.phase = phase;
    vec![action]
}

/// At once, or share by share where there is somebody to share with.
fn go_live(to: &mut State) -> Action {
    if to.steps > 0 && to.has_live && to.mode == Mode::Beside {
        to.phase = Phase::Canary;
        to.step = 0;
        return Action::Share;
    }
    to.switching = true;
    Action::Switch
}

/// Ends without the candidate.
fn give_up(to: &mut State, phase: Phase, reason: Option<String>) -> Vec<Action> {
    to.phase = Phase::Reclaiming;
    to.ending = Some(Ending { phase, reason });
    vec![Action::ReclaimCandidate]
}

fn settle(to: &mut State, reason: Option<String>) -> Vec<Action> {
    to.phase = Phase::Reclaiming;
    to.ending = Some(Ending { phase: Phase::Settled, reason });
    vec![Action::ReclaimPrevious]
}

fn before_switch(phase: Phase) -> bool {
    matches!(
        phase,
        Phase::Draining
            | Phase::Reserving
            | Phase::Loading
            | Phase::Warming
            | Phase::Validating
            | Phase::Ready
            | Phase::Canary
            | Phase::Experiment
    )
}

/// A drain is waited for: until it is over nothing can be put back.
fn may_stop(phase: Phase) -> bool {
    before_switch(phase) && phase != Phase::Draining
}

fn illegal(state: &State, event: &str) -> Illegal {
    let switching = if state.switching { ", while it is being switched to" } else { "" };
    Illegal { message: format!("'{event}' is not possible while the rollout is {}{switching}", state.phase.name()) }
}

fn event_name(event: &Event) -> &'static str {
    match event {
        Event::Begin => "begin",
        Event::Drained => "drained",
        Event::Reserved => "reserved",
        Event::Loaded => "loaded",
        Event::Warmed => "warmed",
        Event::GatePassed => "gate passed",
        Event::GateRefused(_) => "gate refused",
        Event::Failed(_) => "failed",
        Event::Promote => "promote",
        Event::StepOver => "step over",
        Event::SkipSteps => "skip steps",
        Event::StartExperiment => "experiment",
        Event::StopExperiment => "stop experiment",
        Event::Switched => "switched",
        Event::SwitchFailed(_) => "switch failed",
        Event::WindowOver => "window over",
        Event::Settle => "settle",
        Event::Breach(_) => "breach",
        Event::Rollback(_) => "rollback",
        Event::Abort(_) => "abort",
        Event::Reclaimed => "reclaimed",
        Event::Shutdown => "shutdown",
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
