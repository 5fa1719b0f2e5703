//! Models that are fetched on first use, by the script that ships with the repository.

use std::process::Command;
use std::sync::OnceLock;

use super::{root, skipped};

/// For tests: no verdict on timings, and a window that ends when a test says so.
pub(crate) const RULES: &str = "[gate]\nmax_latency_ratio = 1000\nlatency_rounds = 2\n\
                                [observe]\nwindow = '1h'\ngolden_every = '1h'\nmax_p99_ratio = 1000\n";

/// A model of `models/`.
pub(crate) struct Fetched {
    name: &'static str,
    title: &'static str,
    here: OnceLock<Result<(), String>>,
}

impl Fetched {
    pub(crate) const fn new(name: &'static str, title: &'static str) -> Fetched {
        Fetched { name, title, here: OnceLock::new() }
    }

    /// Whether its versions are there, brought when they are not. Where they cannot be had, the test that asks is skipped,
    /// and that is said.
    pub(crate) fn is_here(&self) -> bool {
        match self.here.get_or_init(|| self.fetch()) {
            Ok(()) => true,
            Err(why) => {
                let Fetched { name, title, .. } = self;
                skipped(&format!("{title} could not be fetched (try 'models/fetch {name}' yourself): {why}"));
                false
            }
        }
    }

    /// The script takes a lock of its own and leaves alone what is there and right.
    fn fetch(&self) -> Result<(), String> {
        let mut command = Command::new("python3");
        command.arg(root().join("models/fetch")).args([self.name, "--cutover", env!("CARGO_BIN_EXE_cutover")]);
        let output = command.output().map_err(|e| format!("python3 could not be run: {e}"))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }
}
