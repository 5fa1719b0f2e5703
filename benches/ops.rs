//! What a forward pass is made of, at the sizes of MiniLM-L6 and BERT-base: `cargo bench --bench ops`.
#![allow(clippy::expect_used)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use cutover::ops::{Activation, Device, Epilogue, LayerNorm, Matrix, Segments, Tensor, attention, layer_norm, linear};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// hidden and intermediate features
const SIZES: [(&str, usize, usize); 2] = [("minilm", 384, 1536), ("bert-base", 768, 3072)];
const LENGTHS: [usize; 4] = [16, 64, 128, 512];
const HEADS: usize = 12;

fn random(rows: usize, columns: usize) -> Tensor {
    let mut random = StdRng::seed_from_u64(7);
    let values: Vec<f32> = (0..rows * columns).map(|_| random.random_range(-1.5f32..1.5)).collect();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu).expect("a matrix")
}

fn vector(width: usize) -> Tensor {
    Tensor::from_vec(vec![1f32; width], width, &Device::Cpu).expect("a vector")
}

fn linear_layers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("linear");
    for (model, hidden, intermediate) in SIZES {
        for (part, from, to, activation) in [
            ("projection", hidden, hidden, None),
            ("up+gelu", hidden, intermediate, Some(Activation::Gelu)),
            ("down", intermediate, hidden, None),
        ] {
            let (weight, bias) = (Matrix::from_rows(&random(to, from)).expect("a matrix"), vector(to));
            for tokens in LENGTHS {
                let x = random(tokens, from);
                let epilogue = activation.map_or(Epilogue::None, Epilogue::Activate);
                group.throughput(Throughput::Elements(2 * (tokens * from * to) as u64));
                group.bench_function(BenchmarkId::new(format!("{model}/{part}"), tokens), |bencher| {
                    bencher.iter(|| linear(black_box(&x), &weight, Some(&bias), epilogue).expect("fits"));
                });
            }
        }
    }
}

fn attentions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("attention");
    for (model, hidden, _) in SIZES {
        for tokens in LENGTHS {
            let (q, k, v, segments) =
                (random(tokens, hidden), random(tokens, hidden), random(tokens, hidden), Segments::of([tokens]));
            group.throughput(Throughput::Elements(4 * (tokens * tokens * hidden) as u64));
            group.bench_function(BenchmarkId::new(model, tokens), |bencher| {
                bencher.iter(|| attention(black_box(&q), &k, &v, (&segments, HEADS)).expect("fits"));
            });
        }
    }
}

fn layer_norms(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("layer_norm");
    for (model, hidden, _) in SIZES {
        let norm = LayerNorm { weight: vector(hidden), bias: vector(hidden), eps: 1e-12 };
        for tokens in LENGTHS {
            let x = random(tokens, hidden);
            group.throughput(Throughput::Elements((tokens * hidden) as u64));
            group.bench_function(BenchmarkId::new(model, tokens), |bencher| {
                bencher.iter(|| layer_norm(black_box(&x), &norm).expect("fits"));
            });
        }
    }
}

criterion_group!(benches, linear_layers, attentions, layer_norms);
criterion_main!(benches);
