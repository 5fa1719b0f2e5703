//! API keys: models answer only to those who bear one, whatever the dialect; the admin token is something else.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::common::http::answered;
use crate::common::inputs::digit;
use crate::common::{Answer, Server, Site, fixture, until};
use reqwest::Method;
use serde_json::json;

const ALICE: &str = "alice-s-key-0123456789";
const BOB: &str = "bob-s-key-0123456789";
const TOKEN: &str = "sesame-open-0123";

struct Guarded {
    site: Site,
    keys: PathBuf,
    token: PathBuf,
}

/// Digits and a model that embeds, behind a key and an admin token.
fn guarded() -> Guarded {
    let site = Site::digits();
    site.model("tiny", "task = 'embed'\nlive = 'one'\n");
    site.version("tiny", "one", &fixture("bert-embed-mean"));
    let (keys, token) = (site.path().join("keys"), site.path().join("token"));
    fs::write(&keys, format!("# who may come in\nalice:{ALICE}\n")).unwrap();
    fs::write(&token, TOKEN).unwrap();
    let site = site.arg("--api-key-file").arg(keys.to_str().unwrap());
    let site = site.arg("--admin-token-file").arg(token.to_str().unwrap()).config("[log]\nfilter = 'debug'");
    Guarded { site, keys, token }
}

/// Asks with these headers.
async fn ask(server: &Server, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
    let request =
        headers.iter().fold(server.request(method, path), |request, (name, value)| request.header(*name, *value));
    let request = match path {
        "/v1/embeddings" => request.json(&json!({ "model": "tiny", "input": "harbour" })),
        "/models/tiny/infer" => request.json(&json!({ "inputs": ["harbour"] })),
        "/models/v2/promote" => request.json(&json!({})),
        _ => request,
    };
    answered(request).await.unwrap()
}

fn bearer(secret: &str) -> String {
    format!("Bearer {secret}")
}

