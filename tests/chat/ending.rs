//! The end of the server, while texts are being written.

use std::time::{Duration, Instant};

use serde_json::json;

use super::common::streams::{Streamed, begun, order};
use super::common::{Server, Site, until};

/// A text of a minute that has begun, on a server with these settings.
async fn writing(settings: &str) -> (Site, Server, tokio::task::JoinHandle<Streamed>) {
    let site = Site::new().fault("version = 'tiny@a'\nkind = 'delay'\ndelay = '300ms'").config(settings);
    site.add_writer("tiny");
    site.model("tiny", "task = 'generate'\nlive = 'a'\n");
    let server = site.start().await;
    let text = begun(&server, order("tiny", "a", 200)).await;
    (site, server, text)
}

async fn was_cut(mut server: Server, text: tokio::task::JoinHandle<Streamed>) {
    let began = Instant::now();
    assert_eq!(server.ended().await, 0, "{}", server.log());
    assert!(began.elapsed() < Duration::from_secs(30), "all of it was written");
    let text = text.await.unwrap();
    assert_eq!((text.reason.as_deref(), text.done, &text.error), (Some("length"), true, &None));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_still_written_after_the_drain_timeout_ends_where_it_is() {
    let (_site, server, text) = writing("[server]\ndrain_timeout = '1s'\n").await;
    server.terminate();
    was_cut(server, text).await;
}

/// The window's end reclaims what was live before, and a text holds that.
#[tokio::test(flavor = "multi_thread")]
async fn nor_is_it_waited_for_by_a_rollout_that_ends_with_the_server() {
    for again in [false, true] {
        let timeout = if again { "10m" } else { "1s" };
        let (_site, server, text) = writing(&format!("[server]\ndrain_timeout = '{timeout}'\n")).await;
        let promoted = server.promote("c", json!({ "observe": "1h" })).await.expect(200);
        assert_eq!(promoted.phase(), "observing");
        server.terminate();
        if again {
            server.says("stopping").await;
            server.terminate();
        }
        was_cut(server, text).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_is_not_waited_after() {
    let (_site, server, text) = writing("[server]\ndrain_timeout = '10m'\n").await;
    server.terminate();
    server.says("stopping").await;
    server.terminate();
    was_cut(server, text).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_while_only_memory_is_awaited_changes_nothing_of_how_a_rollout_ended() {
    // A text that is being written holds the memory of the version that goes.
    for (goes, path, phase, reason, live) in
        [("c", "/admin/rollback", "rolled_back", "as tried", "a"), ("a", "/admin/settle", "settled", "friday", "c")]
    {
        let site = Site::new().fault(&format!("version = 'tiny@{goes}'\nkind = 'delay'\ndelay = '300ms'"));
        site.add_writer("tiny");
        let mut server = site.start().await;
        let before = if goes == "a" { Some(begun(&server, order("tiny", "it", 200)).await) } else { None };
        let promoted = server.promote("c", json!({ "observe": "1h", "reason": "friday" })).await.expect(200);
        let after = if goes == "c" { Some(begun(&server, order("tiny", "it", 200)).await) } else { None };
        let answer = server.post(path, json!({ "reason": "as tried", "wait": "switched" })).await.expect(200);
        assert_eq!(answer.body["phase"], "reclaiming", "{}", answer.body);
        server.kill();
        before.or(after).unwrap().abort();

        let server = site.no_faults().start().await;
        assert_eq!(server.live("tiny").await, live);
        let ended = server.rollout(&promoted.id()).await;
        assert_eq!((ended["phase"].as_str(), ended["reason"].as_str()), (Some(phase), Some(reason)), "{ended}");
        assert_eq!(ended["figures"]["promote_reason"], if goes == "c" { json!("friday") } else { json!(null) });
        let figures = server.get("/admin/rollouts").await.expect(200).body["figures"].clone();
        assert_eq!((&figures["ends"], &figures["rollbacks"]), (&json!({ phase: 1 }), &json!(u8::from(goes == "c"))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_aborted_stays_aborted_where_the_process_dies_before_its_memory_is_back() {
    let site = Site::new().fault("version = 'tiny@c'\nkind = 'delay'\ndelay = '300ms'");
    site.add_writer("tiny");
    let mut server = site.start().await;
    let staged = server.post("/models/tiny@c/stage", json!({ "reason": "friday" })).await.expect(200).id();
    let text = begun(&server, order("tiny@c", "it", 200)).await;
    // It is answered once the memory is back, which the text holds.
    let (client, path) = (server.another(), format!("/admin/rollouts/{staged}/abort"));
    let aborted = tokio::spawn(async move { client.post(&path, json!({ "reason": "as tried" })).await });
    until("only memory is awaited", async || (server.rollout(&staged).await["phase"] == "reclaiming").then_some(()))
        .await;
    server.kill();
    text.abort();
    aborted.abort();

    let server = site.no_faults().start().await;
    assert_eq!(server.live("tiny").await, "a");
    let ended = server.rollout(&staged).await;
    let told = [&ended["phase"], &ended["reason"], &ended["figures"]["promote_reason"]];
    assert_eq!(told, [&json!("aborted"), &json!("as tried"), &json!("friday")], "{ended:#}");
}

/// It could have gone on with the other, had its own failed; once that is decided it needs it no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_text_holds_the_version_that_writes_it_and_no_other() {
    for (writes, order_of) in [("c", "settle"), ("a", "abort")] {
        let site = Site::new().fault(&format!("version = 'tiny@{writes}'\nkind = 'delay'\ndelay = '300ms'"));
        site.add_writer("tiny");
        let server = site.start().await;
        let rollout = match order_of {
            "settle" => server.promote("c", json!({ "observe": "1h" })).await.expect(200).id(),
            _ => server.post("/models/tiny@c/stage", json!({})).await.expect(200).id(),
        };
        let text = begun(&server, order("tiny", "it", 200)).await;
        let path = match order_of {
            "settle" => "/admin/settle".to_owned(),
            _ => format!("/admin/rollouts/{rollout}/abort"),
        };
        server.post(&path, json!({})).await.expect(200);
        // What the two share stays, under a name of its own.
        let other = if writes == "c" { "tiny@a" } else { "tiny@c" };
        let back = async || {
            let memory = server.memory().await;
            memory["reservations"].as_array().unwrap().iter().all(|held| held["holder"] != other).then_some(())
        };
        until("the other version's memory is back", back).await;
        assert!(!text.is_finished(), "{order_of}");
        text.abort();
    }
}
