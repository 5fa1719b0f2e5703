//! The fake driver (`tests/fake_gpu`), built once for all test binaries, and servers that find it.
#![cfg(feature = "cuda")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use super::{Server, Site, root};

/// Where its libraries are.
pub(crate) fn libraries() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let folder = root().join("target/fake-gpu");
        let output = Command::new(root().join("tests/fake_gpu/build")).arg(&folder).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "the fake driver was not built (it needs g++): {told}");
        folder
    })
}

/// Runs this binary's other tests on it, in as many processes as there are processors, each of which runs its own one after another;
/// what the drivers of all said at their end.
///
/// Panics with what was told where one of `tests` tests failed.
pub(crate) fn all_again(tests: usize) -> Vec<Value> {
    let binary = std::env::current_exe().unwrap();
    let listed = Command::new(&binary).args(["--list", "--format", "terse"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let names: Vec<&str> = listed.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    assert_eq!(names.len(), tests, "{listed}");
    let processes = std::thread::available_parallelism().map_or(1, usize::from).min(tests);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(binary.file_stem().unwrap());
    std::fs::create_dir_all(&folder).unwrap();
    let running: Vec<_> = (0..processes)
        .map(|nth| {
            let report = folder.join(format!("{nth}.json"));
            let mut again = Command::new(&binary);
            again.env("LD_LIBRARY_PATH", libraries()).env("FAKE_GPU_REPORT", &report);
            again.args(["--test-threads", "1", "--exact"]).args(names.iter().skip(nth).step_by(processes));
            (std::thread::spawn(move || again.output().unwrap()), report)
        })
        .collect();
    let mut passed = 0;
    let reports = running.into_iter().map(|(output, report)| {
        let output = output.join().unwrap();
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
        passed += told.lines().filter(|line| line.starts_with("test ") && line.ends_with("... ok")).count();
        let report: Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
        assert_eq!((&report["misuses"], &report["calls_without_context"]), (&0.into(), &0.into()), "{report:#}");
        report
    });
    let reports = reports.collect();
    assert_eq!(passed, tests);
    reports
}

/// How much of something all of them counted; a driver that saw none of it does not name it.
pub(crate) fn counted(reports: &[Value], what: &str) -> u64 {
    reports.iter().map(|report| report["counts"][what].as_u64().unwrap_or_default()).sum()
}

/// A site whose servers find it, and where it reports to when they end.
pub(crate) fn on_fake_gpu(site: Site) -> (Site, PathBuf) {
    let report = site.path().join("gpu.json");
    let site = site.device("cuda:0").variable("LD_LIBRARY_PATH", libraries().to_string_lossy());
    (site.variable("FAKE_GPU_REPORT", report.to_string_lossy()), report)
}

/// Ends a server; what its driver says of what is left, which must be nothing.
pub(crate) async fn nothing_is_left(mut server: Server, report: &Path) -> Value {
    server.terminate();
    assert_eq!(server.ended().await, 0, "{}", server.log());
    let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    for kind in [
        "device_allocations",
        "pinned_buffers",
        "registered_buffers",
        "streams",
        "events",
        "modules",
        "graphs",
        "graph_execs",
        "graph_memory_reserved",
        "threads_that_capture_and_launch",
        "streams_that_capture_and_launch",
        "cublaslt_handles",
        "cublaslt_descriptors",
        "pending_operations",
        "contexts_retained",
        "misuses",
        "calls_without_context",
    ] {
        assert_eq!(report[kind], 0, "{kind}: {report:#}");
    }
    report
}
