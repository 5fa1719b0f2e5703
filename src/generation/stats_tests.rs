use super::*;

#[test]
fn quantiles_speak_of_what_was_answered() {
    let stats = Stats::new();
    for ms in 1..=100 {
        stats.answered(Duration::from_millis(ms));
    }
    let seen = stats.snapshot();
    assert_eq!((seen.answered, seen.samples), (100, 100));
    assert!((48..=52).contains(&seen.p50.unwrap().as_millis()), "{seen:?}");
    assert!((97..=101).contains(&seen.p99.unwrap().as_millis()), "{seen:?}");
}

#[test]
fn answers_since_a_mark_are_counted_once_and_slow_ones_apart() {
    let stats = Stats::new();
    let ms = Duration::from_millis;
    stats.answered(ms(50));
    let mut mark = stats.mark(ms(10));
    (1..=20).for_each(|n| stats.answered(ms(n)));
    assert_eq!(stats.since(&mut mark), Passed { answered: 20, slow: 10 });
    assert_eq!(stats.since(&mut mark), Passed::default());
    stats.restart_window();
    stats.timed_out(Duration::from_secs(10_000));
    assert_eq!(stats.since(&mut mark), Passed { answered: 1, slow: 1 });
}

#[test]
fn what_was_observed_begins_anew_with_the_window_and_an_accusation_is_taken_once() {
    let stats = Stats::new();
    stats.answered(Duration::from_millis(5));
    stats.blame(true);
    stats.restart_window();
    stats.answered(Duration::from_millis(7));
    stats.timed_out(Duration::from_secs(1));
    let (since, all) = (stats.observed(), stats.recently());
    assert_eq!((since.answered, since.blamed, since.nonfinite, since.timed_out, since.timed()), (1, 0, 0, 1, 2));
    assert_eq!((all.answered, all.blamed, all.nonfinite, all.timed_out, all.timed()), (2, 1, 1, 1, 3));
    assert!(stats.accused().is_some_and(|at| at.elapsed() < Duration::from_secs(60)));
    assert!(stats.accused().is_none());
}

#[test]
fn a_beat_tells_of_what_came_since_the_last_one() {
    let (stats, mut seen) = (Stats::new(), Seen::default());
    let ms = Duration::from_millis;
    stats.answered(ms(50));
    assert_eq!(stats.beat(&mut seen).samples, 1);
    (0..10).for_each(|_| stats.answered(ms(2)));
    let beat = stats.beat(&mut seen);
    assert!(beat.samples == 10 && beat.p99.unwrap() < ms(3), "{beat:?}");
    assert_eq!(stats.beat(&mut seen), Beat::default());
    stats.restart_window();
    stats.answered(ms(7));
    assert_eq!(stats.beat(&mut seen).samples, 1);
}

#[test]
fn a_window_begins_anew_and_named_requests_are_in_none() {
    let stats = Stats::new();
    stats.answered(Duration::from_millis(5));
    stats.restart_window();
    stats.answered_by_name();
    assert_eq!((stats.window().samples, stats.window().named), (0, 1));
    assert_eq!(stats.snapshot().samples, 1);
}

#[test]
fn who_gives_up_counts_with_how_long_was_waited_and_for_no_answer() {
    let stats = Stats::new();
    stats.answered(Duration::from_millis(5));
    stats.given_up(Duration::from_millis(80));
    let seen = stats.observed();
    assert_eq!((seen.requests(), seen.timed(), seen.timed_out), (1, 2, 0));
    assert_eq!(seen.slower_than(Duration::from_millis(50)), 1);
}
