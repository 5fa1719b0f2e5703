use super::super::load::Answer;
use super::*;

const MS: u64 = 1_000_000;

fn answer(started: u64, version: u16, pieces: &[u64]) -> Answer {
    let pieces: Vec<u64> = pieces.iter().map(|ms| ms * MS).collect();
    Answer {
        started: started * MS,
        ended: pieces.last().copied().unwrap_or(started * MS) + MS,
        stamp: version,
        outcome: Outcome::Status(200),
        tokens: pieces.len() as u64,
        pieces,
        prompt_tokens: 7,
    }
}

/// A second in which `b` takes over from `a`: asked at 400 ms, answered at 600.
fn run(answers: Vec<Answer>) -> Run {
    let stamp =
        |version: &str, generation: &str| Stamp { version: Some(version.into()), generation: Some(generation.into()) };
    let epoch = |version: &str, generation: &str, asked, answered| Epoch {
        version: version.into(),
        generation: Some(generation.into()),
        asked: asked * MS,
        answered: answered * MS,
    };
    let cycle = Cycle {
        from: "a".into(),
        to: "b".into(),
        asked: 400 * MS,
        answered: 600 * MS,
        settled: 700 * MS,
        spans: vec![super::super::super::driver::Span { phase: "loading".into(), from: 400 * MS, to: 600 * MS }],
        ..Cycle::default()
    };
    Run {
        blocks: Some(Blocks { used: 0, all: 64 }),
        model: "m".into(),
        clients: 2,
        from: 0,
        until: 1_000 * MS,
        generator_cpu: None,
        wanted: 1,
        cycles: vec![cycle],
        epochs: vec![epoch("a", "1", 0, 0), epoch("b", "2", 400, 600)],
        recording: Recording { answers, stamps: vec![stamp("a", "1"), stamp("b", "2")], ..Recording::default() },
    }
}

#[test]
fn a_stream_that_outlives_the_switch_is_no_fault_and_one_that_begins_late_on_the_old_version_is() {
    let across = answer(300, 0, &[310, 420, 450, 900]);
    let fresh = answer(650, 1, &[660, 670]);
    let clean = run(vec![across.clone(), fresh]);
    let parts = Parts::of(&clean);
    assert!(Analysis::of(&clean, &parts).unwrap().passed);
    let late = run(vec![across, answer(650, 0, &[660, 670])]);
    let parts = Parts::of(&late);
    let analysis = Analysis::of(&late, &parts).unwrap();
    assert_eq!((analysis.passed, analysis.audit.stale), (false, 1));
}

#[test]
fn times_are_of_the_place_where_they_begin_and_of_their_version() {
    let run = run(vec![answer(10, 0, &[20, 24, 420, 450]), answer(700, 1, &[730, 732, 734])]);
    let parts = Parts::of(&run);
    let told = Analysis::of(&run, &parts).unwrap().json(&run, &parts);
    // From 24 to 420 began before the rollout.
    assert_eq!(
        (&told["between_tokens"]["steady"]["requests"], &told["between_tokens"]["takeovers"]["requests"]),
        (&json!(4), &json!(1))
    );
    let near =
        |value: &Value, want: f64| assert!((value.as_f64().unwrap() / want - 1.0).abs() < 0.01, "{value} for {want}");
    near(&told["between_tokens"]["takeovers"]["p99_ms"], 30.0);
    near(&told["first_token"]["steady"]["max_ms"], 30.0);
    near(&told["tokens_per_second"], 7.0);
    let versions = told["between_tokens_by_version"].as_array().unwrap();
    assert_eq!((&versions[0]["version"], &versions[1]["takeovers"]["requests"]), (&json!("a"), &json!(0)));
    // Rounded to a hundredth.
    assert_eq!(versions[0]["p99_over_steady"], json!(0.08));
    assert_eq!((&told["tokens"], &told["prompt_tokens"], &told["switches"]), (&json!(7), &json!(14), &json!(1)));
}

#[test]
fn an_answer_that_failed_fails_the_run_and_so_does_none() {
    let mut broken = answer(10, 0, &[20]);
    broken.outcome = Outcome::Wrong;
    for answers in [vec![broken], Vec::new()] {
        let run = run(answers);
        let parts = Parts::of(&run);
        assert!(!Analysis::of(&run, &parts).unwrap().passed);
    }
}

#[test]
fn blocks_that_nobody_let_go_of_are_a_failure() {
    let metrics = "# TYPE cutover_kv_cache_blocks gauge\n\
                   cutover_kv_cache_blocks{model=\"m\",version=\"a\",state=\"used\"} 2\n\
                   cutover_kv_cache_blocks{model=\"m\",version=\"b\",state=\"free\"} 60\n\
                   cutover_kv_cache_blocks{model=\"m\",version=\"b\",state=\"cached\"} 2\n\
                   cutover_kv_cache_blocks{model=\"other\",version=\"b\",state=\"used\"} 9\n";
    assert_eq!(Blocks::of(metrics, "m"), Some(Blocks { used: 2, all: 64 }));
    assert_eq!(Blocks::of(metrics, "nothing"), None);
    let whole = || run(vec![answer(300, 0, &[310, 420, 450, 900]), answer(650, 1, &[660, 670])]);
    let passes = |run: &Run| Analysis::of(run, &Parts::of(run)).unwrap().passed;
    assert!(passes(&whole()) && passes(&Run { blocks: None, ..whole() }));
    assert!(!passes(&Run { blocks: Some(Blocks { used: 1, all: 64 }), ..whole() }));
}
