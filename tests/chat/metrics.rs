//! What `/metrics` says of models that write.

use serde_json::{Value, json};

use super::common::{Client, Site, until};

/// The sample of a version, of a name with these further labels; their order is not looked at.
async fn sample(client: &Client, name: &str, version: &str, more: &[&str]) -> f64 {
    let text = client.get("/metrics").await.expect(200).body.as_str().unwrap().to_owned();
    let version = format!("version=\"{version}\"");
    let is = |line: &&str| {
        line.split_once('{').is_some_and(|(found, labels)| {
            found == name && labels.contains(&version) && more.iter().all(|label| labels.contains(label))
        })
    };
    let line = text.lines().find(is).unwrap_or_else(|| panic!("no {name} of {version} in\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

fn order(prompt: &str, most: usize) -> Value {
    json!({ "model": "tiny", "prompt": prompt, "max_tokens": most, "temperature": 0, "ignore_eos": true })
}

#[tokio::test(flavor = "multi_thread")]
async fn each_generation_tells_its_texts_tokens_blocks_and_times() {
    let site = Site::new();
    site.add_writer("tiny");
    let server = site.start().await;
    let of = async |name: &str, more: &[&str]| sample(&server, &format!("cutover_{name}"), "a", more).await;
    let free = of("kv_cache_blocks", &["state=\"free\""]).await;
    assert!(free >= 64.0);
    let prompt = "once more and again ".repeat(8);
    let mut asked = Vec::new();
    for _ in 0..2 {
        let answer = server.post("/v1/completions", order(&prompt, 10)).await.expect(200);
        asked.push(answer.body["usage"]["prompt_tokens"].as_f64().unwrap());
    }
    until("nothing runs", async || (of("num_requests_running", &[]).await == 0.0).then_some(())).await;
    assert_eq!(
        (of("prompt_tokens_total", &[]).await, of("generation_tokens_total", &[]).await),
        (2.0 * asked[0], 20.0)
    );
    assert_eq!(of("prefix_cache_queries_total", &[]).await, 2.0 * asked[0]);
    // Whole blocks of 16, but for the last token.
    assert_eq!(of("prefix_cache_hits_total", &[]).await, ((asked[0] - 1.0) / 16.0).floor() * 16.0);
    assert!(of("kv_cache_blocks", &["state=\"cached\""]).await > 0.0);
    assert_eq!((of("kv_cache_blocks", &["state=\"used\""]).await, of("kv_cache_usage_perc", &[]).await), (0.0, 0.0));
    assert_eq!((of("num_requests_waiting", &[]).await, of("num_preemptions_total", &[]).await), (0.0, 0.0));
    for (name, count) in [("time_to_first_token_seconds", 2.0), ("inter_token_latency_seconds", 18.0)] {
        assert_eq!(of(&format!("{name}_count"), &[]).await, count);
        assert_eq!(of(&format!("{name}_bucket"), &["le=\"+Inf\""]).await, count);
        assert!(of(&format!("{name}_bucket"), &["le=\"0.0005\""]).await <= count);
        assert!(of(&format!("{name}_sum"), &[]).await > 0.0);
    }
    // Another generation begins from nothing: it has none of these keys.
    server.promote("tiny@b", json!({})).await.expect(200);
    let hits = sample(&server, "cutover_prefix_cache_hits_total", "b", &[]).await;
    server.post("/v1/completions", order(&prompt, 1)).await.expect(200);
    assert_eq!(sample(&server, "cutover_prefix_cache_hits_total", "b", &[]).await, hits);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_failed_is_computed_anew() {
    // Each pass of `a` answers with no numbers: so each request fails, and none finds what another left.
    let site = Site::new().fault("version = 'tiny@a'\nkind = 'non-finite'\nat = 'serving'");
    site.add_writer("tiny");
    let server = site.start().await;
    for _ in 0..3 {
        server.post("/v1/completions", order(&"and so it goes ".repeat(16), 4)).await.expect(500);
    }
    assert!(sample(&server, "cutover_prefix_cache_queries_total", "a", &[]).await > 96.0);
    assert_eq!(sample(&server, "cutover_prefix_cache_hits_total", "a", &[]).await, 0.0);
    assert_eq!(sample(&server, "cutover_kv_cache_blocks", "a", &["state=\"cached\""]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_preempted_is_counted_and_models_that_do_not_write_tell_none_of_it() {
    let site = Site::digits();
    let server = site.start().await;
    let text = server.get("/metrics").await.expect(200).body.as_str().unwrap().to_owned();
    assert!(!text.contains("num_requests_running"));
    site.add_writer("tiny");
    let rules = "task = 'generate'\nlive = 'a'\n[generate]\ncache_tokens = 320\n[gate]\nmax_latency_ratio = 1000";
    site.model("tiny", rules);
    until("the model is found", async || (server.live("tiny").await == "a").then_some(())).await;
    let texts = (0..12).map(|n| {
        let (client, order) = (server.another(), order(&format!("{n} and so on"), 60));
        tokio::spawn(async move { client.post("/v1/completions", order).await.expect(200) })
    });
    for text in texts.collect::<Vec<_>>() {
        text.await.unwrap();
    }
    assert!(sample(&server, "cutover_num_preemptions_total", "a", &[]).await > 0.0);
    assert_eq!(sample(&server, "cutover_generation_tokens_total", "a", &[]).await, 720.0);
}
