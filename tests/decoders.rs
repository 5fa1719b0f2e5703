//! Models that generate, against what transformers answered, and against themselves in other steps.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::HashSet;

use candle_core::DType;
use common::decoders::{Fixture, assert_near, names};
use common::models::Version;
use cutover::error::{Error, Kind};
use cutover::model::{Input, KvCache, KvSpec, Model, Packed, StepInput, StepSequence, TOKENS_PER_STEP, Tokens, Wants};
use cutover::ops::{Device, Keeping};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

/// Of the largest logit: f32 in another order of sums makes 3e-6.
const TOLERANCE: f32 = 2e-5;

#[test]
fn every_fixture_gives_the_reference_logits() {
    for name in names() {
        let fixture = Fixture::open(&name);
        let mut running = fixture.load();
        for (i, prompt) in fixture.prompts.iter().enumerate() {
            let rows = running.whole(&prompt.tokens);
            for (position, want) in prompt.positions.iter().zip(&prompt.logits) {
                assert_near(&rows[*position as usize], want, TOLERANCE, &format!("{name}, prompt {i}, {position}"));
            }
        }
    }
}

#[test]
fn every_fixture_goes_on_greedily_as_the_reference_does() {
    for name in names() {
        let fixture = Fixture::open(&name);
        let mut running = fixture.load();
        for (i, prompt) in fixture.prompts.iter().enumerate() {
            let got = running.greedy(&prompt.tokens, prompt.greedy.len());
            assert_eq!(got, prompt.greedy, "{name}, prompt {i}");
        }
    }
}

/// So that passing the tests above means something.
#[test]
fn fixtures_that_share_weights_have_other_answers() {
    let last = |name: &str| Fixture::open(name).prompts.last().unwrap().logits.last().unwrap().clone();
    let variants =
        ["llama", "rope-linear", "rope-llama3", "rope-yarn", "rope-yarn-mscale", "rope-longrope", "mistral-window"];
    for (i, a) in variants.iter().enumerate() {
        for b in &variants[i + 1..] {
            let (x, y) = (last(a), last(b));
            let difference = x.iter().zip(&y).fold(0f32, |most, (x, y)| most.max((x - y).abs()));
            assert!(difference > 0.02, "{a} and {b} differ by {difference}");
        }
    }
}

#[test]
fn one_token_at_a_time_in_pieces_or_among_others_gives_the_same_bits() {
    for name in names() {
        let fixture = Fixture::open(&name);
        let mut running = fixture.load();
        let want: Vec<_> = fixture.prompts.iter().map(|prompt| running.whole(&prompt.tokens)).collect();
        for sizes in [&[1][..], &[3, 1, 7, 13], &[17]] {
            for (prompt, want) in fixture.prompts.iter().zip(&want) {
                let rows = running.in_pieces(&prompt.tokens, sizes);
                assert!(rows == *want, "{name}, {} tokens in pieces of {sizes:?}", prompt.tokens.len());
            }
            running.next = 256;
        }
        let rows = running.side_by_side(&fixture.prompts);
        assert!(rows == want, "{name}, side by side");
    }
}

#[test]
fn only_rows_that_are_wanted_come_and_they_are_the_same_bits() {
    for name in ["llama", "qwen3", "mistral-window"] {
        let fixture = Fixture::open(name);
        let mut running = fixture.load();
        let [_, short, long, longest] = &fixture.prompts[..] else { panic!("{name} has other prompts") };
        let want = [long, longest].map(|prompt| running.whole(&prompt.tokens));
        let [mut a, mut b, mut c] = [short, long, longest].map(|prompt| running.start(&prompt.tokens));
        let (b_all, c_all) = (long.tokens.len(), longest.tokens.len());
        let rows = running.step(&mut [
            (&mut a, 9, Wants::Nothing),
            (&mut b, b_all, Wants::Last),
            (&mut c, c_all - 1, Wants::Nothing),
        ]);
        assert!(rows == [want[0][b_all - 1].clone()], "{name}");
        // Keys and values of rows that nobody asked for are there all the same.
        let rows = running.step(&mut [(&mut c, 1, Wants::Last)]);
        assert!(rows == [want[1][c_all - 1].clone()], "{name}");
        assert!(running.step(&mut [(&mut a, 3, Wants::Nothing)]).is_empty());
        assert!(running.step(&mut []).is_empty());
    }
}

