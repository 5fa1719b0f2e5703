//! `cutover golden`: records the numbers that a version must reproduce, and judges a version by its golden cases.
//!
//! Both run the version in this process, by the code that loads and judges it in a rollout.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::{GoldenArgs, GoldenCommand, GoldenTarget, MAX_ABS, MIN_COSINE, RecordArgs, Reference};
use super::output::{human_value, note};
use super::table::Table;
use crate::device::{self, Opened};
use crate::error::{Error, Result};
use crate::ledger::{GateCheck, Ledger};
use crate::repository::{Expect, GoldenCase, ModelConfig, Repository, read_golden};
use crate::rollout::{Golden, Home, Rehearsal, Survey};
use crate::value::{LabelScore, Output, RawInput};

pub(super) const FILE: &str = "golden.jsonl";
/// Of an answer with very many labels the highest are recorded.
const MOST_LABELS: usize = 20;

/// True when everything was recorded, or every case passed.
pub(super) fn run(args: &GoldenArgs, out: &mut dyn Write) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Error::internal(format!("cannot start the runtime: {e}")))?;
    match &args.command {
        GoldenCommand::Record(args) => runtime.block_on(record(args, out)).map(|()| true),
        GoldenCommand::Check(target) => runtime.block_on(check(target, out)),
    }
}

/// A version that is to be run.
pub(super) struct Subject {
    pub(super) reference: Reference,
    pub(super) dir: PathBuf,
    pub(super) config: ModelConfig,
    pub(super) opened: Opened,
}

impl Subject {
    /// As the repository has it.
    fn find(target: &GoldenTarget) -> Result<Subject> {
        let reference = target.reference.clone();
        let repository = Repository::open(&target.models)?;
        let config = repository.model(&reference.model)?.config?;
        let dir = repository.version_dir(&reference.model, &reference.version)?;
        let opened = device::open(target.device)?;
        Ok(Subject { reference, dir, config, opened })
    }

    fn start(&self) -> Result<Rehearsal> {
        let Reference { model, version } = &self.reference;
        let survey = Survey::of(&self.dir, (model, version), &self.config, Home::alone(self.opened.kind()));
        Rehearsal::start(survey, &self.config, &self.opened)
    }
}

/// How close to what was recorded an answer must be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tolerances {
    max_abs: f32,
    min_cosine: f32,
}

impl Default for Tolerances {
    fn default() -> Self {
        Tolerances { max_abs: MAX_ABS, min_cosine: MIN_COSINE }
    }
}

/// An input to record, and what its case is called.
pub(super) type Asked = (String, RawInput);

async fn check(target: &GoldenTarget, out: &mut dyn Write) -> Result<bool> {
    let subject = Subject::find(target)?;
    let golden = Golden::read(&subject.dir)?;
    if golden.cases().next().is_none() {
        let reason = "there are no golden cases, neither of the model nor of the version";
        return Err(Error::unloadable(format!("{}/{FILE}", target.reference.model), reason));
    }
    let checks = subject.start()?.check(&golden).await?;
    let passed = checks.iter().all(|check| check.passed);
    let name = subject.reference.to_string();
    let written = match target.json {
        true => writeln!(out, "{:#}", json!({ "version": name, "passed": passed, "checks": checks })),
        false => write_checks(&name, &checks, out),
    };
    written.map_err(unwritten)?;
    Ok(passed)
}

fn write_checks(name: &str, checks: &[GateCheck], out: &mut dyn Write) -> io::Result<()> {
    let mut table = Table::new(["check", "case", "measure", "limit", "result", ""]);
    for check in checks {
        let (measure, limit) = (human_value(&check.measure), human_value(&check.limit));
        let result = if check.passed { "passed" } else { "FAILED" };
        let why = check.message.as_deref().filter(|_| !check.passed).unwrap_or_default();
        table.row([check.check.as_str(), check.case.as_deref().unwrap_or("-"), &measure, &limit, result, why]);
    }
    table.write(out)?;
    let failed = checks.iter().filter(|check| !check.passed).count();
    match failed {
        0 => writeln!(out, "{name} passed {} checks", checks.len()),
        _ => writeln!(out, "{name} failed {failed} of {} checks", checks.len()),
    }
}

