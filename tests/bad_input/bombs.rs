//! Small bodies that would become large ones: images, compressed bodies, nested JSON. What they cost is measured.

use std::fs;
use std::io::Write as _;
use std::time::{Duration, Instant};

use flate2::write::{GzEncoder, ZlibEncoder};
use flate2::{Compression, Crc};
use reqwest::Method;
use serde_json::json;

use crate::common::http::answered;
use crate::common::inputs::digit;
use crate::common::{DIGITS, Server, Site, fixture};

const MIB: u64 = 1 << 20;

/// The most physical memory that the server ever had, bytes.
fn peak(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

/// So many zeros, compressed.
fn zeros(bytes: u64) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    let block = vec![0; MIB as usize];
    for _ in 0..bytes.div_ceil(MIB) {
        encoder.write_all(&block).unwrap();
    }
    encoder.finish().unwrap()
}

fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut crc = Crc::new();
    crc.update(kind);
    crc.update(data);
    [&(data.len() as u32).to_be_bytes(), &kind[..], data, &crc.sum().to_be_bytes()].concat()
}

/// A black PNG of one bit a pixel, with these chunks before its pixels.
fn png(side: u32, more: &[u8], pixels: &[u8]) -> Vec<u8> {
    let header = [&side.to_be_bytes()[..], &side.to_be_bytes(), &[1, 0, 0, 0, 0]].concat();
    let chunks = [chunk(b"IHDR", &header), more.to_vec(), chunk(b"IDAT", pixels), chunk(b"IEND", &[])];
    [b"\x89PNG\r\n\x1a\n".to_vec(), chunks.concat()].concat()
}

