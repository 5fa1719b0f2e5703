//! Parses the command line and dispatches; nothing else.

use std::process::ExitCode;

use clap::Parser as _;
use cutover::cli::{Cli, Dispatch};

// Weights are measured by arena (see `device::arena`), which needs this allocator.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match Cli::parse().dispatch() {
        Dispatch::Done(code) => code,
        Dispatch::Local(local) => local.run(),
    }
}
