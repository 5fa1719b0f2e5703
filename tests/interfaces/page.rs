//! The page: its files without a browser, its stream, and a whole rollout driven by clicks in a real Chromium.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::common::inputs::digit;
use crate::common::{Client, Events, Server, Site, python, root, skipped};
use reqwest::Method;
use serde_json::{Value, json};

/// A name that a version may have, and that would be a picture were it taken for markup.
const HOSTILE: &str = "<img src=x onerror=alert(1)>";
/// All of the page, and what it asks for until it shows everything.
const MOST_BYTES: u64 = 150_000;

fn policy(answer: &crate::common::Answer) -> String {
    answer.headers["content-security-policy"].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn files_are_served_to_everybody_and_run_no_foreign_script() {
    let token = Site::new();
    let file = token.path().join("token");
    std::fs::write(&file, "a token of more than sixteen characters").unwrap();
    let server = token.arg("--admin-token-file").arg(file.to_str().unwrap()).start().await;
    let page = server.get("/").await.expect(200);
    assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
    let html = page.body.as_str().unwrap().to_owned();
    let links = html.split('"').filter(|part| part.starts_with("/page/"));
    let mut total = html.len();
    let mut links: Vec<String> = links.map(str::to_owned).collect();
    let mut at = 0;
    while at < links.len() {
        let answer = server.get(&links[at]).await.expect(200);
        let kind = answer.headers["content-type"].to_str().unwrap();
        let expected = match links[at].rsplit('.').next().unwrap() {
            "js" => "text/javascript; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            _ => "image/svg+xml",
        };
        assert_eq!(kind, expected, "{}", links[at]);
        assert!(policy(&answer).starts_with("default-src 'none'; script-src 'self';"));
        assert!(!policy(&answer).contains("unsafe"));
        let text = answer.body.as_str().unwrap();
        total += text.len();
        // Modules name each other.
        for other in text.split('"').filter_map(|part| part.strip_prefix("./")) {
            let other = format!("/page/{other}");
            if !links.contains(&other) {
                links.push(other);
            }
        }
        let tag = answer.headers["etag"].clone();
        let again = server.request(Method::GET, &links[at]).header("if-none-match", tag).send().await.unwrap();
        assert_eq!(again.status(), 304);
        at += 1;
    }
    assert_eq!(links.len(), 6, "{links:?}");
    assert!(total < 100_000, "{total} bytes");
    server.get("/page/mod.rs").await.expect(404);
    server.get("/admin/live").await.expect(401);
    server.get("/admin/plots/latency?model=digits").await.expect(401);
}

#[tokio::test]
async fn the_stream_tells_of_a_switch_within_a_second_and_of_what_is_asked() {
    let server = Site::digits().start().await;
    let mut live = Events::open(server.request(Method::GET, "/admin/live")).await;
    let first = live.next().await.unwrap().data;
    assert_eq!(first["models"][0]["live"]["version"], "v1");
    assert!(first["memory"]["reserved"].as_u64().unwrap() > 0);
    server.image("digits", &digit(7)).await.expect(200);
    let counted = |event: &crate::common::http::Event| event.data["models"][0]["generations"][0]["answered"] == 1;
    let told = live.until("a request is counted", counted).await;
    let generation = &told.data["models"][0]["generations"][0];
    assert!(generation["p99_ms"].as_f64().unwrap() > 0.0, "{generation}");
    server.promote("v2", json!({ "wait": "switched" })).await.expect(200);
    let switched = Instant::now();
    live.until("the switch is told", |event| event.data["models"][0]["live"]["version"] == "v2").await;
    assert!(switched.elapsed() < Duration::from_secs(1), "{:?}", switched.elapsed());
    // Sampled once a second; a line takes two samples.
    crate::common::until("the plot shows what was answered", async || {
        server.image("digits", &digit(7)).await.expect(200);
        let plot = server.get("/admin/plots/latency?model=digits").await.expect(200);
        plot.body.as_str().unwrap().contains("var(--p99)").then_some(())
    })
    .await;
}

/// Where Debian and others put it.
fn chromium() -> Option<PathBuf> {
    let places = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
    places.into_iter().map(Path::new).find(|place| place.exists()).map(Path::to_owned)
}

/// Asks until it is dropped, so that there is something to see.
async fn ask_for_ever(client: Client) {
    for n in 0.. {
        client.image("digits", &digit(n % 10)).await.expect(200);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The same for as long as there is a server.
async fn ask_while_it_runs(client: Client) {
    for n in 0.. {
        let Ok(answer) = client.try_image("digits", &digit(n % 10)).await else { return };
        answer.expect(200);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Another server at the same address, once the first one is gone.
async fn another_after(mut server: Server, site: Site) -> Server {
    while server.runs() {
        // Nothing signals a child's end without unsafe code or a dependency.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    site.at(server.address()).start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_are_shown_and_a_server_that_is_silent_or_gone_and_back_is_noticed() {
    let Some(chromium) = chromium() else {
        return skipped("there is no Chromium, in which the page is tried");
    };
    let site = Site::digits();
    let server = site.start().await;
    let traffic = tokio::spawn(ask_while_it_runs(server.another()));
    let (url, process) = (server.url.clone(), server.pid().to_string());
    let another = tokio::spawn(another_after(server, site));
    let shots = root().join("target/page-screenshots");
    let arguments = [&*url, shots.to_str().unwrap(), chromium.to_str().unwrap(), &*process];
    let client = ("page_sharing_client.py", &arguments[..]);
    let said = python::client_says(("page-client", "page.txt"), client, String::new()).await;
    if said.is_some() {
        traffic.await.expect("a request was lost while the server ran");
    }
    another.abort();
    let Some(said) = said else { return };
    let seen: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(seen["errors"], json!([]), "{seen:#}");

    let text = |name: &str| seen[name].as_str().unwrap_or_else(|| panic!("{name}: {seen:#}")).to_owned();
    let shares = seen["shares"].as_array().unwrap();
    assert!(shares[0].as_str().unwrap().contains("75 %") && shares[1].as_str().unwrap().contains("25 %"), "{seen:#}");
    assert_eq!((text("meter"), text("histogram").contains("histogram")), ("25".to_owned(), true), "{seen:#}");
    assert!(text("canary").contains("Canary: 25 % of requests, step 1 of 2"), "{}", text("canary"));
    assert!(text("canary").contains("answers compared, agreement"), "{}", text("canary"));
    assert_eq!((&seen["asked"], &seen["stopped"]), (&json!(200), &json!(0)));
    for part in ["Experiment “tone”", "v1 (50 %)", "v2 (50 %)"] {
        assert!(text("experiment").contains(part), "no {part}: {}", text("experiment"));
    }

    let first = |name: &str| seen[name][0].as_str().unwrap().to_owned();
    assert!(first("stale").contains("nothing came for 4 s; shown as of "), "{seen:#}");
    assert!(text("dead").contains("nothing came for 12 s"), "{seen:#}");
    assert_eq!((&seen["stale"][1], &seen["stale"][2]), (&json!(true), &json!("stale")), "old news take no orders");
    assert_eq!(seen["again"], json!(["live", false, ""]), "{seen:#}");
    assert!(text("gone").starts_with("not connected: ") && text("back") == "live", "{seen:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_is_driven_by_clicks() {
    let Some(chromium) = chromium() else {
        return skipped("there is no Chromium, in which the page is tried");
    };
    let site = Site::digits();
    site.version("digits", HOSTILE, &root().join("models/digits/v2"));
    let server = site.start().await;
    let traffic = tokio::spawn(ask_for_ever(server.another()));
    let shots = root().join("target/page-screenshots");
    let arguments = [&*server.url, shots.to_str().unwrap(), chromium.to_str().unwrap(), HOSTILE];
    let said = python::client_says(("page-client", "page.txt"), ("page_client.py", &arguments), String::new()).await;
    assert!(!traffic.is_finished(), "a request was lost");
    traffic.abort();
    let Some(said) = said else { return };
    let seen: Value = serde_json::from_str(&said).unwrap();
    println!("the page took {} bytes until it showed everything", seen["bytes"]);

    assert_eq!((&seen["errors"], &seen["faults"]), (&json!([]), &json!([])), "{seen:#}");
    assert_eq!(seen["hosts"], json!([server.address()]), "another host was asked");
    assert!(seen["bytes"].as_u64().unwrap() < MOST_BYTES, "{} bytes", seen["bytes"]);
    assert!(seen["width"].as_u64().unwrap() <= 360, "{} pixels wide", seen["width"]);

    let text = |name: &str| seen[name].as_str().unwrap_or_else(|| panic!("{name}: {seen:#}")).to_owned();
    for phase in ["loading", "validating", "observing"] {
        assert!(seen["promoted"].as_array().unwrap().contains(&json!(phase)), "{seen:#}");
    }
    assert!(text("verdict").contains("checks failed") && text("refused").contains("failed"), "{seen:#}");
    assert!(text("refused").contains("golden"), "the failing cases are named: {}", text("refused"));
    for verdict in ["rolled back", "refused", "aborted"] {
        assert!(text("history").contains(verdict), "{}", text("history"));
    }
    assert!(text("figures").contains("success rate"));
    assert!(text("answer").contains("answered by v2") && text("by keyboard").contains("answered by v1"), "{seen:#}");

    // What looks like markup is text.
    assert!(text("reason").contains("<img src=x onerror="), "{}", text("reason"));
    assert_eq!((text("hostile"), text("title"), &seen["images"]), (HOSTILE.into(), "Cutover".into(), &json!(0)));

    // The page shows a switch within a second of it.
    let rollouts = server.get("/admin/rollouts?model=digits").await.expect(200).body;
    let of_v2 = rollouts["rollouts"].as_array().unwrap().iter().find(|rollout| rollout["to"] == "v2").unwrap();
    let began = of_v2["started_ms"].as_u64().unwrap();
    let phases = of_v2["phases"].as_array().unwrap();
    let took = |name: &str| {
        let before = phases.iter().take_while(|phase| phase["phase"] != name);
        before.map(|phase| phase["ms"].as_u64().unwrap()).sum::<u64>()
    };
    let shown = |version: &str| {
        let switches = seen["switches"].as_array().unwrap().iter().rev();
        let mut of = switches.filter(|switch| switch[0] == version);
        of.next().unwrap()[1].as_u64().unwrap()
    };
    let late = |version: &str, phase: &str| shown(version).saturating_sub(began + took(phase));
    let (there, back) = (late("v2", "observing"), late("v1", "reclaiming").min(late("v1", "rolled_back")));
    println!("the switch was shown after {there} ms, the way back after {back} ms");
    assert!(there < 1000 && back < 1000, "{there} ms, {back} ms");
}
