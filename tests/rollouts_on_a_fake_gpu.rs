//! Whole rollouts of the `cuda` build where there is no GPU: on a fake driver that keeps books (`tests/fake_gpu`).
//!
//! The same kernels run on the processor, so answers are held against those of a server on the CPU; and when a server has
//! ended the driver says what it left behind.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "rollouts_on_a_fake_gpu/chosen.rs"]
mod chosen;
mod common;
#[path = "rollouts_on_a_fake_gpu/graphs.rs"]
mod graphs;
#[path = "rollouts_on_a_fake_gpu/loads.rs"]
mod loads;
#[path = "rollouts_on_a_fake_gpu/parked.rs"]
mod parked;
#[path = "rollouts_on_a_fake_gpu/reclaims.rs"]
mod reclaims;

use std::path::Path;

use common::fake_gpu::{nothing_is_left, on_fake_gpu};
use common::tensors::with_tensors;
use common::{Server, Site, fixture, inputs};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn digits_are_answered_as_on_the_cpu_and_nothing_is_left_behind() {
    let cpu = Site::digits().start().await;
    let (site, report) = on_fake_gpu(Site::digits());
    let gpu = site.start().await;
    for digit in 0..10 {
        let png = inputs::digit(digit);
        let (on_cpu, on_gpu) = (cpu.image("digits", &png).await, gpu.image("digits", &png).await);
        let far = inputs::distance(&inputs::scores(&on_cpu.body), &inputs::scores(&on_gpu.body));
        assert!(far < 1e-4, "{digit}: {} {}", on_cpu.body, on_gpu.body);
    }
    gpu.promote("v2", json!({})).await.expect(200);
    assert_eq!(gpu.image("digits", &inputs::digit(3)).await.expect(200).version(), "v2");
    let settled = gpu.post("/admin/settle", json!({})).await.expect(200).body;
    reclaims::assert_came_back(&settled["figures"]["reclaim"]);
    nothing_is_left(gpu, &report).await;
}

/// A text model of a few kilobytes in two versions that differ in one layer, judged by nothing but finite answers.
fn texts() -> Site {
    let site = Site::new();
    site.model("texts", TEXTS);
    site.version("texts", "mean", &fixture("bert-embed-mean"));
    make_others(&site.version("texts", "tuned", &fixture("bert-embed-mean")), "layer.1.");
    site
}

/// Makes the tensors of a version others whose names have a part: the lowest bits of numbers, so that they mean the same.
fn make_others(version: &Path, part: &str) {
    with_tensors(version, |tensors| {
        let names = tensors.header.as_object().unwrap().keys().filter(|name| name.contains(part));
        for name in names.cloned().collect::<Vec<_>>() {
            tensors.bytes(&name).iter_mut().step_by(4).for_each(|byte| *byte ^= 1);
        }
    });
}

const TEXTS: &str = r#"
task = "embed"
live = "mean"
[gate]
max_latency_ratio = 1000.0
latency_rounds = 1
[observe]
window = "1h"
golden_every = "1h"
max_p99_ratio = 1000.0
"#;

async fn embedding(server: &Server) -> Vec<f64> {
    inputs::embedding(&server.texts("texts", &["a boat in the harbour"]).await.expect(200).body)
}

