//! Judging answers against expectations: pure, in f64, and NaN never passes.

use super::Expect;
use crate::value::{LabelScore, Output};

/// How an answer fared.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Verdict {
    pub passed: bool,
    /// What was measured, in the terms of `limit`; NaN (null in JSON) when the answer could not be measured.
    pub measure: f64,
    pub limit: f64,
    pub message: String,
}

impl Verdict {
    fn unmeasured(limit: f64, message: impl Into<String>) -> Self {
        Verdict { passed: false, measure: f64::NAN, limit, message: message.into() }
    }

    /// Passes when `measure >= limit`, which no NaN is.
    fn at_least(measure: f64, limit: f64, what: &str) -> Self {
        let passed = measure >= limit;
        let relation = if passed { "at least" } else { "not at least" };
        Verdict { passed, measure, limit, message: format!("{what} is {measure:.6}, {relation} {limit:.6}") }
    }

    /// Passes when `measure <= limit`, which no NaN is.
    fn at_most(measure: f64, limit: f64, what: &str) -> Self {
        let passed = measure <= limit;
        let relation = if passed { "at most" } else { "not at most" };
        Verdict { passed, measure, limit, message: format!("{what} is {measure:.6}, {relation} {limit:.6}") }
    }
}

impl Expect {
    /// Judges the outputs of the case's inputs, in their order.
    ///
    /// The measure is: the label's score (against the best other label's, or `min_score` where that is
    /// higher), the largest deviation, the cosine, or the share of neighbours that are in order.
    pub fn judge(&self, outputs: &[Output]) -> Verdict {
        match self {
            Expect::Label { label, min_score } => judge_label(label, *min_score, outputs),
            Expect::Labels { labels, max_abs } => judge_labels(labels, f64::from(*max_abs), outputs),
            Expect::Embedding { embedding, min_cosine, max_abs } => {
                judge_embedding(embedding, f64::from(*min_cosine), max_abs.map(f64::from), outputs)
            }
            Expect::Score { score, max_abs } => {
                let limit = f64::from(*max_abs);
                match outputs {
                    [Output::Score { score: found }] => {
                        let deviation = (f64::from(*found) - f64::from(*score)).abs();
                        Verdict::at_most(deviation, limit, &format!("the deviation of {found} from {score}"))
                    }
                    _ => Verdict::unmeasured(limit, wrong_outputs("one score", outputs)),
                }
            }
            Expect::SimilarAtLeast(limit) => similarity(outputs, *limit, Verdict::at_least),
            Expect::SimilarAtMost(limit) => similarity(outputs, *limit, Verdict::at_most),
            Expect::Order(order) => judge_order(order, outputs),
            Expect::Continuation(text) => judge_continuation(text, outputs),
            Expect::Logprobs { logprobs, max_abs } => judge_logprobs(logprobs, f64::from(*max_abs), outputs),
            Expect::MaxPerplexity(most) => judge_perplexity(f64::from(*most), outputs),
        }
    }
}

/// How many of the tokens, from the first on, were the likeliest in their places: so far would the model have written them.
fn judge_continuation(text: &str, outputs: &[Output]) -> Verdict {
    let [Output::Likelihood { logprobs, likeliest }] = outputs else {
        return Verdict::unmeasured(f64::NAN, wrong_outputs("the likelihood of one text", outputs));
    };
    let pairs = logprobs.iter().zip(likeliest);
    let prefix = pairs.take_while(|(own, likeliest)| own.is_finite() && own >= likeliest).count();
    let passed = prefix == logprobs.len() && prefix > 0;
    let message = match passed {
        true => format!("{text:?} is what the model writes"),
        false => format!("the model writes {prefix} of the {} tokens of {text:?}", logprobs.len()),
    };
    Verdict { passed, measure: prefix as f64, limit: logprobs.len() as f64, message }
}

