//! A rollout as the server tells it (DESIGN §7), following one to its end, and its summary.

use std::io::{self, Write};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::client::{Events, Reply};
use super::diff::{self, write_differences};
use super::output::{Failure, Refusal, human_field, human_ms, human_value, printable};
use super::table::Table;

/// The body of a rollout. Fields that a server leaves out are empty, and more may come.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Rollout {
    pub id: String,
    pub model: String,
    pub from: Option<String>,
    pub to: String,
    pub phase: String,
    pub reason: Option<String>,
    pub kind: Option<String>,
    pub actor: Option<String>,
    pub started: Option<String>,
    pub phases: Vec<PhaseAt>,
    pub gate: Vec<GateCheck>,
    /// As it is told; what cannot be read of it is not shown.
    pub diff: Value,
    pub figures: Map<String, Value>,
    pub error: Option<Value>,
    /// Only in progress events.
    pub progress: Option<Bytes>,
    pub warnings: Vec<String>,
    /// It was so already, and there is no rollout.
    pub unchanged: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct PhaseAt {
    pub phase: String,
    pub at: String,
    /// Time spent in the phase; 0 while it lasts.
    pub ms: f64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct GateCheck {
    pub check: String,
    pub passed: bool,
    pub measure: Value,
    pub limit: Value,
    pub case: Option<String>,
    pub message: Option<String>,
}

/// How far the current phase is, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Bytes {
    pub done: u64,
    pub total: u64,
}

impl Rollout {
    pub(super) fn read(value: &Value) -> Result<Rollout, Failure> {
        Rollout::deserialize(value).map_err(|e| Failure::Failed(format!("not a rollout: {e}")))
    }

    /// The version asked for did not become live, or did not stay so.
    pub(super) fn failed(&self) -> bool {
        matches!(self.phase.as_str(), "refused" | "failed" | "aborted" | "rolled_back" | "interrupted")
    }

    /// `digits: v1 → v2 observing`.
    pub(super) fn headline(&self) -> String {
        if self.unchanged {
            return printable(&format!("{}: {} is live and settled already; nothing changed", self.model, self.to));
        }
        let from = self.from.as_deref().unwrap_or("nothing");
        // A rollback within the window belongs to the rollout that it undoes.
        let undone = self.phase == "rolled_back" || self.kind.as_deref().is_some_and(|kind| kind != "cold");
        let back = undone && self.from.is_some();
        let (from, to) = if back { (self.to.as_str(), from) } else { (from, self.to.as_str()) };
        let mut line = format!("{}: {from} → {to} {}", self.model, self.phase);
        if let Some(kind) = &self.kind {
            line.push_str(&format!(" ({kind})"));
        }
        if let Some(reason) = self.reason.as_deref().filter(|reason| !reason.is_empty()) {
            line.push_str(&format!(": {reason}"));
        }
        printable(&line)
    }

    /// Everything worth knowing, as tables.
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", self.headline())?;
        if !self.id.is_empty() {
            writeln!(out, "rollout {}", printable(&self.id))?;
        }
        if let Some(error) = self.error.as_ref().filter(|error| !error.is_null()) {
            let message = error["message"].as_str().map_or_else(|| human_value(error), printable);
            writeln!(out, "error: {message}")?;
        }
        for warning in &self.warnings {
            writeln!(out, "warning: {}", printable(warning))?;
        }
        self.write_phases(out)?;
        write_differences(&diff::rows(&self.diff), out)?;
        write_gate(&self.gate, out)?;
        write_figures(&self.figures, out)
    }

    fn write_phases(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.phases.is_empty() {
            return Ok(());
        }
        let mut table = Table::new(["phase", "at", "took"]).indented(2);
        for (index, phase) in self.phases.iter().enumerate() {
            let lasts = index + 1 == self.phases.len() && phase.ms == 0.0;
            let took = if lasts { "-".to_owned() } else { human_ms(phase.ms) };
            table.row([phase.phase.as_str(), phase.at.as_str(), took.as_str()]);
        }
        table.write(out)
    }
}

/// Gate results: checks that passed in one row each, every case that failed in a row of its own.
pub(super) fn write_gate(gate: &[GateCheck], out: &mut dyn Write) -> io::Result<()> {
    if gate.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(["gate", "case", "measure", "limit", "result"]).indented(2);
    let mut names: Vec<&str> = Vec::new();
    for check in gate {
        if !names.contains(&check.check.as_str()) {
            names.push(&check.check);
        }
    }
    for name in names {
        let all: Vec<&GateCheck> = gate.iter().filter(|check| check.check == name).collect();
        let passed: Vec<&&GateCheck> = all.iter().filter(|check| check.passed).collect();
        match passed.as_slice() {
            [] => {}
            [one] if all.len() == 1 => table.row(gate_row(one, "passed")),
            several => {
                let count = format!("{} of {}", several.len(), all.len());
                table.row([name, &count, "", "", "passed"]);
            }
        }
        for failed in all.iter().filter(|check| !check.passed) {
            table.row(gate_row(failed, failed.message.as_deref().unwrap_or("FAILED")));
        }
    }
    table.write(out)
}

