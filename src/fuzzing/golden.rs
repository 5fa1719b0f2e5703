//! Golden files: read, judged and written again.

use std::collections::HashSet;
use std::fs;

use tempfile::TempDir;

use crate::error::Result;
use crate::repository::{Expect, GoldenCase, read_golden};
use crate::value::{LabelScore, Output};

pub(super) fn check(data: &[u8]) -> Result<()> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("golden.jsonl");
    fs::write(&path, data).unwrap();
    let cases = read_golden(&path)?;
    let mut ids = HashSet::new();
    let mut lines = String::new();
    for case in &cases {
        assert!(ids.insert(&case.id), "{} is there twice", case.id);
        judged(case);
        lines.push_str(&serde_json::to_string(case).unwrap());
        lines.push('\n');
    }
    fs::write(&path, lines).unwrap();
    assert_eq!(read_golden(&path).unwrap(), cases);
    Ok(())
}

/// What is expected passes, no matter how it is spelled; no answer, and an answer that is no number, do not.
fn judged(GoldenCase { id, inputs, expect }: &GoldenCase) {
    let answer = expected(expect, inputs.len());
    let verdict = expect.judge(&answer);
    assert!(verdict.passed, "{id}: {}", verdict.message);
    assert!(!expect.judge(&[]).passed, "{id}: no answer passes");
    let nothing: Vec<Output> = answer.into_iter().map(without_numbers).collect();
    let verdict = expect.judge(&nothing);
    assert!(!verdict.passed, "{id}: {}", verdict.message);
}

/// An answer to `inputs` inputs that is as it should be.
fn expected(expect: &Expect, inputs: usize) -> Vec<Output> {
    let embedding = |embedding: Vec<f32>| Output::Embedding { embedding };
    match expect {
        Expect::Label { label, min_score } => {
            let best = LabelScore { label: label.clone(), score: min_score.unwrap_or(0.5) };
            vec![Output::Labels { labels: vec![best] }]
        }
        Expect::Labels { labels, .. } => vec![Output::Labels { labels: labels.clone() }],
        Expect::Embedding { embedding: same, .. } => vec![embedding(same.clone())],
        Expect::Score { score, .. } => vec![Output::Score { score: *score }],
        Expect::Continuation(_) => {
            vec![Output::Likelihood { logprobs: vec![-0.5, -0.25], likeliest: vec![-0.5, -0.25] }]
        }
        Expect::Logprobs { logprobs, .. } => {
            vec![Output::Likelihood { logprobs: logprobs.clone(), likeliest: vec![0.0; logprobs.len()] }]
        }
        Expect::MaxPerplexity(_) => vec![Output::Likelihood { logprobs: vec![0.0], likeliest: vec![0.0] }],
        Expect::SimilarAtLeast(_) => vec![embedding(vec![0.6, 0.8]); 2],
        Expect::SimilarAtMost(_) => vec![embedding(vec![0.6, 0.8]), embedding(vec![-0.6, -0.8])],
        Expect::Order(order) => {
            let mut places = vec![0.0; order.len()];
            order.iter().enumerate().for_each(|(place, index)| places[*index] = place as f32);
            match inputs == order.len() {
                true => places.into_iter().map(|place| Output::Score { score: -place }).collect(),
                // The query, and embeddings that turn away from it.
                false => [embedding(vec![1.0, 0.0])]
                    .into_iter()
                    .chain(places.into_iter().map(|p| embedding(vec![1.0, p])))
                    .collect(),
            }
        }
    }
}

fn without_numbers(output: Output) -> Output {
    match output {
        Output::Embedding { embedding } => Output::Embedding { embedding: vec![f32::NAN; embedding.len()] },
        Output::Score { .. } => Output::Score { score: f32::NAN },
        Output::Likelihood { logprobs, likeliest } => {
            Output::Likelihood { logprobs: vec![f32::NAN; logprobs.len()], likeliest }
        }
        Output::Labels { labels } => {
            let labels = labels.into_iter().map(|LabelScore { label, .. }| LabelScore { label, score: f32::NAN });
            Output::Labels { labels: labels.collect() }
        }
    }
}
