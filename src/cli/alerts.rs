//! `cutover alerts`: whether those who are to hear of what goes wrong would.

use std::io::Write;

use clap::{Args, Subcommand};
use serde_json::json;

use super::client::{Api, ClientArgs};
use super::output::{Failure, human_ms, printable};
use super::table::Table;

#[derive(Debug, Clone, Args)]
pub struct AlertsArgs {
    #[command(subcommand)]
    pub command: AlertsCommand,
}

#[derive(Debug, Clone, Subcommand)]
pub enum AlertsCommand {
    /// Send each receiver of alerts one that says that nothing has happened, and show what it answers
    Test(AlertsTestArgs),
}

#[derive(Debug, Clone, Args)]
pub struct AlertsTestArgs {
    /// Only this receiver, by its name in cutover.toml
    #[arg(long, value_name = "NAME")]
    pub target: Option<String>,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// A receiver that did not take it is exit code 1.
pub(super) async fn test(args: &AlertsTestArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let api = Api::new(&args.client.connection)?;
    let body = args.target.as_ref().map_or_else(|| json!({}), |target| json!({ "target": target }));
    let answer = api.post("/admin/alerts/test", &body).await?;
    let tried = answer["alerts"].as_array().ok_or_else(|| api.protocol("no list of alerts"))?;
    if args.client.json {
        writeln!(out, "{answer}")?;
    } else {
        let mut table = Table::new(["receiver", "kind", "host", "took", "result"]);
        for one in tried {
            let text = |field: &str| one[field].as_str().map(printable).unwrap_or_default();
            let result = match one["delivered"] == true {
                true => format!("delivered ({})", one["status"]),
                false => format!("FAILED: {}", text("error")),
            };
            table.row([
                text("target"),
                text("kind"),
                text("host"),
                human_ms(one["ms"].as_f64().unwrap_or(0.0)),
                result,
            ]);
        }
        table.write(out)?;
    }
    if tried.iter().all(|one| one["delivered"] == true) { Ok(()) } else { Err(Failure::Reported) }
}
