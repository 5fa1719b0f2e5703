//! `cutover bench chat` against a server whose versions are switched while its clients read.

use std::process::Command;

use serde_json::{Value, json};

use super::common::{Server, Site, root};

/// Its report, and whether it passed.
async fn bench(server: &Server, more: &[&str]) -> (Value, bool) {
    let (url, more) = (server.url.clone(), more.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
    let ran = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cutover"));
        command.args(["bench", "chat", "--model", "tiny", "--json", "-", "--warmup", "50ms", "--url", &url]);
        command.args(more).current_dir(root()).output().unwrap()
    });
    let output = ran.await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no report: {said}"));
    (report, output.status.success())
}

/// Each step takes so long that streams outlive switches.
fn site(kind: &str) -> Site {
    let delay = |version: &str| format!("version = 'tiny@{version}'\nkind = 'delay'\ndelay = '4ms'");
    let site = Site::new().fault(&delay("a")).fault(&delay("b")).fault(kind);
    site.add_writer("tiny");
    site
}

const STEP_MS: f64 = 4.0;

#[tokio::test(flavor = "multi_thread")]
async fn a_steady_run_tells_first_tokens_times_between_tokens_and_speed() {
    let server = site("version = 'tiny@c'\nkind = 'delay'\ndelay = '1ms'").start().await;
    let line =
        ["--clients", "4", "--prompt-words", "5,40", "--max-tokens", "10", "--ignore-eos", "--duration", "600ms"];
    let (report, passed) = bench(&server, &line).await;
    assert!(passed, "{report}");
    let answers = report["answers"]["requests"].as_u64().unwrap();
    assert!(answers >= 8 && report["answers"]["failures"] == json!({}), "{report}");
    assert_eq!(report["tokens"].as_u64().unwrap(), 10 * answers);
    assert!(report["first_token"]["steady"]["p50_ms"].as_f64().unwrap() >= STEP_MS, "{report}");
    assert!(report["between_tokens"]["steady"]["p50_ms"].as_f64().unwrap() >= STEP_MS / 2.0, "{report}");
    // Four at once, a token each in a step at most.
    let speed = report["tokens_per_second"].as_f64().unwrap();
    assert!(speed > 1.0 && speed <= 4.0 * 1000.0 / STEP_MS, "{speed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_read_through_switches_and_each_is_of_one_version() {
    let server = site("version = 'tiny@c'\nkind = 'delay'\ndelay = '1ms'").start().await;
    let drawing = tempfile::tempdir().unwrap();
    let svg = drawing.path().join("chat.svg").to_str().unwrap().to_owned();
    let line = [
        "--clients",
        "6",
        "--max-tokens",
        "60",
        "--ignore-eos",
        "--check",
        "--corpus",
        "6",
        "--duration",
        "300ms",
        "--versions",
        "a,b",
        "--switches",
        "3",
        "--hold",
        "50ms",
        "--pause",
        "400ms",
        "--svg",
        &svg,
    ];
    let (report, passed) = bench(&server, &line).await;
    assert!(passed, "{report}");
    assert_eq!((&report["switches"], &report["answers"]["failures"]), (&json!(3), &json!({})));
    let audit = &report["audit"];
    assert_eq!(
        (&audit["stale"], &audit["early"], &audit["foreign"], &audit["unstamped"]),
        (&json!(0), &json!(0), &json!(0), &json!(0))
    );
    assert!(report["compared"].as_u64().unwrap() > 0, "{report}");
    // Gaps were read while versions took over, of both of them.
    let versions = report["between_tokens_by_version"].as_array().unwrap();
    let names: Vec<&str> = versions.iter().map(|of| of["version"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "b"]);
    assert!(versions.iter().all(|of| of["takeovers"]["requests"].as_u64().unwrap() > 0), "{report}");
    assert!(report["between_tokens"]["p99_over_steady"]["takeovers"].as_f64().unwrap() > 0.0);
    let drawn = std::fs::read_to_string(svg).unwrap();
    assert!(drawn.contains("3 switches in mid-sentence") && drawn.ends_with("</svg>\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_break_off_are_counted_and_fail_the_bench() {
    // No version before it, so nobody goes on for it.
    let server = site("version = 'tiny@a'\nkind = 'error'\nrate = 0.2").start().await;
    let line = ["--clients", "4", "--max-tokens", "40", "--ignore-eos", "--duration", "1s"];
    let (report, passed) = bench(&server, &line).await;
    assert!(!passed, "{report}");
    let failures = report["answers"]["failures"].as_object().unwrap();
    assert!(failures.values().map(|count| count.as_u64().unwrap()).sum::<u64>() > 0, "{report}");
    assert!(!report["examples"].as_array().unwrap().is_empty());
}
