//! What a soak found: of each quantity how it went, and whether it stayed. Pure.
//!
//! The first quarter of the readings is warm-up: caches fill, and pools grow to what the load needs. Of the rest the
//! second quarter is compared with the last, median with median, so that one reading at a bad moment decides nothing.

use std::collections::BTreeMap;
use std::io::Write;

use serde::Serialize;
use serde_json::{Value, json};

use super::super::output::{Failure, human_bytes};
use super::super::table::Table;
use super::driver::Cycle;
use super::reading::{Quantity, Reading};

/// With fewer readings a quarter has no median to speak of.
pub(super) const ENOUGH: usize = 8;

/// What it takes to be called flat.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Rule {
    /// The later median is at most this much above or below the earlier one.
    Within(f64),
    /// Both are the same.
    Same,
    /// It is only told: it grows with what happened.
    Told,
}

fn rule(quantity: Quantity) -> Rule {
    match quantity {
        Quantity::Resident => Rule::Within(0.02),
        // A few megabytes, of which what threads keep at hand of freed memory is a part.
        Quantity::Allocated => Rule::Within(0.05),
        Quantity::Reserved | Quantity::Threads | Quantity::Files => Rule::Same,
        Quantity::Ledger => Rule::Told,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    Flat,
    NotFlat,
    /// There were too few readings to say.
    Unknown,
    /// Nobody asks.
    Told,
}

/// How a quantity went after warm-up.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Trend {
    first: u64,
    median: u64,
    last: u64,
    largest: u64,
    /// Of the line that fits the readings best.
    per_100_switches: f64,
    /// Medians of the second and of the last quarter.
    quarters: (u64, u64),
    pub(super) verdict: Verdict,
}

impl Trend {
    /// Of readings in order, each after so many switches; none of none.
    fn of(readings: &[(u32, u64)], rule: Rule) -> Option<Trend> {
        let quarter = |number: usize| readings.len() * number / 4;
        let kept = &readings[quarter(1)..];
        let (first, last) = (kept.first()?.1, kept.last()?.1);
        let quarters = median(&readings[quarter(1)..quarter(2)]).zip(median(&readings[quarter(3)..]));
        let quarters = quarters.unwrap_or((first, last));
        let verdict = match rule {
            Rule::Told => Verdict::Told,
            _ if readings.len() < ENOUGH => Verdict::Unknown,
            Rule::Within(share) => flat(quarters.0.abs_diff(quarters.1) as f64 <= share * quarters.0 as f64),
            Rule::Same => flat(quarters.0 == quarters.1),
        };
        Some(Trend {
            first,
            median: median(kept)?,
            last,
            largest: kept.iter().map(|(_, value)| *value).max()?,
            per_100_switches: 100.0 * slope(kept),
            quarters,
            verdict,
        })
    }

    fn cells(&self, quantity: Quantity) -> [String; 6] {
        let shown = |value: u64| if quantity.is_bytes() { human_bytes(value) } else { value.to_string() };
        let slope = self.per_100_switches;
        let slope = match (quantity.is_bytes(), slope < 0.0) {
            (true, negative) => format!("{}{}", if negative { "-" } else { "" }, human_bytes(slope.abs() as u64)),
            (false, _) => format!("{slope:.2}"),
        };
        let verdict = match self.verdict {
            Verdict::Flat => "flat".to_owned(),
            Verdict::NotFlat => format!("NOT FLAT: {} → {}", shown(self.quarters.0), shown(self.quarters.1)),
            Verdict::Unknown => "too few readings".to_owned(),
            Verdict::Told => "grows with history".to_owned(),
        };
        [shown(self.first), shown(self.median), shown(self.last), shown(self.largest), slope, verdict]
    }
}

fn flat(is: bool) -> Verdict {
    if is { Verdict::Flat } else { Verdict::NotFlat }
}

