//! From a row of the forward pass to the answer: activations, sorted labels, shortened embeddings.
//!
//! The rules are those of Hugging Face's pipelines (classification), of sentence-transformers' `CrossEncoder`
//! (reranking) and of OpenAI's `dimensions` (embedding).

use crate::error::{Error, Result};
use crate::process::settings::Settings;
use crate::repository::Spec;
use crate::value::{LabelScore, Output, Task};

/// How a request wants its answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FinishOptions {
    /// Keep only the first so many numbers of an embedding. The rest is normalised again where the embedding is.
    /// As it was asked for; checked against the model's.
    pub dimensions: Option<i64>,
    /// Logits instead of probabilities (classification, reranking).
    pub raw_scores: bool,
    /// Embeddings: `None` as the version says; `true` of length 1; `false` as the model gives them, which only a
    /// version that does not normalise can do.
    pub normalize: Option<bool>,
}

/// What turns a row into an answer.
#[derive(Debug)]
pub(super) struct Head {
    version: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// The row is the pooled embedding; `normalized` by the model already.
    Embedding {
        normalized: bool,
    },
    Labels {
        labels: Vec<String>,
        activation: Activation,
    },
    Score {
        activation: Activation,
    },
    /// Two numbers a token: its own logarithm, and the likeliest's.
    Likelihood,
}

/// From logits to scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activation {
    Softmax,
    Sigmoid,
    None,
}

impl Head {
    pub(super) fn load(spec: &Spec) -> Result<Head> {
        let config = Settings::config(spec);
        let kind = match spec.task {
            Task::Generate => Kind::Likelihood,
            Task::Embed => Kind::Embedding { normalized: spec.embedding.as_ref().is_some_and(|e| e.normalize) },
            Task::Classify | Task::ImageClassify => {
                Kind::Labels { labels: spec.labels.clone(), activation: of_classifier(spec, &config)? }
            }
            Task::Rerank if spec.labels.len() != 1 => {
                let found = spec.labels.len();
                return Err(Error::unloadable(&config.file, format!("a reranker has 1 label, this has {found}")));
            }
            Task::Rerank => Kind::Score { activation: of_reranker(&config)? },
        };
        Ok(Head { version: spec.version.clone(), kind })
    }

    pub(super) fn finish(&self, row: Vec<f32>, options: &FinishOptions) -> Result<Output> {
        self.check_options(options)?;
        if row.iter().any(|x| !x.is_finite()) {
            return Err(Error::NonFinite { version: self.version.clone() });
        }
        match &self.kind {
            Kind::Embedding { normalized } => {
                Ok(Output::Embedding { embedding: embedding(row, *normalized, options)? })
            }
            Kind::Labels { labels, activation } => {
                check_width(row.len(), labels.len())?;
                let activation = if options.raw_scores { Activation::None } else { *activation };
                Ok(Output::Labels { labels: sorted(labels, activation.apply(row)) })
            }
            Kind::Score { activation } => {
                check_width(row.len(), 1)?;
                let activation = if options.raw_scores { Activation::None } else { *activation };
                Ok(Output::Score { score: activation.apply(row)[0] })
            }
            Kind::Likelihood => {
                let (pairs, _) = row.as_chunks::<2>();
                let (logprobs, likeliest) = pairs.iter().map(|[own, likeliest]| (*own, *likeliest)).unzip();
                Ok(Output::Likelihood { logprobs, likeliest })
            }
        }
    }

    /// Options of another task are refused: an answer that silently ignores what was asked for is wrong.
    fn check_options(&self, options: &FinishOptions) -> Result<()> {
        match self.kind {
            Kind::Embedding { .. } if options.raw_scores => {
                Err(Error::bad_param("raw_scores", "embeddings have no scores"))
            }
            Kind::Embedding { .. } => Ok(()),
            _ if options.dimensions.is_some() => {
                Err(Error::bad_param("dimensions", "only embeddings can be shortened to fewer dimensions"))
            }
            _ if options.normalize.is_some() => Err(Error::bad_param("normalize", "only embeddings can be normalised")),
            _ => Ok(()),
        }
    }
}