fn gate_row(check: &GateCheck, result: &str) -> [String; 5] {
    let case = check.case.clone().unwrap_or_default();
    let result = if check.passed || result == "FAILED" { result.to_owned() } else { format!("FAILED: {result}") };
    [check.check.clone(), case, human_value(&check.measure), human_value(&check.limit), result]
}

pub(super) fn write_figures(figures: &Map<String, Value>, out: &mut dyn Write) -> io::Result<()> {
    if figures.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(["figure", "value"]).indented(2);
    for (name, value) in figures.iter().filter(|(name, _)| *name != "verdicts") {
        flatten(name, value, &mut table);
    }
    if !table.is_empty() {
        table.write(out)?;
    }
    write_verdicts(figures.get("verdicts"), out)
}

/// A figure a row, those of an object by names with dots; long lists are left to `--json`.
fn flatten(name: &str, value: &Value, table: &mut Table) {
    const LONGEST: usize = 8;
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(field, value)| flatten(&format!("{name}.{field}"), value, table));
        }
        Value::Array(items) if items.len() <= LONGEST && items.iter().all(|item| !item.is_object()) => {
            table.row([name, &items.iter().map(human_value).collect::<Vec<_>>().join(", ")]);
        }
        Value::Array(items) if items.len() <= LONGEST => {
            items.iter().enumerate().for_each(|(at, item)| flatten(&format!("{name}.{at}"), item, table));
        }
        Value::Array(_) | Value::Null => {}
        scalar => table.row([name, &human_field(name, scalar)]),
    }
}

/// What the rules of a window or a share say.
fn write_verdicts(verdicts: Option<&Value>, out: &mut dyn Write) -> io::Result<()> {
    let Some(Value::Array(verdicts)) = verdicts else { return Ok(()) };
    let mut table = Table::new(["rule", "seen", "limit", "samples", "before or beside", "verdict"]).indented(2);
    for verdict in verdicts {
        let told = |field: &str| match (verdict[field].as_f64(), verdict["unit"].as_str()) {
            (Some(ms), Some("ms")) => human_ms(ms),
            _ => human_value(&verdict[field]),
        };
        let cells = [human_value(&verdict["rule"]), told("seen"), told("limit"), human_value(&verdict["samples"])];
        table.row(cells.into_iter().chain([told("against"), human_value(&verdict["decided"])]));
    }
    if table.is_empty() { Ok(()) } else { table.write(out) }
}

/// The details of an error: the gate's failing cases, or the facts as they are where its message does not name them all.
pub(super) fn write_details(message: &str, details: &Value, out: &mut dyn Write) -> io::Result<()> {
    if let Some(gate) = find_gate(details) {
        return write_gate(&gate, out);
    }
    let named = |fact: &Value| fact.as_str().is_some_and(|fact| names(message, fact));
    let told = |fact: &Value| named(fact) || fact.as_array().is_some_and(|facts| facts.iter().all(named));
    match details {
        Value::Null => Ok(()),
        Value::Object(facts) if facts.keys().all(|key| key == "param") => Ok(()),
        Value::Object(facts) if facts.values().all(told) => Ok(()),
        Value::Object(facts) => write_figures(facts, out),
        other => writeln!(out, "  {}", human_value(other)),
    }
}

/// Whether a message has such words, and not only as a part of others.
fn names(message: &str, fact: &str) -> bool {
    let is_part = |other: Option<char>| other.is_some_and(|other| other.is_alphanumeric());
    message.match_indices(fact).any(|(at, _)| {
        !is_part(message[..at].chars().next_back()) && !is_part(message[at + fact.len()..].chars().next())
    })
}

/// The list of gate results, wherever in the details it is (the details are a rollout, or hold one).
fn find_gate(value: &Value) -> Option<Vec<GateCheck>> {
    match value {
        Value::Array(items) if items.iter().any(|item| item["check"].is_string() && item["passed"].is_boolean()) => {
            Vec::<GateCheck>::deserialize(value).ok()
        }
        Value::Object(fields) => fields.values().find_map(find_gate),
        _ => None,
    }
}

/// Follows a rollout until the server says how it ended; gives its last body.
pub(super) async fn follow(reply: Reply, on_progress: &mut dyn FnMut(&Rollout)) -> Result<Value, Failure> {
    let mut on = |rollout: &Rollout| {
        on_progress(rollout);
        false
    };
    follow_until(reply, &mut on).await
}

