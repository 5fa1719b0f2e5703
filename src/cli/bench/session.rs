//! A load on a server whose versions are switched meanwhile: what `bench swap` and `bench soak` have in common.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::super::client::Api;
use super::super::output::{Failure, note};
use super::driver::{Driver, Plan};
use super::load::{Load, Pace};
use super::machine::{self, OwnCost};
use super::swap_report::Run;
use super::target::Target;
use super::{Subject, capacity, parse_clients, parse_rate};
use crate::repository::duration;
use crate::value::Task;

/// How often to look whether enough requests were made.
const POLL: Duration = Duration::from_millis(50);

/// What is switched, and under which load.
#[derive(Debug, Clone, Args)]
pub struct Switching {
    /// The versions to switch between, in turn
    #[arg(long, value_name = "A,B", value_parser = parse_versions)]
    pub versions: Versions,
    /// Requests a second [default: --load of the measured capacity]
    #[arg(long, value_name = "R", conflicts_with = "load", value_parser = parse_rate)]
    pub rate: Option<f64>,
    /// Share of the measured capacity to load the server with
    #[arg(long, value_name = "PERCENT", default_value = "60%", value_parser = parse_load)]
    pub load: f64,
    /// Clients of the closed loop with which measuring the capacity begins
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = parse_clients)]
    pub clients: usize,
    /// At most so many requests at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = parse_clients)]
    pub connections: usize,
    /// Load before the measurement, which does not count
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration::parse)]
    pub warmup: Duration,
    /// Begin no switch after this long
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration::parse)]
    pub limit: Duration,
    /// The server's process, where it runs on this machine, to see what it takes
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
}

/// Two or more versions, none twice in a row.
#[derive(Debug, Clone)]
pub struct Versions(pub Vec<String>);

pub(super) fn parse_versions(text: &str) -> Result<Versions, String> {
    let versions: Vec<String> = text.split(',').map(|part| part.trim().to_owned()).collect();
    let distinct: std::collections::BTreeSet<&String> = versions.iter().collect();
    if versions.len() < 2 || distinct.len() != versions.len() || versions.iter().any(String::is_empty) {
        return Err("expected two or more different versions, such as v1,v2".to_owned());
    }
    Ok(Versions(versions))
}

fn parse_load(text: &str) -> Result<f64, String> {
    parse_percent(text, 1.0..=200.0)
}

/// `60%`, or `60`, as 0.6.
pub(super) fn parse_percent(text: &str, bounds: std::ops::RangeInclusive<f64>) -> Result<f64, String> {
    match text.trim_end_matches('%').parse::<f64>() {
        Ok(percent) if bounds.contains(&percent) => Ok(percent / 100.0),
        _ => Err(format!("expected a percentage from {}% to {}%", bounds.start(), bounds.end())),
    }
}

/// A load that runs, and the driver of the rollouts meanwhile.
pub(super) struct Session {
    pub(super) driver: Driver,
    pub(super) load: Load,
    rate: f64,
    capacity: Option<f64>,
    cost: OwnCost,
    steady_from: u64,
}

impl Session {
    /// Makes one of the versions live, finds the rate, and returns when the load is warm.
    pub(super) async fn start(
        subject: &Subject,
        switching: &Switching,
        plan: Plan,
    ) -> Result<(Task, Session), Failure> {
        let api = Api::new(&subject.connection)?;
        if let Some(pid) = switching.pid {
            machine::check_server(pid).map_err(|reason| Failure::Failed(format!("--pid {pid}: {reason}")))?;
        }
        let (task, target) = subject.prepare(&api).await?;
        let mut driver = Driver::new(plan, api).await?;
        driver.make_ready().await?;
        let capacity = match switching.rate {
            Some(_) => None,
            None => {
                let capacity = slowest(switching, &driver, &target).await?;
                driver.make_ready().await?;
                Some(capacity)
            }
        };
        let rate = switching.rate.unwrap_or_else(|| switching.load * capacity.unwrap_or_default());
        let rate = rate.clamp(0.01, 200_000.0);
        note(&format!("{}: {rate:.1} requests a second, {} switches", driver.model, driver.plan.switches));
        let load = Load::start(target, Pace::Open { rate, connections: switching.connections }, driver.clock)?;
        tokio::time::sleep(switching.warmup).await;
        let (cost, steady_from) = (OwnCost::start(), driver.clock.now());
        Ok((task, Session { driver, load, rate, capacity, cost, steady_from }))
    }

    /// Goes on until so many requests were made, but for no longer than `most` since the load was warm.
    pub(super) async fn go_on_until(&self, requests: u64, most: Duration) {
        let lasted = || Duration::from_nanos(self.driver.clock.now() - self.steady_from);
        while self.load.answered() < requests && lasted() < most {
            tokio::time::sleep(POLL).await;
        }
    }

    /// Ends the load, and gives the record of all of it.
    pub(super) async fn finish(self) -> Result<Run, Failure> {
        let Session { driver, load, rate, capacity, cost, steady_from } = self;
        let generator_cpu = cost.share();
        let until = driver.clock.now();
        let recording = load.finish().await?;
        let Driver { plan, model, cycles, epochs, .. } = driver;
        let wanted = plan.switches;
        Ok(Run { model, rate, capacity, steady_from, until, generator_cpu, wanted, cycles, epochs, recording })
    }
}

/// What the server can do with the slowest of the versions, since each of them will be live under the same load.
async fn slowest(switching: &Switching, driver: &Driver, target: &Arc<Target>) -> Result<f64, Failure> {
    let mut least = f64::INFINITY;
    // The first one last, so that it is live when the steady phase begins.
    for version in switching.versions.0.iter().rev() {
        driver.make_live(version).await?;
        least = least.min(capacity::of(target, switching.clients, switching.connections).await?);
    }
    Ok(least)
}
