//! The way back and out: rollback, settle, abort, delete.

use serde_json::json;

use super::common::inputs::digit;
use super::common::{Site, until};
use super::{assert_back, settle};

#[tokio::test(flavor = "multi_thread")]
async fn promoting_the_previous_version_in_the_window_is_an_instant_rollback() {
    let site = Site::digits();
    let server = site.start().await;
    let reserved = server.reserved().await;
    let promoted = server.promote("v2", json!({})).await.expect(200);
    let back = server.promote("v1", json!({ "reason": "sevens got worse", "actor": "bob" })).await.expect(200);
    assert_eq!((back.id(), &back.body["kind"]), (promoted.id(), &json!("instant")));
    assert_eq!(server.image("digits", &digit(3)).await.expect(200).version(), "v1");
    let ended = until("the rollout has ended", async || {
        let rollout = server.rollout(&promoted.id()).await;
        (rollout["phase"] == "rolled_back").then_some(rollout)
    })
    .await;
    assert_eq!(ended["reason"], "sevens got worse");
    assert!(ended["figures"]["rollback_ms"].as_f64().is_some(), "{}", ended["figures"]);
    assert_back(&server, reserved).await;
    // There is nothing further back.
    assert_eq!(server.post("/admin/rollback", json!({})).await.expect(409).kind(), "conflict");
}

#[tokio::test(flavor = "multi_thread")]
async fn rollback_in_the_window_is_instant_and_keeps_the_reason() {
    let site = Site::digits();
    let server = site.start().await;
    let promoted = server.promote("v2", json!({})).await.expect(200);
    let order = json!({ "reason": "the pager went", "actor": "eve", "wait": "settled" });
    let back = server.post("/admin/rollback", order).await.expect(200);
    assert_eq!((back.id(), back.phase()), (promoted.id(), "rolled_back"));
    assert_eq!((&back.body["kind"], &back.body["reason"]), (&json!("instant"), &json!("the pager went")));
    assert_eq!(server.live("digits").await, "v1");
    // What was taken back can be promoted again.
    assert_eq!(server.promote("v2", json!({})).await.expect(200).phase(), "observing");
}

#[tokio::test(flavor = "multi_thread")]
async fn rollback_goes_where_it_was_told_to_and_twice_is_once() {
    let site = Site::digits();
    let server = site.start().await;
    server.promote("v2", json!({ "observe": "0s", "wait": "settled" })).await.expect(200);
    let back = async |order| server.post("/admin/rollback", order).await;
    // What is live already has been had, and another version than the one before is no way back.
    assert_eq!(back(json!({ "model": "digits@v2" })).await.expect(200).body["unchanged"], true);
    let elsewhere = back(json!({ "model": "digits@v3" })).await.expect(409);
    assert!(elsewhere.message().contains("'digits' goes back to 'v1', not to 'v3'"), "{}", elsewhere.message());
    let refused = server.post("/admin/settle", json!({ "model": "digits@v3" })).await.expect(409);
    assert!(refused.message().contains("'v3' is not live and cannot be settled: 'v2' is"), "{}", refused.message());
    assert_eq!(server.live("digits").await, "v2");
    let first = back(json!({ "model": "digits@v1" })).await.expect(200);
    // The network broke, or two were on call.
    for again in [json!({ "model": "digits@v1" }), json!({ "model": "digits" }), json!({})] {
        let again = back(again).await.expect(200);
        assert_eq!((again.id(), again.phase()), (first.id(), "observing"));
        assert_eq!(server.live("digits").await, "v1");
    }
    // Whoever wants the other one says so.
    assert_eq!(back(json!({ "model": "digits@v2" })).await.expect(200).id(), first.id());
    assert_eq!(server.live("digits").await, "v2");
}

