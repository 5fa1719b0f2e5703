use proptest::prelude::*;

use super::*;

fn run(mut state: State, events: &[Event]) -> (State, Vec<Action>) {
    let mut all = Vec::new();
    for event in events {
        let (to, actions) = next(&state, event.clone()).unwrap_or_else(|e| panic!("{}", e.message));
        state = to;
        all.extend(actions);
    }
    (state, all)
}

const TO_READY: [Event; 5] = [Event::Begin, Event::Reserved, Event::Loaded, Event::Warmed, Event::GatePassed];

#[test]
fn staging_stops_when_ready_and_promote_goes_on_from_there() {
    let (state, actions) = run(begin(Goal::Ready, Mode::Beside, true), &TO_READY);
    assert_eq!(state.phase, Phase::Ready);
    assert_eq!(actions, [Action::Reserve, Action::Load, Action::Warm, Action::Validate, Action::Stand]);
    let (state, actions) = run(state, &[Event::Promote, Event::Switched, Event::WindowOver, Event::Reclaimed]);
    assert_eq!(state.phase, Phase::Settled);
    assert_eq!(actions[..3], [Action::Switch, Action::StartWindow, Action::ReclaimPrevious]);
}

#[test]
fn one_promote_does_the_whole_job_and_asking_again_joins_it() {
    let mut events = vec![Event::Begin, Event::Promote, Event::Reserved, Event::Loaded, Event::Promote];
    events.extend([Event::Warmed, Event::GatePassed]);
    let (state, actions) = run(begin(Goal::Ready, Mode::Beside, true), &events);
    assert!(state.switching);
    assert_eq!(actions.last(), Some(&Action::Switch));
}

#[test]
fn a_refused_candidate_is_reclaimed_and_never_switched_to() {
    let mut events = TO_READY[..4].to_vec();
    events.extend([Event::GateRefused("golden".into()), Event::Reclaimed]);
    let (state, actions) = run(begin(Goal::Live, Mode::Beside, true), &events);
    assert_eq!(state.phase, Phase::Refused);
    assert!(!actions.contains(&Action::Switch) && actions.contains(&Action::ReclaimCandidate));
}

#[test]
fn a_breach_switches_back_before_anything_is_reclaimed() {
    let mut events = TO_READY.to_vec();
    events.extend([Event::Switched, Event::Breach("errors".into())]);
    let (state, actions) = run(begin(Goal::Live, Mode::Beside, true), &events);
    assert_eq!(state.phase, Phase::Reclaiming);
    assert_eq!(actions[actions.len() - 2..], [Action::SwitchBack, Action::ReclaimCandidate]);
}

#[test]
fn a_switch_whose_ledger_write_fails_aborts_and_leaves_blue() {
    let mut events = TO_READY.to_vec();
    events.extend([Event::SwitchFailed("disk full".into()), Event::Reclaimed]);
    let (state, actions) = run(begin(Goal::Live, Mode::Beside, true), &events);
    assert_eq!(state.phase, Phase::Aborted);
    assert!(!actions.contains(&Action::SwitchBack));
}

#[test]
fn replace_mode_drains_first_and_restores_into_the_room_that_a_failed_green_left() {
    let events = [Event::Begin, Event::Drained, Event::Reserved, Event::Failed("truncated".into()), Event::Reclaimed];
    let (_, actions) = run(begin(Goal::Live, Mode::Replace, true), &events);
    let ending = Ending { phase: Phase::Failed, reason: Some("truncated".into()) };
    use Action::{DrainLive, Finish, Load, ReclaimCandidate, Reserve, RestoreLive};
    assert_eq!(actions, [DrainLive, Reserve, Load, ReclaimCandidate, RestoreLive, Finish(ending)]);
}

#[test]
fn nobody_aborts_while_a_switch_is_being_made() {
    let (state, _) = run(begin(Goal::Live, Mode::Beside, true), &TO_READY);
    assert!(next(&state, Event::Abort("operator".into())).is_err());
    assert!(next(&state, Event::Shutdown).is_err());
}

#[test]
fn a_canary_goes_share_by_share_and_then_live() {
    let start = State { steps: 3, ..begin(Goal::Live, Mode::Beside, true) };
    let (state, actions) = run(start, &TO_READY);
    assert_eq!((state.phase, state.step), (Phase::Canary, 0));
    assert_eq!(actions[actions.len() - 2..], [Action::Stand, Action::Share]);
    let (state, actions) = run(state, &[Event::StepOver, Event::Promote, Event::StepOver]);
    assert_eq!((state.phase, state.step, actions), (Phase::Canary, 2, vec![Action::Share, Action::Share]));
    let (state, actions) = run(state, &[Event::StepOver, Event::Switched]);
    assert_eq!((state.phase, actions), (Phase::Observing, vec![Action::Switch, Action::StartWindow]));
}

