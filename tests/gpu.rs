//! Models on a GPU against what Hugging Face's own implementation answered, and the memory that they take.
//!
//! Where there is no GPU the tests say that they were skipped; then the last one runs them all the same, on a driver that
//! only keeps books and kernels that the processor runs (`tests/fake_gpu`).
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::HashMap;
use std::process::Command;
use std::sync::{Arc, OnceLock};

use candle_core::DType;
use common::fake_gpu::libraries;
use common::models::{Fixture, Version, all_fixtures, assert_alike, assert_same, json_file, run};
use common::tensors::with_tensors;
use common::{copy_folder, skipped};
use cutover::device::{self, DeviceSpec, HostRoom, Memory, Opened, Owner};
use cutover::model::{Model, TOKENS_PER_PASS, family};
use cutover::ops::{Device, Keeping, Machine, Tensor};
use cutover::weights::{Known, Manifest, Pace, Progress, TensorKey, load, park};
use half::{bf16, f16};

/// The GPU, for all tests of the process.
fn gpu() -> Option<&'static (Opened, Machine)> {
    static GPU: OnceLock<Option<(Opened, Machine)>> = OnceLock::new();
    let opened = GPU.get_or_init(|| match device::open(DeviceSpec::Cuda(0)) {
        Ok(opened) => {
            let machine = Machine::start(&opened).unwrap();
            Some((opened, machine))
        }
        Err(error) => {
            skipped(&format!("no GPU: {error}"));
            None
        }
    });
    opened.as_ref()
}

/// A fixture's model on the GPU, in a number format, with the memory that it has there.
fn loaded(fixture: &Fixture, gpu: &(Opened, Machine), format: DType) -> (Model, Memory) {
    loaded_version(&fixture.version, gpu, format)
}

fn loaded_version(version: &Version, (opened, machine): &(Opened, Machine), format: DType) -> (Model, Memory) {
    let keeping = Keeping::Cuda(format);
    let footprint = version.footprint_for(keeping).unwrap();
    let memory = Memory::acquire(opened, footprint.weight_bytes(), Owner::default()).unwrap();
    let device: Device = machine.device(&memory, (footprint.workspace, keeping)).unwrap();
    (version.load_on(&device), memory)
}

/// The least cosine, and the largest difference as a part of the largest value.
fn tolerance(format: DType) -> (f64, f32) {
    match format {
        DType::F32 => (0.99999, 1e-4),
        DType::F16 => (0.9999, 1e-2),
        _ => (0.999, 5e-2),
    }
}

#[test]
fn every_fixture_gives_the_reference_outputs_in_every_format() {
    let Some(gpu) = gpu() else { return };
    for name in all_fixtures() {
        let fixture = Fixture::open(&name);
        for format in [DType::F32, DType::F16, DType::BF16] {
            let (mut model, _memory) = loaded(&fixture, gpu, format);
            // All cases of a fixture as one: of a single logit near zero nothing can be said in sixteen bits.
            let alone = fixture.inputs.iter().flat_map(|input| run(&mut model, std::slice::from_ref(input)));
            let got: Vec<f32> = alone.flatten().collect();
            let what = format!("{name} in {}", format.as_str());
            assert_alike(&got, &fixture.expected.concat(), tolerance(format), &what);
        }
    }
}

#[test]
fn a_row_of_a_batch_is_the_row_it_would_be_alone() {
    let Some(gpu) = gpu() else { return };
    for name in all_fixtures() {
        let fixture = Fixture::open(&name);
        let (mut model, _memory) = loaded(&fixture, gpu, DType::F32);
        let mut batch = fixture.inputs.clone();
        batch.rotate_left(1);
        let rows = run(&mut model, &batch);
        for (row, input) in rows.iter().zip(&batch) {
            let alone = run(&mut model, std::slice::from_ref(input));
            assert_same(row, &alone[0], 1e-5, &name);
        }
    }
}

#[test]
fn what_a_model_takes_is_what_it_declares_and_all_of_it_comes_back() {
    let Some(gpu) = gpu() else { return };
    let free = || gpu.0.vram().unwrap().unwrap().free;
    // What other tests let go of.
    gpu.1.synchronize().unwrap();
    let before = free();
    for name in all_fixtures() {
        let fixture = Fixture::open(&name);
        let footprint = fixture.version.footprint_for(Keeping::Cuda(DType::F32)).unwrap();
        let (mut model, memory) = loaded(&fixture, gpu, DType::F32);
        run(&mut model, &fixture.inputs);
        let held = memory.measured().unwrap().unwrap();
        let borders = footprint.wanted.len() as u64 * 512;
        assert!((footprint.weight_bytes()..=footprint.total() + borders).contains(&held.used), "{name}: {held:?}");
        drop(model);
        gpu.1.synchronize().unwrap();
        memory.trim().unwrap();
        let left = memory.measured().unwrap().unwrap();
        assert_eq!((left.used, left.reserved), (0, 0), "{name}");
    }
    assert_eq!(free(), before);
}

