//! What is not switched to, and how that is told.

use serde_json::json;

use super::assert_back;
use super::common::inputs::digit;
use super::common::{DIGITS, Site, fixture, until};

pub(super) const TEXT: &str =
    "task = 'embed'\nlive = 'mean'\n[gate]\nmax_latency_ratio = 1000\n[observe]\nwindow = '1h'\n";

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
async fn a_body_that_names_another_model_than_the_path_changes_nothing() {
    let site = Site::digits();
    let server = site.start().await;
    for order in ["promote", "stage"] {
        let refused = server.post(&format!("/models/v2/{order}"), json!({ "model": "nope" })).await.expect(400);
        assert_eq!(refused.body["error"]["details"]["param"], "model", "{}", refused.body);
    }
    assert_eq!(server.live("digits").await, "v1");
    let staged = server.post("/models/v2/stage", json!({ "model": "digits" })).await.expect(200).id();
    let abort = format!("/admin/rollouts/{staged}/abort");
    server.post(&abort, json!({ "model": "nope" })).await.expect(400);
    server.post(&abort, json!({ "model": "digits" })).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_cpu_nothing_is_kept_in_host_memory_and_that_is_said_once() {
    let site = Site::digits();
    let parks = format!("{DIGITS}[rollout]\npark = 'host'\n");
    site.add_digits("more");
    site.model("digits", &parks);
    site.model("more", &parks);
    let server = site.start().await;
    let log = server.says("means nothing here").await;
    assert_eq!(log.matches("means nothing here").count(), 1, "{log}");
    let refused = server.post("/models/digits@v2/stage", json!({ "park": "host" })).await.expect(409);
    assert!(refused.message().contains("only for a GPU"), "{}", refused.body);
    server.promote("digits@v2", json!({ "observe": "0s", "wait": "settled" })).await.expect(200);
    assert_eq!(server.memory().await["parked"], json!([]));
    // The rest of an order for one that is not there is as ever.
    let staged = server.post("/models/digits@v1/stage", json!({ "park": "none" })).await.expect(200);
    assert_eq!(staged.phase(), "ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_choice_for_gpus_means_nothing_on_a_cpu_and_that_is_said_of_each_version() {
    let site = Site::digits();
    site.model("digits", &format!("{DIGITS}[gpu]\nf32_matmul = 'tf32'\n"));
    let server = site.start().await;
    server.post("/models/v2/stage", json!({})).await.expect(200);
    let lines = until("both versions are named", async || {
        let of_a_gpu = |line: &&str| line.contains("means nothing here: a CPU has no TF32");
        let lines: Vec<String> = server.log().lines().filter(of_a_gpu).map(str::to_owned).collect();
        (lines.len() > 1).then_some(lines)
    })
    .await;
    assert!(lines.len() == 2 && lines[0].contains("digits@v1") && lines[1].contains("digits@v2"), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_loading_is_told_as_one_and_armed_faults_are_logged() {
    let site = Site::digits()
        .fault("version = 'digits@v2'\nkind = 'panic'\nat = 'load'")
        .fault("version = 'digits@v9'\nkind = 'error'");
    let server = site.start().await;
    let refused = server.promote("v2", json!({})).await.expect(422);
    assert!(refused.message().contains("loading panicked: a fault on purpose"), "{}", refused.body);
    server.says("a fault on purpose is armed").await;
    server.says("there is no such version").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_and_ambiguous_references_are_told_apart() {
    let site = Site::digits();
    site.add_digits("numbers");
    let server = site.start().await;
    let unknown = server.promote("v9", json!({})).await.expect(404);
    let versions = ["digits@v1", "digits@v2", "digits@v3", "numbers@v1", "numbers@v2", "numbers@v3"];
    assert_eq!((unknown.kind(), &unknown.body["error"]["details"]["known"]), ("not_found", &json!(versions)));
    let unknown = server.image("nope", &digit(1)).await.expect(404);
    assert_eq!(unknown.body["error"]["details"]["known"], json!(["digits", "numbers"]));
    server.promote("digits@v9", json!({})).await.expect(404);
    server.get("/models/nope").await.expect(404);
    let ambiguous = server.image("v1", &digit(1)).await.expect(409);
    assert_eq!(ambiguous.body["error"]["details"]["candidates"], json!(["digits@v1", "numbers@v1"]));
    server.image("digits@v1", &digit(1)).await.expect(200);
    // A body that means another model than the path does is nobody's order.
    for order in ["stage", "promote"] {
        let path = format!("/models/digits@v2/{order}");
        let refused = server.post(&path, json!({ "model": "numbers" })).await.expect(400);
        assert!(refused.message().contains("'numbers'") && refused.message().contains("'digits'"), "{}", refused.body);
        server.post(&path, json!({ "model": "nope" })).await.expect(400);
    }
    assert_eq!(server.live("digits").await, "v1");
    server.promote("digits@v2", json!({ "model": "digits" })).await.expect(200);
}

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

/// What is gone back from is no measure for what was there before: neither its contract nor how fast it is.
#[tokio::test(flavor = "multi_thread")]
async fn going_back_after_settling_is_not_held_against_what_is_gone_back_from() {
    let site = Site::new();
    site.model("texts", TEXT);
    site.version("texts", "mean", &fixture("bert-embed-mean"));
    site.version("texts", "cls", &fixture("bert-embed-cls"));
    site.add_digits("numbers");
    let server = site.start().await;
    let settled = json!({ "accept_contract_change": true, "observe": "0s", "wait": "settled" });
    server.promote("cls", settled.clone()).await.expect(200);
    let back = server.post("/admin/rollback", json!({ "model": "texts" })).await.expect(200);
    assert_eq!((&back.body["kind"], &back.body["to"]), (&json!("cold"), &json!("mean")));

    server.promote("numbers@v2", settled.clone()).await.expect(200);
    // No version passes it beside another.
    site.model("numbers", "task = 'image-classify'\nlive = 'v1'\n[gate]\nmax_latency_ratio = 1e-9\n");
    let back = server.post("/admin/rollback", json!({ "model": "numbers", "wait": "settled", "observe": "0s" })).await;
    let back = back.expect(200);
    assert_eq!((&back.body["kind"], &back.body["to"]), (&json!("cold"), &json!("v1")));
    let checks = back.body["gate"].as_array().unwrap();
    assert!(!checks.is_empty() && checks.iter().all(|check| check["passed"] == true), "{checks:?}");
    let over = async || server.rollout(&back.id()).await["ended_ms"].is_i64().then_some(());
    until("it has ended", over).await;
    let refused = server.promote("numbers@v2", settled).await.expect(422);
    assert!(refused.body["error"]["details"]["failed"].to_string().contains("latency"), "{}", refused.body);
}
