//! Rules that are broken, kept, and not decided; how verdicts read. How often it is wrong is in benches/judging.rs.

use super::*;
use crate::repository::ObserveConfig;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// So many answers of so many milliseconds, and faults.
fn seen(times: &[(u64, u64)], blamed: u64) -> Observed {
    let mut seen = Observed { blamed, ..Observed::default() };
    times.iter().for_each(|&(count, took)| (0..count).for_each(|_| seen.answer(ms(took))));
    seen
}

fn by(rule: Rule) -> Judge {
    Judge::new(vec![rule], FALSE_ALARMS)
}

fn rule(metric: Metric, limit: Limit) -> Rule {
    Rule { name: "mine".into(), metric, limit, min_samples: 20, hold: Duration::ZERO }
}

fn defaults() -> Judge {
    Judge::new(ObserveConfig::default().rules(), FALSE_ALARMS)
}

fn look(judge: &mut Judge, candidate: &Observed) -> Option<Verdict> {
    judge.look(Duration::from_secs(1), candidate, Against::Nothing)
}

#[test]
fn a_version_without_faults_is_left_alone() {
    assert_eq!(look(&mut defaults(), &seen(&[(10_000, 5)], 0)), None);
    assert_eq!(look(&mut defaults(), &seen(&[(10_000, 5)], 3)), None, "three of ten thousand are within the limit");
}

#[test]
fn a_single_non_finite_answer_is_enough() {
    let candidate = Observed { blamed: 1, nonfinite: 1, ..Observed::default() };
    let breach = look(&mut defaults(), &candidate).unwrap();
    assert_eq!(breach.to_string(), "non-finite outputs: 1 of 1 requests against at most 0");
}

#[test]
fn what_fails_always_is_found_with_the_first_samples_that_are_enough() {
    assert_eq!(look(&mut defaults(), &seen(&[], 19)), None, "fewer than are judged");
    let breach = look(&mut defaults(), &seen(&[], 20)).unwrap();
    assert_eq!((breach.rule.as_str(), breach.events, breach.samples), ("error rate", 20, 20));
    let high = Rule { name: "high".into(), ..rule(Metric::ErrorRate, Limit::AtMost(0.5)) };
    assert!(look(&mut by(high.clone()), &seen(&[(8, 1)], 12)).is_none(), "sixty per cent of twenty may be fifty");
    assert!(look(&mut by(high), &seen(&[], 20)).is_some());
}

#[test]
fn an_error_rate_is_told_with_its_samples_and_its_limit() {
    let breach = look(&mut defaults(), &seen(&[(208, 5)], 4)).unwrap();
    assert_eq!(
        breach.to_string(),
        "error rate: 4 of 212 requests, 1.9 % and 0.0979 % at least, against at most 0.05 %"
    );
    assert_eq!(look(&mut defaults(), &seen(&[(600, 5)], 4)), None, "four of so many may be chance");
    let told = breach.to_json();
    assert_eq!((&told["decided"], &told["unit"], &told["samples"]), (&"breach".into(), &"share".into(), &212.into()));
    assert!(told["significance"].as_f64().unwrap() <= 0.0005 && told["risk"] == 0.0005, "{told}");
}

#[test]
fn a_limit_of_one_is_never_broken_and_one_of_nothing_by_any_fault() {
    assert!(look(&mut by(rule(Metric::ErrorRate, Limit::AtMost(1.0))), &seen(&[], 500)).is_none());
    let none = rule(Metric::ErrorRate, Limit::AtMost(0.0));
    assert!(look(&mut by(none.clone()), &seen(&[(999, 1)], 0)).is_none());
    assert!(look(&mut by(none), &seen(&[(999, 1)], 1)).is_some());
}

#[test]
fn a_relative_rate_is_judged_against_what_the_other_version_is_shown_to_do() {
    let more = rule(Metric::ErrorRate, Limit::Above(0.01));
    let candidate = seen(&[(900, 1)], 100);
    let worse = |reference: &Observed| by(more.clone()).look(ms(1000), &candidate, Against::Beside(reference));
    assert!(worse(&seen(&[(9_000, 1)], 1_000)).is_none(), "both fail as often");
    let breach = worse(&seen(&[(9_900, 1)], 100)).unwrap();
    assert_eq!((breach.samples, breach.reference_samples, breach.against), (1_000, 10_000, Some(0.01)));
    assert!(breach.to_string().contains("more than the 1 % of the live version in 10000"), "{breach}");
    assert!(worse(&seen(&[(19, 1)], 0)).is_none(), "too little is known of the other");
    assert!(worse(&seen(&[(30, 1)], 0)).is_none(), "thirty without a fault do not show that it fails less");
    assert!(by(more).look(ms(1000), &candidate, Against::Nothing).is_none());
}

