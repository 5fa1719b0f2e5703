//! In what the tensors of two versions differ, from headers and digests: no weight is read.
//!
//! Pure. How far those are from each other that changed is `distance`'s to measure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{Distances, Index, Manifest, TensorInfo, quoted};
use crate::repository::{Compared, Difference, Severity, TensorCounts};

/// Tensors that a sentence names.
const NAMED: usize = 4;

/// A version's tensors: where they lie, and their digests where those are known.
#[derive(Debug, Clone, Copy)]
pub struct Tensors<'a> {
    pub index: &'a Index,
    pub manifest: Option<&'a Manifest>,
}

/// The tensors of two versions, side by side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TensorChanges {
    /// With the same name and shape in both.
    pub shared: usize,
    /// Of those, by name: their values are others, or are held in another number format.
    pub changed: Vec<String>,
    /// Of those, the number of tensors by the format before and now, where it is another.
    pub formats: BTreeMap<(&'static str, &'static str), usize>,
    /// Of those, how many have no digest that could be compared.
    pub unknown: usize,
    /// With the same name only: what shape they had and have.
    pub reshaped: Vec<(String, Vec<usize>, Vec<usize>)>,
    pub gone: Vec<String>,
    pub new: Vec<String>,
    /// Bytes of all tensors in their files.
    pub bytes: (u64, u64),
}

impl TensorChanges {
    pub fn between(before: Tensors<'_>, now: Tensors<'_>) -> TensorChanges {
        let bytes = (before.index.total_bytes(), now.index.total_bytes());
        let mut changes = TensorChanges { bytes, ..TensorChanges::default() };
        let names: BTreeSet<&str> = before.index.iter().chain(now.index.iter()).map(|t| t.name.as_str()).collect();
        for name in names {
            match (before.index.get(name), now.index.get(name)) {
                (Some(was), Some(is)) if was.shape == is.shape => changes.shared((was, is), (before, now)),
                (Some(was), Some(is)) => {
                    changes.reshaped.push((name.to_owned(), was.shape.clone(), is.shape.clone()));
                }
                (Some(_), None) => changes.gone.push(name.to_owned()),
                _ => changes.new.push(name.to_owned()),
            }
        }
        changes
    }

    fn shared(&mut self, (was, is): (&TensorInfo, &TensorInfo), (before, now): (Tensors<'_>, Tensors<'_>)) {
        self.shared += 1;
        if was.dtype != is.dtype {
            *self.formats.entry((was.dtype.name(), is.dtype.name())).or_default() += 1;
            self.changed.push(is.name.clone());
            return;
        }
        let digest =
            |tensors: Tensors<'_>| tensors.manifest.and_then(|manifest| manifest.tensors.get(&is.name).cloned());
        match (digest(before), digest(now)) {
            // Rows in another order are other bytes for the same values.
            (Some(was_digest), Some(is_digest)) => {
                if was_digest != is_digest || was.heads != is.heads {
                    self.changed.push(is.name.clone());
                }
            }
            _ => self.unknown += 1,
        }
    }

    /// The same in words.
    pub fn told(&self, distances: Option<&Distances>) -> Compared {
        let mut compared = Compared::default();
        if self.changed.is_empty() && self.unknown == 0 && self.shared > 0 {
            compared.same.push(format!("{} tensors", self.shared));
        } else if self.shared > self.changed.len() + self.unknown {
            compared.same.push(format!(
                "{} of {} tensors",
                self.shared - self.changed.len() - self.unknown,
                self.shared
            ));
        }
        if !self.changed.is_empty() {
            compared.differences.push(self.values(distances));
        }
        for ((was, is), count) in &self.formats {
            let message = format!("{} {} {is}, before {was}", counted(*count), are(*count));
            let told = Difference::new("dtype", Severity::Notable, message);
            compared.differences.push(told.between(json!(was), json!(is)));
        }
        if !self.reshaped.is_empty() {
            compared.differences.push(self.shapes());
        }
        if !self.gone.is_empty() || !self.new.is_empty() {
            let part = |names: &[String], what: &str| {
                (!names.is_empty())
                    .then(|| format!("{} {} {what}: {}", counted(names.len()), are(names.len()), named(names)))
            };
            let parts: Vec<String> = [part(&self.gone, "gone"), part(&self.new, "new")].into_iter().flatten().collect();
            let told = Difference::new("tensors.names", Severity::Notable, parts.join("; "));
            compared.differences.push(told.between(json!(self.gone.len()), json!(self.new.len())));
        }
        if self.bytes.0 != self.bytes.1 {
            let (was, is) = self.bytes;
            let message = format!("the weights are {is} bytes, and were {was}");
            compared
                .differences
                .push(Difference::new("bytes", Severity::Harmless, message).between(json!(was), json!(is)));
        }
        if self.unknown > 0 {
            let message = format!("tensors: the digests of {} are not known yet", counted(self.unknown));
            compared.incomparable.push(message);
        }
        compared
    }