#[test]
fn weights_of_16_bits_stay_so_and_keys_and_values_with_them() {
    for (name, weights, kv) in [("llama", DType::F32, DType::F32), ("qwen2", DType::BF16, DType::F16)] {
        let fixture = Fixture::open(name);
        let version = fixture.version();
        let footprint = version.footprint().unwrap();
        let matrices = footprint.wanted.iter().filter(|want| want.shape.len() == 2);
        assert!(matrices.clone().count() > 4 && matrices.clone().all(|want| want.dtype == weights), "{name}");
        assert!(footprint.wanted.iter().all(|want| want.shape.len() == 2 || want.dtype == DType::F32), "{name}");
        let Model::Decoder(model, _) = version.load() else { panic!("{name} is no decoder") };
        assert_eq!(model.kv().dtype, kv, "{name}");
    }
}

#[test]
fn keys_and_values_may_be_kept_as_f16() {
    for name in names() {
        let fixture = Fixture::open(&name);
        let mut running = fixture.load().keep_as(DType::F16);
        for (i, prompt) in fixture.prompts.iter().enumerate() {
            let rows = running.whole(&prompt.tokens);
            for (position, want) in prompt.positions.iter().zip(&prompt.logits) {
                assert_near(&rows[*position as usize], want, 1e-2, &format!("{name}, prompt {i}, {position}"));
            }
            let mut sequence = running.start(&prompt.tokens);
            let pieces: Vec<_> =
                prompt.tokens.iter().flat_map(|_| running.step(&mut [(&mut sequence, 1, Wants::Every)])).collect();
            assert!(pieces == rows, "{name}, prompt {i}: one token at a time");
        }
    }
}

/// As quantised checkpoints have them: then they are products of their own.
#[test]
fn projections_of_several_formats_are_kept_apart_and_give_the_same_bits() {
    for name in ["llama", "qwen2"] {
        let fixture = Fixture::open(name);
        let want: Vec<_> = fixture.prompts.iter().map(|prompt| fixture.load().whole(&prompt.tokens)).collect();
        let together = fixture.version().footprint().unwrap();
        assert!(together.wanted.iter().any(|want| want.below.len() == 2), "{name}");
        fixture.rewrite(|tensor, view| {
            let wider = |bytes: &[u8]| match view.dtype() {
                Dtype::F32 => f64::from(f32::from_le_bytes(bytes.try_into().unwrap())),
                _ => f64::from(half::bf16::from_le_bytes(bytes.try_into().unwrap())),
            };
            let chosen = tensor.contains("v_proj") || tensor.contains("gate_proj");
            let size = if view.dtype() == Dtype::F32 { 4 } else { 2 };
            chosen
                .then(|| (Dtype::F64, view.data().chunks(size).flat_map(|bytes| wider(bytes).to_le_bytes()).collect()))
        });
        let apart = fixture.version().footprint().unwrap();
        assert!(apart.wanted.iter().all(|want| want.below.is_empty()), "{name}");
        let mut running = fixture.load();
        for (prompt, want) in fixture.prompts.iter().zip(&want) {
            assert!(running.whole(&prompt.tokens) == *want, "{name}");
        }
    }
}

#[test]
fn the_footprint_is_exactly_the_tensors_of_the_checkpoint() {
    for name in names() {
        let version = Fixture::open(&name).version();
        let footprint = version.footprint().unwrap();
        let mut read = HashSet::new();
        for (tensor, shape) in footprint.wanted.iter().flat_map(|want| want.parts()) {
            assert_eq!(version.index.get(tensor).unwrap().shape, shape, "{name}: {tensor}");
            assert!(read.insert(tensor.to_owned()), "{name}: {tensor} twice");
        }
        let unread: Vec<_> = version.index.iter().filter(|info| !read.contains(&info.name)).collect();
        assert!(unread.is_empty(), "{name} leaves {unread:?}");
    }
}

#[test]
fn a_head_that_was_saved_though_it_is_the_embedding_table_is_not_read() {
    let fixture = Fixture::changed("llama", |config| config["tie_word_embeddings"] = json!(true));
    let footprint = fixture.version().footprint().unwrap();
    assert!(footprint.wanted.iter().all(|want| want.name != "lm_head.weight"));
}

#[track_caller]
fn refusal(name: &str, change: impl Fn(&mut Value)) -> String {
    let error = Fixture::changed(name, change).version().footprint().expect_err("it should have been refused");
    assert_eq!(error.kind(), Kind::Refused, "{error}");
    error.to_string()
}

