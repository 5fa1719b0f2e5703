//! What two versions that share requests, or are compared on the same ones, say of each other.
#![expect(dead_code, reason = "mirrors are described, never made")]

use serde_json::Value;
use utoipa::ToSchema;

#[derive(ToSchema)]
pub(super) struct Experiments {
    experiments: Vec<Experiment>,
}

/// An experiment that goes on.
#[derive(ToSchema)]
struct Experiment {
    name: String,
    model: String,
    /// Of the version that is not live.
    rollout: String,
    #[schema(nullable = false)]
    seconds: Option<f64>,
    /// The live version, and the other.
    #[schema(nullable = false, min_items = 2, max_items = 2)]
    arms: Option<Vec<ArmTold>>,
    #[schema(nullable = false, inline)]
    feedback: Option<Compared>,
    #[schema(nullable = false, inline)]
    latency_ms: Option<Compared>,
}

#[derive(ToSchema)]
struct ArmTold {
    version: String,
    /// Percent of requests.
    weight: f64,
    answered: u64,
    failed: u64,
    #[schema(required)]
    p50_ms: Option<f64>,
    #[schema(required)]
    p99_ms: Option<f64>,
    #[schema(inline)]
    feedback: MeanTold,
    #[schema(inline)]
    latency_ms: MeanTold,
}

#[derive(ToSchema)]
struct MeanTold {
    count: u64,
    #[schema(required)]
    mean: Option<f64>,
    /// Where the truth lies, however often it is looked at; null for too few.
    #[schema(required)]
    interval: Option<Vec<f64>>,
}

/// The other arm's mean less the live one's.
#[derive(ToSchema)]
struct Compared {
    #[schema(required)]
    difference: Option<f64>,
    #[schema(required)]
    interval: Option<Vec<f64>>,
    confidence: f64,
    /// The version that is better, once the interval says so.
    #[schema(required)]
    better: Option<String>,
}

/// What a client said of an answer is counted.
#[derive(ToSchema)]
pub(super) struct Counted {
    model: String,
    counted: bool,
}

/// What a rollout's shadow has seen.
#[derive(ToSchema)]
pub(super) struct Shadow {
    /// The version that answered clients.
    live: String,
    /// The one that computed the same again.
    other: String,
    share: f64,
    #[schema(required)]
    min_agreement: Option<f64>,
    samples: u64,
    failed: u64,
    incomparable: u64,
    /// Of the sample, answers that found no room.
    dropped: u64,
    #[schema(required)]
    mean: Option<f64>,
    #[schema(required)]
    interval: Option<Vec<f64>>,
    #[schema(required)]
    lowest: Option<f64>,
    /// The part of which both said the same first: the label, the best text, every token.
    #[schema(required)]
    same: Option<f64>,
    /// Of texts: the share of tokens, from the first on, that both would have written themselves, or neither.
    #[schema(required)]
    prefix: Option<f64>,
    /// Agreements from 0 to 1 in bars of the same width; what is below 0 is in the first.
    histogram: Vec<u64>,
    /// From when a request was let in until the live version had answered it.
    #[schema(inline)]
    answer_ms: Times,
    /// Answers that both versions computed alone and at the same priority, one in four (all of texts), and how long that took either.
    passes: u64,
    #[schema(inline)]
    live_pass_ms: Times,
    #[schema(inline)]
    other_pass_ms: Times,
    /// What agreed least, the worst first; null where that is not kept any more, and all else is what the rollout's record says.
    #[schema(required)]
    worst: Option<Vec<Case>>,
}

#[derive(ToSchema)]
struct Times {
    #[schema(required)]
    p50: Option<f64>,
    #[schema(required)]
    p99: Option<f64>,
}

#[derive(ToSchema)]
struct Case {
    agreement: f64,
    /// Left out where inputs are not kept.
    input: Option<Value>,
    live: Value,
    other: Value,
}
