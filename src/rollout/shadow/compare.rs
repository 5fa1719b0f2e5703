//! How much two versions' answers to the same request agree. Pure.
//!
//! From 1, the same, down to 0 and, where things can be opposite, to -1: the cosine of embeddings (as they come); of labels, 0
//! where the likeliest differ, else 1 less the total variation distance of the scores (of logits, of what softmax makes of them); of a query's texts, the rank
//! correlation of their scores (Kendall, "The treatment of ties in ranking problems", 1945: tau-b); of a text that was written,
//! exp(-d) where d is how far the logarithms of its tokens' probabilities lie apart on average.

use std::cmp::Ordering;
use std::collections::HashMap;

use crate::value::{LabelScore, Output};

/// One comparison.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Agreement {
    pub(super) value: f64,
    /// Both say the same first: the label, the best text, every token that would be written; embeddings, where their cosine is
    /// above 0.99.
    pub(super) same: bool,
}

/// Compares what two versions made of a request's inputs: one agreement an input, or one for all where they are ranked.
/// What is not finite, or of another shape, does not agree at all.
pub(super) fn outputs(live: &[Output], other: &[Output], logits: bool) -> Vec<Agreement> {
    if live.len() != other.len() {
        return vec![NONE];
    }
    if let (Some(live), Some(other)) = (scores(live), scores(other)) {
        return vec![ranks(&live, &other)];
    }
    live.iter().zip(other).map(|pair| one(pair, logits)).collect()
}

const NONE: Agreement = Agreement { value: 0.0, same: false };

fn one(pair: (&Output, &Output), logits: bool) -> Agreement {
    match pair {
        (Output::Embedding { embedding: live }, Output::Embedding { embedding: other }) => cosine(live, other),
        (Output::Labels { labels: live }, Output::Labels { labels: other }) => labels(live, other, logits),
        _ => NONE,
    }
}

fn cosine(live: &[f32], other: &[f32]) -> Agreement {
    if live.len() != other.len() {
        return NONE;
    }
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let value = dot(live, other) / (dot(live, live) * dot(other, other)).sqrt();
    if value.is_finite() { Agreement { value: value.clamp(-1.0, 1.0), same: value > 0.99 } } else { NONE }
}

fn labels(live: &[LabelScore], other: &[LabelScore], logits: bool) -> Agreement {
    let best = |labels: &[LabelScore]| {
        labels.iter().max_by(|a, b| a.score.total_cmp(&b.score)).map(|label| label.label.clone())
    };
    let finite = live.iter().chain(other).all(|label| label.score.is_finite());
    if !finite || best(live) != best(other) {
        return NONE;
    }
    let theirs: HashMap<&str, f64> = shares(other, logits).collect();
    let apart = shares(live, logits).map(|(label, share)| (share - theirs.get(label).copied().unwrap_or(0.0)).abs());
    Agreement { value: (1.0 - apart.sum::<f64>() / 2.0).clamp(0.0, 1.0), same: true }
}

/// Scores as they are or, of logits, as parts of a whole: with softmax or without, the same versions agree as much.
fn shares(labels: &[LabelScore], logits: bool) -> impl Iterator<Item = (&str, f64)> {
    let most = labels.iter().map(|label| f64::from(label.score)).fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = labels.iter().map(|label| (f64::from(label.score) - most).exp()).sum();
    labels.iter().map(move |LabelScore { label, score }| {
        let score = f64::from(*score);
        (label.as_str(), if logits { (score - most).exp() / sum } else { score })
    })
}

fn scores(outputs: &[Output]) -> Option<Vec<f32>> {
    outputs.iter().map(|output| if let Output::Score { score } = output { Some(*score) } else { None }).collect()
}

