//! What a decode step costs beside the model: `cargo bench --bench decode_scheduler`.
//!
//! Target: plan and apply of 64 sequences under 20 µs, however long their contexts; 3 % of a step that takes 0.7 ms, which no
//! model has.
#![allow(clippy::expect_used)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use cutover::schedule::decode::{DecodeLimits, DecodeScheduler, Prompted, Sampled};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const SEQUENCES: usize = 64;
const MAX_NEW: usize = 1_024;

fn prompted(key: usize, tokens: Vec<u32>) -> Prompted {
    let arrived = key as u64;
    Prompted { key: arrived, tokens, max_new: MAX_NEW, priority: 0, arrived, urgent: false, scored: false }
}

/// A prompt that begins as no other; lengths differ, so that not all need a block in the same step.
fn tokens(key: usize, context: usize) -> Vec<u32> {
    (0..(context + key) as u32).map(|at| at.wrapping_mul(2_654_435_761) ^ key as u32).collect()
}

/// Sequences of which each writes its next token.
fn writing(context: usize) -> DecodeScheduler {
    let blocks = SEQUENCES * (context + SEQUENCES + MAX_NEW).div_ceil(16);
    let limits = DecodeLimits {
        block_tokens: 16,
        blocks,
        step_tokens: 1 << 20,
        sequences: SEQUENCES,
        context: context + SEQUENCES + MAX_NEW,
    };
    let mut scheduler = DecodeScheduler::new(limits);
    for key in 0..SEQUENCES {
        scheduler.push(prompted(key, tokens(key, context))).expect("it fits");
    }
    step(&mut scheduler, &mut Vec::new());
    scheduler
}

/// Plans, samples one token for each, and applies. Returns the time that plan and apply took.
fn step(scheduler: &mut DecodeScheduler, sampled: &mut Vec<Sampled>) -> Duration {
    let begun = Instant::now();
    let plan = black_box(scheduler.plan()).expect("there is work");
    let planned = begun.elapsed();
    sampled.clear();
    let samples = plan.runs.iter().filter(|run| run.sample);
    sampled.extend(samples.map(|run| Sampled { key: run.key, token: run.from as u32, stop: false }));
    let begun = Instant::now();
    black_box(scheduler.apply(plan, sampled));
    planned + begun.elapsed()
}

fn decode(criterion: &mut Criterion) {
    for context in [128, 8_192, 32_768] {
        let (mut scheduler, mut left, mut sampled) = (writing(context), MAX_NEW - 2, Vec::new());
        criterion.bench_function(&format!("plan and apply, 64 sequences of {context} tokens"), |b| {
            b.iter_custom(|steps| {
                let mut took = Duration::ZERO;
                for _ in 0..steps {
                    if left == 0 {
                        (scheduler, left) = (writing(context), MAX_NEW - 2);
                    }
                    took += step(&mut scheduler, &mut sampled);
                    left -= 1;
                }
                took
            });
        });
    }
    // What a step pays in which somebody arrives whose whole prompt is in blocks, and leaves again.
    let mut scheduler = writing(8_192);
    let mut key = SEQUENCES;
    scheduler.cancel(0);
    criterion.bench_function("the same, and one of 8,192 cached tokens comes and goes", |b| {
        b.iter_custom(|steps| {
            let mut took = Duration::ZERO;
            for _ in 0..steps {
                if key.is_multiple_of(MAX_NEW - 2) {
                    scheduler = writing(8_192);
                    scheduler.cancel(0);
                }
                let prompt = prompted(key, tokens(0, 8_192));
                let begun = Instant::now();
                scheduler.push(prompt).expect("it fits");
                took += begun.elapsed() + step(&mut scheduler, &mut Vec::new());
                let begun = Instant::now();
                scheduler.cancel(key as u64);
                took += begun.elapsed();
                key += 1;
            }
            took
        });
    });
}

criterion_group!(benches, decode);
criterion_main!(benches);
