//! The Open Inference Protocol over gRPC, through the real `tritonclient[grpc]` and by raw HTTP/2.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::common::inputs::{digit, distance, embedding};
use crate::common::{PATIENCE, Server, Site, fixture, python, until};
use base64::Engine as _;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

const TOKEN: &str = "sesame-open-0123";
const KEY: &str = "alice-s-key-0123456789";

async fn client_says(script: &str, arguments: &[&str], input: Value) -> Option<String> {
    python::client_says(("grpc-client", "grpc.txt"), (script, arguments), input.to_string()).await
}

/// Where it speaks gRPC.
async fn address(server: &Server) -> String {
    let told = async || server.log().lines().find_map(|line| line.strip_prefix("gRPC on ").map(str::to_owned));
    until("the server says where it speaks gRPC", told).await
}

fn embedder() -> Site {
    let site = Site::new().arg("--grpc-listen").arg("127.0.0.1:0");
    let window = "[gate]\nmax_latency_ratio = 1000\nlatency_rounds = 2\n[observe]\nwindow = '1h'\n";
    site.model("embedder", &format!("task = 'embed'\nlive = 'one'\n{window}"));
    site.version("embedder", "one", &fixture("bert-embed-mean"));
    site
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_client_embeds_as_the_native_route_does() {
    let server = embedder().start().await;
    let texts = ["a cat", "the ferry leaves at six"];
    let Some(said) = client_says("grpc_client.py", &[&address(&server).await, "embedder", "text"], json!(texts)).await
    else {
        return;
    };
    let said: Value = serde_json::from_str(&said).unwrap();
    for what in ["live", "ready", "model_ready"] {
        assert_eq!(said[what], true, "{what}");
    }
    assert_eq!(said["nothing_ready"], false, "a model that is not there is not ready, as Triton says it");
    assert_eq!(said["server"]["name"], "cutover");
    assert_eq!(said["metadata"]["versions"], json!(["one"]));
    assert_eq!(said["config"]["input"][0]["data_type"], "TYPE_STRING");
    assert_eq!(said["index"], json!([{ "name": "embedder", "version": "one", "state": "READY" }]));
    let natives: Vec<Vec<f64>> = {
        let mut all = Vec::new();
        for text in texts {
            all.push(embedding(&server.texts("embedder", &[text]).await.expect(200).body));
        }
        all
    };
    let equal = |output: &Value| {
        let width = output["shape"][1].as_u64().unwrap() as usize;
        for (native, row) in natives.iter().zip(floats(&output["values"]).chunks(width)) {
            assert!(distance(row, native) < 2e-6);
        }
        assert_eq!(output["shape"][0], 2);
    };
    assert_eq!((&said["alone"]["id"], &said["alone"]["version"]), (&json!("seven"), &json!("one")));
    equal(&said["alone"]["outputs"]["embedding"]);
    let together = said["together"].as_array().unwrap();
    assert_eq!(together.len(), 20);
    together.iter().for_each(|one| equal(&one["outputs"]["embedding"]));
    // Values that came typed are answered typed, and who answered stands in the metadata.
    assert_eq!(said["stamps"]["metadata"]["x-cutover-version"], "one");
    assert_eq!(said["stamps"]["metadata"]["x-cutover-model"], "embedder");
    assert!(said["stamps"]["metadata"]["x-request-id"].is_string());
    assert!(distance(&floats(&said["stamps"]["typed"]), &natives.concat()) < 3e-6);
    for (what, code, says) in [
        ("nothing", "StatusCode.NOT_FOUND", "nothing"),
        ("version", "StatusCode.NOT_FOUND", "nine"),
        ("shared memory", "StatusCode.UNIMPLEMENTED", "SystemSharedMemoryStatus"),
    ] {
        assert_eq!(said[what][0], code, "{what}");
        assert!(said[what][1].as_str().unwrap().contains(says), "{what}: {}", said[what][1]);
    }
    let statistics = &said["statistics"]["model_stats"][0];
    let number = |value: &Value| value.as_str().unwrap().parse::<u64>().unwrap();
    assert_eq!((&statistics["name"], &statistics["version"]), (&json!("embedder"), &json!("one")));
    let done = number(&statistics["inference_stats"]["success"]["count"]);
    assert!(done >= 22, "{statistics}");
    for stage in ["success", "queue", "compute_input", "compute_infer", "compute_output"] {
        let stage = &statistics["inference_stats"][stage];
        assert!(number(&stage["count"]) >= done && number(&stage["ns"]) > 0, "{statistics}");
    }
    assert!(number(&statistics["inference_count"]) >= 2 * done - 2);
    // Calls are counted as requests of any dialect are.
    let metrics = server.get("/metrics").await.expect(200).body;
    let metrics = metrics.as_str().unwrap();
    assert!(counted(metrics, 200) && counted(metrics, 404), "{metrics}");
}

/// Whether a call of `ModelInfer` was answered with what elsewhere is this status.
fn counted(metrics: &str, status: u16) -> bool {
    let status = format!("status=\"{status}\"");
    let parts = ["cutover_requests_total{", "ModelInfer\"", "dialect=\"grpc\"", &status];
    metrics.lines().any(|line| parts.iter().all(|part| line.contains(part)))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_keeps_a_calls_deadline() {
    let slow = "version = 'embedder@one'\nkind = 'delay'\nat = 'serving'\ndelay = '2s'\n";
    let server = embedder().fault(slow).start().await;
    // A client that never gives up itself: the message by hand, one text (protobuf encoding, "Message Structure").
    let field = |tag: u8, bytes: &[u8]| [&[tag << 3 | 2, bytes.len() as u8], bytes].concat();
    let input = [field(1, b"text"), field(2, b"BYTES"), field(3, &[1]), field(5, &field(8, b"a"))].concat();
    let message = [field(1, b"embedder"), field(5, &input)].concat();
    let stream = connect(&address(&server).await);
    (&stream).write_all(HELLO).unwrap();
    (&stream).write_all(&call("/inference.GRPCInferenceService/ModelInfer", Some("50m"), &message)).unwrap();
    until("the call is over", async || {
        let metrics = server.get("/metrics").await.expect(200).body;
        let metrics = metrics.as_str().unwrap();
        assert!(!counted(metrics, 200), "{metrics}");
        counted(metrics, 504).then_some(())
    })
    .await;
    drop(stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_client_changes_versions_under_the_admin_rules() {
    let site = Site::digits().arg("--grpc-listen").arg("127.0.0.1:0");
    let token = site.path().join("token");
    fs::write(&token, TOKEN).unwrap();
    let server = site.arg("--admin-token-file").arg(token.to_str().unwrap()).start().await;
    let address = address(&server).await;
    let image = format!("base64:{}", base64::engine::general_purpose::STANDARD.encode(digit(7)));
    let version = async || {
        let said = client_says("grpc_client.py", &[&address, "digits", "image"], json!([image])).await?;
        let said: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(said["alone"]["outputs"]["label"]["values"][0], "7");
        assert_eq!(said["only"], json!(["score"]));
        Some(said["alone"]["version"].as_str().unwrap().to_owned())
    };
    if version().await.as_deref() != Some("v1") {
        return;
    }
    let change = async |arguments: &[&str]| {
        let arguments = [&[&*address], arguments].concat();
        client_says("grpc_repository.py", &arguments, json!(null)).await.unwrap()
    };
    for (arguments, says) in [
        (&["load", "digits@v2"][..], "StatusCode.UNAUTHENTICATED"),
        (&["load", "digits@v2", "open-sesame-0123"], "StatusCode.UNAUTHENTICATED"),
        (&["load", "digits@v3", TOKEN], "StatusCode.FAILED_PRECONDITION the gate refused digits@v3"),
        (&["load", "digits", TOKEN], ""),
        (&["load", "digits@v2", TOKEN], ""),
        (&["unload", "digits@v2", TOKEN], "StatusCode.FAILED_PRECONDITION"),
    ] {
        let said = change(arguments).await;
        assert!(said.starts_with(says) && said.is_empty() == says.is_empty(), "{arguments:?}: {said}");
    }
    assert_eq!(version().await.as_deref(), Some("v2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_keys_hold_for_it_too() {
    let site = embedder();
    let (chain, key, keys) = (site.path().join("chain.pem"), site.path().join("key.pem"), site.path().join("keys"));
    let pair = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    fs::write(&chain, params.self_signed(&pair).unwrap().pem()).unwrap();
    fs::write(&key, pair.serialize_pem()).unwrap();
    fs::write(&keys, format!("alice:{KEY}\n")).unwrap();
    let site = site.arg("--tls-cert").arg(chain.to_str().unwrap()).arg("--tls-key").arg(key.to_str().unwrap());
    let server = site.arg("--api-key-file").arg(keys.to_str().unwrap()).start().await;
    let address = address(&server).await.replace("127.0.0.1", "localhost");
    let arguments = [&*address, "embedder", "text", "--ca", chain.to_str().unwrap(), "--key", KEY];
    let Some(said) = client_says("grpc_client.py", &arguments, json!(["a cat"])).await else { return };
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["live"], &said["alone"]["version"]), (&json!(true), &json!("one")));
    assert_eq!(said["without_key"], "StatusCode.UNAUTHENTICATED");
}

/// What begins every connection (RFC 9113, 3.4): the preface, and settings that change nothing.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Reads frames until the end of the connection: their types.
fn frames(mut stream: TcpStream) -> Vec<u8> {
    let mut types = Vec::new();
    let mut head = [0; 9];
    while stream.read_exact(&mut head).is_ok() {
        types.push(head[3]);
        let mut payload = vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
        if stream.read_exact(&mut payload).is_err() {
            break;
        }
    }
    types
}

const GOAWAY: u8 = 7;

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_calls_is_told_to_go_and_one_that_speaks_something_else_is_closed() {
    let server = embedder().config("[server]\nread_timeout = '300ms'\n[limits]\nwrite_timeout = '300ms'").start().await;
    let address = address(&server).await;
    let (silent, idle, foreign) = (connect(&address), connect(&address), connect(&address));
    (&idle).write_all(HELLO).unwrap();
    (&foreign).write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let ends = tokio::task::spawn_blocking(move || (frames(silent), frames(idle), frames(foreign)));
    let (_, idle, _) = tokio::time::timeout(PATIENCE, ends).await.unwrap().unwrap();
    assert!(idle.contains(&GOAWAY), "{idle:?}");
    // And everybody else is served.
    assert_eq!(server.texts("embedder", &["a"]).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_takes_does_not_hold_its_connection() {
    let server = embedder().config("[limits]\nwrite_timeout = '500ms'").start().await;
    let stream = connect(&address(&server).await);
    // A window of nothing: headers of the answer come, its data never may.
    let settings = [&b"\0\0\x06\x04\0\0\0\0\0"[..], &[0, 4, 0, 0, 0, 0]].concat();
    (&stream).write_all(&HELLO[..24]).unwrap();
    (&stream).write_all(&settings).unwrap();
    let call = call("/inference.GRPCInferenceService/ServerMetadata", None, &[]);
    (&stream).write_all(&call).unwrap();
    let ends = tokio::task::spawn_blocking(move || frames(stream));
    let types = tokio::time::timeout(PATIENCE, ends).await.unwrap().unwrap();
    let (headers, data) = (1, 0);
    assert!(types.contains(&headers) && !types.contains(&data), "{types:?}");
}

/// A call on stream 1.
fn call(path: &str, timeout: Option<&str>, message: &[u8]) -> Vec<u8> {
    [begun(path, timeout), frame(0, 1, &framed(message))].concat()
}

/// A message as gRPC puts it into a body: not compressed, and how long it is.
fn framed(message: &[u8]) -> Vec<u8> {
    [&[0], &(message.len() as u32).to_be_bytes()[..], message].concat()
}

/// A frame on stream 1.
fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
}

/// The headers of a call, without compression (RFC 7541, 6.2.2).
fn begun(path: &str, timeout: Option<&str>) -> Vec<u8> {
    let mut block = Vec::new();
    let headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    for (name, value) in headers.into_iter().chain(timeout.map(|timeout| ("grpc-timeout", timeout))) {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127);
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    frame(1, 4, &block)
}

/// Sends a body on stream 1, as fast as the server lets it come (RFC 9113, 6.9).
fn send(mut stream: &TcpStream, mut body: &[u8]) {
    const USUAL: i64 = 65_535;
    let (settings, update, initial_window) = (4, 8, 4);
    let (mut connection, mut own) = (USUAL, USUAL);
    while !body.is_empty() {
        let most = connection.min(own).min(16_384);
        if most > 0 {
            let (now, later) = body.split_at(body.len().min(most as usize));
            stream.write_all(&frame(0, u8::from(later.is_empty()), now)).unwrap();
            (connection, own, body) = (connection - now.len() as i64, own - now.len() as i64, later);
            continue;
        }
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        let mut payload = vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
        stream.read_exact(&mut payload).unwrap();
        let number = |bytes: &[u8]| i64::from(u32::from_be_bytes(bytes.try_into().unwrap()));
        if head[3] == update {
            *(if head[8] == 0 { &mut connection } else { &mut own }) += number(&payload);
        } else if head[3] == settings {
            let windows = payload.chunks_exact(6).filter(|setting| setting[1] == initial_window);
            own += windows.map(|setting| number(&setting[2..]) - USUAL).sum::<i64>();
            // They hold for the server once it knows that they are known.
            if head[4] == 0 {
                stream.write_all(b"\0\0\0\x04\x01\0\0\0\0").unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_millions_of_empty_tensors_is_refused_before_it_is_decoded() {
    let server = embedder().start().await;
    let peak = || {
        let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
    };
    let address = address(&server).await;
    server.texts("embedder", &["a"]).await.expect(200);
    let before = peak();
    // Inputs of nothing; and one of nothing but empty elements.
    let inputs = b"\x2a\0".repeat(8 << 20);
    let elements = b"\x42\0".repeat(8 << 20);
    let within = |bytes: &[u8]| {
        let length = [0, 7, 14, 21].map(|shift| (bytes.len() >> shift) as u8 | 0x80);
        [&[0x2a], &length[..], &[(bytes.len() >> 28) as u8], bytes].concat()
    };
    let refused = |metrics: &str| {
        let those = metrics.lines().filter(|line| line.contains("ModelInfer\"") && line.contains("status=\"413\""));
        those.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum::<u64>()
    };
    for (before_it, message) in [inputs, within(&within(&elements))].into_iter().enumerate() {
        let sent = message.len() as u64 >> 20;
        let stream = connect(&address);
        (&stream).write_all(HELLO).unwrap();
        (&stream).write_all(&begun("/inference.GRPCInferenceService/ModelInfer", None)).unwrap();
        let stream = tokio::task::spawn_blocking(move || {
            send(&stream, &framed(&message));
            stream
        });
        let _open = tokio::time::timeout(PATIENCE, stream).await.unwrap().unwrap();
        until("the call is refused", async || {
            let metrics = server.get("/metrics").await.expect(200).body;
            (refused(metrics.as_str().unwrap()) > before_it as u64).then_some(())
        })
        .await;
        let grown = peak() - before;
        assert!(grown < 10 * sent, "{grown} MiB more for {sent}");
    }
    server.texts("embedder", &["a"]).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_known_and_not_resident_is_not_ready_and_no_error() {
    let site = Site::digits().arg("--grpc-listen").arg("127.0.0.1:0");
    let server = site.start().await;
    let stream = connect(&address(&server).await);
    let field = |tag: u8, text: &str| [&[tag << 3 | 2, text.len() as u8], text.as_bytes()].concat();
    (&stream).write_all(HELLO).unwrap();
    let question = [field(1, "digits"), field(2, "v2")].concat();
    (&stream).write_all(&call("/inference.GRPCInferenceService/ModelReady", None, &question)).unwrap();
    until("the question is answered", async || {
        let metrics = server.get("/metrics").await.expect(200).body;
        let asked = |line: &&str| line.starts_with("cutover_requests_total{") && line.contains("ModelReady\"");
        let told = metrics.as_str().unwrap().lines().find(asked)?.to_owned();
        assert!(told.contains("status=\"200\""), "{told}");
        Some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_calls_finish_and_tells_idle_clients_to_go() {
    let mut server = embedder().start().await;
    let idle = connect(&address(&server).await);
    (&idle).write_all(HELLO).unwrap();
    // The server's settings are its first word: from then on the connection is known.
    let mut first = [0; 9];
    (&idle).read_exact(&mut first).unwrap();
    let mut settings = vec![0; usize::from(first[2])];
    (&idle).read_exact(&mut settings).unwrap();
    let ends = tokio::task::spawn_blocking(move || frames(idle));
    server.terminate();
    assert_eq!(server.ended().await, 0);
    assert!(ends.await.unwrap().contains(&GOAWAY));
}

#[test]
fn a_listener_that_others_reach_and_that_changes_models_needs_a_token() {
    let (code, said) = Site::digits().arg("--grpc-listen").arg("0.0.0.0:0").refused();
    assert!(code != 0 && said.contains("--grpc-listen") && said.contains("--admin-token-file"), "{said}");
}
