//! What a candidate must pass before traffic reaches it (promise 4).
//!
//! Finite outputs, golden cases within tolerance, a batch row equal to the same row alone, a contract that
//! clients of the live version can rely on, and forward passes not much slower than the live version's; of models that write
//! (`agreement`) also that both find stored texts alike likely.
//! Judging is pure; `runner` decides where the forward passes run (on probation, or on the engine).

mod agreement;
mod pace;
mod probation;
mod runner;

use std::path::Path;

use serde_json::{Value, json};

pub(super) use agreement::agreement;
pub(super) use probation::{Probation, Trial};
pub(super) use runner::{Runner, SoftError};

use crate::error::{Error, Result};
use crate::generation::Generation;
use crate::ledger::GateCheck;
use crate::model::Input;
use crate::process::{FinishOptions, PrepareOptions, Processor};
use crate::repository::{Contract, GateConfig, GoldenCase, Verdict, read_golden};
use crate::value::{Output, Task};

/// Inputs that the batch-invariance check runs together.
const INVARIANCE_INPUTS: usize = 8;
/// Two medians that are this close are the same, whatever their ratio.
const LATENCY_FLOOR_MS: f64 = 0.25;
/// After so many rounds that all say the same, no more are run: a coin would do that once in eight times.
const ENOUGH_ROUNDS: usize = 4;
/// Passes of a round in a row, of which the fastest counts.
const PASSES_IN_A_ROW: usize = 2;

/// The stored cases of a model and of one of its versions.
#[derive(Debug, Clone, Default)]
pub struct Golden {
    /// Behaviour that every version must show.
    pub model: Vec<GoldenCase>,
    /// Numbers that were recorded for this version.
    pub version: Vec<GoldenCase>,
    /// The name of the model's folder, for errors, and of the version's in it.
    pub folder: String,
    pub version_folder: String,
}

impl Golden {
    /// Reads the cases beside and in a version folder.
    pub fn read(dir: &Path) -> Result<Golden> {
        let model = dir.parent().map(|parent| read_golden(&parent.join("golden.jsonl")));
        let version = read_golden(&dir.join("golden.jsonl"))?;
        let name =
            |dir: Option<&Path>| dir.and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
        let (folder, version_folder) = (name(dir.parent()), name(Some(dir)));
        Ok(Golden { model: model.transpose()?.unwrap_or_default(), version, folder, version_folder })
    }

    pub fn cases(&self) -> impl Iterator<Item = &GoldenCase> {
        self.model.iter().chain(&self.version)
    }
}

/// A case whose inputs the candidate's own processor has prepared.
pub(super) struct Prepared {
    case: GoldenCase,
    inputs: Vec<Input>,
}

impl Prepared {
    pub(super) fn inputs(&self) -> &[Input] {
        &self.inputs
    }
}

/// What the gate found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) checks: Vec<GateCheck>,
}

impl Findings {
    pub(super) fn failed(&self) -> usize {
        self.checks.iter().filter(|check| !check.passed).count()
    }

    /// With `before` checks that passed earlier.
    pub(super) fn refusal(&self, version: &str, before: usize) -> Error {
        let failing: Vec<&GateCheck> = self.checks.iter().filter(|check| !check.passed).collect();
        Error::Gate {
            version: version.to_owned(),
            failed: failing.len(),
            checks: before + self.checks.len(),
            details: json!({ "failed": failing }),
        }
    }

    fn add(&mut self, check: &str, case: Option<&str>, verdict: Verdict) {
        self.checks.push(GateCheck {
            check: check.to_owned(),
            passed: verdict.passed,
            measure: number(verdict.measure),
            limit: number(verdict.limit),
            case: case.map(str::to_owned),
            message: (!verdict.message.is_empty()).then_some(verdict.message),
        });
    }

    fn fault(&mut self, check: &str, case: Option<&str>, error: &Error) {
        self.checks.push(GateCheck {
            check: check.to_owned(),
            passed: false,
            measure: json!(error.kind().name()),
            limit: json!("an answer"),
            case: case.map(str::to_owned),
            message: Some(error.to_string()),
        });
    }
}

