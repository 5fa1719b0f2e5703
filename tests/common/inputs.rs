//! What tests send: the bundled digits, and what each of its versions makes of them.

use std::fs;

use serde_json::Value;

use super::root;

/// A held-out image of a digit, as a PNG file.
pub(crate) fn digit(n: usize) -> Vec<u8> {
    fs::read(root().join(format!("models/digits/samples/{n}.png"))).unwrap()
}

pub(crate) fn digits() -> Vec<Vec<u8>> {
    (0..10).map(digit).collect()
}

/// All scores of the first output, by label: `scores[3]` is how much it looks like a three.
pub(crate) fn scores(body: &Value) -> Vec<f64> {
    let labels = body["outputs"][0]["labels"].as_array().unwrap_or_else(|| panic!("no labels: {body}"));
    let mut scores = vec![f64::NAN; labels.len()];
    for label in labels {
        let at: usize = label["label"].as_str().unwrap().parse().unwrap();
        scores[at] = label["score"].as_f64().unwrap();
    }
    scores
}

/// The largest difference; infinite for other lengths and for NaN.
pub(crate) fn distance(a: &[f64], b: &[f64]) -> f64 {
    if a.len() != b.len() || a.iter().chain(b).any(|value| !value.is_finite()) {
        return f64::INFINITY;
    }
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// The first output as an embedding.
pub(crate) fn embedding(body: &Value) -> Vec<f64> {
    let values = body["outputs"][0]["embedding"].as_array().unwrap_or_else(|| panic!("no embedding: {body}"));
    values.iter().map(|value| value.as_f64().unwrap()).collect()
}
