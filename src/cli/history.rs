//! `history`: past rollouts and what they cost.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use super::client::{Api, ClientArgs, model_path, parse_reference, segment};
use super::output::{Failure, human_field};
use super::rollout::Rollout;
use super::status::write_tree;
use super::table::Table;

#[derive(Debug, Clone, Args)]
pub struct HistoryArgs {
    /// Show this rollout in full
    #[arg(value_name = "ROLLOUT", value_parser = parse_reference, conflicts_with = "verify")]
    pub id: Option<String>,
    /// Only this model's rollouts
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// The newest so many, up to 1000 [default: 50]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000), conflicts_with_all = ["id", "verify"])]
    pub limit: Option<u32>,
    /// Check the ledger's chain of hashes on this machine; needs no server
    #[arg(long)]
    pub verify: bool,
    /// The server's state folder, for --verify
    #[arg(long, value_name = "DIR", default_value = ".cutover", requires = "verify")]
    pub state: PathBuf,
    #[command(flatten)]
    pub client: ClientArgs,
}

pub(super) async fn history(args: &HistoryArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let api = Api::new(&args.client.connection)?;
    if let Some(id) = &args.id {
        let rollout = api.get(&format!("/admin/rollouts/{}", segment(id))).await?;
        return if args.client.json {
            Ok(writeln!(out, "{rollout}")?)
        } else {
            Ok(Rollout::read(&rollout)?.write(out)?)
        };
    }
    let model = args.model.as_ref().map(|model| format!("model={}", segment(model)));
    let limit = args.limit.map(|limit| format!("limit={limit}"));
    let query: Vec<String> = model.into_iter().chain(limit).collect();
    let mark = if query.is_empty() { "" } else { "?" };
    let answer = api.get(&format!("/admin/rollouts{mark}{}", query.join("&"))).await?;
    if args.client.json {
        writeln!(out, "{answer}")?;
        return Ok(());
    }
    let Some(rollouts) = answer["rollouts"].as_array().or(answer.as_array()) else {
        return Err(api.protocol("GET /admin/rollouts has no list of rollouts"));
    };
    let rollouts: Vec<Rollout> = rollouts.iter().map(Rollout::read).collect::<Result<_, _>>()?;
    let rollouts: Vec<&Rollout> =
        rollouts.iter().filter(|rollout| args.model.as_ref().is_none_or(|model| *model == rollout.model)).collect();
    if let Some(model) = args.model.as_ref().filter(|_| rollouts.is_empty()) {
        // A name that is no model's has none either: the server says which there are.
        api.get(&model_path(model, "")).await?;
    }
    write_rollouts(&rollouts, out)?;
    if let Some(kept) = answer["kept"].as_u64().filter(|kept| *kept > rollouts.len() as u64) {
        writeln!(out, "the newest {} of {kept}; --limit shows up to 1000", rollouts.len())?;
    }
    if answer["figures"].is_object() {
        writeln!(out)?;
        write_tree("figures", &answer["figures"], out)?;
    }
    Ok(())
}

/// How rollouts end whose gate may not have been through.
const BEFORE_ITS_END: [&str; 3] = ["failed", "aborted", "interrupted"];

fn write_rollouts(rollouts: &[&Rollout], out: &mut dyn Write) -> io::Result<()> {
    if rollouts.is_empty() {
        return writeln!(out, "no rollouts yet");
    }
    let mut table =
        Table::new(["rollout", "started", "model", "from", "to", "ended as", "downtime", "gate", "actor", "reason"]);
    for rollout in rollouts {
        let passed = rollout.gate.iter().filter(|check| check.passed).count();
        let gate = match rollout.gate.len() {
            0 => "-".to_owned(),
            // It ended for another reason, before the gate was through.
            checks if passed == checks && BEFORE_ITS_END.contains(&rollout.phase.as_str()) => format!("{passed}/…"),
            checks => format!("{passed}/{checks}"),
        };
        let phase = match &rollout.kind {
            Some(kind) => format!("{} ({kind})", rollout.phase),
            None => rollout.phase.clone(),
        };
        let downtime = rollout.figures.get("downtime_ms").unwrap_or(&Value::Null);
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        table.row([
            rollout.id.clone(),
            or_dash(&rollout.started),
            rollout.model.clone(),
            or_dash(&rollout.from),
            rollout.to.clone(),
            phase,
            human_field("downtime_ms", downtime),
            gate,
            or_dash(&rollout.actor),
            or_dash(&rollout.reason),
        ]);
    }
    table.write(out)
}
