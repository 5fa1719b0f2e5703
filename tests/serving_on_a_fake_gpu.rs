//! What a batch costs of a GPU, and that nobody gets another's answer: on a fake driver that counts calls (`tests/fake_gpu`).
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "serving_on_a_fake_gpu/algorithms.rs"]
mod algorithms;
mod common;
#[path = "serving_on_a_fake_gpu/heads.rs"]
mod heads;

use std::fs;
use std::path::Path;

use common::fake_gpu::{nothing_is_left, on_fake_gpu};
use common::streams::{Streamed, alone, order, streamed};
use common::tensors::with_tensors;
use common::{Site, fixture, inputs};
use futures_util::future::join_all;
use serde_json::{Value, json};

fn texts() -> Site {
    let site = Site::new();
    site.model("texts", "task = \"embed\"\n");
    site.version("texts", "mean", &fixture("bert-embed-mean"));
    site
}

/// Words that the fixture's vocabulary has, more of them for higher numbers.
fn text(number: usize) -> String {
    const WORDS: [&str; 6] = ["a", "boat", "in", "the", "harbour", "river"];
    (0..=number % 23).map(|at| WORDS[(at * 7 + number) % WORDS.len()]).collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_at_once_each_get_their_own_answer() {
    let cpu = texts().start().await;
    let (site, report) = on_fake_gpu(texts());
    let gpu = site.start().await;
    let mut wanted = Vec::new();
    for number in 0..40 {
        wanted.push(inputs::embedding(&cpu.texts("texts", &[&text(number)]).await.expect(200).body));
    }
    let wanted = std::sync::Arc::new(wanted);
    let clients = (0..8).map(|client| {
        let (gpu, wanted) = (gpu.another(), std::sync::Arc::clone(&wanted));
        tokio::spawn(async move {
            for at in 0..60 {
                let number = (at * 3 + client * 5) % 40;
                let got = inputs::embedding(&gpu.texts("texts", &[&text(number)]).await.expect(200).body);
                let far = inputs::distance(&wanted[number], &got);
                assert!(far < 1e-4, "client {client}, text {number}: {far}");
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    nothing_is_left(gpu, &report).await;
}

/// How much more of a thing a report counted, by the name of a call or of a counter, than another one.
fn more(what: &str, (few, many): (&Value, &Value)) -> i64 {
    let of = |report: &Value| report["calls"][what].as_i64().or(report["counts"][what].as_i64()).unwrap_or(0);
    of(many) - of(few)
}

/// A fixture's model with its first layers only.
fn of_layers(name: &str, layers: usize) -> Site {
    // Op by op: what is recorded is one launch.
    let site = Site::new().config("[device]\ngraphs = false\n");
    let read = |file: &Path| -> Value { serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap() };
    let task = read(&fixture(name).join("expected.json"))["task"].as_str().unwrap().to_owned();
    site.model(name, &format!("task = \"{task}\"\n"));
    let dir = site.version(name, "v", &fixture(name));
    with_tensors(&dir, |tensors| {
        let beyond = |name: &str| {
            let number = name.split("layer.").nth(1).and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
            number.is_some_and(|number| number >= layers)
        };
        tensors.lay(|name, _, bytes| (!beyond(name)).then_some(bytes));
    });
    let mut config = read(&dir.join("config.json"));
    let key = if config["n_layers"].is_null() { "num_hidden_layers" } else { "n_layers" };
    assert!(config[key].as_u64().unwrap() >= layers as u64);
    config[key] = layers.into();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_at_most_eight_launches() {
    // GELU by a kernel of its own, by the product, or another activation; other names; norms before and after.
    for name in
        ["bert-embed-mean", "bert-embed-cls", "bert-embed-max", "distilbert-embed", "xlmr-embed", "vit-classify"]
    {
        let mut each = Vec::new();
        for layers in [1, 2] {
            let few = report_of(of_layers(name, layers), name, 5).await;
            let many = report_of(of_layers(name, layers), name, 25).await;
            each.push(["launches", "matmuls", "memsets", "copies"].map(|what| more(what, (&few, &many))));
        }
        let [launches, matmuls, memsets, copies] = [0, 1, 2, 3].map(|what: usize| each[1][what] - each[0][what]);
        // Queries, keys and values together; the output of attention; up and down.
        assert_eq!((matmuls, memsets, copies), (20 * 4, 0, 0), "{name}: {each:?}");
        assert!(launches + matmuls <= 20 * 8, "{name}: {each:?}");
        assert!(each[0].iter().all(|count| count % 20 == 0), "{name}: {each:?}");
    }
}

/// What the driver says once so many requests were answered, one after the other.
async fn report_of(site: Site, model: &str, requests: usize) -> Value {
    let (site, report) = on_fake_gpu(site);
    let server = site.start().await;
    for number in 0..requests {
        match model {
            "digits" | "vit-classify" => server.image(model, &inputs::digit(number % 10)).await.expect(200),
            _ => server.texts(model, &[&text(number)]).await.expect(200),
        };
    }
    nothing_is_left(server, &report).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_whose_toml_says_so_multiplies_in_tf32() {
    let embedding = async |toml: &str| {
        let site = texts();
        site.model("texts", &format!("task = \"embed\"\n{toml}"));
        let (site, report) = on_fake_gpu(site);
        let server = site.start().await;
        let got = inputs::embedding(&server.texts("texts", &[&text(5)]).await.expect(200).body);
        nothing_is_left(server, &report).await;
        got
    };
    let full = embedding("").await;
    assert_eq!(full, embedding("[gpu]\nf32_matmul = \"f32\"\n").await);
    let far = inputs::distance(&full, &embedding("[gpu]\nf32_matmul = \"tf32\"\n").await);
    assert!((1e-6..1e-2).contains(&far), "{far}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_poisonous_text_fails_alone_and_its_neighbours_of_the_batch_are_answered() {
    let site = Site::new();
    site.model("texts", "task = \"embed\"\n[batch]\nmax_items = 4\nmax_wait = \"5s\"\n");
    // The sum of one word's numbers is more than f32 holds.
    let folder = site.version("texts", "mean", &fixture("bert-embed-mean"));
    let word = word("night");
    with_tensors(&folder, |tensors| {
        let row = &mut tensors.bytes("embeddings.word_embeddings.weight")[word * 128..(word + 1) * 128];
        row.as_chunks_mut::<4>().0.iter_mut().for_each(|value| *value = 3e38f32.to_le_bytes());
    });
    let (site, report) = on_fake_gpu(site);
    let server = site.start().await;
    // Four together make a batch, which nothing else would end for seconds.
    let sent = ["a light", "the night", "in the second", "the light"].map(|text| {
        let client = server.another();
        tokio::spawn(async move { client.texts("texts", &[text]).await.status })
    });
    let mut statuses = Vec::new();
    for answer in sent {
        statuses.push(answer.await.unwrap());
    }
    assert_eq!(statuses, [200, 500, 200, 200], "{}", server.log());
    nothing_is_left(server, &report).await;
}

/// Its number in the fixture's vocabulary.
fn word(text: &str) -> usize {
    let tokenizer = fs::read(fixture("bert-embed-mean").join("tokenizer.json")).unwrap();
    let tokenizer: Value = serde_json::from_slice(&tokenizer).unwrap();
    tokenizer["model"]["vocab"][text].as_u64().unwrap_or_else(|| panic!("no word {text}")) as usize
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_one_copy_up_and_one_down_and_waits_for_nothing_else() {
    let eager = || texts().config("[device]\ngraphs = false\n");
    for (site, model, graphs) in [(texts as fn() -> Site, "texts", 1), (Site::digits, "digits", 1), (eager, "texts", 0)]
    {
        let few = report_of(site(), model, 5).await;
        let many = report_of(site(), model, 25).await;
        let more = |what: &str| more(what, (&few, &many));
        for (call, each) in [
            ("cuMemcpyHtoDAsync_v2", 1),
            ("cuMemcpyDtoHAsync_v2", 1),
            ("cuGraphLaunch", graphs),
            ("pageable_copies", 0),
            // Whether rows are numbers comes down with them, and nothing has to be cleared for it.
            ("cuMemsetD8Async", 0),
            ("cuStreamSynchronize", 0),
            ("cuCtxSynchronize", 0),
            ("cuStreamBeginCapture_v2", 0),
            ("allocations", 0),
            ("frees", 0),
        ] {
            assert_eq!(more(call), 20 * each, "{model}: {call} {:#} {:#}", few["calls"], many["calls"]);
        }
        // Beside a graph there may be one kernel that looks at its rows.
        let launches = more("cuLaunchKernel") + more("cublasLtMatmul");
        assert!(if graphs == 1 { launches <= 20 } else { launches > 20 * 10 }, "{model}: {launches} launches");
        let recorded = many["calls"]["cuStreamBeginCapture_v2"].as_u64().unwrap_or(0);
        assert!(if graphs == 1 { recorded > 3 } else { recorded == 0 }, "{model}: {recorded} graphs");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_batch_asks_for_what_a_load_could_have() {
    let asked_for = async |site: Site, texts: &[Vec<String>]| {
        let (site, report) = on_fake_gpu(site);
        let server = site.start().await;
        for batch in texts {
            let batch: Vec<&str> = batch.iter().map(String::as_str).collect();
            server.texts("texts", &batch).await.expect(200);
        }
        let report = nothing_is_left(server, &report).await;
        report["calls"]["cublasLtMatmulAlgoGetHeuristic"].as_u64().unwrap()
    };
    // Of one text, of some, and of more than a recording is for.
    let batches = [1, 3, 7, 20, 50, 64].map(|count| (0..count).map(text).collect::<Vec<_>>());
    // Without recordings, too.
    let eager = || texts().config("[device]\ngraphs = false\n");
    for site in [texts as fn() -> Site, eager] {
        let loaded = asked_for(site(), &[]).await;
        assert!(loaded > 50, "{loaded}");
        assert_eq!(asked_for(site(), &batches).await, loaded);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_step_asks_for_what_a_load_could_have() {
    let asked_for = async |lengths: &[usize]| {
        let site = Site::new();
        site.add_writer("tiny");
        let (site, report) = on_fake_gpu(site);
        let server = site.start().await;
        for length in lengths {
            let prompts: Vec<String> = (0..3).map(|n| format!("{n} {}", "it ".repeat(*length))).collect();
            join_all(prompts.iter().map(|prompt| alone(&server, "tiny", prompt, 4))).await;
        }
        let report = nothing_is_left(server, &report).await;
        report["calls"]["cublasLtMatmulAlgoGetHeuristic"].as_u64().unwrap()
    };
    let loaded = asked_for(&[]).await;
    assert!(loaded > 20, "{loaded}");
    assert_eq!(asked_for(&[1, 20, 80]).await, loaded);
}

/// What the driver says once so many texts of so many tokens were written, one after the other.
async fn written(graphs: bool, (texts, tokens): (usize, usize), how: &Value) -> Value {
    let site = Site::new().config(&format!("[device]\ngraphs = {graphs}\n"));
    site.add_writer("tiny");
    let (site, report) = on_fake_gpu(site);
    let server = site.start().await;
    for number in 0..texts {
        let mut order = json!({ "model": "tiny", "prompt": format!("Text {number}: it"), "max_tokens": tokens, "ignore_eos": true });
        order.as_object_mut().unwrap().extend(how.as_object().unwrap().clone());
        server.post("/v1/completions", order).await.expect(200);
    }
    nothing_is_left(server, &report).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_is_one_copy_up_and_one_down_and_one_launch_where_all_go_on_by_a_token() {
    let (greedy, drawn) = (json!({ "temperature": 0 }), json!({ "temperature": 0.7, "seed": 3, "top_p": 0.9 }));
    // With what was written before in mind: rows come whole, and no step of such is recorded.
    let whole = json!({ "temperature": 0, "frequency_penalty": 0.5 });
    for (graphs, how, recorded) in
        [(true, &greedy, 1), (true, &drawn, 1), (true, &whole, 0), (false, &greedy, 0), (false, &drawn, 0)]
    {
        // Twenty steps of one token, and twenty of whole prompts.
        let of_tokens = [written(graphs, (2, 5), how).await, written(graphs, (2, 15), how).await];
        let of_prompts = [written(graphs, (3, 1), how).await, written(graphs, (23, 1), how).await];
        for ([few, many], launches) in [(&of_tokens, recorded), (&of_prompts, 0)] {
            // Begun before the last one is told: it takes its tokens on the device, and what is waited for is its copy alone. Room
            // for what goes up is asked for by an event in any case.
            let ahead = i64::from(launches == 1 && std::ptr::eq(how, &greedy));
            for (call, each) in [
                ("cuMemcpyHtoDAsync_v2", 1),
                ("cuMemcpyDtoHAsync_v2", 1),
                ("cuStreamSynchronize", 1 - ahead),
                ("cuEventSynchronize", 1 + ahead),
                ("cuGraphLaunch", launches),
                ("pageable_copies", 0),
                ("cuMemsetD8Async", 0),
                ("cuCtxSynchronize", 0),
                ("cuStreamBeginCapture_v2", 0),
                ("allocations", 0),
                ("frees", 0),
            ] {
                let found = more(call, (few, many));
                assert_eq!(found, 20 * each, "{how}, {graphs}: {call} {:#} {:#}", few["calls"], many["calls"]);
            }
            let kernels = more("cuLaunchKernel", (few, many)) + more("cublasLtMatmul", (few, many));
            assert!(
                if launches == 1 { kernels == 20 * ahead } else { kernels > 20 * 10 },
                "{how}, {graphs}: {kernels}"
            );
        }
    }
}

/// Greedily or drawn, after prompts of any length and side by side: as without recorded steps. Those that are side by side have fewer
/// rows in any step than cublasLt is asked for, since what it sums depends on which prompts happen to come together.
#[tokio::test(flavor = "multi_thread")]
async fn texts_are_the_same_with_recorded_steps_and_without_alone_and_side_by_side() {
    let of = |number: usize, prompt: String| {
        let mut order = order("tiny", &prompt, 30);
        if number % 2 == 1 {
            order["temperature"] = json!(0.7);
            order["seed"] = json!(number);
        }
        order
    };
    let short = |number: usize| of(number, format!("{number} it"));
    let mut all = Vec::new();
    for graphs in [true, false] {
        let site = Site::new().config(&format!("[device]\ngraphs = {graphs}\n"));
        site.add_writer("tiny");
        let (site, report) = on_fake_gpu(site);
        let server = site.start().await;
        let mut texts = Vec::new();
        for number in 0..5 {
            let prompt = format!("Text {number}: {}", "it ".repeat(number * 9));
            texts.push(streamed(&server, of(number, prompt), || ()).await);
        }
        let mut alone = Vec::new();
        for number in 0..4 {
            alone.push(streamed(&server, short(number), || ()).await);
        }
        assert_eq!(join_all((0..4).map(|number| streamed(&server, short(number), || ()))).await, alone);
        all.push([texts, alone].concat());
        let report = nothing_is_left(server, &report).await;
        let launched = report["calls"]["cuGraphLaunch"].as_u64().unwrap_or(0);
        assert!(if graphs { launched > 9 * 29 } else { launched == 0 }, "{launched}");
    }
    assert_eq!(all[0], all[1]);
    assert!(all[0].iter().all(|text| text.done && !text.text.is_empty() && text.error.is_none()));
}

/// What is being written when another version takes over ends where it began, and neither leaves anything behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_writes_is_changed_in_mid_sentence() {
    let site = Site::new().fault("version = 'tiny@a'\nkind = 'delay'\ndelay = '80ms'");
    site.add_writer("tiny");
    let (site, report) = on_fake_gpu(site);
    let server = site.start().await;
    let prompts: Vec<String> = (0..5).map(|n| format!("Text {n}: it")).collect();
    let (begun, mut all_begun) = tokio::sync::mpsc::unbounded_channel();
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
    let later = join_all(prompts.iter().map(|prompt| streamed(&server, order("tiny", prompt, 40), || ()))).await;
    let earlier: Vec<Streamed> = join_all(writing).await.into_iter().map(Result::unwrap).collect();
    for ((old, new), prompt) in earlier.iter().zip(&later).zip(&prompts) {
        for (text, version) in [(old, "a"), (new, "b")] {
            assert_eq!((text.version.as_str(), text.done, &text.error), (version, true, &None));
            assert_eq!((&text.versions, text.reason.as_deref()), (&vec![format!("tiny@{version}")], Some("length")));
            assert_eq!(text.text, alone(&server, &format!("tiny@{version}"), prompt, 40).await, "{version}, {prompt}");
        }
    }
    let report = nothing_is_left(server, &report).await;
    assert!(report["calls"]["cuGraphLaunch"].as_u64().unwrap() > 100, "{report:#}");
}
