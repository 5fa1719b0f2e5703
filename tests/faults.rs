//! Versions that err, panic, hang, slow down or answer NaN, before the switch and after it: green's faults are not the
//! client's (promise 7), and blue never notices (promise 5).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::fetched::RULES;
use common::inputs::digit;
use common::{Answer, Client, DIGITS, PATIENCE, Server, Site, fixture, until};
use reqwest::Method;
use serde_json::{Value, json};

fn fault(kind: &str, at: &str, rate: f64) -> String {
    format!("version = 'digits@v2'\nkind = '{kind}'\nat = '{at}'\nrate = {rate:?}")
}

async fn in_phase(server: &Client, id: &str, phase: &str) -> Value {
    until(phase, async || {
        let rollout = server.rollout(id).await;
        (rollout["phase"] == phase).then_some(rollout)
    })
    .await
}

/// The sum of all samples of a metric.
async fn metric(server: &Client, name: &str) -> f64 {
    let text = server.get("/metrics").await.expect(200).body.as_str().unwrap().to_owned();
    let of = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    text.lines().filter(of).map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

/// Clients that ask without a pause and count every answer that is not right: 200, whole, and of the right digit.
struct Crowd {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    answered: Arc<AtomicUsize>,
}

impl Crowd {
    fn gather(server: &Server, clients: usize) -> Crowd {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let tasks = (0..clients).map(|n| {
            let (client, stop, answered) = (server.another(), Arc::clone(&stop), Arc::clone(&answered));
            tokio::spawn(async move {
                for at in (n..).take_while(|_| !stop.load(Ordering::Acquire)) {
                    let answer = client.image("digits", &digit(at % 10)).await.expect(200);
                    assert_eq!(answer.label(), (at % 10).to_string(), "answered by {}", answer.version());
                    answered.fetch_add(1, Ordering::Release);
                }
            })
        });
        Crowd { tasks: tasks.collect(), stop, answered }
    }

    async fn answers(&self, more: usize) {
        let wanted = self.answered.load(Ordering::Acquire) + more;
        until("the crowd has its answers", async || {
            assert!(!self.tasks.iter().any(|task| task.is_finished()), "a client gave up");
            (self.answered.load(Ordering::Acquire) >= wanted).then_some(())
        })
        .await;
    }

    async fn leave(self) {
        self.stop.store(true, Ordering::Release);
        for task in self.tasks {
            task.await.expect("every answer was right");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_answered_by_blue_when_green_fails_and_a_breach_rolls_back_by_itself() {
    for (kind, rule) in [("error", "error rate"), ("panic", "error rate"), ("non-finite", "non-finite outputs")] {
        let site = Site::digits().fault(&fault(kind, "serving", 0.3));
        let server = site.start().await;
        let mut events = server.stream(Method::GET, "/admin/events", Value::Null).await;
        let crowd = Crowd::gather(&server, 4);
        crowd.answers(20).await;
        let promoted = server.promote("v2", json!({})).await.expect(200);
        let ended = in_phase(&server, &promoted.id(), "rolled_back").await;
        assert!(ended["reason"].as_str().unwrap().contains(rule), "{kind}: {}", ended["reason"]);
        assert_eq!(ended["kind"], "instant");
        crowd.answers(20).await;
        crowd.leave().await;
        assert_eq!(server.live("digits").await, "v1");
        assert!(metric(&server, "cutover_failovers_total").await >= 1.0, "{kind}");
        let alert = events.until("an alert", |event| event.name == "alert").await;
        assert!(alert.data["body"]["reason"].as_str().unwrap().contains(rule), "{}", alert.data);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_over_answer_wears_blues_stamp() {
    let site = Site::digits().fault(&fault("error", "serving", 1.0));
    // Nothing is judged, so that the window lasts.
    site.model("digits", &DIGITS.replace("golden_every", "max_error_rate = 1.0\ngolden_every"));
    let server = site.start().await;
    let promoted = server.promote("v2", json!({})).await.expect(200);
    for n in 0..10 {
        let answer = server.image("digits", &digit(n)).await.expect(200);
        assert_eq!((answer.version(), answer.body["version"].as_str().unwrap()), ("v1", "v1"));
        assert_eq!(answer.label(), n.to_string());
    }
    let seen = until("the window's figures are told", async || {
        let window = server.rollout(&promoted.id()).await["figures"]["window"].clone();
        // Two counters: a look may fall between them.
        (window["blamed"] == 10 && window["failovers"] == 10).then_some(window)
    })
    .await;
    assert_eq!(seen["unexplained"], json!(0));
    // Whoever names the version gets what it gives.
    let named = server.image("digits@v2", &digit(1)).await.expect(500);
    assert_eq!((named.kind(), named.version()), ("internal", "v2"));
    assert!(!named.message().contains("purpose"), "what went wrong inside is for the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_on_both_versions_is_not_blamed_on_green() {
    let site = Site::digits()
        .fault(&fault("error", "serving", 1.0))
        .fault("version = 'digits@v1'\nkind = 'error'\nat = 'serving'");
    let server = site.start().await;
    let promoted = server.promote("v2", json!({})).await.expect(200);
    for n in 0..30 {
        server.image("digits", &digit(n % 10)).await.expect(500);
    }
    let window = until("thirty are counted", async || {
        let window = server.rollout(&promoted.id()).await["figures"]["window"].clone();
        (window["unexplained"] == 30).then_some(window)
    })
    .await;
    assert_eq!((&window["blamed"], &window["failovers"]), (&json!(0), &json!(0)));
    assert_eq!(server.rollout(&promoted.id()).await["phase"], "observing");
    assert_eq!(server.live("digits").await, "v2");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_blue_breaks_of_a_text_that_it_took_over_is_its_own() {
    let fault = |version: &str, rate: f64| {
        format!("version = 'tiny@{version}'\nkind = 'error'\nat = 'serving'\nrate = {rate:?}")
    };
    let site = Site::new().fault(&fault("c", 1.0)).fault(&fault("a", 0.2));
    site.add_writer("tiny");
    site.model("tiny", &format!("task = 'generate'\nlive = 'a'\n{RULES}max_error_rate = 1.0\n"));
    let server = site.start().await;
    let promoted = server.promote("tiny@c", json!({})).await.expect(200);
    let order = json!({"model": "tiny", "prompt": "it", "max_tokens": 40, "ignore_eos": true, "temperature": 0});
    let mut failed = 0;
    for _ in 0..10 {
        failed += usize::from(server.post("/v1/completions", order.clone()).await.status == 500);
    }
    assert!(failed > 5, "{failed} of 10: blue fails in every fifth step");
    let window = until("each of them is counted", async || {
        let window = server.rollout(&promoted.id()).await["figures"]["window"].clone();
        let count = |what: &str| window[what].as_u64().unwrap_or(0);
        (count("failovers") + count("unexplained") >= 10 && count("blamed") == count("failovers")).then_some(window)
    })
    .await;
    let times = window["failovers"].as_u64().unwrap() + window["unexplained"].as_u64().unwrap();
    assert_eq!(times, 10, "{window:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_name_a_version_count_in_no_window() {
    let site = Site::digits().fault(&fault("non-finite", "serving", 1.0));
    let server = site.start().await;
    let promoted = server.promote("v2", json!({})).await.expect(200);
    for n in 0..10 {
        server.image("digits@v2", &digit(n)).await.expect(500);
    }
    let window = until("the rules were judged", async || {
        let window = server.rollout(&promoted.id()).await["figures"]["window"].clone();
        window.is_object().then_some(window)
    })
    .await;
    assert_eq!((&window["blamed"], &window["nonfinite"]), (&json!(0), &json!(0)));
    assert_eq!(server.live("digits").await, "v2");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_equal_there_is_no_failover_but_a_rollback() {
    let site = Site::new().fault("version = 'texts@cls'\nkind = 'error'\nat = 'serving'");
    site.model("texts", "task = 'embed'\nlive = 'mean'\n[gate]\nmax_latency_ratio = 1000\n[observe]\nwindow = '1h'\n");
    site.version("texts", "mean", &fixture("bert-embed-mean"));
    site.version("texts", "cls", &fixture("bert-embed-cls"));
    let server = site.start().await;
    let promoted = server.promote("cls", json!({ "accept_contract_change": true })).await.expect(200);
    let (mut failed, began) = (0, std::time::Instant::now());
    while server.texts("texts", &["harbour"]).await.status == 500 {
        failed += 1;
        assert!(began.elapsed() < PATIENCE, "it is never rolled back");
    }
    assert!(failed >= 20, "rolled back after {failed} requests, fewer than the rule asks for");
    in_phase(&server, &promoted.id(), "rolled_back").await;
    assert_eq!(server.texts("texts", &["harbour"]).await.expect(200).version(), "mean");
}

/// Promotes `v2`, which must come to nothing while a crowd is answered as ever.
async fn comes_to_nothing(site: &Site) -> (Server, Answer) {
    let server = site.start().await;
    let before = server.reserved().await;
    let crowd = Crowd::gather(&server, 2);
    let refused = server.promote("v2", json!({})).await.expect(422);
    crowd.answers(10).await;
    crowd.leave().await;
    assert_eq!((server.live("digits").await, refused.kind()), ("v1".into(), "refused"));
    let memory = server.memory().await;
    let (reserved, abandoned) = (memory["reserved"].as_u64().unwrap(), memory["abandoned"].as_u64().unwrap());
    assert_eq!(reserved - abandoned, before, "{memory}");
    (server, refused)
}

async fn abandoned(server: &Server) -> u64 {
    server.memory().await["abandoned"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_errs_panics_or_is_not_finite_on_probation_is_refused() {
    for (kind, measure) in [("error", "internal"), ("panic", "internal"), ("non-finite", "internal")] {
        let (server, refused) = comes_to_nothing(&Site::digits().fault(&fault(kind, "gate", 1.0))).await;
        let failed = &refused.body["error"]["details"]["failed"];
        assert!(failed.as_array().is_some_and(|failed| !failed.is_empty()), "{}", refused.body);
        assert_eq!(failed[0]["measure"], measure, "{failed}");
        assert_eq!(abandoned(&server).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_fails_now_and_then_on_probation_is_refused_with_the_cases_it_failed() {
    for kind in ["error", "panic", "non-finite"] {
        let (server, refused) = comes_to_nothing(&Site::digits().fault(&fault(kind, "gate", 0.2))).await;
        let failed = refused.body["error"]["details"]["failed"].as_array().unwrap().clone();
        assert!(!failed.is_empty() && failed.len() < 40, "{} cases failed", failed.len());
        // The answer and the record count the same checks.
        let last = server.get("/admin/rollouts?limit=1").await.expect(200).body["rollouts"][0].clone();
        let checks = last["gate"].as_array().unwrap();
        assert_eq!(checks.iter().filter(|check| check["passed"] == false).count(), failed.len());
        let counts = format!("{} of {} checks", failed.len(), checks.len());
        assert!(refused.message().contains(&counts), "{} should say {counts}", refused.message());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_errs_or_panics_while_it_is_loaded_fails() {
    for kind in ["error", "panic"] {
        let (server, refused) = comes_to_nothing(&Site::digits().fault(&fault(kind, "load", 1.0))).await;
        assert!(
            refused.message().contains("digits@v2") && refused.message().contains("purpose"),
            "{}",
            refused.message()
        );
        let last = server.get("/admin/rollouts?limit=1").await.expect(200).body["rollouts"][0].clone();
        assert_eq!((&last["phase"], &last["to"]), (&json!("failed"), &json!("v2")));
        assert_eq!(abandoned(&server).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_hangs_before_the_switch_is_abandoned_with_its_memory() {
    // Each is short only where it hangs: on a busy machine a load may well read nothing for that long.
    let gate = DIGITS.replace("case_timeout = \"20s\"", "case_timeout = \"300ms\"");
    let load = format!("{DIGITS}\n[rollout]\nload_timeout = '1s'\n");
    for (at, patience) in [("gate", &gate), ("load", &load)] {
        let site = Site::digits().fault(&fault("hang", at, 1.0));
        site.model("digits", patience);
        let (server, refused) = comes_to_nothing(&site).await;
        assert!(refused.body.to_string().contains("hung"), "{}", refused.body);
        let kept = abandoned(&server).await;
        assert!(kept > 500_000, "{kept} bytes are kept for a thread that may still write to them");
        let memory = server.memory().await;
        let holders: Vec<_> = memory["reservations"].as_array().unwrap().iter().map(|r| r["holder"].clone()).collect();
        assert!(holders.contains(&json!("digits@v2")), "{memory}");
        // It hangs the next time too, and the server goes on.
        server.promote("v2", json!({})).await.expect(422);
        assert_eq!(abandoned(&server).await, 2 * kept);
        assert_eq!(server.image("digits", &digit(1)).await.expect(200).version(), "v1");
    }
}

/// A rollout to `digits@v2` that has come as far as where a fault strikes it.
async fn struck(fault: &str, phase: &str) -> (Site, Server, String) {
    let site = Site::digits().fault(fault);
    let server = site.start().await;
    let begun = server.promote("v2", json!({ "wait": "none" })).await.expect(202);
    in_phase(&server, &begun.id(), phase).await;
    let id = begun.id();
    (site, server, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_need_not_wait_for_what_hangs() {
    for (at, phase) in [("gate", "warming"), ("load", "loading")] {
        let (_site, server, id) = struck(&fault("hang", at, 1.0), phase).await;
        let began = Instant::now();
        let aborted = server.post(&format!("/admin/rollouts/{id}/abort"), json!({})).await.expect(200);
        assert_eq!(aborted.body["phase"], "aborted", "{}", aborted.body);
        assert!(began.elapsed() < Duration::from_secs(10), "its patience is twice that: {:?}", began.elapsed());
        assert!(abandoned(&server).await > 500_000);
        assert_eq!(server.image("digits", &digit(1)).await.expect(200).version(), "v1");

        let (_site, mut server, _) = struck(&fault("hang", at, 1.0), phase).await;
        server.terminate();
        let began = Instant::now();
        assert_eq!(server.ended().await, 0, "{}", server.log());
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_abandoned_comes_back_when_it_ends_after_all() {
    for (at, phase) in [("gate", "warming"), ("load", "loading")] {
        let slow = format!("{}\ndelay = '4s'", fault("delay", at, 1.0));
        let (_site, server, id) = struck(&slow, phase).await;
        let before = server.memory().await["reserved"].as_u64().unwrap();
        server.post(&format!("/admin/rollouts/{id}/abort"), json!({})).await.expect(200);
        let kept = abandoned(&server).await;
        assert!(kept > 500_000 && kept < before, "{kept} of {before}");
        until("the thread has ended", async || {
            let memory = server.memory().await;
            (memory["abandoned"] == 0 && memory["reserved"] == before - kept).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_much_slower_than_the_one_before_is_taken_back() {
    let delay = format!("{}\ndelay = '25ms'", fault("delay", "serving", 1.0));
    let site = Site::digits().fault(&delay);
    site.model("digits", &DIGITS.replace("max_p99_ratio = 1000.0", "max_p99_ratio = 2.0"));
    let server = site.start().await;
    let crowd = Crowd::gather(&server, 4);
    crowd.answers(150).await;
    let promoted = server.promote("v2", json!({})).await.expect(200);
    let ended = in_phase(&server, &promoted.id(), "rolled_back").await;
    crowd.leave().await;
    assert!(ended["reason"].as_str().unwrap().contains("p99"), "{}", ended["reason"]);
    let figures = &ended["figures"];
    let (baseline, window) =
        (figures["baseline_p99_ms"].as_f64().unwrap(), figures["window"]["p99_ms"].as_f64().unwrap());
    assert!(window > 2.0 * baseline && window >= 25.0, "{figures}");
    assert_eq!(server.live("digits").await, "v1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_service_is_observed_by_its_golden_cases() {
    for kind in ["non-finite", "error"] {
        let site = Site::digits().fault(&fault(kind, "window", 1.0));
        site.model("digits", &DIGITS.replace("golden_every = \"1h\"", "golden_every = \"100ms\""));
        let server = site.start().await;
        let mut events = server.stream(Method::GET, "/admin/events", Value::Null).await;
        let promoted = server.promote("v2", json!({})).await.expect(200);
        let ended = in_phase(&server, &promoted.id(), "rolled_back").await;
        assert!(
            ended["reason"].as_str().unwrap().contains("golden checks failed in the window"),
            "{}",
            ended["reason"]
        );
        assert!(ended["gate"].as_array().unwrap().iter().any(|check| check["passed"] == false));
        assert_eq!(server.live("digits").await, "v1");
        events.until("an alert", |event| event.name == "alert").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn golden_cases_that_pass_again_are_counted_and_change_nothing() {
    let site = Site::digits();
    site.model("digits", &DIGITS.replace("golden_every = \"1h\"", "golden_every = \"100ms\""));
    let server = site.start().await;
    let promoted = server.promote("v2", json!({})).await.expect(200);
    until("they ran twice", async || {
        let rollout = server.rollout(&promoted.id()).await;
        assert_eq!(rollout["phase"], "observing", "{rollout}");
        (rollout["figures"]["window"]["golden_runs"].as_u64() >= Some(2)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_are_honoured_only_where_the_server_was_told_to() {
    let site = Site::digits().config(&format!("[[faults]]\n{}", fault("error", "serving", 1.0)));
    let (code, said) = site.refused();
    assert_eq!(code, 1);
    assert!(said.contains("--allow-faults"), "{said}");
}
