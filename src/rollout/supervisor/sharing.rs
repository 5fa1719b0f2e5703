//! How models' versions share requests at one moment: read from routes and what counts there, for metrics.

use super::super::shadow::Seen;
use super::Supervisor;
use crate::slot::{Arm, Route};

/// Of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Shares {
    pub model: String,
    /// Versions that answer requests which name none, and the share that each answers: 1 together.
    pub shares: Vec<(String, f64)>,
    /// While one runs.
    pub shadow: Option<ShadowSeen>,
    /// While an experiment goes on.
    pub arms: Vec<ArmSeen>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ShadowSeen {
    pub compared: u64,
    pub dropped: u64,
    /// `None` while nothing was compared.
    pub mean: Option<f64>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ArmSeen {
    pub experiment: String,
    pub version: String,
    /// Scores that clients gave, and their mean.
    pub count: u64,
    pub mean: Option<f64>,
}

impl Supervisor {
    pub async fn shares(&self) -> Vec<Shares> {
        let controllers = self.controllers.lock().await;
        let told = controllers.iter().filter_map(|(model, reins)| {
            let route = reins.slot.route()?;
            let other = route.split.as_ref().map(|split| (split.to.version().to_owned(), split.share.part()));
            let rest = 1.0 - other.as_ref().map_or(0.0, |(_, share)| *share);
            let mut shares = vec![(route.live.version().to_owned(), rest)];
            shares.extend(other);
            let seen = route.shadow.as_ref().and(reins.status.shadow.load_full());
            // The name is the record's, as the rollout has it.
            let view = reins.status.handle.load_full().map(|handle| handle.now());
            let name = view.as_ref().and_then(|view| view.record.figures.get("experiment")?["name"].as_str());
            Some(Shares {
                model: model.clone(),
                shares,
                shadow: seen.map(|seen| shadow_of(&seen)),
                arms: name.map(|name| arms(name, &route)).unwrap_or_default(),
            })
        });
        told.collect()
    }
}

fn shadow_of(seen: &Seen) -> ShadowSeen {
    let (compared, dropped, mean) = seen.glance();
    ShadowSeen { compared, dropped, mean }
}

/// None where what is shared is no experiment.
fn arms(experiment: &str, route: &Route) -> Vec<ArmSeen> {
    let Some((split, tally)) = route.split.as_ref().and_then(|split| Some((split, split.tally.as_ref()?))) else {
        return Vec::new();
    };
    let seen = |(version, of): (&str, Arm)| {
        let scores = tally.told(of).scores;
        let (experiment, version) = (experiment.to_owned(), version.to_owned());
        ArmSeen { experiment, version, count: scores.count, mean: scores.mean() }
    };
    [(route.live.version(), Arm::Live), (split.to.version(), Arm::Other)].map(seen).into()
}