/// The lower one of two in the middle, so that a count stays one that was counted.
fn median(readings: &[(u32, u64)]) -> Option<u64> {
    let mut values: Vec<u64> = readings.iter().map(|(_, value)| *value).collect();
    values.sort_unstable();
    values.get(values.len().checked_sub(1)? / 2).copied()
}

/// Least squares; none to speak of through a single reading.
fn slope(readings: &[(u32, u64)]) -> f64 {
    let count = readings.len() as f64;
    let mean = |of: fn(&(u32, u64)) -> f64| readings.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|at| f64::from(at.0)), mean(|at| at.1 as f64));
    let across: f64 = readings.iter().map(|at| (f64::from(at.0) - x).powi(2)).sum();
    let along: f64 = readings.iter().map(|at| (f64::from(at.0) - x) * (at.1 as f64 - y)).sum();
    if across > 0.0 { along / across } else { 0.0 }
}

#[derive(Debug)]
pub(super) struct SoakAnalysis {
    pub(super) trends: Vec<(Quantity, Trend)>,
    /// Rollouts that were meant to change nothing, by how they ended.
    mishaps: BTreeMap<String, u32>,
    /// Nothing grew that should not.
    pub(super) flat: bool,
    /// There was enough to say so.
    pub(super) judged: bool,
}

impl SoakAnalysis {
    pub(super) fn of(readings: &[Reading], cycles: &[Cycle]) -> SoakAnalysis {
        let trend = |quantity: Quantity| {
            let of = |reading: &Reading| Some((reading.switches, *reading.of.get(&quantity)?));
            let values: Vec<(u32, u64)> = readings.iter().filter_map(of).collect();
            Some((quantity, Trend::of(&values, rule(quantity))?))
        };
        let trends: Vec<(Quantity, Trend)> = Quantity::ALL.into_iter().filter_map(trend).collect();
        let mut mishaps = BTreeMap::new();
        for mishap in cycles.iter().filter_map(|cycle| cycle.mishap.clone()) {
            *mishaps.entry(mishap).or_default() += 1;
        }
        let flat = trends.iter().all(|(_, trend)| trend.verdict != Verdict::NotFlat);
        let asked = || trends.iter().map(|(_, trend)| trend.verdict).filter(|verdict| *verdict != Verdict::Told);
        let judged = asked().count() > 0 && asked().all(|verdict| verdict != Verdict::Unknown);
        SoakAnalysis { trends, mishaps, flat, judged }
    }

    pub(super) fn json(&self, readings: &[Reading]) -> Value {
        let named = |of: &BTreeMap<Quantity, u64>| -> Value {
            of.iter().map(|(quantity, value)| (quantity.name().to_owned(), json!(value))).collect()
        };
        let trends: Value = self.trends.iter().map(|(quantity, trend)| (quantity.name(), json!(trend))).collect();
        let readings = readings.iter().map(|reading| json!({ "switches": reading.switches, "of": named(&reading.of) }));
        json!({
            "flat": self.flat, "judged": self.judged, "quantities": trends, "mishaps": self.mishaps, "readings": readings.collect::<Vec<_>>(),
        })
    }

