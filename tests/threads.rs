//! `--threads`: what loading takes beside forward passes that never pause.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Client, Server, Site, minilm, skipped, until};
use reqwest::Method;
use serde_json::json;

/// The threads of a server that its models have no part in: connections, inputs, the ledger.
const OTHERS: [&str; 2] = ["http", "control"];

/// The name of a thread, and the processor time that it took (`/proc/<pid>/stat`, fields 2, 14 and 15).
fn thread(stat: &str) -> (String, Duration) {
    let (front, back) = stat.rsplit_once(')').unwrap();
    let name = front.split_once('(').unwrap().1.to_owned();
    let ticks: u64 = back.split_ascii_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum();
    // A hundred a second, on every Linux that we run on.
    (name, Duration::from_millis(ticks * 10))
}

/// What forward passes, loading, digests and the gate took, threads that have ended among them.
fn models(server: &Server) -> Duration {
    let process = format!("/proc/{}", server.pid());
    let (_, whole) = thread(&fs::read_to_string(format!("{process}/stat")).unwrap());
    let tasks = fs::read_dir(format!("{process}/task")).unwrap();
    // One may end while we look.
    let stats = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok());
    let others = stats.map(|stat| thread(&stat)).filter(|(name, _)| OTHERS.contains(&name.as_str()));
    whole.saturating_sub(others.map(|(_, time)| time).sum())
}

/// Two who ask without a pause for so much at once that the engine has always something to do.
struct Crowd {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
}

impl Crowd {
    fn gather(server: &Server) -> Crowd {
        let crowd = Crowd { stop: Arc::default(), answered: Arc::default() };
        for _ in 0..2 {
            let (client, stop, answered) = (server.another(), Arc::clone(&crowd.stop), Arc::clone(&crowd.answered));
            tokio::spawn(async move {
                while !stop.load(Ordering::Acquire) {
                    ask(&client).await;
                    answered.fetch_add(1, Ordering::Release);
                }
            });
        }
        crowd
    }
}

/// Seconds that the engine ran passes for clients, by the clock.
async fn passes(server: &Server) -> f64 {
    let text = server.get("/metrics").await.expect(200).body.as_str().unwrap().to_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("cutover_engine_client_seconds_total "));
    line.unwrap().parse().unwrap()
}

async fn ask(client: &Client) {
    let text = "the quiet harbour sent another report about the northern railway before winter ".repeat(6);
    client.texts("minilm@f32", &[text.as_str(); 16]).await.expect(200);
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn loading_beside_passes_that_never_pause_keeps_to_a_budget_of_one_thread() {
    if !minilm::is_here() {
        return;
    }
    if std::thread::available_parallelism().unwrap().get() < 2 {
        return skipped("with one processor nothing can be over a budget of one");
    }
    let site = Site::new().arg("--threads").arg("1");
    site.add_minilm();
    let server = site.start().await;
    let crowd = Crowd::gather(&server);
    until("passes follow each other", async || (crowd.answered.load(Ordering::Acquire) >= 2).then_some(())).await;
    let ran = passes(&server).await;
    let (before, began) = (models(&server), Instant::now());
    let mut staging = server.stream(Method::POST, "/models/minilm@f16/stage", json!({})).await;
    staging.phase("warming").await;
    let (used, took) = (models(&server) - before, began.elapsed());
    // One thread, a twentieth for the rollout's sake, and as much again for what a piece is too long by.
    let share = used.as_secs_f64() / took.as_secs_f64();
    assert!(share <= 1.1 + 0.03 / took.as_secs_f64(), "{share:.2} threads: {used:?} in {took:?}");
    let ran = (passes(&server).await - ran) / took.as_secs_f64();
    assert!(ran >= 0.7, "passes were not to pause, but ran {ran:.2} of {took:?}");
}
