//! What a version that writes must show beside the live one before it may.

use std::fs;

use serde_json::{Value, json};

use super::common::tensors::Tensors;
use super::common::{Answer, Site};

const GOLDEN: &str = r#"{"id": "plain", "input": "It was a bright cold day and so on", "expect": {"max_perplexity": 1e30}}
{"id": "short", "input": "One more", "expect": {"max_perplexity": 1e30}}
"#;

/// A version whose weights are those of `b` but for what is done to them.
fn version(site: &Site, name: &str, change: impl FnOnce(&mut Tensors, &mut Value)) {
    let [b, to] = ["b", name].map(|version| site.models().join("tiny").join(version));
    fs::create_dir_all(&to).unwrap();
    for file in fs::read_dir(&b).unwrap().map(Result::unwrap) {
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&fs::read(b.join("config.json")).unwrap()).unwrap();
    let mut tensors = Tensors::read(&b.join("model.safetensors"));
    change(&mut tensors, &mut config);
    tensors.write(&to.join("model.safetensors"));
    fs::write(to.join("config.json"), config.to_string()).unwrap();
}

/// Logits of the other sign: what the others would write last of all this one writes first.
fn contrary(tensors: &mut Tensors, _: &mut Value) {
    let float = match tensors.header["model.norm.weight"]["dtype"].as_str().unwrap() {
        "F32" => 4,
        _ => 2,
    };
    tensors.bytes("model.norm.weight").chunks_exact_mut(float).for_each(|number| number[float - 1] ^= 0x80);
}

/// The one layer so many times.
fn deep(layers: usize) -> impl FnOnce(&mut Tensors, &mut Value) {
    move |tensors, config| {
        let first: Vec<(String, Value)> = tensors.header.as_object().unwrap().clone().into_iter().collect();
        for (name, tensor) in first.iter().filter(|(name, _)| name.contains("layers.0.")) {
            let bytes = tensors.bytes(name).to_vec();
            for layer in 1..layers {
                let mut tensor = tensor.clone();
                tensor["data_offsets"] = json!([tensors.data.len(), tensors.data.len() + bytes.len()]);
                tensors.header[name.replace("layers.0.", &format!("layers.{layer}."))] = tensor;
                tensors.data.extend_from_slice(&bytes);
            }
        }
        config["num_hidden_layers"] = json!(layers);
    }
}

/// Promotes `b`, the live version's weights rounded to f16, or `d`, which writes otherwise, or `e`, which is slow, under these rules.
async fn promoted_of(name: &str, gate: &str) -> Answer {
    let site = Site::new();
    site.add_writer("tiny");
    version(&site, "d", contrary);
    version(&site, "e", deep(64));
    site.model("tiny", "task = 'generate'\nlive = 'a'");
    let server = site.start().await;
    // What the live version goes on with from these, where that is a word.
    let mut golden = GOLDEN.to_owned();
    for n in 0..24 {
        let prompt = format!("Story {n}: there");
        let asked = json!({ "model": "tiny", "prompt": prompt, "max_tokens": 1, "temperature": 0 });
        let text = server.post("/v1/completions", asked).await.expect(200).body["choices"][0]["text"].clone();
        let text = text.as_str().unwrap();
        if !text.is_empty() && !text.contains('\u{fffd}') {
            let case =
                json!({ "id": format!("own {n}"), "input": prompt + text, "expect": { "max_perplexity": 1e30 } });
            golden += &format!("{case}\n");
        }
    }
    assert!(golden.lines().count() > 4, "too few of its own words: {golden}");
    fs::write(site.models().join("tiny/golden.jsonl"), golden).unwrap();
    site.model("tiny", &format!("task = 'generate'\nlive = 'a'\n[gate]\nlatency_rounds = 2\n{gate}"));
    server.promote(&format!("tiny@{name}"), json!({})).await
}

async fn promoted(gate: &str) -> Answer {
    promoted_of("b", gate).await
}

/// The checks that a refusal names.
fn failed(refused: &Answer) -> Vec<String> {
    let failed = refused.body["error"]["details"]["failed"].as_array().unwrap();
    failed.iter().map(|check| check["check"].as_str().unwrap().to_owned()).collect()
}

