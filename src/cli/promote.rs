//! `stage` and `promote`: ask, follow, and sum up.

use std::io::Write;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value};

use super::client::{Api, ClientArgs, Reply, model_path, parse_reference};
use super::output::{Failure, human_bytes, printable};
use super::progress::Narrator;
use super::rollout::{self, Rollout};
use super::signals::Signals;
use crate::repository::{CanaryConfig, Sticky, duration};

/// Who asks and why; kept in the ledger.
#[derive(Debug, Clone, Args)]
pub struct Account {
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Who, for the record [default: $USER]
    #[arg(long, value_name = "NAME", env = "USER", hide_env = true)]
    pub actor: Option<String>,
}

impl Account {
    pub fn put_into(&self, body: &mut Map<String, Value>) {
        for (key, value) in [("reason", &self.reason), ("actor", &self.actor)] {
            if let Some(text) = value {
                body.insert(key.to_owned(), text.as_str().into());
            }
        }
    }
}

#[derive(Debug, Clone, Args)]
pub struct StageArgs {
    /// model@version, or a version that only one model has
    #[arg(value_parser = parse_reference)]
    pub reference: String,
    /// Go on although clients will see another contract (labels, dimension, tokenizer, …)
    #[arg(long)]
    pub accept_contract_change: bool,
    #[command(flatten)]
    pub shadow: ShadowArgs,
    /// Only read it into host memory, ready for the server's GPU, in place of what waits there of this model
    #[arg(long, conflicts_with = "accept_contract_change")]
    pub park: bool,
    #[command(flatten)]
    pub account: Account,
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Debug, Clone, Args)]
pub struct PromoteArgs {
    /// model@version, or a version that only one model has
    #[arg(value_parser = parse_reference)]
    pub reference: String,
    /// How long the previous version stays resident, such as 5m [default: the model's own]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub observe: Option<String>,
    /// When to answer
    #[arg(long, value_enum, default_value_t = Wait::Switched)]
    pub wait: Wait,
    #[command(flatten)]
    pub canary: CanaryArgs,
    #[command(flatten)]
    pub shadow: ShadowArgs,
    /// Go on although clients will see another contract (labels, dimension, tokenizer, …)
    #[arg(long)]
    pub accept_contract_change: bool,
    #[command(flatten)]
    pub account: Account,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Live answers that the other version computes too.
#[derive(Debug, Clone, Args)]
pub struct ShadowArgs {
    /// The share of live answers to be computed by the other version too and compared, 0 to 1 [default: the model's own]
    #[arg(long = "shadow", value_name = "SHARE", value_parser = parse_share, allow_negative_numbers = true)]
    pub share: Option<f64>,
}

/// The way from no requests to all.
#[derive(Debug, Clone, Args)]
pub struct CanaryArgs {
    /// Percent of requests, step by step, such as 5,25,50; 0: all at once, and the rest of a canary that goes on is skipped
    /// [default: the model's own]
    #[arg(long, value_name = "PERCENT,…", value_parser = parse_steps)]
    pub canary: Option<Steps>,
    /// How long each step lasts, such as 1m
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, conflicts_with = "canary_requests")]
    pub canary_step: Option<String>,
    /// Or how many requests it must answer in each step
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub canary_requests: Option<u64>,
    /// By what clients stay with the version that answered them: request, api-key or header:<name>
    #[arg(long, value_name = "WHAT", value_parser = parse_sticky)]
    pub sticky: Option<Sticky>,
}

/// Percentages of a canary, in the order of its steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Steps(pub Vec<f64>);

impl CanaryArgs {
    fn put_into(&self, body: &mut Map<String, Value>) {
        let mut put = |key: &str, value: Option<Value>| value.map(|value| body.insert(key.to_owned(), value));
        put("canary", self.canary.as_ref().map(|Steps(steps)| steps.clone().into()));
        put("canary_step", self.canary_step.as_deref().map(Value::from));
        put("canary_requests", self.canary_requests.map(Value::from));
        put("sticky", self.sticky.as_ref().map(|sticky| sticky.to_string().into()));
    }
}

impl ShadowArgs {
    fn put_into(&self, body: &mut Map<String, Value>) {
        if let Some(share) = self.share {
            body.insert("shadow".to_owned(), share.into());
        }
    }
}

fn parse_steps(text: &str) -> Result<Steps, String> {
    let steps = text.split(',').map(|step| step.trim().trim_end_matches('%').parse::<f64>());
    let steps = steps.collect::<Result<Vec<_>, _>>().map_err(|_| "expected percentages such as 5,25,50".to_owned())?;
    if steps == [0.0] {
        return Ok(Steps(Vec::new()));
    }
    CanaryConfig::check_steps(&steps).map(|()| Steps(steps))
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "expected a share from 0 to 1".to_owned())
}

