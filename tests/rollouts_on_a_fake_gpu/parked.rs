//! Versions that wait in host memory: what comes from there, what does not, and that all of it is given back.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::common::fake_gpu::{nothing_is_left, on_fake_gpu};
use super::common::tensors::{Tensors, with_tensors};
use super::common::{Answer, Server, Site, fixture, until};
use super::{TEXTS, embedding, texts};
use reqwest::Method;
use serde_json::{Value, json};

/// As `texts`, of several pieces of pinned memory, and with the version before kept in it, or not.
fn parking(park: &str) -> Site {
    let site = texts();
    site.model("texts", &format!("{TEXTS}[rollout]\npark = \"{park}\"\n"));
    widen(&site.models().join("texts/mean"), 0.25);
    widen(&site.models().join("texts/tuned"), 0.5);
    site
}

/// Gives a text model tokens that no text has: five megabytes of them, all of one number.
pub(super) fn widen(dir: &Path, number: f32) {
    const TOKENS: usize = 40_000;
    with_tensors(dir, |tensors| {
        tensors.lay(|name, tensor, mut bytes| {
            if name.ends_with("word_embeddings.weight") {
                let width = tensor["shape"][1].as_u64().unwrap() as usize;
                let more = TOKENS * width - bytes.len() / size_of::<f32>();
                bytes.extend(std::iter::repeat_n(number.to_le_bytes(), more).flatten());
                tensor["shape"][0] = json!(TOKENS);
            }
            Some(bytes)
        });
    });
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["vocab_size"] = json!(TOKENS);
    fs::write(path, config.to_string()).unwrap();
}

/// The versions that are in host memory and may be used.
async fn parked(server: &Server) -> Vec<String> {
    let memory = server.memory().await;
    let entries = memory["parked"].as_array().unwrap().iter();
    entries.filter(|entry| entry["ready"] == true).map(|entry| entry["version"].as_str().unwrap().to_owned()).collect()
}

async fn until_parked(server: &Server, versions: &[&str]) {
    until("host memory holds them", async || (parked(server).await == versions).then_some(())).await;
}

/// The next event of a kind, from the beginning on.
async fn event(server: &Server, kind: &str) -> Value {
    let mut events = server.stream(Method::GET, "/admin/events?after=0", Value::Null).await;
    events.until(kind, |event| event.name == kind).await.data["body"].take()
}

/// Whether a body is what `/openapi.json` says of it, with no field that is not named there.
async fn assert_described(server: &Server, schema: &str, body: &Value) {
    let document = server.get("/openapi.json").await.expect(200).body;
    let schemas = &document["components"]["schemas"];
    let root = json!({ "$ref": format!("#/components/schemas/{schema}"), "components": { "schemas": schemas } });
    let validator = jsonschema::draft202012::new(&root).unwrap();
    let errors: Vec<String> = validator.iter_errors(body).map(|error| error.to_string()).collect();
    let named = schemas[schema]["properties"].as_object().unwrap();
    assert!(
        errors.is_empty() && body.as_object().unwrap().keys().all(|key| named.contains_key(key)),
        "{errors:?} {body}"
    );
}

/// Makes the weights of a version others, in a way that nobody sees who does not read them: the folder is the same by sizes,
/// times and inodes.
fn make_unrecognisable(dir: &Path) {
    let path = dir.join("model.safetensors");
    let seen = fs::metadata(&path).unwrap().modified().unwrap();
    let mut tensors = Tensors::read(&path);
    let layer = tensors.header.as_object().unwrap().keys().filter(|name| name.contains("layer.1."));
    for name in layer.cloned().collect::<Vec<_>>() {
        tensors.bytes(&name).iter_mut().skip(2).step_by(4).for_each(|byte| *byte ^= 0x40);
    }
    // In place, its header as it was.
    let file = File::options().write(true).open(&path).unwrap();
    let header = fs::metadata(&path).unwrap().len() - tensors.data.len() as u64;
    file.write_all_at(&tensors.data, header).unwrap();
    file.set_modified(seen).unwrap();
}

async fn settled(server: &Server, version: &str) -> Value {
    server.promote(version, json!({ "observe": "0s", "wait": "settled" })).await.expect(200).body
}

async fn gone_back(server: &Server) -> Value {
    server.post("/admin/rollback", json!({ "observe": "0s", "wait": "settled" })).await.expect(200).body
}