    fn values(&self, distances: Option<&Distances>) -> Difference {
        let (changed, of) = (self.changed.len(), self.shared);
        let have = if changed == 1 { "has" } else { "have" };
        let others = self.reshaped.len() + self.gone.len() + self.new.len() > 0;
        let tensors_of = if others { "tensors of the same name and shape" } else { "tensors" };
        let mut message = format!("{changed} of {of} {tensors_of} {have} other values");
        let mut severity = Severity::Notable;
        let mut tensors = TensorCounts { changed, of, measured: 0, largest: None, median: None };
        if let Some(distances) = distances {
            tensors.measured = distances.measured();
            tensors.median = distances.median();
            tensors.largest = distances.largest().cloned();
            if let (Some(median), Some(largest)) = (tensors.median, &tensors.largest) {
                if largest.distance == 0.0 && tensors.measured == changed {
                    severity = Severity::Harmless;
                    let hold = if changed == 1 { "holds" } else { "hold" };
                    message = format!(
                        "{changed} of {of} {tensors_of} {} stored otherwise and {} the same numbers",
                        are(changed),
                        hold
                    );
                } else {
                    let (far, which) = (rounded(largest.distance), quoted(&largest.tensor));
                    message.push_str(&match tensors.measured {
                        1 => format!("; relative distance {far} ({which})"),
                        _ => format!("; relative distance {} in the median, {far} at most ({which})", rounded(median)),
                    });
                }
            }
            if tensors.measured < changed {
                let why = distances.why_not().unwrap_or("there was no time");
                message.push_str(&format!("; {} of them not measured: {why}", changed - tensors.measured));
            }
        }
        Difference { tensors: Some(tensors), ..Difference::new("tensors", severity, message) }
    }

    fn shapes(&self) -> Difference {
        let first = self
            .reshaped
            .iter()
            .take(NAMED)
            .map(|(name, was, is)| format!("{} is {is:?}, and was {was:?}", quoted(name)));
        let more = if self.reshaped.len() > NAMED { "; …" } else { "" };
        let named = first.collect::<Vec<_>>().join("; ");
        let message = format!("{} of another shape: {named}{more}", counted(self.reshaped.len()));
        let (_, was, is) = &self.reshaped[0];
        let told = |shape: &[usize]| Value::from(shape.to_vec());
        Difference::new("tensors.shapes", Severity::Notable, message).between(told(was), told(is))
    }
}

fn counted(tensors: usize) -> String {
    if tensors == 1 { "1 tensor".to_owned() } else { format!("{tensors} tensors") }
}

/// Three digits that say something.
fn rounded(distance: f64) -> String {
    if distance >= 0.001 { format!("{distance:.3}") } else { format!("{distance:.2e}") }
}

fn are(tensors: usize) -> &'static str {
    if tensors == 1 { "is" } else { "are" }
}

fn named(names: &[String]) -> String {
    let first = names.iter().take(NAMED).map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
    if names.len() > NAMED { format!("{first}, …") } else { first }
}

#[cfg(test)]
#[path = "difference_tests.rs"]
mod tests;
