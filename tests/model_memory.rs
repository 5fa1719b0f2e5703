//! The workspace that a model declares against what its forward passes really allocate.
//!
//! A test binary of its own: it counts every allocation of the process, so nothing else may run beside it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(unsafe_code, reason = "counting allocations means being the allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use cutover::model::{
    Input, KvCache, Model, Pixels, ROWS_PER_STEP, StepInput, StepSequence, TOKENS_PER_PASS, TOKENS_PER_STEP, Tokens,
    Wants, family,
};
use cutover::ops::{Device, Keeping};
use cutover::repository::{ModelConfig, Spec};
use cutover::value::Task;
use cutover::weights::{Index, Manifest, Progress, load};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

struct Counting;

static NOW: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size() as u64, Ordering::Relaxed) + layout.size() as u64;
        PEAK.fetch_max(now, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that `f` allocated at once beyond what was there before.
fn peak_of<T>(f: impl FnOnce() -> T) -> (u64, T) {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let value = f();
    (PEAK.load(Ordering::Relaxed) - before, value)
}

/// Writes a version folder of zeros with these tensors.
fn write_version(dir: &Path, config: &Value, tensors: &[(String, Vec<usize>)]) {
    let zeros = vec![0u8; tensors.iter().map(|(_, shape)| shape.iter().product::<usize>() * 4).max().unwrap()];
    let views = tensors.iter().map(|(name, shape)| {
        let bytes = &zeros[..shape.iter().product::<usize>() * 4];
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    fs::create_dir_all(dir).unwrap();
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

fn open(dir: &Path, task: Task) -> (Model, u64) {
    let spec = Spec::read(dir, "m", "v", &ModelConfig::new(task)).unwrap();
    let index = Index::open(dir, &spec.weight_files).unwrap();
    let family = family(&spec).unwrap();
    let footprint = (family.footprint)(&spec, &index, Keeping::Cpu).unwrap();
    let manifest = Manifest::compute(dir, &index).unwrap();
    let (device, progress) = (Device::Cpu, Progress::new());
    let weights = load(&index, &manifest, &footprint.wanted, HashMap::new(), &device, &progress).unwrap();
    ((family.load)(&spec, weights, &device).unwrap(), footprint.workspace)
}

/// Every batch stays within the bound, and the bound is no more than twice what the worst of them took (but for what
/// it adds for each processor, of which this test uses two).
#[track_caller]
fn assert_bounded(what: &str, (mut model, workspace): (Model, u64), batches: Vec<Vec<Input>>) {
    let mut worst = 0;
    for batch in batches {
        let inputs = batch.len();
        let (peak, rows) = peak_of(|| model.forward_all(batch).unwrap().wait().unwrap());
        assert_eq!(rows.len(), inputs);
        assert!(peak <= workspace, "{what}: {inputs} inputs took {peak} bytes, {workspace} were declared");
        worst = worst.max(peak);
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let generous = 2 * worst + processors * 5 * 1024 * 1024;
    assert!(workspace <= generous, "{what}: {workspace} bytes are declared where {worst} were taken");
}

/// The same of steps: of one prompt after another, of many sequences, and of as many rows of logits as a step gives.
#[track_caller]
fn assert_steps_bounded(what: &str, (model, workspace): (Model, u64)) {
    let Model::Decoder(mut model, cache) = model else { panic!("{what} is no decoder") };
    // Declared beside what steps take, and not what is measured here.
    let workspace = workspace - cache.bytes();
    let mut kv = KvCache::new(&model.kv(), TOKENS_PER_STEP, &Device::Cpu).unwrap();
    let sequence = |at: usize, tokens: usize, wants| {
        let blocks =
            (0..tokens.div_ceil(16)).map(|block| (at * tokens.div_ceil(16) + block) as u32).collect::<Vec<_>>();
        StepSequence { tokens: vec![7; tokens], from: 0, blocks: blocks.into(), wants }
    };
    let steps = [
        vec![sequence(0, TOKENS_PER_STEP, Wants::Last)],
        (0..ROWS_PER_STEP).map(|at| sequence(at, TOKENS_PER_STEP / ROWS_PER_STEP, Wants::Last)).collect(),
        vec![sequence(0, ROWS_PER_STEP, Wants::Every)],
    ];
    // What comes back is the caller's, but it is there beside everything else.
    let peaks = steps.map(|sequences| {
        let step = StepInput { sequences };
        let (peak, logits) = peak_of(|| model.step(&step, &mut kv).unwrap());
        assert_eq!(logits.count(), step.rows());
        assert!(peak <= workspace, "{what}: {} tokens took {peak} bytes, {workspace} were declared", step.tokens());
        peak
    });
    let processors = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let generous = 2 * peaks.into_iter().max().unwrap() + processors * 5 * 1024 * 1024;
    assert!(workspace <= generous, "{what}: {workspace} bytes are declared where {peaks:?} were taken");
}

fn llama(dir: &Path) -> (Model, u64) {
    let (h, i, vocabulary) = (192, 512, 4096);
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary, h]),
        ("model.norm.weight".to_owned(), vec![h]),
        (layer("input_layernorm"), vec![h]),
        (layer("post_attention_layernorm"), vec![h]),
        (layer("self_attn.q_proj"), vec![h, h]),
        (layer("self_attn.k_proj"), vec![64, h]),
        (layer("self_attn.v_proj"), vec![64, h]),
        (layer("self_attn.o_proj"), vec![h, h]),
        (layer("mlp.gate_proj"), vec![i, h]),
        (layer("mlp.up_proj"), vec![i, h]),
        (layer("mlp.down_proj"), vec![h, i]),
    ];
    let config = json!({
        "model_type": "llama", "hidden_size": h, "intermediate_size": i, "num_hidden_layers": 1,
        "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": vocabulary,
        "max_position_embeddings": 4096, "tie_word_embeddings": true,
    });
    write_version(dir, &config, &tensors);
    open(dir, Task::Generate)
}

fn block(tensors: &mut Vec<(String, Vec<usize>)>, names: &[(&str, Vec<usize>)], prefix: &str) {
    for (name, weight) in names {
        tensors.push((format!("{prefix}.{name}.weight"), weight.clone()));
        tensors.push((format!("{prefix}.{name}.bias"), vec![weight[0]]));
    }
}

fn bert(dir: &Path) -> (Model, u64) {
    let (h, i, positions) = (384, 1536, 512);
    let mut tensors = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![100, h]),
        ("embeddings.position_embeddings.weight".to_owned(), vec![positions, h]),
        ("embeddings.token_type_embeddings.weight".to_owned(), vec![2, h]),
    ];
    block(&mut tensors, &[("LayerNorm", vec![h])], "embeddings");
    let names = [
        ("attention.self.query", vec![h, h]),
        ("attention.self.key", vec![h, h]),
        ("attention.self.value", vec![h, h]),
        ("attention.output.dense", vec![h, h]),
        ("attention.output.LayerNorm", vec![h]),
        ("intermediate.dense", vec![i, h]),
        ("output.dense", vec![h, i]),
        ("output.LayerNorm", vec![h]),
    ];
    block(&mut tensors, &names, "encoder.layer.0");
    let config = json!({
        "model_type": "bert", "hidden_size": h, "intermediate_size": i, "num_hidden_layers": 1,
        "num_attention_heads": 12, "vocab_size": 100, "max_position_embeddings": positions, "type_vocab_size": 2,
    });
    write_version(dir, &config, &tensors);
    open(dir, Task::Embed)
}

