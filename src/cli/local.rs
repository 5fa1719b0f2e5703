//! The commands that work on this machine, without a server.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use super::output::printable;
use super::{Local, convert, diff, golden, inspect, pull, serve};
use crate::error::{Error, Result};
use crate::ledger::Ledger;

impl Local {
    pub fn run(self) -> ExitCode {
        match self {
            Local::Serve(args) => serve::run(args),
            Local::Verify { state, json } => told(verify(&state, json)),
            Local::Golden(args) => printed(|out| golden::run(&args, out)),
            Local::Diff(args) => printed(|out| diff::run(&args, out)),
            Local::Inspect(args) => printed(|out| inspect::run(&args, out)),
            Local::Pull(args) => printed(|out| pull::run(&args, out)),
            Local::Convert(args) => printed(|out| convert::run(&args, out)),
        }
    }
}

/// Prints what a command wrote, also when it failed half-way.
fn printed(command: impl FnOnce(&mut dyn Write) -> Result<bool>) -> ExitCode {
    let mut out = Vec::new();
    let outcome = command(&mut out);
    match std::io::stdout().lock().write_all(&out) {
        // A reader that went away (`| head`) is not a failure of the command.
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            told(Err(Error::internal(format!("cannot write: {e}"))))
        }
        _ => told(outcome),
    }
}

/// An error goes to standard error and is exit code 1.
fn told(outcome: Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cutover: {}", printable(&error.to_string()));
            ExitCode::FAILURE
        }
    }
}

/// `history --verify`: recomputes the chain.
fn verify(state: &Path, json: bool) -> Result<bool> {
    let path = state.join("ledger.sqlite");
    if !path.exists() {
        let reason =
            format!("{} is not there; --state names the folder that the server was started with", path.display());
        return Err(Error::Ledger { reason });
    }
    let report = Ledger::open_read_only(&path)?.verify()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&report).unwrap_or_default());
    } else if report.ok {
        match (report.events, report.pruned_before) {
            (0, 1) => println!("the ledger is empty: nothing was ever recorded in it"),
            (events, _) => println!("the ledger is whole: {events} events, chain verified"),
        }
    } else {
        if let Some(bad) = &report.first_bad {
            println!("event {} is not what was recorded: {}", bad.seq, bad.reason);
        }
        report.bad_rows.iter().for_each(|row| println!("{row}"));
    }
    Ok(report.ok)
}
