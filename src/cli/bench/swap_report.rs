//! What a swap bench found: latency by phase, the audit, memory from cycle to cycle. Pure.

use std::io::Write;

use serde_json::{Map, Value, json};

use super::super::output::{Failure, human_bytes, human_ms, is_bytes, printable};
use super::super::table::Table;
use super::audit::{Audit, Epoch};
use super::driver::{Cycle, Memory};
use super::load::{Recording, Sample};
use super::report::{self, Summary, failures_line, lag_p99_ms, round};

/// Requests this close to a switch are looked at on their own.
pub(super) const NEAR_NS: u64 = 100_000_000;
/// Rows of memory in the table; the JSON has them all.
const MEMORY_ROWS: usize = 12;

/// A finished run, as recorded. Times are nanoseconds of its clock.
#[derive(Debug)]
pub(super) struct Run {
    pub model: String,
    pub rate: f64,
    pub capacity: Option<f64>,
    pub steady_from: u64,
    pub until: u64,
    pub generator_cpu: Option<f64>,
    /// Switches that were asked for.
    pub wanted: u32,
    pub cycles: Vec<Cycle>,
    pub epochs: Vec<Epoch>,
    pub recording: Recording,
}

impl Run {
    /// Cycles whose promote answered.
    pub(super) fn switched(&self) -> impl Iterator<Item = &Cycle> {
        self.cycles.iter().filter(|cycle| cycle.answered > 0)
    }

    /// Those of them that were meant to last.
    pub(super) fn switches(&self) -> usize {
        self.switched().filter(|cycle| cycle.mishap.is_none()).count()
    }

    /// Samples that should have begun in the measured part.
    pub(super) fn measured(&self) -> impl Iterator<Item = &Sample> {
        self.recording.samples.iter().filter(|sample| self.is_measured(sample))
    }

    pub(super) fn is_measured(&self, sample: &Sample) -> bool {
        (self.steady_from..self.until).contains(&sample.intended)
    }

    /// The cycles that had begun by then, the latest one first. Cycles follow each other and never overlap.
    fn begun_by(&self, at: u64) -> impl Iterator<Item = &Cycle> {
        self.cycles[..self.cycles.partition_point(|cycle| cycle.asked <= at)].iter().rev()
    }

    pub(super) fn taking_over(&self, sample: &Sample) -> bool {
        self.begun_by(sample.intended).next().is_some_and(|cycle| sample.intended < cycle.answered)
    }

    fn near_switch(&self, sample: &Sample) -> bool {
        let (from, to) = (sample.intended.saturating_sub(NEAR_NS), sample.ended + NEAR_NS);
        let recent = self.begun_by(to).take_while(|cycle| cycle.asked.max(cycle.answered) >= from);
        recent.filter(|cycle| cycle.answered > 0).any(|cycle| (from..=to).contains(&cycle.answered))
    }
}

/// Where in the run a request falls, by when it should have begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place<'a> {
    /// Nothing is going on: before the first rollout, and from the end of one to the next. Steady pieces lie between
    /// the rollouts because a machine that is shared with others changes its speed from one minute to the next.
    Steady,
    Phase(&'a str),
}

pub(super) fn place(run: &Run, at: u64) -> Place<'_> {
    let Some(cycle) = run.begun_by(at).next() else { return Place::Steady };
    match cycle.spans.iter().find(|span| span.from <= at && at < span.to) {
        Some(span) => Place::Phase(&span.phase),
        None => Place::Steady,
    }
}

/// Latency by where in a run requests (or whatever else takes time) fall.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) steady: Summary,
    rollouts: Summary,
    /// From a promote to its answer: green loads, is validated and takes over.
    takeovers: Summary,
    near: Summary,
    /// By phase, in the order of their first appearance, with the time spent in it over all cycles (ms).
    phases: Vec<(String, f64, Summary)>,
}

impl Places {
    /// Of samples that should have begun in the measured part.
    pub(super) fn of(run: &Run, samples: &[Sample]) -> Result<Places, Failure> {
        let measured = || samples.iter().filter(|sample| run.is_measured(sample));
        let in_place = |wanted: fn(Place<'_>) -> bool| {
            Summary::of(measured().filter(|sample| wanted(place(run, sample.intended))))
        };
        Ok(Places {
            steady: in_place(|place| place == Place::Steady)?,
            rollouts: in_place(|place| matches!(place, Place::Phase(_)))?,
            takeovers: Summary::of(measured().filter(|sample| run.taking_over(sample)))?,
            near: Summary::of(measured().filter(|sample| run.near_switch(sample)))?,
            phases: phases(run, measured())?,
        })
    }

