//! What a chat bench found: the time to the first token and from one to the next, steadily and by phase of rollouts, and
//! whether every stream came to its end by the version that began it. Pure.

use std::io::Write;

use serde_json::{Value, json};

use super::super::super::output::{Failure, human_ms, printable};
use super::super::audit::{Audit, Epoch};
use super::super::driver::Cycle;
use super::super::load::{Outcome, Recording as Samples, Sample, Stamp};
use super::super::report::{Summary, failures_line, round, table};
use super::super::svg::Words;
use super::super::swap_report::{self, Place, Places, cycle_json, place, write_memory};
use super::load::Recording;

/// A finished run, as recorded. Times are nanoseconds of its clock.
pub(super) struct Run {
    pub(super) model: String,
    pub(super) clients: usize,
    /// The measured part.
    pub(super) from: u64,
    pub(super) until: u64,
    pub(super) generator_cpu: Option<f64>,
    /// Switches that were asked for.
    pub(super) wanted: u32,
    pub(super) cycles: Vec<Cycle>,
    pub(super) epochs: Vec<Epoch>,
    pub(super) recording: Recording,
    /// Of the caches, once all is over; none where the server does not tell.
    pub(super) blocks: Option<Blocks>,
}

/// Blocks of the caches of all generations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub(super) struct Blocks {
    pub(super) used: u64,
    pub(super) all: u64,
}

impl Blocks {
    /// What the server's metrics say of a model.
    pub(super) fn of(metrics: &str, model: &str) -> Option<Blocks> {
        let model = format!("model=\"{model}\"");
        let mut found = None;
        for line in metrics.lines().filter_map(|line| line.strip_prefix("cutover_kv_cache_blocks{")) {
            let (labels, value) = line.rsplit_once("} ")?;
            if !labels.split(',').any(|label| label == model) {
                continue;
            }
            let value = value.trim().parse::<f64>().ok()? as u64;
            let blocks = found.get_or_insert(Blocks::default());
            blocks.all += value;
            if labels.contains("state=\"used\"") {
                blocks.used += value;
            }
        }
        found
    }
}

/// The run as samples of three kinds, each with the cycles that it lies among.
pub(super) struct Parts {
    /// From the question to the end of its answer.
    answers: Vec<Sample>,
    /// From the question to the first piece of text.
    first: Vec<Sample>,
    /// From a piece of text to the next.
    pub(super) gaps: swap_report::Run,
    /// Of all answers in the measured part.
    tokens_per_second: f64,
}

impl Parts {
    pub(super) fn of(run: &Run) -> Parts {
        let (mut answers, mut first, mut gaps) = (Vec::new(), Vec::new(), Vec::new());
        let mut tokens = 0.0;
        let sample = |from, to, stamp, outcome| Sample { intended: from, started: from, ended: to, stamp, outcome };
        for answer in &run.recording.answers {
            answers.push(sample(answer.started, answer.ended, answer.stamp, answer.outcome));
            if let Some(&came) = answer.pieces.first() {
                first.push(sample(answer.started, came, answer.stamp, Outcome::Status(200)));
            }
            let pairs = answer.pieces.windows(2);
            gaps.extend(pairs.map(|pair| sample(pair[0], pair[1], answer.stamp, Outcome::Status(200))));
            // A piece may be of more tokens than one, where a character is.
            let within = answer.pieces.iter().filter(|came| (run.from..run.until).contains(came)).count();
            tokens += answer.tokens as f64 * within as f64 / answer.pieces.len().max(1) as f64;
        }
        for samples in [&mut answers, &mut first, &mut gaps] {
            samples.sort_unstable_by_key(|sample| sample.intended);
        }
        let tokens_per_second = tokens / ((run.until - run.from).max(1) as f64 / 1e9);
        let stamps = run.recording.stamps.clone();
        let gaps = swap_report::Run {
            model: run.model.clone(),
            rate: tokens_per_second,
            capacity: None,
            steady_from: run.from,
            until: run.until,
            generator_cpu: run.generator_cpu,
            wanted: run.wanted,
            cycles: run.cycles.clone(),
            epochs: run.epochs.clone(),
            recording: Samples { samples: gaps, stamps, examples: Vec::new() },
        };
        Parts { answers, first, gaps, tokens_per_second }
    }
}

