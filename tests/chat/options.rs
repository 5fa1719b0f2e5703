//! What requests may ask of how an answer is drawn, told and ordered: each field has its effect over HTTP, and one that would have none
//! is refused.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use super::common::streams::{order, streamed};
use super::common::{Client, Server, Site, until};

const PROMPT: &str = "It was a bright cold day and";

/// The tiny model with its rounded version live, whose files may be changed before.
async fn changed(change: impl FnOnce(&std::path::Path)) -> (Site, Server) {
    let site = Site::new();
    site.add_writer("tiny");
    site.model("tiny", "task = 'generate'\nlive = 'b'\n[gate]\nmax_latency_ratio = 1000");
    change(&site.models().join("tiny/b"));
    let server = site.start().await;
    (site, server)
}

async fn plain() -> (Site, Server) {
    changed(|_| ()).await
}

fn with(base: Value, more: Value) -> Value {
    let mut all = base;
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    all
}

async fn completed(client: &Client, more: Value) -> Value {
    let base = json!({ "model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "ignore_eos": true });
    client.post("/v1/completions", with(base, more)).await.expect(200).body
}

async fn text(client: &Client, more: Value) -> String {
    completed(client, more).await["choices"][0]["text"].as_str().unwrap().to_owned()
}

/// Logprobs of an answer in the older form.
async fn told(client: &Client, more: Value) -> Value {
    completed(client, with(json!({ "logprobs": 20 }), more)).await["choices"][0]["logprobs"].clone()
}

fn words(told: &Value) -> Vec<&str> {
    told["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draw_from_one_token_is_the_likeliest() {
    let (_site, server) = plain().await;
    let greedy = text(&server, json!({})).await;
    let hot = json!({ "temperature": 2, "seed": 11 });
    assert_ne!(text(&server, hot.clone()).await, greedy);
    for only in [json!({ "top_k": 1 }), json!({ "min_p": 1.0 }), json!({ "top_p": 1e-9 }), json!({ "top_p": 0 })] {
        assert_eq!(text(&server, with(hot.clone(), only.clone())).await, greedy, "{only}");
    }
    assert_ne!(text(&server, with(hot.clone(), json!({ "top_k": 0, "top_p": 1.0 }))).await, greedy);
}

#[tokio::test(flavor = "multi_thread")]
async fn penalties_are_taken_off_what_was_written() {
    // Told are rows as they came; what was chosen must be the best of them after penalties that a reader can take off itself.
    let (_site, server) = plain().await;
    for (presence, frequency) in [(0.0, 0.0), (2.0, 0.0), (0.0, 2.0), (-1.0, 0.5)] {
        let asked = json!({ "presence_penalty": presence, "frequency_penalty": frequency, "max_tokens": 40 });
        let told = told(&server, asked).await;
        let mut counts = std::collections::BTreeMap::<String, f64>::new();
        for (word, top) in words(&told).into_iter().zip(told["top_logprobs"].as_array().unwrap()) {
            let left = |(other, logprob): (&String, &Value)| {
                let count = counts.get(other).copied().unwrap_or(0.0);
                let penalty = if count > 0.0 { presence + frequency * count } else { 0.0 };
                logprob.as_f64().unwrap() - penalty
            };
            let best = top.as_object().unwrap().iter().map(left).fold(f64::MIN, f64::max);
            let chosen = left((&word.to_owned(), &top[word]));
            assert!(
                chosen > best - 1e-3,
                "{word:?} has {chosen}, the best {best}, of {top} with {presence} {frequency}"
            );
            *counts.entry(word.to_owned()).or_default() += 1.0;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bias_chooses_and_a_repetition_penalty_forbids_it_again() {
    let (_site, server) = plain().await;
    let spelled =
        server.post("/tokenize", json!({ "model": "tiny", "prompt": " day", "return_token_strs": true })).await;
    let spelled = spelled.expect(200).body;
    let (id, word) = (spelled["tokens"][0].as_u64().unwrap(), spelled["token_strs"][0].as_str().unwrap());
    let bias = json!({ "logit_bias": { id.to_string(): 50 } });
    assert_eq!(words(&told(&server, bias.clone()).await), [word; 12]);
    let told = told(&server, with(bias, json!({ "repetition_penalty": 1e9, "prompt": [3] }))).await;
    assert_eq!(words(&told).iter().filter(|other| **other == word).count(), 1, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_have_two_names_and_the_newer_holds() {
    let (_site, server) = plain().await;
    for (asked, tokens) in [
        (json!({ "max_tokens": 3 }), 3),
        (json!({ "max_tokens": null, "max_completion_tokens": 4 }), 4),
        (json!({ "max_tokens": 3, "max_completion_tokens": 5 }), 5),
        (json!({ "max_tokens": null }), 16),
    ] {
        let body = completed(&server, with(json!({ "logprobs": 0 }), asked.clone())).await;
        assert_eq!(body["usage"]["completion_tokens"], tokens, "{asked}");
        assert_eq!(words(&body["choices"][0]["logprobs"]).len(), tokens, "{asked}");
        assert_eq!(body["choices"][0]["finish_reason"], "length");
    }
    // And the one that was sent is told.
    for field in ["max_tokens", "max_completion_tokens"] {
        let asked = json!({ "model": "tiny", "prompt": PROMPT, field: 100_000 });
        let error = server.post("/v1/completions", asked).await.expect(400).body["error"].clone();
        assert_eq!((&error["param"], &error["code"]), (&json!(field), &json!("context_length_exceeded")), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_of_minus_one_is_none() {
    let (_site, server) = plain().await;
    let drawn = async |seed: i64| text(&server, json!({ "temperature": 2, "seed": seed, "max_tokens": 40 })).await;
    assert_eq!(drawn(7).await, drawn(7).await);
    assert_ne!(drawn(-1).await, drawn(-1).await);
    let formed = json!({ "response_format": { "type": "text" } });
    assert_eq!(text(&server, formed).await, text(&server, json!({ "response_format": null })).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_settings_of_the_version_hold_where_a_request_says_nothing() {
    let (_site, server) = changed(|b| fs::write(b.join("generation_config.json"), "{\"top_k\": 1}").unwrap()).await;
    let greedy = text(&server, json!({})).await;
    assert_eq!(text(&server, json!({ "temperature": 2, "seed": 11 })).await, greedy);
    assert_ne!(text(&server, json!({ "temperature": 2, "seed": 11, "top_k": 0 })).await, greedy);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_told_with_the_characters_they_begin_at_in_streams_too() {
    let (_site, server) = plain().await;
    // Drawn wildly, so that there are characters of several tokens, and tokens that are no text.
    let drawn = json!({ "temperature": 2, "seed": 3, "max_tokens": 200, "logprobs": 2, "stop": ["never in it"] });
    let body = completed(&server, drawn.clone()).await;
    let (choice, mut last) = (&body["choices"][0], 0);
    let text: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
    let offsets = choice["logprobs"]["text_offset"].as_array().unwrap();
    let words = words(&choice["logprobs"]);
    let mut bytes = 0;
    for (word, offset) in words.iter().zip(offsets) {
        let offset = offset.as_u64().unwrap() as usize;
        assert!(offset >= last, "{words:?} {offsets:?}");
        last = offset;
        // The last of them, and special tokens, are no part of the text.
        if word.starts_with("bytes:\\x") {
            bytes += 1;
        } else if !word.starts_with("<|") {
            let there: String = text[offset..].iter().take(word.chars().count()).collect();
            assert_eq!(&there, word, "at {offset}");
        }
    }
    assert!(bytes > 0, "none is only a part of a character: {words:?}");
    let pieces = server.request(reqwest::Method::POST, "/v1/completions");
    let base = json!({ "model": "tiny", "prompt": PROMPT, "ignore_eos": true, "stream": true });
    let pieces = pieces.json(&with(base, drawn)).send().await.unwrap().text().await.unwrap();
    let mut streamed = Vec::new();
    for data in pieces.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]") {
        let chunk: Value = serde_json::from_str(data).unwrap();
        streamed.extend(chunk["choices"][0]["logprobs"]["text_offset"].as_array().into_iter().flatten().cloned());
    }
    assert_eq!(&streamed, offsets);
}

const TEMPLATE: &str = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}\
                        {% if tools %}tools: {{ tools[0].function.name }} {# <tool_call> #}{% endif %}\
                        {% if mood is defined %}mood: {{ mood }} {% endif %}\
                        {% if add_generation_prompt %}[assistant]{% endif %}";

async fn rendered(client: &Client, more: Value) -> String {
    let asked = with(json!({ "model": "tiny", "messages": [{ "role": "user", "content": "hi" }] }), more.clone());
    let told = client.post("/tokenize", asked.clone()).await.expect(200).body;
    // What is counted is what is written after.
    let few = with(asked, json!({ "max_tokens": 1, "temperature": 0, "ignore_eos": true }));
    let answer = client.post("/v1/chat/completions", few).await.expect(200).body;
    assert_eq!(answer["usage"]["prompt_tokens"], told["count"], "{more}");
    let order = json!({ "model": "tiny", "tokens": told["tokens"] });
    client.post("/detokenize", order).await.expect(200).body["prompt"].as_str().unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn chats_are_rendered_as_they_are_asked_and_counted_alike() {
    let (_site, server) = changed(|b| fs::write(b.join("chat_template.jinja"), TEMPLATE).unwrap()).await;
    let tool = json!({ "type": "function", "function": { "name": "weather", "parameters": {} } });
    let continued = json!([{ "role": "user", "content": "hi" }, { "role": "assistant", "content": "well then" }]);
    for (asked, text) in [
        (json!({}), "[user] hi [assistant]"),
        (json!({ "add_generation_prompt": false }), "[user] hi"),
        (json!({ "tools": [tool], "tool_choice": "auto" }), "[user] hi tools: weather [assistant]"),
        (json!({ "tools": null, "tool_choice": "none" }), "[user] hi [assistant]"),
        (json!({ "chat_template_kwargs": { "mood": "calm" } }), "[user] hi mood: calm [assistant]"),
        (json!({ "messages": continued, "continue_final_message": true }), "[user] hi [assistant] well then"),
        (json!({ "messages": [{ "role": "developer", "content": "be" }] }), "[system] be [assistant]"),
        (json!({ "response_format": { "type": "text" } }), "[user] hi [assistant]"),
    ] {
        assert_eq!(rendered(&server, asked.clone()).await, text, "{asked}");
    }
    let refused = async |more: Value, param: &str| {
        let asked = with(json!({ "model": "tiny", "messages": [{ "role": "user", "content": "hi" }] }), more);
        let error = server.post("/v1/chat/completions", asked).await.expect(400).body["error"].clone();
        assert_eq!(error["param"], param, "{error}");
    };
    refused(json!({ "stream": true, "stream_options": { "continuous_usage_stats": true } }), "stream_options").await;
    refused(json!({ "tool_choice": "required" }), "tool_choice").await;
    refused(json!({ "response_format": { "type": "json_object" } }), "response_format").await;
    refused(json!({ "chat_template_kwargs": { "messages": [] } }), "chat_template_kwargs").await;
    refused(json!({ "continue_final_message": true, "add_generation_prompt": true }), "continue_final_message").await;
    refused(json!({ "logprobs": false, "top_logprobs": 2 }), "top_logprobs").await;
    // Values of other types, too, wherever they are.
    refused(json!({ "temperature": "hot" }), "temperature").await;
    refused(json!({ "stop": 7 }), "stop").await;
    refused(json!({ "stream_options": { "include_usage": "yes" } }), "stream_options.include_usage").await;
    refused(json!({ "messages": [{ "role": "user", "content": 7 }] }), "messages[0].content").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_effect_is_refused_unless_it_asks_for_nothing() {
    let (_site, server) = plain().await;
    for (field, asks, idle) in [
        ("min_tokens", json!(4), json!(0)),
        ("stop_token_ids", json!([3]), json!([])),
        ("guided_json", json!({ "type": "object" }), json!(null)),
        ("structured_outputs", json!({ "json": {} }), json!({})),
        ("functions", json!([{ "name": "f" }]), json!([])),
        ("function_call", json!({ "name": "f" }), json!("none")),
        ("modalities", json!(["text", "audio"]), json!(["text"])),
        ("use_beam_search", json!(true), json!(false)),
        ("prompt_logprobs", json!(1), json!(null)),
        ("tools", json!([{ "type": "function", "function": { "name": "f" } }]), json!([])),
        ("include_stop_str_in_output", json!(true), json!(false)),
        ("documents", json!([{ "text": "a" }]), json!([])),
        ("echo", json!(true), json!(false)),
        ("chat_template", json!("{{ 1 }}"), json!(null)),
        ("guided_json", json!({}), json!(null)),
        ("grammar", json!("root ::= \"yes\""), json!("")),
        ("format", json!("json"), json!(null)),
        ("max_new_tokens", json!(1), json!(null)),
        ("repeat_penalty", json!(1.3), json!(null)),
        ("options", json!({ "temperature": 0 }), json!({})),
        ("skip_special_tokens", json!(false), json!(true)),
    ] {
        let asked = |value: &Value| {
            let base = json!({ "model": "tiny", "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 1 });
            with(base, json!({ field: value }))
        };
        let error = server.post("/v1/chat/completions", asked(&asks)).await.expect(400).body["error"].clone();
        assert_eq!((&error["param"], &error["type"]), (&json!(field), &json!("invalid_request_error")), "{error}");
        server.post("/v1/chat/completions", asked(&idle)).await.expect(200);
    }
    // And what says nothing is as if it were not there.
    let nothing = json!({ "ignore_eos": null, "priority": null, "stream": null, "stream_options": { "include_usage": null },
        "continue_final_message": null, "logprobs": false, "top_logprobs": 0, "stop": null, "n": null, "seed": null, "user": "u" });
    let base = json!({ "model": "tiny", "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 1 });
    server.post("/v1/chat/completions", with(base, nothing)).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_counted_however_long_and_nothing_is_nothing() {
    let (_site, server) = plain().await;
    let count = async |more: Value| {
        let told = server.post("/tokenize", with(json!({ "model": "tiny" }), more)).await.expect(200).body;
        (told["count"].as_u64().unwrap(), told["max_model_len"].as_u64().unwrap())
    };
    let (nothing, context) =
        count(json!({ "prompt": "", "add_special_tokens": false, "return_token_strs": null })).await;
    assert_eq!(nothing, 0);
    let (long, _) = count(json!({ "prompt": "a day ".repeat(2000) })).await;
    assert!(long > context, "{long} of {context}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_is_shorter_than_the_context_is_the_context() {
    let (site, server) = plain().await;
    let whole = server.post("/tokenize", json!({ "model": "tiny", "prompt": "a" })).await.expect(200).body;
    assert!(whole["max_model_len"].as_u64().unwrap() > 64);
    drop(server);
    site.model("tiny", "task = 'generate'\nlive = 'b'\n[generate]\ncache_tokens = 64");
    let server = site.start().await;
    let told = server.post("/tokenize", json!({ "model": "tiny", "prompt": "a" })).await.expect(200).body;
    assert_eq!(told["max_model_len"], 64);
    let card = server.get("/v1/models/tiny").await.expect(200).body;
    assert_eq!(card["max_model_len"], 64, "{card}");
    // All that there is room for, where nothing is said.
    let near = json!({ "model": "tiny", "prompt": vec![5; 60], "ignore_eos": true });
    let usage = server.post("/v1/completions", near).await.expect(200).body["usage"].clone();
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(60), &json!(4)), "{usage}");
    let chat = json!({ "model": "tiny", "messages": [{ "role": "user", "content": "hi" }], "ignore_eos": true });
    let usage = server.post("/v1/chat/completions", chat).await.expect(200).body["usage"].clone();
    assert_eq!(usage["total_tokens"], 64, "{usage}");
    let long = json!({ "model": "tiny", "prompt": PROMPT, "max_tokens": 64 });
    let message = server.post("/v1/completions", long).await.expect(400).message().to_owned();
    assert!(message.contains("context is 64 tokens"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lower_priorities_go_first_and_what_waits_is_bounded() {
    let site = Site::new().fault("version = 'tiny@a'\nkind = 'delay'\ndelay = '5ms'");
    site.add_writer("tiny");
    let rules =
        "task = 'generate'\nlive = 'a'\n[batch]\nmax_items = 1\n[limits]\nqueue = 3\n[gate]\nmax_latency_ratio = 1000";
    site.model("tiny", rules);
    let server = site.start().await;
    let (ended, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let client = server.another();
    let first =
        tokio::spawn(
            async move { streamed(&client, order("tiny", "first", 60), move || begun.send(()).unwrap()).await },
        );
    has_begun.await.unwrap();
    let mut later = Vec::new();
    for (place, priority) in [5, -5].into_iter().enumerate() {
        let (client, ended) = (server.another(), ended.clone());
        let asked = with(order("tiny", "later", 4), json!({ "priority": priority }));
        later.push(tokio::spawn(async move {
            let text = streamed(&client, asked, || ()).await;
            ended.send(priority).unwrap();
            text
        }));
        until("it waits", async || (super::waiting(&server).await == (place + 2) as f64).then_some(())).await;
    }
    // Three are here; a fourth is told when to come again.
    let answer = server.post("/v1/completions", order("tiny", "fourth", 4)).await.expect(429);
    assert!(answer.headers.contains_key("retry-after"), "{:?}", answer.headers);
    assert!(first.await.unwrap().done);
    assert_eq!((ends.recv().await, ends.recv().await), (Some(-5), Some(5)));
    for text in later {
        assert!(text.await.unwrap().done);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_an_answer_that_has_begun() {
    let site = Site::new().fault("version = 'tiny@a'\nkind = 'delay'\ndelay = '10ms'");
    site.add_writer("tiny");
    let server = site.start().await;
    // Drawn by chance, one in so many answers would end before its deadline.
    let parameters = json!({ "deadline_ms": 300, "max_tokens": 400, "temperature": 0 });
    let asked = json!({ "inputs": ["a b c"], "parameters": parameters });
    let began = std::time::Instant::now();
    let answer = server.post("/models/tiny/infer", asked).await.expect(504);
    assert!(began.elapsed() >= Duration::from_millis(290) && began.elapsed() < Duration::from_secs(3));
    assert!(answer.message().contains("300"), "{}", answer.message());
    until("nothing is written any more", async || (super::waiting(&server).await == 0.0).then_some(())).await;
    let text = server.get("/metrics").await.expect(200).body.as_str().unwrap().to_owned();
    let written = text.lines().find(|line| line.starts_with("cutover_generation_tokens_total")).unwrap();
    assert!(written.rsplit(' ').next().unwrap().parse::<f64>().unwrap() > 1.0, "it had begun: {written}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_of_other_tokens_is_not_gone_on_for() {
    for rate in [1.0, 0.05] {
        let site = Site::new().fault(&format!("version = 'tiny@b'\nkind = 'error'\nrate = {rate:?}"));
        site.add_writer("tiny");
        // The same tokens by another description: nobody knows that they are.
        let path = site.models().join("tiny/b/tokenizer.json");
        let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(tokenizer["normalizer"], Value::Null);
        tokenizer["normalizer"] = json!({ "type": "Sequence", "normalizers": [] });
        fs::write(&path, tokenizer.to_string()).unwrap();
        let server = site.start().await;
        let refused = server.promote("tiny@b", json!({})).await.expect(422);
        assert_eq!(refused.body["error"]["details"]["failed"][0]["case"], "tokenizer", "{}", refused.body);
        server.promote("tiny@b", json!({ "accept_contract_change": true })).await.expect(200);
        let texts = (0..12).map(|n| {
            let (client, prompt) = (server.another(), format!("Story {n}: there"));
            tokio::spawn(async move {
                let answer = client.request(reqwest::Method::POST, "/v1/completions");
                let answer = answer.json(&order("tiny", &prompt, 60)).send().await.unwrap();
                (answer.status().as_u16(), answer.text().await.unwrap())
            })
        });
        let mut broken = 0;
        for text in texts.collect::<Vec<_>>() {
            let (code, said) = text.await.unwrap();
            broken += usize::from(said.contains("\"error\""));
            // Its tokens mean nothing to the other one: what it broke is told as broken, and nothing is put together of both.
            assert!(!said.contains("tiny@a") && (code == 200 || said.contains("\"error\"")), "{code}: {said}");
        }
        assert!(broken > 0 && (rate < 1.0 || broken == 12), "{broken} with {rate}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_generations_fit_whatever_the_memory() {
    let site = Site::new();
    site.add_writer("tiny");
    let server = site.start().await;
    let reserved = async |server: &Server| server.memory().await["reserved"].as_u64().unwrap();
    let all = reserved(&server).await;
    drop(server);
    // Room for one and a half as they would be where nothing is said.
    let site = site.config(&format!("[device]\nmemory = {}", all + all / 2));
    let server = site.start().await;
    let one = reserved(&server).await;
    assert!(one < all * 3 / 4 && one > all / 2, "{one} of {all}");
    server.promote("tiny@b", json!({ "observe": "1h" })).await.expect(200);
    let two = reserved(&server).await;
    assert!(two > one && two <= all + all / 2, "{two} beside {one}");
}
