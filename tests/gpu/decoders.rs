//! Models that generate on a GPU: against what transformers answered, against themselves in other steps, and the memory they take.

#[path = "decoders/quantised.rs"]
mod quantised;
#[path = "decoders/recorded.rs"]
mod recorded;
#[path = "decoders/told.rs"]
mod told;

use candle_core::DType;
use common::decoders::{Fixture, Running, assert_near, names};
use common::models::{Version, assert_alike};
use common::tensors::with_tensors;
use cutover::device::{Memory, Opened, Owner};
use cutover::error::Kind;
use cutover::model::{Input, KvCache, Model, ROWS_PER_STEP, StepInput, StepSequence, TOKENS_PER_STEP, Tokens, Wants};
use cutover::ops::{Keeping, Machine};
use cutover::weights::Progress;
use serde_json::json;

use super::{common, gpu, loaded, weights_load};

const FORMATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

fn running(version: &Version, gpu: &(Opened, Machine), format: DType) -> (Running, Memory) {
    let (model, memory) = loaded(version, gpu, format);
    (Running::with_its_own(model), memory)
}

/// The least cosine, and the largest difference as a part of the largest logit. These models have random weights, so that few
/// bits of activations are soon fewer of logits.
fn tolerance(format: DType) -> (f64, f32) {
    match format {
        DType::F32 => (0.999_999, 2e-5),
        DType::F16 => (0.9999, 2e-2),
        _ => (0.99, 0.2),
    }
}

/// Whether a product of one row gives the bits of the same row among others: a real GPU may sum them in another order.
fn is_exact(gpu: &(Opened, Machine), format: DType) -> bool {
    gpu.0.name().contains("Fake GPU") && format == DType::F32
}

#[track_caller]
fn assert_rows(got: &[Vec<f32>], want: &[Vec<f32>], (exact, tolerance): (bool, (f64, f32)), what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    if exact {
        assert!(got == want, "{what}: other bits");
    }
    for (got, want) in got.iter().zip(want) {
        assert_alike(got, want, tolerance, what);
    }
}

#[test]
fn every_fixture_gives_the_reference_logits_in_every_format() {
    let Some(gpu) = gpu() else { return };
    for name in names() {
        let fixture = Fixture::open(&name);
        for format in FORMATS {
            let (mut running, _memory) = running(&fixture.version(), gpu, format);
            for (i, prompt) in fixture.prompts.iter().enumerate() {
                let rows = running.whole(&prompt.tokens);
                for (position, want) in prompt.positions.iter().zip(&prompt.logits) {
                    let what = format!("{name} in {}, prompt {i}, {position}", format.as_str());
                    assert_alike(&rows[*position as usize], want, tolerance(format), &what);
                }
            }
        }
    }
}

#[test]
fn what_a_model_makes_ready_changes_nothing_of_what_it_answers() {
    let Some(gpu) = gpu() else { return };
    let fixture = Fixture::open("qwen3");
    for format in FORMATS {
        let (mut model, _memory) = loaded(&fixture.version(), gpu, format);
        let warmth = model.warm(true, &Progress::new());
        assert!(warmth.failed.is_none(), "{warmth:?}");
        let (mut running, prompt) = (Running::with_its_own(model), &fixture.prompts[1]);
        let rows = running.whole(&prompt.tokens);
        for (position, want) in prompt.positions.iter().zip(&prompt.logits) {
            assert_alike(&rows[*position as usize], want, tolerance(format), format.as_str());
        }
    }
}

#[test]
fn every_fixture_goes_on_greedily_as_the_reference_does() {
    let Some(gpu) = gpu() else { return };
    for name in names() {
        let fixture = Fixture::open(&name);
        let (mut running, _memory) = running(&fixture.version(), gpu, DType::F32);
        for (i, prompt) in fixture.prompts.iter().enumerate() {
            let got = running.greedy(&prompt.tokens, prompt.greedy.len());
            assert_eq!(got, prompt.greedy, "{name}, prompt {i}");
        }
    }
}

