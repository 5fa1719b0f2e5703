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
    let mut table =
        Table::new(["model", "version", "is", "share", "req/s", "p50", "p99", "answered", "faults", "waiting"]);
    for model in &models {
        rows(model, &mut table);
    }
    let mut text = Vec::new();
    // Writing to memory cannot fail.
    let _written = table.write(&mut text);
    let mut lines: Vec<String> = String::from_utf8_lossy(&text).lines().map(str::to_owned).collect();
    lines.extend(models.iter().filter_map(|model| rollout(&model["rollout"])));
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
            count("answered").to_string(),
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

/// `digits: v1 → v2 canary 2 of 3 · shadow 120 compared, agreement 0.998 · error_rate 0.0004 of 2400`.
fn rollout(rollout: &Value) -> Option<String> {
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
    let shadow = if figures["shadow_after"].is_object() { &figures["shadow_after"] } else { &figures["shadow"] };
    if let (Some(samples), Some(mean)) = (shadow["samples"].as_u64(), shadow["mean"].as_f64()) {
        line.push_str(&format!(" · shadow {samples} compared, agreement {mean:.4}"));
    }
    let undecided = |verdict: &&Value| verdict["decided"] != "pass";
    for verdict in list(&figures["verdicts"]).iter().filter(undecided) {
        let (seen, samples) = (human_value(&verdict["seen"]), human_value(&verdict["samples"]));
        line.push_str(&format!(" · {} {seen} of {samples}", human_value(&verdict["metric"])));
    }
    Some(printable(&line))
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