fn vit(dir: &Path) -> (Model, u64) {
    let (h, i, image, patch) = (192, 768, 224, 16);
    let tokens = (image / patch) * (image / patch) + 1;
    let mut tensors = vec![
        ("vit.embeddings.cls_token".to_owned(), vec![1, 1, h]),
        ("vit.embeddings.position_embeddings".to_owned(), vec![1, tokens, h]),
    ];
    block(&mut tensors, &[("projection", vec![h, 3, patch, patch])], "vit.embeddings.patch_embeddings");
    let names = [
        ("attention.attention.query", vec![h, h]),
        ("attention.attention.key", vec![h, h]),
        ("attention.attention.value", vec![h, h]),
        ("attention.output.dense", vec![h, h]),
        ("layernorm_before", vec![h]),
        ("intermediate.dense", vec![i, h]),
        ("output.dense", vec![h, i]),
        ("layernorm_after", vec![h]),
    ];
    block(&mut tensors, &names, "vit.encoder.layer.0");
    block(&mut tensors, &[("layernorm", vec![h])], "vit");
    tensors.push(("classifier.weight".to_owned(), vec![3, h]));
    tensors.push(("classifier.bias".to_owned(), vec![3]));
    let config = json!({
        "model_type": "vit", "hidden_size": h, "intermediate_size": i, "num_hidden_layers": 1,
        "num_attention_heads": 3, "image_size": image, "patch_size": patch, "num_channels": 3,
        "id2label": {"0": "a", "1": "b", "2": "c"},
    });
    write_version(dir, &config, &tensors);
    open(dir, Task::ImageClassify)
}

fn texts(count: usize, length: usize) -> Vec<Input> {
    let tokens = || Tokens { ids: vec![7; length], type_ids: vec![0; length] };
    (0..count).map(|_| Input::Tokens(tokens())).collect()
}

fn images(count: usize) -> Vec<Input> {
    let pixels = || Pixels { data: vec![0.5; 3 * 224 * 224], channels: 3, height: 224, width: 224 };
    (0..count).map(|_| Input::Pixels(pixels())).collect()
}

/// One test: two would count each other's allocations.
#[test]
fn forward_passes_stay_within_the_workspace_that_the_footprint_declares() {
    let dir = tempfile::tempdir().unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    pool.install(|| {
        let full = TOKENS_PER_PASS / 512;
        let text = vec![texts(full, 512), texts(TOKENS_PER_PASS / 8, 8), texts(2 * full + 1, 512)];
        assert_bounded("bert", bert(&dir.path().join("bert")), text);
        let full = TOKENS_PER_PASS / 197;
        assert_bounded("vit", vit(&dir.path().join("vit")), vec![images(full), images(full + 1)]);
        assert_steps_bounded("llama", llama(&dir.path().join("llama")));
    });
}
