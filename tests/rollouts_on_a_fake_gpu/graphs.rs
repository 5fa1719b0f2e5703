//! Passes and steps that a load records: who records them, what becomes of them, and what happens where none can be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::common::fake_gpu::{nothing_is_left, on_fake_gpu};
use super::common::streams::alone;
use super::common::{Server, Site, inputs};
use super::{embedding, texts};
use futures_util::future::join_all;
use serde_json::{Value, json};

const AT_ONCE: fn() -> Value = || json!({ "observe": "0s", "wait": "settled" });

fn count(report: &Value, what: &str) -> u64 {
    report["calls"][what].as_u64().unwrap_or(0)
}

async fn of_several(server: &Server) -> Vec<f64> {
    let texts = ["a boat in the harbour", "the river", "a"];
    inputs::embedding(&server.texts("texts", &texts).await.expect(200).body)
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_the_same_with_graphs_and_without_and_the_record_says_what_was_made() {
    let mut answers = Vec::new();
    for graphs in [true, false] {
        let (site, report) = on_fake_gpu(texts().config(&format!("[device]\ngraphs = {graphs}\n")));
        let server = site.start().await;
        let mut got = vec![embedding(&server).await, of_several(&server).await];
        let promoted = server.promote("tuned", AT_ONCE()).await.expect(200);
        got.extend([embedding(&server).await, of_several(&server).await]);
        answers.push(got);
        let figures = &promoted.body["figures"];
        let report = nothing_is_left(server, &report).await;
        let (made, gone) = (count(&report, "cuGraphInstantiateWithFlags"), count(&report, "cuGraphExecDestroy"));
        assert_eq!(made, gone);
        if graphs {
            // As many for the second version as for the first, and every one recorded by itself.
            assert_eq!((figures["graphs"].as_u64(), count(&report, "cuStreamBeginCapture_v2")), (Some(made / 2), made));
            assert!(made > 20 && figures["graphs_ms"].as_f64().unwrap() > 0.0, "{figures:#}");
            assert!(count(&report, "cuGraphLaunch") >= 4);
        } else {
            assert_eq!((made, &figures["graphs"]), (0, &Value::Null));
        }
    }
    assert_eq!(answers[0], answers[1]);
}

/// As many tokens as fill some blocks of the cache, of a few texts side by side.
async fn some_texts(server: &Server) -> Vec<String> {
    let prompts: Vec<String> = (0..3).map(|number| format!("Text {number}: {}", "it ".repeat(10 * number))).collect();
    join_all(prompts.iter().map(|prompt| alone(server, "tiny", prompt, 24))).await
}

fn writers(config: &str) -> (Site, std::path::PathBuf) {
    let site = Site::new().config(config);
    site.add_writer("tiny");
    on_fake_gpu(site)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writers_steps_are_recorded_for_each_number_of_rows_and_the_record_says_so() {
    let mut texts = Vec::new();
    for graphs in [true, false] {
        let (site, report) = writers(&format!("[device]\ngraphs = {graphs}\n"));
        let server = site.start().await;
        let mut got = some_texts(&server).await;
        let promoted = server.promote("tiny@b", AT_ONCE()).await.expect(200);
        got.extend(some_texts(&server).await);
        texts.push(got);
        let figures = &promoted.body["figures"];
        let report = nothing_is_left(server, &report).await;
        let (made, gone) = (count(&report, "cuGraphInstantiateWithFlags"), count(&report, "cuGraphExecDestroy"));
        assert_eq!(made, gone);
        if graphs {
            // 1, 2, 4 and so on up to 64, for each of two versions.
            assert_eq!((figures["graphs"].as_u64(), made), (Some(7), 14), "{figures:#}");
            assert!(count(&report, "cuGraphLaunch") > 40, "{report:#}");
        } else {
            assert_eq!((made, &figures["graphs"]), (0, &Value::Null));
        }
    }
    assert_eq!(texts[0], texts[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writers_steps_that_cannot_be_recorded_run_op_by_op() {
    let (site, _) = writers("[device]\ngraphs = false\n");
    let want = some_texts(&site.start().await).await;
    for (fails, says) in [
        ("cuStreamBeginCapture_v2:801:1+", "could not all be made ready"),
        ("cuGraphInstantiateWithFlags:2:3+", "could not all be made ready"),
        ("cuGraphUpload:2:2", "could not all be made ready"),
        ("cuGraphLaunch:2:1+", "a recorded step fails"),
        ("cuGraphLaunch:2:9", "a recorded step fails"),
    ] {
        let (site, report) = writers("");
        let server = site.variable("FAKE_GPU_FAIL", fails).start().await;
        assert_eq!(some_texts(&server).await, want, "{fails}");
        server.says(says).await;
        let report = nothing_is_left(server, &report).await;
        assert_eq!(count(&report, "cuGraphInstantiateWithFlags") > 0, !fails.contains("Begin"), "{fails}: {report:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_change_under_load_and_every_graph_goes_with_its_own() {
    let (site, report) = on_fake_gpu(texts());
    let server = site.start().await;
    let mut wanted = Vec::new();
    for version in ["mean", "tuned"] {
        server.promote(version, AT_ONCE()).await.expect(200);
        wanted.push((version, embedding(&server).await));
    }
    let (wanted, stop) = (Arc::new(wanted), Arc::new(AtomicBool::new(false)));
    let clients = (0..4).map(|_| {
        let (client, wanted, stop) = (server.another(), Arc::clone(&wanted), Arc::clone(&stop));
        tokio::spawn(async move {
            let mut answered = 0;
            while !stop.load(Ordering::Relaxed) {
                let answer = client.texts("texts", &["a boat in the harbour"]).await.expect(200);
                let (_, want) = wanted.iter().find(|(version, _)| *version == answer.version()).unwrap();
                assert_eq!(&inputs::embedding(&answer.body), want, "{}", answer.version());
                answered += 1;
            }
            answered
        })
    });
    let clients: Vec<_> = clients.collect();
    for swap in 0..20 {
        server.promote(if swap % 2 == 0 { "mean" } else { "tuned" }, AT_ONCE()).await.expect(200);
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        assert!(client.await.unwrap() > 20);
    }
    let report = nothing_is_left(server, &report).await;
    assert_eq!(count(&report, "cuGraphInstantiateWithFlags"), count(&report, "cuGraphExecDestroy"));
    assert!(count(&report, "cuGraphLaunch") > 80);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_recorded_runs_op_by_op_and_no_version_is_refused_for_it() {
    for (fails, says, some) in [
        ("cuStreamBeginCapture_v2:801:1+", "could not all be made ready", false),
        ("cuGraphInstantiateWithFlags:2:3+", "could not all be made ready", true),
        ("cuGraphUpload:2:2", "could not all be made ready", true),
        // In the midst of a recording, and of what is looked up before.
        ("cublasLtMatmul:2:100", "could not all be made ready", true),
        ("cublasLtMatmul:2:3", "could not all be made ready", true),
        ("cuGraphLaunch:2:1+", "a recorded pass fails", true),
    ] {
        let (site, report) = on_fake_gpu(texts());
        let server = site.variable("FAKE_GPU_FAIL", fails).start().await;
        let got = [embedding(&server).await, of_several(&server).await];
        server.says(says).await;
        // What fails once does not for the next version.
        server.promote("tuned", AT_ONCE()).await.expect(200);
        embedding(&server).await;
        let whole = nothing_is_left(server, &report).await;
        assert_eq!(count(&whole, "cuGraphExecDestroy") > 0, some, "{fails}: {whole:#}");

        let (site, _) = on_fake_gpu(texts());
        let plain = site.start().await;
        assert_eq!(got, [embedding(&plain).await, of_several(&plain).await], "{fails}");
    }
}
