//! The command line: what can be typed, and the commands that are clients of a running server.
//!
//! The client commands and `bench` speak the HTTP interface only, as any other client would; they must
//! not reach into the server's rooms (but `bench forward`, which asks no server). Commands that work on this machine (`serve`, `golden`, `inspect`,
//! `diff` of folders, `pull`, `convert`, `history --verify`) are parsed here and handed back as [`Local`] to whoever wires them.
//!
//! Exit codes: 0 done, 1 failed or refused, 2 usage. What was asked for goes to standard output;
//! progress and complaints go to standard error, so that `--json` output stays a document.

mod alerts;
pub mod args;
mod banner;
pub mod bench;
mod client;
mod convert;
mod diff;
mod doors;
mod ending;
mod experiment;
mod golden;
mod history;
mod inspect;
mod local;
#[cfg(test)]
mod mock;
mod operate;
mod output;
mod progress;
mod promote;
mod pull;
mod renew;
mod rollout;
mod serve;
mod signals;
mod sse;
mod status;
mod table;
mod watch;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use alerts::{AlertsArgs, AlertsCommand};
pub use args::{
    ConvertArgs, DeviceChoice, GoldenArgs, GoldenCommand, GoldenTarget, InspectArgs, LogFormat, PullArgs, RecordArgs,
    Reference, Secret, ServeArgs, WeightDtype,
};
pub use client::{ClientArgs, Connection};
pub use diff::DiffArgs;
pub use experiment::{ExperimentArgs, ExperimentCommand};
pub use history::HistoryArgs;
pub use operate::{AbortArgs, DropArgs, RollbackArgs, SettleArgs};
use output::Failure;
pub use promote::{Account, PromoteArgs, StageArgs, Wait};
pub use status::StatusArgs;
pub use watch::WatchArgs;

/// A model server that changes models without missing a beat.
#[derive(Debug, Parser)]
#[command(name = "cutover", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[allow(clippy::large_enum_variant, reason = "there is one in a process, for a moment")]
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve every model found, or those named
    Serve(ServeArgs),
    /// Load and prove a version beside the live one, without sending it traffic
    Stage(StageArgs),
    /// Make a version live: stages it first when it is not staged yet
    Promote(PromoteArgs),
    /// Go back to the previous version
    Rollback(RollbackArgs),
    /// End the observation window and give back the previous version's memory
    Settle(SettleArgs),
    /// Stop a rollout before its switch
    Abort(AbortArgs),
    /// Free the memory of a version that is not live; its files stay
    Drop(DropArgs),
    /// Compare two versions on live traffic: start, status, stop
    Experiment(ExperimentArgs),
    /// Show models, what is live, and memory
    Status(StatusArgs),
    /// Follow events as they happen
    Watch(WatchArgs),
    /// Try whether receivers of alerts are reached
    Alerts(AlertsArgs),
    /// List past rollouts with their figures, show one, or verify the ledger
    History(HistoryArgs),
    /// Record or check the outputs that a version must reproduce
    Golden(GoldenArgs),
    /// Say in what two versions differ, and how grave that is: of a server, or two folders
    Diff(DiffArgs),
    /// Describe a version folder without loading it
    Inspect(InspectArgs),
    /// Measure a running server, or a version by itself
    ///
    /// On a machine that the generator shares with the server, its own delays show in the latencies (each report says
    /// how large they were). --realtime gives it the processor the moment it needs it.
    Bench(bench::BenchArgs),
    /// Fetch a model into the repository
    Pull(PullArgs),
    /// Write a GGUF file as a folder in Hugging Face's layout
    Convert(ConvertArgs),
}

/// What became of a command line.
#[allow(clippy::large_enum_variant, reason = "there is one in a process, for a moment")]
#[derive(Debug)]
pub enum Dispatch {
    /// A client command ran.
    Done(ExitCode),
    /// The command works on this machine; the caller runs it.
    Local(Local),
}

/// The commands that are not clients of a server.
#[derive(Debug)]
pub enum Local {
    Serve(ServeArgs),
    /// `history --verify`: recompute the ledger's chain in this state folder.
    Verify {
        state: std::path::PathBuf,
        json: bool,
    },
    Golden(GoldenArgs),
    Diff(DiffArgs),
    Inspect(InspectArgs),
    Pull(PullArgs),
    Convert(ConvertArgs),
}

impl Cli {
    /// Runs a client command to its end, or hands a local one back.
    pub fn dispatch(self) -> Dispatch {
        let (json, outcome) = match self.command {
            Command::Serve(args) => return Dispatch::Local(Local::Serve(args)),
            Command::Golden(args) => return Dispatch::Local(Local::Golden(args)),
            Command::Diff(args) if args.are_folders() => return Dispatch::Local(Local::Diff(args)),
            Command::Diff(args) => (args.client.json, block_on(diff::ask(&args, &mut out()))),
            Command::Inspect(args) => return Dispatch::Local(Local::Inspect(args)),
            Command::Pull(args) => return Dispatch::Local(Local::Pull(args)),
            Command::Convert(args) => return Dispatch::Local(Local::Convert(args)),
            Command::History(args) if args.verify => {
                return Dispatch::Local(Local::Verify { state: args.state, json: args.client.json });
            }
            Command::Stage(args) => (args.client.json, block_on(promote::stage(&args, &mut out()))),
            Command::Promote(args) => (args.client.json, block_on(promote::promote(&args, &mut out()))),
            Command::Rollback(args) => (args.client.json, block_on(operate::rollback(&args, &mut out()))),
            Command::Settle(args) => (args.client.json, block_on(operate::settle(&args, &mut out()))),
            Command::Abort(args) => (args.client.json, block_on(operate::abort(&args, &mut out()))),
            Command::Drop(args) => (args.client.json, block_on(operate::release(&args, &mut out()))),
            Command::Experiment(args) => (args.json(), block_on(experiment::experiment(&args, &mut out()))),
            Command::Status(args) => (args.client.json, block_on(status::status(&args, &mut out()))),
            Command::Watch(args) => (args.client.json, block_on(watch::watch(&args, &mut out()))),
            Command::Alerts(AlertsArgs { command: AlertsCommand::Test(args) }) => {
                (args.client.json, block_on(alerts::test(&args, &mut out())))
            }
            Command::History(args) => (args.client.json, block_on(history::history(&args, &mut out()))),
            Command::Bench(args) => (false, block_on(bench::run(&args, &mut out()))),
        };
        Dispatch::Done(match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => failure.report(json, &mut out(), &mut std::io::stderr().lock()),
        })
    }
}

fn out() -> impl Write {
    std::io::stdout().lock()
}

/// One thread is enough for a client, and keeps the load generator's own cost low and plain to see.
fn block_on(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::Failed(format!("cannot start the runtime: {e}")))?
        .block_on(command)
}

#[cfg(test)]
mod tests;