/// JSON has no NaN; it is said in words.
fn number(value: f64) -> Value {
    if value.is_finite() { json!(value) } else { json!(value.to_string()) }
}

/// What clients rely on must not change, unless the operator said that it may.
pub(super) fn contract(candidate: &Contract, live: Option<&Contract>, accepted: bool) -> Findings {
    let mut findings = Findings::default();
    let Some(live) = live else { return findings };
    let changes = candidate.changes_from(live);
    if changes.is_empty() {
        findings.checks.push(GateCheck {
            check: "contract".into(),
            passed: true,
            measure: json!(0),
            limit: json!(0),
            case: None,
            message: None,
        });
    }
    for change in changes {
        findings.checks.push(GateCheck {
            check: "contract".into(),
            passed: accepted,
            measure: change.to.clone(),
            limit: change.from.clone(),
            case: Some(change.field.to_owned()),
            message: Some(format!("{} changes from {} to {}", change.field, change.from, change.to)),
        });
    }
    findings
}

/// Runs every case's inputs through the candidate's processor.
///
/// # Errors
/// A case that does not fit the task, or that the processor refuses, names itself.
pub(super) fn prepare(golden: &Golden, processor: &Processor, contract: &Contract) -> Result<Vec<Prepared>> {
    let options = PrepareOptions::default();
    let Golden { folder, version_folder, .. } = golden;
    let (shared, own) = (format!("{folder}/golden.jsonl"), format!("{folder}/{version_folder}/golden.jsonl"));
    let shared = golden.model.iter().map(|case| (case, shared.as_str()));
    shared
        .chain(golden.version.iter().map(|case| (case, own.as_str())))
        .map(|(case, file)| {
            let wrong = |reason: String| Error::unloadable(file, format!("case '{}': {reason}", case.id));
            case.expect.fits(contract.task).map_err(wrong)?;
            let inputs = case.asked();
            let inputs = inputs.iter().map(|input| processor.prepare(input, &options));
            let inputs = inputs.collect::<Result<Vec<_>>>().map_err(|e| wrong(e.to_string()))?;
            Ok(Prepared { case: case.clone(), inputs })
        })
        .collect()
}

/// Runs the cases one by one and judges them; then some of their inputs together, for batch invariance.
pub(super) async fn correctness(
    runner: &mut Runner,
    cases: &[Prepared],
    processor: &Processor,
    rules: &GateConfig,
) -> Result<Findings, SoftError> {
    let mut findings = Findings::default();
    let mut alone: Vec<(Input, Vec<f32>)> = Vec::new();
    let mut passed = 0usize;
    for prepared in cases {
        let id = Some(prepared.case.id.as_str());
        let mut rows = Vec::with_capacity(prepared.inputs.len());
        let mut fault = None;
        for input in &prepared.inputs {
            match runner.run(vec![input.clone()]).await? {
                Ok(timed) => rows.extend(timed.rows),
                Err(error) => fault = Some(error),
            }
        }
        if let Some(error) = fault {
            findings.fault("golden", id, &error);
            continue;
        }
        let bad = rows.iter().flatten().filter(|value| !value.is_finite()).count();
        if bad > 0 {
            let message = format!("{bad} values are not finite");
            findings.add("finite", id, Verdict { passed: false, measure: bad as f64, limit: 0.0, message });
            continue;
        }
        let kept = prepared.inputs.iter().cloned().zip(rows.iter().cloned());
        alone.extend(kept.take(INVARIANCE_INPUTS.saturating_sub(alone.len())));
        match finish(processor, rows) {
            Ok(outputs) => {
                let verdict = prepared.case.expect.judge(&outputs);
                passed += usize::from(verdict.passed);
                findings.add("golden", id, verdict);
            }
            Err(error) => findings.fault("golden", id, &error),
        }
    }
    forgive(&mut findings, passed, cases.len(), rules.min_pass);
    invariance(runner, &alone, rules.invariance_max_abs, &mut findings).await?;
    Ok(findings)
}

fn finish(processor: &Processor, rows: Vec<Vec<f32>>) -> Result<Vec<Output>> {
    let options = FinishOptions::default();
    rows.into_iter().map(|row| processor.finish(row, &options)).collect()
}

