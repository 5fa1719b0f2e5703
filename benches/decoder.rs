//! Steps of a model of SmolLM2-135M's shape with random weights: `cargo bench --bench decoder [-- --threads N] [--f32] [--profile SECONDS]`.
//!
//! Step times of 1, 8 and 32 sequences with contexts of 100 and 1,000 tokens, and of prompts of 512 tokens; beside each
//! what reading the weights once takes at the speed at which memory is read here. Medians of several.
//! Weights are bf16, and keys and values f16, but with `--f32`. `--profile` runs single-token steps of one sequence (or of
//! `--sequences N`, at `--context N` tokens) for so long, to be looked at with perf.
#![allow(clippy::expect_used)]

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::DType;
use cutover::model::{Decoder, KvCache, KvSpec, Model, StepInput, StepSequence, Wants, family};
use cutover::ops::{Device, Keeping};
use cutover::repository::{ModelConfig, Spec};
use cutover::value::Task;
use cutover::weights::{Index, Manifest, Progress, load};
use rayon::ThreadPool;
use serde_json::json;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(250);

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let number = |flag: &str| args.iter().skip_while(|arg| *arg != flag).nth(1).and_then(|n| n.parse::<usize>().ok());
    let threads = number("--threads").unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let (mut model, bytes) = random_model();
    let dtype = if args.iter().any(|arg| arg == "--f32") { DType::F32 } else { model.kv().dtype };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    let spec = KvSpec { dtype, ..model.kv() };
    if let Some(seconds) = number("--profile") {
        let mut bench =
            Bench::new(model.as_mut(), spec, (number("--sequences").unwrap_or(1), number("--context").unwrap_or(100)));
        let until = Instant::now() + Duration::from_secs(seconds as u64);
        while Instant::now() < until {
            pool.install(|| bench.step());
        }
        return;
    }
    let floor = bytes as f64 / memory_speed(&pool, threads) * 1e3;
    println!("{threads} threads, {dtype:?} keys and values; reading {} MB of weights takes {floor:.1} ms", bytes >> 20);
    for (sequences, context) in [(1, 100), (1, 1000), (8, 100), (8, 1000), (32, 100), (32, 1000)] {
        let ms = Bench::new(model.as_mut(), spec, (sequences, context)).measure(&pool);
        let rate = sequences as f64 * 1e3 / ms;
        println!("  {sequences:2} sequences at {context:4} tokens: {ms:8.2} ms a step, {rate:7.1} tokens/s");
    }
    for prompt in [32, 128, 512] {
        let ms = prompt_ms(model.as_mut(), spec, prompt, &pool);
        println!("  a prompt of {prompt} tokens: {ms:8.2} ms, {:7.1} tokens/s", prompt as f64 * 1e3 / ms);
    }
}

/// Sequences that go on by a token each step, at a context that stays what it is.
struct Bench<'a> {
    model: &'a mut dyn Decoder,
    kv: KvCache,
    step: StepInput,
}

impl<'a> Bench<'a> {
    fn new(model: &'a mut dyn Decoder, spec: KvSpec, (count, context): (usize, usize)) -> Self {
        let each = context.div_ceil(16);
        let mut kv = KvCache::new(&spec, each * count, &Device::Cpu).expect("a cache");
        // Blocks of all sequences lie between each other, as they do after some traffic.
        let blocks = |at: usize| (0..each).map(|i| (i * count + at) as u32).collect::<Vec<_>>();
        let mut sequences = Vec::new();
        for at in 0..count {
            let tokens: Vec<u32> = (0..context as u32 - 1).map(|i| (i * 37 + at as u32 * 101) % 49_000).collect();
            let mut from = 0;
            for tokens in tokens.chunks(500) {
                let tokens = tokens.to_vec();
                let next = from + tokens.len();
                let run = StepSequence { tokens, from, blocks: blocks(at).into(), wants: Wants::Nothing };
                model.step(&StepInput { sequences: vec![run] }, &mut kv).expect("a prompt");
                from = next;
            }
            sequences.push(StepSequence {
                tokens: vec![7 + at as u32],
                from,
                blocks: blocks(at).into(),
                wants: Wants::Last,
            });
        }
        Bench { model, kv, step: StepInput { sequences } }
    }

    fn step(&mut self) {
        black_box(self.model.step(&self.step, &mut self.kv).expect("a step"));
    }

    fn measure(&mut self, pool: &ThreadPool) -> f64 {
        median(pool, || self.step())
    }
}

