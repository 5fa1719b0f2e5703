//! text-embeddings-inference's dialect, through the real `huggingface_hub` client and by raw HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::common::inputs::{distance, embedding};
use crate::common::{Answer, Client, Site, fixture, minilm, python, until};
use serde_json::{Value, json};

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}")).iter().map(|v| v.as_f64().unwrap()).collect()
}

fn add(site: &Site, name: &str, task: &str, from: &str) {
    site.model(name, &format!("task = '{task}'\nlive = 'one'\n"));
    site.version(name, "one", &fixture(from));
}

/// One model of each task.
fn three() -> Site {
    let site = Site::new();
    add(&site, "embedder", "embed", "bert-embed-mean");
    add(&site, "classifier", "classify", "bert-classify");
    add(&site, "reranker", "rerank", "bert-rerank");
    site
}

#[track_caller]
fn refused(answer: &Answer, status: u16, word: &str, says: &str) {
    assert_eq!((answer.status, answer.body["error_type"].as_str()), (status, Some(word)), "{}", answer.body);
    assert!(answer.body["error"].as_str().unwrap().contains(says), "{}", answer.body);
}

/// What the real client gives; none where it cannot be had.
async fn client_says(url: &str, what: &str, text: Value) -> Option<Value> {
    let arguments = [url, what, &text.to_string()];
    let said = python::client_says(("tei-client", "tei.txt"), ("tei_client.py", &arguments), String::new()).await;
    said.map(|said| serde_json::from_str(&said).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_client_embeds_as_the_native_route_does() {
    if !minilm::is_here() {
        return;
    }
    let site = Site::new();
    site.add_minilm();
    let server = site.start().await;
    let texts = ["The ferry leaves at six.", "A kitten naps by the window."];
    let Some(one) = client_says(&server.url, "embed", json!(texts[0])).await else { return };
    let Some(many) = client_says(&server.url, "embed", json!(texts)).await else { return };
    assert_eq!((one.as_array().unwrap().len(), many.as_array().unwrap().len()), (1, 2));
    for (text, row) in texts.iter().zip(many.as_array().unwrap()) {
        let native = embedding(&server.texts("minilm", &[text]).await.expect(200).body);
        assert!(distance(&floats(row), &native) < 2e-6, "{text}");
    }
    assert!(distance(&floats(&one[0]), &floats(&many[0])) < 2e-6);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_client_classifies() {
    let site = Site::new();
    add(&site, "classifier", "classify", "bert-classify");
    let server = site.start().await;
    let native = server.texts("classifier", &["a cat"]).await.expect(200).body["outputs"][0]["labels"].clone();
    let Some(said) = client_says(&server.url, "classify", json!("a cat")).await else { return };
    assert_eq!(said["label"], native[0]["label"]);
    assert!((said["score"].as_f64().unwrap() - native[0]["score"].as_f64().unwrap()).abs() < 1e-6);
}

#[tokio::test]
async fn predictions_are_nested_for_batches_alone() {
    let server = three().start().await;
    for (inputs, nested) in [
        (json!("a cat"), false),
        (json!(["a cat"]), false),
        (json!(["a cat", "a dog"]), false),
        (json!([["a cat"], ["a cat", "a dog"]]), true),
    ] {
        let answer = server.post("/predict", json!({ "inputs": inputs })).await.expect(200);
        let first = if nested { &answer.body[0][0] } else { &answer.body[0] };
        assert!(first["label"].is_string() && first["score"].is_f64(), "{inputs}: {}", answer.body);
        assert_eq!((answer.header("x-cutover-model"), answer.version()), ("classifier", "one"));
    }
    let sum = async |raw: bool| {
        let body = server.post("/predict", json!({ "inputs": "a cat", "raw_scores": raw })).await.expect(200).body;
        body.as_array().unwrap().iter().map(|label| label["score"].as_f64().unwrap()).sum::<f64>()
    };
    assert!((sum(false).await - 1.0).abs() < 1e-5 && (sum(true).await - 1.0).abs() > 1e-3);
    let three = server.post("/predict", json!({ "inputs": ["a", "b", "c"] })).await;
    refused(&three, 422, "Validation", "one text or a pair");
    let more = server.post("/predict", json!({ "inputs": "a", "parameters": { "top_k": 1 } })).await;
    refused(&more, 422, "Validation", "parameters");
}

#[tokio::test]
async fn ranks_come_in_descending_order_with_the_scores_of_the_native_route() {
    let server = three().start().await;
    let texts = ["a cat", "interest rates were raised", "the ferry", "a kitten naps"];
    let body = json!({ "query": "a cat", "texts": texts, "return_text": true });
    let ranks = server.post("/rerank", body).await.expect(200).body;
    let pairs: Vec<_> = texts.iter().map(|text| json!(["a cat", text])).collect();
    let native = server.post("/models/reranker/infer", json!({ "inputs": pairs })).await.expect(200).body;
    let mut last = f64::INFINITY;
    for rank in ranks.as_array().unwrap() {
        let (index, score) = (rank["index"].as_u64().unwrap() as usize, rank["score"].as_f64().unwrap());
        assert!(score <= last && rank["text"] == texts[index], "{ranks}");
        assert!((native["outputs"][index]["score"].as_f64().unwrap() - score).abs() < 1e-6);
        last = score;
    }
    assert_eq!(ranks.as_array().unwrap().len(), texts.len());
    let plain =
        server.post("/rerank", json!({ "query": "a cat", "texts": texts, "raw_scores": true })).await.expect(200);
    assert!(plain.body[0].get("text").is_none() && plain.body[0]["score"] != ranks[0]["score"]);
    refused(&server.post("/rerank", json!({ "query": "a", "texts": [] })).await, 400, "Empty", "texts");
}

#[tokio::test]
async fn embeddings_take_every_form_and_refuse_what_cannot_be_honoured() {
    let server = three().start().await;
    let length = |row: &Value| floats(row).iter().map(|v| v * v).sum::<f64>().sqrt();
    for (inputs, rows) in [(json!("a"), 1), (json!(["a", "b"]), 2), (json!([1, 2]), 1), (json!([[1], [2, 3]]), 2)] {
        let answer = server.post("/embed", json!({ "inputs": inputs })).await.expect(200);
        assert_eq!(answer.body.as_array().unwrap().len(), rows);
        assert!((length(&answer.body[0]) - 1.0).abs() < 1e-5);
    }
    let short = server.post("/embed", json!({ "inputs": "a", "dimensions": 4 })).await.expect(200).body;
    assert!(floats(&short[0]).len() == 4 && (length(&short[0]) - 1.0).abs() < 1e-5);
    let long = "a cat ".repeat(2000);
    refused(&server.post("/embed", json!({ "inputs": long })).await, 422, "Validation", "tokens long");
    server
        .post("/embed", json!({ "inputs": long, "truncate": true, "truncation_direction": "Right" }))
        .await
        .expect(200);
    for (field, value) in [
        ("truncation_direction", json!("Left")),
        ("prompt_name", json!("query")),
        ("encoding_format", json!("base64")),
        ("dimensions", json!(100_000)),
    ] {
        let mut body = json!({ "inputs": "a" });
        body[field] = value;
        refused(&server.post("/embed", body).await, 422, "Validation", field);
    }
    for inputs in [json!(""), json!([]), json!(["a", ""]), json!([[]])] {
        refused(&server.post("/embed", json!({ "inputs": inputs })).await, 400, "Empty", "inputs");
    }
    refused(&server.post("/embed", json!({ "inputs": { "a": 1 } })).await, 422, "Validation", "inputs");
    refused(&server.post("/embed", json!({ "inputs": vec!["a"; 5000] })).await, 413, "Validation", "limit");
}

#[tokio::test]
async fn the_model_is_the_configured_one_or_the_only_one_of_its_task() {
    let site = three();
    add(&site, "another", "embed", "bert-embed-cls");
    let server = site.start().await;
    let ambiguous = server.post("/embed", json!({ "inputs": "a" })).await;
    refused(&ambiguous, 409, "Validation", "another, embedder");
    refused(&server.post("/", json!({ "inputs": "a" })).await, 409, "Validation", "reranker");
    server.post("/predict", json!({ "inputs": "a" })).await.expect(200);
    drop(server);
    let server = site.config("[tei]\nmodel = 'another'\n").start().await;
    let root = server.post("/", json!({ "inputs": "a" })).await.expect(200);
    assert_eq!((root.header("x-cutover-model"), root.body.as_array().unwrap().len()), ("another", 1));
    let info = server.get("/info").await.expect(200).body;
    assert_eq!((&info["model_type"], &info["max_client_batch_size"]), (&json!({ "embedding": {} }), &json!(2048)));
    // Another task's route goes to the only model of it; a body for another task is not what `/` expects now.
    server.post("/rerank", json!({ "query": "a", "texts": ["b"] })).await.expect(200);
    refused(&server.post("/", json!({ "query": "a", "texts": ["b"] })).await, 422, "Validation", "inputs");
    drop(server);
    let server = Site::digits().start().await;
    refused(&server.post("/embed", json!({ "inputs": "a" })).await, 404, "Validation", "digits (image-classify)");
    let server = three().config("[tei]\nmodel = 'nothing'\n").start().await;
    refused(&server.post("/embed", json!({ "inputs": "a" })).await, 404, "Validation", "embedder");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promote_while_asking_is_stamped_right() {
    let site = Site::new();
    let window = "[gate]\nmax_latency_ratio = 1000\nlatency_rounds = 2\n[observe]\nwindow = '1h'\n";
    site.model("embedder", &format!("task = 'embed'\nlive = 'one'\n{window}"));
    site.version("embedder", "one", &fixture("bert-embed-mean"));
    site.version("embedder", "two", &fixture("bert-embed-cls"));
    let server = site.start().await;
    let accept = json!({ "accept_contract_change": true });
    server.post("/models/embedder@two/stage", accept.clone()).await.expect(200);
    let mut expected = Vec::new();
    for version in ["one", "two"] {
        let (path, parameters) = (format!("/models/embedder@{version}/infer"), json!({ "normalize": true }));
        let answer = server.post(&path, json!({ "inputs": ["a cat"], "parameters": parameters })).await.expect(200);
        expected.push(embedding(&answer.body));
    }
    assert!(distance(&expected[0], &expected[1]) > 1e-3);
    let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]));
    let asking = tokio::spawn(ask(server.another(), expected, Arc::clone(&counts), Arc::clone(&stop)));
    let seen = async |which: usize| {
        until("the version answers", async || (counts[which].load(Ordering::Relaxed) >= 10).then_some(())).await;
    };
    seen(0).await;
    server.promote("embedder@two", accept).await.expect(200);
    seen(1).await;
    stop.store(true, Ordering::Release);
    asking.await.expect("every answer was right");
}

async fn ask(client: Client, expected: Vec<Vec<f64>>, counts: Arc<[AtomicUsize; 2]>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Acquire) {
        let answer = client.post("/embed", json!({ "inputs": "a cat" })).await.expect(200);
        let which = usize::from(answer.version() == "two");
        assert!(which == 1 || answer.version() == "one", "answered by {}", answer.version());
        assert!(distance(&floats(&answer.body[0]), &expected[which]) < 2e-6, "not what {} says", answer.version());
        counts[which].fetch_add(1, Ordering::Relaxed);
    }
}