#[tokio::test(flavor = "multi_thread")]
async fn models_answer_to_keys_only_and_health_to_everybody() {
    let server = guarded().site.start().await;
    let alice = bearer(ALICE);
    for (method, path) in [
        (Method::POST, "/models/tiny/infer"),
        (Method::POST, "/v1/embeddings"),
        (Method::GET, "/models"),
        (Method::GET, "/models/tiny"),
        (Method::GET, "/v1/models"),
        (Method::GET, "/v1/models/tiny"),
    ] {
        for headers in [
            &[][..],
            &[("authorization", "Bearer alice-s-key-012345678")],
            &[("authorization", "Basic YWxpY2U6YWxpY2U=")],
            &[("x-api-key", "alice")],
            &[("x-api-key", "")],
        ] {
            let refused = ask(&server, method.clone(), path, headers).await.expect(401);
            assert_eq!(refused.header("www-authenticate"), "Bearer", "{path}");
            assert_ne!(refused.header("x-request-id"), "");
            let (error, openai) = (&refused.body["error"], path.starts_with("/v1/"));
            let told = if openai { &error["code"] } else { &error["kind"] };
            assert_eq!(told, if openai { "invalid_api_key" } else { "unauthorised" }, "{path}: {}", refused.body);
        }
        ask(&server, method.clone(), path, &[("authorization", &alice)]).await.expect(200);
        ask(&server, method, path, &[("x-api-key", ALICE)]).await.expect(200);
    }
    for path in ["/health", "/ready", "/v2/health/live", "/v2/health/ready", "/metrics", "/openapi.json"] {
        ask(&server, Method::GET, path, &[]).await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_changes_nothing_and_the_admin_token_asks_no_model() {
    let server = guarded().site.start().await;
    let (alice, admin) = (bearer(ALICE), bearer(TOKEN));
    for headers in [&[("authorization", alice.as_str())][..], &[("x-api-key", ALICE)], &[("x-api-key", TOKEN)]] {
        ask(&server, Method::POST, "/models/v2/promote", headers).await.expect(401);
        ask(&server, Method::GET, "/admin/memory", headers).await.expect(401);
    }
    assert_eq!(
        ask(&server, Method::GET, "/models/digits", &[("x-api-key", ALICE)]).await.body["live"]["version"],
        "v1"
    );
    for (method, path) in
        [(Method::POST, "/models/tiny/infer"), (Method::POST, "/v1/embeddings"), (Method::GET, "/v1/models")]
    {
        ask(&server, method, path, &[("authorization", &admin)]).await.expect(401);
    }
    // Whoever may change models may see them; and both can be said at once.
    ask(&server, Method::GET, "/models", &[("authorization", &admin)]).await.expect(200);
    ask(&server, Method::POST, "/models/tiny/infer", &[("authorization", &admin), ("x-api-key", ALICE)])
        .await
        .expect(200);
    ask(&server, Method::POST, "/models/v2/promote", &[("authorization", &admin)]).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_body_without_a_key_gets_its_refusal_and_is_not_kept() {
    let server = guarded().site.start().await;
    let refused = server.post_bytes("/models/digits/infer", "image/png", vec![0; 20_000_000]).await.expect(401);
    assert_eq!(refused.kind(), "unauthorised");
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_and_metrics_tell_the_name_of_a_key_and_never_the_key() {
    let server = guarded().site.start().await;
    ask(&server, Method::POST, "/v1/embeddings", &[("x-api-key", ALICE)]).await.expect(200);
    ask(&server, Method::POST, "/v1/embeddings", &[("x-api-key", "mallory-s-key-0123456789")]).await.expect(401);
    let metrics = server.get("/metrics").await.expect(200).body.as_str().unwrap().to_owned();
    let counted = |key: &str, status: &str| {
        metrics.lines().any(|line| {
            line.starts_with("cutover_requests_total{")
                && line.contains("/v1/embeddings")
                && line.contains(&format!("key=\"{key}\""))
                && line.contains(&format!("status=\"{status}\""))
        })
    };
    assert!(counted("alice", "200") && counted("", "401"), "{metrics}");
    let log = server.says("key=\"alice\"").await;
    for secret in [ALICE, TOKEN, "mallory"] {
        assert!(!log.contains(secret) && !metrics.contains(secret), "{secret}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_exchanged_without_a_restart_and_a_broken_file_changes_nothing() {
    let Guarded { site, keys, .. } = guarded();
    let server = site.start().await;
    let models = async |key: &str| ask(&server, Method::GET, "/v1/models", &[("x-api-key", key)]).await.status;
    assert_eq!((models(ALICE).await, models(BOB).await), (200, 401));

    let fresh = site.path().join("keys.new");
    fs::write(&fresh, format!("bob:{BOB}\n")).unwrap();
    fs::rename(&fresh, &keys).unwrap();
    until("bob may come in", async || (models(BOB).await == 200).then_some(())).await;
    assert_eq!(models(ALICE).await, 401);

    fs::write(&keys, "bob:short\n").unwrap();
    let said = until("the broken file is told of", async || {
        server.log().lines().find(|line| line.contains("stay as they were")).map(str::to_owned)
    })
    .await;
    assert!(said.contains("keys: line 1") && said.contains("'bob'"), "{said}");
    assert_eq!(models(BOB).await, 200);

    // At once, rather than at the next look.
    fs::write(&keys, format!("bob:{BOB}\nalice:{ALICE}\n")).unwrap();
    assert!(Command::new("kill").args(["-HUP", &server.pid().to_string()]).status().unwrap().success());
    until("alice may come in", async || (models(ALICE).await == 200).then_some(())).await;
    assert_eq!(models(BOB).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_does_not_start_with_keys_that_make_no_sense() {
    let Guarded { site, keys, .. } = guarded();
    fs::write(&keys, format!("alice:{ALICE}\nalice:{BOB}\n")).unwrap();
    let (code, said) = site.refused();
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("keys: line 2") && said.contains("'alice'") && !said.contains(BOB), "{said}");
    fs::remove_file(&keys).unwrap();
    assert!(site.refused().1.contains("could not be read"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_listener_of_its_own_lists_models_to_whoever_may_change_them() {
    let site = Site::digits();
    let keys = site.path().join("keys");
    fs::write(&keys, format!("alice:{ALICE}\n")).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let site = site.arg("--api-key-file").arg(keys.to_str().unwrap());
    let site = site.arg("--admin-listen").arg(&format!("127.0.0.1:{port}"));
    let server = site.start().await;
    ask(&server, Method::GET, "/models", &[]).await.expect(401);
    let admin = crate::common::Client::new(&format!("http://127.0.0.1:{port}"));
    admin.get("/models").await.expect(200);
    admin.promote("v2", json!({})).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_sends_a_key_and_a_token() {
    let Guarded { site, token, .. } = guarded();
    let server = site.start().await;
    let key = site.path().join("key");
    fs::write(&key, format!("{ALICE}\n")).unwrap();
    let (key, token) = (["--api-key-file", key.to_str().unwrap()], ["--token-file", token.to_str().unwrap()]);
    let bench = ["bench", "serve", "--model", "digits", "--clients", "1", "--requests", "20", "--warmup", "100ms"];
    let (code, said) = server.cutover(&bench);
    assert!(code == 1 && said.contains("API key"), "{code}: {said}");
    let (code, said) = server.cutover(&[&bench[..], &key].concat());
    assert_eq!(code, 0, "{said}");
    let (code, said) = server.cutover(&[&["status"], &key[..]].concat());
    assert_eq!(code, 0, "{said}");
    let (code, said) = server.cutover(&[&["promote", "v2"], &key[..]].concat());
    assert!(code == 1 && said.contains("admin token"), "{code}: {said}");
    let (code, said) = server.cutover(&[&["promote", "v2"], &token[..]].concat());
    assert_eq!(code, 0, "{said}");
    let swap = ["bench", "swap", "--model", "digits", "--versions", "v2,v1", "--switches", "2", "--rate", "20"];
    let brief = ["--warmup", "100ms", "--steady", "200ms", "--requests", "20", "--hold", "50ms", "--pause", "50ms"];
    server.cutover(&[&["settle", "digits"], &token[..]].concat());
    let (code, said) = server.cutover(&[&swap[..], &brief, &key, &token].concat());
    assert_eq!(code, 0, "{said}");
    assert_eq!(server.image("digits", &digit(1)).await.status, 401);
}