#[tokio::test(flavor = "multi_thread")]
async fn rollback_with_nothing_to_go_back_to_is_a_conflict() {
    let site = Site::digits();
    let server = site.start().await;
    let refused = server.post("/admin/rollback", json!({})).await.expect(409);
    assert!(refused.message().contains("no previous version"), "{}", refused.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn rollback_after_settling_loads_the_previous_version_again() {
    let site = Site::digits();
    let server = site.start().await;
    let first = server.promote("v2", json!({ "observe": "0s", "wait": "settled" })).await.expect(200);
    let back = server.post("/admin/rollback", json!({ "reason": "second thoughts" })).await.expect(200);
    assert_ne!(back.id(), first.id());
    assert_eq!(
        (&back.body["kind"], &back.body["to"], &back.body["from"]),
        (&json!("cold"), &json!("v1"), &json!("v2"))
    );
    assert_eq!(server.image("digits", &digit(1)).await.expect(200).version(), "v1");
    // It is in a window of its own: going back from there is instant again, for whoever says where to.
    let again = server.post("/admin/rollback", json!({ "model": "digits@v2", "wait": "settled" })).await.expect(200);
    assert_eq!((again.id(), again.phase(), &again.body["kind"]), (back.id(), "rolled_back", &json!("instant")));
    assert_eq!(server.live("digits").await, "v2");
    // Both count as rollbacks, each with its time; the first rollout is the only deployment.
    let told = server.get("/admin/rollouts").await.expect(200).body;
    let record = &told["rollouts"][0];
    assert!(record["figures"]["cold_rollback_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{record}");
    let figures = &told["figures"];
    assert_eq!((&figures["deployments"], &figures["rollbacks"]), (&json!(1), &json!(2)), "{figures}");
    assert_eq!(figures["rollback_ms"]["count"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_while_a_candidate_waits_says_what_is_in_the_way() {
    let server = Site::digits().start().await;
    let staged = server.post("/models/v2/stage", json!({})).await.expect(200);
    let refused = server.post("/admin/rollback", json!({})).await.expect(409);
    for part in ["'v2' is ready and not live", "'v1' still serves", &format!("abort rollout {}", staged.id())] {
        assert!(refused.message().contains(part), "{part} is missing: {}", refused.message());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settling_before_the_switch_is_a_conflict() {
    let site = Site::digits();
    let server = site.start().await;
    server.post("/models/v2/stage", json!({})).await.expect(200);
    assert_eq!(settle(&server, "digits").await.expect(409).kind(), "conflict");
    assert_eq!(server.model("digits").await["candidate"]["phase"], "ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_stops_a_rollout_in_any_phase_before_its_switch() {
    let slow = |at: &str| format!("version = 'digits@v2'\nkind = 'delay'\nat = '{at}'\ndelay = '400ms'");
    for (at, phase) in [("load", "loading"), ("gate", "validating")] {
        let site = Site::digits().fault(&slow(at));
        let server = site.start().await;
        let before = server.reserved().await;
        let mut events = server.follow("v2", json!({})).await;
        let id = events.phase(phase).await["id"].as_str().unwrap().to_owned();
        let order = json!({ "reason": "wrong weights" });
        let aborted = server.post(&format!("/admin/rollouts/{id}/abort"), order).await.expect(200);
        assert_eq!((aborted.phase(), &aborted.body["reason"]), ("aborted", &json!("wrong weights")));
        let told = events.until("error", |event| event.name == "error").await;
        assert_eq!((&told.data["error"]["kind"], &told.data["rollout"]["id"]), (&json!("conflict"), &json!(id)));
        assert_eq!(server.live("digits").await, "v1");
        assert_back(&server, before).await;
        let late = server.post(&format!("/admin/rollouts/{id}/abort"), json!({})).await.expect(409);
        assert!(late.message().contains("ended"), "{}", late.message());
    }
}

/// A folder that takes minutes to read for its digests.
fn add_large_file(site: &Site) {
    let file = std::fs::File::create(site.models().join("digits/v2/optimizer.bin")).unwrap();
    // Sparse: it takes no room, and its zeros have to be read all the same.
    file.set_len(1 << 39).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_an_abort_nor_a_stop_waits_for_digests() {
    let site = Site::digits();
    add_large_file(&site);
    let mut server = site.start().await;
    for ending in ["abort", "stop"] {
        let began = server.promote("v2", json!({ "wait": "none" })).await.expect(202).id();
        until("digests are computed", async || (server.rollout(&began).await["phase"] == "loading").then_some(()))
            .await;
        let asked = std::time::Instant::now();
        match ending {
            "abort" => drop(server.post(&format!("/admin/rollouts/{began}/abort"), json!({})).await.expect(200)),
            _ => {
                server.terminate();
                assert_eq!(server.ended().await, 0);
            }
        }
        // Minutes, if it waited.
        assert!(asked.elapsed() < std::time::Duration::from_secs(10), "{ending} took {:?}", asked.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_after_the_switch_or_of_nothing_is_refused() {
    let site = Site::digits();
    let server = site.start().await;
    server.post("/admin/rollouts/nope/abort", json!({})).await.expect(404);
    let promoted = server.promote("v2", json!({})).await.expect(200);
    server.post(&format!("/admin/rollouts/{}/abort", promoted.id()), json!({})).await.expect(409);
    assert_eq!(server.live("digits").await, "v2");
    server.get("/admin/rollouts/nope").await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_frees_what_is_staged_or_previous_and_refuses_what_is_live() {
    let site = Site::digits();
    let server = site.start().await;
    let alone = server.reserved().await;
    server.post("/models/v2/stage", json!({})).await.expect(200);
    assert!(server.reserved().await > alone);
    assert_eq!(server.delete("/models/v2").await.expect(200).phase(), "aborted");
    assert_back(&server, alone).await;
    // It is not resident, and its files are still there.
    server.delete("/models/v2").await.expect(200);
    let live = server.delete("/models/v1").await.expect(409);
    assert!(live.message().contains("live"), "{}", live.message());

    server.promote("v2", json!({})).await.expect(200);
    let kept = server.delete("/models/v1").await.expect(409);
    assert!(kept.message().contains("settle"), "{}", kept.message());
    assert_eq!(server.model("digits").await["previous"]["version"], "v1");
    server.post("/admin/settle", json!({ "wait": "settled" })).await.expect(200);
    assert_eq!(server.delete("/models/v1").await.expect(200).body["resident"], false);
    server.delete("/models/nope").await.expect(404);
}
