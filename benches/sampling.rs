//! Choosing a token from rows of the size of SmolLM2's and of Qwen's vocabulary: `cargo bench --bench sampling`.
#![allow(clippy::expect_used)]

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use cutover::process::sampling::{Sampler, SamplingOptions};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const VOCABULARIES: [usize; 2] = [49_152, 151_936];

/// Like a model's: a few tokens that have nearly all of the probability, and a tail that is nearly normal (twelve of
/// these sum to a variance of one).
fn logits(size: usize) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(7);
    let mut normal = || (0..12).map(|_| random.random_range(-0.5f32..0.5)).sum::<f32>();
    let mut row: Vec<f32> = (0..size).map(|_| normal() * 1.5).collect();
    for (place, logit) in [(17, 16.0), (1_000, 15.0), (20_000, 14.5), (40_000, 14.0), (45_000, 13.0)] {
        row[place] = logit;
    }
    row
}

/// Nearly nothing to choose by: the worst case of every cut.
fn flat(size: usize) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(8);
    (0..size).map(|_| random.random_range(-0.5f32..0.5)).collect()
}

fn sampling(criterion: &mut Criterion) {
    let plain = SamplingOptions::default;
    let options = [
        ("greedy", SamplingOptions { temperature: 0.0, ..plain() }),
        ("greedy+logprobs", SamplingOptions { temperature: 0.0, logprobs: Some(5), ..plain() }),
        ("temperature", plain()),
        ("top-k 50", SamplingOptions { top_k: 50, ..plain() }),
        ("top-p 0.9", SamplingOptions { top_p: 0.9, ..plain() }),
        ("min-p 0.05", SamplingOptions { min_p: 0.05, ..plain() }),
        ("chat", SamplingOptions { temperature: 0.7, top_k: 40, top_p: 0.95, repetition_penalty: 1.1, ..plain() }),
    ];
    for (rows, make) in [("model", logits as fn(usize) -> Vec<f32>), ("flat", flat)] {
        let mut group = criterion.benchmark_group(format!("sampling/{rows}"));
        for (name, options) in &options {
            for size in VOCABULARIES {
                let row = make(size);
                let prompt: Vec<u32> = (0..200).map(|token| token * 31).collect();
                let mut sampler = Sampler::new(options.clone(), &prompt);
                group.throughput(Throughput::Elements(size as u64));
                group.bench_function(BenchmarkId::new(*name, size), |bencher| {
                    let fresh = || row.clone();
                    bencher.iter_batched_ref(
                        fresh,
                        |row| sampler.sample(black_box(row)).expect("chosen"),
                        BatchSize::SmallInput,
                    );
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, sampling);
criterion_main!(benches);