/// Where `min_pass` allows some golden cases to fail and few enough did, those count as passed and say so.
fn forgive(findings: &mut Findings, passed: usize, total: usize, min_pass: f64) {
    if total == 0 || (passed as f64) < min_pass * total as f64 {
        return;
    }
    for check in findings.checks.iter_mut().filter(|check| check.check == "golden" && !check.passed) {
        // A fault is not a wrong answer: it is never forgiven.
        if check.measure.is_number() {
            check.passed = true;
            let note = format!("tolerated: {passed} of {total} passed, {min_pass} of them must");
            check.message = Some(check.message.take().map_or(note.clone(), |m| format!("{m} ({note})")));
        }
    }
}

async fn invariance(
    runner: &mut Runner,
    alone: &[(Input, Vec<f32>)],
    limit: f32,
    findings: &mut Findings,
) -> Result<(), SoftError> {
    if alone.len() < 2 {
        return Ok(());
    }
    match runner.run(alone.iter().map(|(input, _)| input.clone()).collect()).await? {
        Ok(together) => {
            let worst = alone.iter().zip(&together.rows).map(|((_, a), b)| relative_error(a, b)).fold(0.0, f64::max);
            let passed = worst <= f64::from(limit) && together.rows.len() == alone.len();
            let message = if passed { String::new() } else { "a row differs from the same row alone".into() };
            findings.add(
                "batch-invariance",
                None,
                Verdict { passed, measure: worst, limit: f64::from(limit), message },
            );
        }
        Err(error) => findings.fault("batch-invariance", None, &error),
    }
    Ok(())
}

/// Largest absolute difference, relative to the largest magnitude of `a`. Infinite for NaN and other lengths.
fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() || b.iter().any(|value| !value.is_finite()) {
        return f64::INFINITY;
    }
    let scale = a.iter().map(|value| f64::from(value.abs())).fold(1e-6, f64::max);
    a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs()) / scale).fold(0.0, f64::max)
}

/// Forward passes of the candidate and of the live version in turn, on the same inputs; their medians compared.
///
/// Both run as background work, so that live traffic goes first and neither is measured while it waits. Each takes the
/// engine from live traffic for a moment, so there are no more than it takes to be sure. In a round each version runs
/// twice in a row and its faster pass counts: the other one found the processor's caches full of somebody else's
/// weights, live traffic's above all, and whatever interrupts a pass only ever makes it longer.
pub(super) async fn latency(
    candidate: &mut Runner,
    live: &mut Runner,
    cases: &[Prepared],
    live_generation: &Generation,
    rules: &GateConfig,
) -> Result<Findings, SoftError> {
    let pairs = pairs(cases, live_generation);
    let limit = rules.max_latency_ratio;
    let mut findings = compare(candidate, live, &pairs, ("latency-ratio", limit, rules.latency_rounds)).await?;
    // What was measured is a prompt; each token after it costs something else.
    if live_generation.contract.task == Task::Generate {
        let (singles, limit) = (agreement::single_tokens(&pairs), rules.max_token_latency_ratio.unwrap_or(limit));
        let of_tokens = ("token-latency-ratio", limit, rules.latency_rounds);
        findings.checks.extend(compare(candidate, live, &singles, of_tokens).await?.checks);
    }
    Ok(findings)
}

/// The same pairs of inputs in turn, in so many rounds at most.
async fn compare(
    candidate: &mut Runner,
    live: &mut Runner,
    pairs: &[(Input, Input)],
    (check, limit, rounds): (&str, f64, usize),
) -> Result<Findings, SoftError> {
    let mut findings = Findings::default();
    if pairs.is_empty() || rounds == 0 {
        return Ok(findings);
    }
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        if agreed(&ours, &theirs, limit) {
            break;
        }
        let (input, same) = &pairs[round % pairs.len()];
        match (fastest(live, same).await?, fastest(candidate, input).await?) {
            (Ok(blue), Ok(green)) => {
                theirs.push(blue);
                ours.push(green);
            }
            (_, Err(error)) => {
                findings.fault(check, None, &error);
                return Ok(findings);
            }
            // The live version cannot be compared with; that is no fault of the candidate.
            (Err(error), _) => {
                tracing::warn!(%error, "the live version failed a latency case");
                return Ok(findings);
            }
        }
    }
    let (ours, theirs) = (median(&ours), median(&theirs));
    let ratio = ours / theirs.max(1e-6);
    let passed = within(ours, theirs, limit);
    let message = format!("median forward pass {ours:.2} ms, the live version's {theirs:.2} ms");
    findings.add(check, None, Verdict { passed, measure: ratio, limit, message });
    Ok(findings)
}

