//! Whole forward passes, bare: `cargo bench --bench forward [-- MODEL@VERSION …]`.
//!
//! For each batch the time of a pass on one thread and on all, and what part of the processor's multiply-adds that is.
//! The peak is measured beside every figure, since machines with neighbours change their speed. Medians of several.
#![allow(clippy::expect_used)]

mod support;

use std::hint::black_box;
use std::time::{Duration, Instant};

use cutover::model::{Input, Packed, Pixels, Tokens};
use rayon::ThreadPool;
use support::Loaded;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_millis(60);

fn main() {
    let named: Vec<String> = std::env::args().skip(1).filter(|arg| arg.contains('@')).collect();
    let named = if named.is_empty() { vec!["digits@v2".into(), "minilm@f32".into()] } else { named };
    for name in named {
        let (model, version) = name.split_once('@').expect("model@version");
        match support::loaded(model, version) {
            Ok(mut loaded) => report(&name, &mut loaded),
            Err(error) => println!("{name}: {error}"),
        }
    }
}

fn report(name: &str, loaded: &mut Loaded) {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let image = loaded.spec.labels.len() == 10;
    let batches: Vec<Vec<usize>> = match image {
        true => [1, 2, 4, 8, 16, 32].map(|images| vec![1; images]).to_vec(),
        false => vec![
            vec![8],
            vec![20],
            vec![65],
            vec![250],
            vec![65; 2],
            vec![65; 8],
            vec![8, 15, 30, 65, 65, 90, 120, 250],
            vec![65; 32],
        ],
    };
    println!("{name}");
    for batch in batches {
        let inputs: Vec<Input> = batch.iter().map(|tokens| input(image, *tokens)).collect();
        let packed = Packed::new(inputs).expect("inputs of one kind");
        for threads in if all > 1 { vec![1, all] } else { vec![1] } {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            let (ms, speed) = measure(&pool, || {
                let rows = loaded.model.forward(&packed, packed.all()).and_then(|rows| rows.wait());
                black_box(rows.expect("rows"));
            });
            let (count, tokens) = (batch.len(), batch.iter().sum::<usize>());
            let share = flops(loaded, tokens, image) / (ms * 1e6) / (speed * threads as f64);
            println!(
                "  {count:3} inputs, {tokens:5} tokens, {threads} threads: {ms:8.3} ms, {:8.1} inputs/s, {:5.1} % of peak",
                count as f64 * 1e3 / ms,
                share * 100.0
            );
        }
    }
}

fn input(image: bool, tokens: usize) -> Input {
    match image {
        true => Input::Pixels(Pixels { data: vec![0.5; 28 * 28], channels: 1, height: 28, width: 28 }),
        false => {
            Input::Tokens(Tokens { ids: (0..tokens as u32).map(|i| 1000 + i).collect(), type_ids: vec![0; tokens] })
        }
    }
}

/// Multiply-adds of the linear layers, twice; attention comes on top and is not counted.
fn flops(loaded: &Loaded, tokens: usize, image: bool) -> f64 {
    let size = |key: &str| loaded.spec.usize(key).unwrap_or(0) as f64;
    let layer = 4.0 * size("hidden_size").powi(2) + 2.0 * size("hidden_size") * size("intermediate_size");
    let tokens = if image { tokens as f64 * 50.0 } else { tokens as f64 };
    2.0 * tokens * layer * size("num_hidden_layers")
}

/// Milliseconds of `work` in the pool, and what one thread reached beside it in GFLOP/s; medians.
fn measure(pool: &ThreadPool, mut work: impl FnMut() + Send) -> (f64, f64) {
    let (mut times, mut speeds) = (Vec::new(), Vec::new());
    pool.install(&mut work);
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let mut runs = 0;
        while began.elapsed() < ROUND {
            pool.install(&mut work);
            runs += 1;
        }
        times.push(began.elapsed().as_secs_f64() * 1e3 / f64::from(runs));
        speeds.push(peak());
    }
    (median(times), median(speeds))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// GFLOP/s of multiply-adds that wait for nothing.
fn peak() -> f64 {
    const STEPS: usize = 200_000;
    let began = Instant::now();
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        #[allow(unsafe_code)]
        // SAFETY: the feature was just found.
        black_box(unsafe { steps_avx512(black_box(0.999), STEPS) });
        return 12.0 * 32.0 * STEPS as f64 / began.elapsed().as_secs_f64() / 1e9;
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        #[allow(unsafe_code)]
        // SAFETY: both features were just found.
        black_box(unsafe { steps_avx2(black_box(0.999), STEPS) });
        return 12.0 * 16.0 * STEPS as f64 / began.elapsed().as_secs_f64() / 1e9;
    }
    black_box(steps(black_box(0.999), STEPS));
    12.0 * 16.0 * STEPS as f64 / began.elapsed().as_secs_f64() / 1e9
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn steps_avx512(factor: f32, count: usize) -> f32 {
    use std::arch::x86_64::{_mm512_cvtss_f32, _mm512_fmadd_ps, _mm512_set1_ps};
    let factor = _mm512_set1_ps(factor);
    let mut sums = [_mm512_set1_ps(0.1); 12];
    for _ in 0..count {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, factor, factor);
        }
    }
    sums.iter().map(|sum| _mm512_cvtss_f32(*sum)).sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn steps_avx2(factor: f32, count: usize) -> f32 {
    use std::arch::x86_64::{_mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_set1_ps};
    let factor = _mm256_set1_ps(factor);
    let mut sums = [_mm256_set1_ps(0.1); 12];
    for _ in 0..count {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, factor, factor);
        }
    }
    sums.iter().map(|sum| _mm256_cvtss_f32(*sum)).sum()
}

fn steps(factor: f32, count: usize) -> f32 {
    let mut sums = [[0.1f32; 8]; 12];
    for _ in 0..count {
        for sum in &mut sums {
            *sum = sum.map(|x| x.mul_add(factor, factor));
        }
    }
    sums.iter().flatten().sum()
}
