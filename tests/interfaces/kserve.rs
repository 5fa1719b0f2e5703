//! The Open Inference Protocol through the real KServe SDK, over HTTP and over gRPC.

use crate::common::inputs::{distance, embedding};
use crate::common::{Site, fixture, python, until};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn the_real_sdk_embeds_as_the_native_route_does() {
    let site = Site::new().arg("--grpc-listen").arg("127.0.0.1:0");
    site.model("embedder", "task = 'embed'\nlive = 'one'\n");
    site.version("embedder", "one", &fixture("bert-embed-mean"));
    let server = site.start().await;
    let told = async || server.log().lines().find_map(|line| line.strip_prefix("gRPC on ").map(str::to_owned));
    let address = until("the server says where it speaks gRPC", told).await;
    let texts = ["a cat", "the ferry leaves at six"];
    let arguments = [&*server.url, &*address, "embedder", "text"];
    let client = python::client_says(
        ("kserve-client", "kserve.txt"),
        ("kserve_client.py", &arguments),
        json!(texts).to_string(),
    );
    let Some(said) = client.await else { return };
    let said: Value = serde_json::from_str(&said).unwrap();
    let mut natives = Vec::new();
    for text in texts {
        natives.extend(embedding(&server.texts("embedder", &[text]).await.expect(200).body));
    }
    for way in ["rest", "grpc"] {
        assert_eq!(said[way], json!([true, true, true]), "{way}");
        for how in ["binary", "json"] {
            let answer = &said[format!("{way} {how}")];
            // Over HTTP the SDK does not keep which version answered.
            let version = if way == "rest" { &Value::Null } else { &json!("one") };
            assert_eq!((&answer["id"], &answer["version"]), (&json!("seven"), version), "{way} {how}");
            let output = &answer["outputs"]["embedding"];
            assert_eq!(output[0], json!([2, natives.len() / 2]), "{way} {how}");
            let values: Vec<f64> = output[1].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
            assert!(distance(&values, &natives) < 3e-6, "{way} {how}");
        }
        let refused = &said[format!("{way} nothing")];
        assert_eq!(refused[0], if way == "rest" { json!(404) } else { json!(5) }, "{refused}");
        assert!(refused[1].as_str().unwrap().contains("'nothing'"), "{refused}");
    }
}
