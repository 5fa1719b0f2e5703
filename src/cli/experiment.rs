//! `experiment start`, `status` and `stop`: two versions that share a model's requests, and which of them is better.

use std::io::Write;

use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use super::client::{Api, ClientArgs, segment};
use super::output::{Failure, printable};
use super::promote::{Account, parse_sticky};
use super::rollout::Rollout;
use super::table::Table;
use crate::repository::Sticky;

#[derive(Debug, Clone, Args)]
pub struct ExperimentArgs {
    #[command(subcommand)]
    pub command: ExperimentCommand,
}

#[derive(Debug, Clone, Subcommand)]
pub enum ExperimentCommand {
    /// Have two versions share a model's requests until it is stopped
    Start(StartArgs),
    /// Show how the versions of running experiments compare
    Status(ExperimentStatusArgs),
    /// End one; its version stays staged, to be promoted or dropped
    Stop(StopArgs),
}

#[derive(Debug, Clone, Args)]
pub struct StartArgs {
    /// What it is called
    pub name: String,
    /// The live version and one other, each with its percent of requests, such as v1=70 v2=30; or digits@v1=70
    #[arg(required = true, num_args = 2, value_name = "VERSION=PERCENT", value_parser = parse_weight)]
    pub weights: Vec<Weight>,
    /// Which model; needed when the server has several
    #[arg(long)]
    pub model: Option<String>,
    /// By what clients stay with their version: request, api-key or header:<name>
    #[arg(long, value_name = "WHAT", value_parser = parse_sticky)]
    pub sticky: Option<Sticky>,
    #[command(flatten)]
    pub account: Account,
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Debug, Clone, Args)]
pub struct ExperimentStatusArgs {
    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Debug, Clone, Args)]
pub struct StopArgs {
    /// Its name
    pub name: String,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// A version's percent of requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Weight {
    pub version: String,
    pub percent: f64,
}

fn parse_weight(text: &str) -> Result<Weight, String> {
    let parsed = text.rsplit_once('=').and_then(|(version, percent)| {
        let percent = percent.trim_end_matches('%').parse::<f64>().ok().filter(|percent| percent.is_finite())?;
        (!version.is_empty()).then(|| Weight { version: version.to_owned(), percent })
    });
    parsed.ok_or_else(|| "expected a version and its percent of requests, such as v2=30".to_owned())
}

pub(super) async fn experiment(args: &ExperimentArgs, out: &mut dyn Write) -> Result<(), Failure> {
    match &args.command {
        ExperimentCommand::Start(args) => start(args, out).await,
        ExperimentCommand::Status(args) => status(args, out).await,
        ExperimentCommand::Stop(args) => stop(args, out).await,
    }
}

impl ExperimentArgs {
    pub(super) fn json(&self) -> bool {
        match &self.command {
            ExperimentCommand::Start(args) => args.client.json,
            ExperimentCommand::Status(args) => args.client.json,
            ExperimentCommand::Stop(args) => args.client.json,
        }
    }
}

impl StartArgs {
    /// The model, and each version's percent: what is named `model@version` names both.
    fn named(&self) -> Result<(Option<&str>, Map<String, Value>), Failure> {
        let (mut model, mut weights) = (self.model.as_deref(), Map::new());
        for Weight { version, percent } in &self.weights {
            let (of, version) = match version.split_once('@') {
                Some((of, version)) => (Some(of), version),
                None => (None, version.as_str()),
            };
            match (model, of) {
                (Some(model), Some(of)) if model != of => {
                    return Err(Failure::Usage(format!(
                        "'{model}' and '{of}' are two models, expected one's versions"
                    )));
                }
                _ => model = of.or(model),
            }
            if weights.insert(version.to_owned(), (*percent).into()).is_some() {
                return Err(Failure::Usage(format!("'{version}' is named twice, expected two versions")));
            }
        }
        Ok((model, weights))
    }
}

async fn start(args: &StartArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let (model, weights) = args.named()?;
    let mut body = Map::new();
    body.insert("name".to_owned(), args.name.as_str().into());
    body.insert("weights".to_owned(), weights.into());
    if let Some(model) = model {
        body.insert("model".to_owned(), model.into());
    }
    if let Some(sticky) = &args.sticky {
        body.insert("sticky".to_owned(), sticky.to_string().into());
    }
    args.account.put_into(&mut body);
    let rollout = Api::new(&args.client.connection)?.post("/admin/experiments", &Value::Object(body)).await?;
    tell(&rollout, args.client.json, out)
}

async fn stop(args: &StopArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let path = format!("/admin/experiments/{}", segment(&args.name));
    let rollout = Api::new(&args.client.connection)?.delete(&path).await?;
    if !args.client.json {
        let mut found = rollout["figures"]["experiment"].clone();
        found["model"] = rollout["model"].clone();
        write_experiment(&found, out)?;
    }
    tell(&rollout, args.client.json, out)
}

fn tell(rollout: &Value, json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    if json {
        writeln!(out, "{rollout}")?;
    } else {
        let rollout = Rollout::read(rollout)?;
        writeln!(out, "{}", rollout.headline())?;
    }
    Ok(())
}