fn black(side: u32) -> Vec<u8> {
    zeros(u64::from(side) * (u64::from(side).div_ceil(8) + 1))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_image_carries_beside_its_pixels_takes_no_memory() {
    let server = Site::digits().start().await;
    server.image("digits", &png(28, &[], &black(28))).await.expect(200);
    let before = peak(&server);
    let packed = zeros(512 * MIB);
    let profile = chunk(b"iCCP", &[b"large\0\0", &packed[..]].concat());
    let text = chunk(b"zTXt", &[b"Comment\0\0", &packed[..]].concat());
    let long = chunk(b"iTXt", &[b"Comment\0\x01\0\0\0", &packed[..]].concat());
    for (what, bomb) in [
        ("a profile", png(28, &profile, &black(28))),
        ("a text", png(28, &text, &black(28))),
        ("an international text", png(28, &long, &black(28))),
        ("more pixels than declared", png(28, &[], &packed)),
        ("many texts", png(28, &chunk(b"tEXt", b"Comment\0much").repeat(500_000), &black(28))),
    ] {
        let answer = server.image("digits", &bomb).await;
        assert!(matches!(answer.status, 200 | 400 | 413), "{what}: {} {}", answer.status, answer.body);
        let grown = peak(&server) - before;
        assert!(grown < 160 * MIB, "{what}, {} bytes: {} MiB more", bomb.len(), grown / MIB);
    }
    assert_eq!(server.image("digits", &digit(7)).await.expect(200).label(), "7");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_files_of_large_images_are_decoded_a_few_at_a_time() {
    let site = Site::digits();
    site.model("digits", &format!("{DIGITS}\n[limits]\ndeadline = '50s'\n"));
    let server = site.start().await;
    let (side, processors) = (6000, std::thread::available_parallelism().unwrap().get());
    let large = png(side, &[], &black(side));
    let decoded = u64::from(side) * u64::from(side);
    assert!(large.len() < 20_000, "{} bytes come to {decoded}", large.len());
    server.image("digits", &large).await.expect(200);
    let before = peak(&server);
    let asked: Vec<_> = (0..8 * processors)
        .map(|_| {
            let (client, large) = (server.another(), large.clone());
            tokio::spawn(async move { client.image("digits", &large).await })
        })
        .collect();
    for answer in asked {
        answer.await.unwrap().expect(200);
    }
    // One was there before; a decoded image may be held twice while it is converted.
    let grown = peak(&server) - before;
    assert!(grown < 2 * decoded * processors as u64 + 64 * MIB, "{} MiB more", grown / MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_waits_for_is_not_decoded_to_its_end() {
    let site = Site::digits();
    site.model("digits", &format!("{DIGITS}\n[limits]\ndeadline = '300ms'\n"));
    let server = site.start().await;
    let large = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(png(6000, &[], &black(6000)))
    };
    let inputs: Vec<_> = (0..500).map(|_| json!({ "image": large })).collect();
    for _ in 0..4 {
        server.post("/models/digits/infer", json!({ "inputs": inputs })).await.expect(504);
    }
    // 2000 such images would keep every processor busy for minutes.
    let began = Instant::now();
    crate::common::until("a large image is answered in time again", async || {
        (server.image("digits", &png(1000, &[], &black(1000))).await.status == 200).then_some(())
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jpeg_of_endless_scans_is_refused_before_it_is_decoded() {
    let server = Site::digits().start().await;
    let scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00\x00";
    let bomb = [b"\xff\xd8\xff\xdb\x00\x04\x00\x00", &scan.repeat(1000)[..], b"\xff\xd9"].concat();
    let refused = server.image("digits", &bomb).await.expect(413);
    assert!(refused.message().contains("scans"), "{}", refused.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_bodies_are_refused_in_every_dialect_and_plain_ones_are_taken() {
    let site = Site::digits();
    site.model("tiny", "task = 'embed'\nlive = 'one'\n");
    site.version("tiny", "one", &fixture("bert-embed-mean"));
    let server = site.start().await;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&vec![b' '; 100 * MIB as usize]).unwrap();
    let bomb = encoder.finish().unwrap();
    for path in ["/models/digits/infer", "/v1/embeddings", "/models/v2/promote", "/admin/rollback"] {
        for coding in ["gzip", "deflate", "br", "zstd", "gzip, identity"] {
            let request = server.request(Method::POST, path).header("content-encoding", coding).body(bomb.clone());
            let refused = answered(request).await.unwrap().expect(415);
            assert_eq!(refused.header("accept-encoding"), "identity");
            let told = refused.body["error"]["message"].as_str().unwrap();
            assert!(told.contains(coding) && told.contains("content-encoding"), "{path}: {told}");
        }
    }
    let plain = server.request(Method::POST, "/v1/embeddings").header("content-encoding", "identity");
    answered(plain.json(&json!({ "model": "tiny", "input": "harbour" }))).await.unwrap().expect(200);
}

/// Texts, their labels, and one that writes: each takes bodies as large as the server does.
async fn all_texts() -> Server {
    let site = Site::new();
    let limits = "[limits]\nmax_body_bytes = '64MiB'\n[gate]\nmax_latency_ratio = 1000\n";
    for (name, task, files) in [("tiny", "embed", "bert-embed-mean"), ("mood", "classify", "bert-classify")] {
        site.model(name, &format!("task = '{task}'\nlive = 'one'\n{limits}"));
        site.version(name, "one", &fixture(files));
    }
    site.add_writer("writer");
    site.model("writer", &format!("task = 'generate'\nlive = 'a'\n{limits}"));
    site.start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_body_holds_takes_no_more_than_some_times_its_bytes() {
    const BYTES: usize = 16 << 20;
    let server = all_texts().await;
    server.texts("tiny", &["a"]).await.expect(200);
    let before = peak(&server);
    for (path, begins, one, ends, status) in [
        // Fields that nobody knows, or that are of another type.
        ("/v1/chat/completions", r#"{"model":"writer","messages":[],"zz":["#, "0", "]}", 413),
        ("/v1/completions", r#"{"model":"writer","prompt":"a","max_tokens":1,"zz":["#, "0", "]}", 200),
        ("/v1/completions", r#"{"model":"writer","prompt":"a","guided_json":["#, "0", "]}", 400),
        ("/v1/completions", r#"{"model":"writer","prompt":"a","suffix":["#, "0", "]}", 400),
        ("/v1/completions", r#"{"model":"writer","prompt":"a","temperature":["#, "0", "]}", 400),
        ("/v1/completions", r#"{"model":"writer","prompt":"a","stop":["#, "0", "]}", 400),
        ("/v1/completions", r#"{"model":"writer","prompt":"a","logit_bias":{"#, r#""1":0"#, "}}", 413),
        // Values that are kept as they come.
        ("/v1/chat/completions", r#"{"model":"writer","messages":[],"tools":["#, r#"{"":0}"#, "]}", 413),
        (
            "/v2/models/tiny/infer",
            r#"{"inputs":[{"name":"text","shape":[1],"datatype":"BYTES","data":["#,
            "[]",
            "]}]}",
            413,
        ),
        ("/predict", r#"{"inputs":["#, "[]", "]}", 413),
        // More inputs than anybody means.
        ("/models/tiny/infer", r#"{"inputs":["#, r#""""#, "]}", 413),
        ("/v1/embeddings", r#"{"model":"tiny","input":["#, "[]", "]}", 413),
        // Token ids, which may be many.
        ("/v1/completions", r#"{"model":"writer","prompt":["#, "5", "]}", 400),
        ("/v1/embeddings", r#"{"model":"tiny","input":["#, "5", "]}", 200),
        ("/embed", r#"{"truncate":true,"inputs":["#, "5", "]}", 200),
        ("/models/tiny/infer", r#"{"inputs":[["#, "5", "]]}", 200),
        ("/detokenize", r#"{"model":"writer","tokens":["#, "5", "]}", 413),
    ] {
        let many = vec![one; BYTES / (one.len() + 1)].join(",");
        let body = [begins, &many, ends].concat();
        let answer = server.post_bytes(path, "application/json", body).await;
        assert_eq!(answer.status, status, "{path} {begins}: {}", answer.body);
        let grown = peak(&server) - before;
        assert!(grown < 10 * BYTES as u64, "{path} {begins}: {} MiB more for {}", grown / MIB, BYTES as u64 / MIB);
    }
    server.texts("tiny", &["a"]).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_spelled_as_many_as_are_made_and_within_the_models_limit() {
    let site = Site::new();
    site.add_writer("writer");
    let limits = "[limits]\nmax_body_bytes = 200000\nmax_text_bytes = 5000\n[gate]\nmax_latency_ratio = 1000\n";
    site.model("writer", &format!("task = 'generate'\nlive = 'a'\n{limits}"));
    let server = site.start().await;
    let text = "\u{1f9ee}".repeat(1250);
    let order = json!({ "model": "writer", "prompt": text, "add_special_tokens": false });
    let told = server.post("/tokenize", order).await.expect(200).body;
    let order = json!({ "model": "writer", "tokens": told["tokens"] });
    assert_eq!(server.post("/detokenize", order).await.expect(200).body["prompt"], text);
    let context = told["max_model_len"].as_u64().unwrap() as usize;
    let most = (4 * context).max(5000);
    let spelled =
        async |count: usize| server.post("/detokenize", json!({ "model": "writer", "tokens": vec![5; count] })).await;
    spelled(most).await.expect(200);
    let refused = spelled(most + 1).await.expect(413);
    assert!(
        refused.message().contains(&format!("number of tokens is {}, the limit is {most}", most + 1)),
        "{}",
        refused.body
    );
    let refused = spelled(150_000).await.expect(413);
    assert!(refused.message().contains("request body in bytes"), "{}", refused.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn json_that_is_nested_without_end_is_refused() {
    let server = Site::digits().start().await;
    for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[{\"a\":", "}]")] {
        let nested = format!("{}1{}", open.repeat(200_000), close.repeat(200_000));
        for (path, field) in
            [("/models/digits/infer", "inputs"), ("/v1/embeddings", "input"), ("/models/v2/promote", "wait")]
        {
            let body = format!("{{\"model\": \"digits\", \"{field}\": {nested}}}");
            let status = server.post_bytes(path, "application/json", body).await.status;
            assert!(matches!(status, 400 | 413), "{path}: {status}");
        }
    }
    assert_eq!(server.image("digits", &digit(7)).await.expect(200).label(), "7");
}
