//! Metrics of how models' versions share requests: shares of a canary or an experiment, what its clients say, and what a
//! shadow sees. One series a model, or a model and version.

use super::Page;
use crate::rollout::{Shares, Supervisor};

/// Name, help, and how it is read of what a shadow has seen.
type Row = (&'static str, &'static str, fn(&Shares) -> Option<f64>);

const SHADOW: [Row; 3] = [
    ("shadow_compared", "answers of the live version that the running shadow has compared", |model| {
        model.shadow.as_ref().map(|seen| seen.compared as f64)
    }),
    ("shadow_dropped", "answers of its sample that found no room", |model| {
        model.shadow.as_ref().map(|seen| seen.dropped as f64)
    }),
    ("shadow_agreement_ratio", "how much both versions agree, on average", |model| {
        model.shadow.as_ref().and_then(|seen| seen.mean)
    }),
];

pub(super) async fn add(page: &mut Page, supervisor: &Supervisor) {
    let all = supervisor.shares().await;
    page.family("version_share_ratio", "gauge", "share of the requests to a model that a version answers");
    for model in &all {
        for (version, share) in &model.shares {
            page.sample("version_share_ratio", &[("model", &model.model), ("version", version)], *share);
        }
    }
    for (name, help, read) in SHADOW {
        page.family(name, "gauge", help);
        for (model, value) in all.iter().filter_map(|model| Some((model, read(model)?))) {
            page.sample(name, &[("model", &model.model)], value);
        }
    }
    let arms = || all.iter().flat_map(|model| model.arms.iter().map(move |arm| (model, arm)));
    page.family(
        "experiment_feedback",
        "gauge",
        "scores that clients gave to answers of a version in the running experiment",
    );
    for (model, arm) in arms() {
        let labels = [("model", &*model.model), ("version", &arm.version), ("experiment", &arm.experiment)];
        page.sample("experiment_feedback", &labels, arm.count as f64);
    }
    page.family("experiment_feedback_mean", "gauge", "their mean");
    for (model, arm, mean) in arms().filter_map(|(model, arm)| Some((model, arm, arm.mean?))) {
        let labels = [("model", &*model.model), ("version", &arm.version), ("experiment", &arm.experiment)];
        page.sample("experiment_feedback_mean", &labels, mean);
    }
}
