//! Encoders on a GPU: against what transformers answered, recorded and not, shared and parked, and the memory that they take.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use candle_core::DType;
use common::copy_folder;
use common::models::{Fixture, Version, all_fixtures, assert_alike, assert_same, json_file, run};
use common::tensors::{Tensors, with_tensors};
use cutover::device::{self, DeviceSpec, HostRoom, Memory, Opened, Owner};
use cutover::model::{Input, Model, TOKENS_PER_PASS, Tokens, family};
use cutover::ops::{Keeping, Machine, Tensor};
use cutover::repository::F32Matmul;
use cutover::weights::{Known, Manifest, Pace, Progress, TensorKey, load, park};
use half::{bf16, f16};

use super::{common, gpu, weights_load};

/// A fixture's model on the GPU, in a number format, with the memory that it has there.
fn loaded(fixture: &Fixture, gpu: &(Opened, Machine), format: DType) -> (Model, Memory) {
    super::loaded(&fixture.version, gpu, format)
}

/// The same, with its passes of small batches recorded.
fn warmed(fixture: &Fixture, gpu: &(Opened, Machine), format: DType) -> (Model, Memory) {
    let (mut model, memory) = loaded(fixture, gpu, format);
    let warmth = model.warm(true, &Progress::new());
    assert!(warmth.failed.is_none() && warmth.recorded >= 3, "{warmth:?}");
    (model, memory)
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

/// What f32 weights may be off by whose products are made in TF32: it has f16's precision.
const TF32: (f64, f32) = (0.9999, 1e-2);

#[test]
fn in_tf32_answers_are_the_references_to_its_precision_and_only_where_it_was_asked_for() {
    let Some(gpu) = gpu() else { return };
    let mut furthest = 0f32;
    for name in all_fixtures() {
        let fixture = Fixture::open(&name);
        let mut asked = Fixture::open(&name);
        asked.version.spec.f32_matmul = F32Matmul::Tf32;
        let answers = |fixture: &Fixture, format| run(&mut loaded(fixture, gpu, format).0, &fixture.inputs).concat();
        let (full, tf32) = (answers(&fixture, DType::F32), answers(&asked, DType::F32));
        let expected = fixture.expected.concat();
        assert_alike(&tf32, &expected, TF32, &format!("{name} in TF32"));
        assert_ne!(tf32, full, "{name}");
        let scale = expected.iter().fold(0f32, |scale, value| scale.max(value.abs()));
        let off = tf32.iter().zip(&expected).map(|(got, want)| (got - want).abs() / scale);
        furthest = off.fold(furthest, f32::max);
        for format in [DType::F16, DType::BF16] {
            assert_eq!(answers(&asked, format), answers(&fixture, format), "{name} in {}", format.as_str());
        }
    }
    // What the default is held to would not be.
    assert!(furthest > tolerance(DType::F32).1, "{furthest}");
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
fn a_recorded_pass_gives_the_rows_of_one_that_is_not_whatever_ran_before_it() {
    let Some(gpu) = gpu() else { return };
    // The same kernels on the same processor; a real GPU may sum the rows of a larger product in another order.
    let exact = gpu.0.name().contains("Fake GPU");
    for name in all_fixtures() {
        let fixture = Fixture::open(&name);
        let sixteen_bits = ["bert-embed-mean", "roberta-rerank", "vit-classify"].contains(&name.as_str());
        for format in [DType::F32, DType::F16, DType::BF16].into_iter().take(if sixteen_bits { 3 } else { 1 }) {
            let (mut plain, _memory) = loaded(&fixture, gpu, format);
            let (mut recorded, _memory) = warmed(&fixture, gpu, format);
            // Sizes that are filled up and not, alone and among those that are too many.
            for count in [1, 40, 1, 3, 2, 9] {
                let batch: Vec<_> = fixture.inputs.iter().cycle().skip(count).take(count).cloned().collect();
                let (want, got) = (run(&mut plain, &batch), run(&mut recorded, &batch));
                let what = format!("{name} in {}, {count} inputs", format.as_str());
                if exact {
                    assert_eq!(got, want, "{what}");
                } else {
                    assert_alike(&got.concat(), &want.concat(), tolerance(format), &what);
                }
            }
        }
    }
}

#[test]
fn a_text_of_any_length_runs_in_a_recorded_pass_as_in_another() {
    let Some(gpu) = gpu() else { return };
    let fixture = Fixture::open("bert-embed-mean");
    let (mut plain, _memory) = loaded(&fixture, gpu, DType::F32);
    let (mut recorded, _memory) = warmed(&fixture, gpu, DType::F32);
    let ids = |length: usize| (0..length).map(|at| 1 + (at * 7 % 20) as u32).collect::<Vec<_>>();
    let text = |length: usize| Input::Tokens(Tokens { ids: ids(length), type_ids: vec![0; length] });
    let longest = (1..600).rev().find(|length| plain.forward_all(vec![text(*length)]).is_ok()).unwrap();
    for length in
        [1, 2, 15, 16, 17, 31, 32, 33, 48, longest - 1, longest].into_iter().filter(|length| *length <= longest)
    {
        for batch in [vec![text(length)], vec![text(length), text(1), text(longest)]] {
            let (want, got) = (run(&mut plain, &batch), run(&mut recorded, &batch));
            for (got, want) in got.iter().zip(&want) {
                assert_same(got, want, 1e-5, &format!("{length} of {longest} tokens"));
            }
        }
    }
}

#[test]
fn what_was_recorded_is_gone_with_its_model() {
    let Some(gpu) = gpu() else { return };
    let fixture = Fixture::open("bert-embed-mean");
    let (mut model, memory) = warmed(&fixture, gpu, DType::F16);
    run(&mut model, &fixture.inputs[..1]);
    drop(model);
    gpu.1.synchronize().unwrap();
    memory.trim().unwrap();
    let left = memory.measured().unwrap().unwrap();
    assert_eq!((left.used, left.reserved), (0, 0));
}

#[test]
fn whoever_waits_for_a_gpu_to_be_let_go_of_is_told_when_its_last_holder_ends() {
    if gpu().is_none() {
        return;
    }
    let opened = device::open(DeviceSpec::Cuda(0)).unwrap();
    let (released, machine) = (opened.released(), Machine::start(&opened).unwrap());
    drop(opened);
    assert!(!released.within(Duration::ZERO));
    let (end, ends) = channel::<()>();
    let holder = std::thread::spawn(move || {
        // What nobody joins: it ends when it comes to it.
        ends.recv().unwrap_err();
        drop(machine);
    });
    assert!(!released.within(Duration::from_millis(20)));
    drop(end);
    assert!(released.within(Duration::from_secs(60)));
    holder.join().unwrap();
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
    for (value, format, says) in [
        (1e30f32, DType::F16, "too large for f16"),
        (f32::NAN, DType::BF16, "holds non-finite values, or"),
        (f32::INFINITY, DType::F32, "holds non-finite values"),
        (1e30, DType::F32, ""),
    ] {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(&Fixture::open("bert-embed-mean").version.spec.dir, folder.path());
        let mut broken = String::new();
        with_tensors(folder.path(), |tensors| {
            broken = tensors.matrix();
            tensors.bytes(&broken)[4..8].copy_from_slice(&value.to_le_bytes());
        });
        match weights_load(&Version::open(folder.path(), "embed"), gpu, format) {
            Ok(_) => assert_eq!(says, "", "{value} in {}", format.as_str()),
            Err(error) => {
                let told = error.to_string();
                assert!(!says.is_empty() && told.contains(says) && told.contains(&broken), "{told}");
            }
        }
    }
}

/// A fixture with other weights: `(tensor, element, value)`, f32.
fn changed(name: &str, folder: &std::path::Path, change: impl FnOnce(&mut Tensors)) -> Fixture {
    let fixture = Fixture::open(name);
    copy_folder(&fixture.version.spec.dir, folder);
    with_tensors(folder, change);
    Fixture { version: Version::open(folder, fixture.version.spec.task.name()), ..fixture }
}

fn set(tensors: &mut Tensors, name: &str, change: impl Fn(usize, f32) -> f32) {
    for (at, bytes) in tensors.bytes(name).as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *bytes = change(at, f32::from_le_bytes(*bytes)).to_le_bytes();
    }
}

#[test]
fn what_is_too_large_for_f16_is_told_of_logits_and_of_rows_that_were_widened_since() {
    let Some(gpu) = gpu() else { return };
    const LARGEST: f32 = 65520.0;
    // One logit lies about the largest f16, below for some inputs and above for others.
    let folder = tempfile::tempdir().unwrap();
    let fixture = changed("bert-classify", folder.path(), |tensors| {
        set(tensors, "classifier.weight", |at, value| if at >= 64 { value * 1000.0 } else { value });
        set(tensors, "classifier.bias", |at, value| if at == 2 { 64800.0 } else { value });
    });
    let land = |model: &mut Model, inputs: &[Input]| model.forward_all(inputs.to_vec()).unwrap().land().unwrap();
    let (mut single, _memory) = loaded(&fixture, gpu, DType::F32);
    let wanted = land(&mut single, &fixture.inputs);
    assert!(wanted.finite);
    let clear = |row: &Vec<f32>| (row[2] - LARGEST).abs() > 100.0;
    let (inputs, beyond): (Vec<Input>, Vec<bool>) = fixture
        .inputs
        .iter()
        .zip(&wanted.rows)
        .filter(|(_, row)| clear(row))
        .map(|(input, row)| (input.clone(), row[2] > LARGEST))
        .unzip();
    assert!(beyond.contains(&true) && beyond.contains(&false), "{:?}", wanted.rows);
    let (mut half, _half_memory) = loaded(&fixture, gpu, DType::F16);
    let landed = land(&mut half, &inputs);
    assert!(!landed.finite);
    for ((row, input), beyond) in landed.rows.iter().zip(&inputs).zip(&beyond) {
        assert_eq!(row[2] == f32::INFINITY, *beyond, "{row:?}");
        assert_eq!(land(&mut half, std::slice::from_ref(input)).finite, !beyond, "{row:?}");
    }
    let (mut brain, _brain_memory) = loaded(&fixture, gpu, DType::BF16);
    assert!(land(&mut brain, &inputs).finite, "bf16 reaches as far as f32");

    // One value of every row is beyond; a row's length is divided by as f32.
    let folder = tempfile::tempdir().unwrap();
    let fixture = changed("bert-embed-mean", folder.path(), |tensors| {
        let names: Vec<String> = tensors.header.as_object().unwrap().keys().cloned().collect();
        let of_last = |part: &str| names.iter().filter(|name| name.ends_with(part)).max().unwrap().clone();
        set(tensors, &of_last("output.LayerNorm.weight"), |at, value| if at == 0 { 60000.0 } else { value });
        set(tensors, &of_last("output.LayerNorm.bias"), |at, value| if at == 0 { 60000.0 } else { value });
    });
    for (format, is_finite) in [(DType::F32, true), (DType::F16, false)] {
        let (mut model, _memory) = loaded(&fixture, gpu, format);
        let landed = land(&mut model, &fixture.inputs);
        assert_eq!(landed.finite, is_finite, "{}", format.as_str());
        assert_eq!(landed.rows.iter().flatten().all(|value| value.is_finite()), is_finite);
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
            let (mut model, _memory) = super::loaded(&version, gpu, format);
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
