//! cutover
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod cli;
pub mod error;
pub mod ledger;
pub mod model;
pub mod process;
pub mod repository;
pub mod value;
pub mod weights;
