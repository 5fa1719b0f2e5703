//! Bad input gets a clear error, and nothing is lost: versions that cannot be served, requests that make no sense or
//! ask for too much, and a disk without room.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

mod bombs;
mod disk;
mod limits;
mod requests;
mod versions;
