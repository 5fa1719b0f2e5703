//! Steps over blocks against the definition in f64, and against themselves in another order, in other pieces, on other threads.

use candle_core::DType;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::super::rms_norm::RmsNorm;
use super::super::tensor::{Device, Tensor};
use super::super::testing::{assert_close, columns, matrix, values, vector};
use super::*;

#[derive(Debug, Clone, Copy)]
struct Sizes {
    group: usize,
    kv_heads: usize,
    head_dim: usize,
    dtype: DType,
    window: Option<usize>,
}

/// A sequence with everything that it will ever be given, and its blocks.
struct Sequence {
    /// `[tokens, (heads + 2 kv heads) * head_dim]`
    rows: Tensor,
    blocks: Vec<u32>,
}

struct World {
    sizes: Sizes,
    cache: KvCache,
    rotary: Rotary,
    norms: Option<(RmsNorm, RmsNorm)>,
    sequences: Vec<Sequence>,
}

impl World {
    /// Sequences of these lengths, whose blocks lie in random order among others; nothing is zero before it is written.
    fn new(sizes: Sizes, lengths: &[usize], (seed, norms): (u64, bool)) -> World {
        let Sizes { group, kv_heads, head_dim, dtype, .. } = sizes;
        let spec = KvSpec { layers: 2, heads: kv_heads, head_dim, dtype, block_tokens: 16 };
        let needed: usize = lengths.iter().map(|length| length.div_ceil(16)).sum();
        let mut free: Vec<u32> = (0..needed as u32 + 3).collect();
        free.shuffle(&mut StdRng::seed_from_u64(seed));
        let mut cache = KvCache::new(&spec, free.len(), &Device::Cpu).unwrap();
        poison(&mut cache, &free);
        let width = (group + 2) * kv_heads * head_dim;
        let sequences = lengths.iter().enumerate().map(|(i, length)| Sequence {
            rows: matrix(*length, width, seed ^ (i as u64 + 7)),
            blocks: free.split_off(free.len() - length.div_ceil(16)),
        });
        let norm = |seed| RmsNorm { weight: vector(head_dim, seed), eps: 1e-6 };
        let inverse = (0..head_dim / 2).map(|pair| 100f32.powf(-(2.0 * pair as f32) / head_dim as f32));
        World {
            sequences: sequences.collect(),
            rotary: Rotary::new(inverse.collect(), 1.0),
            norms: norms.then(|| (norm(seed ^ 1), norm(seed ^ 2))),
            cache,
            sizes,
        }
    }

    /// One step of these parts of sequences; the result of each.
    fn step(&mut self, parts: &[(usize, Range<usize>)]) -> Vec<Vec<f64>> {
        let Sizes { group, kv_heads, head_dim, window, .. } = self.sizes;
        let part = |(at, range): &(usize, Range<usize>)| self.sequences[*at].rows.narrow_rows(range.start, range.len());
        let rows = Tensor::stack_rows(&parts.iter().map(|of| part(of).unwrap()).collect::<Vec<_>>()).unwrap();
        let runs = parts.iter().map(|(at, range)| Run {
            tokens: range.len(),
            from: range.start,
            blocks: &self.sequences[*at].blocks,
        });
        let runs = Runs::new(runs.collect(), &self.cache, &self.rotary).unwrap();
        let (heads, kv) = (group * kv_heads * head_dim, kv_heads * head_dim);
        let (q, k, v) = (columns(&rows, 0, heads), columns(&rows, heads, kv), columns(&rows, heads + kv, kv));
        let norms = self.norms.as_ref().map(|(q, k)| (q, k));
        let queries = place_heads((&q, &k, &v), norms, &runs, (&mut self.cache, 1)).unwrap();
        let out = values(&paged_attention(&queries, &runs, window, (&self.cache, 1)).unwrap());
        let mut out = out.as_slice();
        let each = parts.iter().map(|(_, range)| {
            let (now, later) = out.split_at(range.len() * heads);
            out = later;
            now.to_vec()
        });
        each.collect()
    }