#[test]
fn one_token_at_a_time_in_pieces_or_among_others_gives_the_same_rows() {
    let Some(gpu) = gpu() else { return };
    for name in names() {
        let fixture = Fixture::open(&name);
        let all = ["llama-biases", "qwen3", "mistral-window"].contains(&name.as_str());
        for format in FORMATS.into_iter().take(if all { 3 } else { 1 }) {
            let how = (is_exact(gpu, format), tolerance(format));
            let (mut running, _memory) = running(&fixture.version(), gpu, format);
            let want: Vec<_> = fixture.prompts.iter().map(|prompt| running.whole(&prompt.tokens)).collect();
            let what = format!("{name} in {}", format.as_str());
            for sizes in [&[1][..], &[3, 1, 7, 13], &[17]] {
                for (prompt, want) in fixture.prompts.iter().zip(&want) {
                    let rows = running.in_pieces(&prompt.tokens, sizes);
                    assert_rows(&rows, want, how, &format!("{what}, in pieces of {sizes:?}"));
                }
                running.next = 256;
            }
            for (rows, want) in running.side_by_side(&fixture.prompts).iter().zip(&want) {
                assert_rows(rows, want, how, &format!("{what}, side by side"));
            }
        }
    }
}

#[test]
fn long_sequences_are_the_same_in_parts_and_whole() {
    let Some(gpu) = gpu() else { return };
    for name in ["llama", "qwen3", "mistral-window"] {
        let fixture = Fixture::changed(name, |config| config["max_position_embeddings"] = json!(2048));
        let tokens: Vec<u32> = (0..700).map(|at| (at * 7 + at / 13) % 96).collect();
        let want = fixture.load().whole(&tokens[..256]);
        let (mut running, _memory) = running(&fixture.version(), gpu, DType::F32);
        assert_rows(&running.whole(&tokens[..256]), &want, (false, tolerance(DType::F32)), name);
        // Steps of one token over several parts of keys, whole prompts over them, and both side by side.
        running.next = 256;
        let last = |running: &mut Running, sizes: &[usize]| {
            let mut sequence = running.start(&tokens);
            let mut sizes = sizes.iter().cycle();
            let mut row = Vec::new();
            while sequence.done < tokens.len() {
                let count = (*sizes.next().unwrap()).min(tokens.len() - sequence.done).min(200);
                let wants = if sequence.done + count == tokens.len() { Wants::Last } else { Wants::Nothing };
                row = running.step(&mut [(&mut sequence, count, wants)]);
            }
            running.next = 256;
            row
        };
        let how = (is_exact(gpu, DType::F32), tolerance(DType::F32));
        let whole = last(&mut running, &[200]);
        for sizes in [&[199, 1][..], &[1, 3], &[40, 2, 1]] {
            assert_rows(&last(&mut running, sizes), &whole, how, &format!("{name}, {sizes:?}"));
        }
    }
}

/// Heads as wide as those of real models, for which tensor cores have kernels of their own; with random weights.
fn with_heads_of(width: usize, heads: (usize, usize)) -> Fixture {
    let fixture = Fixture::changed("llama", |config| {
        config["head_dim"] = json!(width);
        (config["num_attention_heads"], config["num_key_value_heads"]) = (json!(heads.0), json!(heads.1));
        config["max_position_embeddings"] = json!(2048);
    });
    let mut state = 7u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 2.0
    };
    fixture.reshape(|name, shape| {
        let (q, kv) = (heads.0 * width, heads.1 * width);
        let shape = match name.split('.').rev().nth(1) {
            Some("q_proj") => vec![q, shape[1]],
            Some("k_proj" | "v_proj") => vec![kv, shape[1]],
            Some("o_proj") => vec![shape[0], q],
            _ => shape.to_vec(),
        };
        let spread = 1.7 / (*shape.last().unwrap() as f32).sqrt();
        let values = (0..shape.iter().product()).map(|_| if shape.len() == 1 { 1.0 } else { random() * spread });
        (shape.clone(), values.collect())
    });
    fixture
}

