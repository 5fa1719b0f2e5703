//! `rollback`, `settle`, `abort` and `drop`: one request, one answer.

use std::io::Write;

use clap::Args;
use serde_json::{Map, Value};

use super::client::{Api, ClientArgs, model_path, segment};
use super::output::{Failure, Refusal, printable};
use super::promote::Account;
use super::rollout::Rollout;

#[derive(Debug, Clone, Args)]
pub struct RollbackArgs {
    /// Which model; needed when the server has several
    pub model: Option<String>,
    #[command(flatten)]
    pub account: Account,
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Debug, Clone, Args)]
pub struct SettleArgs {
    /// Which model; needed when the server has several
    pub model: Option<String>,
    #[command(flatten)]
    pub account: Account,
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Debug, Clone, Args)]
pub struct AbortArgs {
    /// The rollout's id, or the model whose rollout goes on
    #[arg(value_name = "ROLLOUT", value_parser = super::client::parse_reference)]
    pub id: String,
    #[command(flatten)]
    pub account: Account,
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Debug, Clone, Args)]
pub struct DropArgs {
    /// A version (`v2`), or `model@version` where several models have it; a model that is gone from the folder is forgotten
    #[arg(value_name = "VERSION", value_parser = super::client::parse_reference)]
    pub reference: String,
    #[command(flatten)]
    pub client: ClientArgs,
}

pub(super) async fn rollback(args: &RollbackArgs, out: &mut dyn Write) -> Result<(), Failure> {
    ask("/admin/rollback", args.model.as_deref(), &args.account, &args.client, out).await
}

pub(super) async fn settle(args: &SettleArgs, out: &mut dyn Write) -> Result<(), Failure> {
    ask("/admin/settle", args.model.as_deref(), &args.account, &args.client, out).await
}

pub(super) async fn abort(args: &AbortArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let told = async |id: &str, out: &mut dyn Write| {
        ask(&format!("/admin/rollouts/{}/abort", segment(id)), None, &args.account, &args.client, out).await
    };
    match told(&args.id, out).await {
        Err(Failure::Refused(refusal)) if refusal.status == 404 => told(&goes_on(args, *refusal).await?, out).await,
        told => told,
    }
}

/// The rollout that goes on for the model of that name; `unknown` as it is where there is no such model either.
async fn goes_on(args: &AbortArgs, unknown: Refusal) -> Result<String, Failure> {
    match Api::new(&args.client.connection)?.get(&model_path(&args.id, "")).await {
        Ok(model) => model["candidate"]["rollout"].as_str().map(str::to_owned).ok_or_else(|| {
            let message = format!("no rollout of '{}' goes on", args.id);
            Failure::Refused(Box::new(Refusal { message, ..unknown }))
        }),
        Err(Failure::Refused(refusal)) if refusal.status == 404 => Err(Failure::Refused(Box::new(unknown))),
        Err(error) => Err(error),
    }
}

/// Files are never touched, and what is live stays: the server says so.
pub(super) async fn release(args: &DropArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let answer = Api::new(&args.client.connection)?.delete(&model_path(&args.reference, "")).await?;
    let text = |field: &str| answer[field].as_str().map(printable).unwrap_or_default();
    if args.client.json {
        writeln!(out, "{answer}")?;
    } else if answer["forgotten"] == true {
        writeln!(out, "{}: forgotten", text("model"))?;
    } else if answer["resident"] == false {
        writeln!(out, "{}: {} was not in memory; nothing changed", text("model"), text("version"))?;
    } else {
        Rollout::read(&answer)?.write(out)?;
    }
    Ok(())
}

/// Posts and shows the rollout that came of it. An end such as `rolled_back` is what was asked for here.
async fn ask(
    path: &str,
    model: Option<&str>,
    account: &Account,
    client: &ClientArgs,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut body = Map::new();
    if let Some(model) = model {
        body.insert("model".to_owned(), model.into());
    }
    account.put_into(&mut body);
    let answer = Api::new(&client.connection)?.post(path, &Value::Object(body)).await?;
    if client.json {
        writeln!(out, "{answer}")?;
    } else {
        Rollout::read(&answer)?.write(out)?;
    }
    Ok(())
}
