//! Too much at once, for too long, or too slowly: bounded bodies, queues and times.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use futures_util::stream;
use serde_json::{Value, json};

use crate::common::inputs::digit;
use crate::common::{Client, DIGITS, PATIENCE, Server, Site, fixture, until};

const SLOW: &str = "version = 'digits@v1'\nkind = 'delay'\nat = 'serving'\ndelay = '400ms'";

async fn metric(server: &Client, name: &str) -> f64 {
    let text = server.get("/metrics").await.expect(200).body.as_str().unwrap().to_owned();
    let of = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    text.lines().filter(of).map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

/// Writes bytes to the server as they are, and reads all that comes back.
fn raw(server: &Server, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    // A reset after the answer is an end as well.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_beyond_the_limit_are_refused_whether_announced_or_not() {
    let site = Site::digits().config("[server]\nmax_body_bytes = 100000");
    site.model("digits", &format!("{DIGITS}\n[limits]\nmax_body_bytes = 50000\n"));
    let server = site.start().await;
    for (bytes, limit) in [(60_000, 50_000), (100_001, 100_000), (5_000_000, 100_000)] {
        let refused = server.image("digits", &vec![0; bytes]).await.expect(413);
        let details = &refused.body["error"]["details"];
        assert_eq!((refused.kind(), &details["limit"]), ("too_large", &json!(limit)), "{}", refused.body);
        let chunks = stream::iter((0..bytes / 1000 + 1).map(|_| Ok::<_, std::io::Error>(vec![0u8; 1000])));
        let request = server.request(reqwest::Method::POST, "/models/digits/infer").header("content-type", "image/png");
        let refused = crate::common::http::answered(request.body(reqwest::Body::wrap_stream(chunks))).await;
        assert_eq!(refused.unwrap().expect(413).kind(), "too_large");
    }
    let order = format!("{{\"reason\": \"{}\"}}", "x".repeat(70_000));
    server.post_bytes("/models/v2/promote", "application/json", order).await.expect(413);
    assert_eq!(server.image("digits", &digit(1)).await.expect(200).label(), "1");

    // Announced only: it is refused without a byte of it being sent.
    let head = "POST /models/digits/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999\r\n\r\n";
    let answer = raw(&server, head.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_inputs_as_a_request_may_have_are_answered_where_nothing_else_is_said() {
    let site = Site::new();
    site.model("texts", "task = 'embed'\nlive = 'mean'\n");
    site.version("texts", "mean", &fixture("bert-embed-mean"));
    let server = site.start().await;
    let embed = async |count: usize| {
        server.post("/v1/embeddings", json!({ "model": "texts", "input": vec!["a"; count] })).await
    };
    assert_eq!(embed(2048).await.expect(200).body["data"].as_array().unwrap().len(), 2048);
    embed(2049).await.expect(400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_counts_for_every_text_that_it_is_asked_with() {
    let site = Site::new();
    site.model("order", "task = 'rerank'\nlive = 'one'\n[limits]\nmax_body_bytes = 50000\n");
    site.version("order", "one", &fixture("bert-rerank"));
    let server = site.start().await;
    // Bodies of a few thousand bytes: 100 texts with a query of 400 bytes are work for 40 000, with one of 600 for 60 000.
    for (query, status) in [("q".repeat(400), 200), ("q".repeat(600), 413)] {
        let texts = vec!["a"; 100];
        let body = json!({ "query": query, "texts": texts, "truncate": true });
        server.post("/rerank", body).await.expect(status);
        let tensor = |name: &str, data: Value| json!({ "name": name, "shape": [data.as_array().unwrap().len()], "datatype": "BYTES", "data": data });
        let body = json!({ "inputs": [tensor("query", json!([query])), tensor("text", json!(texts))] });
        server.post("/v2/models/order/infer", body).await.expect(status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_http_is_refused_and_what_comes_too_slowly_is_given_up() {
    let server = Site::digits().config("[server]\nread_timeout = '300ms'").start().await;
    assert!(raw(&server, b"\x16\x03\x01\x02\x00\x01\x00").starts_with("HTTP/1.1 400"), "a TLS hello");
    let twice =
        "POST /models/digits/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\ncontent-length: 7\r\n\r\n";
    assert!(raw(&server, twice.as_bytes()).starts_with("HTTP/1.1 400"));
    let long = format!("GET /health HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    assert!(raw(&server, long.as_bytes()).starts_with("HTTP/1.1 431"));
    // Half a head: closed without an answer. Half a body: told what is missing.
    assert_eq!(raw(&server, b"POST /models/digits/infer HTTP/1.1\r\nhost: local"), "");
    let half = "POST /models/digits/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nhalf";
    let answer = raw(&server, half.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("300 ms"), "{answer}");
    assert_eq!(server.image("digits", &digit(1)).await.expect(200).label(), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_says_when_to_come_again_and_loses_nothing_that_it_took() {
    let site = Site::digits().fault(SLOW);
    site.model("digits", &format!("{DIGITS}\n[limits]\nqueue = 3\n"));
    let server = site.start().await;
    let asked: Vec<_> = (0..12)
        .map(|n| {
            let client = server.another();
            tokio::spawn(async move { (n % 10, client.image("digits", &digit(n % 10)).await) })
        })
        .collect();
    let (mut answered, mut refused) = (0, 0);
    for task in asked {
        let (n, answer) = task.await.unwrap();
        match answer.status {
            200 => {
                assert_eq!(answer.label(), n.to_string());
                answered += 1;
            }
            _ => {
                let refusal = answer.expect(429);
                assert_eq!((refusal.kind(), refusal.version()), ("overloaded", "v1"));
                assert!(refusal.header("retry-after").parse::<u64>().unwrap() >= 1);
                refused += 1;
            }
        }
    }
    assert!(answered >= 3 && refused >= 1, "{answered} answered, {refused} refused");
    // More inputs than the queue will ever hold are no matter of time.
    let many = json!({ "inputs": [[1], [1], [1], [1]] });
    server.post("/models/digits/infer", many).await.expect(413);
    assert_eq!(server.image("digits", &digit(1)).await.expect(200).label(), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_is_kept_whether_the_client_or_the_model_set_it() {
    let site = Site::digits().fault(SLOW);
    let server = site.start().await;
    use base64::Engine as _;
    let image = base64::engine::general_purpose::STANDARD.encode(digit(1));
    let hurried = json!({ "inputs": [{ "image": image }], "parameters": { "deadline_ms": 50 } });
    let late = server.post("/models/digits/infer", hurried).await.expect(504);
    assert_eq!((late.kind(), late.version()), ("deadline", "v1"));
    assert!(late.message().contains("50 ms"), "{}", late.message());
    assert_eq!(server.image("digits", &digit(1)).await.expect(200).label(), "1");
    drop(server);
    site.model("digits", &format!("{DIGITS}\n[limits]\ndeadline = '60ms'\n"));
    let server = site.start().await;
    assert!(server.image("digits", &digit(1)).await.expect(504).message().contains("60 ms"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_client_that_left_is_not_run() {
    let server = Site::digits().fault(SLOW).start().await;
    until("an input of a client that left was dropped", async || {
        let patient = server.another();
        let first = tokio::spawn(async move { patient.image("digits", &digit(1)).await.expect(200) });
        // These wait behind the first, and leave before their turn.
        let hurried = (0..4).map(|n| {
            let client = server.another();
            async move {
                let request =
                    client.request(reqwest::Method::POST, "/models/digits/infer").timeout(Duration::from_millis(150));
                request.header("content-type", "image/png").body(digit(n)).send().await
            }
        });
        futures_util::future::join_all(hurried).await;
        assert_eq!(first.await.unwrap().label(), "1");
        (metric(&server, "cutover_cancelled_inputs_total").await >= 1.0).then_some(())
    })
    .await;
    until("no room is held for them", async || {
        (metric(&server, "cutover_generation_lane_inputs").await == 0.0).then_some(())
    })
    .await;
}
