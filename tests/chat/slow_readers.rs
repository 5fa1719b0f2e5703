//! Clients that hardly read: what is written for them waits in their own queues, and nobody else waits with it.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::common::{Client, Site, until};
use super::{alone, order, streamed};

const SLOW: usize = 2;
/// More than sockets hold: each token is told with twenty others in its place.
const ANSWERS: usize = 48;
const TOKENS: usize = 200;

/// Asks for a long stream, over a socket that holds little.
async fn asked(client: &Client, number: usize) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(client.address().parse().unwrap()).await.unwrap();
    let mut body = order("tiny", &format!("{number} slowly"), TOKENS);
    body.as_object_mut().unwrap().extend(json!({ "n": ANSWERS, "logprobs": 20 }).as_object().unwrap().clone());
    let body = body.to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        client.address(),
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    stream
}

async fn running(client: &Client) -> f64 {
    let text = client.get("/metrics").await.expect(200).body.as_str().unwrap().to_owned();
    let of = |line: &&str| line.starts_with("cutover_num_requests_running{") && line.contains("version=\"a\"");
    text.lines().find(of).map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_a_byte_a_second_stalls_nobody_and_holds_no_version() {
    let site = Site::new();
    site.add_writer("tiny");
    let server = site.start().await;
    let expected = alone(&server, "tiny", "quickly", 60).await;
    let mut slow = Vec::new();
    for number in 0..SLOW {
        slow.push(asked(&server, number).await);
    }
    // Each reads a byte, then one a second, until it is told to hurry.
    let (hurry, told) = tokio::sync::watch::channel(false);
    let (first, mut begun) = tokio::sync::mpsc::unbounded_channel();
    let readers = slow.into_iter().map(|mut stream| {
        let (mut told, first) = (told.clone(), first.clone());
        tokio::spawn(async move {
            let mut read = Vec::new();
            while !*told.borrow_and_update() {
                read.push(stream.read_u8().await.unwrap());
                // Nobody waits for it any more once the test has failed.
                let _ = first.send(());
                let _ = tokio::time::timeout(Duration::from_secs(1), told.changed()).await;
            }
            let before = read.len();
            stream.read_to_end(&mut read).await.unwrap();
            (before, String::from_utf8(read).unwrap())
        })
    });
    let readers: Vec<_> = readers.collect();
    for _ in 0..SLOW {
        begun.recv().await.unwrap();
    }
    // Others are served meanwhile,
    let quick = join_all((0..8).map(|_| streamed(&server, order("tiny", "quickly", 60), || ()))).await;
    assert!(quick.iter().all(|text| text.done && text.text == expected), "{quick:?}");
    // all that the slow ones asked for is written, unread as it is,
    until("all is written", async || (running(&server).await == 0.0).then_some(())).await;
    // and no version is held for them.
    server.promote("tiny@b", json!({ "wait": "settled", "observe": "0s" })).await.expect(200);
    assert!(readers.iter().all(|reader| !reader.is_finished()));
    hurry.send(true).unwrap();
    for read in join_all(readers).await {
        let (before, said) = read.unwrap();
        assert!(before < 100 && said.len() > ANSWERS * TOKENS * 400, "{before} of {} bytes", said.len());
        let chunks = said.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
        let chunks: Vec<Value> = chunks.map(|data| serde_json::from_str(data).unwrap()).collect();
        assert!(chunks.iter().all(|chunk| chunk["system_fingerprint"] == "tiny@a"));
        let ends = chunks.iter().filter(|chunk| chunk["choices"][0]["finish_reason"] == "length").count();
        let tokens = |chunk: &Value| chunk["choices"][0]["logprobs"]["tokens"].as_array().map_or(0, Vec::len);
        assert_eq!((ends, chunks.iter().map(tokens).sum::<usize>()), (ANSWERS, ANSWERS * TOKENS));
        assert!(said.contains("data: [DONE]"));
    }
}
