//! What a version that writes must show beside the live one before it may.

use std::fs;

use serde_json::{Value, json};

use super::common::{Answer, Site};

const GOLDEN: &str = r#"{"id": "plain", "input": "It was a bright cold day and so on", "expect": {"max_perplexity": 1e30}}
{"id": "short", "input": "One more", "expect": {"max_perplexity": 1e30}}
"#;

/// Promotes `b`, the live version's weights rounded to f16, under these rules.
async fn promoted(gate: &str) -> Answer {
    let site = Site::new();
    site.add_writer("tiny");
    site.model("tiny", &format!("task = 'generate'\nlive = 'a'\n[gate]\nlatency_rounds = 2\n{gate}"));
    fs::write(site.models().join("tiny/golden.jsonl"), GOLDEN).unwrap();
    let server = site.start().await;
    server.promote("tiny@b", json!({})).await
}

/// Measures of a check, by case.
fn checks<'a>(gate: &'a Value, check: &str) -> Vec<(&'a str, f64)> {
    let of = gate.as_array().unwrap().iter().filter(|found| found["check"] == check);
    of.map(|found| (found["case"].as_str().unwrap_or(""), found["measure"].as_f64().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_and_times_are_compared_with_the_live_version_case_by_case() {
    let rollout = promoted("max_latency_ratio = 1000").await.expect(200).body;
    let gate = &rollout["gate"];
    let gaps = checks(gate, "logprob-agreement");
    assert_eq!(gaps.iter().map(|(case, _)| *case).collect::<Vec<_>>(), ["plain", "short"], "{gate}");
    // Rounded, and no more than that.
    assert!(gaps.iter().all(|(_, gap)| *gap > 0.0 && *gap < 0.05), "{gaps:?}");
    let shares = checks(gate, "greedy-agreement");
    assert!(shares.len() == 2 && shares.iter().all(|(_, share)| (0.0..=1.0).contains(share)), "{shares:?}");
    for check in ["latency-ratio", "token-latency-ratio"] {
        assert!(checks(gate, check).iter().all(|(_, ratio)| *ratio > 0.0) && checks(gate, check).len() == 1, "{gate}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_finds_other_texts_likely_is_refused() {
    let refused = promoted("max_latency_ratio = 1000\nmax_logprob_gap = 1e-9").await.expect(422);
    let failed = refused.body["error"]["details"]["failed"].as_array().unwrap();
    let names: Vec<&str> = failed.iter().map(|check| check["check"].as_str().unwrap()).collect();
    assert_eq!(names, ["logprob-agreement", "logprob-agreement"], "{}", refused.body);
    assert_eq!((&failed[0]["case"], failed[0]["limit"].as_f64()), (&json!("plain"), Some(1e-9)));
}
