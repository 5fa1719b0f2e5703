//! Models whose folder is broken or gone: they answer 503 with the reason, the others serve (promise 9).

use std::fs;

use serde_json::{Value, json};

use super::common::inputs::digit;
use super::common::{DIGITS, Server, Site, root, until};

/// Two models with `v2` live in both; their server has ended.
async fn two_models() -> Site {
    let site = Site::digits();
    site.add_digits("numbers");
    // One that has no version yet is missing nothing.
    site.model("empty", "task = 'embed'\n");
    let mut server = site.start().await;
    for model in ["digits", "numbers"] {
        server.promote(&format!("{model}@v2"), json!({ "observe": "0s", "wait": "settled" })).await.expect(200);
    }
    server.kill();
    site
}

/// `digits` is told as down everywhere, with every part of a reason; `numbers` serves.
async fn down(server: &Server, reason: &[&str]) {
    for reference in ["digits", "digits@v2"] {
        let answer = server.image(reference, &digit(1)).await.expect(503);
        assert_eq!(answer.kind(), "not_serving");
        assert!(answer.headers.contains_key("retry-after"));
        for part in reason {
            assert!(answer.message().contains(part), "{part} is missing: {}", answer.message());
        }
    }
    let ready = server.get("/ready").await.expect(503);
    assert_eq!(ready.body["not_serving"][0]["model"], "digits", "{}", ready.body);
    assert_eq!(ready.body["not_serving"].as_array().unwrap().len(), 1, "{}", ready.body);
    let listed = server.model("digits").await;
    assert_eq!(listed["live"], Value::Null);
    assert!(listed["not_serving"].as_str().unwrap().contains(reason[0]), "{listed}");
    assert_eq!(server.image("numbers", &digit(1)).await.expect(200).version(), "v2");
    // A model that has no version yet is missing nothing here either.
    let page = server.get("/metrics").await.expect(200).body.as_str().unwrap().to_owned();
    let serving: Vec<&str> = page.lines().filter(|line| line.starts_with("cutover_model_serving{")).collect();
    let expected = ["cutover_model_serving{model=\"digits\"} 0", "cutover_model_serving{model=\"numbers\"} 1"];
    assert_eq!(serving, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_whose_toml_broke_is_down_until_it_is_mended_and_promoted() {
    let site = two_models().await;
    site.model("digits", "task = 'image-classify'\nlive = \n");
    let server = site.start().await;
    down(&server, &["digits/model.toml", "line 2"]).await;
    let refused = server.promote("digits@v2", json!({})).await.expect(422);
    assert!(refused.message().contains("model.toml"), "{}", refused.message());
    // It is logged when it is found, not each time that somebody looks.
    for _ in 0..5 {
        server.get("/models").await.expect(200);
    }
    let log = server.says("its model.toml cannot be used").await;
    assert_eq!(log.matches("its model.toml cannot be used").count(), 1, "{log}");

    site.model("digits", "task = 'image-classify'\n[gate]\nmax_latency_ratio = 1000\n");
    assert_eq!(server.promote("digits@v2", json!({})).await.expect(200).body["to"], "v2");
    assert_eq!(server.image("digits", &digit(1)).await.expect(200).version(), "v2");
    server.get("/ready").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_whose_folder_is_gone_is_down_until_it_is_back_or_forgotten() {
    let site = two_models().await;
    let (here, away) = (site.models().join("digits"), site.path().join("away"));
    fs::rename(&here, &away).unwrap();
    let mut server = site.start().await;
    down(&server, &["digits@v2", "folder is gone"]).await;
    server.says("folder is gone").await;
    server.kill();

    fs::rename(&away, &here).unwrap();
    let mut server = site.start().await;
    assert_eq!(server.live("digits").await, "v2");
    let there = server.delete("/models/digits").await.expect(409);
    assert!(there.message().contains("live"), "{}", there.message());
    server.kill();

    fs::rename(&here, &away).unwrap();
    let mut server = site.start().await;
    server.get("/ready").await.expect(503);
    assert_eq!(server.delete("/models/digits").await.expect(200).body["forgotten"], true);
    server.get("/ready").await.expect(200);
    server.image("digits", &digit(1)).await.expect(404);
    server.kill();
    let mut server = site.start().await;
    server.get("/ready").await.expect(200);
    server.get("/models/digits").await.expect(404);
    server.kill();
    let (whole, said) = site.verify();
    assert!(whole, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_model_with_a_broken_toml_is_down_from_the_start() {
    let site = Site::digits();
    site.add_digits("numbers");
    site.model("digits", "task = 'image-classify'\nliv = 'v1'\n");
    let server = site.start().await;
    let answer = server.image("digits", &digit(1)).await.expect(503);
    assert!(answer.message().contains("liv"), "{}", answer.message());
    server.get("/ready").await.expect(503);
    assert_eq!(server.image("numbers", &digit(1)).await.expect(200).version(), "v1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_goes_while_it_serves_changes_nothing_until_the_next_start_or_until_it_is_forgotten() {
    let site = Site::digits();
    let server = site.start().await;
    let on_disk = async || {
        let page = server.get("/metrics").await.expect(200).body.as_str().unwrap().to_owned();
        let name = "cutover_live_version_on_disk{model=\"digits\",version=\"v1\"} ";
        page.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned()
    };
    assert_eq!(on_disk().await, "1");
    let (folder, aside) = (site.models().join("digits/v1"), site.path().join("aside"));
    fs::rename(&folder, &aside).unwrap();
    assert_eq!(server.model("digits").await["live"]["version"], "v1");
    server.says("the folder of what serves is gone").await;
    assert_eq!(on_disk().await, "0");
    fs::rename(&aside, &folder).unwrap();
    server.says("the folder of what serves is back").await;
    assert_eq!(on_disk().await, "1");
    fs::remove_dir_all(site.models().join("digits")).unwrap();
    assert_eq!(server.model("digits").await["live"]["version"], "v1");
    let told = async || (server.log().matches("the folder of what serves is gone").count() == 2).then_some(());
    until("it is told again", told).await;
    assert_eq!(server.image("digits", &digit(1)).await.expect(200).version(), "v1");
    server.promote("digits@v2", json!({})).await.expect(404);
    server.get("/ready").await.expect(200);
    // Whoever names a version may not know that the folder is gone.
    let refused = server.delete("/models/digits@v1").await.expect(409);
    assert!(refused.message().contains("name 'digits' alone"), "{}", refused.message());
    assert_eq!(server.image("digits", &digit(1)).await.expect(200).version(), "v1");

    assert_eq!(server.delete("/models/digits").await.expect(200).body, json!({ "model": "digits", "forgotten": true }));
    server.image("digits", &digit(1)).await.expect(404);
    server.get("/ready").await.expect(200);
    let freed = async || server.memory().await["generations"].as_array().unwrap().is_empty().then_some(());
    until("its memory is back", freed).await;
    // A folder of that name is a new model's.
    site.model("digits", DIGITS);
    site.version("digits", "v1", &root().join("models/digits/v1"));
    let served = async || (server.image("digits", &digit(1)).await.status == 200).then_some(());
    until("the new one is served", served).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_version_of_a_known_model_is_served_unasked_and_nothing_was_unready_before() {
    let site = Site::digits();
    site.model("numbers", DIGITS);
    let server = site.start().await;
    server.get("/ready").await.expect(200);
    assert_eq!(server.image("numbers", &digit(4)).await.expect(503).kind(), "not_serving");
    site.version("numbers", "v1", &root().join("models/digits/v1"));
    // Nobody lists models, and nobody promotes.
    let served = until("the first version is served", async || {
        assert_eq!(server.get("/ready").await.status, 200);
        let answer = server.image("numbers", &digit(4)).await;
        (answer.status == 200).then_some(answer)
    });
    assert_eq!(served.await.version(), "v1");
}
