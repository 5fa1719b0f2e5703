//! Room before a byte is read, tensors that versions share, and what comes back.

use std::path::Path;

use serde_json::json;

use super::common::inputs::{digit, distance, embedding};
use super::common::tensors::with_tensors;
use super::common::{Site, fixture};
use super::refusals::TEXT;
use super::{assert_back, history, settle};

#[tokio::test(flavor = "multi_thread")]
async fn settling_ends_the_window_and_gives_the_memory_back() {
    let site = Site::digits();
    let server = site.start().await;
    assert_eq!(settle(&server, "digits").await.expect(200).body["unchanged"], true);
    let alone = server.reserved().await;
    let promoted = server.promote("v2", json!({})).await.expect(200);
    let both = server.reserved().await;
    let settled = settle(&server, "digits").await.expect(200);
    assert_eq!((settled.id(), settled.phase()), (promoted.id(), "settled"));
    let reclaim = &settled.body["figures"]["reclaim"];
    let bytes = |name: &str| reclaim[name].as_u64().unwrap_or_else(|| panic!("{name} in {reclaim}"));
    assert!(bytes("promised") > 70_000 && bytes("returned") >= bytes("promised"), "{reclaim}");
    // Only the new version's room is held.
    assert_back(&server, both - alone).await;
    let gone = server.image("digits@v1", &digit(1)).await.expect(409);
    assert_eq!(gone.body["error"]["details"]["resident"], json!(["v2"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_with_the_sum_before_a_byte_is_read() {
    let site = Site::digits();
    let server = site.start().await;
    let memory = server.memory().await;
    let v1 = memory["reserved"].as_u64().unwrap();
    drop(server);
    // Room for v1 and 100 kB more; v2 takes six times that.
    let site = site.config(&format!("[device]\nmemory = {}", v1 + 100_000));
    let server = site.start().await;
    let refused = server.promote("v2", json!({})).await.expect(507);
    let details = &refused.body["error"]["details"];
    assert_eq!((refused.kind(), &details["reserved"]), ("no_room", &json!(v1)));
    assert_eq!((&details["capacity"], &details["holder"]), (&json!(v1 + 100_000), &json!("digits@v2")));
    let (weights, workspace) = (details["weights"].as_u64().unwrap(), details["workspace"].as_u64().unwrap());
    assert_eq!(details["needed"].as_u64().unwrap(), weights + workspace);
    for part in ["digits@v2 needs", "weights", "budget of", "digits@v1"] {
        assert!(refused.message().contains(part), "{part} is missing: {}", refused.message());
    }
    assert_eq!((server.live("digits").await, server.reserved().await), ("v1".into(), v1));
    assert_eq!(history(&server, "digits").await[0].1, "failed");
}

/// Changes one layer's tensors: how many bytes they take.
fn with_another_layer(dir: &Path, layer: &str) -> u64 {
    let mut changed = 0;
    with_tensors(dir, |tensors| {
        let names: Vec<String> = tensors.header.as_object().unwrap().keys().cloned().collect();
        for name in names.iter().filter(|name| name.contains(layer)) {
            let bytes = tensors.bytes(name);
            // The lowest bit of the mantissa of every f32.
            bytes.iter_mut().step_by(4).for_each(|byte| *byte ^= 1);
            changed += bytes.len() as u64;
        }
    });
    assert!(changed > 0, "no tensor of {layer}");
    changed
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_that_differ_in_one_layer_cost_one_layer() {
    let site = Site::new();
    site.model("texts", TEXT);
    site.version("texts", "mean", &fixture("bert-embed-mean"));
    let changed = with_another_layer(&site.version("texts", "tuned", &fixture("bert-embed-mean")), "layer.1.");
    with_another_layer(&site.version("texts", "other", &fixture("bert-embed-mean")), ".");
    let server = site.start().await;
    let held = async |version: &str| {
        let memory = server.memory().await;
        let all = memory["generations"].as_array().unwrap().iter().find(|held| held["version"] == version).cloned();
        let all = all.unwrap_or_else(|| panic!("{version} is not in {memory}"));
        (all["exclusive"].as_u64().unwrap(), all["shared"].as_u64().unwrap())
    };
    let (whole, nothing) = held("mean").await;
    assert_eq!(nothing, 0);
    let alone = server.reserved().await;

    let promoted = server.promote("tuned", json!({})).await.expect(200);
    let figure = |name: &str| promoted.body["figures"][name].as_u64().unwrap();
    assert_eq!((figure("loaded_bytes"), figure("shared_bytes")), (changed, whole - changed));
    assert_eq!(held("tuned").await, (changed, whole - changed));
    assert_eq!(held("mean").await, (changed, whole - changed));
    // Both work side by side, and not alike.
    let ask = async |reference: &str| embedding(&server.texts(reference, &["shared"]).await.expect(200).body);
    assert!(distance(&ask("texts@mean").await, &ask("texts@tuned").await) > 0.0);
    let mixed = ask("texts").await;

    // Only what nobody else holds comes back, and the new version goes on with the rest.
    let settled = settle(&server, "texts").await.expect(200);
    let reclaim = &settled.body["figures"]["reclaim"];
    let bytes = |name: &str| reclaim[name].as_u64().unwrap_or_else(|| panic!("{name} in {reclaim}"));
    assert_eq!((bytes("promised"), bytes("kept_shared")), (changed, whole - changed));
    assert!(bytes("returned") >= changed, "{reclaim}");
    assert_eq!(held("tuned").await, (whole, 0));
    assert_eq!(distance(&ask("texts").await, &mixed), 0.0);

    // The way back shares as well, and ends where it began: what was borrowed is freed with its last holder.
    let back = server.promote("mean", json!({ "observe": "0s", "wait": "settled" })).await.expect(200);
    assert_eq!(back.body["figures"]["loaded_bytes"], changed);
    assert_eq!(held("mean").await, (whole, 0));
    let twice = server.reserved().await;
    assert!((alone..alone + whole).contains(&twice), "{twice} bytes are reserved, {alone} were with one version");

    // The last who holds them gives back all of them, whoever had loaded them.
    let other = server.promote("other", json!({ "observe": "0s", "wait": "settled" })).await.expect(200);
    let reclaim = &other.body["figures"]["reclaim"];
    let bytes = |name: &str| reclaim[name].as_u64().unwrap_or_else(|| panic!("{name} in {reclaim}"));
    assert_eq!((bytes("promised"), bytes("kept_shared")), (whole, 0), "{reclaim}");
    assert!(bytes("returned") >= whole, "{reclaim}");
    assert!(!server.log().contains("less memory came back"), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn rollout_after_rollout_nothing_stays_behind() {
    const ROLLOUTS: usize = 100;
    let site = Site::new();
    site.model("texts", &TEXT.replace("'mean'", "'a'"));
    for version in ["a", "b"] {
        site.version("texts", version, &fixture("bert-embed-mean"));
    }
    let server = site.start().await;
    let turns = async || {
        for turn in 0..ROLLOUTS {
            let version = ["b", "a"][turn % 2];
            server.promote(version, json!({})).await.expect(200);
            settle(&server, "texts").await.expect(200);
        }
        server.memory().await["process_allocated"].as_u64().unwrap()
    };
    // What is made once and kept: caches of the ledger among it.
    let mut counts = vec![turns().await];
    // What threads keep of freed memory counts as allocated, and differs by chance: what stays behind grows every time.
    for _ in 0..3 {
        counts.push(turns().await);
    }
    let grown = counts.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).min().unwrap();
    assert!(grown < 3 * 1024 * ROLLOUTS as u64, "{grown} bytes more after {ROLLOUTS} rollouts: {counts:?}");
}
