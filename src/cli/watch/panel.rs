//! What goes on now, as a few lines at the foot of a terminal: who answers how much, how fast, and with how many faults.
//!
//! `lines` is pure: an overview of `GET /admin/live` in, text out. `Panel` keeps it below the events that scroll by.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use super::super::output::{human_bytes, human_ms, human_value, printable};
use super::super::table::Table;

/// Ends of a rollout, after which there is nothing to watch of it.
const ENDS: [&str; 6] = ["settled", "refused", "failed", "aborted", "rolled_back", "interrupted"];

/// Lines that are drawn over; each is cut at the terminal's edge.
#[derive(Debug)]
pub(super) struct Panel {
    whole: MultiProgress,
    lines: Vec<ProgressBar>,
}

impl Panel {
    pub(super) fn new() -> Panel {
        Panel { whole: MultiProgress::with_draw_target(ProgressDrawTarget::stdout()), lines: Vec::new() }
    }

    pub(super) fn show(&mut self, overview: &Value, model: Option<&str>) {
        let told = lines(overview, model);
        while self.lines.len() > told.len() {
            if let Some(bar) = self.lines.pop() {
                bar.finish_and_clear();
                self.whole.remove(&bar);
            }
        }
        while self.lines.len() < told.len() {
            let style = ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
            self.lines.push(self.whole.add(ProgressBar::new_spinner().with_style(style)));
        }
        for (bar, line) in self.lines.iter().zip(told) {
            bar.set_message(line);
        }
    }

    /// Lets a line scroll by above.
    pub(super) fn pass(&self, line: &str) -> std::io::Result<()> {
        self.whole.println(line)
    }
}

