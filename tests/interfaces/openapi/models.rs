//! What is asked of models, in every dialect.

use reqwest::Method;
use serde_json::json;

use super::{Ask, JSON_BYTES, SEVEN, Told, seven};

pub(super) async fn inference(server: &mut Told) {
    let (status, body) = server.post("/models/digits/infer", json!({ "inputs": [seven(), seven()] })).await;
    assert_eq!((status, &body["outputs"][1]["labels"][0]["label"]), (200, &json!("7")));
    let (status, body) = server.ask(Method::POST, "/models/digits@v1/infer", Ask::Image(SEVEN.clone())).await;
    assert_eq!((status, &body["version"]), (200, &json!("v1")));
    let inputs = json!(["a text", { "text": "another" }, [1, 2, 3]]);
    let parameters = json!({ "truncate": true, "dimensions": 4, "normalize": true, "deadline_ms": 5000 });
    let (status, body) = server.post("/models/tiny/infer", json!({ "inputs": inputs, "parameters": parameters })).await;
    assert_eq!((status, body["outputs"][2]["embedding"].as_array().unwrap().len()), (200, 4));
}

pub(super) async fn refused_inference(server: &mut Told) {
    for body in [
        json!({}),
        json!({ "inputs": [] }),
        json!({ "inputs": [7] }),
        json!({ "inputs": [{ "image": "a", "text": "b" }] }),
        json!({ "inputs": [seven()], "more": 1 }),
        json!({ "inputs": [seven()], "parameters": { "truncate": "yes" } }),
    ] {
        let spec = server.operation("POST", "/models/digits/infer").spec;
        let schema = &spec["requestBody"]["content"]["application/json"]["schema"];
        assert!(!server.errors(schema, &body).is_empty(), "the document allows {body}");
        assert_eq!(server.post("/models/digits/infer", body.clone()).await.0, 400, "{body}");
    }
    for text in ["{", "", "[]", "\"\u{1}\""] {
        assert_eq!(server.ask(Method::POST, "/models/digits/infer", Ask::Text(text)).await.0, 400, "{text}");
    }
    assert_eq!(server.post("/models/digits/infer", json!({ "inputs": ["a text"] })).await.0, 400);
    assert_eq!(server.ask(Method::POST, "/models/digits/infer", Ask::Image(b"no".to_vec())).await.0, 400);
    let (status, body) = server.post("/models/nothing/infer", json!({ "inputs": ["x"] })).await;
    assert_eq!((status, &body["error"]["kind"]), (404, &json!("not_found")));
    assert_eq!(server.post("/models/digits@v2/infer", json!({ "inputs": [seven()] })).await.0, 409);
    assert_eq!(server.ask(Method::POST, "/models/%ff/infer", Ask::Nothing).await.0, 400);
    let long = vec!["a text of many words ".repeat(100); 500];
    let slow = json!({ "inputs": long, "parameters": { "deadline_ms": 1 } });
    assert_eq!(server.post("/models/tiny/infer", slow).await.0, 504);
    let many: Vec<&str> = vec!["a"; 5000];
    assert_eq!(server.post("/models/tiny/infer", json!({ "inputs": many })).await.0, 413);
}

pub(super) async fn writing(server: &mut Told) {
    let text =
        json!({ "model": "writer", "prompt": "It is", "max_tokens": 4, "logprobs": 2, "stop": ["never"], "seed": 1 });
    assert_eq!(server.post("/v1/completions", text).await.0, 200);
    let chat = |messages| json!({ "model": "writer", "messages": messages, "max_tokens": 4, "logprobs": true, "n": 2 });
    assert_eq!(server.post("/v1/chat/completions", chat(json!([{ "role": "user", "content": "a" }]))).await.0, 200);
    assert_eq!(server.post("/v1/chat/completions", chat(json!([]))).await.0, 400);
    assert_eq!(server.post("/v1/completions", json!({ "model": "tiny", "prompt": "a" })).await.0, 400);
    let order = json!({ "model": "writer", "prompt": "It is", "return_token_strs": true });
    let (status, told) = server.post("/tokenize", order).await;
    assert_eq!(status, 200);
    let order = json!({ "model": "writer", "tokens": told["tokens"] });
    assert_eq!(server.post("/detokenize", order).await.0, 200);
}