#[test]
fn the_largest_batch_that_a_pass_takes_fits_what_is_declared() {
    let Some(gpu) = gpu() else { return };
    for name in ["bert-embed-mean", "roberta-classify", "vit-classify"] {
        let fixture = Fixture::open(name);
        let (mut model, _memory) = loaded(&fixture, gpu, DType::F16);
        let most = fixture.inputs.iter().max_by_key(|input| input.cost(1)).unwrap();
        let batch = vec![most.clone(); TOKENS_PER_PASS / most.cost(17).max(1) + 1];
        let rows = run(&mut model, &batch);
        assert!(rows.len() == batch.len() && rows.iter().all(|row| row == &rows[0]), "{name}");
    }
}

#[test]
fn a_version_that_waited_in_host_memory_answers_as_before_without_its_files() {
    let Some(gpu) = gpu() else { return };
    for name in all_fixtures() {
        for format in [DType::F32, DType::BF16] {
            let (room, copy) = (Arc::new(HostRoom::default()), tempfile::tempdir().unwrap());
            let fixture = Fixture::open(&name);
            let (mut model, _memory) = loaded(&fixture, gpu, format);
            let before = run(&mut model, &fixture.inputs);

            let folder = copy.path().join(&name);
            copy_folder(&fixture.version.spec.dir, &folder);
            let version = Version::open(&folder, fixture.version.spec.task.name());
            let keeping = Keeping::Cuda(format);
            let footprint = version.footprint_for(keeping).unwrap();
            let manifest = Manifest::compute(&folder, &version.index).unwrap();
            let take = |bytes| room.take(&name, bytes, None);
            let pace = (&Progress::new(), &Pace::default());
            let parked = park(&gpu.1, (&version.index, &manifest, &footprint.wanted), take, pace).unwrap();
            assert!(parked.bytes() >= footprint.weight_bytes() && room.pinnings()[0].untouched == 0, "{name}");
            copy.close().unwrap();

            let parked = Arc::new(parked);
            let memory = Memory::acquire(&gpu.0, footprint.weight_bytes(), Owner::default()).unwrap();
            let device = gpu.1.device(&memory, (footprint.workspace, keeping)).unwrap();
            let known = Known { parked: Some(Arc::clone(&parked)), ..Known::default() };
            let weights = load(&version.index, &manifest, &footprint.wanted, known, &device, &Progress::new()).unwrap();
            assert_eq!(weights.parked_bytes(), weights.exclusive_bytes(), "{name}");
            parked.let_go(&Pace::default());
            assert!(room.pinnings().is_empty());
            let mut model = (family(&version.spec).unwrap().load)(&version.spec, weights, &device).unwrap();
            assert_eq!(run(&mut model, &fixture.inputs), before, "{name} in {}", format.as_str());
        }
    }
}

#[test]
fn values_that_are_no_numbers_in_a_format_are_refused_on_their_way() {
    let Some(gpu) = gpu() else { return };
    let cases = [
        (1e30f32, DType::F16, "too large for f16"),
        (f32::NAN, DType::BF16, "holds non-finite values, or"),
        (f32::INFINITY, DType::F32, "holds non-finite values"),
        (1e30, DType::F32, ""),
    ];
    // Tensors of their own, and parts of one.
    let broken = [
        "embeddings.word_embeddings.weight",
        "encoder.layer.1.output.dense.bias",
        "encoder.layer.0.attention.self.query.weight",
        "encoder.layer.1.attention.self.key.weight",
        "encoder.layer.1.attention.self.value.weight",
        "encoder.layer.0.attention.self.key.bias",
        "encoder.layer.1.attention.self.value.bias",
    ];
    for ((value, format, says), broken) in broken.into_iter().flat_map(|broken| cases.map(|case| (case, broken))) {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(&Fixture::open("bert-embed-mean").version.spec.dir, folder.path());
        with_tensors(folder.path(), |tensors| {
            tensors.bytes(broken)[4..8].copy_from_slice(&value.to_le_bytes());
        });
        let version = Version::open(folder.path(), "embed");
        let keeping = Keeping::Cuda(format);
        let footprint = version.footprint_for(keeping).unwrap();
        let manifest = Manifest::compute(folder.path(), &version.index).unwrap();
        let memory = Memory::acquire(&gpu.0, footprint.weight_bytes(), Owner::default()).unwrap();
        let device = gpu.1.device(&memory, (footprint.workspace, keeping)).unwrap();
        let known = Known::default();
        let result = load(&version.index, &manifest, &footprint.wanted, known, &device, &Progress::new());
        match result {
            Ok(_) => assert_eq!(says, "", "{value} in {}", format.as_str()),
            Err(error) => {
                let told = error.to_string();
                assert!(!says.is_empty() && told.contains(says) && told.contains(&format!("'{broken}'")), "{told}");
            }
        }
    }
}

/// Every f32 of a tensor in a format of two bytes.
fn halved(bytes: &[u8], half: impl Fn(f32) -> [u8; 2]) -> Vec<u8> {
    bytes.chunks_exact(4).flat_map(|number| half(f32::from_le_bytes(number.try_into().unwrap()))).collect()
}