fn judge_logprobs(expected: &[f32], limit: f64, outputs: &[Output]) -> Verdict {
    let [Output::Likelihood { logprobs, .. }] = outputs else {
        return Verdict::unmeasured(limit, wrong_outputs("the likelihood of one text", outputs));
    };
    if logprobs.len() != expected.len() {
        let message = format!("the text has {} tokens with a probability, expected {}", logprobs.len(), expected.len());
        return Verdict::unmeasured(limit, message);
    }
    let deviations =
        logprobs.iter().zip(expected).map(|(found, wanted)| (f64::from(*found) - f64::from(*wanted)).abs());
    // `max` would drop a NaN
    let worst = deviations.fold(0.0, |worst: f64, one| if one > worst || one.is_nan() { one } else { worst });
    Verdict::at_most(worst, limit, "the largest deviation of a token's logarithm")
}

fn judge_perplexity(limit: f64, outputs: &[Output]) -> Verdict {
    let [Output::Likelihood { logprobs, .. }] = outputs else {
        return Verdict::unmeasured(limit, wrong_outputs("the likelihood of one text", outputs));
    };
    if logprobs.is_empty() {
        return Verdict::unmeasured(limit, "the text has no token with a probability");
    }
    let mean = logprobs.iter().map(|value| f64::from(*value)).sum::<f64>() / logprobs.len() as f64;
    Verdict::at_most((-mean).exp(), limit, "the perplexity")
}

fn judge_label(label: &str, min_score: Option<f32>, outputs: &[Output]) -> Verdict {
    let floor = min_score.map_or(f64::NAN, f64::from);
    let [Output::Labels { labels }] = outputs else {
        return Verdict::unmeasured(floor, wrong_outputs("one list of labels", outputs));
    };
    if let Some(bad) = labels.iter().find(|found| !found.score.is_finite()) {
        return Verdict::unmeasured(floor, format!("the score of {:?} is {}", bad.label, bad.score));
    }
    let best = |ours: bool| {
        let scores = labels.iter().filter(|found| (found.label == label) == ours).map(|found| f64::from(found.score));
        scores.reduce(f64::max)
    };
    let Some(score) = best(true) else {
        return Verdict::unmeasured(floor, format!("the answer has no label {label:?}"));
    };
    let rival = best(false);
    // a tie is no top label: a model that answers the same to everything must not pass
    let is_top = rival.is_none_or(|rival| score > rival);
    // `max` drops a NaN, which the floor is when there is none
    let limit = rival.unwrap_or(score).max(floor);
    let passed = is_top && score >= limit;
    let top = labels.iter().max_by(|a, b| a.score.total_cmp(&b.score)).map_or("", |found| found.label.as_str());
    let message = match (is_top, passed) {
        (true, true) => format!("{label:?} is the top label with {score:.6}"),
        (true, false) => format!("{label:?} is the top label with {score:.6}, not at least {limit:.6}"),
        (false, _) if top == label => format!("{label:?} has {score:.6}, and so has another label"),
        (false, _) => format!("the top label is {top:?}, expected {label:?}, which has {score:.6}"),
    };
    Verdict { passed, measure: score, limit, message }
}

fn judge_labels(expected: &[LabelScore], limit: f64, outputs: &[Output]) -> Verdict {
    let [Output::Labels { labels }] = outputs else {
        return Verdict::unmeasured(limit, wrong_outputs("one list of labels", outputs));
    };
    let mut worst: Option<(f64, &LabelScore)> = None;
    for wanted in expected {
        let deviations = labels
            .iter()
            .filter(|found| found.label == wanted.label)
            .map(|found| (f64::from(found.score) - f64::from(wanted.score)).abs());
        // a label may occur twice (ImageNet's "crane"): the nearest is meant
        match deviations.reduce(f64::min) {
            None => return Verdict::unmeasured(limit, format!("the answer has no label {:?}", wanted.label)),
            Some(deviation) if deviation.is_nan() => {
                return Verdict::unmeasured(limit, format!("the score of {:?} is not a number", wanted.label));
            }
            Some(deviation) if worst.is_none_or(|(worst, _)| deviation > worst) => worst = Some((deviation, wanted)),
            Some(_) => {}
        }
    }
    match worst {
        Some((deviation, at)) => {
            Verdict::at_most(deviation, limit, &format!("the largest deviation, of {:?},", at.label))
        }
        None => Verdict::unmeasured(limit, "no label is expected"),
    }
}

