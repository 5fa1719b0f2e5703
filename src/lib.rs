//! cutover
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod cli;
pub mod error;
pub mod repository;
pub mod value;