    /// All of a sequence, by definition.
    fn naive(&self, at: usize) -> Vec<f64> {
        let Sizes { group, kv_heads, head_dim: d, window, dtype } = self.sizes;
        let (tokens, width) = self.sequences[at].rows.dims2().unwrap();
        let all = values(&self.sequences[at].rows);
        let rounded = |x: f64| if dtype == DType::F16 { half::f16::from_f64(x).to_f64() } else { x };
        // head `head` of a row, from the queries on
        let head = |token: usize, head: usize| all[token * width + head * d..][..d].to_vec();
        let prepared = |token: usize, number: usize, norm: Option<&RmsNorm>| {
            let mut x = head(token, number);
            if let Some(norm) = norm {
                let scale = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / d as f64 + norm.eps).sqrt();
                x.iter_mut().zip(values(&norm.weight)).for_each(|(x, w)| *x *= scale * w);
            }
            let angle = |pair: usize| f64::from(self.rotary.inverse_frequencies()[pair]) * token as f64;
            let turned = |i: usize| match i < d / 2 {
                true => x[i] * angle(i).cos() - x[i + d / 2] * angle(i).sin(),
                false => x[i] * angle(i - d / 2).cos() + x[i - d / 2] * angle(i - d / 2).sin(),
            };
            (0..d).map(turned).collect::<Vec<f64>>()
        };
        let (q_norm, k_norm) = (self.norms.as_ref().map(|n| &n.0), self.norms.as_ref().map(|n| &n.1));
        let heads = group * kv_heads;
        let keys: Vec<Vec<Vec<f64>>> = (0..kv_heads)
            .map(|h| {
                let key = |token| prepared(token, heads + h, k_norm).into_iter().map(rounded).collect();
                (0..tokens).map(key).collect()
            })
            .collect();
        let mut out = Vec::new();
        for token in 0..tokens {
            let seen = (token + 1).saturating_sub(window.unwrap_or(usize::MAX))..token + 1;
            for h in 0..heads {
                let q = prepared(token, h, q_norm);
                let kv = h / group;
                let score = |t: usize| q.iter().zip(&keys[kv][t]).map(|(a, b)| a * b).sum::<f64>() / (d as f64).sqrt();
                let scores: Vec<f64> = seen.clone().map(score).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let value = |t: usize, i: usize| rounded(head(t, heads + kv_heads + kv)[i]);
                let mixed = |i: usize| seen.clone().zip(&weights).map(|(t, w)| w * value(t, i)).sum::<f64>() / sum;
                out.extend((0..d).map(mixed));
            }
        }
        out
    }
}

/// Fills a cache with NaN, so that whatever is read and was not written shows.
fn poison(cache: &mut KvCache, blocks: &[u32]) {
    let nothing = vec![f32::NAN; cache.spec().head_dim];
    for layer in 0..cache.spec().layers {
        let write = |_, head: &mut cache::HeadMut<'_>| {
            blocks
                .iter()
                .flat_map(|block| (0..16).map(move |slot| (*block, slot)))
                .for_each(|at| head.put(at, &nothing, &nothing));
        };
        cache.write_heads((layer, false), write).unwrap();
    }
}

/// Cuts every sequence into pieces at random, and deals them out to steps in their order.
fn pieces(lengths: &[usize], seed: u64) -> Vec<Vec<(usize, Range<usize>)>> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut done = vec![0; lengths.len()];
    let mut steps = Vec::new();
    while done.iter().zip(lengths).any(|(done, length)| done < length) {
        let mut step = Vec::new();
        for (at, length) in lengths.iter().enumerate() {
            if done[at] < *length && random.random_range(0..3) > 0 {
                let most = if random.random_range(0..2) == 0 { 1 } else { length - done[at] };
                let end = done[at] + random.random_range(1..=most);
                step.push((at, done[at]..end));
                done[at] = end;
            }
        }
        step.shuffle(&mut random);
        if !step.is_empty() {
            steps.push(step);
        }
    }
    steps
}

