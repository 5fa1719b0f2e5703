//! Requests that make no sense: every one gets an answer that says why, in its dialect, and the server goes on.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::common::inputs::digit;
use crate::common::{Server, Site, fixture};

const JSON: &str = "application/json";

/// Digits, and texts with a live embedding model.
async fn both() -> (Site, Server) {
    let site = Site::digits();
    site.model("texts", "task = 'embed'\nlive = 'mean'\n[limits]\nmax_inputs = 8\n");
    site.version("texts", "mean", &fixture("bert-embed-mean"));
    let server = site.start().await;
    (site, server)
}

async fn still_serves(server: &Server) {
    assert_eq!(server.image("digits", &digit(7)).await.expect(200).label(), "7");
    server.texts("texts", &["harbour"]).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn json_that_is_broken_deep_or_mistyped_is_a_bad_request_in_every_dialect() {
    let (_site, server) = both().await;
    let deep = format!("{{\"inputs\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let bodies: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", b"".to_vec()),
        ("half a document", b"{\"inputs\": [\"a\"".to_vec()),
        ("two documents", b"{\"inputs\": [\"a\"]} {}".to_vec()),
        ("no document", b"inputs=a".to_vec()),
        ("a list", b"[1, 2]".to_vec()),
        ("null", b"null".to_vec()),
        ("deep", deep.into_bytes()),
        ("invalid UTF-8", b"{\"inputs\": [\"\xff\xfe\"]}".to_vec()),
        ("a lone surrogate", b"{\"inputs\": [\"\\ud800\"]}".to_vec()),
        ("no inputs", b"{\"input\": \"a\"}".to_vec()),
        ("no input in it", b"{\"inputs\": []}".to_vec()),
        ("a number", b"{\"inputs\": [1.5]}".to_vec()),
        ("an object without meaning", b"{\"inputs\": [{\"txt\": \"a\"}]}".to_vec()),
        ("a pair of three", b"{\"inputs\": [[\"a\", \"b\", \"c\"]]}".to_vec()),
        ("a parameter that nobody knows", b"{\"inputs\": [\"a\"], \"parameters\": {\"temprature\": 1}}".to_vec()),
        ("a parameter of another type", b"{\"inputs\": [\"a\"], \"parameters\": {\"dimensions\": \"x\"}}".to_vec()),
        ("negative dimensions", b"{\"inputs\": [\"a\"], \"parameters\": {\"dimensions\": -1}}".to_vec()),
        ("no dimensions", b"{\"inputs\": [\"a\"], \"parameters\": {\"dimensions\": 0}}".to_vec()),
        ("more dimensions than there are", b"{\"inputs\": [\"a\"], \"parameters\": {\"dimensions\": 33}}".to_vec()),
        ("a token that is not in the vocabulary", b"{\"inputs\": [[2, 999999, 3]]}".to_vec()),
        ("no token", b"{\"inputs\": [[]]}".to_vec()),
        ("an image for a text model", b"{\"inputs\": [{\"image\": \"iVBORw0KGgo=\"}]}".to_vec()),
    ];
    for (what, body) in &bodies {
        let answer = server.post_bytes("/models/texts/infer", JSON, body.clone()).await;
        assert_eq!((answer.status, answer.kind()), (400, "bad_request"), "{what}: {}", answer.body);
        assert!(!answer.message().is_empty() && answer.message().len() < 1000, "{what}: {}", answer.message());
        assert!(!answer.header("x-request-id").is_empty());
        let answer = server.post_bytes("/v1/embeddings", JSON, body.clone()).await;
        let error = &answer.body["error"];
        assert_eq!((answer.status, &error["type"]), (400, &json!("invalid_request_error")), "{what}: {}", answer.body);
        assert!(error["message"].is_string() && error.get("param").is_some(), "{what}: {}", answer.body);
    }
    for body in
        ["{\"observe\": \"soon\"}", "{\"observe\": 5}", "{\"wait\": \"forever\"}", "{\"obsrve\": \"1s\"}", "[", "7"]
    {
        let answer = server.post_bytes("/models/v2/promote", JSON, body).await;
        assert_eq!((answer.status, answer.kind()), (400, "bad_request"), "{body}: {}", answer.body);
    }
    assert_eq!(server.live("digits").await, "v1");
    still_serves(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_and_methods_that_are_not_there_are_told_in_json() {
    let (_site, server) = both().await;
    assert_eq!(server.get("/nowhere").await.expect(404).kind(), "not_found");
    assert!(server.get("/v1/nowhere").await.expect(404).body["error"]["type"].is_string());
    assert_eq!(server.get("/models/digits/infer").await.expect(405).kind(), "bad_request");
    assert_eq!(server.delete("/v1/embeddings").await.expect(405).body["error"]["type"], "invalid_request_error");
    server.image("..%2f..%2fetc", &digit(1)).await.expect(404);
    server.promote("digits@..%2fv1", json!({})).await.expect(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_may_be_empty_and_long_ones_are_cut_or_refused_as_asked() {
    let (_site, server) = both().await;
    server.texts("texts", &[""]).await.expect(200);
    server.texts("texts", &["\u{0}\u{feff}\u{202e} 👩‍👩‍👧‍👦 \u{fffd}"]).await.expect(200);
    let long = "harbour ".repeat(20_000);
    let cut = server.texts("texts", &[&long]).await.expect(200);
    assert_eq!(cut.body["outputs"][0]["embedding"].as_array().unwrap().len(), 32);
    let whole = json!({ "inputs": [long], "parameters": { "truncate": false } });
    let refused = server.post("/models/texts/infer", whole).await;
    assert!([400, 413].contains(&refused.status), "{}", refused.body);
    // In OpenAI's dialect it is cut as well, where nothing else is said.
    let embed = async |more: Value| {
        let mut order = json!({ "model": "texts", "input": "harbour ".repeat(2_000) });
        order.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/v1/embeddings", order).await
    };
    for more in [json!({}), json!({ "truncate": true }), json!({ "truncate_prompt_tokens": -1 })] {
        embed(more).await.expect(200);
    }
    let refused = embed(json!({ "truncate": false })).await.expect(400);
    assert_eq!(refused.body["error"]["code"], "context_length_exceeded", "{}", refused.body);
    let refused = embed(json!({ "truncate_prompt_tokens": 4 })).await.expect(400);
    assert_eq!(refused.body["error"]["param"], "truncate_prompt_tokens", "{}", refused.body);
    // Far more than any model reads is refused before it is tokenized.
    let enormous = server.texts("texts", &[&"harbour ".repeat(2_000_000)]).await.expect(413);
    assert_eq!(enormous.body["error"]["details"]["what"], "text in bytes");
    let many = server.texts("texts", &["harbour"; 9]).await.expect(413);
    assert_eq!(many.body["error"]["details"], json!({ "what": "number of inputs", "got": 9, "limit": 8 }));
    still_serves(&server).await;
}

/// A PNG file that declares these dimensions and holds no pixels.
fn hollow_png(width: u32, height: u32) -> Vec<u8> {
    let mut file = digit(1);
    file[16..20].copy_from_slice(&width.to_be_bytes());
    file[20..24].copy_from_slice(&height.to_be_bytes());
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_are_corrupt_enormous_or_none_are_refused() {
    let (_site, server) = both().await;
    let sound = digit(7);
    let mut flipped = sound.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xff;
    let images: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("a text", b"<svg xmlns='http://www.w3.org/2000/svg'/>".to_vec()),
        ("a signature alone", sound[..8].to_vec()),
        ("half a file", sound[..sound.len() / 2].to_vec()),
        ("a flipped byte", flipped),
        ("another format", b"GIF89a\x01\x00\x01\x00\x00\x00\x00;".to_vec()),
        ("a JPEG that begins and ends", b"\xff\xd8\xff\xd9".to_vec()),
        ("dimensions of zero", hollow_png(0, 28)),
    ];
    for (what, image) in images {
        let answer = server.image("digits", &image).await;
        assert_eq!((answer.status, answer.kind()), (400, "bad_request"), "{what}: {}", answer.body);
        let wrapped = json!({ "inputs": [{ "image": STANDARD.encode(&image) }] });
        let answer = server.post("/models/digits/infer", wrapped).await;
        assert_eq!((answer.status, answer.kind()), (400, "bad_request"), "{what}: {}", answer.body);
    }
    for (width, height) in [(60_000, 60_000), (u32::MAX, 1), (100_000, 2)] {
        let answer = server.image("digits", &hollow_png(width, height)).await;
        assert_eq!((answer.status, answer.kind()), (413, "too_large"), "{width} x {height}: {}", answer.body);
    }
    for bad in [json!("not base64!"), json!(7), Value::Null] {
        server.post("/models/digits/infer", json!({ "inputs": [{ "image": bad }] })).await.expect(400);
    }
    server.texts("digits", &["seven"]).await.expect(400);
    // One bad image refuses its request whole, and no other.
    let pair = json!({ "inputs": [{ "image": STANDARD.encode(&sound) }, { "image": STANDARD.encode("x") }] });
    server.post("/models/digits/infer", pair).await.expect(400);
    still_serves(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_of_another_task_is_refused_by_the_dialect_that_needs_one() {
    let (_site, server) = both().await;
    let refused = server.post("/v1/embeddings", json!({ "model": "digits", "input": "a" })).await.expect(400);
    assert_eq!(refused.body["error"]["param"], "model");
    let unknown = server.post("/v1/embeddings", json!({ "model": "nope", "input": "a" })).await.expect(404);
    assert_eq!(unknown.body["error"]["code"], "model_not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_web_pages_and_strangers_change_nothing() {
    let site = Site::digits();
    let token = site.path().join("token");
    std::fs::write(&token, "open sesame, if you please\n").unwrap();
    let server = site.arg("--admin-token-file").arg(token.to_str().unwrap()).start().await;
    let promote = |headers: &[(&'static str, &'static str)]| {
        let request = server.request(reqwest::Method::POST, "/models/v2/promote").json(&json!({}));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        crate::common::http::answered(request)
    };
    const SESAME: (&str, &str) = ("authorization", "Bearer open sesame, if you please");
    assert_eq!(promote(&[]).await.unwrap().expect(401).kind(), "unauthorised");
    assert_eq!(
        promote(&[("authorization", "Bearer open")]).await.unwrap().expect(401).header("www-authenticate"),
        "Bearer"
    );
    assert_eq!(promote(&[SESAME, ("host", "evil.example")]).await.unwrap().expect(403).kind(), "forbidden");
    promote(&[SESAME, ("origin", "https://evil.example")]).await.unwrap().expect(403);
    for path in ["/admin/rollback", "/admin/settle"] {
        server.post(path, json!({})).await.expect(401);
    }
    server.delete("/models/v1").await.expect(401);
    assert_eq!(server.image("digits", &digit(3)).await.expect(200).version(), "v1");
    promote(&[SESAME]).await.unwrap().expect(200);
    assert_eq!(server.image("digits", &digit(3)).await.expect(200).version(), "v2");
}