pub(super) fn parse_sticky(text: &str) -> Result<Sticky, String> {
    text.parse()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Wait {
    /// When the switch is done
    Switched,
    /// When the window is over and the previous version's memory is back
    Settled,
    /// At once
    None,
}

impl Wait {
    fn name(self) -> &'static str {
        match self {
            Wait::Switched => "switched",
            Wait::Settled => "settled",
            Wait::None => "none",
        }
    }
}

/// Checked here so that a typing mistake is a usage error; sent as it was typed.
fn parse_duration(text: &str) -> Result<String, String> {
    duration::parse(text).map(|_| text.to_owned())
}

pub(super) async fn stage(args: &StageArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let mut body = Map::new();
    args.account.put_into(&mut body);
    args.shadow.put_into(&mut body);
    put_consent(args.accept_contract_change, &mut body);
    let path = model_path(&args.reference, "/stage");
    let api = Api::new(&args.client.connection)?;
    if args.park {
        body.insert("park".to_owned(), "host".into());
        let ahead = api.post(&path, &Value::Object(body)).await?;
        return parked(&ahead, args.client.json, out);
    }
    let reply = api.post_following(&path, &Value::Object(body)).await?;
    tell(reply, args.client.json, out).await
}

pub(super) async fn promote(args: &PromoteArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let mut body = Map::new();
    body.insert("wait".to_owned(), args.wait.name().into());
    if let Some(observe) = &args.observe {
        body.insert("observe".to_owned(), observe.as_str().into());
    }
    args.account.put_into(&mut body);
    args.canary.put_into(&mut body);
    args.shadow.put_into(&mut body);
    put_consent(args.accept_contract_change, &mut body);
    let path = model_path(&args.reference, "/promote");
    let api = Api::new(&args.client.connection)?;
    if args.wait == Wait::None {
        let rollout = api.post(&path, &Value::Object(body)).await?;
        return accepted(&rollout, args.client.json, out);
    }
    let reply = api.post_following(&path, &Value::Object(body)).await?;
    tell(reply, args.client.json, out).await
}

fn put_consent(accept_contract_change: bool, body: &mut Map<String, Value>) {
    if accept_contract_change {
        body.insert("accept_contract_change".to_owned(), true.into());
    }
}

/// Narrates a rollout to its end and shows the summary; an end that is no success fails the command. The rollout is the
/// server's: whoever stops listening does not stop it, and is told so.
async fn tell(reply: Reply, json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    let (mut narrator, mut last) = (Narrator::new(json), None);
    let mut signals = Signals::listen();
    let mut on = |rollout: &Rollout| {
        last = Some((rollout.id.clone(), rollout.phase.clone()));
        narrator.tell(rollout);
    };
    let ended = tokio::select! {
        ended = rollout::follow(reply, &mut on) => Some(ended),
        _ = signals.next() => None,
    };
    narrator.finish();
    let Some(ended) = ended else { return Err(Failure::Left(goes_on(last))) };
    let body = ended?;
    let rollout = Rollout::read(&body)?;
    if json {
        writeln!(out, "{body}")?;
    } else {
        rollout.write(out)?;
    }
    if rollout.failed() { Err(Failure::Reported) } else { Ok(()) }
}

/// What somebody who stops listening to a rollout has to know of it: its id and phase, where any were told.
fn goes_on(last: Option<(String, String)>) -> String {
    let (which, end) = match &last {
        None => ("the rollout".to_owned(), String::new()),
        Some((id, phase)) if phase == "observing" => (format!("rollout {id}"), ", `cutover rollback` goes back".into()),
        Some((id, phase)) if phase == "reclaiming" => (format!("rollout {id}"), String::new()),
        Some((id, _)) => (format!("rollout {id}"), format!(", `cutover abort {id}` ends it")),
    };
    format!("{which} goes on: `cutover watch` follows it{end}")
}

fn parked(body: &Value, json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    if json {
        writeln!(out, "{body}")?;
        return Ok(());
    }
    let text = |field: &str| printable(body[field].as_str().unwrap_or("?"));
    let bytes = human_bytes(body["bytes"].as_u64().unwrap_or_default());
    let already = if body["unchanged"] == true { " already" } else { "" };
    writeln!(out, "{}: {} waits in host memory{already} ({bytes})", text("model"), text("version"))?;
    Ok(())
}

fn accepted(body: &Value, json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    if json {
        writeln!(out, "{body}")?;
        return Ok(());
    }
    let rollout = Rollout::read(body)?;
    writeln!(out, "{}", rollout.headline())?;
    writeln!(out, "rollout {} goes on; `cutover watch` follows it", printable(&rollout.id))?;
    Ok(())
}
