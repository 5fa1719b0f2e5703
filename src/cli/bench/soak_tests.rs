//! The soak against a server that stays as it is, and against servers that do not.

use super::super::super::mock::{Faults, Mock};
use super::super::super::{Cli, Command};
use super::super::reading::Quantity;
use super::super::{BenchArgs, BenchCommand};
use super::*;
use clap::Parser as _;
use serde_json::Value;

fn args(mock: &Mock, more: &[&str]) -> SoakBench {
    let url = mock.url();
    let line = "cutover bench soak --model minilm --versions f32,f16 --switches 16 --every 1 --mishaps 50% --warmup 20ms \
                --steady 20ms --hold 1ms --pause 1ms --json - --rate 200 --url";
    let words = line.split_ascii_whitespace().chain([url.as_str()]).chain(more.iter().copied());
    match Cli::try_parse_from(words).unwrap().command {
        Command::Bench(BenchArgs { command: BenchCommand::Soak(args) }) => args,
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
async fn a_soak_that_could_judge_nothing_is_not_begun() {
    let mock = Mock::start(Faults::default()).await;
    let (few, nobody) = (args(&mock, &[]), args(&mock, &["--pid", "4294967295"]));
    let few = SoakBench { switches: 14, ..few };
    for (args, part) in [
        (few, "14 switches with a look after every 2 are 7 readings, and 8 are needed"),
        (nobody, "--pid 4294967295: there is no such process"),
    ] {
        let failure = run(&args, &mut Vec::new()).await.unwrap_err().to_string();
        assert!(failure.contains(part), "{failure}");
    }
    assert!(mock.asked().is_empty(), "{:?}", mock.asked());
}

#[tokio::test]
async fn a_server_that_stays_as_it_is_passes_with_every_mishap() {
    let dir = tempfile::tempdir().unwrap();
    let svg = dir.path().join("soak.svg");
    let faults = Faults { refused: Some("q8"), ..Faults::default() };
    let (results, passed) = results(faults, &["--refused", "q8", "--svg", svg.to_str().unwrap()]).await;
    assert!(passed, "{results}");
    assert_eq!((&results["switches"], &results["served"], &results["flat"]), (&json!(16), &json!(true), &json!(true)));
    let expected = json!({
        "aborted while loading": 2, "aborted while ready": 1, "aborted while validating": 1, "gone back from": 2, "refused": 2,
    });
    assert_eq!(results["mishaps"], expected, "{results}");
    // Two versions: the same one is live at every second switch.
    let readings = results["readings"].as_array().unwrap();
    assert_eq!(
        readings.iter().map(|r| r["switches"].as_u64().unwrap()).collect::<Vec<_>>(),
        [2, 4, 6, 8, 10, 12, 14, 16]
    );
    for quantity in Quantity::ALL {
        assert!(results["quantities"][quantity.name()]["last"].is_u64(), "{quantity:?}: {results}");
    }
    // Those that were gone back from had been switched to.
    assert_eq!(results["cycles"].as_array().unwrap().len(), 16 + 8);
    let audit = &results["audit"];
    assert_eq!((&audit["stale"], &audit["early"], &audit["foreign"]), (&json!(0), &json!(0), &json!(0)), "{audit}");
    assert!(std::fs::read_to_string(svg).unwrap().contains("</svg>"));
}

#[tokio::test]
async fn a_server_that_grows_is_caught_and_each_growth_named() {
    for (faults, grown, rest) in [
        (Faults { leak: 1 << 20, ..Faults::default() }, "resident size", "threads"),
        (Faults { stray: 1, ..Faults::default() }, "threads", "resident size"),
    ] {
        let (results, passed) = results(faults, &[]).await;
        assert!(!passed, "{results}");
        assert_eq!(results["served"], true, "{results}");
        let verdict = |name: &str| results["quantities"][name]["verdict"].as_str().unwrap();
        assert_eq!((verdict(grown), verdict(rest)), ("not_flat", "flat"), "{results}");
    }
}

#[tokio::test]
async fn a_gate_that_lets_a_bad_version_through_is_a_failure() {
    // The mock refuses no version unless it is told to.
    let (results, passed) = results(Faults::default(), &["--refused", "f16"]).await;
    assert!(!passed);
    assert_eq!(results["served"], false);
    let told = results["cycles"].as_array().unwrap().last().unwrap()["error"].as_str().unwrap();
    assert!(told.contains("the gate let f16 through"), "{told}");
}

#[tokio::test]
async fn dropped_requests_fail_the_soak() {
    let (results, passed) = results(Faults { fail_every: Some(50), ..Faults::default() }, &[]).await;
    assert!(!passed);
    assert_eq!((&results["served"], &results["flat"]), (&json!(false), &json!(true)), "{results}");
}
