//! `bench swap`: versions switched back and forth under a constant load, and what its users saw.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::super::client::Api;
use super::super::output::{Failure, note};
use super::driver::Driver;
use super::load::{Load, Pace};
use super::machine::OwnCost;
use super::swap_report::{Analysis, Run};
use super::target::Target;
use super::{Subject, capacity, parse_clients, parse_rate, svg, write_file, write_json};
use crate::repository::duration;

/// How often to look whether enough requests were made.
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Args)]
pub struct SwapBench {
    #[command(flatten)]
    pub subject: Subject,
    /// The versions to switch between, in turn
    #[arg(long, value_name = "A,B", value_parser = parse_versions)]
    pub versions: Versions,
    /// How often to switch
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub switches: u32,
    /// The window that each promote asks for; it is ended by a settle after --hold
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration::parse)]
    pub observe: Duration,
    /// How long both versions stay resident after a switch
    #[arg(long, value_name = "DURATION", default_value = "500ms", value_parser = duration::parse)]
    pub hold: Duration,
    /// Quiet time between one rollout and the next, which counts as steady
    #[arg(long, value_name = "DURATION", default_value = "500ms", value_parser = duration::parse)]
    pub pause: Duration,
    /// Requests a second [default: --load of the measured capacity]
    #[arg(long, value_name = "R", conflicts_with = "load", value_parser = parse_rate)]
    pub rate: Option<f64>,
    /// Share of the measured capacity to load the server with
    #[arg(long, value_name = "PERCENT", default_value = "60%", value_parser = parse_share)]
    pub load: f64,
    /// Clients of the closed loop with which measuring the capacity begins
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = parse_clients)]
    pub clients: usize,
    /// At most so many requests at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = parse_clients)]
    pub connections: usize,
    /// How long to measure before the first switch
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration::parse)]
    pub steady: Duration,
    /// Load before that, which does not count
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration::parse)]
    pub warmup: Duration,
    /// Go on after the last switch until so many requests were made
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=100_000_000))]
    pub requests: u64,
    /// Begin no switch after this long
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration::parse)]
    pub limit: Duration,
    /// The server's process, to follow its resident memory
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// Draw latency over time
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// Two or more versions, none twice in a row.
#[derive(Debug, Clone)]
pub struct Versions(pub Vec<String>);

fn parse_versions(text: &str) -> Result<Versions, String> {
    let versions: Vec<String> = text.split(',').map(|part| part.trim().to_owned()).collect();
    let distinct: std::collections::BTreeSet<&String> = versions.iter().collect();
    if versions.len() < 2 || distinct.len() != versions.len() || versions.iter().any(String::is_empty) {
        return Err("expected two or more different versions, such as v1,v2".to_owned());
    }
    Ok(Versions(versions))
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.trim_end_matches('%').parse::<f64>() {
        Ok(percent) if (1.0..=200.0).contains(&percent) => Ok(percent / 100.0),
        _ => Err("expected a percentage from 1% to 200%".to_owned()),
    }
}

pub(super) async fn run(args: &SwapBench, out: &mut dyn Write) -> Result<(), Failure> {
    let api = Api::new(&args.subject.connection)?;
    let (task, target) = args.subject.prepare(&api).await?;
    let mut driver = Driver::new(args, api).await?;
    driver.make_ready().await?;
    let capacity = match args.rate {
        Some(_) => None,
        None => {
            let capacity = slowest(args, &driver, &target).await?;
            driver.make_ready().await?;
            Some(capacity)
        }
    };
    let rate = args.rate.unwrap_or_else(|| args.load * capacity.unwrap_or_default()).clamp(0.01, 200_000.0);
    note(&format!("{}: {rate:.1} requests a second, {} switches", driver.model, args.switches));

    let load = Load::start(target, Pace::Open { rate, connections: args.connections }, driver.clock)?;
    tokio::time::sleep(args.warmup).await;
    let (cost, steady_from) = (OwnCost::start(), driver.clock.now());
    tokio::time::sleep(args.steady).await;
    driver.switch_back_and_forth().await;
    let most = args.steady + args.limit;
    while load.answered() < args.requests && Duration::from_nanos(driver.clock.now() - steady_from) < most {
        tokio::time::sleep(POLL).await;
    }
    let generator_cpu = cost.share();
    let until = driver.clock.now();
    let recording = load.finish().await?;

    let Driver { model, cycles, epochs, .. } = driver;
    let run = Run {
        model,
        rate,
        capacity,
        steady_from,
        until,
        generator_cpu,
        wanted: args.switches,
        cycles,
        epochs,
        recording,
    };
    let analysis = Analysis::of(&run)?;
    let mut results =
        json!({ "bench": "swap", "task": task, "versions": args.versions.0, "checked": args.subject.check });
    merge(&mut results, analysis.json(&run));
    if let Some(path) = &args.svg {
        write_file(path, &svg::draw(&run))?;
    }
    if !write_json(args.subject.json.as_deref(), &results, out)? {
        analysis.write(&run, out)?;
    }
    if analysis.passed { Ok(()) } else { Err(Failure::Reported) }
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

/// What the server can do with the slowest of the versions, since each of them will be live under the same load.
async fn slowest(args: &SwapBench, driver: &Driver<'_>, target: &Arc<Target>) -> Result<f64, Failure> {
    let mut least = f64::INFINITY;
    // The first one last, so that it is live when the steady phase begins.
    for version in args.versions.0.iter().rev() {
        driver.make_live(version).await?;
        least = least.min(capacity::of(target, args.clients, args.connections).await?);
    }
    Ok(least)
}

#[cfg(test)]
#[path = "swap_tests.rs"]
mod tests;
