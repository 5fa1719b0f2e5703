//! Loads that something comes between: a throttle, an abort, another load, a file that changes, the end of the device.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::common::fake_gpu::{nothing_is_left, on_fake_gpu};
use super::common::{Server, Site, fixture, until};
use super::parked::widen;
use super::{TEXTS, embedding, make_others};

/// Models of five megabytes in two versions that share little, whose digests are known, so that of what a load does only the
/// copies are held back.
async fn held_back(models: &[&str], throttle: &str) -> Site {
    let site = Site::new();
    for model in models {
        site.model(model, TEXTS);
        let versions = ["mean", "tuned"].map(|version| site.version(model, version, &fixture("bert-embed-mean")));
        make_others(&versions[1], "layer.1.");
        for (version, number) in versions.iter().zip([0.25, 0.5]) {
            widen(version, number);
        }
    }
    let mut server = site.start().await;
    for model in models {
        for version in ["tuned", "mean"] {
            settled(&server, &format!("{model}@{version}")).await;
        }
    }
    server.terminate();
    assert_eq!(server.ended().await, 0);
    for model in models {
        site.model(model, &format!("{TEXTS}[rollout]\nthrottle = \"{throttle}\"\n"));
    }
    site
}

async fn settled(server: &Server, version: &str) -> Value {
    server.promote(version, json!({ "observe": "0s", "wait": "settled" })).await.expect(200).body
}

