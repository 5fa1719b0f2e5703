//! Whether answers are right: well formed, finite, and the same as that version gave before.
//!
//! Two versions answer differently, so this also finds an answer that was computed by one version and
//! stamped with another.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use super::Dialect;

#[derive(Debug)]
pub(super) struct Checker {
    dialect: Dialect,
    inputs: usize,
    tolerance: f32,
    /// The first answer of each version to each request.
    references: Mutex<HashMap<(String, usize), Vec<f32>>>,
}

impl Checker {
    pub(super) fn new(dialect: Dialect, inputs: usize, tolerance: f32) -> Self {
        Checker { dialect, inputs, tolerance, references: Mutex::default() }
    }

    /// # Errors
    /// What is wrong with the answer, in words.
    pub(super) fn check(&self, version: Option<&str>, payload: usize, body: &[u8]) -> Result<(), String> {
        let version = version.ok_or("no x-cutover-version")?;
        let body: Value = serde_json::from_slice(body).map_err(|e| format!("not JSON: {e}"))?;
        let numbers = match self.dialect {
            Dialect::Native => {
                if body["version"].as_str() != Some(version) {
                    return Err(format!("the header says {version} and the body {}", body["version"]));
                }
                self.flatten(&body["outputs"], native)?
            }
            Dialect::Openai => self.flatten(&body["data"], |item| vector(&item["embedding"]))?,
        };
        self.compare(version, payload, numbers)
    }

    fn flatten(&self, items: &Value, read: fn(&Value) -> Result<Vec<f32>, String>) -> Result<Vec<f32>, String> {
        let items = items.as_array().ok_or("no list of outputs")?;
        if items.len() != self.inputs {
            return Err(format!("{} outputs for {} inputs", items.len(), self.inputs));
        }
        let mut numbers = Vec::new();
        for item in items {
            numbers.extend(read(item)?);
        }
        Ok(numbers)
    }

    fn compare(&self, version: &str, payload: usize, numbers: Vec<f32>) -> Result<(), String> {
        let mut references = self.references.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(reference) = references.get(&(version.to_owned(), payload)) else {
            references.insert((version.to_owned(), payload), numbers);
            return Ok(());
        };
        if reference.len() != numbers.len() {
            return Err(format!("{version} gave {} numbers and before {}", numbers.len(), reference.len()));
        }
        let scale = reference.iter().fold(1.0_f32, |most, x| most.max(x.abs()));
        let worst = reference.iter().zip(&numbers).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
        if worst > self.tolerance * scale {
            return Err(format!("{version} answered request {payload} with numbers {worst:e} away from before"));
        }
        Ok(())
    }
}

/// Embeddings and scores as they are; labels in the order of their names, as equal scores may change places.
fn native(output: &Value) -> Result<Vec<f32>, String> {
    if let Some(labels) = output["labels"].as_array() {
        if labels.is_empty() {
            return Err("no labels".to_owned());
        }
        let mut named: Vec<(&str, f32)> = Vec::with_capacity(labels.len());
        for entry in labels {
            named.push((entry["label"].as_str().ok_or("a label without a name")?, number(&entry["score"])?));
        }
        named.sort_by(|a, b| a.0.cmp(b.0));
        return Ok(named.into_iter().map(|(_, score)| score).collect());
    }
    if !output["score"].is_null() {
        return Ok(vec![number(&output["score"])?]);
    }
    vector(&output["embedding"])
}

fn vector(value: &Value) -> Result<Vec<f32>, String> {
    match value.as_array() {
        Some(items) if !items.is_empty() => items.iter().map(number).collect(),
        _ => Err("an output that is no embedding, labels or score".to_owned()),
    }
}

fn number(value: &Value) -> Result<f32, String> {
    match value.as_f64().map(|x| x as f32) {
        Some(x) if x.is_finite() => Ok(x),
        _ => Err(format!("{value} where a finite number belongs")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn labels(version: &str, seven: f64, one: f64) -> Vec<u8> {
        json!({"model": "digits", "version": version, "outputs": [{"labels": [
            {"label": "7", "score": seven}, {"label": "1", "score": one}]}]})
        .to_string()
        .into_bytes()
    }

    #[test]
    fn an_answer_of_other_weights_under_the_same_stamp_is_found() {
        let checker = Checker::new(Dialect::Native, 1, 1e-3);
        assert_eq!(checker.check(Some("v1"), 0, &labels("v1", 0.9, 0.1)), Ok(()));
        assert_eq!(checker.check(Some("v2"), 0, &labels("v2", 0.7, 0.3)), Ok(()));
        assert_eq!(checker.check(Some("v1"), 0, &labels("v1", 0.9002, 0.0998)), Ok(()));
        let swapped = checker.check(Some("v1"), 0, &labels("v1", 0.7, 0.3)).unwrap_err();
        assert!(swapped.contains("away from before"), "{swapped}");
        let mixed = checker.check(Some("v1"), 0, &labels("v2", 0.9, 0.1)).unwrap_err();
        assert!(mixed.contains("the header says v1"), "{mixed}");
    }

    #[test]
    fn malformed_answers_are_found() {
        let native = Checker::new(Dialect::Native, 1, 1e-3);
        let openai = Checker::new(Dialect::Openai, 2, 1e-3);
        let ask = |checker: &Checker, body: Value| checker.check(Some("v"), 0, body.to_string().as_bytes());
        assert!(native.check(None, 0, b"{}").is_err());
        assert!(native.check(Some("v"), 0, b"oops").is_err());
        for outputs in [
            json!([]),
            json!([{"embedding": []}]),
            json!([{"embedding": [1, null]}]),
            json!([{}]),
            json!([{"labels": []}]),
        ] {
            assert!(ask(&native, json!({"version": "v", "outputs": outputs})).is_err(), "{outputs}");
        }
        assert!(ask(&openai, json!({"data": [{"embedding": [1.0]}]})).is_err());
        assert_eq!(ask(&openai, json!({"data": [{"embedding": [1.0]}, {"embedding": [0.5]}]})), Ok(()));
    }
}
