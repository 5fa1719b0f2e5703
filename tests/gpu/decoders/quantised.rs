//! Models whose weights stay quantised: what they take, and that they give what the same weights give a CPU as numbers.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use cutover::device::HostRoom;
use cutover::gguf::Format;
use cutover::ops::{PANEL, QuantFormat, WeightLayout};
use cutover::weights::{Known, Manifest, Pace, load, park};
use half::f16;
use safetensors::tensor::{Dtype, TensorView};

use super::*;

/// Writes GGUF files.
#[path = "../../../src/gguf/writer.rs"]
#[allow(dead_code, reason = "it writes wrong ones too")]
mod writer;
use writer::Writer;

const HIDDEN: usize = 256;
const HEADS: usize = 4;
/// Values of the third product beside two others begin where no room of the device does, at a multiple of 128 bytes in f16.
const KV_HEADS: usize = 1;
const HEAD: usize = 64;
const INNER: usize = 256;
/// The last panel has eight rows.
const VOCABULARY: usize = 264;
const LAYERS: usize = 2;
const CONTEXT: usize = 2048;

/// Numbers between 0 and 1, the same each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }

    fn byte(&mut self) -> u8 {
        (self.next() * 256.0) as u8
    }

    /// Blocks of a row, of any levels and of scales with which weights are as large as a model's of this width.
    fn row(&mut self, format: QuantFormat, inner: usize) -> Vec<u8> {
        let mut row: Vec<u8> = (0..format.row_bytes(inner).unwrap()).map(|_| self.byte()).collect();
        let size = 1.7 / (inner as f32).sqrt();
        for block in row.chunks_mut(format.block_bytes()) {
            // A level's usual distance from the middle, and the middle of levels.
            let (scales, middle): (&[(usize, f32)], f32) = match format {
                QuantFormat::Q4_0 => (&[(0, 4.6)], 0.0),
                QuantFormat::Q4_1 => (&[(0, 4.6), (2, 4.6)], 7.5),
                QuantFormat::Q8_0 => (&[(0, 74.0)], 0.0),
                QuantFormat::Q4_K => (&[(0, 4.6 * 31.0), (2, 4.6 * 31.0)], 7.5),
                QuantFormat::Q6_K => (&[(208, 18.5 * 37.0)], 0.0),
            };
            let by = size * (0.75 + 0.5 * self.next());
            for (number, (at, spread)) in scales.iter().enumerate() {
                let sign = if format == QuantFormat::Q4_1 && number == 1 { -middle } else { middle };
                let scale = if number == 0 { by / spread } else { by / spread * sign };
                block[*at..*at + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            }
            // Scales of the parts and what is taken away are nearly the same, or the weights of a part would be far from zero.
            if format == QuantFormat::Q4_K {
                (0..4).for_each(|i| block[8 + i] = block[4 + i] ^ 1);
                (0..4).for_each(|i| block[12 + i] = block[12 + i] & 15 | (block[12 + i] & 15 ^ 1) << 4);
            }
        }
        row
    }
}

fn file_format(format: QuantFormat) -> Format {
    *Format::ALL.iter().find(|known| format!("{known:?}") == format.name()).unwrap()
}

/// A Llama in two folders: one GGUF file, and the numbers that its blocks stand for, as safetensors.
struct Quantised {
    file: tempfile::TempDir,
    numbers: tempfile::TempDir,
}

impl Quantised {
    /// `format`: of each matrix, by its name in the file; f32 where it has none. Tied where `output.weight` has not one either.
    fn new(tied: bool, format: impl Fn(&str) -> Option<QuantFormat>) -> Quantised {
        let mut made = Made { random: Random(11), file: header(), numbers: Vec::new() };
        made.matrix("token_embd", "model.embed_tokens", (VOCABULARY, HIDDEN), &format, None);
        for layer in 0..LAYERS {
            let parts = [
                ("attn_q", "self_attn.q_proj", (HEADS * HEAD, HIDDEN), Some(HEADS)),
                ("attn_k", "self_attn.k_proj", (KV_HEADS * HEAD, HIDDEN), Some(KV_HEADS)),
                ("attn_v", "self_attn.v_proj", (KV_HEADS * HEAD, HIDDEN), None),
                ("attn_output", "self_attn.o_proj", (HIDDEN, HEADS * HEAD), None),
                ("ffn_gate", "mlp.gate_proj", (INNER, HIDDEN), None),
                ("ffn_up", "mlp.up_proj", (INNER, HIDDEN), None),
                ("ffn_down", "mlp.down_proj", (HIDDEN, INNER), None),
            ];
            for (theirs, ours, shape, heads) in parts {
                let names = (format!("blk.{layer}.{theirs}"), format!("model.layers.{layer}.{ours}"));
                made.matrix(&names.0, &names.1, shape, &format, heads);
            }
            made.norm(&format!("blk.{layer}.attn_norm"), &format!("model.layers.{layer}.input_layernorm"));
            made.norm(&format!("blk.{layer}.ffn_norm"), &format!("model.layers.{layer}.post_attention_layernorm"));
        }
        made.norm("output_norm", "model.norm");
        if !tied {
            made.matrix("output", "lm_head", (VOCABULARY, HIDDEN), &format, None);
        }
        made.written(tied)
    }