pub(super) async fn openai(server: &mut Told) {
    for format in [json!(null), json!("float"), json!("base64")] {
        let body = json!({ "model": "tiny", "input": ["a", "b"], "encoding_format": format });
        assert_eq!(server.post("/v1/embeddings", body).await.0, 200);
    }
    for (truncate, tokens, status) in
        [(json!(false), json!(-1), 200), (json!(null), json!(null), 200), (json!(true), json!(8), 400)]
    {
        let body = json!({ "model": "tiny", "input": "a", "truncate": truncate, "truncate_prompt_tokens": tokens });
        assert_eq!(server.post("/v1/embeddings", body).await.0, status);
    }
    for input in [json!("a"), json!([1, 2]), json!([[1], [2, 3]])] {
        assert_eq!(server.post("/v1/embeddings", json!({ "model": "tiny@one", "input": input })).await.0, 200);
    }
    for input in [json!([]), json!(""), json!({}), json!([1, "a"])] {
        assert_eq!(server.post("/v1/embeddings", json!({ "model": "tiny", "input": input })).await.0, 400);
    }
    assert_eq!(server.post("/v1/embeddings", json!({ "model": "digits", "input": "a" })).await.0, 400);
    let (status, body) = server.post("/v1/embeddings", json!({ "model": "nothing", "input": "a" })).await;
    assert_eq!((status, &body["error"]["code"]), (404, &json!("model_not_found")));
    assert_eq!(server.get("/v1/models").await.1["data"].as_array().unwrap().len(), 5);
    assert_eq!(server.get("/v1/models/tiny").await.0, 200);
    assert_eq!(server.get("/v1/models/nothing").await.0, 404);
    assert_eq!(server.get("/v1/models/%ff").await.0, 400);
}

pub(super) async fn oip(server: &mut Told) {
    let text = json!({ "name": "text", "shape": [2], "datatype": "BYTES", "data": ["a", "b"] });
    for path in ["/v2/models/tiny/infer", "/v2/models/tiny/versions/one/infer"] {
        let wanted = json!([{ "name": "embedding", "parameters": { "binary_data": false } }]);
        let body = json!({ "id": "7", "inputs": [text], "outputs": wanted, "parameters": { "normalize": true } });
        assert_eq!(server.post(path, body).await.0, 200);
        assert_eq!(server.post(path, json!({ "inputs": [] })).await.0, 400);
        let bytes = json!({ "inputs": [text], "parameters": { "binary_data_output": true } });
        assert!(server.post(path, bytes).await.1.as_str().unwrap().contains(r#""binary_data_size":"#));
        assert_eq!(server.ask(Method::POST, path, Ask::As(JSON_BYTES, "0")).await.0, 200);
        assert_eq!(server.ask(Method::POST, path, Ask::As(JSON_BYTES, "-1")).await.0, 400);
    }
    for path in ["/v2", "/v2/models", "/v2/models/stats"] {
        assert_eq!(server.get(path).await.0, 200);
    }
    for what in ["", "/config", "/ready", "/stats"] {
        assert_eq!(server.get(&format!("/v2/models/tiny{what}")).await.0, 200);
        assert_eq!(server.get(&format!("/v2/models/tiny/versions/one{what}")).await.0, 200);
        assert_eq!(server.get(&format!("/v2/models/nothing{what}")).await.0, 404);
    }
    assert_eq!(server.post("/v2/repository/index", json!({ "ready": true })).await.0, 200);
    // It is so already, the one and the other.
    assert_eq!(server.post("/v2/repository/models/tiny@one/load", json!({})).await.0, 200);
    assert_eq!(server.post("/v2/repository/models/digits@v2/unload", json!({})).await.0, 200);
    assert_eq!(server.post("/v2/repository/models/tiny@nine/load", json!({})).await.0, 404);
}

pub(super) async fn tei(server: &mut Told) {
    for inputs in [json!("a"), json!(["a", "b"]), json!([1, 2]), json!([[1], [2, 3]])] {
        for path in ["/", "/embed"] {
            assert_eq!(server.post(path, json!({ "inputs": inputs, "truncate": true })).await.0, 200);
        }
    }
    for inputs in [json!("a"), json!(["a", "b"]), json!([["a"], ["a", "b"]])] {
        assert_eq!(server.post("/predict", json!({ "inputs": inputs, "raw_scores": true })).await.0, 200);
    }
    let rerank = json!({ "query": "a", "texts": ["b", "c"], "return_text": true });
    assert_eq!(server.post("/rerank", rerank).await.0, 200);
    assert_eq!(server.get("/info").await.0, 200);
    assert_eq!(server.ask(Method::POST, "/info", Ask::Nothing).await.0, 200);
    assert_eq!(server.post("/embed", json!({ "inputs": [] })).await.0, 400);
    for body in [json!({}), json!({ "inputs": 7 }), json!({ "inputs": "a", "truncation_direction": "left" })] {
        assert_eq!(server.post("/embed", body).await.0, 422);
    }
    assert_eq!(server.post("/embed", json!({ "inputs": vec!["a"; 5000] })).await.0, 413);
}

pub(super) async fn health(server: &mut Told) {
    for path in ["/health", "/v2/health/live", "/ready", "/v2/health/ready", "/openapi.json"] {
        assert_eq!(server.get(path).await.0, 200, "{path}");
    }
    for path in ["/", "/page/style.css", "/page/page.js", "/page/icon.svg"] {
        assert_eq!(server.get(path).await.0, 200, "{path}");
    }
    assert_eq!(server.get("/page/nothing").await.0, 404);
    assert!(server.get("/metrics").await.1.as_str().unwrap().ends_with("# EOF\n"));
    for path in ["/health", "/models", "/v1/models"] {
        let foreign = Ask::As("origin", "https://evil.example");
        assert_eq!(server.ask(Method::GET, path, foreign).await.0, 403, "{path}");
    }
}