/// Follows a rollout until `enough` says so, or the server how it ended; gives its last body.
pub(super) async fn follow_until(reply: Reply, enough: &mut dyn FnMut(&Rollout) -> bool) -> Result<Value, Failure> {
    match reply {
        Reply::Json(value) => Ok(value),
        Reply::Events(mut events) => loop {
            let Some(event) = events.next().await? else {
                return Err(ended_early(&events));
            };
            let body: Value = serde_json::from_str(&event.data).map_err(|e| Failure::Protocol {
                url: events.url().to_owned(),
                reason: format!("a {} event that is not JSON: {e}", event.event),
            })?;
            match event.event.as_str() {
                "progress" if enough(&Rollout::read(&body)?) => return Ok(body),
                "done" => return Ok(body),
                // The stream began with 200, so the refusal has no status of its own.
                "error" => return Err(Failure::Refused(Box::new(Refusal::read(200, event.data.as_bytes())))),
                // Kinds to come.
                _ => {}
            }
        },
    }
}

fn ended_early(events: &Events) -> Failure {
    Failure::Protocol {
        url: events.url().to_owned(),
        reason: "the stream ended before the rollout did; `cutover status` tells where it is".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_rollout_is_summed_up_with_its_gate_and_figures() {
        let rollout = Rollout::read(&json!({
            "id": "r7", "model": "digits", "from": "v1", "to": "v2", "phase": "observing", "reason": null,
            "kind": null, "started": "2026-01-01T00:00:00.000Z", "unheard_of": [1],
            "phases": [{"phase": "loading", "at": "00:00:00.000", "ms": 120}, {"phase": "observing", "at": "00:00:00.120", "ms": 0}],
            "gate": [
                {"check": "finite", "passed": true, "measure": 0, "limit": 0, "case": null},
                {"check": "golden", "passed": true, "measure": 0.99, "limit": 0.5, "case": "a"},
                {"check": "golden", "passed": true, "measure": 0.98, "limit": 0.5, "case": "b"}
            ],
            "diff": [{"what": "config.hidden_size", "severity": "notable", "message": "config: hidden_size is 64, and was 32"}],
            "figures": {
                "downtime_ms": 0.0, "weight_bytes": 2097152,
                "canary": {"percent": 25, "steps": [5, 25], "live": null}, "shadow": {"histogram": [0, 0, 0, 0, 0, 0, 0, 0, 1]},
                "verdicts": [{"rule": "p99 latency", "unit": "ms", "decided": "undecided", "seen": 2.4631, "limit": 33.26,
                    "samples": 471, "against": 1.663, "significance": 1.0}]
            }
        }))
        .unwrap();
        insta::assert_snapshot!(text(|out| rollout.write(out)), @r"
        digits: v1 → v2 observing
        rollout r7
          phase      at                took
          loading    00:00:00.000  120.0 ms
          observing  00:00:00.120         -
          changes  what
          notable  config.hidden_size  config: hidden_size is 64, and was 32
          gate    case    measure  limit  result
          finite                0      0  passed
          golden  2 of 2                  passed
          figure          value
          downtime_ms     0 ms
          weight_bytes    2.00 MiB
          canary.percent  25
          canary.steps    5, 25
          rule            seen    limit  samples  before or beside  verdict
          p99 latency  2.46 ms  33.3 ms      471           1.66 ms  undecided
        ");
    }

    #[test]
    fn every_failing_case_of_a_refusal_is_shown_wherever_the_gate_is() {
        let gate = json!([
            {"check": "golden", "passed": true, "measure": 0.9, "limit": 0.5, "case": "a"},
            {"check": "golden", "passed": false, "measure": 0.1, "limit": 0.5, "case": "b"},
            {"check": "golden", "passed": false, "measure": null, "limit": 0.5, "case": "c", "message": "not finite"}
        ]);
        for details in [json!({ "rollout": { "gate": gate } }), json!({ "checks": gate }), gate.clone()] {
            let shown = text(|out| write_details("the gate refused it", &details, out));
            assert!(shown.contains("1 of 3"), "{shown}");
            assert!(shown.contains("b") && shown.contains("0.1"), "{shown}");
            assert!(shown.contains("FAILED: not finite"), "{shown}");
            assert_eq!(shown.matches("FAILED").count(), 2, "{shown}");
        }
    }

    #[test]
    fn facts_that_the_message_names_are_not_told_twice() {
        let message = "no model or version is called 'v9'; known: v1, v2, v10";
        let known = |known: Value| text(|out| write_details(message, &json!({ "known": known }), out));
        assert_eq!(known(json!(["v1", "v2", "v10"])), "");
        assert!(known(json!(["v1", "v3"])).contains("v3") && known(json!(["v", "v0"])).contains("v0"));
        let facts = json!({ "rollout": "digits-3", "to": "v2", "phase": "observing" });
        let message = "rollout digits-3 of 'digits' to 'v2' goes on (observing); 'v3' has to wait";
        assert_eq!(text(|out| write_details(message, &facts, out)), "");
        assert!(text(|out| write_details("busy", &facts, out)).contains("observing"));
    }
}
