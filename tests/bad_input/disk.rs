//! A disk without room under the ledger: a promote comes to nothing, a rollback happens all the same.

use serde_json::{Value, json};

use crate::common::disk::{self, fill};
use crate::common::http::Event;
use crate::common::inputs::digit;
use crate::common::{Server, Site, until};

fn site() -> Site {
    Site::digits().wrapped(disk::WRAPPER)
}

/// Waits until the version's digests have been recorded: no load has to write them from then on.
async fn seen(server: &Server, version: &str) {
    let mut events = server.stream(reqwest::Method::GET, "/admin/events?after=0", Value::Null).await;
    let manifest = |event: &Event| event.name == "manifest" && event.data["body"]["version"] == version;
    events.until("the version's manifest", manifest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promote_that_cannot_be_written_down_comes_to_nothing() {
    if !disk::can_be_filled() {
        return;
    }
    let server = site().start().await;
    seen(&server, "v2").await;
    fill(&server, true);
    let mut events = server.follow("v2", json!({})).await;
    let failed = events.until("the end", |event| event.name == "error").await.data;
    let rollout = &failed["rollout"];
    assert_eq!(rollout["phase"], "aborted", "{failed}");
    assert!(rollout["reason"].as_str().unwrap().contains("ledger"), "{failed}");
    server.promote("v2", json!({})).await.expect(500);
    let model = server.model("digits").await;
    assert_eq!((&model["live"]["version"], &model["candidate"]), (&json!("v1"), &Value::Null));
    assert_eq!(server.image("digits", &digit(1)).await.expect(200).version(), "v1");
    fill(&server, false);
    assert_eq!(server.promote("v2", json!({})).await.expect(200).phase(), "observing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_on_a_full_disk_is_in_force_at_once_and_written_down_when_there_is_room() {
    if !disk::can_be_filled() {
        return;
    }
    let site = site();
    let mut server = site.start().await;
    let mut events = server.stream(reqwest::Method::GET, "/admin/events", Value::Null).await;
    let promoted = server.promote("v2", json!({})).await.expect(200);
    fill(&server, true);
    let back = server.post("/admin/rollback", json!({ "reason": "a drill", "wait": "settled" })).await.expect(200);
    assert_eq!((back.phase(), &back.body["kind"]), ("rolled_back", &json!("instant")));
    assert!(back.body["warnings"][0].as_str().unwrap().contains("not in the ledger yet"), "{}", back.body);
    assert_eq!(server.image("digits", &digit(1)).await.expect(200).version(), "v1");
    // What has happened is told, and told again when it is written.
    let back = |event: &Event| event.name == "rolled_back";
    let unwritten = events.until("rolled_back", back).await;
    assert!(unwritten.id.is_none() && unwritten.data["seq"].as_i64() < Some(0), "{unwritten:?}");
    fill(&server, false);
    assert!(events.until("rolled_back", back).await.id.is_some());
    until("the end is written", async || {
        let listed = server.get("/admin/rollouts").await.expect(200).body["rollouts"].clone();
        (listed[0]["phase"] == "rolled_back").then_some(())
    })
    .await;
    server.kill();
    let (whole, said) = site.verify();
    assert!(whole, "{said}");
    let server = site.start().await;
    assert_eq!(server.live("digits").await, "v1");
    assert_eq!(server.rollout(&promoted.id()).await["phase"], "rolled_back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_that_is_written_late_does_not_undo_what_came_after_it() {
    if !disk::can_be_filled() {
        return;
    }
    let site = site();
    let mut server = site.start().await;
    server.promote("v2", json!({})).await.expect(200);
    fill(&server, true);
    server.post("/admin/rollback", json!({ "wait": "settled" })).await.expect(200);
    fill(&server, false);
    // Before the rollback is tried again, or after: the last word is the promote's.
    let promoted = server.promote("v2", json!({})).await.expect(200);
    assert_eq!(promoted.phase(), "observing");
    until("nothing is left to be written", async || {
        let listed = server.get("/admin/rollouts").await.expect(200).body["rollouts"].clone();
        (listed[1]["phase"] == "rolled_back").then_some(())
    })
    .await;
    server.kill();
    assert_eq!(site.start().await.live("digits").await, "v2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_starts_on_a_full_disk_serves_what_was_live() {
    if !disk::can_be_filled() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let full = folder.path().join("full");
    let script = format!("trap '' XFSZ; test ! -e '{}' || ulimit -f 0; exec \"$@\"", full.display());
    let site = Site::digits().wrapped(&script);
    let mut server = site.start().await;
    server.promote("v2", json!({})).await.expect(200);
    server.kill();
    std::fs::write(&full, "").unwrap();
    let server = site.start().await;
    assert_eq!(server.image("digits", &digit(1)).await.expect(200).version(), "v2");
    let refused = server.promote("v1", json!({})).await;
    assert!(refused.status >= 500, "{refused:?}");
    assert_eq!(server.live("digits").await, "v2");
}
