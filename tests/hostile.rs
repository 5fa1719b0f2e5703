//! Clients that mean harm, or are merely broken: however they hold, flood or confuse the server, a good client is
//! answered promptly meanwhile, and afterwards every descriptor has come back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use common::inputs::digit;
use common::{PATIENCE, Server, Site, skipped, until};

/// Longer than a good client should ever wait here, on a machine that runs other tests beside this one.
const PROMPT: Duration = Duration::from_secs(5);

/// With limits that a test need not wait long for.
fn site(limits: &str) -> Site {
    Site::digits().config("[server]\nread_timeout = '1s'").config(&format!("[limits]\nwrite_timeout = '1s'\n{limits}"))
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// All that comes until the server closes; whether it did so in peace.
fn rest(stream: &mut TcpStream) -> (String, bool) {
    let mut answer = Vec::new();
    let ended = stream.read_to_end(&mut answer);
    assert!(!ended.as_ref().is_err_and(|e| e.kind() == ErrorKind::WouldBlock), "the server kept the connection");
    (String::from_utf8_lossy(&answer).into_owned(), ended.is_ok())
}

/// Sends these bytes, and reads all that comes back. A server that closes before it was sent everything may break it.
fn raw(server: &Server, bytes: &[u8]) -> String {
    let mut stream = connect(server);
    let _ = stream.write_all(bytes);
    rest(&mut stream).0
}

/// The head of a request for a digit whose body comes when it is asked for.
fn infer_when_asked(length: usize) -> String {
    format!(
        "POST /models/digits/infer HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\nconnection: close\r\n\
         expect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
    )
}

fn is_asked(stream: &mut TcpStream) {
    let mut asked = [0; 25];
    stream.read_exact(&mut asked).unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
}

/// A new client, with a connection of its own, is answered rightly and soon.
async fn is_served(server: &Server) {
    let began = Instant::now();
    assert_eq!(server.another().image("digits", &digit(7)).await.expect(200).label(), "7");
    assert!(began.elapsed() < PROMPT, "a good client waited {:?}", began.elapsed());
}

/// How many files the server has open while nobody is connected.
async fn quiet_files(server: &Server) -> usize {
    is_served(server).await;
    let mut last = usize::MAX;
    until("the number of open files stays", async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = server.open_files();
        (std::mem::replace(&mut last, now) == now).then_some(now)
    })
    .await
}

