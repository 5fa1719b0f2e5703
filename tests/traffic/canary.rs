//! A candidate that answers a growing share.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use super::common;
use super::common::inputs::digit;
use super::common::streams::{alone, order, streamed};
use super::common::{Client, DIGITS, Server, Site, until};
use super::{asked, in_phase};

const USERS: usize = 120;

/// Users whom the candidate answers; each of them got an answer of 200.
async fn on_green(client: &Client) -> BTreeSet<usize> {
    let mut green = BTreeSet::new();
    for user in 0..USERS {
        let answer = asked(client, user).await.expect(200);
        assert_eq!(answer.label(), (user % 10).to_string());
        if answer.version() == "v2" {
            green.insert(user);
        }
    }
    green
}

async fn begun(server: &Server, body: Value) -> String {
    let mut body = body;
    body["wait"] = json!("none");
    let id = server.promote("v2", body).await.expect(202).id();
    in_phase(server, &id, "canary").await;
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn users_move_to_green_step_by_step_and_none_of_them_back() {
    let site = Site::digits();
    let server = site.start().await;
    let steps = json!({ "canary": [10, 40], "canary_requests": 60, "sticky": "header:X-User" });
    let id = begun(&server, steps).await;
    let first = on_green(&server).await;
    assert!((2..=26).contains(&first.len()), "10 % of {USERS}: {}", first.len());
    assert_eq!(on_green(&server).await, first, "and the same again");
    let told = server.rollout(&id).await["figures"]["canary"].clone();
    assert_eq!((&told["percent"], &told["step"]), (&json!(10.0), &json!(1)));
    common::until("a list shows what goes on as it is", async || {
        let listed = server.get("/admin/rollouts?limit=1").await.expect(200).body["rollouts"][0]["figures"].clone();
        let verdicts = listed["verdicts"].as_array().is_some_and(|verdicts| !verdicts.is_empty());
        (listed["canary"]["steps"] == json!([10.0, 40.0]) && verdicts).then_some(())
    })
    .await;
    // Enough for the first step to end.
    while server.rollout(&id).await["figures"]["canary"]["percent"] == 10.0 {
        asked(&server, *first.first().unwrap()).await.expect(200);
    }
    let mut events = server.stream(Method::GET, "/admin/events?after=0", Value::Null).await;
    let second = on_green(&server).await;
    assert!(first.is_subset(&second) && second.len() > first.len(), "{} then {}", first.len(), second.len());
    while server.rollout(&id).await["phase"] == "canary" {
        asked(&server, *first.first().unwrap()).await.expect(200);
    }
    in_phase(&server, &id, "observing").await;
    assert_eq!(on_green(&server).await.len(), USERS);
    assert_eq!(server.live("digits").await, "v2");
    let phases = server.rollout(&id).await["phases"].clone();
    let phases: Vec<&str> = phases.as_array().unwrap().iter().map(|phase| phase["phase"].as_str().unwrap()).collect();
    assert_eq!(phases[phases.len() - 2..], ["canary", "observing"]);
    for percent in [10.0, 40.0] {
        let event = events.until("a share", |event| event.name == "share").await;
        assert_eq!(event.data["body"]["percent"], percent);
    }
    server.post("/admin/rollback", json!({})).await.expect(200);
    assert_eq!(on_green(&server).await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_header_what_is_asked_again_goes_where_it_went() {
    let site = Site::digits();
    site.model("digits", &format!("{DIGITS}\n[canary]\nsteps = [50]\nstep = '10m'\n"));
    let server = site.start().await;
    begun(&server, json!({})).await;
    let mut seen = BTreeSet::new();
    for n in 0..10 {
        let version = server.image("digits", &digit(n)).await.expect(200).version().to_owned();
        for _ in 0..3 {
            assert_eq!(server.image("digits", &digit(n)).await.expect(200).version(), version);
        }
        seen.insert(version);
        // Whoever names a version gets it.
        for named in ["v1", "v2"] {
            assert_eq!(server.image(&format!("digits@{named}"), &digit(n)).await.expect(200).version(), named);
        }
    }
    assert_eq!(seen.len(), 2, "ten digits on one side of a half are one chance in 512");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breach_takes_the_share_back_at_once_and_no_client_sees_a_fault() {
    let mut fastest = f64::INFINITY;
    for (kind, rule) in [("error", "error rate"), ("non-finite", "non-finite outputs")] {
        let site = Site::digits().fault(&format!("version = 'digits@v2'\nkind = '{kind}'\nat = 'serving'"));
        let server = site.start().await;
        let id = begun(&server, json!({ "canary": [50], "canary_step": "10m", "sticky": "header:x-user" })).await;
        let mut user = 0;
        while server.rollout(&id).await["phase"] == "canary" {
            let answer = asked(&server, user).await.expect(200);
            assert_eq!((answer.version(), answer.label()), ("v1", (user % 10).to_string().as_str()));
            user += 1;
        }
        let ended = in_phase(&server, &id, "rolled_back").await;
        assert!(ended["reason"].as_str().unwrap().contains(rule), "{}", ended["reason"]);
        assert_eq!((&ended["kind"], ended["figures"]["canary"]["percent"].as_f64()), (&json!("instant"), Some(0.0)));
        fastest = fastest.min(ended["figures"]["breach_to_store_ms"].as_f64().unwrap());
        assert_eq!(server.live("digits").await, "v1");
        assert!(server.get("/models/digits").await.body["candidate"].is_null());
        assert_eq!(server.memory().await["generations"].as_array().unwrap().len(), 1);
    }
    // From the answer that proves it to the store, on a machine that runs other tests too; benches/breach measures all of them.
    assert!((0.0..50.0).contains(&fastest), "{fastest} ms");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_that_makes_both_slow_is_taken_back_by_what_the_live_version_did_before() {
    let site = Site::digits().fault("version = 'digits@v2'\nkind = 'delay'\ndelay = '400ms'\nat = 'serving'");
    site.model("digits", &DIGITS.replace("max_p99_ratio = 1000.0", "max_p99_ratio = 4.0"));
    let server = site.start().await;
    let requests = async |upto: usize| {
        for user in 0..upto {
            asked(&server, user).await.expect(200);
        }
    };
    requests(200).await;
    // The second time, what the live version did a moment ago was beside the slow one, and is not what it is held against.
    for _ in 0..2 {
        let order = json!({ "canary": [50], "canary_step": "10m", "sticky": "header:x-user" });
        let id = begun(&server, order).await;
        while server.rollout(&id).await["phase"] == "canary" {
            // Several at once, so that whoever is asked for the live version waits for the other.
            join_all((0..32).map(|_| requests(4))).await;
        }
        let ended = in_phase(&server, &id, "rolled_back").await;
        let reason = ended["reason"].as_str().unwrap();
        assert!(reason.contains("against before: ") && reason.contains("that of the live version before"), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_switch_that_was_taken_back_is_told() {
    let site = Site::digits();
    let server = site.start().await;
    let client = server.another();
    let waiting =
        tokio::spawn(async move { client.promote("v2", json!({ "canary": [50], "canary_step": "10m" })).await });
    let listed = async || server.get("/admin/rollouts").await.body["rollouts"][0].clone();
    let id = super::until("a canary", async || {
        let newest = listed().await;
        (newest["phase"] == "canary").then(|| newest["id"].as_str().unwrap().to_owned())
    })
    .await;
    // Another version has to wait, and there is nothing to settle.
    server.promote("v3", json!({})).await.expect(409);
    server.post("/admin/settle", json!({})).await.expect(409);
    server.post("/admin/rollback", json!({ "reason": "I do not like it" })).await.expect(200);
    let told = waiting.await.unwrap().expect(409);
    assert!(told.message().contains("I do not like it"), "{}", told.message());
    in_phase(&server, &id, "rolled_back").await;

    let id = begun(&server, json!({ "canary": [50], "canary_step": "10m" })).await;
    let kept = server.request(Method::DELETE, "/models/digits@v2").send().await.unwrap();
    assert_eq!(kept.status(), 409);
    assert!(kept.text().await.unwrap().contains("answers in a canary"));
    // By its model, as by its id.
    let (code, said) = server.cutover(&["abort", "digits"]);
    assert_eq!(code, 0, "{said}");
    in_phase(&server, &id, "aborted").await;
    let (code, said) = server.cutover(&["abort", "digits"]);
    assert!(code != 0 && said.contains("no rollout of 'digits' goes on"), "{said}");
    assert_eq!(server.image("digits", &digit(1)).await.expect(200).version(), "v1");

    // Asking again joins it; with no steps the rest of them is skipped.
    let id = begun(&server, json!({ "canary": [1, 50], "canary_step": "10m" })).await;
    assert_eq!(server.promote("v2", json!({ "wait": "none" })).await.expect(202).id(), id);
    assert_eq!(server.rollout(&id).await["phase"], "canary");
    assert_eq!(server.promote("v2", json!({ "canary": [] })).await.expect(200).id(), id);
    assert_eq!(server.live("digits").await, "v2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_in_a_canary_starts_with_the_version_that_was_live_and_tells_what_was_seen() {
    let site = Site::digits();
    let mut server = site.start().await;
    let id = begun(&server, json!({ "canary": [50], "canary_step": "10m", "shadow": 1.0 })).await;
    on_green(&server).await;
    let all = |rollout: &Value| {
        let seen = |side: &str| rollout["figures"]["canary"][side]["samples"].as_u64();
        Some(seen("live")? + seen("candidate")? == USERS as u64)
    };
    // It is told now and then, and never asked for.
    until("the ledger has what was seen", async || {
        let ledger = rusqlite::Connection::open(site.state().join("ledger.sqlite")).unwrap();
        let read = ledger.query_row("SELECT record FROM rollouts WHERE id = ?", [&id], |row| row.get::<_, String>(0));
        all(&serde_json::from_str(&read.ok()?).unwrap())?.then_some(())
    })
    .await;
    server.kill();
    server.ended().await;
    let server = site.start().await;
    assert_eq!(server.live("digits").await, "v1");
    let rollout = server.rollout(&id).await;
    assert_eq!(rollout["phase"], "interrupted");
    assert_eq!(all(&rollout), Some(true), "{rollout:#}");
    assert!(rollout["figures"]["shadow"]["samples"].as_u64() > Some(0), "{rollout:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_that_cannot_be_are_refused_by_name() {
    let site = Site::digits();
    let server = site.start().await;
    for (body, told) in [
        (json!({ "canary": [50, 25] }), "canary: 25 after 50"),
        (json!({ "canary": [0] }), "canary: 0, expected percentages"),
        (json!({ "canary": [100] }), "canary: 100, expected percentages"),
        (json!({ "canary": [5], "canary_step": "0s" }), "canary_step"),
        (json!({ "canary": [5], "canary_step": "soon" }), "canary_step"),
        (json!({ "canary": [5], "canary_requests": 0 }), "canary_requests"),
        (json!({ "canary": [5], "sticky": "cookie" }), "sticky: \"cookie\", expected"),
        (json!({ "shadow": 1.5 }), "shadow: 1.5, expected a share"),
    ] {
        let refused = server.promote("v2", body).await.expect(400);
        assert!(refused.message().contains(told), "{}", refused.message());
    }
    let refused = server.post("/models/v2/promote?canary=5", json!({})).await.expect(400);
    assert!(refused.message().contains("'?canary=5' means nothing here"), "{}", refused.message());
    assert_eq!(server.get("/admin/rollouts").await.body["rollouts"].as_array().unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_shared_too_and_each_is_written_by_one_version() {
    let site = Site::new();
    site.add_writer("tiny");
    let server = site.start().await;
    let id = server
        .promote("tiny@b", json!({ "canary": [50], "canary_step": "10m", "wait": "none" }))
        .await
        .expect(202)
        .id();
    in_phase(&server, &id, "canary").await;
    let mut seen = BTreeSet::new();
    for n in 0..12 {
        let prompt = format!("Text {n}: it");
        let text = streamed(&server, order("tiny", &prompt, 12), || ()).await;
        assert_eq!((text.done, &text.error, text.versions.len()), (true, &None, 1));
        assert_eq!(text.text, alone(&server, &format!("tiny@{}", text.version), &prompt, 12).await);
        assert_eq!(streamed(&server, order("tiny", &prompt, 12), || ()).await.version, text.version);
        seen.insert(text.version);
    }
    assert_eq!(seen.len(), 2);
}
