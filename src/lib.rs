//! cutover
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod error;
pub mod ledger;
pub mod model;
pub mod ops;
pub mod repository;
pub mod value;
pub mod weights;
