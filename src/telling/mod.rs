//! Telling others: alerts to webhooks, and traces to a collector.
//!
//! It learns what happened from the stream of events that the ledger records, and what was answered from whoever answers; it must not
//! know rollouts, slots or HTTP routes, and nothing waits for it: everything goes through a bounded queue to a task of its own.
//! `config` is what `cutover.toml` says; `alert`, `body`, `seen` and `retry` are pure; `post` sends, `deliver` sends again until it is
//! told; `span` and `otlp` are traces as data, `traces` exports them. Off unless configured.

mod alert;
mod body;
mod config;
mod deliver;
mod feed;
mod otlp;
mod post;
mod retry;
mod seen;
mod span;
mod traces;

pub use alert::Alert;
pub use config::{AlertTarget, Cause, Kind, TelemetryTarget};
pub use deliver::{Targets, Telling, Tried};
pub use feed::Feed;
pub(crate) use retry::pause;
pub use span::{Begun, Ended};
pub use traces::{Collector, Traces};

/// What may become of an alert.
pub const OUTCOMES: [&str; 4] = ["delivered", "given_up", "duplicate", "dropped"];

/// Somebody who counts what became of what was told: whose it was, and what became of it.
pub type Count = std::sync::Arc<dyn Fn(&str, &'static str) + Send + Sync>;
