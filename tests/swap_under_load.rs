//! The main promise: clients that never stop asking see fifty switches and not one of them in an answer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::inputs::{digits, distance, scores};
use common::{Client, Server, Site};
use serde_json::json;

const CLIENTS: usize = 6;
const SWITCHES: usize = 60;
/// A row in a batch and the same row alone differ in the order of their sums only.
const SAME: f64 = 1e-4;

/// What both versions answer to every image, asked of a quiet server: `expected[version][image]`.
struct Expected([Vec<Vec<f64>>; 2]);

fn number(version: &str) -> usize {
    match version {
        "v1" => 0,
        "v2" => 1,
        other => panic!("answered by '{other}'"),
    }
}

impl Expected {
    async fn learn(server: &Server, images: &[Vec<u8>]) -> Expected {
        let mut all = [Vec::new(), Vec::new()];
        for version in ["v1", "v2"] {
            server.promote(version, json!({ "observe": "0s", "wait": "settled" })).await.expect(200);
            for image in images {
                let answer = server.image("digits", image).await.expect(200);
                assert_eq!(answer.version(), version);
                all[number(version)].push(scores(&answer.body));
            }
        }
        server.promote("v1", json!({ "observe": "0s", "wait": "settled" })).await.expect(200);
        // Else an answer of the wrong version could not be told.
        for (a, b) in all[0].iter().zip(&all[1]) {
            assert!(distance(a, b) > 20.0 * SAME, "both versions say the same to an image");
        }
        Expected(all)
    }
}

/// What all clients saw together.
#[derive(Debug, Default)]
struct Seen {
    answers: AtomicU64,
    /// Those that only one version may have given.
    judged: AtomicU64,
    of: [AtomicU64; 2],
}

/// The version that every request begun from now on must be answered by: the number of promotes that have been
/// answered, so that an odd one is `v2`; and whether another one is on its way.
#[derive(Debug, Default)]
struct Stand {
    answered: AtomicU64,
    begun: AtomicU64,
}

/// Asks without a pause over one connection, and judges every answer.
async fn ask(
    client: Client,
    images: Arc<Vec<Vec<u8>>>,
    expected: Arc<Expected>,
    board: Arc<(Seen, Stand, AtomicBool)>,
) {
    let (seen, stand, stop) = &*board;
    let mut at = 0;
    while !stop.load(Ordering::Acquire) {
        at = (at + 1) % images.len();
        // Both are read before the request begins; if no promote was under way then or began before it was answered,
        // only one version may answer it.
        let answered = stand.answered.load(Ordering::Acquire);
        let answer = client.try_image("digits", &images[at]).await.expect("an answer");
        let begun = stand.begun.load(Ordering::Acquire);
        assert_eq!(answer.status, 200, "{}", answer.body);
        let version = answer.version();
        let which = number(version);
        if begun == answered {
            assert_eq!(which as u64, answered % 2, "begun after promote {answered} was answered, served by {version}");
            seen.judged.fetch_add(1, Ordering::Relaxed);
        }
        assert_eq!(answer.body["version"], version, "the stamp and the body disagree");
        let away = distance(&scores(&answer.body), &expected.0[which][at]);
        assert!(away <= SAME, "image {at} answered as {version} is {away} away from what {version} says");
        seen.of[which].fetch_add(1, Ordering::Relaxed);
        seen.answers.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_or_mixes_versions_through_sixty_switches_and_everything_is_given_back() {
    let site = Site::digits();
    let server = site.start().await;
    let images = Arc::new(digits());
    let expected = Arc::new(Expected::learn(&server, &images).await);
    let board = Arc::new((Seen::default(), Stand::default(), AtomicBool::new(false)));
    let clients: Vec<Client> = (0..CLIENTS).map(|_| server.another()).collect();
    for client in &clients {
        client.get("/health").await.expect(200);
    }
    let (reserved, files) = (server.reserved().await, server.open_files());
    let tasks: Vec<_> = clients
        .iter()
        .map(|c| tokio::spawn(ask(c.clone(), Arc::clone(&images), Arc::clone(&expected), Arc::clone(&board))))
        .collect();

    let (seen, stand, stop) = &*board;
    let mut threads = Vec::new();
    for switch in 1..=SWITCHES {
        let (to, from) = if switch % 2 == 1 { ("v2", "v1") } else { ("v1", "v2") };
        let before = seen.answers.load(Ordering::Relaxed);
        stand.begun.store(switch as u64, Ordering::Release);
        // Every third goes back at once instead, and then forward again: three stores for one switch.
        if switch % 3 == 0 {
            server.promote(to, json!({ "observe": "1h" })).await.expect(200);
            let back = json!({ "reason": "a drill", "wait": "settled" });
            assert_eq!(server.post("/admin/rollback", back).await.expect(200).phase(), "rolled_back");
            assert_eq!(server.live("digits").await, from);
        }
        server.promote(to, json!({ "observe": "1h" })).await.expect(200);
        stand.answered.store(switch as u64, Ordering::Release);
        common::until("clients were answered by the new version", async || {
            (seen.answers.load(Ordering::Relaxed) > before + 2 * CLIENTS as u64).then_some(())
        })
        .await;
        let settled = server.post("/admin/settle", json!({})).await.expect(200);
        let reclaim = &settled.body["figures"]["reclaim"];
        let bytes = |name: &str| reclaim[name].as_u64().unwrap();
        assert!(bytes("returned") >= bytes("promised") && bytes("promised") > 0, "{reclaim}");
        threads.push(server.threads());
    }
    stop.store(true, Ordering::Release);
    for task in tasks {
        task.await.expect("a client failed");
    }
    assert_eq!(server.live("digits").await, "v1");
    assert!(seen.of.iter().all(|of| of.load(Ordering::Relaxed) > 100), "{seen:?}");
    assert!(seen.judged.load(Ordering::Relaxed) > 100, "{seen:?}");

    let memory = server.memory().await;
    let now = memory["reserved"].as_u64().unwrap();
    assert_eq!(now, reserved, "{memory}");
    assert_eq!((memory["generations"].as_array().unwrap().len(), &memory["abandoned"]), (1, &json!(0)), "{memory}");
    // A loader's or a probation's thread that stayed would be one more each time; connections and the ledger stay open.
    let (first, last) = (threads[9], threads[SWITCHES - 1]);
    assert!(last <= first + 4, "{threads:?} threads");
    assert!(server.open_files() <= files + 4, "{} files are open, {files} were before", server.open_files());
}