/// The models' generations as a table, their rollouts and experiments, and the memory.
pub(super) fn lines(overview: &Value, model: Option<&str>) -> Vec<String> {
    let of = |told: &&Value| model.is_none_or(|model| told["name"].as_str() == Some(model));
    let models: Vec<&Value> = list(&overview["models"]).iter().filter(of).collect();
    let mut table = Table::new(["model", "version", "is", "share", "req/s", "p50", "p99", "faults", "waiting"]);
    for model in &models {
        rows(model, &mut table);
    }
    let mut text = Vec::new();
    // Writing to memory cannot fail.
    let _written = table.write(&mut text);
    let mut lines: Vec<String> = String::from_utf8_lossy(&text).lines().map(str::to_owned).collect();
    let now = overview["at_ms"].as_i64();
    lines.extend(models.iter().filter_map(|model| rollout(&model["rollout"], now)));
    lines.extend(memory(&overview["memory"]));
    if overview["ready"] == false {
        lines.push("not ready".to_owned());
    }
    lines
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn rows(model: &Value, table: &mut Table) {
    let name = human_value(&model["name"]);
    let generations = list(&model["generations"]);
    for generation in generations {
        let role = generation["role"].as_str().unwrap_or("-");
        let ms = |field: &str| generation[field].as_f64().map_or_else(|| "-".to_owned(), human_ms);
        let count = |field: &str| generation[field].as_u64().unwrap_or(0);
        table.row([
            name.clone(),
            human_value(&generation["version"]),
            role.to_owned(),
            share(&model["rollout"], role)
                .map_or_else(|| "-".to_owned(), |share| format!("{} %", human_value(&share.into()))),
            format!("{:.1}", generation["per_second"].as_f64().unwrap_or(0.0)),
            ms("p50_ms"),
            ms("p99_ms"),
            (count("blamed") + count("unexplained")).to_string(),
            count("waiting").to_string(),
        ]);
    }
    // One that loads and answers nothing yet, or a model without any.
    match (model["candidate"]["version"].as_str(), generations.is_empty()) {
        (Some(version), _) if !generations.iter().any(|generation| generation["role"] == "candidate") => {
            table.row([&name, version, model["candidate"]["phase"].as_str().unwrap_or("candidate")]);
        }
        (None, true) => table.row([&name, "-", model["not_serving"].as_str().unwrap_or("nothing is live")]),
        _ => {}
    }
}

/// Percent of requests, where they are shared.
fn share(rollout: &Value, role: &str) -> Option<f64> {
    let figures = &rollout["figures"];
    let candidate = match rollout["phase"].as_str()? {
        "canary" => figures["canary"]["percent"].as_f64()?,
        "experiment" => {
            let arm = list(&figures["experiment"]["arms"]).iter().find(|arm| arm["version"] == rollout["to"])?;
            arm["weight"].as_f64()?
        }
        _ => return None,
    };
    match role {
        "candidate" => Some(candidate),
        "live" => Some(100.0 - candidate),
        _ => None,
    }
}

/// `digits: v1 → v2 canary 2 of 3, 14.00 s · shadow 120 compared, agreement 0.998 · p99 2.54 ms in 2400`.
fn rollout(rollout: &Value, now: Option<i64>) -> Option<String> {
    let phase = rollout["phase"].as_str().filter(|phase| !ENDS.contains(phase))?;
    let from = rollout["from"].as_str().unwrap_or("nothing");
    let mut line = format!("{}: {from} → {} {phase}", human_value(&rollout["model"]), human_value(&rollout["to"]));
    if let (Some(done), Some(total)) = (rollout["progress"]["done"].as_u64(), rollout["progress"]["total"].as_u64()) {
        line.push_str(&format!(" {} of {}", human_bytes(done), human_bytes(total)));
    }
    let figures = &rollout["figures"];
    match phase {
        "canary" => {
            let canary = &figures["canary"];
            line.push_str(&format!(" {} of {}", human_value(&canary["step"]), list(&canary["steps"]).len()));
        }
        "experiment" => line.push_str(&format!(" '{}'", human_value(&figures["experiment"]["name"]))),
        _ => {}
    }
    if let Some(ms) = since(rollout, now) {
        line.push_str(&format!(", {}", human_ms(ms as f64)));
    }
    let shadow = if figures["shadow_after"].is_object() { &figures["shadow_after"] } else { &figures["shadow"] };
    if let (Some(samples), Some(mean)) = (shadow["samples"].as_u64(), shadow["mean"].as_f64()) {
        line.push_str(&format!(" · shadow {samples} compared, agreement {mean:.4}"));
    }
    let undecided = |verdict: &&Value| verdict["decided"] != "pass";
    for verdict in list(&figures["verdicts"]).iter().filter(undecided) {
        let seen = match (verdict["seen"].as_f64(), verdict["unit"].as_str()) {
            (Some(ms), Some("ms")) => human_ms(ms),
            _ => human_value(&verdict["seen"]),
        };
        let (rule, samples) = (human_value(&verdict["rule"]), human_value(&verdict["samples"]));
        line.push_str(&format!(" · {rule} {seen} in {samples}"));
        if let Some(broken @ ("breaking" | "breach")) = verdict["decided"].as_str() {
            line.push_str(&format!(" ({broken})"));
        }
    }
    Some(printable(&line))
}

/// Milliseconds for which it has been in its phase.
fn since(rollout: &Value, now: Option<i64>) -> Option<i64> {
    let before: i64 = list(&rollout["phases"]).iter().filter_map(|phase| phase["ms"].as_i64()).sum();
    Some((now? - rollout["started_ms"].as_i64()? - before).max(0))
}

fn memory(memory: &Value) -> Option<String> {
    let (reserved, capacity) = (memory["reserved"].as_u64()?, memory["capacity"].as_u64()?);
    let mut line =
        format!("{}: {} of {} reserved", human_value(&memory["device"]), human_bytes(reserved), human_bytes(capacity));
    if let Some(resident) = memory["process_resident"].as_u64() {
        line.push_str(&format!(", process {}", human_bytes(resident)));
    }
    if let Some(free) = memory["vram"]["free"].as_u64() {
        line.push_str(&format!(", GPU {} free", human_bytes(free)));
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn generation(role: &str, version: &str, blamed: u64) -> Value {
        json!({"role": role, "version": version, "generation": 1, "waiting": 2, "per_second": 44.75, "answered": 519,
            "blamed": blamed, "unexplained": 1, "p50_ms": 0.515, "p99_ms": if blamed > 0 { json!(3.4) } else { json!(null) }})
    }

    #[test]
    fn shares_rates_and_faults_stand_in_a_table_and_a_rollout_that_goes_on_below() {
        let digits = json!({
            "name": "digits", "candidate": {"version": "v2", "phase": "canary"},
            "generations": [generation("live", "v1", 0), generation("candidate", "v2", 3)],
            "rollout": {"model": "digits", "from": "v1", "to": "v2", "phase": "canary", "started_ms": 1_000,
                "phases": [{"phase": "loading", "ms": 500}, {"phase": "canary", "ms": 0}],
                "figures": {"canary": {"percent": 25, "step": 1, "steps": [25, 50]},
                    "shadow": {"samples": 94, "mean": 0.992},
                    "verdicts": [
                        {"rule": "p99 latency", "unit": "ms", "decided": "undecided", "seen": 2.4631, "samples": 471},
                        {"rule": "p50 latency", "unit": "ms", "decided": "breaking", "seen": 1.5, "samples": 471},
                        {"rule": "error rate", "unit": "share", "decided": "pass", "seen": 0, "samples": 471}]}},
        });
        let loads = json!({"name": "mini", "candidate": {"version": "f16", "phase": "loading"}, "generations": [],
            "rollout": {"model": "mini", "to": "f16", "phase": "loading", "started_ms": 14_500, "phases": [],
                "progress": {"done": 1_048_576, "total": 4_194_304}, "figures": {}}});
        let ended = json!({"name": "old", "not_serving": "no version", "generations": [],
            "rollout": {"model": "old", "to": "v1", "phase": "refused", "figures": {}}});
        let overview = json!({"at_ms": 15_500, "ready": false, "models": [digits, loads, ended],
            "memory": {"device": "cpu", "reserved": 2048, "capacity": 4096, "process_resident": 1024}});
        insta::assert_snapshot!(lines(&overview, None).join("\n"), @r"
        model   version  is          share  req/s       p50      p99  faults  waiting
        digits  v1       live         75 %   44.8  0.515 ms        -       1        2
        digits  v2       candidate    25 %   44.8  0.515 ms  3.40 ms       4        2
        mini    f16      loading
        old     -        no version
        digits: v1 → v2 canary 1 of 2, 14.00 s · shadow 94 compared, agreement 0.9920 · p99 latency 2.46 ms in 471 · p50 latency 1.50 ms in 471 (breaking)
        mini: nothing → f16 loading 1.00 MiB of 4.00 MiB, 1.00 s
        cpu: 2.00 KiB of 4.00 KiB reserved, process 1.00 KiB
        not ready
        ");
        assert_eq!(lines(&overview, Some("old"))[1], "old    -        no version");
    }
}
