//! `bench serve`: throughput and latency at one or more levels of load.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::super::client::Api;
use super::super::output::{Failure, human_ms, note, printable};
use super::load::{Clock, Load, Pace, Recording, Sample};
use super::machine::OwnCost;
use super::report::{self, Summary, failures_line, lag_p99_ms, round};
use super::target::Target;
use super::{Subject, parse_clients, parse_rate, write_json};
use crate::repository::duration;

/// A run that is to last until so many requests are answered ends here at the latest.
const LONGEST: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, Args)]
pub struct ServeBench {
    #[command(flatten)]
    pub subject: Subject,
    /// Closed loop: so many clients at once; a level each
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1, 8, 32], value_parser = parse_clients)]
    pub clients: Vec<usize>,
    /// Open loop: so many requests a second, whatever the server does; a level each
    #[arg(long, value_name = "R,…", value_delimiter = ',', conflicts_with = "clients", value_parser = parse_rate)]
    pub rate: Vec<f64>,
    /// Open loop: at most so many requests at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = parse_clients)]
    pub connections: usize,
    /// How long each level is measured
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration::parse)]
    pub duration: Duration,
    /// Measure so many requests at each level instead
    #[arg(long, value_name = "N", conflicts_with = "duration", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub requests: Option<u64>,
    /// Load before each measurement that does not count
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration::parse)]
    pub warmup: Duration,
}

/// How long a level lasts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    pub(super) warmup: Duration,
    pub(super) duration: Duration,
    pub(super) requests: Option<u64>,
}

/// What one level gave.
#[derive(Debug)]
pub(super) struct Level {
    pace: Pace,
    seconds: f64,
    /// Successful answers a second.
    pub(super) throughput: f64,
    pub(super) summary: Summary,
    lag_p99_ms: f64,
    generator_cpu: Option<f64>,
    versions: Vec<String>,
    examples: Vec<String>,
}

pub(super) async fn run(args: &ServeBench, out: &mut dyn Write) -> Result<(), Failure> {
    let api = Api::new(&args.subject.connection)?;
    let (task, target) = args.subject.prepare(&api).await?;
    let extent = Extent { warmup: args.warmup, duration: args.duration, requests: args.requests };
    let mut levels = Vec::new();
    for pace in paces(args) {
        note(&format!("{}: {}", args.subject.model, describe(pace)));
        levels.push(measure(target.clone(), pace, extent).await?);
    }
    let results = json!({
        "bench": "serve", "model": args.subject.model, "task": task, "batch": args.subject.batch,
        "checked": args.subject.check, "levels": levels.iter().map(Level::json).collect::<Vec<_>>(),
    });
    if !write_json(args.subject.json.as_deref(), &results, out)? {
        write_table(&levels, out)?;
    }
    let failed = levels.iter().any(|level| level.summary.failed() > 0 || level.summary.requests == 0);
    if failed { Err(Failure::Reported) } else { Ok(()) }
}

fn paces(args: &ServeBench) -> Vec<Pace> {
    if args.rate.is_empty() {
        args.clients.iter().map(|&clients| Pace::Closed { clients }).collect()
    } else {
        args.rate.iter().map(|&rate| Pace::Open { rate, connections: args.connections }).collect()
    }
}

fn describe(pace: Pace) -> String {
    match pace {
        Pace::Closed { clients: 1 } => "1 client".to_owned(),
        Pace::Closed { clients } => format!("{clients} clients"),
        Pace::Open { rate, .. } => format!("{rate} a second"),
    }
}

