//! Where two versions do not fit, and the one that writes goes before the next comes.

use std::fs;

use serde_json::json;

use super::common::streams::{alone, begun, order, streamed};
use super::common::{Server, Site};

const RULES: &str = "task = 'generate'\nlive = 'a'\n[gate]\nmax_latency_ratio = 1000\n[rollout]\nmode = 'replace'\n\
                     [observe]\nwindow = '0s'\n";

/// The tiny model in `replace` mode, each step of `a` slowed down so that what it writes lasts.
async fn replacing(more: &str) -> (Site, Server) {
    let site = Site::new().fault("version = 'tiny@a'\nkind = 'delay'\ndelay = '10ms'");
    site.add_writer("tiny");
    site.model("tiny", &format!("{RULES}{more}"));
    let server = site.start().await;
    (site, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_written_is_written_to_its_end_before_the_next_version_is_read() {
    let (_site, server) = replacing("").await;
    let whole = alone(&server, "tiny@a", "a long", 60).await;
    let text = begun(&server, order("tiny", "a long", 60)).await;
    let mut events = server.follow("tiny@b", json!({ "wait": "settled" })).await;
    events.phase("draining").await;
    assert!(!text.is_finished(), "the drain began in the middle");
    let meanwhile = server.post("/v1/completions", order("tiny", "a", 1)).await.expect(503);
    assert!(meanwhile.header("retry-after").parse::<u64>().unwrap() >= 1);
    events.phase("reserving").await;
    let text = text.await.unwrap();
    assert_eq!((text.version.as_str(), text.reason.as_deref(), text.done), ("a", Some("length"), true));
    assert_eq!((&text.text, &text.error), (&whole, &None));
    assert_eq!(events.until("done", |event| event.name == "done").await.data["phase"], "settled");
    assert_eq!(streamed(&server, order("tiny", "a", 4), || ()).await.version, "b");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_end_in_time_is_cut_short_where_that_is_wanted() {
    let (_site, server) = replacing("drain_timeout = '200ms'\non_drain_timeout = 'length'\n").await;
    let text = begun(&server, order("tiny", "a", 200)).await;
    server.promote("tiny@b", json!({ "wait": "settled" })).await.expect(200);
    let text = text.await.unwrap();
    assert_eq!((text.version.as_str(), text.reason.as_deref(), text.done), ("a", Some("length"), true));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_version_before_writes_again_when_the_next_cannot_be_loaded() {
    let (site, server) = replacing("").await;
    let before = alone(&server, "tiny", "once", 20).await;
    let broken = site.models().join("tiny").join("d");
    fs::create_dir_all(&broken).unwrap();
    let file = fs::read(site.models().join("tiny").join("a").join("tiny.gguf")).unwrap();
    // Whole but for its last weights.
    fs::write(broken.join("tiny.gguf"), &file[..file.len() - 64]).unwrap();
    server.promote("tiny@d", json!({})).await.expect(422);
    assert_eq!(alone(&server, "tiny", "once", 20).await, before);
    let memory = server.get("/admin/memory").await.expect(200).body;
    assert_eq!(memory["generations"].as_array().map(Vec::len), Some(1), "{memory}");
}
