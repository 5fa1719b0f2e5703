//! What an experiment says: its two arms side by side, and which is better, with an interval. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::controller::Options;
use super::interval::Mean;
use crate::generation::Scores;
use crate::slot::Told;

/// The chance that any interval of a report leaves out the truth, at any time.
const ALPHA: f64 = 0.05;

/// A named comparison of two versions.
#[derive(Debug, Clone, PartialEq)]
pub struct Named {
    pub name: String,
    /// Percent of requests that the candidate answers.
    pub weight: f64,
}

/// What an experiment is begun with.
#[derive(Debug, Clone)]
pub struct ExperimentPlan {
    pub name: String,
    /// Percent of requests for each of two versions.
    pub weights: BTreeMap<String, f64>,
    pub options: Options,
}

/// The version beside the live one, and its weight.
///
/// # Errors
/// What is wrong with the weights, and what was expected.
pub(super) fn candidate(live: &str, weights: &BTreeMap<String, f64>) -> Result<(String, f64), String> {
    let expected =
        format!("expected percentages above 0 for '{live}', which is live, and one other version, 100 together");
    if let Some((version, weight)) = weights.iter().find(|(_, weight)| !(**weight > 0.0 && weight.is_finite())) {
        return Err(format!("weights: {weight} for '{version}', {expected}"));
    }
    // The sum of nothing is -0.
    let sum = weights.values().sum::<f64>() + 0.0;
    let mut others = weights.iter().filter(|(version, _)| *version != live);
    match (weights.contains_key(live), others.next(), others.next()) {
        _ if (sum - 100.0).abs() > 1e-6 => Err(format!("weights: they add up to {sum}, {expected}")),
        (true, Some((version, weight)), None) => Ok((version.clone(), *weight)),
        _ => Err(format!("weights: {expected}")),
    }
}

/// One version in it.
pub(super) struct Side<'a> {
    pub(super) version: &'a str,
    pub(super) told: Told,
}

pub(super) fn report(named: &Named, live: &Side<'_>, other: &Side<'_>, lasted: Duration) -> Value {
    json!({
        "name": named.name,
        "seconds": lasted.as_secs_f64(),
        "arms": [arm(live, 100.0 - named.weight), arm(other, named.weight)],
        "feedback": compared((live, other), |told| &told.scores, Better::More, 1.0),
        "latency_ms": compared((live, other), |told| &told.seconds, Better::Less, 1e3),
    })
}

/// What one would rather have of a figure.
#[derive(Clone, Copy, PartialEq)]
enum Better {
    More,
    Less,
}

fn arm(side: &Side<'_>, weight: f64) -> Value {
    let told = &side.told;
    let ms = |duration: Option<Duration>| duration.map(|duration| duration.as_secs_f64() * 1e3);
    json!({
        "version": side.version, "weight": weight, "answered": told.answered, "failed": told.failed,
        "p50_ms": ms(told.p50), "p99_ms": ms(told.p99),
        "feedback": mean(&told.scores, 1.0), "latency_ms": mean(&told.seconds, 1e3),
    })
}

fn mean(scores: &Scores, unit: f64) -> Value {
    let interval = Mean::of(scores, ALPHA / 2.0).map(|mean| json!([mean.low() * unit, mean.high() * unit]));
    let mean = scores.mean().map(|mean| mean * unit);
    json!({ "count": scores.count, "mean": mean, "interval": interval })
}

/// The other arm's mean less the live one's, and which is better, once the interval says so.
fn compared(sides: (&Side<'_>, &Side<'_>), of: fn(&Told) -> &Scores, wanted: Better, unit: f64) -> Value {
    let (live, other) = sides;
    let means = Mean::of(of(&live.told), ALPHA / 2.0).zip(Mean::of(of(&other.told), ALPHA / 2.0));
    let Some(difference) = means.map(|(live, other)| live.to(other)) else {
        return json!({ "difference": null, "interval": null, "confidence": 1.0 - ALPHA, "better": null });
    };
    let better = match wanted {
        _ if difference.low() <= 0.0 && difference.high() >= 0.0 => None,
        Better::More if difference.low() > 0.0 => Some(other.version),
        Better::Less if difference.high() < 0.0 => Some(other.version),
        _ => Some(live.version),
    };
    json!({
        "difference": difference.value * unit,
        "interval": [difference.low() * unit, difference.high() * unit],
        "confidence": 1.0 - ALPHA,
        "better": better,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_of_the_live_version_and_one_other_and_add_up() {
        let of = |weights: &[(&str, f64)]| {
            candidate("v1", &weights.iter().map(|(version, weight)| ((*version).to_owned(), *weight)).collect())
        };
        assert_eq!(of(&[("v1", 70.0), ("v2", 30.0)]), Ok(("v2".to_owned(), 30.0)));
        for (wrong, told) in [
            (&[("v1", 70.0), ("v2", 40.0)][..], "add up to 110"),
            (&[("v2", 50.0), ("v3", 50.0)], "'v1', which is live"),
            (&[("v1", 40.0), ("v2", 30.0), ("v3", 30.0)], "one other version"),
            (&[("v1", 100.0)], "one other version"),
            (&[("v1", 110.0), ("v2", -10.0)], "-10 for 'v2'"),
            (&[("v1", f64::NAN), ("v2", 30.0)], "NaN for 'v1'"),
            (&[], "add up to 0"),
        ] {
            let reason = of(wrong).unwrap_err();
            assert!(reason.contains(told), "{reason}");
        }
    }

    fn side(version: &str, count: u64, mean: f64) -> Side<'_> {
        let scores = Scores { count, sum: mean * count as f64, squares: mean * count as f64 };
        let seconds = Scores { count, sum: 0.01 * count as f64, squares: 0.0001 * count as f64 };
        Side { version, told: Told { answered: count, scores, seconds, ..Told::default() } }
    }

    #[test]
    fn an_arm_is_better_once_there_is_enough_to_say_so() {
        let named = Named { name: "tone".into(), weight: 30.0 };
        let of = |live: &Side<'_>, other: &Side<'_>| report(&named, live, other, Duration::from_secs(60));
        let early = of(&side("v1", 5, 0.2), &side("v2", 5, 0.8));
        assert!(early["feedback"]["better"].is_null() && early["feedback"]["interval"].is_null(), "{early}");
        assert_eq!(early["arms"][0]["feedback"]["mean"], 0.2);
        let late = of(&side("v1", 2000, 0.4), &side("v2", 2000, 0.6));
        assert_eq!(late["feedback"]["better"], "v2");
        assert!((late["feedback"]["difference"].as_f64().unwrap() - 0.2).abs() < 1e-9);
        assert_eq!((late["arms"][0]["weight"].as_f64(), late["arms"][1]["weight"].as_f64()), (Some(70.0), Some(30.0)));
        assert_eq!(of(&side("v1", 2000, 0.6), &side("v2", 2000, 0.4))["feedback"]["better"], "v1");
        assert!(late["latency_ms"]["better"].is_null(), "they took the same time");
    }
}
