//! Models that write, as clients meet them: through the real `openai` package, while another version takes over in the
//! middle of what is being written, and while one breaks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

mod bench;
mod ending;
mod gate;
mod llama_cpp;
mod metrics;
mod options;
mod prompts;
mod replace;
mod slow_readers;
mod tools;

use std::collections::BTreeSet;
use std::time::Duration;

use common::streams::{Streamed, alone, begun, order, streamed};
use common::{Client, Server, Site, python, smollm2, until};
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

/// A server with the tiny model, each step of `a` slowed down so that what it writes lasts.
async fn slow() -> (Site, Server) {
    let site = Site::new().fault("version = 'tiny@a'\nkind = 'delay'\ndelay = '10ms'");
    site.add_writer("tiny");
    let server = site.start().await;
    (site, server)
}

/// Places in queues that are taken, and waiting inputs, as the metrics say.
async fn waiting(client: &Client) -> f64 {
    let text = client.request(Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
    let line = text.lines().find(|line| line.starts_with("cutover_queue_inputs")).expect("the metric of what waits");
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_python_client_chats() {
    if !smollm2::is_here() {
        return;
    }
    let site = Site::new();
    site.add_smollm2();
    let server = site.start().await;
    let client = ("openai-client", "requirements.txt");
    let said = python::client_says(client, ("chat_client.py", &[&server.url, "smollm2"]), String::new()).await;
    assert!(said.is_none_or(|said| said.ends_with("all passed\n")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_written_ends_where_it_began_while_another_version_takes_over() {
    let (_site, server) = slow().await;
    let prompts: Vec<String> = (0..8).map(|n| format!("Text {n}: it")).collect();
    let (begun, all_begun) = tokio::sync::mpsc::unbounded_channel();
    let mut all_begun = all_begun;
    let writing: Vec<_> = prompts
        .iter()
        .map(|prompt| {
            let (client, order, begun) = (server.another(), order("tiny", prompt, 40), begun.clone());
            tokio::spawn(async move { streamed(&client, order, move || begun.send(()).unwrap()).await })
        })
        .collect();
    for _ in &prompts {
        all_begun.recv().await.unwrap();
    }
    server.promote("tiny@b", json!({})).await.expect(200);
    assert!(writing.iter().any(|text| !text.is_finished()), "the switch came in the middle");
    // Begun later: written by the new version, while the old one still writes.
    let later = join_all(prompts.iter().map(|prompt| streamed(&server, order("tiny", prompt, 40), || ()))).await;
    let earlier: Vec<Streamed> = join_all(writing).await.into_iter().map(Result::unwrap).collect();
    for ((old, new), prompt) in earlier.iter().zip(&later).zip(&prompts) {
        for (text, version) in [(old, "a"), (new, "b")] {
            assert_eq!((text.version.as_str(), text.done, &text.error), (version, true, &None));
            assert_eq!((&text.versions, text.reason.as_deref()), (&vec![format!("tiny@{version}")], Some("length")));
            assert_eq!(text.text, alone(&server, &format!("tiny@{version}"), prompt, 40).await);
        }
    }
    assert!(earlier.iter().map(|text| &text.text).collect::<BTreeSet<_>>().len() > 1, "prompts matter");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_breaks_in_mid_sentence_is_gone_on_for_without_a_token_lost_or_twice() {
    // The same weights: so what is pieced together can be held against a whole.
    let site = Site::new().fault("version = 'tiny@c'\nkind = 'error'\nrate = 0.1");
    site.add_writer("tiny");
    let server = site.start().await;
    let prompts: Vec<String> = (0..24).map(|n| format!("Story {n}: there")).collect();
    let mut whole = Vec::new();
    for prompt in &prompts {
        whole.push(alone(&server, "tiny", prompt, 50).await);
    }
    server.promote("tiny@c", json!({})).await.expect(200);
    let texts = join_all(prompts.iter().map(|prompt| streamed(&server, order("tiny", prompt, 50), || ()))).await;
    for (text, whole) in texts.iter().zip(&whole) {
        assert_eq!((&text.error, text.done), (&None, true), "{text:?}");
        assert_eq!(&text.text, whole);
    }
    let moved = texts.iter().filter(|text| text.versions == ["tiny@c", "tiny@a"]).count();
    assert!(moved > 0, "some were gone on for: {texts:?}");
    // And that was the end of it.
    until("it is gone back from", async || (server.live("tiny").await == "a").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_an_answer_that_has_begun_is_in_the_log_under_its_id() {
    let site = Site::new().fault("version = 'tiny@a'\nkind = 'error'\nrate = 0.1");
    site.add_writer("tiny");
    let server = site.start().await;
    let next = std::sync::atomic::AtomicUsize::new(0);
    let id = until("an answer breaks that has begun", async || {
        let id = format!("broken-{}-", next.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let request = server.request(Method::POST, "/v1/completions").header("x-request-id", &id);
        let response = request.json(&order("tiny", "a", 100)).send().await.unwrap();
        let begun = response.status() == 200;
        let told = response.text().await.unwrap();
        (begun && told.contains("this request's id")).then_some(id)
    })
    .await;
    until("the log has it", async || {
        server.log().lines().any(|line| line.contains("failed inside") && line.contains(&id)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_is_written_for_no_more() {
    let (_site, server) = slow().await;
    let response = server.request(Method::POST, "/v1/completions").json(&order("tiny", "a", 200)).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(waiting(&server).await >= 1.0);
    drop(response);
    until("nothing is written any more", async || (waiting(&server).await == 0.0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_too_long_to_end_is_cut_short_where_that_is_wanted() {
    let site = Site::new().fault("version = 'tiny@a'\nkind = 'delay'\ndelay = '50ms'");
    site.add_writer("tiny");
    let rules = "task = 'generate'\nlive = 'a'\n[gate]\nmax_latency_ratio = 1000\n\
                 [observe]\nwindow = '0s'\ndrain_timeout = '200ms'\non_drain_timeout = 'length'";
    site.model("tiny", rules);
    let server = site.start().await;
    let text = begun(&server, order("tiny", "a", 200)).await;
    server.promote("tiny@b", json!({ "wait": "settled" })).await.expect(200);
    let text = text.await.unwrap();
    assert_eq!((text.version.as_str(), text.reason.as_deref(), text.done), ("a", Some("length"), true));
    assert!(tokens(&server, &text.text).await < 200, "it was cut short");
}

#[tokio::test(flavor = "multi_thread")]
async fn going_back_twice_is_going_back_once_while_what_was_left_still_writes() {
    let site = Site::new().fault("version = 'tiny@b'\nkind = 'delay'\ndelay = '50ms'");
    site.add_writer("tiny");
    let server = site.start().await;
    let promoted = server.promote("tiny@b", json!({})).await.expect(200);
    let text = begun(&server, order("tiny", "a", 100)).await;
    let back = async |to: &str| server.post("/admin/rollback", json!({ "model": to })).await;
    for to in ["tiny", "tiny", "tiny@a"] {
        assert_eq!(back(to).await.expect(200).id(), promoted.id(), "{to}");
    }
    back("tiny@b").await.expect(409);
    assert!(!text.is_finished(), "it was still being written");
    assert_eq!(text.await.unwrap().version, "b");
}

async fn tokens(client: &Client, text: &str) -> usize {
    let told = client.post("/tokenize", json!({ "model": "tiny", "prompt": text })).await.expect(200);
    told.body["count"].as_u64().unwrap() as usize
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_become_text_again() {
    let site = Site::new();
    site.add_writer("tiny");
    let server = site.start().await;
    let text = "It's 12 o'clock — ça va?";
    let order = json!({ "model": "tiny", "prompt": text, "add_special_tokens": false });
    let told = server.post("/tokenize", order).await.expect(200);
    assert_eq!(told.body["count"].as_u64().unwrap() as usize, told.body["tokens"].as_array().unwrap().len());
    let order = json!({ "model": "tiny", "tokens": told.body["tokens"] });
    assert_eq!(server.post("/detokenize", order).await.expect(200).body["prompt"], text);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_is_told_why() {
    let site = Site::new();
    site.add_writer("tiny");
    let server = site.start().await;
    let refused = async |path: &str, order: Value, status: u16, what: &str| {
        let answer = server.post(path, order).await.expect(status);
        assert!(answer.body["error"]["message"].as_str().unwrap().contains(what), "{what}: {}", answer.body);
        // Clients of OpenAI's shorten a conversation by its code.
        let exceeds = answer.body["error"]["code"] == "context_length_exceeded";
        assert_eq!(exceeds, what == "context", "{what}: {}", answer.body);
    };
    let text = |more: Value| {
        let mut order = json!({ "model": "tiny", "prompt": "a" });
        order.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        order
    };
    refused("/v1/completions", text(json!({ "max_tokens": 100_000 })), 400, "context").await;
    refused("/v1/completions", text(json!({ "prompt": "a ".repeat(5_000) })), 400, "context").await;
    refused("/v1/completions", text(json!({ "prompt": [1, 2, 1_000_000] })), 400, "not in the vocabulary").await;
    refused("/v1/completions", text(json!({ "prompt": [] })), 400, "no tokens").await;
    refused("/v1/completions", text(json!({ "temperature": -1 })), 400, "temperature").await;
    refused("/v1/completions", text(json!({ "top_p": -0.5 })), 400, "top_p").await;
    refused("/v1/completions", text(json!({ "n": 0 })), 400, "n is 0").await;
    refused("/v1/completions", text(json!({ "stop": [""] })), 400, "stop").await;
    for id in ["x", "05", "+5"] {
        refused("/v1/completions", text(json!({ "logit_bias": { id: 1 } })), 400, "logit_bias has").await;
    }
    let biases: serde_json::Map<_, _> = (0..1025).map(|id: u32| (id.to_string(), json!(1))).collect();
    refused("/v1/completions", text(json!({ "logit_bias": biases })), 400, "logit_bias: more than 1024").await;
    refused("/v1/completions", text(json!({ "response_format": { "type": "json_object" } })), 400, "response_format")
        .await;
    refused("/v1/completions", text(json!({ "regex": "[0-9]+" })), 400, "regex").await;
    refused("/v1/completions", text(json!({ "ebnf": "root ::= [0-9]" })), 400, "ebnf").await;
    refused("/v1/completions", text(json!({ "echo": true, "logprobs": 1 })), 400, "echo").await;
    refused("/v1/completions", text(json!({ "max_tokens": 0 })), 400, "max_tokens").await;
    refused("/v1/completions", text(json!({ "prompt": ["a", "b", [1]] })), 400, "prompt[2]: invalid type").await;
    refused("/v1/completions", text(json!({ "prompt": ["a", "b ".repeat(5_000)] })), 400, "context").await;
    refused("/v1/completions", text(json!({ "prompt": vec!["a"; 3_000] })), 413, "number of inputs").await;
    refused("/v1/completions", text(json!({ "best_of": 2 })), 400, "best_of").await;
    refused("/v1/completions", text(json!({ "stop": ["a".repeat(20_000)] })), 400, "20000 bytes").await;
    let chat = |messages: Value| json!({ "model": "tiny", "messages": messages });
    let picture = json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "a" } }] }]);
    refused("/v1/chat/completions", chat(json!([])), 400, "empty").await;
    refused("/v1/chat/completions", chat(json!([{ "role": "no role", "content": "a" }])), 400, "role").await;
    refused("/v1/chat/completions", chat(json!([{ "role": "wizard", "content": "a" }])), 400, "wizard").await;
    refused("/v1/chat/completions", chat(picture), 400, "only text").await;
    refused("/v1/embeddings", json!({ "model": "tiny", "input": "a" }), 400, "does not embed").await;
    let infer = server.post("/models/tiny/infer", json!({ "inputs": [["a", "b"]] })).await.expect(400);
    assert!(infer.message().contains("continues texts"), "{}", infer.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_there_is_room_for_waits_and_nothing_is_left() {
    // Blocks for some four texts at a time, and many more of them: they wait, are preempted, and end all the same.
    let site = Site::new();
    site.add_writer("tiny");
    let rules = "task = 'generate'\nlive = 'a'\n[generate]\ncache_tokens = 320\n[gate]\nmax_latency_ratio = 1000";
    site.model("tiny", rules);
    let server = site.start().await;
    let prompts: Vec<String> = (0..32).map(|n| format!("{n} and so on")).collect();
    let texts = join_all(prompts.iter().map(|prompt| streamed(&server, order("tiny", prompt, 60), || ()))).await;
    for (text, prompt) in texts.iter().zip(&prompts) {
        assert_eq!((text.done, &text.error, text.reason.as_deref()), (true, &None, Some("length")));
        assert_eq!(text.text, alone(&server, "tiny", prompt, 60).await);
    }
    assert_eq!(waiting(&server).await, 0.0);
    tokio::time::timeout(Duration::from_secs(30), async {
        server.promote("tiny@b", json!({ "observe": "0s" })).await.expect(200)
    })
    .await
    .unwrap();
}
