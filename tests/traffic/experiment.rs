//! Two versions that share requests for as long as somebody compares them.

use reqwest::Method;
use serde_json::{Value, json};

use super::common::{Client, Site};
use super::{asked, in_phase};

async fn started(client: &Client, more: Value) -> Value {
    let mut body = json!({ "name": "tone", "weights": { "v1": 50, "v2": 50 }, "sticky": "header:x-user" });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    client.post("/admin/experiments", body).await.expect(200).body
}

async fn said(client: &Client, id: &str, score: Value) -> u16 {
    client.post("/v1/feedback", json!({ "request_id": id, "score": score })).await.status
}

async fn running(client: &Client) -> Vec<Value> {
    client.get("/admin/experiments").await.expect(200).body["experiments"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_say_tells_which_version_is_better() {
    let site = Site::digits();
    let server = site.start().await;
    let rollout = started(&server, json!({})).await;
    let id = rollout["id"].as_str().unwrap().to_owned();
    assert_eq!(rollout["phase"], "experiment");
    let mut answers = [0usize; 2];
    for user in 0..400 {
        let answer = asked(&server, user).await.expect(200);
        assert_eq!(asked(&server, user).await.expect(200).version(), answer.version(), "everybody stays");
        let other = answer.version() == "v2";
        answers[usize::from(other)] += 1;
        // Of the other one they think well, of what is live they do not; not all of them.
        let score = if (user % 5 == 0) == other { 0.0 } else { 1.0 };
        assert_eq!(said(&server, answer.header("x-request-id"), json!(score)).await, 200);
    }
    assert!(answers.iter().all(|count| *count > 120), "{answers:?}");
    let told = super::until("the report has all", async || {
        let told = running(&server).await.remove(0);
        (told["arms"][0]["feedback"]["count"] == answers[0]).then_some(told)
    })
    .await;
    assert_eq!((&told["name"], &told["model"], &told["rollout"]), (&json!("tone"), &json!("digits"), &json!(id)));
    let arms = told["arms"].as_array().unwrap();
    assert_eq!(
        (arms[0]["answered"].as_u64(), arms[1]["answered"].as_u64()),
        (Some(2 * answers[0] as u64), Some(2 * answers[1] as u64))
    );
    assert!(arms[0]["p99_ms"].as_f64().unwrap() > 0.0);
    let feedback = &told["feedback"];
    assert_eq!(feedback["better"], "v2", "{feedback}");
    let (low, high) = (feedback["interval"][0].as_f64().unwrap(), feedback["interval"][1].as_f64().unwrap());
    assert!(low > 0.0 && low < 0.6 && high > 0.6, "{feedback}");

    // It goes on beside others' wishes, and ends by its name.
    let again = json!({ "name": "tone", "weights": { "v1": 50, "v2": 50 } });
    assert_eq!(server.post("/admin/experiments", again).await.expect(409).kind(), "conflict");
    let other = json!({ "name": "pitch", "weights": { "v1": 50, "v2": 50 } });
    assert!(server.post("/admin/experiments", other).await.expect(409).message().contains("'tone' goes on"));
    server.delete("/admin/experiments/pitch").await.expect(404);
    let stopped = server.delete("/admin/experiments/tone").await.expect(200);
    assert_eq!(
        (&stopped.body["phase"], &stopped.body["figures"]["experiment"]["feedback"]["better"]),
        (&json!("ready"), &json!("v2"))
    );
    assert_eq!(running(&server).await.len(), 0);
    for user in 0..20 {
        assert_eq!(asked(&server, user).await.expect(200).version(), "v1");
    }
    server.promote("v2", json!({})).await.expect(200);
    in_phase(&server, &id, "observing").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_better_one_is_promoted_out_of_its_experiment() {
    let site = Site::digits();
    let server = site.start().await;
    let id = started(&server, json!({ "weights": { "v1": 90, "v2": 10 } })).await["id"].as_str().unwrap().to_owned();
    for user in 0..40 {
        asked(&server, user).await.expect(200);
    }
    assert_eq!(server.promote("v2", json!({})).await.expect(200).id(), id);
    assert_eq!((server.live("digits").await, running(&server).await.len()), ("v2".to_owned(), 0));
    let figures = server.rollout(&id).await["figures"]["experiment"].clone();
    let answered: u64 = figures["arms"].as_array().unwrap().iter().map(|arm| arm["answered"].as_u64().unwrap()).sum();
    assert_eq!(answered, 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_breaks_in_an_experiment_ends_it() {
    let site = Site::digits().fault("version = 'digits@v2'\nkind = 'error'\nat = 'serving'");
    let server = site.start().await;
    let id = started(&server, json!({})).await["id"].as_str().unwrap().to_owned();
    let mut user = 0;
    while server.rollout(&id).await["phase"] == "experiment" {
        assert_eq!(asked(&server, user).await.expect(200).version(), "v1");
        user += 1;
    }
    let ended = in_phase(&server, &id, "rolled_back").await;
    assert!(ended["figures"]["experiment"]["arms"][1]["failed"].as_u64().unwrap() >= 1, "{}", ended["figures"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_experiment_with_a_version_in_a_canary_is_refused_at_once() {
    let site = Site::digits();
    let server = site.start().await;
    let canary = json!({ "canary": [50], "canary_step": "10m", "wait": "none" });
    let id = server.promote("v2", canary).await.expect(202).id();
    let order = json!({ "name": "tone", "weights": { "v1": 50, "v2": 50 } });
    let refused = server.post("/admin/experiments", order).await.expect(409);
    assert!(refused.message().contains("in phase 'canary'"), "{}", refused.message());
    assert_eq!(in_phase(&server, &id, "canary").await["phase"], "canary");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_compared_or_told_is_refused() {
    let site = Site::digits();
    let server = site.start().await;
    for (body, told) in [
        (json!({ "name": "tone", "weights": { "v1": 70, "v2": 40 } }), "add up to 110"),
        (json!({ "name": "tone", "weights": { "v2": 50, "v3": 50 } }), "'v1', which is live"),
        (json!({ "name": "tone", "weights": { "v1": 100 } }), "one other version"),
        (json!({ "name": "a b", "weights": { "v1": 50, "v2": 50 } }), "letters, digits"),
        (json!({ "name": "tone", "weights": { "v1": 50, "v2": 50 }, "sticky": "moon" }), "sticky"),
        (json!({ "weights": { "v1": 50, "v2": 50 } }), "missing field `name`"),
    ] {
        let refused = server.post("/admin/experiments", body).await.expect(400);
        assert!(refused.message().contains(told), "{}", refused.message());
    }
    let unknown = json!({ "name": "tone", "weights": { "v1": 50, "v9": 50 } });
    server.post("/admin/experiments", unknown).await.expect(404);
    // v3 is broken on purpose: its gate says no.
    let broken = json!({ "name": "tone", "weights": { "v1": 50, "v3": 50 } });
    assert_eq!(server.post("/admin/experiments", broken).await.expect(422).kind(), "refused");
    started(&server, json!({})).await;
    assert_eq!(said(&server, "never-given", json!(1)).await, 404);
    assert_eq!(said(&server, "never-given", json!("good")).await, 400);
    for far in [1e18, -1001.0] {
        assert_eq!(said(&server, "never-given", json!(far)).await, 400);
    }
    let dropped = server.request(Method::DELETE, "/models/digits@v2").send().await.unwrap();
    assert_eq!(dropped.status(), 409, "it answers in the experiment");
    assert_eq!(running(&server).await.len(), 1);
    let huge = server.request(Method::POST, "/v1/feedback").header("content-type", "application/json");
    assert_eq!(huge.body(r#"{"request_id": "x", "score": 1e999}"#).send().await.unwrap().status(), 400);
}
