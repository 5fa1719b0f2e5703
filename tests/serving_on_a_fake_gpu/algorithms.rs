//! Which of cublasLt's algorithms a server takes, and that it asks and tries no more often than it has to.

use serde_json::{Value, json};

use super::common::fake_gpu::{nothing_is_left, on_fake_gpu};
use super::common::inputs::{distance, embedding};
use super::common::tensors::with_tensors;
use super::common::{Site, fixture};
use super::{more, texts};

/// Seven tokens: no power of two, for which algorithms are asked.
const TEXT: &str = "a boat in the harbour";

#[tokio::test(flavor = "multi_thread")]
async fn what_an_algorithm_does_not_take_is_asked_for_once_and_then_known() {
    // Op by op: what is recorded has its algorithm in it.
    let site = || texts().config("[device]\ngraphs = false\n");
    let cpu = site().start().await;
    let want = embedding(&cpu.texts("texts", &[TEXT]).await.expect(200).body);
    let told = async |requests: usize| {
        let (site, report) = on_fake_gpu(site().variable("FAKE_GPU_PICKY_ALGORITHMS", "1"));
        let server = site.start().await;
        for _ in 0..requests {
            let far = distance(&want, &embedding(&server.texts("texts", &[TEXT]).await.expect(200).body));
            assert!(far < 1e-4, "{far}");
        }
        nothing_is_left(server, &report).await
    };
    let [none, few, many] = [told(0).await, told(5).await, told(25).await];
    let asked = "cublasLtMatmulAlgoGetHeuristic";
    assert!(more(asked, (&none, &few)) > 0, "seven rows are asked for apart");
    assert_eq!(more(asked, (&few, &many)), 0);
    // Nor is what does not do tried again.
    assert_eq!(more("cublasLtMatmul", (&few, &many)), more("matmuls", (&few, &many)));
    assert!(more("cublasLtMatmul", (&none, &few)) > more("matmuls", (&none, &few)));
}

/// What a server logged of trials: products, and those of which another algorithm was taken.
fn trials(log: &str) -> Vec<(u64, u64)> {
    let lines = log.lines().filter(|line| line.contains("were tried with every algorithm"));
    let field = |line: &str, name: &str| {
        let value = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("no {name}: {line}")).parse::<f64>().unwrap()
    };
    lines
        .map(|line| {
            assert!(field(line, "ms") > 0.0, "{line}");
            (field(line, "products") as u64, field(line, "changed") as u64)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fastest_algorithm_is_taken_and_what_one_version_has_found_is_the_next_ones_too() {
    let site = || {
        let site = Site::new();
        let toml = "task = \"embed\"\nlive = \"mean\"\n[gate]\nmax_latency_ratio = 1000.0\nlatency_rounds = 1\n";
        site.model("texts", &format!("{toml}[observe]\nmax_p99_ratio = 1000.0\n"));
        site.version("texts", "mean", &fixture("bert-embed-mean"));
        let tuned = site.version("texts", "tuned", &fixture("bert-embed-mean"));
        with_tensors(&tuned, |tensors| {
            // The lowest bits of numbers: other weights, of no other meaning.
            tensors.bytes("encoder.layer.1.output.dense.weight").iter_mut().step_by(4).for_each(|byte| *byte ^= 1);
        });
        site
    };
    let loaded = async |promotes: bool| -> (Vec<(u64, u64)>, Value) {
        // Large products take the processor no time, so that trials end with all their rounds.
        let site = site().variable("FAKE_GPU_ALGORITHMS", "3").variable("FAKE_GPU_COLUMNS_COMPUTED", "512");
        let (site, report) = on_fake_gpu(site.variable("FAKE_GPU_FIRST_ALGORITHM_MS", "1000"));
        let server = site.start().await;
        if promotes {
            server.promote("tuned", json!({})).await.expect(200);
        }
        server.texts("texts", &[TEXT]).await.expect(200);
        let log = server.says("were tried with every algorithm").await;
        (trials(&log), nothing_is_left(server, &report).await)
    };
    // Four products of a layer, of each of four powers of two of rows, tried once whatever has the same shapes.
    let (once, alone) = loaded(false).await;
    let (twice, both) = loaded(true).await;
    assert_eq!(once.iter().map(|(products, _)| products).collect::<Vec<_>>(), [&16], "{once:?}");
    assert_eq!(twice.iter().map(|(products, _)| products).collect::<Vec<_>>(), [&16], "{twice:?}");
    // Another took no time, so all were changed but for what ran out of its time on a busy machine.
    assert!(once[0].1 >= 8 && twice[0].1 >= 8, "{once:?} {twice:?}");
    assert_eq!(more("cublasLtMatmulAlgoGetHeuristic", (&alone, &both)), 0);
}
