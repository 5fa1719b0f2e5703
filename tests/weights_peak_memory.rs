//! What a load holds at its worst moment. A test binary of its own: it counts every allocation of the process.
#![allow(unsafe_code, reason = "a global allocator is an unsafe trait")]
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::DType;
use cutover::ops::{Device, WeightLayout};
use cutover::weights::{Index, Manifest, Progress, Wanted, load};

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; only sizes are counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::SeqCst) + layout.size();
        PEAK.fetch_max(held, Ordering::SeqCst);
        // SAFETY: the caller's promise, handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: the caller's promise, handed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const BUFFER: usize = 8 << 20;
const TENSORS: usize = 6;
const ELEMENTS: usize = 3 << 20;

/// 36 MiB of f16 in six tensors.
fn version(dir: &std::path::Path) {
    let raw: Vec<Vec<u8>> = (0..TENSORS).map(|n| [n as u8, 0x3c].repeat(ELEMENTS)).collect();
    let views = raw.iter().enumerate().map(|(n, bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F16, vec![ELEMENTS], bytes);
        (format!("t{n}"), view.unwrap())
    });
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
}

/// One test, not two: they would count each other's bytes.
#[test]
fn a_load_holds_its_tensors_and_one_buffer() {
    let dir = tempfile::tempdir().unwrap();
    version(dir.path());
    let index = Index::open(dir.path(), &[PathBuf::from("model.safetensors")]).unwrap();
    let before = HELD.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    let manifest = Manifest::compute(dir.path(), &index).unwrap();
    let peak = PEAK.load(Ordering::SeqCst) - before;
    assert!(peak <= BUFFER, "{peak} bytes were held to compute digests");
    for (dtype, size) in [(DType::F16, 2), (DType::F32, 4)] {
        let wanted: Vec<Wanted> = (0..TENSORS)
            .map(|n| Wanted {
                name: format!("t{n}"),
                below: Vec::new(),
                shape: vec![ELEMENTS],
                dtype,
                layout: WeightLayout::Rows,
            })
            .collect();
        let before = HELD.load(Ordering::SeqCst);
        PEAK.store(before, Ordering::SeqCst);
        let weights = load(&index, &manifest, &wanted, HashMap::new(), &Device::Cpu, &Progress::new()).unwrap();
        let peak = PEAK.load(Ordering::SeqCst) - before;
        let tensors = TENSORS * ELEMENTS * size;
        assert_eq!(weights.exclusive_bytes(), tensors as u64);
        assert!(peak >= tensors, "the counter missed the tensors: {peak} of {tensors} bytes");
        assert!(peak <= tensors + BUFFER, "{peak} bytes were held for {tensors} bytes of tensors ({dtype:?})");
    }
}