async fn record(args: &RecordArgs, out: &mut dyn Write) -> Result<()> {
    let subject = Subject::find(&args.target)?;
    if !args.force {
        refuse_change(args, &subject.dir.join(FILE))?;
    }
    let more = args.inputs.as_deref().map(read_inputs).transpose()?.unwrap_or_default();
    let tolerances = Tolerances { max_abs: args.max_abs, min_cosine: args.min_cosine };
    let cases = record_all(&subject, more, tolerances).await?;
    let Reference { model, version } = &subject.reference;
    let shown = format!("{model}/{version}/{FILE}");
    let name = subject.reference.to_string();
    let written = match args.target.json {
        true => writeln!(out, "{:#}", json!({ "version": name, "file": shown, "cases": cases })),
        false => writeln!(out, "recorded {cases} cases in {shown}"),
    };
    written.map_err(unwritten)
}

/// Stores in the version's folder what it answers to the inputs of its model's golden cases, and to more: how many cases that makes.
pub(super) async fn record_all(subject: &Subject, more: Vec<Asked>, tolerances: Tolerances) -> Result<usize> {
    let Subject { reference, dir, .. } = subject;
    let behaviour = match dir.parent() {
        Some(parent) => read_golden(&parent.join(FILE))?,
        None => Vec::new(),
    };
    let asked = inputs(&behaviour, more)?;
    if asked.is_empty() {
        let reason = "there is nothing to record: the model has no golden cases, and no inputs were given";
        return Err(Error::unloadable(format!("{}/{FILE}", reference.model), reason));
    }
    let mut rehearsal = subject.start()?;
    let mut cases = Vec::with_capacity(asked.len());
    for (id, input) in asked {
        let answer = rehearsal.answer(&input).await;
        let answer = answer.map_err(|e| Error::unloadable(&id, format!("the version cannot answer it: {e}")))?;
        cases.push(GoldenCase { id, inputs: vec![input], expect: expect(answer, tolerances) });
    }
    store(&cases, dir)?;
    let folder = reference.model.clone();
    warn_of_failures(&mut rehearsal, Golden { model: behaviour, folder, ..Golden::default() }).await?;
    Ok(cases.len())
}

/// What was recorded is what the version answers; whether that is right, only the model's own cases say.
async fn warn_of_failures(rehearsal: &mut Rehearsal, golden: Golden) -> Result<()> {
    let checks = rehearsal.check(&golden).await?;
    let failed = checks.iter().filter(|check| !check.passed).count();
    if failed > 0 {
        note(&format!("warning: {failed} of the model's own {} checks fail: the gate will refuse it", checks.len()));
    }
    Ok(())
}

/// Versions are immutable once a server has seen them; a file that is there already belongs to the version.
fn refuse_change(args: &RecordArgs, file: &Path) -> Result<()> {
    let name = &args.target.reference;
    let advice = "a server that has seen this version would refuse it afterwards, because its folder changed: \
                  record under a new version name, or give --force where no server has seen it";
    if file.exists() {
        return Err(Error::conflict(format!("{name} has a {FILE} already, which is part of the version; {advice}")));
    }
    let (ledger, state) = (args.state.join("ledger.sqlite"), args.state.display());
    if !ledger.exists() {
        note(&format!(
            "no server keeps its state in {state}: one that keeps it elsewhere and has seen {name} will refuse it after this \
             (name its folder with --state to have that checked)"
        ));
        return Ok(());
    }
    if Ledger::open_read_only(&ledger)?.manifest(&name.model, &name.version)?.is_some() {
        let advice = "it would refuse it afterwards, because its folder changed: record under a new version name, \
                      or give --force if that ledger is of no use any more";
        return Err(Error::conflict(format!("the server whose ledger is in {state} has seen {name}; {advice}")));
    }
    Ok(())
}

