//! The Open Inference Protocol, through the real `tritonclient` and by raw HTTP.

use crate::common::inputs::{distance, embedding};
use crate::common::{Server, Site, fixture, python};
use base64::Engine as _;
use serde_json::{Value, json};

/// What a script with the real client prints.
async fn client_says(script: &str, arguments: &[&str], input: Value) -> Option<String> {
    python::client_says(("oip-client", "oip.txt"), (script, arguments), input.to_string()).await
}

fn address(server: &Server) -> String {
    server.url.strip_prefix("http://").unwrap().to_owned()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn embedder() -> Site {
    let site = Site::new();
    let window = "[gate]\nmax_latency_ratio = 1000\nlatency_rounds = 2\n[observe]\nwindow = '1h'\n";
    site.model("embedder", &format!("task = 'embed'\nlive = 'one'\n{window}"));
    site.version("embedder", "one", &fixture("bert-embed-mean"));
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_client_embeds_as_the_native_route_does() {
    let server = embedder().start().await;
    let texts = ["a cat", "the ferry leaves at six"];
    for how in ["binary", "json"] {
        let said = client_says("oip_client.py", &[&address(&server), "embedder", "text", how], json!(texts)).await;
        let Some(said) = said else { return };
        let said: Value = serde_json::from_str(&said).unwrap();
        for (what, expected) in [("live", true), ("ready", true), ("model_ready", true), ("nothing_ready", false)] {
            assert_eq!(said[what], expected, "{what}");
        }
        assert_eq!(said["metadata"]["versions"], json!(["one"]));
        assert_eq!(said["config"]["input"][0]["data_type"], "TYPE_STRING");
        assert_eq!(said["index"], json!([{ "name": "embedder", "version": "one", "state": "READY", "reason": "" }]));
        assert_eq!((&said["id"], &said["version"]), (&json!("seven"), &json!("one")));
        assert_eq!(said["refused"][0], "404");
        let output = &said["outputs"]["embedding"];
        let width = output["shape"][1].as_u64().unwrap() as usize;
        assert_eq!(said["metadata"]["outputs"][0]["shape"], json!([-1, width]));
        for (text, row) in texts.iter().zip(floats(&output["values"]).chunks(width)) {
            let native = embedding(&server.texts("embedder", &[text]).await.expect(200).body);
            assert!(distance(row, &native) < 2e-6, "{text}");
        }
        assert!(said["statistics"]["model_stats"][0]["inference_stats"]["success"]["count"].as_u64().unwrap() > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_client_classifies_images_and_changes_versions() {
    let server = Site::digits().start().await;
    let image = crate::common::inputs::digit(7);
    let encoded = format!("base64:{}", base64::engine::general_purpose::STANDARD.encode(&image));
    let ask = async || {
        let arguments = [&address(&server), "digits", "image", "binary"];
        client_says("oip_client.py", &arguments, json!([encoded]))
            .await
            .map(|said| serde_json::from_str::<Value>(&said).unwrap())
    };
    let Some(said) = ask().await else { return };
    let native = server.image("digits", &image).await.expect(200);
    let labels = &native.body["outputs"][0]["labels"];
    assert_eq!(said["version"], native.version());
    for (rank, label) in said["outputs"]["label"]["values"].as_array().unwrap().iter().enumerate() {
        assert_eq!(label, &labels[rank]["label"]);
        let score = said["outputs"]["score"]["values"][rank].as_f64().unwrap();
        assert!((score - labels[rank]["score"].as_f64().unwrap()).abs() < 1e-6);
    }
    let change = async |what: &str, model: &str| {
        client_says("oip_repository.py", &[&address(&server), what, model], json!(null)).await.unwrap()
    };
    assert_eq!(change("load", "digits@v2").await, "");
    assert_eq!(ask().await.unwrap()["version"], "v2");
    server.post("/admin/settle", json!({ "model": "digits" })).await.expect(200);
    // The broken version is refused by its gate, and says so; the live one cannot be unloaded.
    for (what, model, says) in
        [("load", "digits@v3", "422 the gate refused digits@v3"), ("unload", "digits@v2", "409 ")]
    {
        let said = change(what, model).await;
        assert!(said.starts_with(says), "{what} {model}: {said}");
    }
    // Without a version it is already there, whichever is live.
    assert_eq!(change("load", "digits").await, "");
    assert_eq!(ask().await.unwrap()["version"], "v2");
}

#[tokio::test]
async fn a_live_model_is_loaded_already_where_no_version_is_named() {
    let server = Site::digits().start().await;
    server.promote("digits@v2", json!({ "observe": "0s", "wait": "settled" })).await.expect(200);
    let rollouts = async || server.get("/admin/rollouts").await.expect(200).body["rollouts"].as_array().unwrap().len();
    let before = rollouts().await;
    let load = async |order: Value| server.post("/v2/repository/models/digits/load", order).await;
    load(json!({})).await.expect(200);
    assert_eq!((server.live("digits").await, rollouts().await), ("v2".to_owned(), before));
    load(json!({ "parameters": { "version": "v1" } })).await.expect(200);
    assert_eq!(server.live("digits").await, "v1");
}

#[tokio::test]
async fn a_model_that_writes_has_no_tensors_and_says_so() {
    let site = Site::new();
    site.add_writer("tiny");
    let server = site.start().await;
    let told = server.get("/v2/models/tiny").await.expect(200).body;
    assert_eq!((&told["inputs"], &told["outputs"]), (&json!([]), &json!([])));
    let input = json!({ "name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"] });
    let refused = server.post("/v2/models/tiny/infer", json!({ "inputs": [input] })).await.expect(400);
    assert!(refused.body["error"].as_str().unwrap().contains("/v1/chat/completions"), "{}", refused.body);
}

#[tokio::test]
async fn a_body_without_json_is_the_only_input() {
    let server = embedder().start().await;
    let request = server.request(reqwest::Method::POST, "/v2/models/embedder/infer");
    let raw = request.header("inference-header-content-length", "0").body("a cat").send().await.unwrap();
    assert_eq!((raw.status(), raw.headers()["x-cutover-version"].to_str().unwrap()), (200.try_into().unwrap(), "one"));
    let raw: Value = raw.json().await.unwrap();
    let native = embedding(&server.texts("embedder", &["a cat"]).await.expect(200).body);
    assert!(distance(&floats(&raw["outputs"][0]["data"]), &native) < 2e-6);
}

#[tokio::test]
async fn what_is_wrong_is_told_in_the_protocols_words_and_the_server_goes_on() {
    let server = embedder().start().await;
    let text = |changes: Value| {
        let mut input = json!({ "name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"] });
        changes.as_object().unwrap().iter().for_each(|(key, value)| input[key] = value.clone());
        json!({ "inputs": [input] })
    };
    for (path, body, status, says) in [
        ("/v2/models/nothing/infer", text(json!({})), 404, "nothing"),
        ("/v2/models/embedder/versions/two/infer", text(json!({})), 404, "two"),
        ("/v2/models/embedder@one/versions/one/infer", text(json!({})), 400, "so does the path"),
        ("/v2/models/embedder/infer", text(json!({ "name": "texts" })), 400, "'text' is missing"),
        ("/v2/models/embedder/infer", text(json!({ "shape": [-1] })), 400, "no shape"),
        ("/v2/models/embedder/infer", text(json!({ "datatype": "FP32", "data": [1] })), 400, "are BYTES"),
        ("/v2/models/embedder/infer", json!({}), 400, "inputs"),
        ("/v2/models/embedder/infer", json!([]), 400, "not a JSON object"),
        ("/v2/repository/models/embedder@nine/load", json!({}), 404, "nine"),
        ("/v2/repository/models/embedder/load", json!({ "parameters": { "config": "{}" } }), 400, "config"),
        ("/v2/nowhere", json!({}), 404, "route"),
    ] {
        let answer = server.post(path, body).await;
        let told = answer.body["error"].as_str().unwrap_or_else(|| panic!("{path}: {}", answer.body));
        assert!(answer.status == status && told.contains(says), "{path}: {} {told}", answer.status);
    }
    for (length, body) in [("9999", "{}"), ("x", "{}"), ("2", "{}trailing"), ("18446744073709551615", "{}")] {
        let request = server.request(reqwest::Method::POST, "/v2/models/embedder/infer");
        let answer = request.header("inference-header-content-length", length).body(body).send().await.unwrap();
        assert_eq!(answer.status(), 400, "{length}");
    }
    let versioned = server.post("/v2/models/embedder/versions/one/infer", text(json!({}))).await.expect(200);
    assert_eq!((versioned.version(), &versioned.body["model_version"]), ("one", &json!("one")));
}
