//! The commands that work on this machine, without a server.

use std::path::Path;
use std::process::ExitCode;

use super::{Local, serve};
use crate::error::Result;
use crate::ledger::Ledger;

impl Local {
    pub fn run(self) -> ExitCode {
        match self {
            Local::Serve(args) => serve::run(args),
            Local::Verify { state, json } => told(verify(&state, json)),
            Local::Golden(_) | Local::Inspect(_) | Local::Pull(_) => ExitCode::FAILURE,
        }
    }
}

/// An error goes to standard error and is exit code 1.
fn told(outcome: Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cutover: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `history --verify`: recomputes the chain.
fn verify(state: &Path, json: bool) -> Result<bool> {
    let report = Ledger::open_read_only(&state.join("ledger.sqlite"))?.verify()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&report).unwrap_or_default());
    } else if report.ok {
        println!("the ledger is whole: {} events, chain verified", report.events);
    } else {
        if let Some(bad) = &report.first_bad {
            println!("event {} is not what was recorded: {}", bad.seq, bad.reason);
        }
        report.bad_rows.iter().for_each(|row| println!("{row} is not what was recorded"));
    }
    Ok(report.ok)
}
