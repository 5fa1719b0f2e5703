//! What is told of rollouts while they go and afterwards.

use reqwest::Method;
use serde_json::{Value, json};

use super::common::{self, Site};
use super::history;

#[tokio::test(flavor = "multi_thread")]
async fn history_is_listed_with_figures_and_read_one_by_one() {
    let site = Site::digits();
    let server = site.start().await;
    server.promote("v3", json!({})).await.expect(422);
    server.promote("v2", json!({ "observe": "0s", "wait": "settled" })).await.expect(200);
    server.promote("v1", json!({})).await.expect(200);
    server.post("/admin/rollback", json!({ "wait": "settled" })).await.expect(200);
    let ends: Vec<String> = history(&server, "digits").await.into_iter().map(|(_, phase)| phase).collect();
    assert_eq!(ends, ["rolled_back", "settled", "refused"]);
    let listed = server.get("/admin/rollouts?limit=1").await.expect(200).body;
    assert_eq!(listed["rollouts"].as_array().unwrap().len(), 1);
    let figures = &listed["figures"];
    assert_eq!((&figures["deployments"], &figures["rollbacks"]), (&json!(3), &json!(1)));
    assert!(figures["downtime_ms"]["count"].as_u64().unwrap() >= 1 && figures["rollback_ms"]["max"].is_number());
    assert!((figures["success_rate"].as_f64().unwrap() - 1.0 / 3.0).abs() < 1e-9);
    assert!(history(&server, "nothing").await.is_empty());
    drop(server);
    let (whole, said) = site.verify();
    assert!(whole, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_as_they_happen_and_those_missed_come_first() {
    let site = Site::digits();
    let server = site.start().await;
    let mut live = server.stream(Method::GET, "/admin/events", Value::Null).await;
    server.promote("v2", json!({ "actor": "ada" })).await.expect(200);
    let switched = live.until("switched", |event| event.name == "switched").await;
    assert_eq!((&switched.data["actor"], &switched.data["body"]["to"]), (&json!("ada"), &json!("v2")));
    let seq = switched.id.unwrap();

    // From the beginning, without a gap.
    let mut all = server.stream(Method::GET, "/admin/events?after=0", Value::Null).await;
    for expected in 1..=seq {
        assert_eq!(all.next().await.unwrap().id, Some(expected));
    }
    // Where it begins is told before anything happens: who loses the connection then misses nothing either.
    let mut silent = server.request(Method::GET, "/admin/events").send().await.unwrap();
    let begun = String::from_utf8(silent.chunk().await.unwrap().unwrap().to_vec()).unwrap();
    let newest: i64 = begun.strip_prefix("id: ").unwrap().strip_suffix("\n\n").unwrap().parse().unwrap();
    assert!(newest >= seq, "{newest} {seq}");

    // A client that reconnects says what it has seen.
    // As a browser does it: to the address that it was given first.
    let request = server.request(Method::GET, "/admin/events?after=0").header("last-event-id", (seq - 2).to_string());
    let mut rest = common::Events::open(request).await;
    assert_eq!(rest.next().await.unwrap().id, Some(seq - 1));
    assert_eq!(rest.next().await.unwrap().id, Some(seq));
    // Of another ledger, perhaps: what happens is told.
    let mut far = server.stream(Method::GET, &format!("/admin/events?after={}", i64::MAX), Value::Null).await;
    server.post("/admin/rollback", json!({ "reason": "as planned" })).await.expect(200);
    let back = rest.until("rolled_back", |event| event.name == "rolled_back").await;
    assert_eq!((&back.data["body"]["to"], &back.data["body"]["reason"]), (&json!("v1"), &json!("as planned")));
    assert_eq!(far.until("rolled_back", |event| event.name == "rolled_back").await.id, back.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_tells_what_changed_and_no_more() {
    let server = Site::digits().start().await;
    let mut events = server.follow("v2", json!({ "wait": "settled" })).await;
    let (mut before, mut checks, mut measured) = (Value::Null, 0, false);
    loop {
        let told = events.next().await.unwrap().data;
        assert_ne!(told, before, "told twice");
        if let Some(gate) = told["gate"].as_array().filter(|gate| !gate.is_empty()) {
            assert!(gate.len() > checks, "the same checks were told twice");
            checks = gate.len();
        }
        before = told;
        // What was told once is left out until it is another: distances come by themselves, at no set time.
        measured |= told_distances(&before["diff"]);
        if before["figures"]["window"].is_object() && measured {
            break;
        }
    }
    assert!(checks > 40, "the gate's checks are told when they are in: {checks}");
    // Nobody asks anything: there is nothing to tell until the window is ended.
    server.post("/admin/settle", json!({ "model": "digits" })).await.expect(200);
    let next = events.next().await.unwrap().data;
    assert_ne!(next["phase"], "observing", "{next}");
    let done = events.until("the end", |event| event.name == "done").await.data;
    assert!(done["gate"].as_array().is_some_and(|gate| gate.len() > 40));
}

/// Whether the distance of every tensor that changed is known.
fn told_distances(diff: &Value) -> bool {
    let mut tensors = diff.as_array().into_iter().flatten().filter(|difference| difference["what"] == "tensors");
    tensors.any(|difference| difference["tensors"]["measured"] == difference["tensors"]["changed"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promote_that_joins_in_the_window_may_change_its_length() {
    let server = Site::digits().start().await;
    let first = server.promote("v2", json!({ "observe": "1h" })).await.expect(200);
    let same = server.promote("v2", json!({ "observe": "1h" })).await.expect(200);
    assert_eq!((same.id(), same.phase()), (first.id(), "observing"));
    let shorter =
        server.promote("v2", json!({ "observe": "1ms", "wait": "settled", "actor": "ada" })).await.expect(200);
    assert_eq!((shorter.id(), shorter.phase()), (first.id(), "settled"));
    let mut events = server.stream(Method::GET, "/admin/events?after=0", Value::Null).await;
    let changed = events.until("observe", |event| event.name == "observe").await.data;
    assert_eq!(changed["body"]["window_ms"], 1, "{changed}");
}
