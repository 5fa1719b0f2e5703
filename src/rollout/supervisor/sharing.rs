//! How models' versions share requests at one moment: read from routes, and from what controllers publish.

use serde_json::Value;

use super::super::state::Phase;
use super::Supervisor;

/// Of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Sharing {
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
    pub async fn sharing(&self) -> Vec<Sharing> {
        let controllers = self.controllers.lock().await;
        let told = controllers.iter().filter_map(|(model, reins)| {
            let route = reins.slot.route()?;
            let other = route.split.as_ref().map(|split| (split.to.version().to_owned(), split.share.part()));
            let rest = 1.0 - other.as_ref().map_or(0.0, |(_, share)| *share);
            let mut shares = vec![(route.live.version().to_owned(), rest)];
            shares.extend(other);
            let seen = route.shadow.as_ref().and(reins.status.shadow.load_full());
            let view = reins.status.handle.load_full().map(|handle| handle.now());
            let experiment = view.as_ref().filter(|view| view.phase == Phase::Experiment);
            let experiment = experiment.and_then(|view| view.record.figures.get("experiment"));
            Some(Sharing {
                model: model.clone(),
                shares,
                shadow: seen.map(|seen| shadow_of(&seen.figures())),
                arms: experiment.map(arms).unwrap_or_default(),
            })
        });
        told.collect()
    }
}

fn shadow_of(figures: &Value) -> ShadowSeen {
    ShadowSeen {
        compared: figures["samples"].as_u64().unwrap_or(0),
        dropped: figures["dropped"].as_u64().unwrap_or(0),
        mean: figures["mean"].as_f64(),
    }
}

fn arms(experiment: &Value) -> Vec<ArmSeen> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let arm = |arm: &Value| ArmSeen {
        experiment: text(&experiment["name"]),
        version: text(&arm["version"]),
        count: arm["feedback"]["count"].as_u64().unwrap_or(0),
        mean: arm["feedback"]["mean"].as_f64(),
    };
    experiment["arms"].as_array().into_iter().flatten().map(arm).collect()
}
