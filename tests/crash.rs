//! The process may die at any instant (promise 9), and stop at any: what the next start serves, and what it says of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::inputs::digit;
use common::{Client, PATIENCE, Server, Site, until};
use cutover::ledger::{Filter, Ledger};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use reqwest::Method;
use serde_json::{Value, json};

const KILLS: usize = 16;

fn slow(version: &str, at: &str, delay: &str) -> String {
    format!("version = 'digits@{version}'\nkind = 'delay'\nat = '{at}'\ndelay = '{delay}'")
}

/// The newest rollout of the digits, if any.
async fn last_rollout(server: &Client) -> Value {
    server.get("/admin/rollouts?model=digits&limit=1").await.expect(200).body["rollouts"][0].clone()
}

fn ledger(site: &Site) -> Ledger {
    Ledger::open_read_only(&site.state().join("ledger.sqlite")).unwrap()
}

/// What an operator may believe to be live: what was last answered, and, once something was asked that is not
/// answered yet, what that would make of it.
type Belief = Arc<Mutex<Vec<&'static str>>>;

/// The version that a rollback's answer says is live after it.
fn led_to(rollout: &Value) -> &str {
    rollout[if rollout["kind"] == "cold" { "to" } else { "from" }].as_str().unwrap()
}

/// Promotes, settles and goes back at random until the connection breaks.
async fn operate(client: Client, belief: Belief, mut dice: StdRng) {
    loop {
        let live = belief.lock().unwrap()[0];
        let other = if live == "v1" { "v2" } else { "v1" };
        let (path, after) = match dice.random_range(0..4) {
            0 => ("/admin/settle".to_owned(), live),
            1 => ("/admin/rollback".to_owned(), other),
            _ => (format!("/models/{other}/promote"), other),
        };
        belief.lock().unwrap().push(after);
        let asked = client.request(Method::POST, &path).json(&json!({}));
        let Ok(answer) = common::http::answered(asked).await else { return };
        // 409: another rollout's end is awaited, or there is nothing to settle or to go back to. Nothing changed then.
        assert!([200, 409].contains(&answer.status), "{path}: {}", answer.body);
        // Going back twice is going back once: where a cold way back is in its window, asking again changes nothing,
        // and the answer says where it leads.
        let stayed = answer.status == 409 || path == "/admin/rollback" && led_to(&answer.body) == live;
        *belief.lock().unwrap() = vec![if stayed { live } else { after }];
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_moment_loses_nothing_that_was_committed() {
    // Steps that take a while are more often caught half done.
    let site = Site::digits().fault(&slow("v1", "load", "30ms")).fault(&slow("v2", "load", "30ms"));
    let mut dice = StdRng::seed_from_u64(9);
    let belief: Belief = Arc::new(Mutex::new(vec!["v1"]));
    let (mut met, mut committed) = (0, "v1".to_owned());
    for kill in 0..KILLS {
        let mut server = site.start().await;
        assert_eq!(server.live("digits").await, committed, "start {kill}");
        assert_eq!(server.image("digits", &digit(4)).await.expect(200).version(), committed);
        assert_eq!(server.reserved().await, server.memory().await["reservations"][0]["bytes"].as_u64().unwrap());
        *belief.lock().unwrap() = vec![if committed == "v1" { "v1" } else { "v2" }];
        let operator =
            tokio::spawn(operate(server.another(), Arc::clone(&belief), StdRng::seed_from_u64(dice.random())));
        // The moment is the point of this test; nothing is waited for.
        tokio::time::sleep(Duration::from_micros(dice.random_range(0..600_000))).await;
        server.kill();
        operator.await.expect("the operator was answered what may be answered");

        let (whole, said) = site.verify();
        assert!(whole, "after kill {kill}: {said}");
        let left = ledger(&site);
        committed = left.live("digits").unwrap().unwrap().version;
        let believed = belief.lock().unwrap().clone();
        assert!(believed.contains(&committed.as_str()), "kill {kill}: {committed} is committed, {believed:?} was told");
        let open = left.rollouts(&Filter { open_only: true, ..Filter::default() }).unwrap();
        assert!(open.len() <= 1, "{open:?}");
        drop((left, server));

        let server = site.start().await;
        for rollout in open {
            let now = server.rollout(&rollout.id).await;
            match now["phase"].as_str().unwrap() {
                "interrupted" => assert!(now["reason"].as_str().unwrap().contains("died"), "{now}"),
                // Only memory was awaited.
                "settled" => assert_eq!(now["to"], committed, "{now}"),
                "rolled_back" => assert_eq!(now["from"], committed, "{now}"),
                phase => panic!("{phase}: {now}"),
            }
            met += 1;
        }
        let listed = server.get("/admin/rollouts?limit=1000").await.expect(200).body;
        assert!(listed["rollouts"].as_array().unwrap().iter().all(|r| r["ended_ms"].is_i64()), "{listed}");
    }
    assert!(met >= KILLS / 4, "only {met} of {KILLS} kills met a rollout: they came at dull moments");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_cut_by_a_crash_is_over_and_going_back_from_there_is_cold() {
    let site = Site::digits();
    let mut server = site.start().await;
    let promoted = server.promote("v2", json!({})).await.expect(200);
    server.kill();
    let server = site.start().await;
    let model = server.model("digits").await;
    assert_eq!((&model["live"]["version"], &model["previous"]), (&json!("v2"), &Value::Null));
    let ended = server.rollout(&promoted.id()).await;
    assert_eq!(ended["phase"], "interrupted");
    let back = server.post("/admin/rollback", json!({})).await.expect(200);
    assert_eq!((&back.body["kind"], &back.body["to"]), (&json!("cold"), &json!("v1")));
}

/// A disk that is full just after a switch was written down may never have got what the rollout says of itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_switch_is_known_by_the_live_version_when_the_rollouts_own_record_is_behind() {
    let site = Site::digits();
    let mut server = site.start().await;
    server.promote("v2", json!({ "observe": "10m" })).await.expect(200);
    server.kill();
    {
        let ledger = Ledger::open(&site.state().join("ledger.sqlite")).unwrap();
        let mut record = ledger.rollouts(&Filter { limit: 1, ..Filter::default() }).unwrap().remove(0);
        record.phase = "warming".into();
        ledger.save_rollout(&record).unwrap();
    }
    let server = site.start().await;
    assert_eq!(server.live("digits").await, "v2");
    let rollout = last_rollout(&server).await;
    assert_eq!(rollout["reason"], "the process died in the window; 'v2' stays live", "{rollout}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stall_in_the_window_ends_the_process_and_the_next_start_serves_the_predecessor() {
    let site = Site::digits().config("[device]\nstall_after = '500ms'").fault("version = 'digits@v2'\nkind = 'hang'");
    let mut server = site.start().await;
    let promoted = server.promote("v2", json!({})).await.expect(200);
    let client = server.another();
    let failed = tokio::spawn(async move { client.try_image("digits", &digit(2)).await });
    assert_eq!(server.ended().await, 70, "{}", server.log());
    // Whoever waited is told, or sees the connection close.
    if let Ok(answer) = failed.await.unwrap() {
        assert_eq!((answer.status, answer.kind()), (500, "internal"));
    }
    let (whole, said) = site.verify();
    assert!(whole, "{said}");

    let site = site.no_faults();
    let server = site.start().await;
    assert_eq!(server.image("digits", &digit(2)).await.expect(200).version(), "v1");
    let ended = server.rollout(&promoted.id()).await;
    assert_eq!((&ended["phase"], &ended["reason"]), (&json!("rolled_back"), &json!("crash")));
    // It is settled business: the next start serves the same.
    drop(server);
    assert_eq!(site.start().await.live("digits").await, "v1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stall_outside_a_window_blames_nobody() {
    let site = Site::digits().config("[device]\nstall_after = '500ms'").fault("version = 'digits@v1'\nkind = 'hang'");
    let mut server = site.start().await;
    let client = server.another();
    let asked = tokio::spawn(async move { client.try_image("digits", &digit(2)).await });
    assert_eq!(server.ended().await, 70, "{}", server.log());
    assert!(!asked.await.unwrap().is_ok_and(|answer| answer.status == 200));
    let site = site.no_faults();
    assert_eq!(site.start().await.live("digits").await, "v1");
}

/// A server on its way out whose one forward pass hangs: that began while clients were given time to look away.
async fn hangs_while_it_stops(stall_after: &str) -> (Site, Server) {
    let config = format!("[server]\nlame_duck = '2s'\n[device]\nstall_after = '{stall_after}'");
    let site = Site::digits().config(&config).fault("version = 'digits@v1'\nkind = 'hang'");
    let server = site.start().await;
    server.terminate();
    server.says("still serving").await;
    let client = server.another();
    tokio::spawn(async move { client.try_image("digits", &digit(2)).await });
    server.says(" stopping ").await;
    (site, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_that_hangs_while_the_server_stops_ends_the_process_as_any_other() {
    let (site, mut server) = hangs_while_it_stops("4s").await;
    assert_eq!(server.ended().await, 70, "{}", server.log());
    let (whole, said) = site.verify();
    assert!(whole, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_once_more_after_the_cut_waits_for_nothing_that_hangs() {
    let (site, mut server) = hangs_while_it_stops("10m").await;
    server.terminate();
    server.says("waiting no longer for what is being written").await;
    server.terminate();
    assert_eq!(server.ended().await, 1, "{}", server.log());
    let site = site.no_faults();
    assert_eq!(site.start().await.live("digits").await, "v1");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_before_the_switch_aborts_the_rollout() {
    for (at, phase) in [("load", "loading"), ("gate", "validating")] {
        let site = Site::digits().fault(&slow("v2", at, "300ms"));
        let mut server = site.start().await;
        let mut events = server.follow("v2", json!({})).await;
        let id = events.phase(phase).await["id"].as_str().unwrap().to_owned();
        server.terminate();
        let told = events.until("the end", |event| event.name == "error").await;
        assert_eq!(told.data["rollout"]["phase"], "aborted");
        assert_eq!(server.ended().await, 0, "{}", server.log());
        let server = site.start().await;
        let ended = server.rollout(&id).await;
        assert_eq!((&ended["phase"], &ended["reason"]), (&json!("aborted"), &json!("the server stopped")));
        assert_eq!(server.live("digits").await, "v1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_in_the_window_keeps_the_new_version() {
    let site = Site::digits();
    let mut server = site.start().await;
    let promoted = server.promote("v2", json!({})).await.expect(200);
    server.terminate();
    assert_eq!(server.ended().await, 0, "{}", server.log());
    let server = site.start().await;
    assert_eq!(server.live("digits").await, "v2");
    let ended = server.rollout(&promoted.id()).await;
    assert_eq!(ended["phase"], "settled");
    assert!(ended["reason"].as_str().unwrap().contains("server stopped"), "{ended}");
    assert!(ended["ended_ms"].is_i64());
}

/// Inputs that hold room in the lanes of all generations.
async fn in_lanes(server: &Client) -> f64 {
    let text = server.get("/metrics").await.expect(200).body.as_str().unwrap().to_owned();
    let lanes = text.lines().filter(|line| line.starts_with("cutover_generation_lane_inputs{"));
    lanes.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_answers_every_request_that_was_admitted() {
    let site = Site::digits().fault(&slow("v1", "serving", "700ms"));
    let mut server = site.start().await;
    let requests: Vec<_> = (0..8)
        .map(|n| {
            let client = server.another();
            tokio::spawn(async move { client.try_image("digits", &digit(n)).await })
        })
        .collect();
    // The first is running, and the engine answers for metrics between two passes.
    until("the requests are admitted", async || (in_lanes(&server).await >= 6.0).then_some(())).await;
    server.terminate();
    for (n, request) in requests.into_iter().enumerate() {
        let answer = request.await.unwrap().expect("an answer").expect(200);
        assert_eq!(answer.label(), n.to_string());
    }
    assert_eq!(server.ended().await, 0, "{}", server.log());
}

/// Asks on a connection that is kept, and gives the whole answer, of which the body has a length; empty where there was none.
fn asks_again(connection: &mut TcpStream, path: &str) -> String {
    connection.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).unwrap();
    let (mut answer, mut byte) = (Vec::new(), [0]);
    let mut left = usize::MAX;
    while left > 0 && connection.read(&mut byte).unwrap() == 1 {
        answer.push(byte[0]);
        left = left.saturating_sub(1);
        if answer.ends_with(b"\r\n\r\n") && left > 1 << 30 {
            let head = String::from_utf8_lossy(&answer).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            left = length.parse().unwrap();
        }
    }
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_breaks_no_request_of_a_client_that_keeps_its_connection() {
    let site = Site::digits();
    let mut server = site.start().await;
    let clients: Vec<_> = (0..8)
        .map(|nth| {
            let mut connection = TcpStream::connect(server.address()).unwrap();
            connection.set_read_timeout(Some(PATIENCE)).unwrap();
            std::thread::spawn(move || {
                // One after another, or with a pause in which a server that is in a hurry would close.
                loop {
                    let answer = asks_again(&mut connection, "/health");
                    assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
                    if answer.contains("\r\nconnection: close\r\n") {
                        return connection.read(&mut [0]).unwrap();
                    }
                    std::thread::sleep(Duration::from_millis(nth * 40));
                }
            })
        })
        .collect();
    server.terminate();
    for client in clients {
        assert_eq!(tokio::task::spawn_blocking(|| client.join()).await.unwrap().unwrap(), 0);
    }
    assert_eq!(server.ended().await, 0, "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lame_duck_is_not_ready_and_serves_everybody_until_its_time_or_a_second_signal() {
    let site = Site::digits().config("[server]\nlame_duck = '10m'");
    let mut server = site.start().await;
    server.get("/ready").await.expect(200);
    server.terminate();
    server.says("not ready any more").await;
    server.get("/ready").await.expect(503);
    server.get("/health").await.expect(200);
    assert_eq!(server.another().image("digits", &digit(5)).await.expect(200).version(), "v1");
    let mut connection = TcpStream::connect(server.address()).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    let answer = asks_again(&mut connection, "/models");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\r\nconnection: close\r\n"), "{answer}");
    server.terminate();
    assert_eq!(server.ended().await, 0, "{}", server.log());

    let site = Site::digits().config("[server]\nlame_duck = '300ms'");
    let mut server = site.start().await;
    server.terminate();
    assert_eq!(server.ended().await, 0, "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_does_not_wait_for_those_who_watch() {
    let site = Site::digits();
    let mut server = site.start().await;
    let mut watching = server.stream(Method::GET, "/admin/events", Value::Null).await;
    let began = Instant::now();
    server.terminate();
    watching.until("the last event", |event| event.name == "stopped").await;
    assert!(watching.next().await.is_none());
    assert_eq!(server.ended().await, 0);
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?} to stop", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_folder_serves_one_server_at_a_time() {
    let site = Site::digits();
    let server = site.start().await;
    let (code, said) = site.refused();
    assert_eq!(code, 1, "{said}");
    for part in ["another server is using it", &format!("process {}", server.pid()), "--state"] {
        assert!(said.contains(part), "{part} is missing: {said}");
    }
    assert_eq!(server.image("digits", &digit(6)).await.expect(200).version(), "v1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_ledger_is_refused_with_what_to_do() {
    let site = Site::digits();
    let mut server = site.start().await;
    server.promote("v2", json!({ "observe": "0s", "wait": "settled" })).await.expect(200);
    server.terminate();
    assert_eq!(server.ended().await, 0);
    let (file, copy) = (site.state().join("ledger.sqlite"), site.path().join("copy"));
    // Somebody changes a word of history by hand, or puts another file in its place.
    let forge = |file: &Path| {
        let connection = rusqlite::Connection::open(file).unwrap();
        assert_eq!(connection.execute("UPDATE events SET actor = 'mallory' WHERE kind = 'switched'", []).unwrap(), 1);
    };
    let replace = |file: &Path| fs::write(file, "not a database at all, but a text of some length").unwrap();
    let cut = |file: &Path| fs::write(file, &fs::read(file).unwrap()[..5000]).unwrap();
    // Closing it folds the log beside the file into it, so that the file is all there is.
    rusqlite::Connection::open(&file).unwrap().execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    fs::copy(&file, &copy).unwrap();
    for damage in [&forge as &dyn Fn(&Path), &replace, &cut] {
        damage(&file);
        let (code, said) = site.refused();
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("ledger.sqlite") && said.contains("restore a copy"), "{said}");
        assert!(!site.verify().0);
        fs::copy(&copy, &file).unwrap();
    }
    let server = site.start().await;
    assert_eq!((server.live("digits").await, &last_rollout(&server).await["phase"]), ("v2".into(), &json!("settled")));
}
