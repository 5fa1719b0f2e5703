//! Models on a GPU against what Hugging Face's own implementation answered, and the memory that they take.
//!
//! One program for encoders and decoders: it is carried to machines with a GPU. Where there is none the tests say that they
//! were skipped; then the last one runs them all the same, on a driver that only keeps books and kernels that the processor
//! runs (`tests/fake_gpu`).
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "gpu/decoders.rs"]
mod decoders;
#[path = "gpu/encoders.rs"]
mod encoders;
#[path = "gpu/landing.rs"]
mod landing;

use std::sync::OnceLock;

use candle_core::DType;
use common::fake_gpu::{all_again, counted};
use common::models::Version;
use common::skipped;
use cutover::device::{self, DeviceSpec, Memory, Opened, Owner};
use cutover::error::Result;
use cutover::model::Model;
use cutover::ops::{Keeping, Machine};
use cutover::weights::{Known, Manifest, Progress, load};

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

/// A version on the GPU in a number format, with the memory that it has there.
fn loaded(version: &Version, (opened, machine): &(Opened, Machine), format: DType) -> (Model, Memory) {
    let keeping = Keeping::Cuda(format);
    let footprint = version.footprint_for(keeping).unwrap();
    let memory = Memory::acquire(opened, footprint.weight_bytes(), Owner::default()).unwrap();
    let device = machine.device(&memory, (footprint.workspace, keeping)).unwrap();
    (version.load_on(&device), memory)
}

/// Whether a version's weights come to the GPU.
fn weights_load(version: &Version, (opened, machine): &(Opened, Machine), format: DType) -> Result<()> {
    let keeping = Keeping::Cuda(format);
    let footprint = version.footprint_for(keeping).unwrap();
    let manifest = Manifest::compute(&version.spec.dir, &version.index).unwrap();
    let memory = Memory::acquire(opened, footprint.weight_bytes(), Owner::default()).unwrap();
    let device = machine.device(&memory, (footprint.workspace, keeping)).unwrap();
    load(&version.index, &manifest, &footprint.wanted, Known::default(), &device, &Progress::new()).map(drop)
}

/// The tests of all modules, in processes that find the fake driver.
#[test]
fn the_same_holds_on_a_fake_driver() {
    if device::open(DeviceSpec::Cuda(0)).is_ok() {
        // A real one, or this is that process.
        return;
    }
    let reports = all_again(41);
    for report in &reports {
        let calls = |name: &str| report["calls"][name].as_u64().unwrap_or_default();
        assert_eq!(calls("cuMemHostRegister_v2"), calls("cuMemHostUnregister"));
        for kind in ["registered_buffers", "graphs", "graph_execs"] {
            assert_eq!(report[kind], 0, "{kind}: {report:#}");
        }
    }
    assert!(counted(&reports, "graph_launches") > 100 && counted(&reports, "launches") > 1000, "{reports:#?}");
}