/// The rule of transformers' classification pipelines.
fn of_classifier(spec: &Spec, config: &Settings) -> Result<Activation> {
    const EXPECTED: &str = "regression, single_label_classification or multi_label_classification";
    match config.str("problem_type")? {
        Some("regression") => Ok(Activation::None),
        Some("multi_label_classification") => Ok(Activation::Sigmoid),
        Some("single_label_classification") | None if spec.labels.len() == 1 => Ok(Activation::Sigmoid),
        Some("single_label_classification") | None => Ok(Activation::Softmax),
        Some(_) => Err(config.wrong("problem_type", EXPECTED)),
    }
}

/// The rule of `CrossEncoder`: what the configuration names (its place changed in sentence-transformers 4), else sigmoid.
fn of_reranker(config: &Settings) -> Result<Activation> {
    const OLD: &str = "sbert_ce_default_activation_function";
    let new = config.get("sentence_transformers").and_then(|v| v.get("activation_fn")).and_then(|v| v.as_str());
    match new.or(config.str(OLD)?) {
        None => Ok(Activation::Sigmoid),
        Some(path) => match path.rsplit('.').next() {
            Some("Sigmoid") => Ok(Activation::Sigmoid),
            Some("Identity") => Ok(Activation::None),
            _ => {
                let reason = format!("the activation function '{path}' is not supported, only Sigmoid and Identity");
                Err(Error::unloadable(&config.file, reason))
            }
        },
    }
}

impl Activation {
    fn apply(self, logits: Vec<f32>) -> Vec<f32> {
        match self {
            Activation::None => logits,
            Activation::Sigmoid => logits.into_iter().map(sigmoid).collect(),
            Activation::Softmax => softmax(&logits),
        }
    }
}

fn sigmoid(x: f32) -> f32 {
    (1.0 / (1.0 + (-f64::from(x)).exp())) as f32
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|x| f64::from(x - max).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|p| (p / sum) as f32).collect()
}

/// Highest score first; equal scores in the order of the labels.
fn sorted(labels: &[String], scores: Vec<f32>) -> Vec<LabelScore> {
    let mut out: Vec<LabelScore> =
        labels.iter().zip(scores).map(|(label, score)| LabelScore { label: label.clone(), score }).collect();
    out.sort_by(|a, b| b.score.total_cmp(&a.score));
    out
}

fn embedding(mut row: Vec<f32>, normalized: bool, options: &FinishOptions) -> Result<Vec<f32>> {
    if normalized && options.normalize == Some(false) {
        return Err(Error::bad_param(
            "normalize",
            "this version normalises its embeddings itself, the raw ones are not known",
        ));
    }
    if let Some(dimensions) = options.dimensions {
        match usize::try_from(dimensions) {
            Ok(count @ 1..) if count <= row.len() => row.truncate(count),
            _ => {
                let message = format!("dimensions is {dimensions}, expected 1 to {}", row.len());
                return Err(Error::bad_param("dimensions", message));
            }
        }
    }
    let shortened = options.dimensions.is_some();
    if options.normalize == Some(true) || (normalized && shortened) {
        normalize(&mut row);
    }
    Ok(row)
}

/// To length 1. A vector of zeros stays (torch divides by at least 1e-12).
fn normalize(row: &mut [f32]) {
    let norm = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(1e-12);
    for x in row {
        *x = (f64::from(*x) / norm) as f32;
    }
}