/// Every descriptor that was taken has come back, and a good client is served.
async fn recovers(server: &Server, baseline: usize) {
    is_served(server).await;
    until("every file is closed again", async || (server.open_files() <= baseline).then_some(())).await;
    is_served(server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_who_send_their_heads_byte_by_byte_keep_nobody_waiting_and_are_closed() {
    let server = site("").start().await;
    let baseline = quiet_files(&server).await;
    let head = b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-slow: ";
    let mut slow: Vec<TcpStream> = (0..200).map(|_| connect(&server)).collect();
    let began = Instant::now();
    for byte in head.chunks(1).chain(std::iter::repeat(&b"y"[..])) {
        // Those that are closed already are not written to for long.
        slow.retain_mut(|stream| stream.write_all(byte).is_ok());
        if slow.is_empty() {
            break;
        }
        is_served(&server).await;
        assert!(began.elapsed() < PATIENCE, "{} are still held", slow.len());
    }
    // However steadily the bytes came, the whole head had a second.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    recovers(&server, baseline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_trickle_are_given_up_although_something_always_comes() {
    let server = site("").start().await;
    let baseline = quiet_files(&server).await;
    let mut stream = connect(&server);
    stream
        .write_all(b"POST /models/digits/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\n")
        .unwrap();
    let mut reader = stream.try_clone().unwrap();
    let answer = std::thread::spawn(move || rest(&mut reader).0);
    let began = Instant::now();
    while !answer.is_finished() {
        assert!(began.elapsed() < PATIENCE, "it is still read");
        let _ = stream.write_all(b"x");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let answer = answer.join().unwrap();
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("too slowly"), "{answer}");
    drop(stream);
    recovers(&server, baseline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_held_back_take_a_bounded_room_and_small_requests_need_none() {
    let limits = "[limits]\nmax_buffered_bytes = 4194304\n[server]\nmax_body_bytes = 4194304\n";
    let server = Site::digits().config(limits).start().await;
    let baseline = quiet_files(&server).await;
    let large = vec![b'x'; 2 << 20];
    let status = async || server.another().image("digits", &large).await.status;
    assert_eq!(status().await, 400, "it is read, and is no image");
    // Each announces 2 MiB, sends 1 MiB, and then nothing.
    let head = b"POST /models/digits/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2097152\r\n\r\n";
    // One more at a time: whoever comes while another's body is read may find no room for its own.
    let mut holders = Vec::new();
    until("they take what room there is", async || {
        let mut stream = connect(&server);
        stream.write_all(head).unwrap();
        stream.write_all(&large[..1 << 20]).unwrap();
        holders.push(stream);
        (status().await == 503).then_some(())
    })
    .await;
    assert!(holders.len() >= 3, "{} took it", holders.len());
    is_served(&server).await;
    drop(holders);
    until("there is room again", async || (status().await == 400).then_some(())).await;
    recovers(&server, baseline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_headers_and_endless_targets_are_refused_by_their_own_statuses() {
    let server = site("").start().await;
    let baseline = quiet_files(&server).await;
    let many: String = (0..150).map(|n| format!("x-{n}: y\r\n")).collect();
    let large: String = (0..40).map(|n| format!("x-{n}: {}\r\n", "y".repeat(4000))).collect();
    for (what, head, status) in [
        ("many headers", format!("GET /health HTTP/1.1\r\nhost: localhost\r\n{many}\r\n"), 431),
        ("large headers", format!("GET /health HTTP/1.1\r\nhost: localhost\r\n{large}\r\n"), 431),
        (
            "a head just over 64 KiB",
            format!(
                "GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx: {}\r\n\r\n",
                "y".repeat(65_600)
            ),
            431,
        ),
        (
            "a head of less",
            format!(
                "GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx: {}\r\n\r\n",
                "y".repeat(65_000)
            ),
            200,
        ),
        (
            "two hosts",
            "GET /health HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\nconnection: close\r\n\r\n".to_owned(),
            400,
        ),
        ("one endless header", format!("GET /health HTTP/1.1\r\nx: {}", "y".repeat(1 << 20)), 431),
        (
            "a long target",
            format!("GET /{} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", "y".repeat(20_000)),
            414,
        ),
        ("an endless target", format!("GET /{}", "y".repeat(1 << 20)), 431),
    ] {
        let answer = raw(&server, head.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{what}: {answer}");
    }
    recovers(&server, baseline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_never_reads_is_closed_and_whoever_reads_slowly_is_not() {
    let server = site("").start().await;
    let baseline = quiet_files(&server).await;
    let request = b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut never: Vec<TcpStream> = (0..8).map(|_| connect(&server)).collect();
    for stream in &mut never {
        stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        // As many as it takes for every buffer on the way to be full.
        while stream.write_all(&request.repeat(100)).is_ok() {}
    }
    is_served(&server).await;
    until("those who never read are closed", async || (server.open_files() <= baseline).then_some(())).await;
    drop(never);

    // Half a second between two mouthfuls is within the second that it has, and they are large enough for the system to
    // tell the server within it that there is room again.
    let mut slow = connect(&server);
    slow.write_all(
        &[&request.repeat(14)[..], b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"].concat(),
    )
    .unwrap();
    let (mut got, mut buffer) = (Vec::new(), vec![0; 768 << 10]);
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        match slow.read(&mut buffer).unwrap() {
            0 => break,
            n => got.extend_from_slice(&buffer[..n]),
        }
    }
    assert_eq!(String::from_utf8_lossy(&got).matches("HTTP/1.1 200").count(), 15);
    recovers(&server, baseline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_who_connect_and_say_nothing_make_room_for_whoever_asks() {
    let server = site("max_connections = 400\n").start().await;
    let baseline = quiet_files(&server).await;
    let (mut idle, mut most) = (Vec::new(), 0);
    for n in 0..10_000 {
        // This process may open fewer: the old ones are forgotten then, whatever the server thinks of them.
        if idle.len() == 800 {
            idle.drain(..400);
        }
        idle.push(connect(&server));
        if n % 1000 == 0 {
            is_served(&server).await;
            most = most.max(server.open_files());
        }
    }
    assert!(most <= baseline + 400 + 8, "{most} files were open, {baseline} before");
    is_served(&server).await;
    drop(idle);
    recovers(&server, baseline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_every_connection_at_work_the_next_is_told_to_come_again() {
    let server = site("max_connections = 3\n").start().await;
    let baseline = quiet_files(&server).await;
    let image = digit(7);
    let mut working: Vec<TcpStream> = (0..3).map(|_| connect(&server)).collect();
    for stream in &mut working {
        stream.write_all(infer_when_asked(image.len()).as_bytes()).unwrap();
        is_asked(stream);
    }
    // All three are at work: their bodies are waited for.
    let refused = raw(&server, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("retry-after: 1"), "{refused}");
    assert!(refused.contains("too many connections"), "{refused}");
    for mut stream in working {
        stream.write_all(&image).unwrap();
        let answer = rest(&mut stream).0;
        assert!(answer.contains(r#""label":"7""#), "what is in hand is not lost: {answer}");
    }
    recovers(&server, baseline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_that_is_kept_is_closed_in_its_time_and_not_before() {
    let server = site("keep_alive = '2s'\n").start().await;
    let baseline = quiet_files(&server).await;
    let mut stream = connect(&server);
    let request = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    for pause in [0, 1300, 1300] {
        // Longer than a head may take, shorter than a connection may idle.
        tokio::time::sleep(Duration::from_millis(pause)).await;
        stream.write_all(request).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(br#"{"live":true}"#) {
            let mut bytes = [0; 1024];
            let n = stream.read(&mut bytes).unwrap();
            assert!(n > 0, "it was closed too early");
            answer.extend_from_slice(&bytes[..n]);
        }
    }
    let began = Instant::now();
    assert!(rest(&mut stream).1);
    assert!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());
    recovers(&server, baseline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_http_is_answered_or_closed_and_never_kept() {
    let server = site("").start().await;
    let baseline = quiet_files(&server).await;
    let garbage: Vec<u8> = (0..100_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let infer = "POST /models/digits/infer HTTP/1.1\r\nhost: localhost\r\n";
    for (what, bytes) in [
        ("nothing", Vec::new()),
        ("garbage", garbage),
        ("zeros", vec![0; 1 << 20]),
        ("empty lines", b"\r\n".repeat(200_000)),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00".to_vec()),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(50)),
        ("HTTP/0.9", b"GET /\r\n\r\n".to_vec()),
        ("a version to come", b"GET / HTTP/9.9\r\nhost: localhost\r\n\r\n".to_vec()),
        ("a header without a name", b"GET / HTTP/1.1\r\n: x\r\n\r\n".to_vec()),
        ("a folded header", b"GET / HTTP/1.1\r\nx: y\r\n z\r\n\r\n".to_vec()),
        ("two lengths", format!("{infer}content-length: 3\r\ncontent-length: 4\r\n\r\nabc").into_bytes()),
        ("a negative length", format!("{infer}content-length: -3\r\n\r\nabc").into_bytes()),
        ("an overflowing length", format!("{infer}content-length: 18446744073709551617\r\n\r\nabc").into_bytes()),
        (
            "an overflowing chunk",
            format!("{infer}transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n").into_bytes(),
        ),
        ("a chunk that is none", format!("{infer}transfer-encoding: chunked\r\n\r\nzz\r\n").into_bytes()),
        (
            "an endless extension",
            format!("{infer}transfer-encoding: chunked\r\n\r\n1;{}", "x".repeat(1 << 20)).into_bytes(),
        ),
        ("an unknown coding", format!("{infer}transfer-encoding: gzip\r\n\r\nabc").into_bytes()),
    ] {
        let answer = raw(&server, &bytes);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{what}: {answer}");
        // Left in the middle, and left half.
        let mut stream = connect(&server);
        let _ = stream.write_all(&bytes[..bytes.len() / 2]);
        drop(stream);
        let mut stream = connect(&server);
        let _ = stream.write_all(&bytes[..bytes.len() / 2]);
        let _ = stream.shutdown(Shutdown::Write);
        rest(&mut stream);
        is_served(&server).await;
    }
    recovers(&server, baseline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_requests_on_one_connection_at_once_are_answered_in_their_order() {
    let server = site("").start().await;
    let baseline = quiet_files(&server).await;
    let mut stream = connect(&server);
    let mut writer = stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        for n in 0..1000 {
            let close = if n == 999 { "connection: close\r\n" } else { "" };
            let head = format!("GET /nowhere/{n} HTTP/1.1\r\nhost: localhost\r\n{close}\r\n");
            writer.write_all(head.as_bytes()).unwrap();
        }
    });
    let (answers, in_peace) = rest(&mut stream);
    writing.join().unwrap();
    assert!(in_peace);
    let order: Vec<usize> =
        answers.split("/nowhere/").skip(1).map(|t| t.split('\'').next().unwrap().parse().unwrap()).collect();
    assert_eq!(order, (0..1000).collect::<Vec<_>>());
    recovers(&server, baseline).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_expects_to_be_asked_for_its_body_is_asked_only_where_it_is_wanted() {
    let server = site("").start().await;
    let baseline = quiet_files(&server).await;
    let image = digit(7);
    let mut stream = connect(&server);
    stream.write_all(infer_when_asked(image.len()).as_bytes()).unwrap();
    is_asked(&mut stream);
    stream.write_all(&image).unwrap();
    let answer = rest(&mut stream).0;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(r#""label":"7""#), "{answer}");
    // Too large: it is not asked to send it.
    let answer = raw(&server, infer_when_asked(1 << 40).as_bytes());
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    recovers(&server, baseline).await;
}

/// Processor time of the server so far.
fn processor_time(server: &Server) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // utime and stime (proc(5)), in hundredths of a second everywhere that Linux runs.
    Duration::from_millis((fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 10)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_without_descriptors_neither_ends_nor_spins_and_recovers() {
    if !Command::new("prlimit").arg("--version").output().is_ok_and(|output| output.status.success()) {
        skipped("the test of running out of descriptors needs prlimit (util-linux)");
        return;
    }
    let server = site("keep_alive = '1h'\n").start().await;
    let baseline = quiet_files(&server).await;
    let limit = |files: usize| {
        let (pid, limit) = (server.pid().to_string(), format!("--nofile={files}:"));
        assert!(Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap().success());
    };
    // Idle connections hold descriptors, and give them up to whoever asks.
    limit(baseline + 20);
    let idle: Vec<TcpStream> = (0..100).map(|_| connect(&server)).collect();
    for _ in 0..20 {
        is_served(&server).await;
    }
    drop(idle);
    // With none at all nobody can be let in.
    limit(3);
    let waiting: Vec<TcpStream> = (0..20).map(|_| connect(&server)).collect();
    let before = processor_time(&server);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let spent = processor_time(&server) - before;
    assert!(spent < Duration::from_millis(500), "{spent:?} of processor time in 2 s of waiting");
    limit(4096);
    is_served(&server).await;
    drop(waiting);
    recovers(&server, baseline).await;
    let told = server.log().matches("could not be accepted").count();
    assert!((1..10).contains(&told), "told of {told} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_two_hosts_is_refused() {
    let server = Site::digits().start().await;
    let answer = raw(
        &server,
        b"GET /models HTTP/1.1\r\nhost: localhost\r\nhost: elsewhere.example\r\nconnection: close\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("more than one Host"), "{answer}");
}