/// Pages that were registered, and let go of.
fn registered(report: &Value) -> (u64, u64) {
    let calls = |name: &str| report["calls"][name].as_u64().unwrap_or(0);
    (calls("cuMemHostRegister_v2"), calls("cuMemHostUnregister"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_after_settling_comes_from_host_memory_and_reads_no_file() {
    for (park, kind) in [("host", "parked"), ("none", "cold")] {
        let (site, report) = on_fake_gpu(parking(park));
        let server = site.start().await;
        let want = embedding(&server).await;
        settled(&server, "tuned").await;
        if kind == "parked" {
            until_parked(&server, &["mean"]).await;
            let held = server.memory().await["parked"][0].clone();
            assert_eq!((&held["model"], &held["version"]), (&json!("texts"), &json!("mean")), "{held}");
            assert_described(&server, "ParkedMemory", &held).await;
            let metrics = server.get("/metrics").await.expect(200).body;
            let line = format!("cutover_parked_bytes{{model=\"texts\",version=\"mean\"}} {}", held["bytes"]);
            assert!(metrics.as_str().unwrap().contains(&line), "{metrics}");
            assert_eq!(event(&server, "parked").await["bytes"], held["bytes"]);
        }
        make_unrecognisable(&site.models().join("texts/mean"));
        let back = gone_back(&server).await;
        let figures = &back["figures"];
        assert_eq!((&back["kind"], &back["to"]), (&json!(kind), &json!("mean")), "{back:#}");
        assert!(figures["loaded_bytes"].as_u64().unwrap() > 5_000_000 && figures["shared_bytes"].as_u64().unwrap() > 0);
        // What the file holds now would be seen, where it is read.
        match kind {
            "parked" => {
                assert_eq!(figures["parked_bytes"], figures["loaded_bytes"], "{back:#}");
                assert_eq!(embedding(&server).await, want);
                // It is on the device again, and nothing is left to go back to.
                until_parked(&server, &[]).await;
            }
            _ => {
                assert_eq!(figures["parked_bytes"], Value::Null);
                assert_ne!(embedding(&server).await, want);
            }
        }
        let report = nothing_is_left(server, &report).await;
        let (in_all, let_go) = registered(&report);
        assert_eq!((in_all > 4, in_all), (kind == "parked", let_go), "{report:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_host_memory_is_not_to_be_had_the_rollout_settles_and_going_back_is_cold() {
    let (site, report) = on_fake_gpu(parking("host"));
    // Out of memory, as the driver says it of pages that it cannot pin; those before are let go of.
    let server = site.variable("FAKE_GPU_FAIL", "cuMemHostRegister_v2:2:3").start().await;
    let want = embedding(&server).await;
    assert_eq!(settled(&server, "tuned").await["phase"], "settled");
    let failed = event(&server, "park_failed").await;
    assert_eq!(failed["version"], "mean");
    assert!(failed["reason"].as_str().unwrap().contains("out of memory"), "{failed}");
    server.says("not kept in host memory").await;
    assert_eq!(server.memory().await["parked"], json!([]));
    assert_eq!(gone_back(&server).await["kind"], "cold");
    assert_eq!(embedding(&server).await, want);
    nothing_is_left(server, &report).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stage_reads_ahead_and_the_next_takes_the_place_of_the_one_before() {
    let site = parking("host");
    site.version("texts", "third", &fixture("bert-embed-cls"));
    let (site, report) = on_fake_gpu(site);
    let server = site.start().await;
    let stage = async |version: &str| server.post(&format!("/models/{version}/stage"), json!({ "park": "host" })).await;
    let ahead = stage("tuned").await.expect(200).body;
    assert_eq!(
        (&ahead["parked"], &ahead["unchanged"], &ahead["version"]),
        (&json!(true), &json!(false), &json!("tuned"))
    );
    assert!(ahead["bytes"].as_u64().unwrap() > 0 && ahead["digest"].is_string(), "{ahead}");
    assert_described(&server, "Ahead", &ahead).await;
    let free = async || server.memory().await["vram"]["free"].clone();
    let before = free().await;
    assert_eq!(stage("tuned").await.expect(200).body["unchanged"], true);
    stage("third").await.expect(200);
    assert_eq!(parked(&server).await, ["third"]);
    stage("tuned").await.expect(200);
    assert_eq!(parked(&server).await, ["tuned"]);
    // What cannot be read takes nobody's place.
    let broken = site.version("texts", "broken", &fixture("bert-embed-mean"));
    with_tensors(&broken, |tensors| tensors.data.truncate(1000));
    stage("texts@broken").await.expect(422);
    assert_eq!(parked(&server).await, ["tuned"]);
    fs::remove_dir_all(broken).unwrap();
    // Nothing of it came to the device, and no rollout began.
    let model = server.model("texts").await;
    assert_eq!((free().await, &model["candidate"]), (before, &Value::Null), "{model}");
    assert_eq!(server.get("/admin/rollouts").await.expect(200).body["rollouts"], json!([]));

    make_unrecognisable(&site.models().join("texts/tuned"));
    let promoted = settled(&server, "tuned").await;
    assert_eq!(
        (&promoted["kind"], &promoted["figures"]["parked_bytes"]),
        (&Value::Null, &promoted["figures"]["loaded_bytes"])
    );
    // What was read ahead is live; what was live waits in its place.
    until_parked(&server, &["mean"]).await;

    let freed = server.delete("/models/texts@mean").await.expect(200).body;
    assert_eq!(
        (&freed["unparked"], &freed["unchanged"], &freed["resident"]),
        (&json!(true), &json!(false), &json!(false))
    );
    assert_described(&server, "NotResident", &freed).await;
    assert_eq!(server.memory().await["parked"], json!([]));
    assert_eq!(server.delete("/models/texts@mean").await.expect(200).body["unchanged"], true);
    // Also when its folder is gone.
    stage("third").await.expect(200);
    fs::remove_dir_all(site.models().join("texts/third")).unwrap();
    assert_eq!(server.get("/models").await.expect(200).body["models"][0]["versions"], json!(["mean", "tuned"]));
    assert_eq!(server.delete("/models/texts@third").await.expect(200).body["unparked"], true);
    server.delete("/models/texts@third").await.expect(404);
    assert_eq!(gone_back(&server).await["kind"], "cold");
    let report = nothing_is_left(server, &report).await;
    let (in_all, let_go) = registered(&report);
    assert!(in_all >= 4 && in_all == let_go, "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_still_read_ahead_is_given_up_for_what_comes_next() {
    let site = parking("host");
    // Of five megabytes: slow enough to be met on the way.
    site.model("texts", &format!("{TEXTS}[rollout]\npark = \"host\"\nthrottle = \"4MB/s\"\n"));
    site.version("texts", "third", &fixture("bert-embed-cls"));
    let (site, report) = on_fake_gpu(site);
    let server = site.start().await;
    let stage = |version: &str| {
        let (client, path) = (server.another(), format!("/models/{version}/stage"));
        tokio::spawn(async move { client.post(&path, json!({ "park": "host" })).await })
    };
    let is_on_its_way = async || {
        let met = until("it is read ahead", async || {
            let memory = server.memory().await;
            let entries = memory["parked"].as_array().unwrap();
            entries.iter().find(|entry| entry["version"] == "tuned").cloned()
        });
        let met = met.await;
        assert!(met["ready"] == false && met["bytes"].as_u64().unwrap() > 5_000_000, "{met}");
    };
    let given_up = |answer: Answer| {
        let told = answer.expect(409);
        assert!(told.message().contains("not to be read ahead any more"), "{}", told.body);
    };

    let tuned = stage("tuned");
    is_on_its_way().await;
    stage("third").await.unwrap().expect(200);
    given_up(tuned.await.unwrap());
    assert_eq!(parked(&server).await, ["third"]);

    let tuned = stage("tuned");
    is_on_its_way().await;
    let freed = server.delete("/models/texts@tuned").await.expect(200).body;
    given_up(tuned.await.unwrap());
    assert_eq!((&freed["unparked"], &server.memory().await["parked"]), (&json!(true), &json!([])));

    let tuned = stage("tuned");
    is_on_its_way().await;
    let promoted = settled(&server, "tuned").await;
    given_up(tuned.await.unwrap());
    assert_eq!((&promoted["phase"], &promoted["figures"]["parked_bytes"]), (&json!("settled"), &Value::Null));
    until_parked(&server, &["mean"]).await;

    // And for the end, in the middle of it.
    server.post("/models/third/stage", json!({ "park": "host" })).await.expect(200);
    let back = gone_back(&server).await;
    assert_eq!(back["kind"], "cold", "{back:#}");
    let _tuned = stage("tuned");
    is_on_its_way().await;
    let report = nothing_is_left(server, &report).await;
    let (in_all, let_go) = registered(&report);
    assert!(in_all > 4 && in_all == let_go, "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_ahead_is_refused_and_says_why() {
    let (site, report) = on_fake_gpu(texts());
    let server = site.start().await;
    let stage = async |version: &str| server.post(&format!("/models/{version}/stage"), json!({ "park": "host" })).await;
    assert!(stage("mean").await.expect(409).message().contains("on the device already"));
    stage("texts@nothing").await.expect(404);
    let refused = server.promote("tuned", json!({ "park": "host" })).await.expect(400);
    assert_eq!(refused.body["error"]["details"]["param"], "park");
    server.post("/models/tuned/stage", json!({ "park": "attic" })).await.expect(400);
    let broken = site.version("texts", "broken", &fixture("bert-embed-mean"));
    with_tensors(&broken, |tensors| tensors.data.truncate(1000));
    stage("texts@broken").await.expect(422);
    // In its window it is resident, and so is the one before.
    server.promote("tuned", json!({})).await.expect(200);
    for resident in ["mean", "tuned"] {
        assert!(stage(resident).await.expect(409).message().contains("on the device already"));
    }
    assert_eq!(server.memory().await["parked"], json!([]));
    nothing_is_left(server, &report).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_while_it_reads_ahead_leaves_nothing_pinned() {
    for _ in 0..5 {
        let (site, report) = on_fake_gpu(parking("host"));
        let server = site.start().await;
        let begun = server.post("/models/tuned/stage", json!({ "park": "host", "wait": "none" })).await.expect(202);
        assert_eq!(begun.header("location"), "/admin/memory");
        assert_eq!(begun.body, json!({ "parked": false }));
        nothing_is_left(server, &report).await;
    }
}