/// Milliseconds of the fastest of a few forward passes in a row.
async fn fastest(runner: &mut Runner, input: &Input) -> Result<Result<f64>, SoftError> {
    let mut fastest = f64::INFINITY;
    for _ in 0..PASSES_IN_A_ROW {
        match runner.run(vec![input.clone()]).await? {
            Ok(timed) => fastest = fastest.min(timed.took.as_secs_f64() * 1e3),
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(fastest))
}

/// The same golden inputs as both versions prepare them.
fn pairs(cases: &[Prepared], live: &Generation) -> Vec<(Input, Input)> {
    let options = PrepareOptions::default();
    let both = cases.iter().flat_map(|prepared| prepared.inputs.iter().zip(prepared.case.asked()));
    both.filter_map(|(ours, raw)| Some((ours.clone(), live.processor.prepare(&raw, &options).ok()?))).take(32).collect()
}

/// Whether milliseconds of the candidate are near enough to those of the live version.
fn within(ours: f64, theirs: f64, limit: f64) -> bool {
    ours <= limit * theirs || ours - theirs <= LATENCY_FLOOR_MS
}

/// Whether the rounds so far are enough and leave no doubt: all of them within the limit, or none.
fn agreed(ours: &[f64], theirs: &[f64], limit: f64) -> bool {
    let theirs = median(theirs);
    let inside = ours.iter().filter(|&&ours| within(ours, theirs, limit)).count();
    ours.len() >= ENOUGH_ROUNDS && (inside == 0 || inside == ours.len())
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(passed: &[bool]) -> Findings {
        let mut findings = Findings::default();
        for (at, passed) in passed.iter().enumerate() {
            let verdict = Verdict { passed: *passed, measure: 0.5, limit: 1.0, message: String::new() };
            findings.add("golden", Some(&at.to_string()), verdict);
        }
        findings
    }

    #[test]
    fn wrong_answers_are_tolerated_only_within_min_pass() {
        let mut findings = golden(&[true, true, true, false]);
        forgive(&mut findings, 3, 4, 0.75);
        assert_eq!(findings.failed(), 0);
        let mut findings = golden(&[true, true, false, false]);
        forgive(&mut findings, 2, 4, 0.75);
        assert_eq!(findings.failed(), 2);
    }

    #[test]
    fn a_fault_is_never_tolerated() {
        let mut findings = golden(&[true; 9]);
        findings.fault("golden", Some("x"), &Error::NonFinite { version: "m@v".into() });
        forgive(&mut findings, 9, 10, 0.5);
        assert_eq!(findings.failed(), 1);
    }

    #[test]
    fn rounds_end_when_they_agree_and_go_on_while_they_do_not() {
        let theirs = [10.0; 8];
        assert!(!agreed(&[11.0; 3], &theirs[..3], 1.5), "too few");
        assert!(agreed(&[11.0; 4], &theirs[..4], 1.5), "all within the limit");
        assert!(agreed(&[30.0; 5], &theirs[..5], 1.5), "all beyond it");
        assert!(!agreed(&[11.0, 12.0, 16.0, 11.0, 11.0], &theirs[..5], 1.5), "one beyond it");
        // A fifth of a millisecond is nothing, whatever the ratio.
        assert!(within(0.3, 0.1, 1.5) && !within(0.6, 0.1, 1.5));
    }

    #[test]
    fn the_error_is_relative_to_scale_and_nan_is_infinite() {
        assert!((relative_error(&[10.0, 0.0], &[10.0, 0.1]) - 0.01).abs() < 1e-6);
        assert_eq!(relative_error(&[1.0], &[f32::NAN]), f64::INFINITY);
        assert_eq!(relative_error(&[1.0], &[1.0, 2.0]), f64::INFINITY);
    }
}
