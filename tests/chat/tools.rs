//! Tools that are called, as clients meet it. No model that is small enough for tests calls any, so the tiny one is made to: some of its
//! tokens are spelled as parts of a call, and a bias and a penalty have it write them in turn.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use reqwest::Method;
use serde_json::{Value, json};

use super::common::{Client, Server, Site, python};

/// Which form a model has is told by its template; a comment will do.
const TEMPLATE: &str = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% if m.tool_calls %}\
                        {{ m.tool_calls[0].function.arguments | tojson }} {% endif %}{% endfor %}{{ tools | default([], true) | length }} ";
const HERMES: [&str; 4] = [
    "Let me see.\n<tool_",
    "call>\n{\"name\": \"weather\", \"argu",
    "ments\": {\"town\": \"Bonn\", \"days\": 2}}\n</tool_call>",
    "\n<tool_call>\n{\"name\": \"noop\", \"arguments\": {}}\n</tool_call>\n",
];
const ARGUMENTS: &str = r#"{"town":"Bonn","days":2}"#;

/// The tiny model with these texts for some of its tokens, and how a request has it write them, one after the other, and end.
async fn writes(comment: &str, texts: &[&str], special: &[&str]) -> (Site, Server, Value) {
    let site = Site::new();
    site.add_writer("tiny");
    site.model("tiny", "task = 'generate'\nlive = 'b'\n[gate]\nmax_latency_ratio = 1000");
    let folder = site.models().join("tiny/b");
    fs::write(folder.join("chat_template.jinja"), format!("{TEMPLATE}{{# {comment} #}}")).unwrap();
    let ids = spell(&folder, texts, special);
    let biases = ids.into_iter().chain([2]).zip([100, 80, 60, 40, 20]);
    let bias: serde_json::Map<String, Value> = biases.map(|(id, bias)| (id.to_string(), json!(bias))).collect();
    // What was written once is as good as impossible.
    let order = json!({ "model": "tiny", "temperature": 0, "repetition_penalty": 1e6, "logit_bias": bias, "max_tokens": 9,
        "messages": [{ "role": "user", "content": "hi" }] });
    let server = site.start().await;
    (site, server, order)
}

/// Gives the texts to tokens that no other is made of; their ids.
fn spell(folder: &Path, texts: &[&str], special: &[&str]) -> Vec<u64> {
    let file = folder.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let mut ids = Vec::new();
    for text in texts {
        let merge = tokenizer["model"]["merges"].as_array_mut().unwrap().pop().unwrap();
        let made: String = merge.as_array().unwrap().iter().map(|part| part.as_str().unwrap()).collect();
        let words = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        let id = words.remove(&made).unwrap();
        // The letters that byte-level BPE writes these with.
        words.insert(text.replace(' ', "Ġ").replace('\n', "Ċ"), id.clone());
        if special.contains(text) {
            let mut token = tokenizer["added_tokens"][0].clone();
            assert_eq!(token["special"], true);
            (token["id"], token["content"]) = (id.clone(), json!(text));
            tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
        }
        ids.push(id.as_u64().unwrap());
    }
    fs::write(file, tokenizer.to_string()).unwrap();
    ids
}

fn with(base: &Value, more: Value) -> Value {
    let mut all = base.clone();
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    all
}

fn tools() -> Value {
    let tool =
        |name: &str| json!({ "type": "function", "function": { "name": name, "parameters": { "type": "object" } } });
    json!({ "tools": [tool("weather"), tool("noop")] })
}

async fn chat(client: &Client, order: Value) -> Value {
    client.post("/v1/chat/completions", order).await.expect(200).body
}

/// Name and arguments of each call of a message or of deltas.
fn called(calls: &Value) -> Vec<(&str, &str)> {
    let calls = calls.as_array().map_or(&[][..], Vec::as_slice);
    assert!(calls.iter().all(|call| call["type"] == "function"));
    let functions = calls.iter().map(|call| &call["function"]);
    functions.map(|call| (call["name"].as_str().unwrap(), call["arguments"].as_str().unwrap())).collect()
}