/// Runs one level: warm-up, measurement, and the figures of what began within the measurement.
pub(super) async fn measure(target: Arc<Target>, pace: Pace, extent: Extent) -> Result<Level, Failure> {
    let clock = Clock::start();
    let load = Load::start(target, pace, clock)?;
    tokio::time::sleep(extent.warmup).await;
    let cost = OwnCost::start();
    let from = clock.now();
    let to = match extent.requests {
        None => {
            tokio::time::sleep(extent.duration).await;
            clock.now()
        }
        Some(requests) => {
            let wanted = load.answered() + requests;
            let enough = async {
                while load.answered() < wanted {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            // Whether all were answered shows in the count.
            let _in_time = tokio::time::timeout(LONGEST, enough).await;
            u64::MAX
        }
    };
    let generator_cpu = cost.share();
    let recording = load.finish().await?;
    let most = extent.requests.map_or(usize::MAX, |requests| requests as usize);
    let measured: Vec<Sample> =
        recording.samples.iter().filter(|sample| (from..to).contains(&sample.intended)).take(most).copied().collect();
    let to = to.min(measured.iter().map(|sample| sample.ended).max().unwrap_or(from));
    level(pace, (from, to), &measured, generator_cpu, recording)
}

/// Latencies are of the requests that began in the measurement; throughput is of the answers that came in it, whenever
/// their requests began: the first ones began before it, as the last ones end after it.
fn level(
    pace: Pace,
    (from, to): (u64, u64),
    measured: &[Sample],
    generator_cpu: Option<f64>,
    recording: Recording,
) -> Result<Level, Failure> {
    let seconds = (to - from) as f64 / 1e9;
    let summary = Summary::of(measured)?;
    let came = |sample: &&Sample| sample.outcome.ok() && (from..=to).contains(&sample.ended);
    let answered = recording.samples.iter().filter(came).count();
    let versions = recording.stamps.into_iter().filter_map(|stamp| stamp.version);
    let mut versions: Vec<String> = versions.collect();
    versions.dedup();
    Ok(Level {
        pace,
        seconds,
        throughput: if seconds > 0.0 { answered as f64 / seconds } else { 0.0 },
        lag_p99_ms: lag_p99_ms(measured)?,
        summary,
        generator_cpu,
        versions,
        examples: recording.examples,
    })
}

impl Level {
    fn json(&self) -> Value {
        let pace = match self.pace {
            Pace::Closed { clients } => json!({ "loop": "closed", "clients": clients }),
            Pace::Open { rate, connections } => {
                json!({ "loop": "open", "rate": rate, "connections": connections, "lag_p99_ms": self.lag_p99_ms })
            }
        };
        json!({
            "load": pace, "seconds": round(self.seconds), "throughput": round(self.throughput), "latency": self.summary,
            "generator_cpu": self.generator_cpu.map(round), "versions": self.versions, "examples": self.examples,
        })
    }
}

fn write_table(levels: &[Level], out: &mut dyn Write) -> Result<(), Failure> {
    let mut table = report::table(&["load", "answers/s", "generator"]);
    for level in levels {
        let own = level.generator_cpu.map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", share * 100.0));
        let head = [describe(level.pace), format!("{:.1}", level.throughput), own];
        table.row(head.into_iter().chain(level.summary.cells()));
    }
    table.write(out)?;
    for level in levels.iter().filter(|level| matches!(level.pace, Pace::Open { .. })) {
        writeln!(out, "{}: requests began up to {} late (p99)", describe(level.pace), human_ms(level.lag_p99_ms))?;
    }
    if let Some(failures) = failures_line(levels.iter().map(|level| &level.summary)) {
        writeln!(out, "failures: {failures}")?;
        for example in levels.iter().flat_map(|level| &level.examples).take(5) {
            writeln!(out, "  {}", printable(example))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::mock::{Faults, Mock};
    use super::*;

    fn args(mock: &Mock, more: &[&str]) -> ServeBench {
        use clap::Parser as _;
        let url = mock.url();
        let line = ["cutover", "bench", "serve", "--url", &url, "--warmup", "50ms"];
        let cli = super::super::super::Cli::try_parse_from(line.iter().chain(more)).unwrap();
        match cli.command {
            super::super::super::Command::Bench(super::super::BenchArgs {
                command: super::super::BenchCommand::Serve(args),
            }) => args,
            other => panic!("{other:?}"),
        }
    }

    async fn results(mock: &Mock, more: &[&str]) -> (Value, bool) {
        let args = args(mock, &[more, &["--json", "-"]].concat());
        let mut out = Vec::new();
        let passed = run(&args, &mut out).await.is_ok();
        (serde_json::from_slice(&out).unwrap(), passed)
    }

    #[tokio::test]
    async fn each_level_is_measured_and_a_healthy_server_passes() {
        let mock = Mock::start(Faults { service: Duration::from_millis(5), ..Faults::default() }).await;
        let (results, passed) =
            results(&mock, &["--model", "minilm", "--clients", "1,4", "--requests", "40", "--check"]).await;
        assert!(passed, "{results}");
        let levels = results["levels"].as_array().unwrap();
        assert_eq!(levels.len(), 2);
        for level in levels {
            assert_eq!(level["latency"]["requests"], 40, "{level}");
            assert!(level["latency"]["p50_ms"].as_f64().unwrap() >= 5.0, "{level}");
            assert_eq!(level["versions"], json!(["f32"]));
        }
        let of = |at: usize| levels[at]["throughput"].as_f64().unwrap();
        assert!(of(1) > 2.0 * of(0), "four clients at a fixed service time do more than twice the work of one");
        // A connection a client: three of the second level come on top.
        assert!(mock.connections() <= 2 + 1 + 4 + 1, "{} connections", mock.connections());
    }

    #[tokio::test]
    async fn the_openai_dialect_and_batches_are_asked_as_they_should_be() {
        let mock = Mock::start(Faults::default()).await;
        let line = [
            "--model",
            "minilm",
            "--dialect",
            "openai",
            "--batch",
            "3",
            "--clients",
            "2",
            "--requests",
            "20",
            "--check",
        ];
        let (results, passed) = results(&mock, &line).await;
        assert!(passed, "{results}");
    }

    #[tokio::test]
    async fn failures_are_counted_by_status_and_fail_the_bench() {
        let mock = Mock::start(Faults { fail_every: Some(4), ..Faults::default() }).await;
        let (results, passed) = results(&mock, &["--model", "minilm", "--clients", "1", "--requests", "40"]).await;
        assert!(!passed);
        assert_eq!(results["levels"][0]["latency"]["failures"], json!({"503": 10}), "{results}");
        assert!(results["levels"][0]["examples"][0].as_str().unwrap().contains("not_serving"), "{results}");
    }

    #[tokio::test]
    async fn an_open_loop_charges_a_stall_to_every_request_that_it_delayed() {
        // Once, everything stops for 400 ms: at 200 a second, 80 requests should have begun meanwhile.
        let (service, stall) = (Duration::from_millis(2), Some((100, Duration::from_millis(400))));
        let faults = || Faults { service, stall, ..Faults::default() };
        let slow = |results: &Value| {
            let latency = &results["levels"][0]["latency"];
            (
                latency["p50_ms"].as_f64().unwrap(),
                latency["p90_ms"].as_f64().unwrap(),
                latency["max_ms"].as_f64().unwrap(),
            )
        };
        let open = Mock::start(faults()).await;
        let line = ["--model", "minilm", "--rate", "200", "--connections", "4", "--duration", "1s"];
        let (open, _) = results(&open, &line).await;
        let closed = Mock::start(faults()).await;
        let line = ["--model", "minilm", "--clients", "1", "--duration", "1s"];
        let (closed, _) = results(&closed, &line).await;
        let ((_, open_p90, open_max), (_, closed_p90, closed_max)) = (slow(&open), slow(&closed));
        assert!(open_max >= 390.0 && closed_max >= 390.0, "{open_max} {closed_max}");
        assert!(open_p90 > 200.0, "a third of the requests should have begun in the stall, but p90 is {open_p90} ms");
        assert!(closed_p90 < 100.0, "a closed loop only sees the one request, but p90 is {closed_p90} ms");
    }
}
