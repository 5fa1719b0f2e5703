//! Answers that are computed again by the other version, and compared.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::common::inputs::digit;
use super::common::streams::{order, streamed};
use super::common::{Client, DIGITS, Server, Site, fixture, until};
use super::in_phase;

/// What a shadow has seen once it has so many samples.
async fn seen(client: &Client, id: &str, samples: u64) -> Value {
    until("the shadow has its samples", async || {
        let seen = client.get(&format!("/admin/rollouts/{id}/shadow")).await.expect(200).body;
        (seen["samples"].as_u64().unwrap() >= samples).then_some(seen)
    })
    .await
}

async fn ask(client: &Client, times: usize) {
    for n in 0..times {
        client.image("digits", &digit(n % 10)).await.expect(200);
    }
}

/// Its thread ends, and with it whatever that holds, though nobody asks any more.
async fn ends(server: &Server) {
    until("the shadow's thread has ended", async || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
        // One may end while we look.
        let mut names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        (!names.any(|name| name.trim() == "shadow")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_that_nobody_asks_anything_ends_when_it_is_told_to() {
    let server = Site::digits().start().await;
    let id = server.post("/models/v2/stage", json!({ "shadow": 0.5 })).await.expect(200).id();
    server.post("/models/v2/stage", json!({ "shadow": 1.0 })).await.expect(200);
    server.post(&format!("/admin/rollouts/{id}/abort"), json!({})).await.expect(200);
    ends(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_input_of_a_request_is_compared_and_computing_them_is_timed_on_both_versions() {
    let server = Site::digits().start().await;
    let id = server.post("/models/v2/stage", json!({ "shadow": 1.0 })).await.expect(200).id();
    let inputs: Vec<Value> = (0..6).map(|n| json!({ "image": STANDARD.encode(digit(n)) })).collect();
    for _ in 0..5 {
        let asked = json!({ "inputs": inputs, "parameters": { "raw_scores": true } });
        server.post("/models/digits/infer", asked).await.expect(200);
    }
    let seen = seen(&server, &id, 30).await;
    assert!(seen["mean"].as_f64().unwrap() < 1.0, "scores count as they are, too: {seen}");
    assert_eq!(
        (&seen["samples"], &seen["passes"], seen["worst"].as_array().unwrap().len()),
        (&json!(30), &json!(2), 6)
    );
    for name in ["answer_ms", "live_pass_ms", "other_pass_ms"] {
        assert!(seen[name]["p50"].as_f64() > Some(0.0), "{name}: {seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_live_is_computed_again_before_the_switch_and_after_it() {
    let site = Site::digits();
    let mut server = site.start().await;
    let id = server.post("/models/v2/stage", json!({ "shadow": 1.0 })).await.expect(200).id();
    ask(&server, 30).await;
    let before = seen(&server, &id, 30).await;
    assert_eq!((&before["live"], &before["other"]), (&json!("v1"), &json!("v2")));
    let mean = before["mean"].as_f64().unwrap();
    assert!(mean > 0.8 && mean < 1.0 && before["same"] == 1.0, "{before}");
    let bars: u64 = before["histogram"].as_array().unwrap().iter().map(|bar| bar.as_u64().unwrap()).sum();
    assert_eq!((bars, before["samples"].as_u64()), (30, Some(30)));
    let worst = before["worst"].as_array().unwrap();
    assert_eq!(worst.len(), 10, "as many as there were different inputs");
    assert!(worst[0]["agreement"].as_f64() <= worst[9]["agreement"].as_f64());
    assert!(worst[0]["input"]["image"].is_string() || worst[0]["input"]["image"]["blake3"].is_string(), "{}", worst[0]);
    assert!(worst[0]["live"]["labels"][0]["label"] == worst[0]["other"]["labels"][0]["label"]);

    assert_eq!(server.promote("v2", json!({})).await.expect(200).id(), id);
    ask(&server, 12).await;
    let after = seen(&server, &id, 12).await;
    assert_eq!((&after["live"], &after["other"]), (&json!("v2"), &json!("v1")));
    server.post("/admin/settle", json!({})).await.expect(200);
    let figures = server.rollout(&id).await["figures"].clone();
    assert_eq!(
        (figures["shadow"]["samples"].as_u64(), figures["shadow_after"]["samples"].as_u64()),
        (Some(30), Some(12))
    );
    assert!(figures["shadow"]["worst"].is_null(), "the record keeps no inputs");
    assert_eq!(server.memory().await["generations"].as_array().unwrap().len(), 1);
    server.get("/admin/rollouts/digits-99/shadow").await.expect(404);

    // The cases were in memory.
    server.kill();
    let server = site.start().await;
    let kept = server.get(&format!("/admin/rollouts/{id}/shadow")).await.expect(200).body;
    assert_eq!((&kept["samples"], &kept["live"], &kept["worst"]), (&json!(12), &json!("v2"), &Value::Null));
    assert_eq!(kept["histogram"], after["histogram"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_is_a_sample_and_inputs_are_kept_only_where_they_may_be() {
    let site = Site::digits();
    site.model("digits", &format!("{DIGITS}\n[shadow]\nshare = 0.25\nkeep_inputs = false\n"));
    let server = site.start().await;
    let id = server.post("/models/v2/stage", json!({})).await.expect(200).id();
    ask(&server, 40).await;
    let quarter = seen(&server, &id, 10).await;
    assert_eq!((&quarter["samples"], &quarter["dropped"]), (&json!(10), &json!(0)));
    assert!(quarter["worst"].as_array().unwrap().iter().all(|case| case["input"].is_null()), "{quarter}");
    // Staged again with another share, it is another sample.
    server.post("/models/v2/stage", json!({ "shadow": 1.0 })).await.expect(200);
    ask(&server, 20).await;
    let all = seen(&server, &id, 20).await;
    assert_eq!((&all["samples"], &all["share"]), (&json!(20), &json!(1.0)));
    let page = server.get("/metrics").await.expect(200).body;
    let page = page.as_str().unwrap();
    for line in [
        "cutover_shadow_compared{model=\"digits\"} 20\n",
        "cutover_version_share_ratio{model=\"digits\",version=\"v1\"} 1\n",
    ] {
        assert!(page.contains(line), "no {line}: {page}");
    }
}

/// Texts of one request are compared one by one, those of a query by their order.
#[tokio::test(flavor = "multi_thread")]
async fn embeddings_labels_and_ranks_are_compared_as_what_they_are() {
    let site = Site::new();
    for (model, task, kind) in [
        ("points", "embed", "bert-embed-mean"),
        ("labels", "classify", "bert-classify"),
        ("order", "rerank", "bert-rerank"),
    ] {
        site.model(model, &format!("task = '{task}'\nlive = 'one'\n[shadow]\nshare = 1.0\n"));
        for version in ["one", "two"] {
            site.version(model, version, &fixture(kind));
        }
    }
    let server = site.start().await;
    let texts = ["a river in spring", "bread", "the train to the north was late again"];
    for (model, samples) in [("points", 9), ("labels", 9), ("order", 3)] {
        let id = server.post(&format!("/models/{model}@two/stage"), json!({})).await.expect(200).id();
        for _ in 0..3 {
            match model {
                "order" => server.post("/rerank", json!({ "query": "where is it", "texts": texts })).await.expect(200),
                _ => server.texts(model, &texts).await.expect(200),
            };
        }
        let seen = seen(&server, &id, samples).await;
        assert_eq!(
            (&seen["samples"], &seen["failed"], &seen["same"]),
            (&json!(samples), &json!(0), &json!(1.0)),
            "{model}"
        );
        // The same weights; what each input is computed beside changes its last bits at most.
        assert!(seen["lowest"].as_f64().unwrap() > 0.9999, "{model}: {seen}");
        let (worst, asked) = (&seen["worst"][0], if model == "order" { 1 } else { 3 });
        assert_eq!(seen["worst"].as_array().unwrap().len(), asked, "{model}: {seen}");
        assert!(if asked == 1 {
            worst["input"].as_array().is_some_and(|all| all.len() == 3)
        } else {
            worst["input"].is_string()
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_versions_that_do_not_agree_enough_are_told_apart_before_any_client_sees_it() {
    let site = Site::digits();
    site.model("digits", &format!("{DIGITS}\n[shadow]\nshare = 1.0\nmin_agreement = 1.0\nmin_samples = 40\n"));
    let server = site.start().await;
    let id = server.post("/models/v2/stage", json!({})).await.expect(200).id();
    ask(&server, 60).await;
    let ended = in_phase(&server, &id, "refused").await;
    assert!(ended["reason"].as_str().unwrap().contains("shadow agreement"), "{}", ended["reason"]);
    let verdict = &ended["figures"]["verdict"];
    assert_eq!((&verdict["rule"], &verdict["decided"]), (&json!("shadow agreement"), &json!("breach")), "{verdict}");
    assert!(verdict["samples"].as_u64() >= Some(40) && verdict["seen"].as_f64() < Some(1.0), "{verdict}");
    assert_eq!(server.image("digits", &digit(3)).await.expect(200).version(), "v1");

    // After the switch it is the version that answers that is judged.
    let id = server.promote("v2", json!({})).await.expect(200).id();
    ask(&server, 60).await;
    let ended = in_phase(&server, &id, "rolled_back").await;
    assert!(ended["reason"].as_str().unwrap().contains("shadow agreement"), "{}", ended["reason"]);
    assert_eq!(server.live("digits").await, "v1");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_is_judged_by_both_versions() {
    let site = Site::new();
    site.add_writer("tiny");
    let server = site.start().await;
    let id = server.post("/models/tiny@b/stage", json!({ "shadow": 1.0 })).await.expect(200).id();
    for n in 0..6 {
        streamed(&server, order("tiny", &format!("Text {n}: it"), 12), || ()).await;
    }
    let seen = seen(&server, &id, 6).await;
    let (mean, prefix) = (seen["mean"].as_f64().unwrap(), seen["prefix"].as_f64().unwrap());
    // The same weights, quantised and rounded to f16.
    assert!(mean > 0.9 && prefix > 0.5 && prefix <= 1.0, "{seen}");
    let worst = &seen["worst"][0];
    assert!(worst["input"].as_str().unwrap().contains("Text ") && worst["live"]["text"].is_string(), "{worst}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_fails_what_is_computed_again_agrees_with_nothing() {
    let site = Site::digits();
    site.model("digits", &format!("{DIGITS}\n[shadow]\nshare = 1.0\n"));
    // A candidate whose inputs are of another size cannot take the same batch; its processor scales them, so it can.
    let server = site.start().await;
    let id = server.post("/models/v2/stage", json!({})).await.expect(200).id();
    let mut asked = Vec::new();
    for n in 0..10 {
        let client = server.another();
        asked.push(tokio::spawn(async move { client.image("digits", &digit(n)).await.expect(200) }));
    }
    for answer in asked {
        assert_eq!(answer.await.unwrap().version(), "v1");
    }
    assert_eq!(seen(&server, &id, 10).await["failed"], 0);
    server.post(&format!("/admin/rollouts/{id}/abort"), json!({})).await.expect(200);
    ask(&server, 5).await;
    assert_eq!(seen(&server, &id, 10).await["samples"], 10, "a shadow ends with its version");
    ends(&server).await;
}