/// Begins to promote, and waits until some of the copies were queued; the rollout.
async fn begun(server: &Server, version: &str) -> String {
    let order = json!({ "observe": "0s", "wait": "none" });
    let id = server.promote(version, order).await.expect(202).id();
    until("copies were queued", async || {
        let rollout = server.rollout(&id).await;
        let (done, total) = (rollout["progress"]["done"].as_u64()?, rollout["progress"]["total"].as_u64()?);
        (rollout["phase"] == "loading" && done > 0 && done < total).then_some(())
    })
    .await;
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_between_copies_ends_the_load_at_once_and_gives_everything_back() {
    // Its next copy would be let through after four seconds.
    let (site, report) = on_fake_gpu(held_back(&["texts"], "1MB/s").await);
    let server = site.start().await;
    let (want, before) = (embedding(&server).await, server.reserved().await);
    let id = begun(&server, "tuned").await;
    let aborted = server.post(&format!("/admin/rollouts/{id}/abort"), json!({})).await.expect(200).body;
    assert_eq!(aborted["phase"], "aborted", "{aborted:#}");
    let memory = server.memory().await;
    // Nobody had to be left behind with what it holds.
    assert_eq!((&memory["abandoned"], server.reserved().await), (&json!(0), before), "{memory:#}");
    assert_eq!((server.live("texts").await.as_str(), embedding(&server).await), ("mean", want));
    nothing_is_left(server, &report).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttle_holds_copies_to_a_gpu_back() {
    let (site, report) = on_fake_gpu(held_back(&["texts"], "4MB/s").await);
    let server = site.start().await;
    let promoted = settled(&server, "tuned").await;
    let figure = |name: &str| promoted["figures"][name].as_f64().unwrap();
    let least = figure("loaded_bytes") / 4e6 * 1e3;
    assert!(least > 1000.0 && figure("weights_ms") >= least, "{promoted:#}");
    // From the next rollout on it is another one.
    site.model("texts", &format!("{TEXTS}[rollout]\nthrottle = \"none\"\n"));
    let back = settled(&server, "mean").await;
    let took = back["figures"]["weights_ms"].as_f64().unwrap();
    assert!(took < least, "{back:#}");
    nothing_is_left(server, &report).await;
}

/// Bytes that a server had storage fetch: of files that lie in the page cache none, but where they are read past it.
fn fetched(server: &Server) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{}/io", server.pid())).unwrap();
    io.lines().find_map(|line| line.strip_prefix("read_bytes: ")?.parse().ok()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_are_read_past_the_page_cache_where_that_is_asked_for() {
    let site = held_back(&["texts"], "none").await;
    let weights = site.models().join("texts/tuned/model.safetensors");
    let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(&weights).is_ok();
    // What was just written is fetched from nowhere.
    File::open(&weights).unwrap().sync_all().unwrap();
    let (site, report) = on_fake_gpu(site);
    let server = site.start().await;
    let promoted = async |version: &str, setting: &str| {
        site.model("texts", &format!("{TEXTS}[rollout]\n{setting}\n"));
        let before = fetched(&server);
        let loaded = settled(&server, version).await["figures"]["loaded_bytes"].as_u64().unwrap();
        (fetched(&server) - before, loaded, embedding(&server).await)
    };
    let (fetched, loaded, cached) = promoted("tuned", "direct_reads = false").await;
    assert!(fetched < loaded / 4, "{fetched} of {loaded}");
    promoted("mean", "direct_reads = false").await;
    let (fetched, loaded, past) = promoted("tuned", "direct_reads = true").await;
    assert_eq!(past, cached);
    let said = server.log().contains("direct_reads means little for texts/tuned: the file system does not do it");
    assert_eq!(direct, !said, "{}", server.log());
    assert!(!direct || fetched > loaded * 3 / 4, "{fetched} of {loaded}");
    nothing_is_left(server, &report).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_load_the_same_weights_at_once_each_have_their_own() {
    let (site, report) = on_fake_gpu(held_back(&["texts", "others"], "4MB/s").await);
    let server = site.start().await;
    let both = ["texts@tuned", "others@tuned"];
    let (one, other) = tokio::join!(settled(&server, both[0]), settled(&server, both[1]));
    let loaded = [one, other].map(|rollout| rollout["figures"]["loaded_bytes"].as_u64().unwrap());
    let memory = server.memory().await;
    for (model, loaded) in ["texts", "others"].into_iter().zip(loaded) {
        let held = memory["generations"].as_array().unwrap().iter().find(|held| held["model"] == model).unwrap();
        assert_eq!(held["exclusive"].as_u64(), Some(loaded), "{memory:#}");
        assert!(loaded > 5_000_000 && held["shared"].as_u64().unwrap() > 0, "{memory:#}");
    }
    let ask =
        async |model: &str| server.texts(model, &["a boat in the harbour"]).await.expect(200).body["outputs"].clone();
    assert_eq!(ask("texts").await, ask("others").await);
    // Each gives back what it had for itself, and the other goes on.
    let want = ask("others").await;
    for model in ["texts", "others"] {
        let reclaim = settled(&server, &format!("{model}@mean")).await["figures"]["reclaim"].clone();
        let bytes = |name: &str| reclaim[name].as_u64().unwrap();
        assert!(bytes("promised") >= loaded[0] && bytes("returned") >= bytes("promised"), "{model}: {reclaim:#}");
        if model == "texts" {
            assert_eq!(ask("others").await, want);
        }
    }
    nothing_is_left(server, &report).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_while_it_is_read_is_refused_and_blue_serves_on() {
    let (site, report) = on_fake_gpu(held_back(&["texts"], "4MB/s").await);
    let server = site.start().await;
    let (want, before) = (embedding(&server).await, server.reserved().await);
    let id = begun(&server, "tuned").await;
    // It may be another one now: nobody reads again what was read.
    let file = File::options().write(true).open(site.models().join("texts/tuned/model.safetensors")).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(5)).unwrap();
    let failed = until("the load has failed", async || {
        let rollout = server.rollout(&id).await;
        (rollout["phase"] == "failed").then_some(rollout)
    });
    let failed = failed.await;
    let told = &failed["error"];
    assert_eq!(told["kind"], "refused", "{failed:#}");
    assert!(told["message"].as_str().unwrap().contains("changed while it was read"), "{failed:#}");
    assert_eq!((server.reserved().await, embedding(&server).await), (before, want));
    // Its bytes are those that it was first seen with.
    settled(&server, "tuned").await;
    nothing_is_left(server, &report).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_that_the_device_does_not_survive_in_a_load_is_blamed_on_nobody() {
    let (site, report) = on_fake_gpu(held_back(&["texts"], "none").await);
    let server = site.start().await;
    let calls = nothing_is_left(server, &report).await["calls"]["cuMemcpyHtoDAsync_v2"].as_u64().unwrap();
    // Among the first copies of green, where blue was brought up and nobody asks.
    let site = site.variable("FAKE_GPU_FAIL", format!("cuMemcpyHtoDAsync_v2:700:{}", calls + 3));
    let mut server = site.start().await;
    server.promote("tuned", json!({ "wait": "none" })).await.expect(202);
    assert_eq!(server.ended().await, 70, "{}", server.log());
    let log = server.log();
    assert!(log.contains("the device failed while no pass ran") && !log.contains("in a pass of"), "{log}");
    // The next one begins where that ended.
    let server = site.variable("FAKE_GPU_FAIL", "").start().await;
    assert_eq!(server.texts("texts", &["a boat"]).await.expect(200).version(), "mean");
    let last = server.get("/admin/rollouts").await.expect(200).body["rollouts"][0].clone();
    // Whichever was first: the load's error, or the end of the process.
    let ended = ["failed", "interrupted"].contains(&last["phase"].as_str().unwrap());
    assert!(last["to"] == "tuned" && ended, "{last:#}");
    settled(&server, "tuned").await;
    nothing_is_left(server, &report).await;
}
