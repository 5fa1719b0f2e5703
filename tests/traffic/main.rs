//! Live traffic before and beside a switch: canaries, shadows, experiments.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

mod canary;
mod experiment;
mod orders;
mod shadow;

use common::inputs::digit;
use common::{Answer, Client, answered, until};
use reqwest::Method;
use serde_json::Value;

/// A digit that a user asks for.
async fn asked(client: &Client, user: usize) -> Answer {
    let request = client.request(Method::POST, "/models/digits/infer").header("x-user", format!("user-{user}"));
    answered(request.header("content-type", "image/png").body(digit(user % 10).to_vec())).await.unwrap()
}

/// The rollout once it is in a phase.
async fn in_phase(client: &Client, id: &str, phase: &str) -> Value {
    until(&format!("the rollout is {phase}"), async || {
        let rollout = client.rollout(id).await;
        (rollout["phase"] == phase).then_some(rollout)
    })
    .await
}
