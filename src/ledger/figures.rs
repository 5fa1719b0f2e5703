//! How deployments have gone: counted from the rollouts that are kept.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Ledger;
use super::fault::Fault;
use super::rollouts::{Filter, RolloutRecord, each, parsed};
use crate::error::Result;

/// Over every rollout that has ended and is still recorded. One that brought the previous version back from disk, or from host
/// memory, is a rollback and no deployment; its figure `cold_rollback` says so.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    pub deployments: u64,
    /// How many ended in each phase.
    pub ends: BTreeMap<String, u64>,
    /// The share that settled, of those that no operator stopped; none when there are none.
    pub success_rate: Option<f64>,
    pub rollbacks: u64,
    /// Milliseconds without an answering version, one for each switch that measured it.
    pub downtime_ms: Option<Spread>,
    /// Milliseconds from the decision to go back until it was done, one for each rollback that measured it.
    pub rollback_ms: Option<Spread>,
}

/// How often each has happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub deployments: u64,
    /// Of those, the ones that went live.
    pub switches: u64,
    pub rollbacks: u64,
}

impl Figures {
    pub fn counts(&self) -> Counts {
        let switches = ["settled", "rolled_back"].iter().filter_map(|end| self.ends.get(*end)).sum();
        Counts { deployments: self.deployments, switches, rollbacks: self.rollbacks }
    }
}

impl Counts {
    /// What one rollout adds: nothing while it is open.
    pub fn of(record: &RolloutRecord) -> Counts {
        let RolloutRecord { phase, ended_ms, figures, .. } = record;
        let mut tally = Tally::default();
        tally.count(&Counted { phase: phase.clone(), ended_ms: *ended_ms, figures: figures.clone() });
        tally.figures().counts()
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, more: Counts) {
        self.deployments += more.deployments;
        self.switches += more.switches;
        self.rollbacks += more.rollbacks;
    }
}

/// Of some measures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub count: u64,
    /// The mean of the two in the middle where their number is even.
    pub median: f64,
    pub max: f64,
}

impl Ledger {
    pub fn figures(&self, model: Option<&str>) -> Result<Figures> {
        let filter = Filter { model: model.map(str::to_owned), limit: usize::MAX, open_only: false };
        self.read("read figures", |transaction| {
            let mut tally = Tally::default();
            each(transaction, &filter, &mut |record| parsed(record).map(|record| tally.count(&record)))?;
            Ok::<_, Fault>(tally.figures())
        })
    }
}

/// As much of a rollout's record as is counted.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Counted {
    phase: String,
    ended_ms: Option<i64>,
    figures: Map<String, Value>,
}

#[derive(Default)]
struct Tally {
    figures: Figures,
    downtimes: Vec<f64>,
    rollbacks: Vec<f64>,
}

impl Tally {
    fn count(&mut self, record: &Counted) {
        if record.ended_ms.is_none() {
            return;
        }
        let went_back = record.figures.contains_key("cold_rollback");
        // Nobody wanted it live yet.
        let compared = record.figures.contains_key("experiment") && record.phase != "settled";
        if !went_back && !compared {
            self.figures.deployments += 1;
            *self.figures.ends.entry(record.phase.clone()).or_default() += 1;
        }
        let measure = |name: &str| record.figures.get(name).and_then(Value::as_f64);
        self.downtimes.extend(measure("downtime_ms"));
        if let Some(took) = measure("cold_rollback_ms") {
            self.figures.rollbacks += 1;
            self.rollbacks.push(took);
        }
        if record.phase == "rolled_back" {
            self.figures.rollbacks += 1;
            self.rollbacks.extend(measure("rollback_ms"));
        }
    }

    fn figures(self) -> Figures {
        let Tally { mut figures, downtimes, rollbacks } = self;
        let ended = |phase: &str| figures.ends.get(phase).copied().unwrap_or(0);
        let judged = figures.deployments - ended("aborted");
        figures.success_rate = (judged > 0).then(|| ended("settled") as f64 / judged as f64);
        figures.downtime_ms = Spread::of(downtimes);
        figures.rollback_ms = Spread::of(rollbacks);
        figures
    }
}

impl Spread {
    fn of(mut measures: Vec<f64>) -> Option<Spread> {
        measures.sort_by(f64::total_cmp);
        let max = *measures.last()?;
        let middle = measures.len() / 2;
        let median =
            if measures.len() % 2 == 1 { measures[middle] } else { (measures[middle - 1] + measures[middle]) / 2.0 };
        Some(Spread { count: measures.len() as u64, median, max })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ended(phase: &str, figures: Value) -> Counted {
        let figures = figures.as_object().unwrap().clone();
        Counted { phase: phase.to_owned(), ended_ms: Some(1), figures }
    }

    fn figures(records: &[Counted]) -> Figures {
        let mut tally = Tally::default();
        records.iter().for_each(|record| tally.count(record));
        tally.figures()
    }

    #[test]
    fn figures_count_ends_and_spread_measures() {
        let figures = figures(&[
            ended("settled", json!({"downtime_ms": 0.5})),
            ended("settled", json!({"downtime_ms": 0.25})),
            ended("settled", json!({"downtime_ms": 0})),
            ended("rolled_back", json!({"downtime_ms": 8, "rollback_ms": 3})),
            ended("rolled_back", json!({"downtime_ms": "much"})),
            ended("refused", json!({"rollback_ms": 99})),
            ended("aborted", json!({})),
            Counted { phase: "loading".to_owned(), ..Counted::default() },
        ]);
        assert_eq!((figures.deployments, figures.rollbacks), (7, 2));
        assert_eq!(figures.ends["settled"], 3);
        assert_eq!(figures.success_rate, Some(0.5));
        assert_eq!(figures.downtime_ms, Some(Spread { count: 4, median: 0.375, max: 8.0 }));
        assert_eq!(figures.rollback_ms, Some(Spread { count: 1, median: 3.0, max: 3.0 }));
        assert_eq!(figures.counts(), Counts { deployments: 7, switches: 5, rollbacks: 2 });
    }

    #[test]
    fn bringing_the_previous_version_back_from_disk_is_a_rollback_and_no_deployment() {
        let cold = |phase, more: Value| {
            let mut record = ended(phase, json!({"cold_rollback": true}));
            record.figures.extend(more.as_object().unwrap().clone());
            record
        };
        let figures = figures(&[
            ended("settled", json!({})),
            cold("settled", json!({"cold_rollback_ms": 40})),
            cold("failed", json!({})),
            cold("rolled_back", json!({"cold_rollback_ms": 60, "rollback_ms": 2})),
        ]);
        assert_eq!((figures.deployments, figures.success_rate), (1, Some(1.0)));
        assert_eq!(figures.rollbacks, 3);
        assert_eq!(figures.rollback_ms, Some(Spread { count: 3, median: 40.0, max: 60.0 }));
    }

    #[test]
    fn without_deployments_there_are_no_rates() {
        assert_eq!(figures(&[]), Figures::default());
        let aborted = figures(&[ended("aborted", json!({}))]);
        assert_eq!((aborted.deployments, aborted.success_rate), (1, None));
    }
}
