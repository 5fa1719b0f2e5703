//! What is ordered of traffic when it cannot be had, or not now; who ordered what; and by what a window judges after a canary.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use super::common::inputs::digit;
use super::common::{DIGITS, Site, fixture, until};
use super::{asked, in_phase};

#[tokio::test(flavor = "multi_thread")]
async fn where_one_version_replaces_another_nothing_is_shared_and_nothing_is_touched() {
    let site = Site::digits();
    site.model("digits", &format!("{DIGITS}\n[rollout]\nmode = 'replace'\n"));
    let server = site.start().await;
    let experiment = json!({ "name": "tone", "weights": { "v1": 50, "v2": 50 } });
    for (path, order) in [
        ("/models/v2/promote", json!({ "canary": [5] })),
        ("/models/v2/promote", json!({ "shadow": 0.5 })),
        ("/models/v2/stage", json!({})),
        ("/admin/experiments", experiment),
    ] {
        let refused = server.post(path, order).await.expect(409);
        assert!(refused.message().contains("mode = \"replace\""), "{}", refused.message());
        assert_eq!(asked(&server, 1).await.expect(200).version(), "v1");
    }
    assert_eq!(server.get("/admin/rollouts").await.body["rollouts"].as_array().unwrap().len(), 0);
    server.promote("v2", json!({ "canary": [], "shadow": 0 })).await.expect(200);
}