    /// All of one format.
    fn all(format: QuantFormat) -> Quantised {
        Quantised::new(true, |_| Some(format))
    }

    fn version(&self) -> Version {
        Version::open(self.file.path(), "generate")
    }

    /// What a CPU makes of the numbers.
    fn on_a_cpu(&self) -> Running {
        Running::of(Version::open(self.numbers.path(), "generate").load())
    }
}

fn header() -> Writer {
    Writer::new()
        .with("general.architecture", "llama")
        .with("llama.context_length", CONTEXT as u32)
        .with("llama.embedding_length", HIDDEN as u32)
        .with("llama.block_count", LAYERS as u32)
        .with("llama.feed_forward_length", INNER as u32)
        .with("llama.attention.head_count", HEADS as u32)
        .with("llama.attention.head_count_kv", KV_HEADS as u32)
        .with("llama.attention.key_length", HEAD as u32)
        .with("llama.attention.layer_norm_rms_epsilon", 1e-5f32)
}

/// Both on their way.
struct Made {
    random: Random,
    file: Writer,
    numbers: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl Made {
    fn matrix(
        &mut self,
        theirs: &str,
        ours: &str,
        (rows, inner): (usize, usize),
        format: &impl Fn(&str) -> Option<QuantFormat>,
        heads: Option<usize>,
    ) {
        let (mut values, mut bytes) = (Vec::new(), Vec::new());
        let format = format(theirs);
        for _ in 0..rows {
            match format {
                Some(format) => {
                    let row = self.random.row(format, inner);
                    values.extend(format.dequantize(&row));
                    bytes.push(row);
                }
                None => {
                    let row: Vec<f32> = (0..inner).map(|_| (self.random.next() - 0.5) * 0.2).collect();
                    bytes.push(row.iter().flat_map(|value| value.to_le_bytes()).collect());
                    values.extend(row);
                }
            }
        }
        // As llama.cpp's converter moves rows: i of a head's first half to 2i, of its second to 2i + 1.
        if let Some(heads) = heads {
            let (ours, each) = (bytes.clone(), rows / heads);
            for (at, row) in ours.into_iter().enumerate() {
                let (head, i) = (at / each, at % each);
                let to = if i < each / 2 { 2 * i } else { 2 * (i - each / 2) + 1 };
                bytes[head * each + to] = row;
            }
        }
        let kind = format.map_or(Format::F32, file_format);
        let file = std::mem::replace(&mut self.file, Writer::new());
        self.file = file.tensor(&format!("{theirs}.weight"), &[inner as u64, rows as u64], kind, &bytes.concat());
        self.numbers.push((format!("{ours}.weight"), vec![rows, inner], values));
    }

    fn norm(&mut self, theirs: &str, ours: &str) {
        let values: Vec<f32> = (0..HIDDEN).map(|_| 0.8 + 0.4 * self.random.next()).collect();
        let file = std::mem::replace(&mut self.file, Writer::new());
        self.file = file.f32s(&format!("{theirs}.weight"), &[HIDDEN as u64], &values);
        self.numbers.push((format!("{ours}.weight"), vec![HIDDEN], values));
    }

    fn written(self, tied: bool) -> Quantised {
        let (file, numbers) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(file.path().join("model.gguf"), self.file.bytes()).unwrap();
        let config = json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCABULARY, "hidden_size": HIDDEN,
            "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS, "head_dim": HEAD, "hidden_act": "silu", "max_position_embeddings": CONTEXT,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": tied,
        });
        fs::write(numbers.path().join("config.json"), config.to_string()).unwrap();
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let all: Vec<_> =
            self.numbers.iter().map(|(name, shape, values)| (name, shape.clone(), bytes(values))).collect();
        let views =
            all.iter().map(|(name, shape, data)| (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
        safetensors::serialize_to_file(views, None, &numbers.path().join("model.safetensors")).unwrap();
        Quantised { file, numbers }
    }
}

/// As quantised checkpoints mix them: `Q4_K_M` has values and down in `Q6_K`; here one value more in f32, and tables of their own.
fn mixed() -> Quantised {
    Quantised::new(false, |name| match name {
        "token_embd" => Some(QuantFormat::Q8_0),
        "output" => Some(QuantFormat::Q6_K),
        "blk.1.ffn_up" => None,
        _ if name.ends_with("attn_v") || name.ends_with("ffn_down") => Some(QuantFormat::Q6_K),
        _ => Some(QuantFormat::Q4_K),
    })
}

/// Every format by itself, and some together.
fn each() -> impl Iterator<Item = (String, Quantised)> {
    let alone = QuantFormat::ALL.into_iter().map(|format| (format.to_string(), Quantised::all(format)));
    alone.chain(std::iter::once_with(|| ("mixed".to_owned(), mixed())))
}

fn prompt(length: usize) -> Vec<u32> {
    (0..length).map(|at| ((at * 29 + at / 7) % VOCABULARY) as u32).collect()
}

#[test]
fn a_quantised_model_takes_the_bytes_of_its_file() {
    let Some(gpu) = gpu() else { return };
    for (name, model) in each() {
        let version = model.version();
        for format in FORMATS {
            let footprint = version.footprint_for(Keeping::Cuda(format)).unwrap();
            // What is quantised in the file takes just that, and rows up to whole panels; anything else what its numbers take.
            let in_file: u64 = version
                .index
                .iter()
                .map(|tensor| {
                    let (rows, inner) = (tensor.shape[0] as u64, tensor.shape[1..].iter().product::<usize>() as u64);
                    match tensor.dtype.is_quantised() {
                        true => tensor.len / rows * rows.next_multiple_of(PANEL as u64),
                        false => rows * inner * format.size_in_bytes() as u64,
                    }
                })
                .sum();
            assert_eq!(footprint.weight_bytes(), in_file, "{name} in {}", format.as_str());
            let (mut running, memory) = running(&version, gpu, format);
            running.greedy(&prompt(40), 2);
            let held = memory.measured().unwrap().unwrap();
            let borders = footprint.wanted.len() as u64 * 512;
            assert!((footprint.weight_bytes()..=footprint.total() + borders).contains(&held.used), "{name}: {held:?}");
        }
    }
    let wanted = mixed().version().footprint_for(Keeping::Cuda(DType::F16)).unwrap().wanted;
    let of = |name: &str| wanted.iter().find(|want| want.name == format!("model.layers.0.{name}.weight")).unwrap();
    assert_eq!(of("self_attn.q_proj").layout, WeightLayout::Packed(QuantFormat::Q4_K));
    assert_eq!(of("self_attn.v_proj").layout, WeightLayout::Packed(QuantFormat::Q6_K));
    assert!(of("self_attn.q_proj").below.is_empty() && of("mlp.gate_proj").below.len() == 1);
}

/// As [`tolerance`], but that what weights have beside their levels is added up by itself, and much of it taken away again.
fn tolerance_of_quantised(format: DType) -> (f64, f32) {
    match format {
        DType::F32 => (0.999_999, 1e-4),
        DType::F16 => (0.9995, 4e-2),
        _ => tolerance(format),
    }
}

#[test]
fn quantised_weights_give_the_logits_that_their_numbers_give_a_cpu() {
    let Some(gpu) = gpu() else { return };
    let tokens = prompt(40);
    for (name, model) in each() {
        let want = model.on_a_cpu().whole(&tokens);
        // A CPU rounds what it multiplies by quantised weights to eight bits, which costs these random weights more than any format.
        let rounded = Running::of(model.version().load()).whole(&tokens);
        for format in FORMATS {
            let (mut running, _memory) = running(&model.version(), gpu, format);
            let what = format!("{name} in {}", format.as_str());
            // Spelled out for all rows at once; as they are for a few, for as many as may be, and for one.
            for sizes in [&[40][..], &[7, 32, 1]] {
                let rows = running.in_pieces(&tokens, sizes);
                assert_rows(&rows, &want, (false, tolerance_of_quantised(format)), &format!("{what}, {sizes:?}"));
                assert_rows(&rows, &rounded, (false, (0.96, 0.35)), &format!("{what}, {sizes:?}, and rounded"));
                running.next = 256;
            }
        }
    }
}

#[test]
fn a_quantised_models_rows_have_the_same_bits_whatever_rows_are_beside_them() {
    let Some(gpu) = gpu() else { return };
    let prompts = [prompt(6), prompt(16)[11..].to_vec(), prompt(4)];
    for (name, model) in each().filter(|(name, _)| name != "mixed") {
        for format in FORMATS {
            let (mut running, _memory) = running(&model.version(), gpu, format);
            let alone: Vec<_> = prompts.iter().map(|prompt| running.in_pieces(prompt, &[1])).collect();
            running.next = 256;
            let mut sequences: Vec<_> = prompts.iter().map(|prompt| running.start(prompt)).collect();
            for at in 0..4 {
                let mut step: Vec<_> = sequences.iter_mut().map(|sequence| (sequence, 1, Wants::Every)).collect();
                let together = running.step(&mut step);
                for (rows, row) in alone.iter().zip(together) {
                    assert!(rows[at] == row, "{name} in {}, token {at}", format.as_str());
                }
            }
        }
    }
}

#[test]
fn a_quantised_model_goes_on_greedily_as_its_numbers_do_on_a_cpu() {
    let Some(gpu) = gpu() else { return };
    for (name, model) in each() {
        let want = model.on_a_cpu().greedy(&prompt(36), 16);
        let (mut running, _memory) = running(&model.version(), gpu, DType::F32);
        assert_eq!(running.greedy(&prompt(36), 16), want, "{name}");
    }
}

#[test]
fn the_largest_steps_of_a_quantised_model_fit_what_is_declared() {
    let Some(gpu) = gpu() else { return };
    for format in [DType::BF16, DType::F32] {
        let (model, _memory) = loaded(&mixed().version(), gpu, format);
        run_largest_steps(model, "mixed");
    }
}

#[test]
fn a_parked_version_whose_weights_stay_quantised_comes_back_the_same() {
    let Some(gpu) = gpu() else { return };
    for (name, model) in each() {
        let version = model.version();
        let keeping = Keeping::Cuda(DType::F16);
        let (mut first, memory) = running(&version, gpu, DType::F16);
        let want = first.whole(&prompt(20));
        drop((first, memory));
        let footprint = version.footprint_for(keeping).unwrap();
        let manifest = Manifest::compute(&version.spec.dir, &version.index).unwrap();
        let room = Arc::new(HostRoom::default());
        let parts = (&version.index, &manifest, footprint.wanted.as_slice());
        let take = |bytes| room.take(&name, bytes, None);
        let parked = Arc::new(park(&gpu.1, parts, take, (&Progress::new(), &Pace::default())).unwrap());
        let memory = Memory::acquire(&gpu.0, footprint.weight_bytes(), Owner::default()).unwrap();
        let device = gpu.1.device(&memory, (footprint.workspace, keeping)).unwrap();
        let known = Known { parked: Some(Arc::clone(&parked)), ..Known::default() };
        let weights = load(&version.index, &manifest, &footprint.wanted, known, &device, &Progress::new()).unwrap();
        assert_eq!(weights.exclusive_bytes(), footprint.weight_bytes(), "{name}");
        assert_eq!(weights.parked_bytes(), footprint.weight_bytes(), "{name}");
        let again = (cutover::model::family(&version.spec).unwrap().load)(&version.spec, weights, &device).unwrap();
        assert!(Running::with_its_own(again).whole(&prompt(20)) == want, "{name}");
        parked.let_go(&Pace::default());
    }
}

#[test]
fn a_scale_that_is_no_number_is_told_of_with_its_tensor() {
    let Some(gpu) = gpu() else { return };
    let model = mixed();
    let version = model.version();
    let info = version.index.get("model.layers.1.mlp.gate_proj.weight").unwrap();
    let path = model.file.path().join("model.gguf");
    let (offset, mut bytes) = (info.offset as usize, fs::read(&path).unwrap());
    // The second scale of the third block.
    bytes[offset + 2 * 144 + 2..][..2].copy_from_slice(&f16::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let error = refused(&model.version(), gpu);
    assert!(error.contains("model.layers.1.mlp.gate_proj.weight") && error.contains("non-finite values"), "{error}");
    assert!(!error.contains("too large"), "{error}");
}

fn refused(version: &Version, (opened, machine): &(Opened, Machine)) -> String {
    let keeping = Keeping::Cuda(DType::F16);
    let footprint = version.footprint_for(keeping).unwrap();
    let memory = Memory::acquire(opened, footprint.weight_bytes(), Owner::default()).unwrap();
    let device = machine.device(&memory, (footprint.workspace, keeping)).unwrap();
    let manifest = Manifest::compute(Path::new(&version.spec.dir), &version.index).unwrap();
    load(&version.index, &manifest, &footprint.wanted, HashMap::new(), &device, &Progress::new())
        .unwrap_err()
        .to_string()
}