/// Looks every hundred requests, so many times.
fn hundreds(judge: &mut Judge, seen: &mut Observed, faults: u64, times: u64, live: Option<u64>) -> Option<Verdict> {
    (0..times).find_map(|_| {
        (faults..100).for_each(|_| seen.answer(ms(1)));
        seen.blamed += faults;
        let live = live.map(|blamed| Observed { answered: seen.requests(), blamed, ..Observed::default() });
        let against = live.as_ref().map_or(Against::Nothing, Against::Beside);
        judge.look(ms(10 * seen.requests()), seen, against)
    })
}

#[test]
fn what_begins_late_is_found_as_well() {
    let (mut judge, mut candidate) = (defaults(), Observed::default());
    assert_eq!(hundreds(&mut judge, &mut candidate, 0, 1_000, None), None);
    let breach = hundreds(&mut judge, &mut candidate, 5, 4, None).unwrap();
    let told = breach.to_string();
    assert!(told.contains("after 17 min, ") && breach.samples < 2_000, "{told}");
    assert!(breach.significance <= breach.risk, "{breach:?}");
    // A rate that is relative: where both begin to fail it is not the candidate.
    let more = || by(rule(Metric::ErrorRate, Limit::Above(0.01)));
    let (mut judge, mut candidate) = (more(), Observed::default());
    assert_eq!(hundreds(&mut judge, &mut candidate, 0, 1_000, Some(0)), None);
    assert!(hundreds(&mut judge, &mut candidate, 10, 10, Some(0)).is_some());
    let (mut judge, mut candidate) = (more(), Observed::default());
    assert_eq!(hundreds(&mut judge, &mut candidate, 0, 1_000, Some(0)), None);
    assert_eq!(hundreds(&mut judge, &mut candidate, 10, 10, Some(1_000)), None);
}

#[test]
fn agreement_is_to_be_at_least_so_large() {
    let agree = rule(Metric::ShadowAgreement, Limit::AtLeast(0.98));
    let compared = |count: u64, apart: u64| {
        let mut seen = Observed::default();
        (0..count).for_each(|n| seen.agreement.add(if n < apart { 0.0 } else { 1.0 }));
        seen
    };
    assert!(look(&mut by(agree.clone()), &compared(1_000, 19)).is_none());
    let breach = look(&mut by(agree.clone()), &compared(1_000, 60)).unwrap();
    assert!(breach.to_string().contains("0.9400 on average in 1000 answers"), "{breach}");
    let told = &by(agree.clone()).verdicts(&compared(5_000, 0), Against::Nothing)[0];
    assert_eq!((told.decided, told.seen), (Decided::Pass, Some(1.0)));
    // Answers that agree in part do not agree wholly, however few say something else first.
    let mut in_part = Observed::default();
    (0..500).for_each(|n| in_part.agreement.add(0.96 + 0.01 * f64::from(n % 2)));
    let mut held = by(Rule { hold: ms(2_000), ..agree });
    assert!(held.look(ms(1_000), &in_part, Against::Nothing).is_none());
    assert_eq!(held.verdicts(&in_part, Against::Nothing)[0].decided, Decided::Breaking);
    assert!(held.look(ms(3_000), &in_part, Against::Nothing).is_some());
}

/// Looks once a second, in each of which so many answers take so many milliseconds.
fn seconds(judge: &mut Judge, reference: &Observed, each: &[(u64, u64)]) -> Option<(usize, Verdict)> {
    let mut candidate = Observed::default();
    for (second, &(count, took)) in each.iter().enumerate() {
        (0..count).for_each(|_| candidate.answer(ms(took)));
        let at = Duration::from_secs(second as u64 + 1);
        if let Some(breach) = judge.look(at, &candidate, Against::Before(reference)) {
            return Some((second + 1, breach));
        }
    }
    None
}

#[test]
fn a_slow_version_is_found_after_as_many_seconds_as_it_must_hold() {
    let before = seen(&[(980, 20), (20, 40)], 0);
    let (second, breach) = seconds(&mut defaults(), &before, &[(100, 70); 10]).unwrap();
    assert_eq!(
        (second, breach.metric, breach.reference_samples),
        (4, Metric::P99, 1_000),
        "one more than that: when it began in the first is not known"
    );
    let mut early = defaults();
    assert!(seconds(&mut early, &before, &[(100, 70); 3]).is_none());
    let told = &early.verdicts(&seen(&[(300, 70)], 0), Against::Before(&before))[2];
    assert!(told.decided == Decided::Breaking && told.significance < 1e-6, "{told:?}");
    let told = breach.to_string();
    assert!(told.starts_with("p99 latency: 70") && told.contains("1.2 times that of the version before (40"), "{told}");
    assert!(seconds(&mut defaults(), &before, &[(100, 20); 100]).is_none());
}

#[test]
fn one_bad_second_is_no_slow_version() {
    let before = seen(&[(9_800, 20), (200, 40)], 0);
    let mut each = vec![(100, 20); 60];
    each[20] = (100, 500);
    assert!(seconds(&mut defaults(), &before, &each).is_none());
    let at_once = Rule { hold: Duration::ZERO, ..rule(Metric::P99, Limit::Times(1.2)) };
    assert!(seconds(&mut by(at_once), &before, &each).is_some_and(|(second, _)| second == 21));
}