/// Whoever forgets the steps does not want everybody to move at once.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_of_a_canary_without_steps_is_refused_and_nothing_moves() {
    let server = Site::digits().start().await;
    for order in [
        json!({ "canary_step": "1m" }),
        json!({ "canary_requests": 10 }),
        json!({ "sticky": "api-key" }),
        json!({ "canary": [], "canary_step": "1m" }),
    ] {
        let refused = server.promote("v2", order).await.expect(409);
        assert!(refused.message().contains("expected the steps of a canary"), "{}", refused.message());
    }
    assert_eq!(server.live("digits").await, "v1");
    assert_eq!(server.get("/admin/rollouts").await.body["rollouts"].as_array().unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_stays_as_it_was_ordered_while_it_loads_and_after_it() {
    let site = Site::digits().fault("version = 'digits@v2'\nkind = 'delay'\nat = 'load'\ndelay = '1s'");
    let server = site.start().await;
    let order = json!({ "canary": [20, 60], "canary_requests": 4, "wait": "none" });
    let id = server.promote("v2", order.clone()).await.expect(202).id();
    let other = json!({ "canary": [30], "wait": "none" });
    let refused = server.promote("v2", other.clone()).await.expect(409);
    assert!(refused.message().contains("goes on as it was ordered"), "{}", refused.message());
    assert_eq!(server.promote("v2", order.clone()).await.expect(202).id(), id);
    let canary = in_phase(&server, &id, "canary").await["figures"]["canary"]["steps"].clone();
    assert_eq!(canary, json!([20.0, 60.0]));
    server.promote("v2", json!({ "canary": [] })).await.expect(200);
    // It answers everybody by now: the same order joins, and no other is taken, nor what it says beside.
    let late = json!({ "canary": [5], "observe": "1ms", "wait": "none" });
    let refused = server.promote("v2", late).await.expect(409);
    assert!(refused.message().contains("has gone live already"), "{}", refused.message());
    assert_eq!(server.promote("v2", order).await.expect(202).id(), id);
    assert_eq!(server.rollout(&id).await["phase"], "observing");
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_say_which_model_an_experiment_is_of() {
    let site = Site::digits();
    site.model("points", "task = 'embed'\nlive = 'one'\n");
    site.version("points", "one", &fixture("bert-embed-mean"));
    let server = site.start().await;
    let order = json!({ "name": "tone", "weights": { "v1": 50, "v2": 50 } });
    assert_eq!(server.post("/admin/experiments", order).await.expect(200).body["model"], "digits");
    let nobodys = json!({ "name": "pitch", "weights": { "v8": 50, "v9": 50 } });
    let refused = server.post("/admin/experiments", nobodys).await.expect(400);
    assert!(refused.message().contains("several models are serving"), "{}", refused.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_comes_too_late_is_refused_and_one_that_can_be_had_is_taken() {
    let site = Site::digits();
    let server = site.start().await;
    let canary = json!({ "canary": [50], "canary_step": "10m", "sticky": "header:x-user", "wait": "none" });
    let id = server.promote("v2", canary.clone()).await.expect(202).id();
    in_phase(&server, &id, "canary").await;
    for other in [json!({ "canary": [5, 50] }), json!({ "canary_step": "1m" }), json!({ "sticky": "api-key" })] {
        let refused = server.promote("v2", other).await.expect(409);
        assert!(refused.message().contains("\"canary\": [] to skip"), "{}", refused.message());
    }
    // The same again joins it; a shadow can be begun at any time.
    let mut again = canary;
    again["shadow"] = json!(1.0);
    assert_eq!(server.promote("v2", again).await.expect(202).id(), id);
    until("answers of the live version are compared", async || {
        // Of half of them.
        for user in 0..12 {
            asked(&server, user).await.expect(200);
        }
        let seen = server.get(&format!("/admin/rollouts/{id}/shadow")).await;
        (seen.status == 200 && seen.body["samples"].as_u64() > Some(0)).then_some(())
    })
    .await;
    assert_eq!(server.rollout(&id).await["figures"]["canary"]["percent"], 50.0);
    server.post("/admin/rollback", json!({})).await.expect(200);
    in_phase(&server, &id, "rolled_back").await;

    let order = json!({ "name": "tone", "weights": { "v1": 50, "v2": 50 } });
    let id = server.post("/admin/experiments", order).await.expect(200).id();
    let refused = server.promote("v2", json!({ "canary": [5, 25] })).await.expect(409);
    assert!(refused.message().contains("an experiment goes on; stop it"), "{}", refused.message());
    assert_eq!(server.rollout(&id).await["phase"], "experiment");
    assert_eq!(server.promote("v2", json!({ "canary": [] })).await.expect(200).id(), id);
    assert_eq!(server.live("digits").await, "v2");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_switches_is_named_and_so_is_who_staged() {
    let server = Site::digits().start().await;
    let id = server.post("/models/v2/stage", json!({ "actor": "ann" })).await.expect(200).id();
    let order =
        json!({ "name": "tone", "weights": { "v1": 50, "v2": 50 }, "actor": "cyd", "reason": "which is kinder" });
    assert_eq!(server.post("/admin/experiments", order).await.expect(200).id(), id);
    server.promote("v2", json!({ "actor": "bob", "reason": "it is" })).await.expect(200);
    let mut events = server.stream(Method::GET, "/admin/events?after=0", Value::Null).await;
    for (kind, actor, reason) in [("share", "cyd", "which is kinder"), ("switched", "bob", "it is")] {
        let event = events.until(kind, |event| event.name == kind).await.data;
        assert_eq!((&event["actor"], &event["body"]["reason"]), (&json!(actor), &json!(reason)));
    }
    let rollout = server.rollout(&id).await;
    assert_eq!((&rollout["actor"], &rollout["figures"]["promote_actor"]), (&json!("ann"), &json!("bob")));
}

/// Its own passes are slow, and so it makes those of the live version beside it: what that did alone is what counts.
#[tokio::test(flavor = "multi_thread")]
async fn a_window_after_a_canary_is_held_against_what_was_before_the_canary() {
    let site = Site::digits().fault("version = 'digits@v2'\nkind = 'delay'\ndelay = '150ms'\nat = 'serving'");
    let server = site.start().await;
    for user in 0..200 {
        asked(&server, user).await.expect(200);
    }
    let order = json!({ "canary": [50], "canary_requests": 40, "sticky": "header:x-user", "wait": "none" });
    let id = server.promote("v2", order).await.expect(202).id();
    in_phase(&server, &id, "canary").await;
    let observing = until("it is observed", async || {
        join_all((0..32).map(|user| asked(&server, user))).await;
        let rollout = server.rollout(&id).await;
        (rollout["phase"] == "observing").then_some(rollout)
    })
    .await;
    let (beside, baseline) = (&observing["figures"]["canary"]["live"], &observing["figures"]["baseline_p99_ms"]);
    assert!(beside["p99_ms"].as_f64() > Some(140.0), "both waited for one engine: {beside}");
    assert!(baseline.as_f64() < Some(140.0), "{baseline}");
}

/// All of its clients give up before it answers: no answer says how long it takes, and they do.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_too_slow_for_all_of_its_clients_is_taken_back() {
    let site = Site::digits().fault("version = 'digits@v2'\nkind = 'delay'\ndelay = '400ms'\nat = 'serving'");
    site.model("digits", &DIGITS.replace("max_p99_ratio = 1000.0", "max_p99_ratio = 2.0"));
    let server = site.start().await;
    let image = STANDARD.encode(digit(3));
    let ask = |deadline: u64| {
        let body = json!({ "inputs": [{ "image": image }], "parameters": { "deadline_ms": deadline } });
        let client = server.another();
        async move { client.post("/models/digits/infer", body).await.status }
    };
    for _ in 0..200 {
        assert_eq!(ask(5_000).await, 200);
    }
    let id = server.promote("v2", json!({})).await.expect(200).id();
    let mut late = 0;
    while server.rollout(&id).await["phase"] == "observing" {
        late += join_all((0..16).map(|_| ask(200))).await.into_iter().filter(|status| *status == 504).count();
    }
    let ended = in_phase(&server, &id, "rolled_back").await;
    assert!(late > 50 && ended["reason"].as_str().unwrap().contains("latency"), "{late}: {}", ended["reason"]);
    assert_eq!(ask(5_000).await, 200);
}
