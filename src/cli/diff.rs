//! `cutover diff`: in what two versions differ. Two that a server knows are the server's to compare; two folders are compared here.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::args::task;
use super::client::{Api, ClientArgs, model_path, parse_reference, segment};
use super::inspect::Place;
use super::output::{Failure, printable};
use super::table::Table;
use crate::device::Kind;
use crate::error::{Error, Result};
use crate::rollout::{Comparison, Home, Survey};
use crate::value::Task;

#[derive(Debug, Clone, Args)]
pub struct DiffArgs {
    /// One version, which is compared with the live one of its model, or two, the one before first; a path with a `/` is
    /// a folder on this machine, and then both are
    #[arg(value_name = "VERSION", required = true, num_args = 1..=2)]
    pub versions: Vec<String>,
    /// Exit with 1 when the gate would refuse the second in place of the first
    #[arg(long)]
    pub check: bool,
    /// Of folders: what the model is for [default: as model.toml beside the folder says, else as config.json looks]
    #[arg(long, value_name = "TASK", value_parser = task)]
    pub task: Option<Task>,
    #[command(flatten)]
    pub client: ClientArgs,
}

impl DiffArgs {
    /// Whether it is about folders of this machine.
    pub fn are_folders(&self) -> bool {
        self.versions.iter().any(|version| version.contains('/'))
    }
}

/// One row, as a server tells it or as it was found here.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Row {
    pub what: String,
    pub severity: String,
    pub message: String,
}

/// What is shown of a comparison.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Shown {
    from: String,
    to: String,
    compatible: bool,
    differences: Vec<Row>,
    same: Vec<String>,
    incomparable: Vec<String>,
}

/// Asks a server.
pub(super) async fn ask(args: &DiffArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let (before, now) = match args.versions.as_slice() {
        [now] => (None, now),
        [before, now, ..] => (Some(before), now),
        [] => return Err(Failure::Usage("expected one version, or two".to_owned())),
    };
    for reference in before.into_iter().chain([now]) {
        parse_reference(reference).map_err(Failure::Usage)?;
    }
    if args.task.is_some() {
        return Err(Failure::Usage("--task is for folders: a server knows what its models are for".to_owned()));
    }
    let api = Api::new(&args.client.connection)?;
    let against = before.map_or_else(String::new, |before| format!("?against={}", segment(before)));
    let answer = api.get(&format!("{}{against}", model_path(now, "/diff"))).await?;
    let shown = Shown::deserialize(&answer).map_err(|e| api.protocol(&format!("not a comparison: {e}")))?;
    if args.client.json {
        writeln!(out, "{answer}")?;
    } else {
        shown.write(out)?;
    }
    if args.check && !shown.compatible { Err(Failure::Reported) } else { Ok(()) }
}

/// Compares two folders. False when the second could not take the place of the first and that was asked.
pub(super) fn run(args: &DiffArgs, out: &mut dyn Write) -> Result<bool> {
    let [before, now] = args.versions.as_slice() else {
        let reason = "a folder is compared with another: expected two";
        return Err(Error::unloadable(args.versions.join(" "), reason));
    };
    let (before, now) = (look(Path::new(before), args.task)?, look(Path::new(now), args.task)?);
    let comparison = Comparison::of_folders(&before, &now)?;
    let value = serde_json::to_value(&comparison).map_err(Error::internal)?;
    let written = match args.client.json {
        true => serde_json::to_string_pretty(&value).map_err(io::Error::from).and_then(|text| writeln!(out, "{text}")),
        false => Shown::deserialize(&value).map_err(io::Error::from).and_then(|shown| shown.write(out)),
    };
    written.map_err(|e| Error::internal(format!("cannot write: {e}")))?;
    Ok(comparison.compatible || !args.check)
}

fn look(dir: &Path, task: Option<Task>) -> Result<Survey> {
    let place = Place::of(&PathBuf::from(dir))?;
    let config = place.config(task)?;
    Ok(Survey::of(&place.dir, (&place.model, &place.version), &config, Home::alone(Kind::Cpu)))
}

impl Shown {
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let verdict = match (self.differences.is_empty(), self.compatible) {
            (true, _) => "nothing differs",
            (false, true) => "keeps its contract",
            (false, false) => "the gate refuses it in its place",
        };
        writeln!(out, "{}: {verdict}", printable(&format!("{} → {}", self.from, self.to)))?;
        write_differences(&self.differences, out)?;
        if !self.same.is_empty() {
            writeln!(out, "  the same: {}", printable(&self.same.join(", ")))?;
        }
        self.incomparable.iter().try_for_each(|what| writeln!(out, "  not comparable: {}", printable(what)))
    }
}

/// The gravest first, as they come.
pub(super) fn write_differences(differences: &[Row], out: &mut dyn Write) -> io::Result<()> {
    if differences.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(["changes", "what", ""]).indented(2);
    differences.iter().for_each(|row| table.row([&row.severity, &row.what, &row.message]));
    table.write(out)
}

/// Rows of any JSON that has them; a server from before they were told has none.
pub(super) fn rows(value: &Value) -> Vec<Row> {
    Vec::<Row>::deserialize(value).unwrap_or_default()
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
