//! `bench swap`: versions switched back and forth under a constant load, and what its users saw.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::super::output::Failure;
use super::driver::Plan;
use super::session::{Session, Switching};
use super::swap_report::Analysis;
use super::{Subject, merge, outcome, svg, write_file, write_json};
use crate::repository::duration;

#[derive(Debug, Clone, Args)]
pub struct SwapBench {
    #[command(flatten)]
    pub subject: Subject,
    #[command(flatten)]
    pub switching: Switching,
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
    /// How long to measure before the first switch
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration::parse)]
    pub steady: Duration,
    /// Go on after the last switch until so many requests were made
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=100_000_000))]
    pub requests: u64,
    /// Draw latency over time
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

impl SwapBench {
    fn plan(&self) -> Plan {
        let Switching { versions, limit, pid, .. } = &self.switching;
        Plan {
            bench: "bench swap",
            model: self.subject.model.clone(),
            versions: versions.0.clone(),
            switches: self.switches,
            observe: self.observe,
            hold: self.hold,
            pause: self.pause,
            limit: *limit,
            pid: *pid,
            follow_memory: true,
        }
    }
}

pub(super) async fn run(args: &SwapBench, out: &mut dyn Write) -> Result<(), Failure> {
    let (task, mut session) = Session::start(&args.subject, &args.switching, args.plan()).await?;
    tokio::time::sleep(args.steady).await;
    session.driver.switch_back_and_forth().await;
    session.go_on_until(args.requests, args.steady + args.switching.limit).await;
    let run = session.finish().await?;
    let analysis = Analysis::of(&run)?;
    let (versions, checked) = (&args.switching.versions.0, args.subject.check);
    let mut results = json!({ "bench": "swap", "task": task, "versions": versions, "checked": checked });
    merge(&mut results, analysis.json(&run));
    if let Some(path) = &args.svg {
        write_file(path, &svg::draw(&run, &svg::Words::of_requests(&run)))?;
    }
    if !write_json(args.subject.json.as_deref(), &results, out)? {
        analysis.write(&run, out)?;
        writeln!(out, "{}", outcome(analysis.passed))?;
    }
    if analysis.passed { Ok(()) } else { Err(Failure::Reported) }
}

#[cfg(test)]
#[path = "swap_tests.rs"]
mod tests;