#[test]
fn configurations_that_would_change_the_numbers_are_refused_by_name() {
    let cases: [(&str, &str, Value, &str); 19] = [
        ("llama", "hidden_act", json!("xielu"), "'xielu' is not supported"),
        (
            "llama",
            "rope_scaling",
            json!({"rope_type": "xpos", "factor": 2.0}),
            "'xpos' is not supported; known are default",
        ),
        ("llama", "rope_scaling", json!({"type": "su"}), "'su' is not supported"),
        ("llama", "rope_scaling", json!({"rope_type": "linear"}), "rope_scaling.factor: is missing"),
        ("llama", "rope_scaling", json!({"rope_type": "linear", "factor": 0.5}), "at least 1, found 0.5"),
        ("llama", "rope_scaling", json!({"rope_type": "yarn", "factor": "2"}), "expected a number, found \"2\""),
        (
            "llama",
            "rope_scaling",
            json!({"rope_type": "llama3", "factor": 8.0}),
            "rope_scaling.low_freq_factor: is missing",
        ),
        ("rope-longrope", "head_dim", json!(16), "expected 8 positive numbers"),
        ("llama", "rope_scaling", json!("linear"), "expected an object"),
        ("llama", "rope_theta", json!(0.0), "more than 1, found 0"),
        ("llama", "partial_rotary_factor", json!(0.5), "only whole heads"),
        ("llama", "num_key_value_heads", json!(3), "3 do not divide 4"),
        ("llama", "num_key_value_heads", json!(0), "0 do not divide 4"),
        ("llama", "head_dim", json!(7), "even number up to 4096, found 7"),
        ("llama", "rms_norm_eps", json!(-1.0), "found -1"),
        ("llama", "num_hidden_layers", json!(5000), "at most 1024"),
        ("llama", "max_position_embeddings", json!(0), "found 0"),
        ("qwen2-window", "layer_types", json!(["full_attention"]), "expected 2 names, found 1"),
        (
            "qwen2-window",
            "layer_types",
            json!(["full_attention", "chunked_attention"]),
            "\"chunked_attention\" is not supported",
        ),
    ];
    for (name, key, value, reason) in cases {
        let message = refusal(name, |config| config[key] = value.clone());
        assert!(message.contains(reason) && message.contains("config.json"), "{name}, {key}: {message}");
    }
}

#[test]
fn newer_files_say_the_same_of_rotary_embeddings_in_other_words() {
    let fixture = Fixture::changed("rope-yarn", |config| {
        let mut parameters = config["rope_scaling"].clone();
        parameters["rope_theta"] = config["rope_theta"].clone();
        let object = config.as_object_mut().unwrap();
        object.remove("rope_scaling");
        object.remove("rope_theta");
        config["rope_parameters"] = parameters;
    });
    let mut running = fixture.load();
    for prompt in &fixture.prompts {
        let rows = running.whole(&prompt.tokens);
        assert_near(rows.last().unwrap(), prompt.logits.last().unwrap(), TOLERANCE, "rope_parameters");
    }
}

#[test]
fn checkpoints_that_do_not_fit_are_refused_before_a_byte_is_read() {
    let message = refusal("llama", |config| config["attention_bias"] = json!(true));
    assert!(message.contains("'model.layers.0.self_attn.q_proj.bias' is missing"), "{message}");
    let message = refusal("llama", |config| config["num_key_value_heads"] = json!(1));
    assert!(message.contains("k_proj.weight' has shape [16, 32], not [8, 32]"), "{message}");
    let message = refusal("qwen2", |config| config["model_type"] = json!("llama"));
    assert!(message.contains("self_attn.k_proj.bias' is not part of this architecture"), "{message}");
    let message = refusal("qwen3", |config| config["model_type"] = json!("qwen2"));
    assert!(message.contains("bias' is missing") || message.contains("q_norm"), "{message}");
    let message = refusal("llama-tied", |config| config["tie_word_embeddings"] = json!(false));
    assert!(message.contains("'lm_head.weight' is missing"), "{message}");
}

#[test]
fn only_models_that_generate_answer_the_task() {
    let fixture = Fixture::open("llama");
    for task in ["embed", "classify", "rerank"] {
        let message = Version::open(fixture.dir.path(), task).footprint().unwrap_err().to_string();
        assert!(message.contains(&format!("a 'llama' model does not answer task '{task}'")), "{message}");
    }
    let encoder = common::models::fixtures().join("bert-classify");
    let message = Version::open(&encoder, "generate").footprint().unwrap_err().to_string();
    assert!(message.contains("a 'bert' model does not answer task 'generate'"), "{message}");
    let wide = Fixture::changed("llama", |config| config["head_dim"] = json!(320));
    let message = wide.version().footprint_for(Keeping::Cuda(DType::F16)).unwrap_err().to_string();
    assert!(message.contains("320 on a GPU, where heads are up to 256 wide"), "{message}");
}