#[test]
fn heads_for_tensor_cores_give_what_a_cpu_gives_in_steps_of_any_size() {
    let Some(gpu) = gpu() else { return };
    let tokens: Vec<u32> = (0..300).map(|at| (at * 7 + at / 13) % 96).collect();
    for (width, heads) in [(64, (4, 2)), (128, (3, 1)), (64, (2, 2))] {
        let fixture = with_heads_of(width, heads);
        let want: Vec<Vec<f32>> = {
            let mut running = fixture.load();
            let mut sequence = running.start(&tokens);
            running.step(&mut [(&mut sequence, 44, Wants::Nothing)]);
            running.step(&mut [(&mut sequence, 256, Wants::Every)])
        };
        for format in FORMATS {
            let (mut running, _memory) = running(&fixture.version(), gpu, format);
            for sizes in [&[256][..], &[100, 1, 3, 40]] {
                let mut sequence = running.start(&tokens);
                running.step(&mut [(&mut sequence, 44, Wants::Nothing)]);
                let (mut rows, mut sizes) = (Vec::new(), sizes.iter().cycle());
                while sequence.done < tokens.len() {
                    let count = (*sizes.next().unwrap()).min(tokens.len() - sequence.done);
                    rows.extend(running.step(&mut [(&mut sequence, count, Wants::Every)]));
                }
                let what = format!("{heads:?} heads of {width} in {}", format.as_str());
                assert_rows(&rows, &want, (false, tolerance(format)), &what);
                running.next = 256;
            }
        }
    }
}

#[test]
fn only_rows_that_are_wanted_come() {
    let Some(gpu) = gpu() else { return };
    for name in ["llama", "qwen3", "mistral-window"] {
        let fixture = Fixture::open(name);
        let (mut running, _memory) = running(&fixture.version(), gpu, DType::F32);
        let how = (is_exact(gpu, DType::F32), tolerance(DType::F32));
        let [_, short, long, longest] = &fixture.prompts[..] else { panic!("{name} has other prompts") };
        let want = [long, longest].map(|prompt| running.whole(&prompt.tokens));
        let [mut a, mut b, mut c] = [short, long, longest].map(|prompt| running.start(&prompt.tokens));
        let (b_all, c_all) = (long.tokens.len(), longest.tokens.len());
        let rows = running.step(&mut [
            (&mut a, 9, Wants::Nothing),
            (&mut b, b_all, Wants::Last),
            (&mut c, c_all - 1, Wants::Nothing),
        ]);
        assert_rows(&rows, &want[0][b_all - 1..], how, name);
        let rows = running.step(&mut [(&mut c, 1, Wants::Last)]);
        assert_rows(&rows, &want[1][c_all - 1..], how, name);
        assert!(running.step(&mut [(&mut a, 3, Wants::Nothing)]).is_empty());
        assert!(running.step(&mut []).is_empty());
    }
}

#[test]
fn texts_are_scored_as_on_a_cpu_in_as_many_turns_as_there_is_room_for() {
    let Some(gpu) = gpu() else { return };
    let fixture = Fixture::open("llama");
    let (mut model, _memory) = loaded(&fixture.version(), gpu, DType::F32);
    let text = |length: usize| {
        let ids = (0..length).map(|at| (at * 11 % 96) as u32).collect();
        Input::Tokens(Tokens { ids, type_ids: vec![0; length] })
    };
    // Of a context of 128 tokens eight blocks are kept to score in: these are several turns.
    let texts: Vec<Input> = [128, 3, 20, 100, 64, 64, 2].into_iter().map(text).collect();
    let want = fixture.version().load().forward_all(texts.clone()).unwrap().wait().unwrap();
    let got = model.forward_all(texts).unwrap().wait().unwrap();
    for (got, want) in got.iter().zip(&want) {
        assert_near(got, want, 1e-4, "scores");
    }
    assert_eq!(got.len(), want.len());
    let error = model.forward_all(vec![text(129)]).unwrap_err();
    assert!(error.kind() == Kind::BadRequest && error.to_string().contains("129 tokens"), "{error}");
}

