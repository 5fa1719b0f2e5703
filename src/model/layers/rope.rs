//! How fast heads turn with their position: what `config.json` says of rotary embeddings.
//!
//! Source: `modeling_rope_utils.py` of transformers 4.57. Scalings whose frequencies depend on how long a sequence will
//! have become are taken up to the length where they would change: beyond it, keys that are in a cache would have to be
//! turned again.

use std::f64::consts::PI;

use serde_json::Value;

use crate::error::Result;
use crate::ops::Rotary;
use crate::repository::Spec;

const KNOWN: &str = "default, linear, dynamic, yarn, longrope, llama3";

/// Rotary embeddings of a version.
#[derive(Debug)]
pub(in crate::model) struct Rope {
    pub(in crate::model) rotary: Rotary,
    /// Positions that they are right for, where that is fewer than the model has.
    pub(in crate::model) longest: Option<usize>,
}

impl Rope {
    /// For heads of `head_dim`, in a context of `positions`.
    ///
    /// Errors: kinds that are not known, by name; numbers that are missing or make no sense.
    pub(in crate::model) fn read(spec: &Spec, head_dim: usize, positions: usize) -> Result<Self> {
        let reading = Reading::of(spec)?;
        if reading.number("partial_rotary_factor")?.or(partial(spec)?).is_some_and(|factor| factor != 1.0) {
            return Err(spec.config_error("partial_rotary_factor", "only whole heads are turned"));
        }
        let kind = reading.kind()?;
        let base = match reading.number("rope_theta")? {
            Some(theta) => theta,
            None => spec.f64_or("rope_theta", 10_000.0)?,
        };
        if base.is_nan() || base <= 1.0 || base.is_infinite() {
            return Err(spec.config_error("rope_theta", format!("expected more than 1, found {base}")));
        }
        let plain = Plain { base, head_dim };
        let whole = |inverse: Vec<f64>, factor: f64| Ok(Rope { rotary: rotary(inverse, factor), longest: None });
        match kind {
            "default" => whole(plain.inverse(), 1.0),
            "linear" => {
                let factor = reading.factor()?;
                whole(plain.inverse().into_iter().map(|inverse| inverse / factor).collect(), 1.0)
            }
            "dynamic" => {
                // The base grows with the sequence from the context's end on, and not before.
                reading.factor()?;
                Ok(Rope { rotary: rotary(plain.inverse(), 1.0), longest: Some(positions) })
            }
            "yarn" => {
                let (inverse, factor) = yarn(&reading, &plain, positions)?;
                whole(inverse, factor)
            }
            "longrope" => longrope(&reading, &plain, positions),
            "llama3" => whole(llama3(&reading, &plain)?, 1.0),
            other => Err(reading.error("rope_type", format!("'{other}' is not supported; known are {KNOWN}"))),
        }
    }
}

fn partial(spec: &Spec) -> Result<Option<f64>> {
    match spec.value("partial_rotary_factor") {
        Some(_) => spec.f64("partial_rotary_factor").map(Some),
        None => Ok(None),
    }
}

fn rotary(inverse: Vec<f64>, factor: f64) -> Rotary {
    Rotary::new(inverse.into_iter().map(|inverse| inverse as f32).collect(), factor as f32)
}

/// Frequencies as they were first published.
struct Plain {
    base: f64,
    head_dim: usize,
}

impl Plain {
    /// `base^(2i / head_dim)` for each pair.
    fn wavelengths(&self) -> impl Iterator<Item = f64> {
        let (base, dim) = (self.base, self.head_dim as f64);
        (0..self.head_dim / 2).map(move |pair| base.powf(2.0 * pair as f64 / dim))
    }

    fn inverse(&self) -> Vec<f64> {
        self.wavelengths().map(f64::recip).collect()
    }
}

/// `rope_scaling`, or `rope_parameters` as newer files call it.
struct Reading<'a> {
    spec: &'a Spec,
    key: &'static str,
    object: Option<&'a Value>,
}

impl<'a> Reading<'a> {
    fn of(spec: &'a Spec) -> Result<Self> {
        let found = ["rope_scaling", "rope_parameters"].into_iter().find_map(|key| Some((key, spec.value(key)?)));
        match found {
            None => Ok(Reading { spec, key: "rope_scaling", object: None }),
            Some((key, object)) if object.is_object() => Ok(Reading { spec, key, object: Some(object) }),
            Some((key, other)) => Err(spec.config_error(key, format!("expected an object, found {other}"))),
        }
    }

    fn error(&self, key: &str, reason: impl std::fmt::Display) -> crate::error::Error {
        self.spec.config_error(&format!("{}.{key}", self.key), reason)
    }

