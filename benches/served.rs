//! What serving costs: `/v1/embeddings` of minilm against the same batches run bare in a loop, in one run.
//!
//! `cargo bench --bench served [-- PAIRS]`. The bare loop has as many texts as there are clients, each asked again
//! while the batch after its own runs, cuts batches with the server's own batcher, and runs them on as many threads: the
//! same batches, with texts tokenized beforehand. The served side is the real binary, asked by `cutover bench serve` on
//! the same machine. Each round of the server is held against the loop before and after it, since a machine's speed
//! drifts; and each pair of processes is started anew, since where a process's memory comes to lie makes it faster or
//! slower by more than what is measured here. Medians are told. Target: served at least 95 % of bare.
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

/// Few, so that a short round goes through all of them several times and both sides run the same lengths.
const CORPUS: usize = 32;
const SECONDS: u64 = 5;
/// Both sides begin with all texts waiting, of which the short ones run first; that does not count.
const WARMUP: Duration = Duration::from_millis(1000);
/// Asks this program for one pair of processes.
const ONE_PAIR: &str = "--one-pair";
const CLIENTS: [usize; 2] = [8, 32];
const BATCH_TOKENS: usize = 512;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.iter().any(|arg| arg == ONE_PAIR) {
        return one_pair();
    }
    let count: usize = args.iter().filter_map(|arg| arg.parse().ok()).next().unwrap_or(8);
    let mut rounds: Vec<Round> = Vec::new();
    for number in 0..count {
        let own = std::env::current_exe().expect("this program's path");
        let output = Command::new(own).arg(ONE_PAIR).stderr(Stdio::inherit()).output().expect("this program again");
        assert!(output.status.success(), "a pair failed: {}", output.status);
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let round: Round = serde_json::from_str(line).expect("a round");
            let Round { clients, bare, served } = round;
            println!(
                "pair {number}, {clients} clients: bare {bare:.1}, served {served:.1} texts/s, {:.3}",
                round.ratio()
            );
            rounds.push(round);
        }
    }
    for clients in CLIENTS {
        let middle = |of: fn(&Round) -> f64| {
            let mut values: Vec<f64> = rounds.iter().filter(|round| round.clients == clients).map(of).collect();
            values.sort_by(f64::total_cmp);
            let quarter = values.len() / 4;
            (values[quarter], values[values.len() / 2], values[values.len() - 1 - quarter])
        };
        let (bare, served) = (middle(|round| round.bare).1, middle(|round| round.served).1);
        let (low, ratio, high) = middle(Round::ratio);
        println!(
            "{clients} clients: bare {bare:.1}, served {served:.1} texts/s, ratio {ratio:.3} (middle half {low:.3} to {high:.3})"
        );
    }
}

/// Measures a server and a loop that were started for it, and tells each round as a line of JSON.
fn one_pair() {
    let mut bare = Bare::load();
    let state = tempfile::tempdir().expect("a folder");
    let server = Server::start(env!("CARGO_BIN_EXE_cutover"), state.path());
    for clients in CLIENTS {
        let before = bare.run(clients);
        let served = served(&server, clients);
        let round = Round { clients, bare: (before + bare.run(clients)) / 2.0, served };
        println!("{}", serde_json::to_string(&round).expect("numbers"));
    }
}

/// What the server reached, and the loop before and after it. Texts a second.
#[derive(serde::Serialize, serde::Deserialize)]
struct Round {
    clients: usize,
    bare: f64,
    served: f64,
}

impl Round {
    fn ratio(&self) -> f64 {
        self.served / self.bare
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
        let (mut done, mut returning) = (0, 0);
        let (mut from, warm) = (0, WARMUP.as_nanos() as u64);
        while began.elapsed() < WARMUP + Duration::from_secs(SECONDS) {
            let started = nanos();
            if batcher.is_empty() {
                (0..std::mem::take(&mut returning)).for_each(|_| push(&mut batcher, started));
            }
            let batch = batcher.plan(started).expect("texts wait");
            // Clients that were just answered ask again while the next batch runs: the same batches as served.
            (0..std::mem::take(&mut returning)).for_each(|_| push(&mut batcher, started));
            let inputs = batch.items.iter().map(|item| self.inputs[item.key as usize].clone()).collect();
            let packed = Packed::new(inputs).expect("texts");
            let model = &mut self.loaded.model;
            let rows = self.pool.install(|| model.forward(&packed, packed.all()).and_then(|rows| rows.wait()));
            let ended = nanos();
            match ended < warm {
                true => (done, from) = (0, ended),
                false => done += rows.expect("rows").len(),
            }
            batcher.observe(batch.tokens, ended - started);
            returning = batch.items.len();
        }
        done as f64 * 1e9 / (nanos() - from) as f64
    }
}

/// Answers a second of the real server to `clients` clients.
fn served(server: &Server, clients: usize) -> f64 {
    let output = Command::new(env!("CARGO_BIN_EXE_cutover"))
        .args([
            "bench",
            "serve",
            "--model",
            "minilm",
            "--dialect",
            "openai",
            "--json",
            "-",
            "--warmup",
            &format!("{}ms", WARMUP.as_millis()),
        ])
        .args(["--corpus", &CORPUS.to_string()])
        .args(["--url", &server.url, "--clients", &clients.to_string(), "--duration", &format!("{SECONDS}s")])
        .stderr(Stdio::null())
        .output()
        .expect("the load generator runs");
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
}

impl Drop for Server {
    fn drop(&mut self) {
        // A server that has ended already is no trouble to a measurement that is over.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
