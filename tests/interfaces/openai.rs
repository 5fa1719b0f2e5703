//! all-MiniLM-L6-v2 as clients meet it: through the real `openai` package, with the numbers that sentence-transformers
//! gives, and while half precision takes over from full.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::common::inputs::{distance, embedding};
use crate::common::{Client, Server, Site, minilm, python, until};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// A server with minilm; none where it cannot be had.
async fn serve() -> Option<Server> {
    if !minilm::is_here() {
        return None;
    }
    let site = Site::new();
    site.add_minilm();
    Some(site.start().await)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_python_client_gets_what_it_expects() {
    let Some(server) = serve().await else { return };
    let client = ("openai-client", "requirements.txt");
    let said = python::client_says(client, ("openai_client.py", &[&server.url, "minilm"]), String::new()).await;
    assert!(said.is_none_or(|said| said.ends_with("all passed\n")));
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Full precision on a CPU: cosine of at least 0.99999, and 1e-4 of the largest number at most.
fn assert_reference(got: &[f64], want: &[f64], what: &str) {
    let scale = want.iter().fold(0f64, |scale, value| scale.max(value.abs()));
    let (cosine, away) = (cosine(got, want), distance(got, want));
    assert!(cosine >= 0.99999 && away <= 1e-4 * scale, "{what}: cosine {cosine}, {away} away of {scale}");
}

#[tokio::test(flavor = "multi_thread")]
async fn embeddings_over_http_are_those_of_sentence_transformers() {
    let Some(server) = serve().await else { return };
    let cases = minilm::reference();
    assert!(cases.len() >= 20);
    for (text, want) in &cases {
        let native = server.texts("minilm", &[text]).await.expect(200);
        assert_reference(&embedding(&native.body), want, text);
    }
    // All in one request, in both encodings: a row of a batch is the row alone. OpenAI's dialect takes no empty text.
    let cases: Vec<_> = cases.into_iter().filter(|(text, _)| !text.is_empty()).collect();
    let texts: Vec<&String> = cases.iter().map(|(text, _)| text).collect();
    for encoding in ["float", "base64"] {
        let order = json!({ "model": "minilm", "input": texts, "encoding_format": encoding });
        let answer = server.post("/v1/embeddings", order).await.expect(200);
        assert_eq!(answer.version(), "f32");
        let data = answer.body["data"].as_array().unwrap();
        assert_eq!(data.len(), cases.len());
        for (item, (text, want)) in data.iter().zip(&cases) {
            let got: Vec<f64> = match &item["embedding"] {
                Value::String(coded) => {
                    let bytes = STANDARD.decode(coded).unwrap();
                    bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
                }
                list => list.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect(),
            };
            assert_reference(&got, want, text);
        }
    }
}

const TEXTS: [&str; 4] = [
    "The ferry to the outer islands leaves at six.",
    "How do I reset my password?",
    "Interest rates were raised by half a point.",
    "A kitten naps by the window.",
];
/// Of numbers that are below 0.3: what the company in a batch may change, and less than what half precision does.
const SAME: f64 = 2e-6;

/// What a version answers to the texts, asked of a quiet server.
async fn answers_of(server: &Server, version: &str) -> Vec<Vec<f64>> {
    let mut all = Vec::new();
    for text in TEXTS {
        let answer = server.texts(&format!("minilm@{version}"), &[text]).await.expect(200);
        assert_eq!(answer.version(), version);
        all.push(embedding(&answer.body));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn half_precision_takes_over_under_load_and_goes_back_without_a_wrong_answer() {
    let Some(server) = serve().await else { return };
    let alone = server.reserved().await;
    server.post("/models/f16/stage", json!({})).await.expect(200);
    let expected = Arc::new([answers_of(&server, "f32").await, answers_of(&server, "f16").await]);
    for (full, half) in expected[0].iter().zip(&expected[1]) {
        assert!(cosine(full, half) > 0.9999 && distance(full, half) > 5.0 * SAME, "{}", distance(full, half));
    }
    let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]));
    let tasks: Vec<_> = (0..3)
        .map(|n| tokio::spawn(ask(server.another(), n, Arc::clone(&expected), Arc::clone(&counts), Arc::clone(&stop))))
        .collect();
    let more = async |which: usize| {
        let wanted = counts[which].load(Ordering::Relaxed) + 10;
        until("the version answers", async || (counts[which].load(Ordering::Relaxed) >= wanted).then_some(())).await;
    };
    more(0).await;
    server.promote("f16", json!({})).await.expect(200);
    more(1).await;
    let back = server.post("/admin/rollback", json!({ "wait": "settled" })).await.expect(200);
    assert_eq!(back.body["kind"], "instant");
    more(0).await;
    assert_eq!(server.reserved().await, alone);
    server.promote("f16", json!({})).await.expect(200);
    let settled = server.post("/admin/settle", json!({})).await.expect(200);
    more(1).await;
    stop.store(true, Ordering::Release);
    for task in tasks {
        task.await.expect("every answer was right");
    }
    let reclaim = &settled.body["figures"]["reclaim"];
    let bytes = |name: &str| reclaim[name].as_u64().unwrap();
    assert!(bytes("returned") >= bytes("promised") && bytes("promised") > 80 << 20, "{reclaim}");
}

/// Asks without a pause until told to stop; every answer must be that of the version that it names.
async fn ask(
    client: Client,
    first: usize,
    expected: Arc<[Vec<Vec<f64>>; 2]>,
    counts: Arc<[AtomicUsize; 2]>,
    stop: Arc<AtomicBool>,
) {
    for at in (first..).take_while(|_| !stop.load(Ordering::Acquire)) {
        let at = at % TEXTS.len();
        let answer = client.texts("minilm", &[TEXTS[at]]).await.expect(200);
        let which = usize::from(answer.version() == "f16");
        assert!(which == 1 || answer.version() == "f32", "answered by {}", answer.version());
        let away = distance(&embedding(&answer.body), &expected[which][at]);
        assert!(away <= SAME, "{away} away from what {} says", answer.version());
        counts[which].fetch_add(1, Ordering::Relaxed);
    }
}