fn judge_embedding(expected: &[f32], min_cosine: f64, max_abs: Option<f64>, outputs: &[Output]) -> Verdict {
    let [Output::Embedding { embedding }] = outputs else {
        return Verdict::unmeasured(min_cosine, wrong_outputs("one embedding", outputs));
    };
    if embedding.len() != expected.len() {
        let message = format!("the embedding has {} numbers, expected {}", embedding.len(), expected.len());
        return Verdict::unmeasured(min_cosine, message);
    }
    let by_cosine = Verdict::at_least(cosine(embedding, expected), min_cosine, "the cosine");
    match max_abs {
        Some(max_abs) if by_cosine.passed => {
            let deviations = embedding.iter().zip(expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
            // the cosine passed, so no deviation is NaN, which `max` would lose
            let by_deviation = Verdict::at_most(deviations.fold(0.0, f64::max), max_abs, "the largest deviation");
            if by_deviation.passed { by_cosine } else { by_deviation }
        }
        _ => by_cosine,
    }
}

fn similarity(outputs: &[Output], limit: f32, judge: fn(f64, f64, &str) -> Verdict) -> Verdict {
    let limit = f64::from(limit);
    match outputs {
        [Output::Embedding { embedding: a }, Output::Embedding { embedding: b }] if a.len() == b.len() => {
            judge(cosine(a, b), limit, "the cosine")
        }
        _ => Verdict::unmeasured(limit, wrong_outputs("two embeddings of one length", outputs)),
    }
}

fn judge_order(order: &[usize], outputs: &[Output]) -> Verdict {
    let scores = match scores(outputs) {
        Some(scores) if scores.len() == order.len() => scores,
        _ => {
            let expected = format!("{0} scores, or a query and {0} embeddings of one length", order.len());
            return Verdict::unmeasured(1.0, wrong_outputs(&expected, outputs));
        }
    };
    if let Some(at) = scores.iter().position(|score| !score.is_finite()) {
        return Verdict::unmeasured(1.0, format!("the score at index {at} is {}", scores[at]));
    }
    let Some(ranked) = order.iter().map(|index| scores.get(*index).copied()).collect::<Option<Vec<_>>>() else {
        return Verdict::unmeasured(1.0, "the expected order names an index that there is not");
    };
    // a tie is not an order: a model that answers the same to everything must not pass
    let in_order = ranked.windows(2).filter(|pair| pair[0] > pair[1]).count();
    let measure = in_order as f64 / ranked.len().saturating_sub(1).max(1) as f64;
    let mut found: Vec<usize> = (0..scores.len()).collect();
    found.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let passed = measure >= 1.0;
    let message =
        if passed { format!("the order is {order:?}") } else { format!("the order is {found:?}, expected {order:?}") };
    Verdict { passed, measure, limit: 1.0, message }
}

/// What an order is made of: scores as they are, or the cosine of each later embedding with the first.
fn scores(outputs: &[Output]) -> Option<Vec<f64>> {
    if let [Output::Embedding { embedding: query }, rest @ ..] = outputs {
        let cosine_with_query = |output: &Output| match output {
            Output::Embedding { embedding } if embedding.len() == query.len() => Some(cosine(query, embedding)),
            _ => None,
        };
        return rest.iter().map(cosine_with_query).collect();
    }
    let score = |output: &Output| match output {
        Output::Score { score } => Some(f64::from(*score)),
        _ => None,
    };
    outputs.iter().map(score).collect()
}

/// NaN when a vector has no length or holds a NaN or an infinity. Rounding never carries it past 1, and never keeps that of a
/// vector and itself below: the root of a square is exact, the square of a root is not.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    if cosine.is_finite() { cosine.clamp(-1.0, 1.0) } else { f64::NAN }
}

fn wrong_outputs(expected: &str, outputs: &[Output]) -> String {
    let kind = match outputs.first() {
        None => "none",
        Some(Output::Embedding { .. }) => "embeddings",
        Some(Output::Labels { .. }) => "labels",
        Some(Output::Score { .. }) => "scores",
        Some(Output::Likelihood { .. }) => "likelihoods",
    };
    format!("expected {expected}, found {} outputs ({kind})", outputs.len())
}