/// Holder, bytes used and reserved, in the order in which pools were made.
fn pools(memory: &Value) -> Vec<(String, u64, u64)> {
    let pools = memory["pools"].as_array().unwrap().iter();
    let of = |pool: &Value| {
        (pool["holder"].as_str().unwrap().into(), pool["used"].as_u64().unwrap(), pool["reserved"].as_u64().unwrap())
    };
    pools.map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn minilm_changes_its_precision_and_its_memory_comes_back_to_the_byte() {
    if !common::minilm::is_here() {
        return;
    }
    let site = Site::new();
    site.add_minilm();
    // What loads try beyond what is asked here would take the processor minutes.
    let (site, report) = on_fake_gpu(site.variable("FAKE_GPU_COLUMNS_COMPUTED", "512"));
    let gpu = site.start().await;
    let cases = common::minilm::reference();
    let ask = async |wanted: &str, most: f64| {
        for (text, want) in &cases[..4] {
            let answer = gpu.texts("minilm", &[text]).await.expect(200);
            let away = inputs::distance(want, &inputs::embedding(&answer.body));
            assert!(answer.version() == wanted && away < most, "{text}: {away} away by {}", answer.version());
        }
    };
    ask("f32", 1e-5).await;
    let before = gpu.memory().await;
    let [common, f32] = pools(&before).try_into().unwrap();
    assert_eq!((common.0.as_str(), f32.0.as_str()), ("shared by all", "minilm@f32"), "{before:#}");
    // 90 MB of weights and room for activations.
    assert!(f32.1 > 90_000_000 && f32.2 >= f32.1, "{before:#}");
    gpu.promote("f16", json!({ "observe": "0s" })).await.expect(200);
    ask("f16", 2e-3).await;
    let reclaim = common::until("f32 is reclaimed", async || {
        let memory = gpu.memory().await;
        memory["last_reclaims"]["minilm"].is_object().then(|| memory["last_reclaims"]["minilm"].clone())
    });
    let reclaim = reclaim.await;
    reclaims::assert_came_back(&reclaim);
    let after = gpu.memory().await;
    assert!(after["reserved"].as_u64() < before["reserved"].as_u64(), "{before:#} {after:#}");
    let [same, f16] = pools(&after).try_into().unwrap();
    assert_eq!((&same, f16.0.as_str()), (&common, "minilm@f16"), "{after:#}");
    assert!(f16.1 < f32.1, "{after:#}");
    let metrics = gpu.get("/metrics").await.expect(200).body.as_str().unwrap().to_owned();
    let generation = after["pools"][1]["generation"].as_u64().unwrap();
    let reserved =
        format!("cutover_vram_pool_reserved_bytes{{holder=\"minilm@f16\",generation=\"{generation}\"}} {}\n", f16.2);
    assert!(metrics.contains(&reserved), "{reserved}{metrics}");
    let returned = format!("cutover_last_reclaim_returned_bytes{{model=\"minilm\"}} {}\n", reclaim["returned"]);
    assert!(metrics.contains(&returned), "{returned}{metrics}");
    nothing_is_left(gpu, &report).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_swaps_leave_not_a_byte_behind() {
    let (site, report) = on_fake_gpu(texts());
    let server = site.start().await;
    let free = async || server.memory().await["vram"]["free"].as_u64().unwrap();
    let want = embedding(&server).await;
    // What the versions share stays in the pool of the first of them, beside that of whichever is live.
    let mut start = 0;
    for swap in 0..1000 {
        let to = if swap % 2 == 0 { "tuned" } else { "mean" };
        server.promote(to, json!({ "observe": "0s", "wait": "settled" })).await.expect(200);
        if swap == 1 {
            start = free().await;
        }
        if swap % 100 == 99 {
            assert_eq!(free().await, start, "after {} swaps", swap + 1);
            assert_eq!(embedding(&server).await, want);
        }
    }
    nothing_is_left(server, &report).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_allocation_fails_blue_serves_on_and_nothing_is_lost() {
    let (site, report) = on_fake_gpu(texts());
    let allocations = async |site: &Site| {
        let server = site.start().await;
        let promoted = server.promote("tuned", json!({ "observe": "0s", "wait": "settled" })).await;
        let served = server.texts("texts", &["a boat"]).await;
        let live = server.live("texts").await;
        let log = server.log();
        (promoted, served, live, nothing_is_left(server, &report).await, log)
    };
    let (promoted, _, live, whole, _) = allocations(&site).await;
    assert_eq!((promoted.status, live.as_str()), (200, "tuned"));
    let counts = &whole["counts"];
    let all = ["allocations", "pinned_allocations", "pool_growths"].map(|kind| counts[kind].as_u64().unwrap());
    // Those that it takes to start, and to bring blue up.
    let (fresh, report) = on_fake_gpu(texts());
    let counts = nothing_is_left(fresh.start().await, &report).await["counts"].take();
    let kinds = ["allocations", "pinned_allocations", "pool_growths"];
    let start: u64 = kinds.map(|kind| counts[kind].as_u64().unwrap()).iter().sum();
    let (mut refused_start, mut refused_blue, mut refused_green) = (0, 0, 0);
    for failing in 1..=all.iter().sum::<u64>() {
        let (site, _) = on_fake_gpu(texts());
        let report = site.path().join("gpu.json");
        let site = site.variable("FAKE_GPU_FAIL_ALLOC", failing.to_string());
        let Some(server) = site.try_start().await else {
            // What the process itself needs is not to be had: it says so and ends.
            refused_start += 1;
            continue;
        };
        let settled = json!({ "observe": "0s", "wait": "settled" });
        let blue = server.texts("texts", &["a boat"]).await;
        if blue.status != 200 {
            // It says so, and comes up when it is asked to: there is room again.
            refused_blue += 1;
            assert!(failing <= start && blue.status == 503, "{failing} of {start}: {}", blue.body);
            server.says("out of memory").await;
            server.promote("mean", settled.clone()).await.expect(200);
        }
        let blue = server.texts("texts", &["a boat"]).await.expect(200);
        assert_eq!(blue.version(), "mean", "{failing}");
        let promoted = server.promote("tuned", settled.clone()).await;
        if promoted.status != 200 {
            refused_green += 1;
            assert_eq!((promoted.status, promoted.kind()), (507, "no_room"), "{failing}: {}", promoted.body);
            assert_eq!(server.texts("texts", &["a boat"]).await.expect(200).version(), "mean", "{failing}");
            // There is room again.
            server.promote("tuned", settled).await.expect(200);
        }
        assert_eq!(server.texts("texts", &["a boat"]).await.expect(200).version(), "tuned", "{failing}");
        nothing_is_left(server, &report).await;
    }
    let refused = (refused_start, refused_blue, refused_green);
    assert!(refused_start > 5 && refused_blue > 0 && refused_green > 10, "starts, blues, greens: {refused:?}");
}

/// A server that has come up and will meet the fault. How often its start waits for the device depends on how busy the machine is.
async fn failing_later(mut site: Site, variable: &str, call: &str, nth: u32) -> Server {
    for times in [1, 4, 16, 64] {
        site = site.variable(variable, format!("{call}{}", nth * times));
        if let Some(server) = site.try_start().await {
            return server;
        }
    }
    panic!("{variable}: every start met it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_that_the_context_does_not_survive_ends_the_process_and_says_so() {
    // Somewhere in what the example and the first requests launch: kernels one by one, or what was recorded; and in a step that
    // was begun before the last one was told, or while that is waited for.
    let prompt = json!({ "model": "tiny", "prompt": "it", "max_tokens": 40, "ignore_eos": true, "temperature": 0 });
    for (writes, graphs, what, call, nth) in [
        (false, "false", "FAULT_LAUNCH", "", 60),
        (false, "true", "FAIL", "cuGraphLaunch:700:", 4),
        (true, "true", "FAIL", "cuGraphLaunch:700:", 9),
        (true, "true", "FAIL", "cuEventSynchronize:700:", 60),
    ] {
        let site = if writes { Site::new() } else { texts() };
        if writes {
            site.add_writer("tiny");
        }
        let (site, _) = on_fake_gpu(site.config(&format!("[device]\ngraphs = {graphs}\n")));
        let mut server = failing_later(site, &format!("FAKE_GPU_{what}"), call, nth).await;
        common::until("the device has failed", async || {
            let (path, order) = match writes {
                true => ("/v1/completions", prompt.clone()),
                false => ("/models/texts/infer", json!({ "inputs": ["a boat"] })),
            };
            let answer = server.request(reqwest::Method::POST, path).json(&order).send().await;
            answer.map_or(true, |answer| answer.status() != 200).then_some(())
        })
        .await;
        assert_eq!(server.ended().await, 70, "{}", server.log());
        assert!(server.log().contains("the device failed"), "{}", server.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_in_the_gate_strike_where_there_is_no_probation() {
    for kind in ["error", "panic", "non-finite"] {
        let (site, report) = on_fake_gpu(texts());
        let server = site.fault(&format!("version = 'texts@tuned'\nkind = '{kind}'\nat = 'gate'")).start().await;
        let promoted = server.promote("tuned", json!({})).await.expect(422);
        assert_eq!(promoted.kind(), "refused", "{kind}: {}", promoted.body);
        assert_eq!(server.texts("texts", &["a boat"]).await.expect(200).version(), "mean", "{kind}");
        nothing_is_left(server, &report).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_that_hangs_in_the_gate_ends_the_process_and_the_next_serves_what_was_live() {
    let (site, _) = on_fake_gpu(texts());
    let hangs = "version = 'texts@tuned'\nkind = 'hang'\nat = 'gate'";
    let site = site.config("[device]\nstall_after = '2s'\n").fault(hangs);
    let mut server = site.start().await;
    server.promote("tuned", json!({ "wait": "none" })).await.expect(202);
    assert_eq!(server.ended().await, 70, "{}", server.log());
    let server = site.start().await;
    assert_eq!(server.texts("texts", &["a boat"]).await.expect(200).version(), "mean");
}