/// What steps gave, sequence by sequence.
fn gathered(world: &mut World, steps: &[Vec<(usize, Range<usize>)>]) -> Vec<Vec<f64>> {
    let mut all = vec![Vec::new(); world.sequences.len()];
    for step in steps {
        for ((at, _), rows) in step.iter().zip(world.step(step)) {
            all[*at].extend(rows);
        }
    }
    all
}

fn sizes() -> impl Strategy<Value = Sizes> {
    let dims = prop::sample::select(vec![2usize, 8, 16, 20, 40, 64]);
    let windows = prop::option::of(1usize..120);
    (1usize..6, 1usize..4, dims, any::<bool>(), windows).prop_map(|(group, kv_heads, head_dim, half, window)| Sizes {
        group,
        kv_heads,
        head_dim,
        dtype: if half { DType::F16 } else { DType::F32 },
        window,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Any lengths in any pieces, blocks anywhere.
    #[test]
    fn it_is_its_definition(
        sizes in sizes(), lengths in prop::collection::vec(1usize..150, 1..5), seed: u64, norms: bool,
    ) {
        let mut world = World::new(sizes, &lengths, (seed, norms));
        let got = gathered(&mut world, &pieces(&lengths, seed));
        // A rounding of a key to f16 may fall to either side of what it is here.
        let tolerance = if sizes.dtype == DType::F16 { 3e-3 } else { 2e-5 };
        for (at, rows) in got.into_iter().enumerate() {
            let rows = Tensor::from_vec(rows.iter().map(|x| *x as f32).collect::<Vec<_>>(), rows.len(), &Device::Cpu);
            assert_close(&rows.unwrap(), &world.naive(at), tolerance);
        }
    }

    /// To the bit: in one piece and alone, in pieces among others, and with other blocks.
    #[test]
    fn neither_neighbours_nor_pieces_nor_places_change_a_bit(
        sizes in sizes(), lengths in prop::collection::vec(1usize..150, 1..5), seed: u64, norms: bool,
    ) {
        let whole = |world: &mut World| -> Vec<Vec<f64>> {
            (0..lengths.len()).map(|at| world.step(&[(at, 0..lengths[at])]).concat()).collect()
        };
        let want = whole(&mut World::new(sizes, &lengths, (seed, norms)));
        prop_assert!(want.iter().flatten().all(|x| x.is_finite()));
        for cut in [seed, seed ^ 0xff] {
            let got = gathered(&mut World::new(sizes, &lengths, (seed, norms)), &pieces(&lengths, cut));
            prop_assert!(got == want);
        }
        let mut elsewhere = World::new(sizes, &lengths, (seed, norms));
        elsewhere.sequences.iter_mut().for_each(|sequence| sequence.blocks.reverse());
        prop_assert!(whole(&mut elsewhere) == want);
    }
}

#[test]
fn several_threads_give_the_same_bits_as_one() {
    let sizes = Sizes { group: 3, kv_heads: 2, head_dim: 64, dtype: DType::F32, window: None };
    let lengths = [700, 1, 333, 64];
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut world = World::new(sizes, &lengths, (5, true));
        pool.install(|| world.step(&lengths.iter().map(|length| 0..*length).enumerate().collect::<Vec<_>>()))
    };
    assert_eq!(on(3), on(1));
}

#[test]
fn a_full_block_may_be_read_by_several_sequences() {
    let sizes = Sizes { group: 2, kv_heads: 1, head_dim: 16, dtype: DType::F32, window: None };
    let mut world = World::new(sizes, &[40, 40], (9, false));
    let rows = world.sequences[0].rows.clone();
    world.sequences[1].rows = rows;
    let first = world.step(&[(0, 0..40)]).concat();
    // The other has the first two blocks of the one, and goes on with a block of its own.
    let shared = world.sequences[0].blocks[..2].to_vec();
    world.sequences[1].blocks[..2].copy_from_slice(&shared);
    assert_eq!(world.step(&[(1, 32..40)]).concat(), first[32 * 32..]);
}

#[test]
fn scores_beyond_what_exp_can_hold_are_weighed_against_the_largest() {
    let sizes = Sizes { group: 1, kv_heads: 1, head_dim: 2, dtype: DType::F32, window: None };
    let mut world = World::new(sizes, &[130], (3, false));
    let huge: Vec<f32> = values(&world.sequences[0].rows).iter().map(|x| *x as f32 * 300.0).collect();
    world.sequences[0].rows = Tensor::from_vec(huge, (130, 6), &Device::Cpu).unwrap();
    let got = world.step(&[(0, 0..130)]).concat();
    let got = Tensor::from_vec(got.iter().map(|x| *x as f32).collect::<Vec<_>>(), got.len(), &Device::Cpu).unwrap();
    assert_close(&got, &world.naive(0), 1e-3);
}

#[test]
fn nan_shows_in_every_row_that_sees_it_and_in_no_other_sequence() {
    let sizes = Sizes { group: 2, kv_heads: 1, head_dim: 8, dtype: DType::F16, window: None };
    let mut world = World::new(sizes, &[20, 20], (4, false));
    let mut rows: Vec<f32> = values(&world.sequences[0].rows).iter().map(|x| *x as f32).collect();
    // a key of the third token
    rows[2 * 32 + 17] = f32::NAN;
    world.sequences[0].rows = Tensor::from_vec(rows, (20, 32), &Device::Cpu).unwrap();
    let got = world.step(&[(0, 0..20), (1, 0..20)]);
    assert!(got[0][2 * 16..].iter().all(|x| x.is_nan()), "rows from the third on");
    assert!(got[0][..2 * 16].iter().all(|x| x.is_finite()) && got[1].iter().all(|x| x.is_finite()));
}

#[test]
fn what_does_not_fit_is_an_error() {
    let spec = KvSpec { layers: 1, heads: 2, head_dim: 8, dtype: DType::F32, block_tokens: 16 };
    let mut cache = KvCache::new(&spec, 4, &Device::Cpu).unwrap();
    assert_eq!((spec.bytes_per_block(), cache.bytes()), (2 * 16 * (8 + 16) * 4, 4 * 3072));
    let rotary = Rotary::new(vec![1.0; 4], 1.0);
    let run = |tokens, from, blocks: &'static [u32]| Run { tokens, from, blocks };
    let message = |runs: Vec<Run<'static>>| Runs::new(runs, &cache, &rotary).unwrap_err().to_string();
    assert!(message(vec![run(1, 16, &[0])]).contains("1 blocks for 17 tokens"));
    assert!(message(vec![run(1, 0, &[4])]).contains("block 4 of 4"));
    assert!(message(vec![run(1, 3, &[2]), run(2, 0, &[2])]).contains("block 2 would be written twice"));
    assert!(Runs::new(vec![run(1, 16, &[2, 0]), run(1, 16, &[2, 1])], &cache, &rotary).is_ok());
    assert!(Runs::new(Vec::new(), &cache, &Rotary::new(vec![1.0; 3], 1.0)).is_err());
    for bad in [KvSpec { dtype: DType::BF16, ..spec }, KvSpec { block_tokens: 32, ..spec }] {
        assert!(KvCache::new(&bad, 4, &Device::Cpu).is_err(), "{bad:?}");
    }
    assert!(KvCache::new(&spec, usize::MAX / 4, &Device::Cpu).is_err());

    let runs = Runs::new(vec![run(3, 0, &[0])], &cache, &rotary).unwrap();
    let (q, k) = (matrix(3, 32, 1), matrix(3, 16, 2));
    assert!(place_heads((&q, &k, &k), None, &runs, (&mut cache, 1)).is_err(), "a layer that there is not");
    assert!(place_heads((&q, &k, &matrix(2, 16, 3)), None, &runs, (&mut cache, 0)).is_err());
    assert!(place_heads((&q, &matrix(3, 8, 2), &k), None, &runs, (&mut cache, 0)).is_err());
    assert!(place_heads((&q, &k, &k), None, &runs, (&mut cache, 0)).is_ok());
    assert!(paged_attention(&matrix(2, 32, 1), &runs, None, (&cache, 0)).is_err());
    assert!(paged_attention(&matrix(3, 24, 1), &runs, None, (&cache, 0)).is_err());
    assert!(paged_attention(&q, &runs, None, (&cache, 0)).is_ok());
}