#[test]
fn without_a_baseline_there_is_no_verdict_on_ratios() {
    let few = seen(&[(99, 20)], 0);
    assert!(seconds(&mut defaults(), &few, &[(100, 500); 10]).is_none());
    let told = &defaults().verdicts(&seen(&[(500, 5)], 0), Against::Nothing)[2];
    assert_eq!((told.decided, told.limit, told.seen.map(f64::round)), (Decided::Undecided, None, Some(5.0)));
}

#[test]
fn less_than_a_millisecond_is_no_ratio() {
    let mut quick = Observed::default();
    (0..5_000).for_each(|_| quick.answer(Duration::from_micros(200)));
    let mut slower = Observed::default();
    (0..5_000).for_each(|_| slower.answer(Duration::from_micros(900)));
    let mut judge = defaults();
    for second in 1..20 {
        assert!(judge.look(Duration::from_secs(second), &slower, Against::Before(&quick)).is_none());
    }
}

#[test]
fn an_absolute_latency_needs_no_other_version() {
    let budget = Rule { min_samples: 100, ..rule(Metric::P95, Limit::Time(ms(50))) };
    assert!(look(&mut by(budget.clone()), &seen(&[(960, 20), (40, 80)], 0)).is_none());
    let breach = look(&mut by(budget.clone()), &seen(&[(800, 20), (200, 80)], 0)).unwrap();
    assert!(breach.to_string().contains("against at most 50 ms"), "{breach}");
    let told = &by(budget).verdicts(&seen(&[(5_000, 20), (50, 80)], 0), Against::Nothing)[0];
    assert_eq!(told.decided, Decided::Pass, "{told:?}");
}

#[test]
fn a_reference_that_grows_is_taken_anew_and_each_time_has_its_share_of_the_risk() {
    let mut judge = by(Rule { min_samples: 100, ..rule(Metric::P99, Limit::Times(1.2)) });
    for (samples, taken) in [(99, None), (100, Some(100)), (399, Some(100)), (400, Some(400)), (6_400, Some(6_400))] {
        let live = seen(&[(samples, 20)], 0);
        assert!(judge.look(ms(samples), &seen(&[(200, 20)], 0), Against::Beside(&live)).is_none());
        assert_eq!(judge.rules[0].mark.map(|mark| mark.samples), taken);
    }
    assert!((judge.rules[0].mark.unwrap().nats - nats(FALSE_ALARMS / 8.0)).abs() < 1e-9);
    let slow = judge.look(ms(9_000), &seen(&[(200, 90)], 0), Against::Beside(&seen(&[(6_500, 20)], 0))).unwrap();
    assert!(slow.to_string().contains("that of the live version"), "{slow}");
}

#[test]
fn a_candidate_that_makes_the_live_version_as_slow_is_found_by_what_that_did_before() {
    let p99 = || Rule { min_samples: 100, ..rule(Metric::P99, Limit::Times(1.5)) };
    let slow = seen(&[(400, 90)], 0);
    let at = |mut judge: Judge, candidate: &Observed| judge.look(ms(5_000), candidate, Against::Beside(&slow));
    assert!(at(by(p99()), &slow).is_none(), "as slow as the one beside it");
    let earlier = || seen(&[(5_000, 20)], 0);
    let breach = at(by(p99()).and_earlier(earlier()), &slow).unwrap();
    let told = breach.to_string();
    assert!(told.contains("3 times that of the live version before (20.1 ms in 5000)"), "{told}");
    assert!(told.starts_with("mine, against before: "), "{told}");
    // Twice as slow as before may be the traffic's, and too few samples are no reference.
    assert!(at(by(p99()).and_earlier(earlier()), &seen(&[(400, 50)], 0)).is_none());
    assert_eq!(by(p99()).and_earlier(seen(&[(99, 20)], 0)).rules.len(), 1);
}

#[test]
fn the_risk_of_all_rules_is_that_of_the_window() {
    let risk: f64 = defaults().rules.iter().map(|judged| judged.risk).sum();
    assert!((risk - FALSE_ALARMS).abs() < 1e-12);
    let twice = defaults().and_earlier(seen(&[(500, 20)], 0));
    let risk: f64 = twice.rules.iter().map(|judged| judged.risk).sum();
    assert!((risk - FALSE_ALARMS).abs() < 1e-12 && twice.rules.len() == 6);
    let written = Judge::new(vec![rule(Metric::Nonfinite, Limit::Count(0))], FALSE_ALARMS);
    assert_eq!(written.rules[0].risk, 0.0, "a fact has none");
}

#[test]
fn no_limit_however_far_is_a_panic() {
    let far = ObserveConfig { max_p99_ratio: f64::MAX, ..Default::default() };
    let mut judge = Judge::new(far.rules(), FALSE_ALARMS);
    assert!(seconds(&mut judge, &seen(&[(500, 20)], 0), &[(500, 5_000); 5]).is_none());
}