/// Measures of a check, by case.
fn checks<'a>(gate: &'a Value, check: &str) -> Vec<(&'a str, f64)> {
    let of = gate.as_array().unwrap().iter().filter(|found| found["check"] == check);
    of.map(|found| (found["case"].as_str().unwrap_or(""), found["measure"].as_f64().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_and_times_are_compared_with_the_live_version_case_by_case() {
    let rollout = promoted("max_latency_ratio = 1000").await.expect(200).body;
    let gate = &rollout["gate"];
    let gaps = checks(gate, "logprob-agreement");
    assert_eq!(gaps[..2].iter().map(|(case, _)| *case).collect::<Vec<_>>(), ["plain", "short"], "{gate}");
    // Rounded, and no more than that.
    assert!(gaps.iter().all(|(_, gap)| *gap > 0.0 && *gap < 0.05), "{gaps:?}");
    let shares = checks(gate, "greedy-agreement");
    assert!(shares.len() == gaps.len() && shares.iter().all(|(_, share)| *share == 1.0), "{shares:?}");
    // Of all texts together: rounding makes neither much likelier.
    let perplexity = checks(gate, "perplexity-ratio");
    assert!(perplexity.len() == 1 && (0.9..1.1).contains(&perplexity[0].1), "{perplexity:?}");
    for check in ["latency-ratio", "token-latency-ratio"] {
        assert!(checks(gate, check).iter().all(|(_, ratio)| *ratio > 0.0) && checks(gate, check).len() == 1, "{gate}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_finds_other_texts_likely_is_refused() {
    let refused = promoted("max_latency_ratio = 1000\nmax_logprob_gap = 1e-9").await.expect(422);
    assert!(failed(&refused).iter().all(|check| check == "logprob-agreement"), "{}", refused.body);
    let failed = refused.body["error"]["details"]["failed"].as_array().unwrap();
    assert_eq!((&failed[0]["case"], failed[0]["limit"].as_f64()), (&json!("plain"), Some(1e-9)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_would_write_otherwise_is_refused_where_it_must_not() {
    let rules = "max_latency_ratio = 1000\nmax_logprob_gap = 1000\nmax_perplexity_ratio = 1e6";
    let passed = promoted_of("d", rules).await.expect(200).body;
    let shares = checks(&passed["gate"], "greedy-agreement");
    assert!(shares.iter().any(|(_, share)| *share == 0.0), "{shares:?}");
    let refused = promoted_of("d", &format!("{rules}\nmin_greedy_agreement = 0.5")).await.expect(422);
    assert!(failed(&refused).iter().all(|check| check == "greedy-agreement"), "{}", refused.body);
    // And so much more surprised by the texts it may be, and no more.
    let ratio = checks(&passed["gate"], "perplexity-ratio")[0].1;
    for (limit, status) in [(ratio * 1.001, 200), (ratio * 0.999, 422)] {
        let rules = format!("max_latency_ratio = 1000\nmax_logprob_gap = 1000\nmax_perplexity_ratio = {limit}");
        let answer = promoted_of("d", &rules).await.expect(status);
        assert!(status == 200 || failed(&answer) == ["perplexity-ratio"], "{}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_slow_at_its_tokens_is_refused() {
    let others = "max_logprob_gap = 1000\nmax_perplexity_ratio = 1e6";
    for (rules, check) in [
        ("max_latency_ratio = 1e6\nmax_token_latency_ratio = 1.5", "token-latency-ratio"),
        ("max_latency_ratio = 1.5\nmax_token_latency_ratio = 1e6", "latency-ratio"),
    ] {
        let refused = promoted_of("e", &format!("{others}\n{rules}")).await.expect(422);
        assert_eq!(failed(&refused), [check], "{}", refused.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_takes_fewer_chats_is_refused_and_serves_where_that_is_accepted() {
    let site = Site::new();
    site.add_writer("tiny");
    let template = |name: &str, text: Option<&str>| {
        version(&site, name, |_, _| ());
        let path = site.models().join("tiny").join(name).join("tokenizer_config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert!(config["chat_template"].is_string(), "{config}");
        config["chat_template"] = text.map_or(Value::Null, Value::from);
        fs::write(path, config.to_string()).unwrap();
    };
    template("fails", Some("{{ raise_exception('no way') }}"));
    template("loops", Some("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}"));
    template("none", None);
    template(
        "alone",
        Some("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}"),
    );
    site.model("tiny", "task = 'generate'\nlive = 'b'\n[gate]\nmax_latency_ratio = 1000\nlatency_rounds = 2");
    let server = site.start().await;
    for (name, lost) in [
        ("fails", "a question, a conversation, a system message"),
        ("loops", "a question, a conversation, a system message"),
        ("none", "a question, a conversation, a system message"),
        ("alone", "a system message"),
    ] {
        let refused = server.promote(&format!("tiny@{name}"), json!({})).await.expect(422);
        assert_eq!(failed(&refused), ["contract"], "{name}: {}", refused.body);
        assert!(refused.message().contains("chats changes from"), "{name}: {}", refused.message());
        let told = server.get(&format!("/models/tiny@{name}/diff")).await.expect(200).body.to_string();
        assert!(told.contains(&format!("its chat template does not take any more: {lost}")), "{name}: {told}");
    }
    server.promote("tiny@alone", json!({ "accept_contract_change": true })).await.expect(200);
    let chat = json!({ "model": "tiny", "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 1 });
    server.post("/v1/chat/completions", chat).await.expect(200);
}
