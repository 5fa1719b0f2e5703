//! What a server speaks with others, and how it keeps strangers out: every dialect by its own client, keys and certificates, the
//! page in a browser, what is told to Prometheus and to receivers of alerts.
//!
//! One program, so that the environments which clients need are made while other tests run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod auth;
#[path = "../common/mod.rs"]
mod common;
mod deploy;
mod grpc;
mod kserve;
mod oip;
mod openai;
mod openapi;
mod page;
mod schemathesis;
mod tei;
mod telling;
mod tls;