/// The chunks of a stream's one answer.
async fn chunks(client: &Client, order: &Value) -> Vec<Value> {
    let order = with(order, json!({ "stream": true, "stream_options": { "include_usage": true } }));
    let answer = client.request(Method::POST, "/v1/chat/completions").json(&order).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let text = answer.text().await.unwrap();
    let data = text.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    data.map(|data| serde_json::from_str(data).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_comes_back_as_one_whole_and_streamed() {
    let (_site, server, plain) = writes("<tool_call>", &HERMES, &[]).await;
    let order = with(&plain, tools());
    let body = chat(&server, order.clone()).await;
    let (choice, message) = (&body["choices"][0], &body["choices"][0]["message"]);
    assert_eq!(
        (&message["content"], &choice["finish_reason"]),
        (&json!("Let me see."), &json!("tool_calls")),
        "{body}"
    );
    assert_eq!(called(&message["tool_calls"]), [("weather", ARGUMENTS), ("noop", "{}")]);
    let counted = body["usage"]["completion_tokens"].as_u64().unwrap();
    assert!((4..=5).contains(&counted), "{body}");

    let chunks = chunks(&server, &order).await;
    let (usage, chunks) = chunks.split_last().unwrap();
    assert_eq!(usage["usage"], body["usage"]);
    let choices: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]).collect();
    let said: String = choices.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
    let calls: Vec<Value> =
        choices.iter().filter_map(|choice| choice["delta"]["tool_calls"].as_array()).flatten().cloned().collect();
    let indices: Vec<&Value> = calls.iter().map(|call| &call["index"]).collect();
    assert_eq!((said.as_str(), indices), ("Let me see.", vec![&json!(0), &json!(1)]));
    let reasons: Vec<&Value> = choices.iter().map(|choice| &choice["finish_reason"]).filter(|r| !r.is_null()).collect();
    assert_eq!(reasons, [&json!("tool_calls")]);
    let calls = Value::Array(calls);
    assert_eq!(called(&calls), [("weather", ARGUMENTS), ("noop", "{}")]);

    // Several answers call each for itself, and what is told of tokens is told of all.
    let several = with(&order, json!({ "n": 2, "logprobs": true }));
    let body = chat(&server, several).await;
    let choices = body["choices"].as_array().unwrap();
    let calls = choices.iter().flat_map(|choice| choice["message"]["tool_calls"].as_array().unwrap());
    let ids: BTreeSet<&str> = calls.map(|call| call["id"].as_str().unwrap()).collect();
    assert!(ids.len() == 4 && ids.iter().all(|id| id.starts_with("call_")), "{ids:?}");
    assert_eq!(choices[1]["logprobs"]["content"].as_array().unwrap().len() as u64, counted);
    let only = chat(&server, with(&order, json!({ "parallel_tool_calls": false }))).await;
    let choice = &only["choices"][0];
    assert_eq!(called(&choice["message"]["tool_calls"]), [("weather", ARGUMENTS)]);
    assert_eq!(choice["finish_reason"], "tool_calls");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_call_or_may_be_none_is_content_as_it_was_written() {
    let (_site, server, plain) = writes("<tool_call>", &HERMES, &[]).await;
    let whole = HERMES.concat();
    for (more, text, reason) in [
        (json!({}), whole.clone(), "stop"),
        (json!({ "tools": [] }), whole.clone(), "stop"),
        (with(&tools(), json!({ "tool_choice": "none" })), whole.clone(), "stop"),
        (with(&tools(), json!({ "max_tokens": 2 })), HERMES[..2].concat(), "length"),
        (with(&tools(), json!({ "stop": ["\"days"] })), whole.split("\"days").next().unwrap().to_owned(), "stop"),
    ] {
        let order = with(&plain, more.clone());
        let body = chat(&server, order.clone()).await;
        let choice = &body["choices"][0];
        assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!(text), &json!(reason)), "{more}");
        assert!(choice["message"].get("tool_calls").is_none(), "{body}");
        let chunks = chunks(&server, &order).await;
        let said: String = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(said, text, "{more}");
    }
    // A call that is complete where the answer is cut is one all the same.
    let cut = chat(&server, with(&with(&plain, tools()), json!({ "max_tokens": 3 }))).await;
    let choice = &cut["choices"][0];
    assert_eq!(called(&choice["message"]["tool_calls"]), [("weather", ARGUMENTS)]);
    assert_eq!(choice["finish_reason"], "length");
    for choice in [json!("required"), json!({ "type": "function", "function": { "name": "noop" } })] {
        let order = with(&with(&plain, tools()), json!({ "tool_choice": choice }));
        let error = server.post("/v1/chat/completions", order).await.expect(400).body["error"].clone();
        assert_eq!(error["param"], "tool_choice");
        assert!(error["message"].as_str().unwrap().contains("constraining"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_handed_back_as_it_came() {
    let (_site, server, plain) = writes("<tool_call>", &HERMES, &[]).await;
    let order = with(&plain, tools());
    let message = chat(&server, order.clone()).await["choices"][0]["message"].clone();
    let id = message["tool_calls"][0]["id"].clone();
    let said = json!([{ "role": "user", "content": "hi" }, message, { "role": "tool", "tool_call_id": id, "content": "rain" }]);
    let told = server.post("/tokenize", with(&order, json!({ "messages": said.clone() }))).await.expect(200).body;
    let text = server.post("/detokenize", json!({ "model": "tiny", "tokens": told["tokens"] })).await.expect(200).body;
    let want = "[user] hi [assistant] Let me see. {\"town\": \"Bonn\", \"days\": 2} [tool] rain 2 ";
    assert_eq!(text["prompt"], want);
    chat(&server, with(&order, json!({ "messages": said }))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_that_are_special_tokens_are_seen_and_are_no_part_of_other_answers() {
    let texts = ["[TOOL_CALLS]", " [{\"name\": \"weather\", \"arguments\": ", "{\"town\": \"Bonn\", \"days\": 2}}]"];
    let (_site, server, plain) = writes("[TOOL_CALLS]", &texts, &["[TOOL_CALLS]"]).await;
    let body = chat(&server, with(&plain, tools())).await;
    let message = &body["choices"][0]["message"];
    assert_eq!(called(&message["tool_calls"]), [("weather", ARGUMENTS)], "{body}");
    assert_eq!((&message["content"], &body["choices"][0]["finish_reason"]), (&Value::Null, &json!("tool_calls")));
    // Mistral's templates refuse any other.
    assert_eq!(message["tool_calls"][0]["id"].as_str().unwrap().len(), 9);
    let without = chat(&server, plain).await;
    assert_eq!(without["choices"][0]["message"]["content"], texts[1..].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_a_call_as_a_whole_is_one() {
    let texts = ["{\"name\": \"weather\", ", "\"parameters\": {\"town\": \"Bonn\", ", "\"days\": 2}}"];
    let (_site, server, plain) = writes("<|start_header_id|> \"parameters\"", &texts, &[]).await;
    let body = chat(&server, with(&plain, tools())).await;
    let message = &body["choices"][0]["message"];
    assert_eq!((called(&message["tool_calls"]), &message["content"]), (vec![("weather", ARGUMENTS)], &Value::Null));
    // One that is not among those that were sent is none.
    let other = json!({ "tools": [{ "type": "function", "function": { "name": "noop" } }] });
    let body = chat(&server, with(&plain, other)).await;
    assert_eq!(body["choices"][0]["message"]["content"], texts.concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_of_a_template_whose_calls_are_not_read_are_refused() {
    let (_site, server, plain) = writes("no form", &HERMES, &[]).await;
    let error = server.post("/v1/chat/completions", with(&plain, tools())).await.expect(400).body["error"].clone();
    assert_eq!(error["param"], "tools");
    let message = error["message"].as_str().unwrap();
    assert!(["<tool_call>", "[TOOL_CALLS]", "Llama 3"].iter().all(|form| message.contains(form)), "{message}");
    chat(&server, with(&with(&plain, tools()), json!({ "tool_choice": "none" }))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_python_client_reads_calls() {
    let (_site, server, plain) = writes("<tool_call>", &HERMES, &[]).await;
    let client = ("openai-client", "requirements.txt");
    let order = with(&plain, tools()).to_string();
    let said = python::client_says(client, ("tools_client.py", &[&server.url, &order]), String::new()).await;
    assert!(said.is_none_or(|said| said.ends_with("all passed\n")));
}
