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
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(live, replace, has_live)| {
        let goal = if live { Goal::Live } else { Goal::Ready };
        begin(goal, if replace { Mode::Replace } else { Mode::Beside }, has_live)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn whatever_happens_the_invariants_hold(start in any_start(), events in prop::collection::vec(any_event(), 0..60)) {
        let mut state = start;
        let (mut forward, mut back, mut reclaimed, mut finished, mut stopped) = (0, 0, 0, 0, 0);
        for event in events {
            let before = state.clone();
            let Ok((to, actions)) = next(&state, event.clone()) else { continue };
            prop_assert!(!before.phase.is_end(), "an ended rollout took {event:?}");
            for action in &actions {
                match action {
                    Action::Switch => forward += 1,
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
            state = to;
        }
    }
}
