//! `cutover bench soak` against a real server, and the metrics that it reads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::process::Command;

use common::{Site, root};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn twenty_switches_with_mishaps_between_lose_nothing_and_give_all_room_back() {
    let server = Site::digits().start().await;
    let (url, pid) = (server.url.clone(), server.pid().to_string());
    let line = "bench soak --model digits --versions v1,v2 --refused v3 --switches 20 --every 2 --mishaps 50% --check \
                --rate 100 --warmup 100ms --steady 100ms --hold 5ms --pause 5ms --json -";
    let output = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cutover"));
        command.args(line.split_ascii_whitespace()).args(["--url", &url, "--pid", &pid]);
        command.current_dir(root()).output().unwrap()
    });
    let output = output.await.unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    let results: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {told}"));
    assert_eq!((&results["served"], &results["switches"]), (&json!(true), &json!(20)), "{told}{results}");
    assert_eq!(output.status.success(), results["passed"] == true, "{told}");
    // Ten, two of each kind; how far a candidate had come that was aborted is the machine's.
    let mishaps = results["mishaps"].as_object().unwrap();
    let of =
        |how: &str| mishaps.iter().filter(|(name, _)| name.starts_with(how)).map(|(_, n)| n.as_u64().unwrap()).sum();
    let counts: [u64; 3] = [of("refused"), of("aborted while "), of("gone back from")];
    assert_eq!(counts, [2, 6, 2], "{results}");
    assert_eq!(results["audit"]["foreign"], 0, "{results}");
    // Resident size, threads and files of so short a run say little; that they are read is what can be shown here.
    let quantities = &results["quantities"];
    for name in ["resident size", "allocated", "threads", "open files", "ledger on disk"] {
        assert!(quantities[name]["last"].as_u64().is_some_and(|last| last > 0), "{name}: {results}");
    }
    assert_eq!(quantities["reserved"]["verdict"], "flat", "{results}");
    let memory = server.memory().await;
    assert_eq!((&memory["abandoned"], memory["generations"].as_array().unwrap().len()), (&json!(0), 1), "{memory}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_of_the_process_are_those_of_the_kernel() {
    let server = Site::digits().start().await;
    let text = server.get("/metrics").await.expect(200).body.as_str().unwrap().to_owned();
    let metric = |name: &str| -> f64 {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    };
    let near = |name: &str, kernels: usize, apart: f64| {
        let ours = metric(name);
        assert!((ours - kernels as f64).abs() <= apart, "{name} is {ours}, and {kernels} by the kernel");
    };
    // A thread that writes the ledger may have begun or ended between.
    near("process_threads", server.threads(), 3.0);
    near("process_open_fds", server.open_files(), 2.0);
    let resident = server.memory().await["process_resident"].as_u64().unwrap() as usize;
    near("process_resident_memory_bytes", resident, resident as f64 / 10.0);
    assert!(metric("process_cpu_seconds_total") > 0.0);
    assert!(metric("cutover_ledger_bytes") >= 4096.0);
}
