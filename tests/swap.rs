//! Every transition of a rollout over HTTP, with the statuses and bodies that tools rely on (DESIGN sections 3 and 7).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::inputs::{digit, digits, distance, scores};
use common::{Answer, CRUMBS, Client, DIGITS, Server, Site, fixture, until};
use reqwest::Method;
use serde_json::{Value, json};

/// The ids of the rollouts of a model in the ledger, newest first, with how they ended.
async fn history(server: &Client, model: &str) -> Vec<(String, String)> {
    let body = server.get(&format!("/admin/rollouts?model={model}")).await.expect(200).body;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    body["rollouts"].as_array().unwrap().iter().map(|r| (text(&r["id"]), text(&r["phase"]))).collect()
}

fn phases(rollout: &Value) -> Vec<&str> {
    rollout["phases"].as_array().unwrap().iter().map(|phase| phase["phase"].as_str().unwrap()).collect()
}

/// What is reserved is what was reserved before, but for crumbs.
async fn assert_back(server: &Server, before: u64) {
    let memory = server.memory().await;
    let now = memory["reserved"].as_u64().unwrap();
    assert!((before..=before + CRUMBS).contains(&now), "{now} bytes are reserved, {before} were: {memory}");
}

async fn settle(server: &Server, model: &str) -> Answer {
    server.post("/admin/settle", json!({ "model": model })).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_staged_version_is_reached_by_name_only_and_promoting_it_switches() {
    let site = Site::digits();
    let server = site.start().await;
    let staged = server.post("/models/v2/stage", json!({})).await.expect(200);
    assert_eq!((staged.phase(), &staged.body["from"], &staged.body["to"]), ("ready", &json!("v1"), &json!("v2")));
    let model = server.model("digits").await;
    assert_eq!((&model["live"]["version"], &model["previous"]), (&json!("v1"), &Value::Null));
    assert_eq!((&model["candidate"]["version"], &model["candidate"]["phase"]), (&json!("v2"), &json!("ready")));
    assert_eq!(model["versions"], json!(["v1", "v2", "v3"]));

    let image = digit(7);
    assert_eq!(server.image("digits", &image).await.expect(200).version(), "v1");
    let by_name = server.image("digits@v2", &image).await.expect(200);
    assert_eq!((by_name.version(), by_name.label()), ("v2", "7"));
    assert_eq!((&by_name.body["model"], &by_name.body["version"]), (&json!("digits"), &json!("v2")));
    assert_eq!(by_name.header("x-cutover-model"), "digits");
    assert!(
        by_name.header("x-cutover-generation").parse::<u64>().is_ok() && !by_name.header("x-request-id").is_empty()
    );
    // Staging it again joins.
    assert_eq!(server.post("/models/v2/stage", json!({})).await.expect(200).id(), staged.id());

    let promoted = server.promote("v2", json!({})).await.expect(200);
    assert_eq!((promoted.phase(), promoted.id()), ("observing", staged.id()));
    assert_eq!(server.image("digits", &image).await.expect(200).version(), "v2");
    assert_eq!(server.image("digits@v1", &image).await.expect(200).version(), "v1");
    let model = server.model("digits").await;
    assert_eq!((&model["live"]["version"], &model["previous"]["version"]), (&json!("v2"), &json!("v1")));
    assert_eq!(model["candidate"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_promote_does_the_whole_job_and_its_record_tells_all() {
    let site = Site::digits();
    let server = site.start().await;
    let order = json!({ "observe": "50ms", "wait": "settled", "reason": "better on sevens", "actor": "ada" });
    let done = server.promote("digits@v2", order).await.expect(200).body;
    assert_eq!((&done["phase"], &done["model"], &done["from"]), (&json!("settled"), &json!("digits"), &json!("v1")));
    assert_eq!((&done["actor"], &done["reason"]), (&json!("ada"), &json!("better on sevens")));
    let expected = ["reserving", "loading", "warming", "validating", "ready", "observing", "reclaiming", "settled"];
    assert_eq!(phases(&done), expected);
    for phase in done["phases"].as_array().unwrap() {
        assert!(phase["at"].as_str().unwrap().ends_with('Z') && phase["ms"].is_u64(), "{phase}");
    }
    let gate = done["gate"].as_array().unwrap();
    let of = |name: &str| gate.iter().filter(|check| check["check"] == name).count();
    // 40 cases of behaviour and 5 of numbers.
    assert_eq!((of("contract"), of("golden"), of("batch-invariance"), of("latency-ratio")), (1, 45, 1, 1));
    for check in gate {
        assert_eq!(check["passed"], true, "{check}");
        let keys = ["check", "passed", "measure", "limit", "case"];
        assert!(keys.iter().all(|key| check.get(key).is_some()), "{check}");
    }
    assert!(done["figures"]["downtime_ms"].as_f64().unwrap() >= 0.0, "{}", done["figures"]);
    assert!(done["started"].as_str().is_some() && done["digest"].as_str().is_some_and(|d| d.len() == 64), "{done}");
    // The same is read again, and stays.
    assert_eq!(server.rollout(done["id"].as_str().unwrap()).await, done);
    let model = server.model("digits").await;
    assert_eq!((&model["live"]["phase"], &model["previous"]), (&json!("settled"), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn promote_with_wait_none_answers_at_once_and_says_where_to_look() {
    let site = Site::digits().fault("version = 'digits@v2'\nkind = 'delay'\nat = 'load'\ndelay = '300ms'");
    let server = site.start().await;
    let accepted = server.promote("v2", json!({ "wait": "none" })).await.expect(202);
    assert!(["reserving", "loading"].contains(&accepted.phase()), "{}", accepted.body);
    let place = accepted.header("location").to_owned();
    assert_eq!(place, format!("/admin/rollouts/{}", accepted.id()));
    assert_eq!(server.live("digits").await, "v1");
    // Asking again joins, and waits as it says.
    let joined = server.promote("v2", json!({ "wait": "switched" })).await.expect(200);
    assert_eq!((joined.id(), joined.phase()), (accepted.id(), "observing"));
    assert_eq!(server.get(&place).await.expect(200).phase(), "observing");
}

#[tokio::test(flavor = "multi_thread")]
async fn promote_streams_its_progress_to_whoever_accepts_events() {
    let site = Site::digits().fault("version = 'digits@v2'\nkind = 'delay'\nat = 'load'\ndelay = '300ms'");
    let server = site.start().await;
    let mut events = server.follow("v2", json!({})).await;
    let mut seen = Vec::new();
    let last = loop {
        let event = events.next().await.expect("a last event");
        let phase = event.data["phase"].as_str().unwrap().to_owned();
        if event.name != "progress" {
            break event;
        }
        if seen.last() != Some(&phase) {
            seen.push(phase);
        }
    };
    assert!(seen.contains(&"loading".to_owned()), "{seen:?}");
    assert_eq!((last.name.as_str(), &last.data["phase"]), ("done", &json!("observing")));
    assert!(events.next().await.is_none(), "nothing follows the last event");

    let mut events = server.follow("v2", json!({})).await;
    let joined = events.next().await.unwrap();
    assert_eq!((joined.name.as_str(), &joined.data["id"]), ("done", &last.data["id"]));
    settle(&server, "digits").await.expect(200);
    let mut events = server.follow("v2", json!({})).await;
    let unchanged = events.next().await.unwrap();
    assert_eq!((unchanged.name.as_str(), &unchanged.data["unchanged"]), ("done", &json!(true)));

    let mut events = server.follow("v3", json!({})).await;
    let refused = events.until("error", |event| event.name == "error").await;
    assert_eq!(
        (&refused.data["error"]["kind"], &refused.data["rollout"]["phase"]),
        (&json!("refused"), &json!("refused"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_promotes_at_once_are_one_rollout() {
    let site = Site::digits();
    let server = site.start().await;
    let ask = |client: Client| async move { client.promote("v2", json!({})).await.expect(200).id() };
    let (a, b, c) = tokio::join!(ask(server.another()), ask(server.another()), ask(server.another()));
    assert_eq!((&a, &b), (&b, &c));
    assert_eq!(history(&server, "digits").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn promoting_the_live_version_changes_nothing() {
    let site = Site::digits();
    let server = site.start().await;
    for reference in ["v1", "digits@v1", "digits"] {
        let same = server.promote(reference, json!({})).await.expect(200);
        assert_eq!((&same.body["to"], &same.body["unchanged"]), (&json!("v1"), &json!(true)));
    }
    let same = server.post("/models/v1/stage", json!({})).await.expect(200);
    assert_eq!(same.body["unchanged"], true);
    assert!(history(&server, "digits").await.is_empty());
}

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
async fn a_third_version_in_the_window_has_to_wait_and_hears_for_whom() {
    let site = Site::digits();
    let server = site.start().await;
    let first = server.promote("v2", json!({})).await.expect(200);
    for path in ["/models/v3/promote", "/models/v3/stage"] {
        let refused = server.post(path, json!({})).await.expect(409);
        assert_eq!((refused.kind(), &refused.body["error"]["details"]["rollout"]), ("conflict", &json!(first.id())));
        assert!(refused.message().contains(&first.id()), "{}", refused.message());
    }
    assert_eq!(server.live("digits").await, "v2");
}

#[tokio::test(flavor = "multi_thread")]
async fn models_roll_independently_and_must_be_named_when_there_are_several() {
    let site = Site::digits();
    site.add_digits("numbers");
    let server = site.start().await;
    let a = server.promote("digits@v2", json!({})).await.expect(200);
    let b = server.promote("numbers@v2", json!({})).await.expect(200);
    assert_eq!((a.phase(), b.phase()), ("observing", "observing"));
    assert_ne!(a.id(), b.id());
    let ambiguous = server.promote("v2", json!({})).await.expect(409);
    assert_eq!(ambiguous.body["error"]["details"]["candidates"], json!(["digits@v2", "numbers@v2"]));
    let unnamed = server.post("/admin/rollback", json!({})).await.expect(400);
    assert!(unnamed.message().contains("digits") && unnamed.message().contains("numbers"), "{}", unnamed.message());
    server.post("/admin/rollback", json!({ "model": "numbers" })).await.expect(200);
    assert_eq!((server.live("digits").await, server.live("numbers").await), ("v2".into(), "v1".into()));
    let listed = server.get("/models").await.expect(200).body;
    let names: Vec<_> = listed["models"].as_array().unwrap().iter().map(|m| m["name"].clone()).collect();
    assert_eq!(names, ["digits", "numbers"]);
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
    // It is in a window of its own: going back from there is instant again.
    let again = server.post("/admin/rollback", json!({ "wait": "settled" })).await.expect(200);
    assert_eq!((again.id(), again.phase(), &again.body["kind"]), (back.id(), "rolled_back", &json!("instant")));
    assert_eq!(server.live("digits").await, "v2");
}

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
    assert_eq!(server.delete("/models/v1").await.expect(200).phase(), "settled");
    assert_eq!(server.model("digits").await["previous"], Value::Null);
    server.delete("/models/nope").await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gate_refuses_a_broken_version_with_every_case_and_blue_stays() {
    let site = Site::digits();
    let server = site.start().await;
    let before = server.reserved().await;
    let refused = server.promote("v3", json!({})).await.expect(422);
    assert_eq!(refused.kind(), "refused");
    let details = &refused.body["error"]["details"];
    let failed = details["failed"].as_array().unwrap();
    assert!(failed.len() > 20, "v3 reads one digit in six: {}", failed.len());
    for check in failed {
        assert_eq!((&check["check"], &check["passed"]), (&json!("golden"), &json!(false)));
        assert!(check["case"].is_string() && check["measure"].is_number() && check["limit"].is_number(), "{check}");
    }
    // Every case is told, the passing ones too.
    assert_eq!(details["gate"].as_array().unwrap().iter().filter(|check| check["check"] == "golden").count(), 45);
    let rollout = server.rollout(details["rollout"].as_str().unwrap()).await;
    assert_eq!((&rollout["phase"], &rollout["error"]["kind"]), (&json!("refused"), &json!("refused")));
    assert_eq!(server.live("digits").await, "v1");
    assert_back(&server, before).await;
    let named = server.image("digits@v3", &digit(1)).await.expect(409);
    assert_eq!((named.kind(), &named.body["error"]["details"]["resident"]), ("conflict", &json!(["v1"])));
    assert_eq!(server.get("/ready").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_and_ambiguous_references_are_told_apart() {
    let site = Site::digits();
    site.add_digits("numbers");
    let server = site.start().await;
    let unknown = server.promote("v9", json!({})).await.expect(404);
    assert_eq!(
        (unknown.kind(), &unknown.body["error"]["details"]["known"]),
        ("not_found", &json!(["digits", "numbers"]))
    );
    server.promote("digits@v9", json!({})).await.expect(404);
    server.get("/models/nope").await.expect(404);
    server.image("nope", &digit(1)).await.expect(404);
    let ambiguous = server.image("v1", &digit(1)).await.expect(409);
    assert_eq!(ambiguous.body["error"]["details"]["candidates"], json!(["digits@v1", "numbers@v1"]));
    server.image("digits@v1", &digit(1)).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_appears_can_be_promoted_without_a_restart() {
    let site = Site::digits();
    let server = site.start().await;
    server.promote("v4", json!({})).await.expect(404);
    site.version("digits", "v4", &common::root().join("models/digits/v2"));
    server.promote("v4", json!({})).await.expect(200);
    assert_eq!(server.live("digits").await, "v4");
    assert_eq!(server.model("digits").await["versions"], json!(["v1", "v2", "v3", "v4"]));
}

const TEXT: &str = "task = 'embed'\nlive = 'mean'\n[gate]\nmax_latency_ratio = 1000\n[observe]\nwindow = '1h'\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_contract_is_refused_until_it_is_accepted() {
    let site = Site::new();
    site.model("texts", TEXT);
    site.version("texts", "mean", &fixture("bert-embed-mean"));
    site.version("texts", "cls", &fixture("bert-embed-cls"));
    let server = site.start().await;
    let refused = server.promote("cls", json!({})).await.expect(422);
    let failed = refused.body["error"]["details"]["failed"].as_array().unwrap();
    let fields: Vec<_> = failed.iter().map(|check| (&check["check"], &check["case"])).collect();
    assert!(fields.contains(&(&json!("contract"), &json!("pooling"))), "{fields:?}");
    assert_eq!(server.live("texts").await, "mean");
    let accepted = server.promote("cls", json!({ "accept_contract_change": true })).await.expect(200);
    assert_eq!(accepted.body["figures"]["failover"], false, "there is no equal to fail over to");
    assert_eq!(server.live("texts").await, "cls");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promote_goes_on_when_its_client_leaves() {
    let site = Site::digits().fault("version = 'digits@v2'\nkind = 'delay'\nat = 'load'\ndelay = '300ms'");
    let server = site.start().await;
    let mut events = server.another().follow("v2", json!({})).await;
    let id = events.phase("loading").await["id"].as_str().unwrap().to_owned();
    drop(events);
    let joined = server.promote("v2", json!({})).await.expect(200);
    assert_eq!((joined.id(), joined.phase()), (id, "observing"));

    // And so does one that waits for a single answer.
    server.post("/admin/rollback", json!({ "wait": "settled" })).await.expect(200);
    let impatient = server.another();
    let asked = tokio::spawn(async move { impatient.promote("v2", json!({})).await });
    until("the second rollout begins", async || {
        (server.model("digits").await["candidate"]["version"] == "v2").then_some(())
    })
    .await;
    asked.abort();
    assert!(asked.await.unwrap_err().is_cancelled());
    until("v2 is live", async || (server.live("digits").await == "v2").then_some(())).await;
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
    // A client that reconnects says what it has seen.
    let request = server.request(Method::GET, "/admin/events").header("last-event-id", (seq - 2).to_string());
    let mut rest = common::Events::open(request).await;
    assert_eq!(rest.next().await.unwrap().id, Some(seq - 1));
    assert_eq!(rest.next().await.unwrap().id, Some(seq));
    server.post("/admin/rollback", json!({ "reason": "as planned" })).await.expect(200);
    let back = rest.until("rolled_back", |event| event.name == "rolled_back").await;
    assert_eq!((&back.data["body"]["to"], &back.data["body"]["reason"]), (&json!("v1"), &json!("as planned")));
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_stays_while_a_candidate_loads() {
    let site = Site::digits().fault("version = 'digits@v2'\nkind = 'delay'\nat = 'load'\ndelay = '300ms'");
    let server = site.start().await;
    let mut events = server.follow("v2", json!({})).await;
    events.phase("loading").await;
    for path in ["/ready", "/health", "/v2/health/live", "/v2/health/ready"] {
        server.get(path).await.expect(200);
    }
    assert_eq!(server.image("digits", &digit(5)).await.expect(200).version(), "v1");
    assert_eq!(events.until("done", |event| event.name == "done").await.data["phase"], "observing");
}

#[tokio::test(flavor = "multi_thread")]
async fn replace_mode_drains_first_and_brings_blue_back_when_green_fails() {
    let site = Site::digits().fault("version = 'digits@v2'\nkind = 'delay'\nat = 'load'\ndelay = '400ms'");
    site.model("digits", &format!("{DIGITS}\n[rollout]\nmode = 'replace'\n"));
    let server = site.start().await;
    let reference = server.image("digits", &digit(8)).await.expect(200).body;
    let alone = server.reserved().await;
    assert_eq!(server.promote("v3", json!({})).await.expect(422).kind(), "refused");
    let back = server.image("digits", &digit(8)).await.expect(200);
    assert_eq!(back.version(), "v1");
    assert_back(&server, alone).await;
    assert_eq!(distance(&scores(&back.body), &scores(&reference)), 0.0);

    let mut events = server.follow("v2", json!({ "wait": "settled" })).await;
    let loading = events.phase("loading").await;
    assert_eq!(phases(&loading)[..2], ["draining", "reserving"]);
    let meanwhile = server.image("digits", &digit(8)).await.expect(503);
    assert_eq!(meanwhile.kind(), "not_serving");
    assert!(meanwhile.header("retry-after").parse::<u64>().unwrap() >= 1);
    server.get("/ready").await.expect(503);
    let done = events.until("done", |event| event.name == "done").await;
    assert_eq!(done.data["phase"], "settled");
    for image in digits() {
        assert_eq!(server.image("digits", &image).await.expect(200).version(), "v2");
    }
    let cold = server.post("/admin/rollback", json!({})).await.expect(200);
    assert_eq!((&cold.body["kind"], &cold.body["to"]), (&json!("cold"), &json!("v1")));
}