    pub(super) fn json(&self) -> Value {
        let phases = self
            .phases
            .iter()
            .map(|(phase, ms, summary)| json!({ "phase": phase, "ms": round(*ms), "latency": summary }));
        let (takeovers, rollouts) = self.p99_ratios();
        json!({
            "steady": self.steady, "rollouts": self.rollouts, "takeovers": self.takeovers, "near_switch": self.near,
            "p99_over_steady": { "takeovers": takeovers, "rollouts": rollouts }, "phases": phases.collect::<Vec<_>>(),
        })
    }

    pub(super) fn write(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let mut table = report::table(&["when", "time"]);
        let mut row = |name: &str, ms: Option<f64>, summary: &Summary| {
            let ms = ms.map_or_else(String::new, human_ms);
            table.row([name.to_owned(), ms].into_iter().chain(summary.cells()));
        };
        row("steady", None, &self.steady);
        row("during rollouts", None, &self.rollouts);
        for (phase, ms, summary) in &self.phases {
            row(&format!("  {phase}"), Some(*ms), summary);
        }
        row("from promote to its answer", None, &self.takeovers);
        row("100 ms round a switch", None, &self.near);
        table.write(out)?;
        if let (Some(takeovers), Some(rollouts)) = self.p99_ratios() {
            writeln!(out, "p99 over steady: {takeovers} from promote to its answer, {rollouts} during rollouts")?;
        }
        Ok(())
    }

    /// p99 over that of the steady pieces: from promote to its answer, and during whole rollouts.
    pub(super) fn p99_ratios(&self) -> (Option<f64>, Option<f64>) {
        let over = |part: &Summary| Some((part.p99_ms? / self.steady.p99_ms? * 100.0).round() / 100.0);
        (over(&self.takeovers), over(&self.rollouts))
    }
}

#[derive(Debug)]
pub(super) struct Analysis {
    places: Places,
    audit: Audit,
    /// The longest time without a successful answer, in milliseconds: steady, and during rollouts.
    longest_gap_ms: (f64, f64),
    lag_p99_ms: f64,
    pub passed: bool,
}

impl Analysis {
    pub(super) fn of(run: &Run) -> Result<Analysis, Failure> {
        let audit = Audit::of(&run.recording.samples, &run.recording.stamps, &run.epochs);
        let failed = run.recording.samples.iter().filter(|sample| !sample.outcome.ok()).count();
        let as_meant = run.cycles.iter().all(|cycle| cycle.error.is_none()) && run.switches() == run.wanted as usize;
        let passed = audit.clean() && audit.answers > 0 && failed == 0 && as_meant;
        Ok(Analysis {
            places: Places::of(run, &run.recording.samples)?,
            longest_gap_ms: longest_gaps(run),
            lag_p99_ms: lag_p99_ms(run.measured())?,
            audit,
            passed,
        })
    }

    pub(super) fn json(&self, run: &Run) -> Value {
        let (steady_gap, rollout_gap) = self.longest_gap_ms;
        let mut told = json!({
            "model": run.model, "passed": self.passed, "rate": round(run.rate), "capacity": run.capacity.map(round),
            "seconds": round((run.until - run.steady_from) as f64 / 1e9), "requests": run.recording.samples.len(),
            "switches": run.switches(), "switches_wanted": run.wanted,
            "audit": self.audit, "longest_gap_ms": { "steady": steady_gap, "rollouts": rollout_gap },
            "generator": { "cpu": run.generator_cpu.map(round), "lag_p99_ms": self.lag_p99_ms },
            "examples": run.recording.examples, "cycles": run.cycles.iter().map(cycle_json).collect::<Vec<_>>(),
        });
        super::merge(&mut told, self.places.json());
        told
    }

    pub(super) fn write(&self, run: &Run, out: &mut dyn Write) -> Result<(), Failure> {
        let seconds = (run.until - run.steady_from) as f64 / 1e9;
        let capacity =
            run.capacity.map_or_else(String::new, |most| format!(" ({:.0} % of {most:.1})", run.rate / most * 100.0));
        writeln!(
            out,
            "{}: {} of {} switches under {:.1} requests a second{capacity} for {seconds:.0} s",
            printable(&run.model),
            run.switches(),
            run.wanted,
            run.rate
        )?;
        self.places.write(out)?;
        writeln!(out)?;
        self.write_audit(run, out)?;
        write_memory(run, out)
    }