#[test]
fn a_breach_in_a_canary_unshares_first_and_switches_nothing() {
    let start = State { steps: 2, ..begin(Goal::Live, Mode::Beside, true) };
    let (state, _) = run(start, &TO_READY);
    for event in [Event::Breach("errors".into()), Event::Rollback("operator".into())] {
        let (state, actions) = run(state.clone(), &[event, Event::Reclaimed]);
        assert_eq!(state.phase, Phase::RolledBack);
        assert_eq!(actions[..2], [Action::Unshare, Action::ReclaimCandidate]);
    }
    let (_, actions) = run(state, &[Event::SkipSteps]);
    assert_eq!(actions, [Action::Switch]);
}

#[test]
fn without_somebody_to_share_with_there_are_no_steps() {
    for (mode, has_live) in [(Mode::Beside, false), (Mode::Replace, false)] {
        let (state, actions) = run(State { steps: 2, ..begin(Goal::Live, mode, has_live) }, &TO_READY);
        assert!(state.switching && actions.last() == Some(&Action::Switch));
    }
}

#[test]
fn an_experiment_ends_staged_or_with_the_better_one_live() {
    let (ready, _) = run(begin(Goal::Ready, Mode::Beside, true), &TO_READY);
    let (state, actions) = run(ready.clone(), &[Event::StartExperiment]);
    assert_eq!((state.phase, actions), (Phase::Experiment, vec![Action::Share]));
    let (stopped, actions) = run(state.clone(), &[Event::StopExperiment]);
    assert_eq!((stopped.phase, actions), (Phase::Ready, vec![Action::Unshare]));
    let (live, actions) = run(state, &[Event::Promote, Event::Switched]);
    assert_eq!((live.phase, actions), (Phase::Observing, vec![Action::Switch, Action::StartWindow]));
    assert!(next(&run(begin(Goal::Ready, Mode::Beside, false), &TO_READY).0, Event::StartExperiment).is_err());
}

fn any_event() -> impl Strategy<Value = Event> {
    let reason = || Just("why".to_owned());
    prop_oneof![
        Just(Event::Begin),
        Just(Event::Drained),
        Just(Event::Reserved),
        Just(Event::Loaded),
        Just(Event::Warmed),
        Just(Event::GatePassed),
        reason().prop_map(Event::GateRefused),
        reason().prop_map(Event::Failed),
        Just(Event::Promote),
        Just(Event::StepOver),
        Just(Event::SkipSteps),
        Just(Event::StartExperiment),
        Just(Event::StopExperiment),
        Just(Event::Switched),
        reason().prop_map(Event::SwitchFailed),
        Just(Event::WindowOver),
        Just(Event::Settle),
        reason().prop_map(Event::Breach),
        reason().prop_map(Event::Rollback),
        reason().prop_map(Event::Abort),
        Just(Event::Reclaimed),
        Just(Event::Shutdown),
    ]
}

fn any_start() -> impl Strategy<Value = State> {
    (any::<bool>(), any::<bool>(), any::<bool>(), 0..4usize).prop_map(|(live, replace, has_live, steps)| {
        let goal = if live { Goal::Live } else { Goal::Ready };
        State { steps, ..begin(goal, if replace { Mode::Replace } else { Mode::Beside }, has_live) }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn whatever_happens_the_invariants_hold(start in any_start(), events in prop::collection::vec(any_event(), 0..60)) {
        let mut state = start;
        let (mut forward, mut back, mut reclaimed, mut finished, mut stopped) = (0, 0, 0, 0, 0);
        let mut shared = false;
        for event in events {
            let before = state.clone();
            let Ok((to, actions)) = next(&state, event.clone()) else { continue };
            prop_assert!(!before.phase.is_end(), "an ended rollout took {event:?}");
            for action in &actions {
                match action {
                    Action::Switch => forward += 1,
                    Action::Share => {
                        prop_assert!(to.has_live && to.mode == Mode::Beside && forward == 0);
                        prop_assert!(matches!(to.phase, Phase::Canary | Phase::Experiment));
                        shared = true;
                    }
                    Action::Unshare => { prop_assert!(shared); shared = false; }
                    Action::SwitchBack => { prop_assert_eq!(before.phase, Phase::Observing); back += 1; }
                    Action::ReclaimCandidate | Action::ReclaimPrevious => {
                        prop_assert!(!to.switching, "reclaimed in the middle of a switch");
                        reclaimed += 1;
                    }
                    Action::Finish(ending) => { prop_assert_eq!(ending.phase, to.phase); finished += 1; }
                    Action::DrainLive => { prop_assert_eq!(to.mode, Mode::Replace); stopped += 1; }
                    Action::RestoreLive => prop_assert!(to.mode == Mode::Replace && to.has_live),
                    _ => {}
                }
            }
            prop_assert_eq!(to.phase == Phase::Reclaiming || to.phase.is_end(), reclaimed == 1);
            prop_assert_eq!(to.phase.is_end(), finished == 1);
            prop_assert!(forward <= 1 && back <= forward && stopped <= 1);
            prop_assert!(to.phase != Phase::Observing || forward == 1, "live without a switch");
            prop_assert!(to.phase != Phase::Ready || !shared, "staged only, and answering");
            state = to;
        }
    }
}
