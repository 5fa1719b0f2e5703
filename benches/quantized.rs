//! Linear layers of SmolLM2-135M with weights that stay quantised: `cargo bench --bench quantized [FORMAT…]`.
//!
//! For every format and shape at 1, 8 and 128 rows: time, bytes of weights a second, multiply-adds a second. The last line
//! of a format is all of them, as a token takes them: thirty layers and the last one, of which a prompt needs one row.
//! `RAYON_NUM_THREADS` says how many threads. Every layer has weights of its own, as a model has, so that a whole step comes
//! from memory; thirty layers of one small shape may stay in a last-level cache.
#![allow(clippy::expect_used, clippy::print_stdout)]

use std::time::{Duration, Instant};

use cutover::ops::{Device, Epilogue, Matrix, QuantFormat, Tensor, WeightLayout, linear};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const LAYERS: usize = 30;
/// Name, inputs, outputs.
const SHAPES: [(&str, usize, usize); 4] =
    [("q k v", 576, 960), ("o", 576, 576), ("gate up", 576, 3072), ("down", 1536, 576)];
const HEAD: (&str, usize, usize) = ("vocabulary", 576, 49_152);
const ROWS: [usize; 3] = [1, 8, 128];

fn random(count: usize) -> impl Iterator<Item = u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..count).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    })
}

fn activations(rows: usize, width: usize) -> Tensor {
    let values: Vec<f32> = random(rows * width).map(|x| (x >> 40) as f32 / 8_388_608.0 - 1.0).collect();
    Tensor::from_vec(values, (rows, width), &Device::Cpu).expect("a matrix")
}

/// Any levels, and scales that are ordinary numbers.
fn weight(format: QuantFormat, inner: usize, out: usize) -> Matrix {
    let shape = format.stored(out, inner);
    let bytes =
        random(shape.iter().product::<usize>().div_ceil(8)).flat_map(|x| (x & 0x0f0f_0f0f_0f0f_0f0f).to_le_bytes());
    let bytes: Vec<u8> = bytes.take(shape.iter().product()).collect();
    let stored = Tensor::from_vec(bytes, shape.to_vec(), &Device::Cpu).expect("a weight");
    Matrix::new(stored, WeightLayout::Quantized(format), out).expect("a weight")
}

fn bytes(format: QuantFormat, inner: usize, out: usize) -> usize {
    format.stored(out, inner).iter().product()
}

/// The shortest of several runs: what others on this machine take away is not what is asked.
fn shortest(mut run: impl FnMut()) -> Duration {
    let begun = Instant::now();
    let mut shortest = Duration::MAX;
    let mut runs = 0;
    while runs < 5 || (begun.elapsed() < Duration::from_millis(400) && runs < 200) {
        let begun = Instant::now();
        run();
        shortest = shortest.min(begun.elapsed());
        runs += 1;
    }
    shortest
}

/// `products`: of all rows together.
fn report(name: &str, rows: usize, time: Duration, (bytes, products): (usize, usize)) {
    let seconds = time.as_secs_f64();
    println!(
        "{name:<24} {rows:>4} rows {:>9.1} us {:>7.1} GB/s {:>8.1} GMAC/s",
        seconds * 1e6,
        bytes as f64 / seconds / 1e9,
        products as f64 / seconds / 1e9
    );
}

fn main() {
    let named: Vec<String> = std::env::args().skip(1).filter(|name| !name.starts_with('-')).collect();
    let pool = rayon::ThreadPoolBuilder::new().build().expect("a pool");
    println!("{} threads", pool.current_num_threads());
    for format in QuantFormat::ALL {
        if !named.is_empty() && !named.iter().any(|name| name == format.name()) {
            continue;
        }
        pool.install(|| of(format));
    }
}

fn of(format: QuantFormat) {
    // Rows of 576 are not made of blocks of 256: there the next multiple is measured.
    let fit = |inner: usize| inner.next_multiple_of(format.block());
    let shapes = SHAPES.map(|(name, inner, out)| (name, fit(inner), out));
    let layers: Vec<Vec<Matrix>> =
        (0..LAYERS).map(|_| shapes.iter().map(|(_, inner, out)| weight(format, *inner, *out)).collect()).collect();
    let head = weight(format, fit(HEAD.1), HEAD.2);
    for rows in ROWS {
        let inputs: Vec<Tensor> = shapes.iter().map(|(_, inner, _)| activations(rows, *inner)).collect();
        for (i, (name, inner, out)) in shapes.iter().enumerate() {
            let time = shortest(|| {
                layers.iter().for_each(|layer| {
                    linear(&inputs[i], &layer[i], None, Epilogue::None).expect("fits");
                });
            });
            let size = (bytes(format, *inner, *out), rows * inner * out);
            report(&format!("{format} {name}"), rows, time / LAYERS as u32, size);
        }
        let sum = shapes.iter().fold((0, 0), |(bytes, products), (_, inner, out)| {
            (bytes + LAYERS * crate::bytes(format, *inner, *out), products + LAYERS * rows * inner * out)
        });
        let asked = if rows > 8 { 1 } else { rows };
        let last = activations(asked, fit(HEAD.1));
        let all = shortest(|| {
            for layer in &layers {
                for (x, weight) in inputs.iter().zip(layer) {
                    linear(x, weight, None, Epilogue::None).expect("fits");
                }
            }
            linear(&last, &head, None, Epilogue::None).expect("fits");
        });
        let size = (sum.0 + bytes(format, fit(HEAD.1), HEAD.2), sum.1 + asked * fit(HEAD.1) * HEAD.2);
        report(&format!("{format} whole step"), rows, all, size);
        println!("{:<24} {rows:>4} rows {:>9.1} tokens/s", "", rows as f64 / all.as_secs_f64());
    }
}