/// Queries have more rows than keys and values, with which they lie as one weight: each is looked at to its end, and named.
#[test]
fn values_that_are_no_numbers_are_found_in_whichever_of_stacked_weights_they_are() {
    let Some(gpu) = gpu() else { return };
    for (part, at_end) in [("q_proj", true), ("k_proj", false), ("k_proj", true), ("v_proj", false), ("v_proj", true)] {
        let fixture = Fixture::open("qwen3");
        let broken = format!("model.layers.1.self_attn.{part}.weight");
        with_tensors(&fixture.version().spec.dir, |tensors| {
            let bytes = tensors.bytes(&broken);
            let at = if at_end { bytes.len() - 4 } else { 0 };
            bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        });
        for format in FORMATS {
            let told = weights_load(&fixture.version(), gpu, format).unwrap_err().to_string();
            assert!(told.contains(&format!("'{broken}' holds non-finite values")), "{part}, {at_end}: {told}");
        }
    }
    assert!(weights_load(&Fixture::open("qwen3").version(), gpu, DType::BF16).is_ok());
}

#[test]
fn what_a_model_takes_is_what_it_declares_and_all_of_it_comes_back() {
    let Some(gpu) = gpu() else { return };
    let free = || gpu.0.vram().unwrap().unwrap().free;
    gpu.1.synchronize().unwrap();
    let before = free();
    for name in names() {
        let fixture = Fixture::open(&name);
        let version = fixture.version();
        let footprint = version.footprint_for(Keeping::Cuda(DType::F16)).unwrap();
        let (mut running, memory) = running(&version, gpu, DType::F16);
        running.greedy(&fixture.prompts[1].tokens, 3);
        let held = memory.measured().unwrap().unwrap();
        let borders = footprint.wanted.len() as u64 * 512;
        assert!((footprint.weight_bytes()..=footprint.total() + borders).contains(&held.used), "{name}: {held:?}");
        drop(running);
        gpu.1.synchronize().unwrap();
        memory.trim().unwrap();
        let left = memory.measured().unwrap().unwrap();
        assert_eq!((left.used, left.reserved), (0, 0), "{name}");
    }
    assert_eq!(free(), before);
}

#[test]
fn the_largest_steps_fit_what_is_declared() {
    let Some(gpu) = gpu() else { return };
    for (name, format) in [("llama", DType::F16), ("llama-head-dim", DType::F32)] {
        let fixture = Fixture::changed(name, |config| config["max_position_embeddings"] = json!(2048));
        let (model, _memory) = loaded(&fixture.version(), gpu, format);
        run_largest_steps(model, name);
    }
}

/// Of a model for sequences of 2,048 tokens.
fn run_largest_steps(model: Model, name: &str) {
    let Model::Decoder(mut model, mut cache) = model else { panic!("{name} is no decoder") };
    // Texts may be scored beside any step.
    let scored = KvCache::new(&model.kv(), model.blocks_to_score(), model.device()).unwrap();
    let sequence = |at: usize, tokens: usize, wants| {
        let each = tokens.div_ceil(16);
        let blocks = (at * each..(at + 1) * each).map(|block| block as u32).collect::<Vec<_>>();
        StepSequence { tokens: vec![7; tokens], from: 0, blocks: blocks.into(), wants }
    };
    let steps = [
        vec![sequence(0, TOKENS_PER_STEP, Wants::Last)],
        (0..ROWS_PER_STEP).map(|at| sequence(at, TOKENS_PER_STEP / ROWS_PER_STEP, Wants::Last)).collect(),
        vec![sequence(0, ROWS_PER_STEP, Wants::Every)],
        vec![sequence(0, ROWS_PER_STEP, Wants::Scored { next: 7 })],
    ];
    for sequences in steps {
        let step = StepInput { sequences };
        let logits = model.step(&step, &mut cache).unwrap();
        assert!(logits.count() == step.rows() && logits.rows().flatten().all(|value| value.is_finite()), "{name}");
    }
    drop(scored);
}