/// What a drawing of the gaps is called.
pub(super) fn words(run: &Run) -> Words {
    let switches = run.cycles.iter().filter(|cycle| cycle.answered > 0).count();
    let failed = run.recording.answers.iter().filter(|answer| !answer.outcome.ok()).count();
    let streams = run.recording.answers.len();
    Words {
        title: format!("{}: from token to token over {switches} switches in mid-sentence", run.model),
        line: format!("{} clients read streamed chats, {streams} answers, {failed} failed", run.clients),
        description: format!(
            "{} clients read streamed chats for {:.0} seconds, {streams} answers, {failed} failed.",
            run.clients,
            (run.until - run.from) as f64 / 1e9
        ),
        sample: "token",
    }
}

/// A version's gaps while nothing goes on, and while another one loads, is validated and takes over.
struct OfVersion {
    version: String,
    steady: Summary,
    takeovers: Summary,
}

impl OfVersion {
    fn ratio(&self) -> Option<f64> {
        Some((self.takeovers.p99_ms? / self.steady.p99_ms? * 100.0).round() / 100.0)
    }
}

pub(super) struct Analysis {
    /// Whole answers.
    answers: Summary,
    first: Places,
    gaps: Places,
    versions: Vec<OfVersion>,
    audit: Audit,
    prompt_tokens: u64,
    tokens: u64,
    pub(super) passed: bool,
}

impl Analysis {
    pub(super) fn of(run: &Run, parts: &Parts) -> Result<Analysis, Failure> {
        let stamps = &run.recording.stamps;
        // Without switches nothing is known of who was live when.
        let audit = match run.epochs.is_empty() {
            true => Audit { answers: run.recording.answers.len() as u64, ..Audit::default() },
            false => Audit::of(&parts.answers, stamps, &run.epochs),
        };
        let failed = parts.answers.iter().filter(|sample| !sample.outcome.ok()).count();
        let as_meant =
            run.cycles.iter().all(|cycle| cycle.error.is_none()) && parts.gaps.switches() == run.wanted as usize;
        let sum = |of: fn(&super::load::Answer) -> u64| run.recording.answers.iter().map(of).sum();
        Ok(Analysis {
            answers: Summary::of(&parts.answers)?,
            first: Places::of(&parts.gaps, &parts.first)?,
            gaps: Places::of(&parts.gaps, &parts.gaps.recording.samples)?,
            versions: versions(&parts.gaps)?,
            passed: audit.clean()
                && audit.answers > 0
                && failed == 0
                && as_meant
                && run.blocks.is_none_or(|blocks| blocks.used == 0),
            audit,
            prompt_tokens: sum(|answer| answer.prompt_tokens),
            tokens: sum(|answer| answer.tokens),
        })
    }

    pub(super) fn json(&self, run: &Run, parts: &Parts) -> Value {
        let versions = self.versions.iter().map(|of| {
            let ratio = of.ratio();
            json!({ "version": of.version, "steady": of.steady, "takeovers": of.takeovers, "p99_over_steady": ratio })
        });
        json!({
            "model": run.model, "passed": self.passed, "clients": run.clients,
            "seconds": round((run.until - run.from) as f64 / 1e9), "tokens_per_second": round(parts.tokens_per_second),
            "prompt_tokens": self.prompt_tokens, "tokens": self.tokens, "answers": self.answers,
            "compared": run.recording.compared, "first_token": self.first.json(), "between_tokens": self.gaps.json(),
            "between_tokens_by_version": versions.collect::<Vec<_>>(), "audit": self.audit,
            "switches": parts.gaps.switches(), "switches_wanted": run.wanted,
            "cache_blocks_left": run.blocks, "generator": { "cpu": run.generator_cpu.map(round) }, "examples": run.recording.examples,
            "cycles": run.cycles.iter().map(cycle_json).collect::<Vec<_>>(),
        })
    }