    fn value(&self, key: &str) -> Option<&'a Value> {
        self.object?.get(key).filter(|value| !value.is_null())
    }

    fn kind(&self) -> Result<&'a str> {
        // Older files call it `type`.
        let value = self.value("rope_type").or(self.value("type"));
        let Some(value) = value else { return Ok("default") };
        value.as_str().ok_or_else(|| self.error("rope_type", format!("expected a string, found {value}")))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let number = value.as_f64().filter(|number| number.is_finite());
        number.map(Some).ok_or_else(|| self.error(key, format!("expected a number, found {value}")))
    }

    /// One that is above zero.
    fn positive(&self, key: &str) -> Result<Option<f64>> {
        match self.number(key)? {
            Some(number) if number <= 0.0 => {
                Err(self.error(key, format!("expected a positive number, found {number}")))
            }
            found => Ok(found),
        }
    }

    fn required(&self, key: &str) -> Result<f64> {
        self.positive(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    fn factor(&self) -> Result<f64> {
        let factor = self.required("factor")?;
        if factor < 1.0 {
            return Err(self.error("factor", format!("expected at least 1, found {factor}")));
        }
        Ok(factor)
    }

    /// One number for each pair of a head.
    fn pairs(&self, key: &str, pairs: usize) -> Result<Vec<f64>> {
        let list = self.value(key).and_then(Value::as_array);
        let numbers: Option<Vec<f64>> = list.and_then(|list| list.iter().map(Value::as_f64).collect());
        match numbers {
            Some(numbers) if numbers.len() == pairs && numbers.iter().all(|number| *number > 0.0) => Ok(numbers),
            _ => Err(self.error(key, format!("expected {pairs} positive numbers"))),
        }
    }
}

/// Source: Peng et al., "YaRN", 2023. Fast pairs turn as they did, slow ones by `factor` slower, those between in between.
fn yarn(reading: &Reading<'_>, plain: &Plain, positions: usize) -> Result<(Vec<f64>, f64)> {
    let factor = reading.factor()?;
    let sharpening = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    let attention = match (
        reading.positive("attention_factor")?,
        reading.number("mscale")?.filter(|scale| *scale != 0.0),
        reading.number("mscale_all_dim")?.filter(|scale| *scale != 0.0),
    ) {
        (Some(attention), _, _) => attention,
        (None, Some(scale), Some(all)) => sharpening(scale) / sharpening(all),
        _ => sharpening(1.0),
    };
    let original = reading.positive("original_max_position_embeddings")?.unwrap_or(positions as f64);
    let (fast, slow) = (reading.positive("beta_fast")?.unwrap_or(32.0), reading.positive("beta_slow")?.unwrap_or(1.0));
    // Of the pair that turns so often within the original context.
    let dim = plain.head_dim as f64;
    let pair = |turns: f64| dim * (original / (turns * 2.0 * PI)).ln() / (2.0 * plain.base.ln());
    let (mut low, mut high) = (pair(fast), pair(slow));
    if reading.value("truncate").and_then(Value::as_bool).unwrap_or(true) {
        (low, high) = (low.floor(), high.ceil());
    }
    let low = low.max(0.0);
    let mut high = high.min(dim - 1.0);
    if low == high {
        high += 0.001;
    }
    let inverse = plain.inverse().into_iter().enumerate().map(|(pair, inverse)| {
        let slowed = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
        inverse / factor * slowed + inverse * (1.0 - slowed)
    });
    Ok((inverse.collect(), attention))
}

/// Source: Ding et al., "LongRoPE", 2024. Up to the original context, every pair has a factor of its own; longer sequences would
/// turn by other factors altogether.
fn longrope(reading: &Reading<'_>, plain: &Plain, positions: usize) -> Result<Rope> {
    let short = reading.pairs("short_factor", plain.head_dim / 2)?;
    let told = reading.spec.usize_or("original_max_position_embeddings", 0)?;
    let original = if told > 0 { told } else { positions };
    let factor = match told {
        0 => reading.positive("factor")?,
        told => Some(positions as f64 / told as f64),
    };
    let attention = match (reading.positive("attention_factor")?, factor) {
        (Some(attention), _) => attention,
        (None, Some(factor)) if factor > 1.0 => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
        (None, Some(_)) => 1.0,
        (None, None) => return Err(reading.error("factor", "is missing")),
    };
    let inverse = plain.wavelengths().zip(short).map(|(wavelength, factor)| 1.0 / (factor * wavelength));
    Ok(Rope { rotary: rotary(inverse.collect(), attention), longest: Some(original) })
}

/// As Llama 3.1 has it: like YaRN's, by wavelengths.
fn llama3(reading: &Reading<'_>, plain: &Plain) -> Result<Vec<f64>> {
    let factor = reading.factor()?;
    let (low, high) = (reading.required("low_freq_factor")?, reading.required("high_freq_factor")?);
    let original = reading.required("original_max_position_embeddings")?;
    if high <= low {
        return Err(reading.error("high_freq_factor", format!("expected more than {low}, found {high}")));
    }
    let scaled = plain.inverse().into_iter().map(|inverse| {
        let wavelength = 2.0 * PI / inverse;
        if wavelength < original / high {
            return inverse;
        }
        if wavelength > original / low {
            return inverse / factor;
        }
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * inverse / factor + smooth * inverse
    });
    Ok(scaled.collect())
}