/// Ranks of the same texts. A single one has no order: what counts is how far the scores lie apart.
fn ranks(live: &[f32], other: &[f32]) -> Agreement {
    if live.iter().chain(other).any(|score| !score.is_finite()) || live.is_empty() {
        return NONE;
    }
    if let ([live], [other]) = (live, other) {
        let value = f64::from(1.0 - (live - other).abs()).max(0.0);
        return Agreement { value, same: value > 0.9999 };
    }
    let best = |scores: &[f32]| (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    Agreement { value: tau(live, other), same: best(live) == best(other) }
}

/// Kendall's tau-b. Where one side cannot tell anything apart, the two agree only if the other cannot either.
fn tau(live: &[f32], other: &[f32]) -> f64 {
    let (mut both, mut of_live, mut of_other) = (0i64, 0i64, 0i64);
    for i in 0..live.len() {
        for j in 0..i {
            let (a, b) = (sign(live[i], live[j]), sign(other[i], other[j]));
            both += a * b;
            of_live += a * a;
            of_other += b * b;
        }
    }
    match (of_live, of_other) {
        (0, 0) => 1.0,
        (0, _) | (_, 0) => 0.0,
        _ => both as f64 / ((of_live as f64) * (of_other as f64)).sqrt(),
    }
}

fn sign(a: f32, b: f32) -> i64 {
    match a.total_cmp(&b) {
        Ordering::Less => -1,
        Ordering::Equal => 0,
        Ordering::Greater => 1,
    }
}

/// How two versions judge the tokens that one of them wrote: logarithms of their probabilities, and of the likeliest ones' in
/// their places. Also the share of tokens, from the first on, that both would have written themselves, or neither: what was drawn
/// by chance is likeliest to no version, and the same ones must agree on it.
pub(super) fn likelihoods(live: &[Output], other: &[Output]) -> (Agreement, f64) {
    let (
        [Output::Likelihood { logprobs: live, likeliest: best }],
        [Output::Likelihood { logprobs: other, likeliest: their_best }],
    ) = (live, other)
    else {
        return (NONE, 0.0);
    };
    if live.len() != other.len() || live.is_empty() {
        return (NONE, 0.0);
    }
    let apart = live.iter().zip(other).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>() / live.len() as f64;
    let would = |own: &f32, best: &f32| own >= best;
    let alike = live.iter().zip(best).zip(other.iter().zip(their_best));
    let prefix = alike.take_while(|((a, best), (b, theirs))| would(a, best) == would(b, theirs)).count();
    let value = (-apart).exp();
    match value.is_finite() {
        true => (Agreement { value, same: prefix == live.len() }, prefix as f64 / live.len() as f64),
        false => (NONE, 0.0),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn embedding(values: &[f32]) -> Vec<Output> {
        vec![Output::Embedding { embedding: values.to_vec() }]
    }

    fn ranked(scores: &[f32]) -> Vec<Output> {
        scores.iter().map(|score| Output::Score { score: *score }).collect()
    }

    fn labelled(scores: &[(&str, f32)]) -> Vec<Output> {
        let label = |(label, score): &(&str, f32)| LabelScore { label: (*label).to_owned(), score: *score };
        vec![Output::Labels { labels: scores.iter().map(label).collect() }]
    }

    fn value(live: &[Output], other: &[Output]) -> f64 {
        outputs(live, other, false)[0].value
    }

    #[test]
    fn embeddings_agree_by_their_angle() {
        assert_eq!(value(&embedding(&[1.0, 0.0]), &embedding(&[2.0, 0.0])), 1.0);
        assert_eq!(value(&embedding(&[1.0, 0.0]), &embedding(&[0.0, 1.0])), 0.0);
        assert_eq!(value(&embedding(&[1.0, 0.0]), &embedding(&[-1.0, 0.0])), -1.0);
        for broken in [&[f32::NAN, 0.0][..], &[0.0, 0.0], &[1.0]] {
            assert_eq!(outputs(&embedding(&[1.0, 0.0]), &embedding(broken), false), [NONE]);
        }
    }

    #[test]
    fn labels_agree_by_the_first_and_then_by_their_scores() {
        let live = labelled(&[("cat", 0.75), ("dog", 0.25)]);
        assert_eq!(value(&live, &labelled(&[("dog", 0.51), ("cat", 0.49)])), 0.0);
        assert_eq!(value(&live, &labelled(&[("dog", 0.45), ("cat", 0.55)])).mul_add(100.0, 0.5) as u32, 80);
        // As logits: 0.622 and 0.378 for 0.75 and 0.25; 0.88 and 0.12 for these.
        let logits = |other: &[(&str, f32)]| outputs(&live, &labelled(other), true)[0].value;
        assert!((logits(&[("cat", 10.75), ("dog", 10.25)]) - 1.0).abs() < 1e-9);
        assert!((logits(&[("cat", 2.0), ("dog", 0.0)]) - (1.0 - 0.258_337)).abs() < 1e-5);
        assert_eq!(logits(&[("dog", 2.0), ("cat", 0.0)]), 0.0);
        assert_eq!(outputs(&live, &labelled(&[("cat", f32::NAN)]), false), [NONE]);
        assert_eq!(outputs(&live, &[], false), [NONE]);
    }

    #[test]
    fn texts_agree_by_their_order() {
        let live = ranked(&[0.9, 0.5, 0.1]);
        assert_eq!(outputs(&live, &ranked(&[8.0, 7.0, 6.0]), false), [Agreement { value: 1.0, same: true }]);
        assert_eq!(value(&live, &ranked(&[1.0, 2.0, 3.0])), -1.0);
        assert_eq!(value(&live, &ranked(&[1.0, 1.0, 1.0])), 0.0);
        // Two of three pairs in order, one the other way round: (2 - 1) / 3.
        assert!((value(&live, &ranked(&[2.0, 3.0, 1.0])) - 1.0 / 3.0).abs() < 1e-12);
        assert!((value(&ranked(&[0.9]), &ranked(&[0.7])) - 0.8).abs() < 1e-6);
        assert_eq!(value(&live, &ranked(&[f32::NAN, 0.0, 0.0])), 0.0);
    }

    #[test]
    fn written_texts_agree_by_how_likely_each_finds_them() {
        let judged = |logprobs: &[f32], likeliest: &[f32]| {
            vec![Output::Likelihood { logprobs: logprobs.to_vec(), likeliest: likeliest.to_vec() }]
        };
        let live = judged(&[-0.1, -0.2, -0.3], &[-0.1, -0.2, -0.3]);
        assert_eq!(likelihoods(&live, &live), (Agreement { value: 1.0, same: true }, 1.0));
        let other = judged(&[-0.1, -1.2, -0.3], &[-0.1, -0.4, -0.3]);
        let (agreement, prefix) = likelihoods(&live, &other);
        assert!((agreement.value - (-1.0f64 / 3.0).exp()).abs() < 1e-6 && !agreement.same, "{agreement:?}");
        assert!((prefix - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(likelihoods(&live, &judged(&[f32::NAN; 3], &[0.0; 3])).0, NONE);
        assert_eq!(likelihoods(&live, &judged(&[], &[])).0, NONE);
    }

    proptest! {
        #[test]
        fn nothing_agrees_more_than_with_itself(
            a in prop::collection::vec(-10.0f32..10.0, 2..20), b in prop::collection::vec(-10.0f32..10.0, 2..20),
        ) {
            let n = a.len().min(b.len());
            let (a, b) = (&a[..n], &b[..n]);
            prop_assert!((tau(a, a) - 1.0).abs() < 1e-12);
            prop_assert!((tau(a, b) - tau(b, a)).abs() < 1e-12 && tau(a, b).abs() <= 1.0 + 1e-12);
            let (one, other) = (value(&embedding(a), &embedding(b)), value(&embedding(b), &embedding(a)));
            prop_assert!((one - other).abs() < 1e-9 && one.abs() <= 1.0);
        }
    }
}