    pub(super) fn write(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let told: Vec<String> = self.mishaps.iter().map(|(how, count)| format!("{count} {how}")).collect();
        let told = if told.is_empty() { "none".to_owned() } else { told.join(", ") };
        writeln!(out, "rollouts between that changed nothing              {told}")?;
        writeln!(out)?;
        let head = ["", "after warm-up", "median", "last", "largest", "per 100 switches", "verdict"];
        let mut table = Table::new(head);
        for (quantity, trend) in &self.trends {
            table.row([quantity.name().to_owned()].into_iter().chain(trend.cells(*quantity)));
        }
        if !table.is_empty() {
            table.write(out)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reading after every 20 switches.
    fn readings(values: impl IntoIterator<Item = u64>) -> Vec<(u32, u64)> {
        values.into_iter().enumerate().map(|(at, value)| (20 * (at as u32 + 1), value)).collect()
    }

    fn verdict(values: impl IntoIterator<Item = u64>, rule: Rule) -> Verdict {
        Trend::of(&readings(values), rule).unwrap().verdict
    }

    #[test]
    fn what_grows_in_the_first_quarter_only_is_flat() {
        let values = (0..40).map(|at| if at < 10 { 1000 + at * 100 } else { 2000 + at % 3 });
        let trend = Trend::of(&readings(values), Rule::Within(0.02)).unwrap();
        assert_eq!((trend.first, trend.median, trend.last, trend.largest), (2001, 2001, 2000, 2002));
        assert_eq!(trend.verdict, Verdict::Flat);
        assert!(trend.per_100_switches.abs() < 0.5, "{trend:?}");
    }

    #[test]
    fn a_leak_is_found_however_slow_it_is_to_show() {
        // From the middle of the second quarter to that of the last it is 3 % of what it was.
        let leak = |each: u64| (0..40).map(move |at| 10_000 + at * each);
        assert_eq!(verdict(leak(16), Rule::Within(0.02)), Verdict::NotFlat);
        assert_eq!(verdict(leak(8), Rule::Within(0.02)), Verdict::Flat);
        assert_eq!(verdict(leak(16), Rule::Told), Verdict::Told);
        let trend = Trend::of(&readings(leak(16)), Rule::Within(0.02)).unwrap();
        // 16 in 20 switches.
        assert!((trend.per_100_switches - 80.0).abs() < 1e-6, "{trend:?}");
        assert!(
            trend.cells(Quantity::Resident)[5].starts_with("NOT FLAT: 9.9"),
            "{:?}",
            trend.cells(Quantity::Resident)
        );
    }

    #[test]
    fn counts_must_be_the_same_but_for_a_reading_at_a_bad_moment() {
        let threads =
            |odd: usize, from: usize| (0..40).map(move |at| 12 + u64::from(at == odd) + u64::from(at >= from));
        assert_eq!(verdict(threads(35, 40), Rule::Same), Verdict::Flat);
        assert_eq!(verdict(threads(40, 28), Rule::Same), Verdict::NotFlat);
        // One that is gone is missed as well.
        assert_eq!(verdict((0..40).map(|at| 12 - u64::from(at >= 28)), Rule::Same), Verdict::NotFlat);
    }

    #[test]
    fn few_readings_are_no_verdict_and_none_are_no_trend() {
        assert_eq!(verdict([1, 2, 3, 4, 5, 6, 7], Rule::Same), Verdict::Unknown);
        let one = Trend::of(&readings([5]), Rule::Same).unwrap();
        assert_eq!((one.first, one.last, one.per_100_switches), (5, 5, 0.0));
        assert_eq!(Trend::of(&[], Rule::Same), None);
    }

    #[test]
    fn mishaps_are_counted_and_what_was_not_read_is_left_out() {
        let of = [(Quantity::Threads, 9)].into();
        let cycle = |mishap: &str| Cycle { mishap: Some(mishap.to_owned()), ..Cycle::default() };
        let cycles = [cycle("refused"), Cycle::default(), cycle("aborted while loading"), cycle("refused")];
        let readings = [Reading { switches: 20, of }];
        let analysis = SoakAnalysis::of(&readings, &cycles);
        let mut out = Vec::new();
        analysis.write(&mut out).unwrap();
        insta::assert_snapshot!(String::from_utf8(out).unwrap(), @r"
        rollouts between that changed nothing              1 aborted while loading, 2 refused

                 after warm-up  median  last  largest  per 100 switches  verdict
        threads              9       9     9        9              0.00  too few readings
        ");
        assert!(analysis.flat && !analysis.judged, "nothing grew, as far as anybody can say");
        assert_eq!(analysis.json(&readings)["readings"][0], json!({ "switches": 20, "of": { "threads": 9 } }));
    }
}