    pub(super) fn write(&self, run: &Run, parts: &Parts, out: &mut dyn Write) -> Result<(), Failure> {
        let seconds = (run.until - run.from) as f64 / 1e9;
        let name = printable(&run.model);
        let speed = format!("{:.1} tokens a second for {seconds:.0} s", parts.tokens_per_second);
        match run.wanted {
            0 => writeln!(out, "{name}: {} clients, {speed}", run.clients)?,
            wanted => {
                let done = parts.gaps.switches();
                writeln!(out, "{name}: {done} of {wanted} switches under {} clients, {speed}", run.clients)?;
            }
        }
        match run.wanted {
            0 => {
                let mut table = table(&["what"]);
                for (what, summary) in [
                    ("first token", &self.first.steady),
                    ("token to token", &self.gaps.steady),
                    ("whole answers", &self.answers),
                ] {
                    table.row([what.to_owned()].into_iter().chain(summary.cells()));
                }
                table.write(out)?;
            }
            _ => {
                writeln!(out, "\nfirst token")?;
                self.first.write(out)?;
                writeln!(out, "\ntoken to token")?;
                self.gaps.write(out)?;
                for of in self.versions.iter() {
                    if let (Some(steady), Some(takeovers), Some(ratio)) =
                        (of.steady.p99_ms, of.takeovers.p99_ms, of.ratio())
                    {
                        let (steady, takeovers) = (human_ms(steady), human_ms(takeovers));
                        let version = printable(&of.version);
                        writeln!(
                            out,
                            "p99 of {version}: {steady} steady, {takeovers} while another takes over ({ratio})"
                        )?;
                    }
                }
            }
        }
        writeln!(out)?;
        self.write_audit(run, out)?;
        write_memory(&parts.gaps, out)
    }

    fn write_audit(&self, run: &Run, out: &mut dyn Write) -> Result<(), Failure> {
        let audit = &self.audit;
        let mut facts: Vec<(&str, String)> = vec![
            (
                "answers, each to its finish_reason and of one version",
                (self.answers.requests - self.answers.failed()).to_string(),
            ),
            ("failures", failures_line([&self.answers]).unwrap_or_else(|| "0".to_owned())),
            ("tokens of prompts, and written", format!("{}, {}", self.prompt_tokens, self.tokens)),
        ];
        if run.recording.compared > 0 {
            facts.push(("compared with an earlier answer, and equal or failed", run.recording.compared.to_string()));
        }
        if run.wanted > 0 {
            facts.push(("begun by the old version after promote answered", audit.stale.to_string()));
            facts.push(("begun by a version not yet promoted", audit.early.to_string()));
            facts
                .push(("begun by a version never live, or without one", (audit.foreign + audit.unstamped).to_string()));
        }
        if let Some(Blocks { used, all }) = run.blocks {
            facts.push(("blocks of the cache still held afterwards", format!("{used} of {all}")));
        }
        if let Some(share) = run.generator_cpu {
            facts.push(("the generator's share of a processor", format!("{:.1} %", share * 100.0)));
        }
        for (name, value) in facts {
            writeln!(out, "{name:<54} {value}")?;
        }
        for error in run.cycles.iter().filter_map(|cycle| cycle.error.as_ref()).chain(&run.recording.examples) {
            writeln!(out, "  {}", printable(error))?;
        }
        Ok(())
    }
}

/// By version, since they need not be equally fast.
fn versions(run: &swap_report::Run) -> Result<Vec<OfVersion>, Failure> {
    let name = |stamp: &Stamp| stamp.version.clone().unwrap_or_default();
    let of = |sample: &Sample| run.recording.stamps.get(usize::from(sample.stamp)).map(name).unwrap_or_default();
    let mut names: Vec<String> =
        run.recording.stamps.iter().filter(|stamp| stamp.version.is_some()).map(name).collect();
    names.sort_unstable();
    names.dedup();
    let summary = |version: &str, wanted: &dyn Fn(&Sample) -> bool| {
        Summary::of(run.measured().filter(|sample| of(sample) == version && wanted(sample)))
    };
    let of_version = |version: String| {
        let steady = summary(&version, &|sample| place(run, sample.intended) == Place::Steady)?;
        let takeovers = summary(&version, &|sample| run.taking_over(sample))?;
        Ok(OfVersion { version, steady, takeovers })
    };
    names.into_iter().map(of_version).collect()
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
