//! Several prompts in one request, prompts that are given back, and texts by the native route.

use reqwest::Method;
use serde_json::{Value, json};

use super::common::{Client, Server, Site, until};

async fn server() -> (Site, Server) {
    let site = Site::new();
    site.add_writer("tiny");
    let server = site.start().await;
    (site, server)
}

async fn choices(server: &Client, more: Value) -> (Vec<Value>, Value) {
    let mut order = json!({ "model": "tiny", "max_tokens": 8, "temperature": 0, "ignore_eos": true });
    order.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let body = server.post("/v1/completions", order).await.expect(200).body;
    (body["choices"].as_array().unwrap().clone(), body["usage"].clone())
}

fn texts(choices: &[Value]) -> Vec<&str> {
    choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect()
}

/// The texts of a stream, by index.
async fn streamed(server: &Client, order: Value) -> Vec<String> {
    let answer = server.request(Method::POST, "/v1/completions").json(&order).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let mut texts = Vec::new();
    let said = answer.text().await.unwrap();
    for data in said.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]") {
        let chunk: Value = serde_json::from_str(data).unwrap();
        let choice = &chunk["choices"][0];
        let at = choice["index"].as_u64().unwrap() as usize;
        texts.resize(texts.len().max(at + 1), String::new());
        texts[at] += choice["text"].as_str().unwrap();
    }
    texts
}

const PROMPTS: [&str; 3] = ["One day", "Two more and", "It is"];

#[tokio::test(flavor = "multi_thread")]
async fn each_of_several_prompts_gets_what_it_gets_alone() {
    let (_site, server) = server().await;
    let (all, usage) = choices(&server, json!({ "prompt": PROMPTS })).await;
    let (mut lists, mut tokens) = (Vec::new(), 0);
    for (at, prompt) in PROMPTS.iter().enumerate() {
        let (own, counted) = choices(&server, json!({ "prompt": prompt })).await;
        assert_eq!((texts(&own)[0], &all[at]["index"]), (texts(&all)[at], &json!(at)));
        tokens += counted["prompt_tokens"].as_u64().unwrap();
        let order = json!({ "model": "tiny", "prompt": prompt });
        lists.push(server.post("/tokenize", order).await.expect(200).body["tokens"].clone());
    }
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(tokens), &json!(24)));
    let (listed, _) = choices(&server, json!({ "prompt": lists })).await;
    assert_eq!(texts(&listed), texts(&all));
    let order = json!({ "model": "tiny", "prompt": PROMPTS, "max_tokens": 8, "temperature": 0, "ignore_eos": true, "stream": true });
    assert_eq!(streamed(&server, order).await, texts(&all));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_stand_by_prompt_and_are_drawn_as_if_it_were_alone() {
    let (_site, server) = server().await;
    let drawn = json!({ "temperature": 1.0, "seed": 5, "n": 3 });
    let with = |prompt: Value| {
        let mut order = drawn.clone();
        order["prompt"] = prompt;
        order
    };
    let (all, usage) = choices(&server, with(json!(PROMPTS))).await;
    let indices: Vec<u64> = all.iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, (0..9).collect::<Vec<_>>());
    for (at, prompt) in PROMPTS.iter().enumerate() {
        let (own, _) = choices(&server, with(json!(prompt))).await;
        assert_eq!(texts(&own), texts(&all)[3 * at..3 * at + 3]);
    }
    let distinct: std::collections::BTreeSet<_> = texts(&all).into_iter().collect();
    assert!(distinct.len() > 6, "{distinct:?}");
    assert_eq!(usage["completion_tokens"], json!(72));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_is_given_back_before_its_answer() {
    let (_site, server) = server().await;
    let (plain, _) = choices(&server, json!({ "prompt": PROMPTS, "n": 2 })).await;
    let (echoed, _) = choices(&server, json!({ "prompt": PROMPTS, "n": 2, "echo": true })).await;
    for (at, text) in texts(&echoed).into_iter().enumerate() {
        assert_eq!(text, format!("{}{}", PROMPTS[at / 2], texts(&plain)[at]));
    }
    let order = |most: usize| json!({ "model": "tiny", "prompt": PROMPTS, "max_tokens": most, "temperature": 0, "ignore_eos": true, "stream": true, "echo": true });
    let (once, _) = choices(&server, json!({ "prompt": PROMPTS, "echo": true })).await;
    assert_eq!(streamed(&server, order(8)).await, texts(&once));
    // Nothing is written after it where nothing is wanted.
    let (none, usage) = choices(&server, json!({ "prompt": PROMPTS, "echo": true, "max_tokens": 0 })).await;
    assert_eq!((texts(&none), &usage["completion_tokens"]), (PROMPTS.to_vec(), &json!(0)));
    assert!(none.iter().all(|choice| choice["finish_reason"] == "length"));
    assert_eq!(streamed(&server, order(0)).await, PROMPTS);
    // Ids are spelled.
    let told =
        server.post("/tokenize", json!({ "model": "tiny", "prompt": "One day", "add_special_tokens": false })).await;
    let (spelled, _) =
        choices(&server, json!({ "prompt": told.expect(200).body["tokens"], "echo": true, "max_tokens": 0 })).await;
    assert_eq!(texts(&spelled), ["One day"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_native_route_writes_too() {
    let (site, server) = server().await;
    let asked = json!({ "inputs": PROMPTS, "parameters": { "max_tokens": 8, "temperature": 0, "seed": 1 } });
    let answer = server.post("/models/tiny/infer", asked).await.expect(200);
    assert_eq!((answer.version(), &answer.body["model"], &answer.body["version"]), ("a", &json!("tiny"), &json!("a")));
    for (output, prompt) in answer.body["outputs"].as_array().unwrap().iter().zip(PROMPTS) {
        let (own, usage) = choices(&server, json!({ "prompt": prompt, "ignore_eos": false })).await;
        assert_eq!((&output["text"], &output["finish_reason"]), (&own[0]["text"], &own[0]["finish_reason"]));
        assert_eq!(output["tokens"], usage["completion_tokens"]);
    }
    let refused = async |body: Value, status: u16, what: &str| {
        let answer = server.post("/models/tiny/infer", body).await.expect(status);
        assert!(answer.message().contains(what), "{what}: {}", answer.message());
    };
    refused(json!({ "inputs": [] }), 400, "inputs is empty").await;
    refused(json!({ "inputs": [{ "image": "aGk=" }] }), 400, "continues texts").await;
    refused(json!({ "inputs": ["a"], "parameters": { "temperature": -1 } }), 400, "temperature").await;
    refused(json!({ "inputs": ["a"], "parameters": { "truncate": true } }), 400, "not cut").await;
    refused(json!({ "inputs": ["a ".repeat(5_000)] }), 400, "context").await;
    let late = json!({ "inputs": ["a"], "parameters": { "deadline_ms": 0, "max_tokens": 500 } });
    refused(late, 504, "").await;
    // And of no other model, where it would have no effect.
    site.add_digits("digits");
    until("digits is found", async || (server.live("digits").await == "v1").then_some(())).await;
    let said = server
        .post("/models/digits/infer", json!({ "inputs": ["a"], "parameters": { "top_p": 0.5 } }))
        .await
        .expect(400);
    assert!(said.message().contains("top_p is for models that write"), "{}", said.message());
    let image = server.post_bytes("/models/tiny/infer", "image/png", vec![1, 2]).await.expect(400);
    assert!(image.message().contains("continues texts"), "{}", image.message());
}
