//! The way forward: staging, promoting, waiting, joining.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::common::inputs::{digit, digits, distance, scores};
use super::common::{self, Client, DIGITS, Site, until};
use super::{assert_back, history, phases, settle};

#[tokio::test(flavor = "multi_thread")]
async fn a_staged_version_is_reached_by_name_only_and_promoting_it_switches() {
    let site = Site::digits();
    let server = site.start().await;
    let staged = server.post("/models/v2/stage", json!({})).await.expect(200);
    assert_eq!((staged.phase(), &staged.body["from"], &staged.body["to"]), ("ready", &json!("v1"), &json!("v2")));
    let model = server.model("digits").await;
    assert_eq!((&model["live"]["version"], &model["previous"]), (&json!("v1"), &Value::Null));
    assert_eq!((&model["candidate"]["version"], &model["candidate"]["phase"]), (&json!("v2"), &json!("ready")));
    assert_eq!(model["versions"], json!(["v1", "v2", "v3"]));

    let image = digit(7);
    assert_eq!(server.image("digits", &image).await.expect(200).version(), "v1");
    let by_name = server.image("digits@v2", &image).await.expect(200);
    assert_eq!((by_name.version(), by_name.label()), ("v2", "7"));
    assert_eq!((&by_name.body["model"], &by_name.body["version"]), (&json!("digits"), &json!("v2")));
    assert_eq!(by_name.header("x-cutover-model"), "digits");
    assert!(
        by_name.header("x-cutover-generation").parse::<u64>().is_ok() && !by_name.header("x-request-id").is_empty()
    );
    // Staging it again joins.
    assert_eq!(server.post("/models/v2/stage", json!({})).await.expect(200).id(), staged.id());

    let promoted = server.promote("v2", json!({})).await.expect(200);
    assert_eq!((promoted.phase(), promoted.id()), ("observing", staged.id()));
    assert_eq!(server.image("digits", &image).await.expect(200).version(), "v2");
    assert_eq!(server.image("digits@v1", &image).await.expect(200).version(), "v1");
    let model = server.model("digits").await;
    assert_eq!((&model["live"]["version"], &model["previous"]["version"]), (&json!("v2"), &json!("v1")));
    assert_eq!(model["candidate"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_is_as_slow_as_it_was_told_to_be() {
    let site = Site::digits();
    let rate = 1_000_000.0;
    site.model("digits", &format!("{DIGITS}\n[rollout]\nthrottle = \"1MB/s\"\n"));
    let server = site.start().await;
    let figures = server.promote("v2", json!({})).await.expect(200).body["figures"].clone();
    let (bytes, took) = (figures["loaded_bytes"].as_f64().unwrap(), figures["load_ms"].as_f64().unwrap() / 1e3);
    assert!(bytes > 500_000.0 && took >= bytes / rate, "{figures}");
    // Nobody was there to give way to.
    assert_eq!(figures["load_eased"], 0, "{figures}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_promote_does_the_whole_job_and_its_record_tells_all() {
    let site = Site::digits();
    let server = site.start().await;
    let order = json!({ "observe": "50ms", "wait": "settled", "reason": "better on sevens", "actor": "ada" });
    let done = server.promote("digits@v2", order).await.expect(200).body;
    assert_eq!((&done["phase"], &done["model"], &done["from"]), (&json!("settled"), &json!("digits"), &json!("v1")));
    assert_eq!((&done["actor"], &done["reason"]), (&json!("ada"), &json!("better on sevens")));
    let expected = ["reserving", "loading", "warming", "validating", "ready", "observing", "reclaiming", "settled"];
    assert_eq!(phases(&done), expected);
    for phase in done["phases"].as_array().unwrap() {
        assert!(phase["at"].as_str().unwrap().ends_with('Z') && phase["ms"].is_u64(), "{phase}");
    }
    let gate = done["gate"].as_array().unwrap();
    let of = |name: &str| gate.iter().filter(|check| check["check"] == name).count();
    // 40 cases of behaviour and 5 of numbers.
    assert_eq!((of("contract"), of("golden"), of("batch-invariance"), of("latency-ratio")), (1, 45, 1, 1));
    for check in gate {
        assert_eq!(check["passed"], true, "{check}");
        let keys = ["check", "passed", "measure", "limit", "case"];
        assert!(keys.iter().all(|key| check.get(key).is_some()), "{check}");
    }
    assert!(done["figures"]["downtime_ms"].as_f64().unwrap() >= 0.0, "{}", done["figures"]);
    assert!(done["started"].as_str().is_some() && done["digest"].as_str().is_some_and(|d| d.len() == 64), "{done}");
    // The same is read again, and stays.
    assert_eq!(server.rollout(done["id"].as_str().unwrap()).await, done);
    let model = server.model("digits").await;
    assert_eq!((&model["live"]["phase"], &model["previous"]), (&json!("settled"), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn promote_with_wait_none_answers_at_once_and_says_where_to_look() {
    let site = Site::digits().fault("version = 'digits@v2'\nkind = 'delay'\nat = 'load'\ndelay = '300ms'");
    let server = site.start().await;
    let accepted = server.promote("v2", json!({ "wait": "none" })).await.expect(202);
    assert!(["reserving", "loading"].contains(&accepted.phase()), "{}", accepted.body);
    let place = accepted.header("location").to_owned();
    assert_eq!(place, format!("/admin/rollouts/{}", accepted.id()));
    assert_eq!(server.live("digits").await, "v1");
    // Asking again joins, and waits as it says.
    let joined = server.promote("v2", json!({ "wait": "switched" })).await.expect(200);
    assert_eq!((joined.id(), joined.phase()), (accepted.id(), "observing"));
    assert_eq!(server.get(&place).await.expect(200).phase(), "observing");
}

#[tokio::test(flavor = "multi_thread")]
async fn promote_streams_its_progress_to_whoever_accepts_events() {
    let site = Site::digits().fault("version = 'digits@v2'\nkind = 'delay'\nat = 'load'\ndelay = '300ms'");
    let server = site.start().await;
    let mut events = server.follow("v2", json!({})).await;
    let mut seen = Vec::new();
    let last = loop {
        let event = events.next().await.expect("a last event");
        let phase = event.data["phase"].as_str().unwrap().to_owned();
        if event.name != "progress" {
            break event;
        }
        if seen.last() != Some(&phase) {
            seen.push(phase);
        }
    };
    assert!(seen.contains(&"loading".to_owned()), "{seen:?}");
    assert_eq!((last.name.as_str(), &last.data["phase"]), ("done", &json!("observing")));
    assert!(events.next().await.is_none(), "nothing follows the last event");

    let mut events = server.follow("v2", json!({})).await;
    let joined = events.next().await.unwrap();
    assert_eq!((joined.name.as_str(), &joined.data["id"]), ("done", &last.data["id"]));
    settle(&server, "digits").await.expect(200);
    let mut events = server.follow("v2", json!({})).await;
    let unchanged = events.next().await.unwrap();
    assert_eq!((unchanged.name.as_str(), &unchanged.data["unchanged"]), ("done", &json!(true)));

    let mut events = server.follow("v3", json!({})).await;
    let refused = events.until("error", |event| event.name == "error").await;
    assert_eq!(
        (&refused.data["error"]["kind"], &refused.data["rollout"]["phase"]),
        (&json!("refused"), &json!("refused"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_promotes_at_once_are_one_rollout() {
    let site = Site::digits();
    let server = site.start().await;
    let ask = |client: Client| async move { client.promote("v2", json!({})).await.expect(200).id() };
    let (a, b, c) = tokio::join!(ask(server.another()), ask(server.another()), ask(server.another()));
    assert_eq!((&a, &b), (&b, &c));
    assert_eq!(history(&server, "digits").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn promoting_the_live_version_changes_nothing() {
    let site = Site::digits();
    let server = site.start().await;
    for reference in ["v1", "digits@v1", "digits"] {
        let same = server.promote(reference, json!({})).await.expect(200);
        assert_eq!((&same.body["to"], &same.body["unchanged"]), (&json!("v1"), &json!(true)));
    }
    let same = server.post("/models/v1/stage", json!({})).await.expect(200);
    assert_eq!(same.body["unchanged"], true);
    assert!(history(&server, "digits").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_third_version_in_the_window_has_to_wait_and_hears_for_whom() {
    let site = Site::digits();
    let server = site.start().await;
    let first = server.promote("v2", json!({})).await.expect(200);
    for path in ["/models/v3/promote", "/models/v3/stage"] {
        let refused = server.post(path, json!({})).await.expect(409);
        assert_eq!((refused.kind(), &refused.body["error"]["details"]["rollout"]), ("conflict", &json!(first.id())));
        assert!(refused.message().contains(&first.id()), "{}", refused.message());
    }
    assert_eq!(server.live("digits").await, "v2");
}

#[tokio::test(flavor = "multi_thread")]
async fn models_roll_independently_and_must_be_named_when_there_are_several() {
    let site = Site::digits();
    site.add_digits("numbers");
    let server = site.start().await;
    let a = server.promote("digits@v2", json!({})).await.expect(200);
    let b = server.promote("numbers@v2", json!({})).await.expect(200);
    assert_eq!((a.phase(), b.phase()), ("observing", "observing"));
    assert_ne!(a.id(), b.id());
    let ambiguous = server.promote("v2", json!({})).await.expect(409);
    assert_eq!(ambiguous.body["error"]["details"]["candidates"], json!(["digits@v2", "numbers@v2"]));
    let unnamed = server.post("/admin/rollback", json!({})).await.expect(400);
    assert!(unnamed.message().contains("digits") && unnamed.message().contains("numbers"), "{}", unnamed.message());
    server.post("/admin/rollback", json!({ "model": "numbers" })).await.expect(200);
    assert_eq!((server.live("digits").await, server.live("numbers").await), ("v2".into(), "v1".into()));
    let listed = server.get("/models").await.expect(200).body;
    let names: Vec<_> = listed["models"].as_array().unwrap().iter().map(|m| m["name"].clone()).collect();
    assert_eq!(names, ["digits", "numbers"]);
}

/// Who presses Ctrl-C wants to know what becomes of what was ordered.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_stops_listening_to_a_promote_is_told_that_it_goes_on() {
    let site = Site::digits().fault("version = 'digits@v2'\nkind = 'delay'\nat = 'gate'\ndelay = '300ms'");
    let server = site.start().await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_cutover"));
    command
        .args(["promote", "v2", "--url", &format!("http://{}", server.address())])
        .stderr(Stdio::piped())
        .stdout(Stdio::piped());
    let mut listening = command.spawn().unwrap();
    let mut said = BufReader::new(listening.stderr.take().unwrap());
    let mut heard = String::new();
    while !heard.contains("validating") {
        assert_ne!(said.read_line(&mut heard).unwrap(), 0, "{heard}");
    }
    let sent = Command::new("kill").args(["-INT", &listening.id().to_string()]).status().unwrap();
    assert!(sent.success());
    said.read_to_string(&mut heard).unwrap();
    assert_eq!(listening.wait().unwrap().code(), Some(130), "{heard}");
    let rollout = server.get("/admin/rollouts?limit=1").await.expect(200).body["rollouts"][0].clone();
    let id = rollout["id"].as_str().unwrap();
    let told = format!("rollout {id} goes on: `cutover watch` follows it, `cutover abort {id}` ends it");
    assert!(heard.contains(&told), "{heard}");
    until("it goes on by itself", async || (server.live("digits").await == "v2").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_appears_can_be_promoted_without_a_restart() {
    let site = Site::digits();
    let server = site.start().await;
    server.promote("v4", json!({})).await.expect(404);
    site.version("digits", "v4", &common::root().join("models/digits/v2"));
    server.promote("v4", json!({})).await.expect(200);
    assert_eq!(server.live("digits").await, "v4");
    assert_eq!(server.model("digits").await["versions"], json!(["v1", "v2", "v3", "v4"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promote_goes_on_when_its_client_leaves() {
    let site = Site::digits().fault("version = 'digits@v2'\nkind = 'delay'\nat = 'load'\ndelay = '300ms'");
    let server = site.start().await;
    let mut events = server.another().follow("v2", json!({})).await;
    let id = events.phase("loading").await["id"].as_str().unwrap().to_owned();
    drop(events);
    let joined = server.promote("v2", json!({})).await.expect(200);
    assert_eq!((joined.id(), joined.phase()), (id, "observing"));

    // And so does one that waits for a single answer.
    server.post("/admin/rollback", json!({ "wait": "settled" })).await.expect(200);
    let impatient = server.another();
    let asked = tokio::spawn(async move { impatient.promote("v2", json!({})).await });
    until("the second rollout begins", async || {
        (server.model("digits").await["candidate"]["version"] == "v2").then_some(())
    })
    .await;
    asked.abort();
    assert!(asked.await.unwrap_err().is_cancelled());
    until("v2 is live", async || (server.live("digits").await == "v2").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_stays_while_a_candidate_loads() {
    let site = Site::digits().fault("version = 'digits@v2'\nkind = 'delay'\nat = 'load'\ndelay = '300ms'");
    let server = site.start().await;
    let mut events = server.follow("v2", json!({})).await;
    events.phase("loading").await;
    for path in ["/ready", "/health", "/v2/health/live", "/v2/health/ready"] {
        server.get(path).await.expect(200);
    }
    assert_eq!(server.image("digits", &digit(5)).await.expect(200).version(), "v1");
    assert_eq!(events.until("done", |event| event.name == "done").await.data["phase"], "observing");
}

#[tokio::test(flavor = "multi_thread")]
async fn replace_mode_drains_first_and_brings_blue_back_when_green_fails() {
    let site = Site::digits().fault("version = 'digits@v2'\nkind = 'delay'\nat = 'load'\ndelay = '400ms'");
    site.model("digits", &format!("{DIGITS}\n[rollout]\nmode = 'replace'\n"));
    let server = site.start().await;
    let reference = server.image("digits", &digit(8)).await.expect(200).body;
    let alone = server.reserved().await;
    assert_eq!(server.promote("v3", json!({})).await.expect(422).kind(), "refused");
    let back = server.image("digits", &digit(8)).await.expect(200);
    assert_eq!(back.version(), "v1");
    assert_back(&server, alone).await;
    assert_eq!(distance(&scores(&back.body), &scores(&reference)), 0.0);

    let mut events = server.follow("v2", json!({ "wait": "settled" })).await;
    let loading = events.phase("loading").await;
    assert_eq!(phases(&loading)[..2], ["draining", "reserving"]);
    let meanwhile = server.image("digits", &digit(8)).await.expect(503);
    assert_eq!(meanwhile.kind(), "not_serving");
    assert!(meanwhile.header("retry-after").parse::<u64>().unwrap() >= 1);
    server.get("/ready").await.expect(503);
    let done = events.until("done", |event| event.name == "done").await;
    assert_eq!(done.data["phase"], "settled");
    let downtime = server.rollout(done.data["id"].as_str().unwrap()).await["figures"]["downtime_ms"].clone();
    assert!(downtime.as_f64() >= Some(400.0), "nobody was answered while it loaded: {downtime}");
    for image in digits() {
        assert_eq!(server.image("digits", &image).await.expect(200).version(), "v2");
    }
    let cold = server.post("/admin/rollback", json!({})).await.expect(200);
    assert_eq!((&cold.body["kind"], &cold.body["to"]), (&json!("cold"), &json!("v1")));
}
