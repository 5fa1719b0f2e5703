//! `bench soak`: a thousand switches under load, mishaps among them, and whether the server is then what it was.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::super::output::{Failure, human_bytes, note};
use super::driver::Plan;
use super::mishap::{self, Mishap};
use super::reading::Reading;
use super::session::{Session, Switching, parse_percent};
use super::soak_report::{ENOUGH, SoakAnalysis};
use super::swap_report::Analysis;
use super::texts::SplitMix64;
use super::{Subject, merge, outcome, svg_soak, write_file, write_json};
use crate::repository::duration;

#[derive(Debug, Clone, Args)]
pub struct SoakBench {
    #[command(flatten)]
    pub subject: Subject,
    #[command(flatten)]
    pub switching: Switching,
    /// How often to switch
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub switches: u32,
    /// Look at what the server takes after so many switches; rounded up so that the same version is live each time
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub every: u32,
    /// Of the switches, those before which a rollout comes to nothing: aborted, gone back from, or refused by the gate
    #[arg(long, value_name = "PERCENT", default_value = "10%", value_parser = parse_mishaps)]
    pub mishaps: f64,
    /// A version that the gate must refuse, to be promoted among those
    #[arg(long, value_name = "VERSION")]
    pub refused: Option<String>,
    /// The window that each promote asks for; it is ended by a settle after --hold
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration::parse)]
    pub observe: Duration,
    /// How long both versions stay resident after a switch
    #[arg(long, value_name = "DURATION", default_value = "50ms", value_parser = duration::parse)]
    pub hold: Duration,
    /// Quiet time between one rollout and the next
    #[arg(long, value_name = "DURATION", default_value = "50ms", value_parser = duration::parse)]
    pub pause: Duration,
    /// How long to measure before the first switch
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration::parse)]
    pub steady: Duration,
    /// Draw what the server took over the switches
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

fn parse_mishaps(text: &str) -> Result<f64, String> {
    parse_percent(text, 0.0..=100.0)
}

impl SoakBench {
    fn plan(&self) -> Plan {
        let Switching { versions, limit, pid, .. } = &self.switching;
        Plan {
            bench: "bench soak",
            model: self.subject.model.clone(),
            versions: versions.0.clone(),
            switches: self.switches,
            observe: self.observe,
            hold: self.hold,
            pause: self.pause,
            limit: *limit,
            pid: *pid,
            follow_memory: false,
        }
    }

    /// Versions of different sizes take different room.
    fn every(&self) -> u32 {
        self.every.next_multiple_of(self.switching.versions.0.len() as u32)
    }

    /// A soak that could say nothing is not begun.
    fn check(&self) -> Result<(), Failure> {
        let readings = self.switches / self.every();
        match readings as usize >= ENOUGH {
            true => Ok(()),
            false => Err(Failure::Failed(format!(
                "{} switches with a look after every {} are {readings} readings, and {ENOUGH} are needed to judge by: \
                 give more --switches, or a smaller --every",
                self.switches,
                self.every(),
            ))),
        }
    }

    fn script(&self) -> Vec<Option<Mishap>> {
        mishap::script(self.switches, self.mishaps, self.refused.as_deref(), &mut SplitMix64(self.subject.seed))
    }
}

pub(super) async fn run(args: &SoakBench, out: &mut dyn Write) -> Result<(), Failure> {
    args.check()?;
    let (task, mut session) = Session::start(&args.subject, &args.switching, args.plan()).await?;
    tokio::time::sleep(args.steady).await;
    let readings = soak(args, &mut session).await?;
    let run = session.finish().await?;
    let (served, stayed) = (Analysis::of(&run)?, SoakAnalysis::of(&readings, &run.cycles));
    let passed = served.passed && stayed.flat && stayed.judged;
    let (versions, checked) = (&args.switching.versions.0, args.subject.check);
    let mut results = json!({ "bench": "soak", "task": task, "versions": versions, "checked": checked });
    merge(&mut results, served.json(&run));
    merge(&mut results, stayed.json(&readings));
    merge(&mut results, json!({ "served": served.passed, "passed": passed }));
    if let Some(path) = &args.svg {
        write_file(path, &svg_soak::draw(&run.model, &readings, &stayed.trends))?;
    }
    if !write_json(args.subject.json.as_deref(), &results, out)? {
        served.write(&run, out)?;
        stayed.write(out)?;
        writeln!(out, "{}", outcome(passed))?;
    }
    if passed { Ok(()) } else { Err(Failure::Reported) }
}

/// Switches, lets mishaps happen, and looks at the server every so often. Ends early when a rollout does not end as it
/// was meant to.
async fn soak(args: &SoakBench, session: &mut Session) -> Result<Vec<Reading>, Failure> {
    let (every, deadline) = (args.every(), session.driver.deadline());
    let mut readings = Vec::new();
    for (number, mishap) in (1..).zip(args.script()) {
        if session.driver.is_past(deadline) {
            break;
        }
        if let Some(mishap) = mishap
            && session.driver.mishap(&mishap).await.error.is_some()
        {
            break;
        }
        if session.driver.switch(number).await.error.is_some() {
            break;
        }
        tokio::time::sleep(args.pause).await;
        if number % every == 0 {
            let reading = Reading::take(&session.driver.api, args.switching.pid, number).await?;
            note(&line(&reading, args.switches, session));
            readings.push(reading);
        }
    }
    Ok(readings)
}

/// How things stand.
fn line(reading: &Reading, wanted: u32, session: &Session) -> String {
    let mut line = format!("{} of {wanted} switches:", reading.switches);
    for (quantity, value) in &reading.of {
        let value = if quantity.is_bytes() { human_bytes(*value) } else { value.to_string() };
        line.push_str(&format!(" {} {value},", quantity.name()));
    }
    format!("{line} {} requests, {} failed", session.load.answered(), session.load.failed())
}

#[cfg(test)]
#[path = "soak_tests.rs"]
mod tests;
