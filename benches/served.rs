//! What serving costs: `/v1/embeddings` of minilm against the same batches run bare in a loop, in one run.
//!
//! `cargo bench --bench served [-- ROUNDS]`. The bare loop keeps as many texts waiting as there are clients, cuts
//! batches with the server's own batcher, and runs them on as many threads; texts are tokenized beforehand. The
//! served side is the real binary, asked by `cutover bench serve` on the same machine. Rounds alternate, medians
//! are told. Target: served at least 95 % of bare.
#![allow(clippy::expect_used, clippy::panic)]

mod support;

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use cutover::cli::bench::texts::Texts;
use cutover::model::{Input, Packed};
use cutover::process::PrepareOptions;
use cutover::schedule::{BatchLimits, Batcher, Queued};
use cutover::value::RawInput;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const CORPUS: usize = 512;
const SECONDS: u64 = 8;
const CLIENTS: [usize; 2] = [8, 32];
const BATCH_TOKENS: usize = 512;

fn main() {
    let rounds: usize = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(3);
    let mut bare = Bare::load();
    let mut ratios: Vec<Vec<(f64, f64)>> = vec![Vec::new(); CLIENTS.len()];
    for round in 0..rounds {
        for (at, clients) in CLIENTS.iter().enumerate() {
            let alone = bare.run(*clients);
            let served = served(*clients);
            println!(
                "round {round}: {clients} clients: bare {alone:.1}, served {served:.1} texts/s, {:.3}",
                served / alone
            );
            ratios[at].push((alone, served));
        }
    }
    for (at, clients) in CLIENTS.iter().enumerate() {
        let middle = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let bare = middle(ratios[at].iter().map(|(bare, _)| *bare).collect());
        let served = middle(ratios[at].iter().map(|(_, served)| *served).collect());
        let ratio = middle(ratios[at].iter().map(|(bare, served)| served / bare).collect());
        println!("{clients} clients: bare {bare:.1} texts/s, served {served:.1} texts/s, median ratio {ratio:.3}");
    }
}

struct Bare {
    loaded: support::Loaded,
    inputs: Vec<Input>,
    pool: rayon::ThreadPool,
}

impl Bare {
    fn load() -> Bare {
        let loaded = support::loaded("minilm", "f32").expect("minilm is here: run models/fetch minilm");
        let mut texts = Texts::new(1);
        let prepare = |text| loaded.processor.prepare(&RawInput::Text(text), &PrepareOptions::default());
        let inputs = (0..CORPUS).map(|_| prepare(texts.text()).expect("a text")).collect();
        let pool = rayon::ThreadPoolBuilder::new().build().expect("a pool");
        Bare { loaded, inputs, pool }
    }

    /// Texts a second with `clients` of them always waiting.
    fn run(&mut self, clients: usize) -> f64 {
        let limits = BatchLimits { max_tokens: BATCH_TOKENS, max_items: usize::MAX, max_wait: 0 };
        let mut batcher = Batcher::new(limits);
        let began = Instant::now();
        let nanos = || began.elapsed().as_nanos() as u64;
        let mut next = 0;
        let mut push = |batcher: &mut Batcher, now| {
            let key = next % CORPUS;
            next += 1;
            let tokens = self.inputs[key].cost(1);
            batcher.push(Queued { key: key as u64, tokens, arrived: now, urgent: false });
        };
        (0..clients).for_each(|_| push(&mut batcher, 0));
        let mut done = 0;
        while began.elapsed() < Duration::from_secs(SECONDS) {
            let started = nanos();
            let batch = batcher.plan(started).expect("texts wait");
            let inputs = batch.items.iter().map(|item| self.inputs[item.key as usize].clone()).collect();
            let packed = Packed::new(inputs).expect("texts");
            let model = &mut self.loaded.model;
            let rows = self.pool.install(|| model.forward(&packed, packed.all()).and_then(|rows| rows.wait()));
            done += rows.expect("rows").len();
            let ended = nanos();
            batcher.observe(batch.tokens, ended - started);
            (0..batch.items.len()).for_each(|_| push(&mut batcher, ended));
        }
        done as f64 / began.elapsed().as_secs_f64()
    }
}

/// Answers a second of the real server to `clients` clients.
fn served(clients: usize) -> f64 {
    let binary = env!("CARGO_BIN_EXE_cutover");
    let state = tempfile::tempdir().expect("a folder");
    let mut server = Server::start(binary, state.path());
    let output = Command::new(binary)
        .args(["bench", "serve", "--model", "minilm", "--dialect", "openai", "--json", "-", "--warmup", "1s"])
        .args(["--url", &server.url, "--clients", &clients.to_string(), "--duration", &format!("{SECONDS}s")])
        .stderr(Stdio::null())
        .output()
        .expect("the load generator runs");
    server.stop();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a report");
    let rate = report.pointer("/levels/0/throughput");
    rate.and_then(serde_json::Value::as_f64).unwrap_or_else(|| panic!("no rate in {report}"))
}

struct Server {
    child: Child,
    url: String,
    _output: Lines<BufReader<ChildStdout>>,
}

impl Server {
    fn start(binary: &str, state: &std::path::Path) -> Server {
        let mut child = Command::new(binary)
            .args(["serve", "--listen", "127.0.0.1:0", "--model", "minilm"])
            .arg("--models")
            .arg(support::repository())
            .arg("--state")
            .arg(state)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let line = lines.by_ref().map_while(Result::ok).find(|line| line.contains("http://")).expect("its address");
        let url = line[line.find("http://").unwrap_or(0)..].trim().to_owned();
        Server { child, url, _output: lines }
    }

    fn stop(&mut self) {
        // A server that has ended already is no trouble to a measurement that is over.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
