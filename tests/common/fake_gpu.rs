//! The fake driver (`tests/fake_gpu`), built once for a test binary, and servers that find it.
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
        // Test binaries that run at the same time build apart.
        let binary = std::env::current_exe().unwrap();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fake-gpu").join(binary.file_stem().unwrap());
        let output = Command::new(root().join("tests/fake_gpu/build")).arg(&folder).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "the fake driver was not built (it needs g++): {told}");
        folder
    })
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
