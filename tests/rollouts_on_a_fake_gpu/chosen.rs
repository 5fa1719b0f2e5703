//! Which device serves, by its name and where it is left to the server.

use std::fs;

use serde_json::json;

use super::common::fake_gpu::{libraries, nothing_is_left, on_fake_gpu};
use super::common::inputs::digit;
use super::common::{Server, Site};

#[test]
fn without_a_gpu_it_says_so_and_auto_falls_back() {
    let (code, told) = Site::digits().device("cuda:0").refused();
    assert!(code == 1 && told.contains("no NVIDIA driver") && told.contains("--device"), "{code}: {told}");
    let (site, _) = on_fake_gpu(Site::digits());
    let (code, told) = site.device("cuda:3").refused();
    assert!(code == 1 && told.contains("there is one device, cuda:0"), "{code}: {told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn auto_serves_from_the_cpu_where_there_is_no_gpu_and_says_why() {
    let server = Site::digits().device("auto").start().await;
    assert_eq!(server.memory().await["device"], "cpu");
    server.says("no NVIDIA driver").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn auto_serves_from_the_gpu_where_there_is_one() {
    let (site, report) = on_fake_gpu(Site::digits());
    let server = site.device("auto").start().await;
    let device = server.memory().await["device"].clone();
    assert!(device.as_str().unwrap().starts_with("cuda:0 ("), "{device}");
    server.says("serving from a GPU").await;
    server.image("digits", &digit(3)).await.expect(200);
    let report = nothing_is_left(server, &report).await;
    assert!(report["counts"]["launches"].as_u64().unwrap() > 0, "{report:#}");
}

/// A driver, and either none of the libraries that it takes beside it, or kernels that it does not load.
fn without(what: &str) -> (Site, std::path::PathBuf) {
    let (site, report) = on_fake_gpu(Site::digits());
    match what {
        "libcublasLt" => {
            let folder = site.path().join("driver");
            fs::create_dir(&folder).unwrap();
            for file in fs::read_dir(libraries()).unwrap() {
                let (path, name) = (file.as_ref().unwrap().path(), file.unwrap().file_name());
                if path.is_file() && !name.to_string_lossy().contains("cublas") {
                    fs::copy(path, folder.join(name)).unwrap();
                }
            }
            (site.variable("LD_LIBRARY_PATH", folder.to_string_lossy()), report)
        }
        _ => (site.variable("FAKE_GPU_FAIL", "cuModuleLoadData:209:3"), report),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn auto_serves_from_the_cpu_where_a_gpu_cannot_compute_and_says_why_and_one_that_is_named_is_refused() {
    for (what, why) in [("libcublasLt", "libcublasLt.so.13 cannot be opened"), ("kernels", "NO_BINARY_FOR_GPU")] {
        let (site, report) = without(what);
        let site = site.device("auto");
        let server: Server = site.start().await;
        assert_eq!(server.memory().await["device"], json!("cpu"), "{what}");
        let log = server.says("serving from").await;
        let told: Vec<&str> = log.lines().filter(|line| line.contains("serving from")).collect();
        assert!(told.len() == 1 && told[0].contains("serving from the cpu") && told[0].contains(why), "{what}: {log}");
        server.image("digits", &digit(3)).await.expect(200);
        nothing_is_left(server, &report).await;
        let (code, told) = site.device("cuda:0").refused();
        assert!(code == 1 && told.contains(why) && !told.contains("serving from"), "{what}: {code}: {told}");
    }
}