/// The inputs to record, each once, with the ids of their cases.
fn inputs(behaviour: &[GoldenCase], more: Vec<Asked>) -> Result<Vec<Asked>> {
    let mut asked = Vec::new();
    for case in behaviour {
        match case.inputs.as_slice() {
            [only] => asked.push((format!("recorded-{}", case.id), only.clone())),
            several => {
                let numbered = several.iter().enumerate();
                asked.extend(numbered.map(|(n, input)| (format!("recorded-{}-{n}", case.id), input.clone())));
            }
        }
    }
    asked.extend(more);
    let mut seen = HashSet::new();
    let mut once = Vec::with_capacity(asked.len());
    for (id, input) in asked {
        if seen.insert(serde_json::to_string(&input).map_err(Error::internal)?) {
            once.push((id, input));
        }
    }
    Ok(once)
}

/// One input a line.
pub(super) fn read_inputs(path: &Path) -> Result<Vec<Asked>> {
    let label = path.display();
    let file = File::open(path).map_err(|e| Error::unloadable(&label, format!("cannot be opened: {e}")))?;
    let mut inputs = Vec::new();
    for (number, line) in BufReader::new(file).lines().enumerate().map(|(at, line)| (at + 1, line)) {
        let refused = |why: String| Error::unloadable(format!("{label}:{number}"), why);
        let line = line.map_err(|e| refused(format!("cannot be read: {e}")))?;
        if line.trim().is_empty() {
            continue;
        }
        let input = serde_json::from_str(&line).map_err(|e| refused(e.to_string()))?;
        inputs.push((format!("input-{number}"), input));
    }
    Ok(inputs)
}

/// What the answer was, with the tolerances that were asked for.
fn expect(answer: Output, Tolerances { max_abs, min_cosine }: Tolerances) -> Expect {
    match answer {
        Output::Embedding { embedding } => Expect::Embedding { embedding, min_cosine, max_abs: Some(max_abs) },
        Output::Score { score } => Expect::Score { score, max_abs },
        Output::Labels { labels } => Expect::Labels { labels: highest(labels), max_abs },
        Output::Likelihood { logprobs, .. } => Expect::Logprobs { logprobs, max_abs },
    }
}

/// An expectation names a label once; of one that occurs twice (ImageNet's "crane") neither is recorded.
fn highest(labels: Vec<LabelScore>) -> Vec<LabelScore> {
    let count = |name: &str| labels.iter().filter(|label| label.label == name).count();
    labels.iter().filter(|label| count(&label.label) == 1).take(MOST_LABELS).cloned().collect()
}

/// Writes the cases beside the version's folder, reads them back, and moves them in: the folder has all or nothing.
fn store(cases: &[GoldenCase], dir: &Path) -> Result<()> {
    let failed = |e: io::Error| Error::unloadable(FILE, format!("cannot be written: {e}"));
    // Through links, so that the name changes within one file system.
    let real = dir.canonicalize().map_err(failed)?;
    let beside = real.parent().unwrap_or(&real);
    let mut draft = Draft { path: beside.join(format!(".{FILE}.{}", std::process::id())), moved: false };
    write_lines(cases, &draft.path).map_err(failed)?;
    if read_golden(&draft.path)? != cases {
        return Err(Error::internal("the recorded cases do not read back as they were written"));
    }
    fs::rename(&draft.path, real.join(FILE)).map_err(failed)?;
    draft.moved = true;
    File::open(&real).and_then(|dir| dir.sync_all()).map_err(failed)
}

/// A file that goes unless it was moved to where it belongs.
struct Draft {
    path: PathBuf,
    moved: bool,
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.moved {
            // It may never have come to be.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn write_lines(cases: &[GoldenCase], path: &Path) -> io::Result<()> {
    let mut file = io::BufWriter::new(File::create(path)?);
    for case in cases {
        serde_json::to_writer(&mut file, case)?;
        file.write_all(b"\n")?;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

fn unwritten(error: io::Error) -> Error {
    Error::internal(format!("cannot write: {error}"))
}

#[cfg(test)]
#[path = "golden_tests.rs"]
mod tests;
