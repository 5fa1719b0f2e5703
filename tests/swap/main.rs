//! Every transition of a rollout over HTTP, with the statuses and bodies that tools rely on (DESIGN sections 3 and 7).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

mod back;
mod differing;
mod gone;
mod memory;
mod promote;
mod refusals;
mod telling;

use common::{Answer, Client, Server};
use serde_json::{Value, json};

/// The ids of the rollouts of a model in the ledger, newest first, with how they ended.
async fn history(server: &Client, model: &str) -> Vec<(String, String)> {
    let body = server.get(&format!("/admin/rollouts?model={model}")).await.expect(200).body;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    body["rollouts"].as_array().unwrap().iter().map(|r| (text(&r["id"]), text(&r["phase"]))).collect()
}

fn phases(rollout: &Value) -> Vec<&str> {
    rollout["phases"].as_array().unwrap().iter().map(|phase| phase["phase"].as_str().unwrap()).collect()
}

/// What is reserved is what was reserved before, to the byte.
async fn assert_back(server: &Server, before: u64) {
    let memory = server.memory().await;
    let now = memory["reserved"].as_u64().unwrap();
    assert_eq!(now, before, "{memory}");
}

async fn settle(server: &Server, model: &str) -> Answer {
    server.post("/admin/settle", json!({ "model": model })).await
}
