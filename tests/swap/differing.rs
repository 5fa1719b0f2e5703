//! In what versions differ, as a server tells it, and in the record of every rollout.

use std::fs;

use serde_json::{Value, json};

use super::common::{Client, DIGITS, PATIENCE, Server, Site, fixture, root, until};
use super::refusals::TEXT;

fn named<'a>(differences: &'a Value, what: &str) -> Option<&'a Value> {
    differences.as_array().unwrap().iter().find(|difference| difference["what"] == what)
}

fn severities(differences: &Value) -> Vec<&str> {
    differences.as_array().unwrap().iter().map(|difference| difference["severity"].as_str().unwrap()).collect()
}

/// The rollout once the distances of its tensors are known.
async fn measured(server: &Client, id: &str) -> Value {
    let began = std::time::Instant::now();
    loop {
        let diff = server.rollout(id).await["diff"].clone();
        let tensors = named(&diff, "tensors").map(|tensors| tensors["tensors"].clone()).unwrap_or_default();
        if tensors["changed"].is_u64() && tensors["changed"] == tensors["measured"] {
            return diff;
        }
        assert!(began.elapsed() < PATIENCE, "{diff:#}");
        // The record says when it is there, and nothing else does.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// `digits` with `v2` live, and `near`: `v2` with one weight changed.
async fn near() -> (Site, Server) {
    let site = Site::digits();
    site.model("digits", &DIGITS.replace("live = \"v1\"", "live = \"v2\""));
    let place = site.version("digits", "near", &root().join("models/digits/v2"));
    let file = place.join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let end = bytes.len();
    let last = f32::from_le_bytes(bytes[end - 4..].try_into().unwrap());
    bytes[end - 4..].copy_from_slice(&(last + 0.001).to_le_bytes());
    fs::write(&file, bytes).unwrap();
    let server = site.start().await;
    (site, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_tells_what_it_changes_and_how_far_the_tensors_are() {
    let (site, server) = near().await;
    let rollout = server.promote("near", json!({})).await.expect(200);
    assert_eq!(severities(&rollout.body["diff"]), ["notable"], "{}", rollout.body["diff"]);
    let diff = measured(&server, &rollout.id()).await;
    let tensors = &named(&diff, "tensors").unwrap()["tensors"];
    assert_eq!((&tensors["changed"], &tensors["measured"]), (&json!(1), &json!(1)), "{diff}");
    let far = tensors["largest"]["distance"].as_f64().unwrap();
    assert!(far > 0.0 && far < 0.01, "{diff}");
    // It is kept with the rollout, and what the ledger holds is whole.
    let id = rollout.id();
    server.post("/admin/settle", json!({ "model": "digits" })).await.expect(200);
    assert_eq!(server.rollout(&id).await["diff"], diff);
    drop(server);
    let (whole, said) = site.verify();
    assert!(whole, "{said}");
    let server = site.start().await;
    assert_eq!(server.rollout(&id).await["diff"], diff);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_gate_refuses_is_what_is_breaking_and_no_more() {
    let site = Site::new();
    site.model("texts", TEXT);
    for (version, from) in [("mean", "mean"), ("cls", "cls"), ("dense", "dense"), ("max", "max")] {
        site.version("texts", version, &fixture(&format!("bert-embed-{from}")));
    }
    let server = site.start().await;
    for version in ["cls", "dense", "max"] {
        let told = server.get(&format!("/models/{version}/diff")).await.expect(200).body;
        let refused = server.promote(version, json!({})).await.expect(422);
        let details = &refused.body["error"]["details"];
        let checks = details["failed"].as_array().unwrap();
        assert!(checks.iter().all(|check| check["check"] == "contract"), "{refused:?}");
        let fields: Vec<&Value> = checks.iter().map(|check| &check["case"]).collect();
        let breaking = |differences: &Value| -> Vec<Value> {
            let all = differences.as_array().unwrap().iter();
            all.filter(|difference| difference["severity"] == "breaking").map(|d| d["what"].clone()).collect()
        };
        assert_eq!(breaking(&told["differences"]).iter().collect::<Vec<_>>(), fields, "{told:#}");
        assert_eq!(told["compatible"], json!(false));
        let record = server.rollout(details["rollout"].as_str().unwrap()).await;
        assert_eq!(breaking(&record["diff"]).iter().collect::<Vec<_>>(), fields, "{record:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_two_versions_are_compared_for_whoever_asks() {
    let site = Site::digits();
    site.add_digits("numbers");
    let server = site.start().await;
    // Against what is live; `v1` alone is ambiguous here, and beside `digits@v2` it is not.
    let live = until("the digests of both are known", async || {
        let told = server.get("/models/digits@v2/diff").await.expect(200).body;
        (told["incomparable"] == json!([])).then_some(told)
    })
    .await;
    let said = server.get("/models/digits@v2/diff?against=v1").await.expect(200).body;
    assert_eq!(live, said);
    assert_eq!(
        (&live["from"], &live["to"], &live["compatible"]),
        (&json!("digits@v1"), &json!("digits@v2"), &json!(true))
    );
    assert!(named(&live["differences"], "config.hidden_size").is_some(), "{live:#}");
    let back = server.get("/models/digits@v1/diff?against=digits@v2").await.expect(200).body;
    let whats = |body: &Value| -> Vec<String> {
        let mut whats: Vec<String> =
            body["differences"].as_array().unwrap().iter().map(|d| d["what"].as_str().unwrap().to_owned()).collect();
        whats.sort();
        whats
    };
    assert_eq!(whats(&live), whats(&back));
    let same = server.get("/models/digits@v1/diff?against=numbers@v1").await.expect(200).body;
    assert_eq!(same["differences"], json!([]), "{same:#}");
    server.get("/models/digits@v9/diff").await.expect(404);
    server.get("/models/digits@v2/diff?against=v9").await.expect(404);
    server.get("/models/v1/diff").await.expect(409);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_is_held_against_the_contract_of_what_it_replaces() {
    let site = Site::new();
    site.model("texts", &format!("{TEXT}[rollout]\nmode = 'replace'\n"));
    site.version("texts", "mean", &fixture("bert-embed-mean"));
    site.version("texts", "cls", &fixture("bert-embed-cls"));
    let server = site.start().await;
    let refused = server.promote("cls", json!({})).await.expect(422);
    assert_eq!(refused.body["error"]["details"]["failed"][0]["case"], "pooling", "{}", refused.body);
    assert_eq!(server.live("texts").await, "mean");
    server.promote("cls", json!({ "accept_contract_change": true })).await.expect(200);
    assert_eq!(server.live("texts").await, "cls");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_version_whose_folder_is_gone_leaves_the_contract_to_compare() {
    let site = Site::digits();
    let server = site.start().await;
    fs::remove_dir_all(site.models().join("digits/v1")).unwrap();
    let rollout = server.promote("v2", json!({})).await.expect(200);
    let diff = &rollout.body["diff"];
    assert_eq!(severities(diff), ["notable"], "{diff}");
    assert!(diff[0]["message"].as_str().unwrap().contains("the files of 'v1' cannot be compared"), "{diff}");
}