fn prompt_ms(model: &mut dyn Decoder, spec: KvSpec, length: usize, pool: &ThreadPool) -> f64 {
    let mut kv = KvCache::new(&spec, length.div_ceil(16), &Device::Cpu).expect("a cache");
    let tokens = (0..length as u32).map(|i| (i * 37) % 49_000).collect();
    let blocks = (0..length.div_ceil(16) as u32).rev().collect::<Vec<_>>();
    let step =
        StepInput { sequences: vec![StepSequence { tokens, from: 0, blocks: blocks.into(), wants: Wants::Last }] };
    median(pool, || {
        black_box(model.step(&step, &mut kv).expect("a prompt"));
    })
}

/// Milliseconds of `work` in the pool.
fn median(pool: &ThreadPool, mut work: impl FnMut() + Send) -> f64 {
    pool.install(&mut work);
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let began = Instant::now();
            let mut runs = 0;
            while began.elapsed() < ROUND {
                pool.install(&mut work);
                runs += 1;
            }
            began.elapsed().as_secs_f64() * 1e3 / f64::from(runs)
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

/// Bytes a second at which all threads together read memory that is in no cache.
fn memory_speed(pool: &ThreadPool, threads: usize) -> f64 {
    let values = vec![1f32; 96 << 20];
    let part = values.len() / threads;
    let read = || {
        pool.broadcast(|at| {
            let mut lanes = [0f32; 64];
            for chunk in values[at.index() * part..][..part].chunks_exact(64) {
                lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane += x);
            }
            black_box(lanes);
        });
    };
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let began = Instant::now();
        read();
        best = best.min(began.elapsed().as_secs_f64());
    }
    (threads * part * 4) as f64 / best
}

/// The model, and the bytes of its weights.
fn random_model() -> (Box<dyn Decoder>, u64) {
    let dir = tempfile::tempdir().expect("a folder");
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 576,
        "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "vocab_size": 49152, "max_position_embeddings": 8192, "rope_theta": 100000.0, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true,
    });
    std::fs::write(dir.path().join("config.json"), config.to_string()).expect("a file");
    write_weights(&dir.path().join("model.safetensors"));
    let spec = Spec::read(dir.path(), "bench", "v1", &ModelConfig::new(Task::Generate)).expect("a description");
    let index = Index::open(dir.path(), &spec.all_weight_files()).expect("headers");
    let family = family(&spec).expect("a family");
    let footprint = (family.footprint)(&spec, &index, Keeping::Cpu).expect("a footprint");
    let manifest = Manifest::compute(dir.path(), &index).expect("digests");
    let (device, progress) = (Device::Cpu, Progress::new());
    let weights = load(&index, &manifest, &footprint.wanted, HashMap::new(), &device, &progress).expect("weights");
    match (family.load)(&spec, weights, &device).expect("a model") {
        Model::Decoder(model, _) => (model, footprint.weight_bytes()),
        _ => unreachable!("the family has decoders only"),
    }
}

/// bf16 numbers of about the size that trained ones have.
fn write_weights(path: &Path) {
    let mut tensors = vec![("embed_tokens".to_owned(), vec![49152, 576]), ("norm".to_owned(), vec![576])];
    for layer in 0..30 {
        let mut add = |name: &str, shape: &[usize]| tensors.push((format!("layers.{layer}.{name}"), shape.to_vec()));
        for (name, rows) in [("q_proj", 576), ("k_proj", 192), ("v_proj", 192), ("o_proj", 576)] {
            add(&format!("self_attn.{name}"), &[rows, 576]);
        }
        add("mlp.gate_proj", &[1536, 576]);
        add("mlp.up_proj", &[1536, 576]);
        add("mlp.down_proj", &[576, 1536]);
        add("input_layernorm", &[576]);
        add("post_attention_layernorm", &[576]);
    }
    let (mut header, mut at) = (String::new(), 0);
    for (name, shape) in &tensors {
        let end = at + 2 * shape.iter().product::<usize>();
        let comma = if at == 0 { "" } else { "," };
        write!(
            header,
            "{comma}\"model.{name}.weight\":{{\"dtype\":\"BF16\",\"shape\":{shape:?},\"data_offsets\":[{at},{end}]}}"
        )
        .expect("room");
        at = end;
    }
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).expect("a file"));
    let header = format!("{{{header}}}");
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("room on the disk");
    file.write_all(header.as_bytes()).expect("room on the disk");
    let mut state = 1u32;
    for (_, shape) in &tensors {
        for _ in 0..shape.iter().product::<usize>() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = if shape.len() == 1 { 1.0 } else { (state >> 8) as f32 / (1 << 24) as f32 * 0.12 - 0.06 };
            file.write_all(&half::bf16::from_f32(value).to_le_bytes()).expect("room on the disk");
        }
    }
    file.flush().expect("room on the disk");
}