    fn write_audit(&self, run: &Run, out: &mut dyn Write) -> Result<(), Failure> {
        let audit = &self.audit;
        let (steady_gap, rollout_gap) = self.longest_gap_ms;
        let mut facts: Vec<(&str, String)> = vec![
            ("answers", audit.answers.to_string()),
            ("failures", failures_line(&[Summary::of(&run.recording.samples)?]).unwrap_or_else(|| "0".to_owned())),
            ("served by the old version after promote answered", audit.stale.to_string()),
            ("served by a version not yet promoted", audit.early.to_string()),
            ("served by a version never live", audit.foreign.to_string()),
            ("without a version", audit.unstamped.to_string()),
            ("longest time without an answer, steady", human_ms(steady_gap)),
            ("longest time without an answer, rollouts", human_ms(rollout_gap)),
            ("requests began late by (p99)", human_ms(self.lag_p99_ms)),
        ];
        if audit.stale > 0 {
            facts.push(("the latest of the old version's began after", human_ms(audit.worst_stale_ms)));
        }
        if let Some(share) = run.generator_cpu {
            facts.push(("the generator's share of a processor", format!("{:.1} %", share * 100.0)));
        }
        for (name, value) in facts {
            writeln!(out, "{name:<50} {value}")?;
        }
        for error in run.cycles.iter().filter_map(|cycle| cycle.error.as_ref()).chain(&run.recording.examples) {
            writeln!(out, "  {}", printable(error))?;
        }
        Ok(())
    }
}

fn phases<'a>(run: &Run, measured: impl Iterator<Item = &'a Sample>) -> Result<Vec<(String, f64, Summary)>, Failure> {
    let mut found: Vec<(String, f64, Vec<Sample>)> = Vec::new();
    for span in run.cycles.iter().flat_map(|cycle| &cycle.spans) {
        let ms = span.to.saturating_sub(span.from) as f64 / 1e6;
        match found.iter_mut().find(|(phase, ..)| *phase == span.phase) {
            Some((_, total, _)) => *total += ms,
            None => found.push((span.phase.clone(), ms, Vec::new())),
        }
    }
    for sample in measured {
        if let Place::Phase(phase) = place(run, sample.intended)
            && let Some((.., samples)) = found.iter_mut().find(|(known, ..)| known == phase)
        {
            samples.push(*sample);
        }
    }
    found.into_iter().map(|(phase, ms, samples)| Ok((phase, ms, Summary::of(&samples)?))).collect()
}

fn longest_gaps(run: &Run) -> (f64, f64) {
    let mut ends: Vec<u64> = run.measured().filter(|sample| sample.outcome.ok()).map(|sample| sample.ended).collect();
    ends.sort_unstable();
    let (mut steady, mut rollouts) = (0, 0);
    for pair in ends.windows(2) {
        let gap = pair[1] - pair[0];
        // A gap that reaches into a rollout is the rollout's.
        match (place(run, pair[0]), place(run, pair[1])) {
            (Place::Steady, Place::Steady) => steady = steady.max(gap),
            _ => rollouts = rollouts.max(gap),
        }
    }
    (round(steady as f64 / 1e6), round(rollouts as f64 / 1e6))
}

pub(super) fn cycle_json(cycle: &Cycle) -> Value {
    let ms = |from: u64, to: u64| (to > from).then(|| round((to - from) as f64 / 1e6));
    let phases: Map<String, Value> =
        cycle.spans.iter().map(|span| (span.phase.clone(), json!(ms(span.from, span.to).unwrap_or(0.0)))).collect();
    let mut told = json!({
        "from": cycle.from, "to": cycle.to, "at_ms": round(cycle.asked as f64 / 1e6),
        "promote_ms": ms(cycle.asked, cycle.answered), "whole_ms": ms(cycle.asked, cycle.settled), "phases": phases,
        "figures": cycle.figures, "memory_before": cycle.before, "memory_after": cycle.after, "error": cycle.error,
    });
    if let Some(mishap) = &cycle.mishap {
        told["mishap"] = json!(mishap);
    }
    told
}

/// Memory before the first cycle, after the first, the middle and the last one: a leak would climb.
pub(super) fn write_memory(run: &Run, out: &mut dyn Write) -> Result<(), Failure> {
    let done: Vec<&Cycle> = run.cycles.iter().filter(|cycle| !cycle.after.is_empty()).collect();
    let (Some(first), Some(last)) = (done.first(), done.last()) else { return Ok(()) };
    let middle = done[done.len() / 2];
    let mut table = Table::new(["memory", "before", "after the 1st", "half-way", "after the last", "most after one"]);
    let shown =
        first.before.keys().filter(|name| is_bytes(name) && done.iter().all(|cycle| cycle.after.contains_key(*name)));
    for name in shown.take(MEMORY_ROWS) {
        let of = |memory: &Memory| memory.get(name).copied().unwrap_or_default();
        let most = done.iter().map(|cycle| of(&cycle.after)).max().unwrap_or_default();
        let cells = [of(&first.before), of(&first.after), of(&middle.after), of(&last.after), most].map(human_bytes);
        table.row([name.clone()].into_iter().chain(cells));
    }
    if !table.is_empty() {
        writeln!(out)?;
        table.write(out)?;
    }
    Ok(())
}