#[test]
fn queries_keys_and_values_may_come_in_different_formats_and_without_biases() {
    let Some(gpu) = gpu() else { return };
    for (name, biases) in [("bert-embed-mean", true), ("distilbert-classify", true), ("vit-classify", false)] {
        let folder = tempfile::tempdir().unwrap();
        let fixture = Fixture::open(name);
        copy_folder(&fixture.version.spec.dir, folder.path());
        let (mut keys, mut values, mut dropped) = (0, 0, 0);
        with_tensors(folder.path(), |tensors| {
            tensors.lay(|name, header, bytes| {
                let is =
                    |part: &str| name.contains(&format!(".{part}.")) || name.contains(&format!(".{}_lin.", &part[..1]));
                if !biases && name.ends_with("bias") && (is("query") || is("key") || is("value")) {
                    dropped += 1;
                    return None;
                }
                if is("key") {
                    (keys, header["dtype"]) = (keys + 1, "F16".into());
                    return Some(halved(&bytes, |number| f16::from_f32(number).to_le_bytes()));
                }
                if is("value") {
                    (values, header["dtype"]) = (values + 1, "BF16".into());
                    return Some(halved(&bytes, |number| bf16::from_f32(number).to_le_bytes()));
                }
                Some(bytes)
            });
        });
        assert_eq!((keys, values, dropped), if biases { (4, 4, 0) } else { (2, 2, 6) }, "{name}");
        let path = folder.path().join("config.json");
        let mut config = json_file(&path);
        config["qkv_bias"] = biases.into();
        std::fs::write(&path, config.to_string()).unwrap();
        let version = Version::open(folder.path(), fixture.version.spec.task.name());
        let want = run(&mut version.load(), &fixture.inputs).concat();
        for format in [DType::F32, DType::F16, DType::BF16] {
            let (mut model, _memory) = loaded_version(&version, gpu, format);
            let got = run(&mut model, &fixture.inputs).concat();
            assert_alike(&got, &want, tolerance(format), &format!("{name} in {}", format.as_str()));
        }
    }
}

#[test]
fn generations_share_queries_keys_and_values_unless_one_of_them_differs() {
    let Some(gpu) = gpu() else { return };
    let fixture = Fixture::open("bert-embed-mean");
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&fixture.version.spec.dir, folder.path());
    with_tensors(folder.path(), |tensors| {
        tensors.bytes("encoder.layer.1.attention.self.value.weight")[..4].copy_from_slice(&0.5f32.to_le_bytes());
    });
    let keeping = Keeping::Cuda(DType::F32);
    let weights = |version: &Version, known: HashMap<TensorKey, Tensor>| {
        let footprint = version.footprint_for(keeping).unwrap();
        let memory = Memory::acquire(&gpu.0, footprint.weight_bytes(), Owner::default()).unwrap();
        let device = gpu.1.device(&memory, (footprint.workspace, keeping)).unwrap();
        let manifest = Manifest::compute(&version.spec.dir, &version.index).unwrap();
        let weights = load(&version.index, &manifest, &footprint.wanted, known, &device, &Progress::new()).unwrap();
        (weights, device, memory)
    };
    let (first, _device, _memory) = weights(&fixture.version, HashMap::new());
    let resident: HashMap<_, _> = first.entries().map(|(key, tensor)| (key.clone(), tensor.clone())).collect();
    let changed = Version::open(folder.path(), "embed");
    let (next, device, _next_memory) = weights(&changed, resident);
    // The three weights of its layer, [32, 32] each, and nothing else.
    assert_eq!(next.exclusive_bytes(), 3 * 32 * 32 * 4);
    assert_eq!(next.shared_bytes(), first.exclusive_bytes() - 3 * 32 * 32 * 4);
    let mut model = (family(&changed.spec).unwrap().load)(&changed.spec, next, &device).unwrap();
    let want = run(&mut changed.load(), &fixture.inputs).concat();
    assert_alike(&run(&mut model, &fixture.inputs).concat(), &want, tolerance(DType::F32), "what is shared");
    assert!(want != fixture.expected.concat());
}

/// The tests above, in a process that finds the fake driver.
#[test]
fn the_same_holds_on_a_fake_driver() {
    if device::open(DeviceSpec::Cuda(0)).is_ok() {
        // A real one, or this is that process.
        return;
    }
    let report = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("gpu-tests.json");
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.env("LD_LIBRARY_PATH", libraries()).env("FAKE_GPU_REPORT", &report).args(["--test-threads", "1"]);
    let output = again.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.contains("9 passed"), "{told}");
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    assert_eq!((&report["misuses"], &report["calls_without_context"]), (&0.into(), &0.into()), "{report:#}");
    let calls = |name: &str| report["calls"][name].as_u64().unwrap();
    assert_eq!(calls("cuMemHostRegister_v2"), calls("cuMemHostUnregister"));
    assert_eq!(report["registered_buffers"], 0);
    assert!(report["counts"]["launches"].as_u64().unwrap() > 1000, "{report:#}");
}