async fn status(args: &ExperimentStatusArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let told = Api::new(&args.client.connection)?.get("/admin/experiments").await?;
    if args.client.json {
        writeln!(out, "{told}")?;
        return Ok(());
    }
    let running = told["experiments"].as_array().map_or(&[][..], Vec::as_slice);
    if running.is_empty() {
        writeln!(out, "no experiment goes on")?;
    }
    for experiment in running {
        write_experiment(experiment, out)?;
    }
    Ok(())
}

/// Its arms side by side, and what may be said of them.
fn write_experiment(told: &Value, out: &mut dyn Write) -> Result<(), Failure> {
    let number =
        |value: &Value, digits: usize| value.as_f64().map_or("-".to_owned(), |number| format!("{number:.digits$}"));
    let count = |value: &Value| value.as_u64().map_or("-".to_owned(), |count| count.to_string());
    let text = |value: &Value| value.as_str().map(printable).unwrap_or_default();
    writeln!(out, "{} ({}, {} s)", text(&told["name"]), text(&told["model"]), number(&told["seconds"], 0))?;
    let mut table =
        Table::new(["version", "percent", "answered", "failed", "p50 ms", "p99 ms", "feedback", "mean"]).indented(2);
    for arm in told["arms"].as_array().into_iter().flatten() {
        table.row([
            text(&arm["version"]),
            number(&arm["weight"], 1),
            count(&arm["answered"]),
            count(&arm["failed"]),
            number(&arm["p50_ms"], 2),
            number(&arm["p99_ms"], 2),
            count(&arm["feedback"]["count"]),
            number(&arm["feedback"]["mean"], 3),
        ]);
    }
    table.write(out)?;
    for (what, key, digits) in [("feedback", "feedback", 3), ("latency, ms", "latency_ms", 2)] {
        let compared = &told[key];
        let interval = |at: usize| number(&compared["interval"][at], digits);
        let better = match compared["better"].as_str() {
            Some(version) => format!("{} is better", printable(version)),
            None => "too early to tell".to_owned(),
        };
        let difference = number(&compared["difference"], digits);
        writeln!(out, "  {what}: {difference} apart, within {} to {}: {better}", interval(0), interval(1))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What an experiment looks like to a client that shows it.
    fn sample() -> Value {
        let arm = |version: &str, mean: f64| {
            json!({ "version": version, "weight": 50.0, "answered": 400, "failed": 1, "p50_ms": 0.5, "p99_ms": 1.25,
                "feedback": { "count": 200, "mean": mean, "interval": null }, "latency_ms": { "count": 400, "mean": 0.6, "interval": null } })
        };
        let unsure = json!({ "difference": null, "interval": null, "confidence": 0.95, "better": null });
        let sure = json!({ "difference": 0.6, "interval": [0.4, 0.8], "confidence": 0.95, "better": "v2" });
        json!({ "name": "tone", "model": "digits", "seconds": 60.0, "arms": [arm("v1", 0.2), arm("v2", 0.8)],
            "feedback": sure, "latency_ms": unsure })
    }

    #[test]
    fn weights_are_typed_as_version_and_percent() {
        let of = |version: &str, percent| Ok(Weight { version: version.to_owned(), percent });
        assert_eq!(parse_weight("v1=70"), of("v1", 70.0));
        assert_eq!(parse_weight("a=b=12.5%"), of("a=b", 12.5));
        for wrong in ["v1", "=5", "v1=", "v1=many", "v1=nan"] {
            assert!(parse_weight(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn versions_may_be_named_with_their_model() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: StartArgs,
        }
        let named = |line: &str| {
            let words = format!("start tone {line}");
            let args = <Line as clap::Parser>::try_parse_from(words.split(' ')).unwrap().args;
            let named = args.named().map(|(model, weights)| (model.map(str::to_owned), Value::Object(weights)));
            named.map_err(|error| error.to_string())
        };
        let weights = json!({ "v1": 70.0, "v2": 30.0 });
        assert_eq!(named("v1=70 v2=30"), Ok((None, weights.clone())));
        for line in ["digits@v1=70 digits@v2=30", "v1=70 digits@v2=30", "digits@v1=70 v2=30 --model digits"] {
            assert_eq!(named(line), Ok((Some("digits".into()), weights.clone())), "{line}");
        }
        for (line, told) in [
            ("digits@v1=70 minilm@v2=30", "two models"),
            ("digits@v1=70 v2=30 --model minilm", "two models"),
            ("v1=70 digits@v1=30", "'v1' is named twice"),
        ] {
            assert!(named(line).unwrap_err().contains(told), "{line}");
        }
    }

    #[test]
    fn arms_stand_side_by_side_and_doubt_is_told() {
        let mut out = Vec::new();
        write_experiment(&sample(), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("tone (digits, 60 s)\n"), "{text}");
        assert!(text.contains("feedback: 0.600 apart, within 0.400 to 0.800: v2 is better"), "{text}");
        assert!(text.contains("latency, ms: - apart, within - to -: too early to tell"), "{text}");
    }
}
