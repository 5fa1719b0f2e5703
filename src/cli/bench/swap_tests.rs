//! The swap bench against a server that is right, and against servers that break a promise each.

use super::super::super::mock::{Faults, Mock};
use super::super::super::{Cli, Command};
use super::super::driver::{Memory, Span, flatten, push_span, spans};
use super::super::session::parse_versions;
use super::super::{BenchArgs, BenchCommand};
use super::*;
use clap::Parser as _;
use serde_json::Value;

fn args(mock: &Mock, more: &[&str]) -> SwapBench {
    let url = mock.url();
    let line = "cutover bench swap --model minilm --versions f32,f16 --switches 3 --warmup 20ms --steady 200ms --hold 30ms \
                --pause 30ms --json - --rate 400 --url";
    let words = line.split_ascii_whitespace().chain([url.as_str()]).chain(more.iter().copied());
    match Cli::try_parse_from(words).unwrap().command {
        Command::Bench(BenchArgs { command: BenchCommand::Swap(args) }) => args,
        other => panic!("{other:?}"),
    }
}

async fn results(faults: Faults, more: &[&str]) -> (Value, bool) {
    let mock = Mock::start(faults).await;
    let mut out = Vec::new();
    let passed = match run(&args(&mock, more), &mut out).await {
        Ok(()) => true,
        Err(Failure::Reported) => false,
        Err(other) => panic!("{other}"),
    };
    (serde_json::from_slice(&out).unwrap(), passed)
}

#[tokio::test]
async fn a_server_that_keeps_its_promises_passes() {
    let dir = tempfile::tempdir().unwrap();
    let svg = dir.path().join("swap.svg");
    let faults = Faults { service: Duration::from_millis(2), ..Faults::default() };
    let (results, passed) = results(faults, &["--check", "--svg", svg.to_str().unwrap(), "--requests", "300"]).await;
    assert!(passed, "{results}");
    assert_eq!(results["switches"], 3);
    let audit = &results["audit"];
    assert_eq!((&audit["stale"], &audit["early"], &audit["foreign"]), (&json!(0), &json!(0), &json!(0)), "{audit}");
    assert!(results["requests"].as_u64().unwrap() >= 300);
    let phases: Vec<&str> =
        results["phases"].as_array().unwrap().iter().map(|p| p["phase"].as_str().unwrap()).collect();
    assert_eq!(phases, ["reserving", "loading", "validating", "observing", "reclaiming"]);
    for part in ["steady", "rollouts", "takeovers", "near_switch"] {
        assert!(results[part]["p99_ms"].as_f64().unwrap() >= 2.0, "{part}: {results}");
    }
    let (steady, rollouts) = (&results["steady"], &results["rollouts"]);
    // Every measured request is steady or in a rollout, and steady pieces lie between the rollouts too: 200 ms before
    // the first one are 80 requests, three pauses of 30 ms are 36 more.
    assert!(steady["requests"].as_u64().unwrap() >= 100, "{results}");
    let ratio = rollouts["p99_ms"].as_f64().unwrap() / steady["p99_ms"].as_f64().unwrap();
    assert!((results["p99_over_steady"]["rollouts"].as_f64().unwrap() - ratio).abs() < 0.01, "{results}");
    let cycles = results["cycles"].as_array().unwrap();
    let way: Vec<_> = cycles.iter().map(|c| (c["from"].as_str().unwrap(), c["to"].as_str().unwrap())).collect();
    assert_eq!(way, [("f32", "f16"), ("f16", "f32"), ("f32", "f16")]);
    assert!(cycles.iter().all(|c| c["memory_after"]["devices cpu reserved"] == 2 << 20), "{results}");
    assert!(std::fs::read_to_string(svg).unwrap().contains("</svg>"));
}

#[tokio::test]
async fn an_old_version_that_goes_on_answering_is_caught() {
    let (results, passed) = results(Faults { stale_for: Duration::from_millis(20), ..Faults::default() }, &[]).await;
    assert!(!passed);
    assert!(results["audit"]["stale"].as_u64().unwrap() >= 3, "{results}");
    let worst = results["audit"]["worst_stale_ms"].as_f64().unwrap();
    assert!((5.0..=40.0).contains(&worst), "{worst}");
}

#[tokio::test]
async fn dropped_requests_are_counted_and_fail_the_bench() {
    let (results, passed) = results(Faults { fail_every: Some(50), ..Faults::default() }, &[]).await;
    assert!(!passed);
    assert!(results["steady"]["failures"]["503"].as_u64().unwrap() >= 1, "{results}");
}

#[tokio::test]
async fn weights_under_the_wrong_name_are_caught_by_checking_answers() {
    let faults = || Faults { mixed_up: true, ..Faults::default() };
    let (unchecked, passed) = results(faults(), &[]).await;
    assert!(passed, "the stamps alone look right: {unchecked}");
    let (checked, passed) = results(faults(), &["--check", "--corpus", "4"]).await;
    assert!(!passed, "{checked}");
    assert!(checked["rollouts"]["failures"]["wrong answer"].as_u64().unwrap() > 0, "{checked}");
}

#[tokio::test]
async fn a_refused_version_ends_the_bench_and_is_told() {
    let (results, passed) = results(Faults { refuse: true, ..Faults::default() }, &[]).await;
    assert!(!passed);
    assert_eq!(results["switches"], 0);
    assert_eq!(results["cycles"][0]["error"], "the gate refused it");
}

#[tokio::test]
async fn versions_that_the_model_does_not_have_are_a_usage_error() {
    let mock = Mock::start(Faults::default()).await;
    let mut args = args(&mock, &[]);
    args.switching.versions = parse_versions("f32,f8").unwrap();
    let failure = run(&args, &mut Vec::new()).await.unwrap_err();
    assert!(matches!(&failure, Failure::Usage(text) if text.contains("no version f8; it has f32, f16")), "{failure}");
}

#[test]
fn phases_are_laid_end_to_end_from_the_question_on() {
    let marks = [("reserving".to_owned(), 12), ("loading".to_owned(), 20)];
    let span = |phase: &str, from, to| Span { phase: phase.to_owned(), from, to };
    assert_eq!(spans(&marks, 10, 30), [span("reserving", 10, 20), span("loading", 20, 30)]);
    assert_eq!(spans(&[], 10, 30), [span("promoting", 10, 30)]);
    let mut all = spans(&[("observing".to_owned(), 28)], 10, 30);
    push_span(&mut all, "observing", 30, 50);
    assert_eq!(all, [span("observing", 10, 50)]);
}

#[test]
fn memory_is_flattened_under_readable_names() {
    let mut memory = Memory::new();
    let body =
        json!({"devices": [{"device": "cpu", "reserved": 5, "load": 0.5}], "generations": [{"shared": 2}], "rss": 7});
    flatten("", &body, &mut memory);
    let expected = [("devices cpu reserved", 5), ("generations 0 shared", 2), ("rss", 7)];
    assert_eq!(memory, expected.map(|(name, value)| (name.to_owned(), value)).into());
}