#[test]
fn a_whole_text_is_scored_as_its_steps_say_alone_and_beside_others() {
    let fixture = Fixture::open("llama");
    let mut model = fixture.version().load();
    let text = |ids: &[u32], first: usize| {
        let type_ids = (0..ids.len()).map(|at| u32::from(at >= first)).collect();
        Input::Tokens(Tokens { ids: ids.to_vec(), type_ids })
    };
    let texts = [text(&[5, 9, 3, 7, 11, 2], 6), text(&[8, 8, 1], 2)];
    let together = model.forward_all(texts.to_vec()).unwrap().wait().unwrap();
    // Of the first all tokens but the first, since none is marked; of the second the one that is.
    assert_eq!(together.iter().map(Vec::len).collect::<Vec<_>>(), [10, 2]);
    for (text, row) in texts.clone().into_iter().zip(&together) {
        assert_eq!(&model.forward_all(vec![text]).unwrap().wait().unwrap()[0], row);
        assert!(row.chunks(2).all(|pair| pair[0] <= pair[1] && pair[1] <= 0.0), "{row:?}");
    }
    // In turns of any length, which others may take between: the same bits.
    for tokens in [1, 2, 100] {
        let mut scoring = model.scoring(&Packed::new(texts.to_vec()).unwrap()).unwrap().unwrap();
        let mut turns = 1;
        while !model.go_on(&mut scoring, tokens).unwrap() {
            turns += 1;
            model.forward_all(vec![text(&[7, 7, 7], 1)]).unwrap().wait().unwrap();
        }
        assert!(turns >= 7usize.div_ceil(tokens), "{turns} of {tokens} tokens");
        assert_eq!(scoring.into_rows(), together);
    }
    let Model::Decoder(mut decoder, mut cache) = fixture.version().load() else { panic!("it is no decoder") };
    let sequence = StepSequence { tokens: vec![8, 8], from: 0, blocks: vec![0].into(), wants: Wants::Last };
    let logits = decoder.step(&StepInput { sequences: vec![sequence] }, &mut cache).unwrap();
    let row: Vec<f64> = logits.row(0).unwrap().iter().map(|value| f64::from(*value)).collect();
    let sum = row.iter().map(|value| value.exp()).sum::<f64>().ln();
    assert!((row[1] - sum - f64::from(together[1][0])).abs() < 1e-4, "{together:?}");
    let error = model.forward_all(vec![text(&[5], 1)]).unwrap_err();
    assert_eq!(error.kind(), Kind::BadRequest, "{error}");
}

#[test]
fn a_step_that_does_not_fit_is_an_error_and_leaves_the_model_whole() {
    let fixture = Fixture::open("llama");
    let mut running = fixture.load();
    let mut error = |tokens: Vec<u32>, from: usize, blocks: Vec<u32>| -> Error {
        let step =
            StepInput { sequences: vec![StepSequence { tokens, from, blocks: blocks.into(), wants: Wants::Last }] };
        running.model.step(&step, &mut running.kv).unwrap_err()
    };
    for (tokens, from, blocks, kind, reason) in [
        (vec![96], 0, vec![0], Kind::BadRequest, "token id 96, the model knows 96"),
        (vec![5; 2], 127, vec![0; 9], Kind::BadRequest, "a sequence of 129 tokens, the model takes 128"),
        (vec![5], usize::MAX, vec![0], Kind::BadRequest, "the model takes 128"),
        (vec![], 0, vec![0], Kind::Internal, "without a token"),
        (vec![5; 17], 0, vec![0], Kind::Internal, "1 blocks for 17 tokens"),
        (vec![5], 0, vec![256], Kind::Internal, "block 256 of 256"),
        (vec![5; TOKENS_PER_STEP + 1], 0, vec![0; 200], Kind::Internal, "a step of 2049 tokens"),
    ] {
        let error = error(tokens, from, blocks);
        assert!(error.kind() == kind && error.to_string().contains(reason), "{reason}: {error}");
    }
    let mut other = KvCache::new(&KvSpec { heads: 1, ..running.model.kv() }, 4, &Device::Cpu).unwrap();
    let step = StepInput {
        sequences: vec![StepSequence { tokens: vec![5], from: 0, blocks: vec![0].into(), wants: Wants::Last }],
    };
    assert_eq!(running.model.step(&step, &mut other).unwrap_err().kind(), Kind::Internal);
    let prompt = &fixture.prompts[1];
    assert_eq!(running.greedy(&prompt.tokens, 20), prompt.greedy);
}

#[test]
fn a_scaling_that_would_change_with_the_length_ends_the_context_where_it_would() {
    let context = |name: &str, change: fn(&mut Value)| Fixture::changed(name, change).load().model.context();
    assert_eq!(context("llama", |_| ()), 128);
    assert_eq!(context("rope-dynamic", |_| ()), 128);
    assert_eq!(context("rope-longrope", |config| config["original_max_position_embeddings"] = json!(64)), 64);
}
