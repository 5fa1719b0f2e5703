//! The real SmolLM2 as a GGUF file against llama.cpp, whose answers are kept in a fixture beside the script that made it.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::common::{Client, Site, fixture, smollm2};

/// How far the logarithm of a probability may lie from llama.cpp's: of the ids that it finds likeliest, at most and on
/// average. It rounds activations to eight bits where weights are Q4_1, so that its own answers are as far from the exact
/// ones; 0.45 and 0.1 were seen.
const MOST: f64 = 0.7;
const MEAN: f64 = 0.15;
/// Where its two likeliest ids are this close, either is right; where they are not, ours is its.
const TIE: f64 = 0.15;

#[derive(Deserialize)]
struct Recorded {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt: String,
    tokens: Vec<u32>,
    /// The likeliest ids of each step with the logarithms of their probabilities, the chosen one first.
    steps: Vec<Vec<(u32, f64)>>,
}

async fn write(server: &Client, prompt: &[u32], more: Value) -> Value {
    let mut order = json!({ "model": "smollm2", "prompt": prompt, "temperature": 0, "ignore_eos": true });
    order.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    server.post("/v1/completions", order).await.expect(200).body["choices"][0].clone()
}

/// How ids are spelled.
async fn spellings(server: &Client, cases: &[Case]) -> HashMap<u32, String> {
    let mut spelled = HashMap::new();
    for (id, _) in cases.iter().flat_map(|case| &case.steps).flatten() {
        if !spelled.contains_key(id) {
            let order = json!({ "model": "smollm2", "tokens": [id] });
            let told = server.post("/detokenize", order).await.expect(200).body;
            spelled.insert(*id, told["prompt"].as_str().unwrap().to_owned());
        }
    }
    spelled
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_file_says_what_llama_cpp_says() {
    if !smollm2::is_here() {
        return;
    }
    let recorded = std::fs::read(fixture("gguf/smollm2-greedy.json")).unwrap();
    let cases = serde_json::from_slice::<Recorded>(&recorded).unwrap().cases;
    let site = Site::new();
    site.add_smollm2();
    let server = site.start().await;
    let spelled = spellings(&server, &cases).await;
    for case in &cases {
        let (mut sum, mut count) = (0.0, 0.0);
        let mut prompt = case.tokens.clone();
        // Each step from llama.cpp's own words, so that one that is open does not change those after it.
        for (at, step) in case.steps.iter().enumerate() {
            let choice = write(&server, &prompt, json!({ "max_tokens": 1, "logprobs": 20 })).await;
            let ours = &choice["logprobs"]["top_logprobs"][0];
            for (place, (id, theirs)) in step.iter().enumerate() {
                let Some(ours) = ours[&spelled[id]].as_f64() else {
                    // Of twenty the last may fall out.
                    assert!(place >= 10, "{:?}, step {at}: no {:?} in {ours}", case.prompt, spelled[id]);
                    continue;
                };
                let apart = (ours - theirs).abs();
                assert!(apart <= MOST, "{:?}, step {at}: {ours} and {theirs} for {:?}", case.prompt, spelled[id]);
                sum += apart;
                count += 1.0;
            }
            let chosen = choice["logprobs"]["tokens"][0].as_str().unwrap();
            let open = |(_, theirs): &&(u32, f64)| step[0].1 - theirs < TIE;
            let allowed: Vec<&str> = step.iter().take_while(open).map(|(id, _)| spelled[id].as_str()).collect();
            assert!(allowed.contains(&chosen), "{:?}, step {at}: {chosen:?}, not of {allowed:?}", case.prompt);
            prompt.push(step[0].0);
        }
        assert!(sum / count <= MEAN, "{:?}: {} apart on average", case.prompt, sum / count);
        // And by itself: the same words up to where it was open.
        let sure = case.steps.iter().take_while(|step| step[0].1 - step[1].1 >= TIE).count();
        let whole = write(&server, &case.tokens, json!({ "max_tokens": case.steps.len(), "logprobs": 0 })).await;
        let told = whole["logprobs"]["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap());
        let theirs = case.steps.iter().map(|step| spelled[&step[0].0].as_str());
        assert!(told.take(sure).eq(theirs.take(sure)), "{whole}");
    }
    assert!(cases.len() >= 3 && cases.iter().all(|case| case.steps.len() >= 30));
}