fn check_width(got: usize, expected: usize) -> Result<()> {
    if got == expected {
        Ok(())
    } else {
        Err(Error::internal(format!("the model returned {got} numbers an input, expected {expected}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(kind: Kind) -> Head {
        Head { version: "v1".into(), kind }
    }

    fn classifier(activation: Activation) -> Head {
        head(Kind::Labels { labels: ["a", "b", "c"].map(String::from).to_vec(), activation })
    }

    fn labels(output: Output) -> Vec<(String, f32)> {
        match output {
            Output::Labels { labels } => labels.into_iter().map(|l| (l.label, l.score)).collect(),
            other => panic!("not labels: {other:?}"),
        }
    }

    fn vector(output: Output) -> Vec<f32> {
        match output {
            Output::Embedding { embedding } => embedding,
            other => panic!("not an embedding: {other:?}"),
        }
    }

    #[test]
    fn softmax_labels_come_sorted_and_sum_to_one_even_for_huge_logits() {
        let out =
            labels(classifier(Activation::Softmax).finish(vec![1000.0, 1001.0, 999.0], &Default::default()).unwrap());
        assert_eq!(out.iter().map(|l| l.0.as_str()).collect::<Vec<_>>(), ["b", "a", "c"]);
        assert!((out[0].1 - 0.665_241).abs() < 1e-5 && (out.iter().map(|l| l.1).sum::<f32>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn equal_scores_keep_the_order_of_the_labels() {
        let out = labels(classifier(Activation::Softmax).finish(vec![1.0, 2.0, 1.0], &Default::default()).unwrap());
        assert_eq!(out.iter().map(|l| l.0.as_str()).collect::<Vec<_>>(), ["b", "a", "c"]);
    }

    #[test]
    fn multi_label_scores_are_independent_and_raw_scores_are_the_logits() {
        let row = vec![0.0, 2.0, -80.0];
        let out = labels(classifier(Activation::Sigmoid).finish(row.clone(), &Default::default()).unwrap());
        assert_eq!((out[1].0.as_str(), out[1].1), ("a", 0.5));
        assert!((out[0].1 - 0.880_797).abs() < 1e-5 && out[2].1 > 0.0);
        let raw = FinishOptions { raw_scores: true, ..Default::default() };
        assert_eq!(labels(classifier(Activation::Sigmoid).finish(row, &raw).unwrap())[0], ("b".into(), 2.0));
    }

    #[test]
    fn a_row_that_is_not_finite_is_the_versions_fault() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = classifier(Activation::Softmax).finish(vec![0.0, bad, 0.0], &Default::default()).unwrap_err();
            assert!(error.is_model_fault(), "{error}");
        }
    }

    #[test]
    fn a_row_of_another_width_is_refused() {
        let error = classifier(Activation::Softmax).finish(vec![0.0; 4], &Default::default()).unwrap_err();
        assert_eq!(error.to_string(), "internal: the model returned 4 numbers an input, expected 3");
    }

    #[test]
    fn a_shortened_embedding_is_normalised_again_where_the_version_normalises() {
        let options = FinishOptions { dimensions: Some(2), ..Default::default() };
        let row = vec![0.48, 0.64, 0.6];
        let normal = head(Kind::Embedding { normalized: true });
        let raw = head(Kind::Embedding { normalized: false });
        let out = vector(normal.finish(row.clone(), &options).unwrap());
        assert!((out[0] - 0.6).abs() < 1e-6 && (out[1] - 0.8).abs() < 1e-6, "{out:?}");
        assert_eq!(vector(raw.finish(row.clone(), &options).unwrap()), [0.48, 0.64]);
        assert_eq!(vector(normal.finish(row.clone(), &Default::default()).unwrap()), row);
    }

    #[test]
    fn dimensions_beyond_the_embedding_are_refused_with_the_range() {
        for dimensions in [-1, 0, 4, i64::MAX] {
            let options = FinishOptions { dimensions: Some(dimensions), ..Default::default() };
            let error = head(Kind::Embedding { normalized: true }).finish(vec![0.1; 3], &options).unwrap_err();
            assert_eq!(error.to_string(), format!("dimensions is {dimensions}, expected 1 to 3"));
        }
    }

    #[test]
    fn normalising_can_be_asked_for_but_not_undone() {
        let (yes, no) = (Some(true), Some(false));
        let raw = head(Kind::Embedding { normalized: false });
        let asked = |normalize| FinishOptions { normalize, ..Default::default() };
        assert_eq!(vector(raw.finish(vec![3.0, 4.0], &asked(yes)).unwrap()), [0.6, 0.8]);
        assert_eq!(vector(raw.finish(vec![3.0, 4.0], &asked(no)).unwrap()), [3.0, 4.0]);
        assert_eq!(vector(raw.finish(vec![0.0, 0.0], &asked(yes)).unwrap()), [0.0, 0.0]);
        assert!(head(Kind::Embedding { normalized: true }).finish(vec![0.6, 0.8], &asked(no)).is_err());
    }

    #[test]
    fn options_of_another_task_are_refused() {
        let shorter = FinishOptions { dimensions: Some(1), ..Default::default() };
        let raw = FinishOptions { raw_scores: true, ..Default::default() };
        assert!(classifier(Activation::Softmax).finish(vec![0.0; 3], &shorter).is_err());
        assert!(head(Kind::Score { activation: Activation::Sigmoid }).finish(vec![0.0], &shorter).is_err());
        assert!(head(Kind::Embedding { normalized: true }).finish(vec![0.0], &raw).is_err());
    }
}
