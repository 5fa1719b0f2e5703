//! Whole samplers: against exact distributions, against transformers' own logits processors, and in what always holds.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

/// The distribution by the definitions, in f64, with a sort: what each token is to be drawn with.
fn exact(logits: &[f32], options: &SamplingOptions) -> Vec<f64> {
    let scale = 1.0 / f64::from(options.temperature);
    let scaled: Vec<f64> = logits.iter().map(|logit| f64::from(*logit) * scale).collect();
    let best = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut weights: Vec<f64> = scaled.iter().map(|logit| (logit - best).exp()).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    if let Some(k) = options.top_k(logits.len()) {
        let last = logits[order[k - 1]];
        (0..weights.len()).filter(|&at| logits[at] < last).for_each(|at| weights[at] = 0.0);
    }
    let all: f64 = weights.iter().sum();
    let mut before = 0.0;
    for &at in &order {
        let weight = weights[at];
        if before >= f64::from(options.top_p) * all {
            weights[at] = 0.0;
        }
        before += weight;
    }
    weights.iter_mut().filter(|weight| **weight < f64::from(options.min_p)).for_each(|weight| *weight = 0.0);
    let all: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / all).collect()
}

/// Logits that look like a model's: a few large ones, many small.
fn row(size: usize, seed: u64) -> Vec<f32> {
    (0..size as u64).map(|at| (random::uniform(seed, at) as f32 * 6.0 - 3.0) * 2.0).collect()
}

fn drawn(logits: &[f32], options: &SamplingOptions, prompt: &[u32]) -> u32 {
    Sampler::new(options.clone(), prompt).sample(&mut logits.to_vec()).unwrap().token
}

fn plain() -> SamplingOptions {
    SamplingOptions::default()
}

#[test]
fn draws_have_the_exact_distribution() {
    const DRAWS: u64 = 20_000;
    let logits = row(40, 3);
    for options in [
        plain(),
        SamplingOptions { temperature: 0.7, ..plain() },
        SamplingOptions { temperature: 1.8, ..plain() },
        SamplingOptions { top_k: 7, ..plain() },
        SamplingOptions { top_p: 0.8, ..plain() },
        SamplingOptions { min_p: 0.1, temperature: 1.5, ..plain() },
        SamplingOptions { temperature: 1.3, top_k: 20, top_p: 0.9, min_p: 0.05, ..plain() },
    ] {
        let want = exact(&logits, &options);
        let mut counts = vec![0u32; logits.len()];
        for seed in 0..DRAWS {
            counts[drawn(&logits, &SamplingOptions { seed, ..options.clone() }, &[]) as usize] += 1;
        }
        // what is too rare to be counted is put together
        let (mut chi_square, mut freedom, mut rare) = (0.0, -1.0, (0.0, 0.0));
        for (count, probability) in counts.iter().zip(&want) {
            let expected = probability * DRAWS as f64;
            if *probability == 0.0 {
                assert_eq!(*count, 0, "{options:?}");
            } else if expected < 5.0 {
                rare = (rare.0 + f64::from(*count), rare.1 + expected);
            } else {
                chi_square += (f64::from(*count) - expected).powi(2) / expected;
                freedom += 1.0;
            }
        }
        if rare.1 > 0.0 {
            chi_square += (rare.0 - rare.1).powi(2) / rare.1;
            freedom += 1.0;
        }
        // Four standard deviations above the mean; the seeds are fixed, so this is met once or never.
        let bound = freedom + 4.0 * (2.0 * f64::max(freedom, 1.0)).sqrt();
        assert!(chi_square < bound, "chi-square {chi_square:.1} with {freedom} degrees of freedom: {options:?}");
    }
}

#[test]
fn one_sequence_draws_as_many_seeds_do() {
    // the same distribution over the tokens of one sequence, whose randomness is the count's
    let logits = row(12, 5);
    let want = exact(&logits, &plain());
    let mut sampler = Sampler::new(SamplingOptions { seed: 99, ..plain() }, &[]);
    let mut counts = vec![0u32; logits.len()];
    for _ in 0..20_000 {
        counts[sampler.sample(&mut logits.clone()).unwrap().token as usize] += 1;
    }
    let chi_square: f64 = counts.iter().zip(&want).map(|(c, p)| (f64::from(*c) - p * 2e4).powi(2) / (p * 2e4)).sum();
    assert!(chi_square < 11.0 + 4.0 * 22f64.sqrt(), "{chi_square}");
}

/// What may be drawn and with which probability, as the sampler has it after its cuts.
fn allowed(logits: &[f32], options: &SamplingOptions, prompt: &[u32], answer: &[u32]) -> Vec<f64> {
    let mut sampler = Sampler::new(options.clone(), prompt);
    answer.iter().for_each(|token| sampler.accept(*token));
    let mut logits = logits.to_vec();
    sampler.change(&mut logits);
    let row = Row { logits: &logits, peak: usable(&logits).unwrap(), scale: 1.0 / options.temperature, sum: None };
    let weight = sampler.cut(&row);
    sampler.candidates.reach_weight(&row, f64::INFINITY);
    let mut probabilities = vec![0.0; logits.len()];
    for candidate in sampler.candidates.list() {
        probabilities[candidate.id as usize] = f64::from(candidate.weight) / weight;
    }
    probabilities
}

fn vectors() -> Vec<Value> {
    serde_json::from_str(include_str!("vectors.json")).unwrap()
}

#[test]
fn transformers_own_processors_leave_the_same_tokens_with_the_same_probabilities() {
    let vectors = vectors();
    assert!(vectors.len() >= 200, "{}", vectors.len());
    for case in &vectors {
        let f32_of = |key: &str, default: f32| case.get(key).map_or(default, |value| value.as_f64().unwrap() as f32);
        let ids = |key: &str| serde_json::from_value::<Vec<u32>>(case[key].clone()).unwrap();
        let logits: Vec<f32> = serde_json::from_value(case["logits"].clone()).unwrap();
        let options = SamplingOptions {
            temperature: f32_of("temperature", 1.0),
            top_k: case.get("top_k").map_or(0, |k| k.as_i64().unwrap()),
            top_p: f32_of("top_p", 1.0),
            min_p: f32_of("min_p", 0.0),
            repetition_penalty: f32_of("repetition_penalty", 1.0),
            logit_bias: case.get("bias").map_or(Vec::new(), |b| serde_json::from_value(b.clone()).unwrap()).into(),
            ..plain()
        };
        options.validate(logits.len()).unwrap();
        let got = allowed(&logits, &options, &ids("prompt"), &ids("answer"));
        let want: Vec<f64> = serde_json::from_value(case["probabilities"].clone()).unwrap();
        for (token, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_eq!(*got == 0.0, *want == 0.0, "token {token} is {got}, not {want}: {options:?}");
            assert!((got - want).abs() < 2e-5, "token {token} is {got}, not {want}: {options:?}");
        }
    }
}

#[test]
fn no_temperature_takes_the_best_and_of_equals_the_first() {
    let greedy = SamplingOptions { temperature: 0.0, ..plain() };
    assert_eq!(drawn(&[1.0, 3.0, 2.0, 3.0], &greedy, &[]), 1);
    assert_eq!(drawn(&[f32::NEG_INFINITY, -5.0], &greedy, &[]), 1);
    assert_eq!(drawn(&[0.0; 300], &greedy, &[]), 0);
    assert_eq!(drawn(&[1.0, 3.0], &SamplingOptions { temperature: 1e-6, ..plain() }, &[]), 1);
}

#[test]
fn the_best_of_a_long_row_are_found_wherever_they_stand() {
    // several stretches of logits, and equals across them
    let mut logits = row(5_000, 9);
    for place in [0, 1_023, 1_024, 2_500, 4_999] {
        logits[place] = 50.0;
    }
    for (k, kept) in [(3, 5), (5, 5), (1, 5)] {
        let options = SamplingOptions { top_k: k, ..plain() };
        assert_eq!(allowed(&logits, &options, &[], &[]).iter().filter(|p| **p > 0.0).count(), kept);
    }
    for k in [6, 600, 4_998] {
        let options = SamplingOptions { top_k: k, temperature: 2.0, ..plain() };
        let (got, want) = (allowed(&logits, &options, &[], &[]), exact(&logits, &options));
        assert!(got.iter().zip(&want).all(|(got, want)| (got - want).abs() < 1e-5), "top {k}");
        assert_eq!(got.iter().filter(|p| **p > 0.0).count(), want.iter().filter(|p| **p > 0.0).count());
    }
    let equal = allowed(&[1.0; 5_000], &SamplingOptions { top_k: 2, ..plain() }, &[], &[]);
    assert!(equal.iter().all(|p| (p - 1.0 / 5_000.0).abs() < 1e-9));
}

#[test]
fn penalties_and_bias_change_what_is_best() {
    let greedy = |options: SamplingOptions| SamplingOptions { temperature: 0.0, ..options };
    let logits = [2.0, 1.9, -1.0];
    assert_eq!(drawn(&logits, &greedy(SamplingOptions { repetition_penalty: 1.1, ..plain() }), &[0]), 1);
    assert_eq!(drawn(&logits, &greedy(SamplingOptions { logit_bias: [(2, 3.1)].into(), ..plain() }), &[]), 2);
    // presence and frequency count the answer, not the prompt
    let present = greedy(SamplingOptions { presence_penalty: 0.5, ..plain() });
    assert_eq!(drawn(&logits, &present, &[0, 0]), 0);
    let mut sampler = Sampler::new(present, &[]);
    assert_eq!((0..3).map(|_| sampler.sample(&mut logits.to_vec()).unwrap().token).collect::<Vec<_>>(), [0, 1, 0]);
    let frequent = greedy(SamplingOptions { frequency_penalty: 0.06, ..plain() });
    let mut sampler = Sampler::new(frequent, &[]);
    // 2.0, then 1.94, then 1.88 against 1.9, then 1.88 against 1.84
    let taken: Vec<u32> = (0..4).map(|_| sampler.sample(&mut logits.to_vec()).unwrap().token).collect();
    assert_eq!(taken, [0, 0, 1, 0]);
    // below zero a penalty multiplies, and an odd one makes no infinity
    let odd = greedy(SamplingOptions { repetition_penalty: 1e-38, ..plain() });
    assert_eq!(drawn(&[5.0, 4.0, -3.0], &odd, &[1]), 1);
    assert_eq!(drawn(&[-5.0, -4.0], &greedy(SamplingOptions { repetition_penalty: 2.0, ..plain() }), &[1]), 0);
}

#[test]
fn logprobs_are_of_the_row_as_it_came() {
    let options = SamplingOptions {
        temperature: 0.0,
        logit_bias: [(3, 100.0)].into(),
        repetition_penalty: 1.5,
        logprobs: Some(2),
        ..plain()
    };
    let logits = [1.0f32, 2.0, 2.0, -1.0];
    let total = logits.iter().map(|l| l.exp()).sum::<f32>().ln();
    let choice = Sampler::new(options.clone(), &[0, 3]).sample(&mut logits.to_vec()).unwrap();
    assert_eq!(choice.token, 3);
    let close = |a: f32, b: f32| (a - b).abs() < 1e-5;
    assert!(close(choice.logprob.unwrap(), -1.0 - total), "{choice:?}");
    assert_eq!(choice.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 2]);
    assert!(choice.top.iter().all(|(_, logprob)| close(*logprob, 2.0 - total)), "{choice:?}");
    let none = Sampler::new(SamplingOptions { logprobs: None, ..options.clone() }, &[]).sample(&mut logits.to_vec());
    assert_eq!(none.unwrap(), Choice { token: 3, logprob: None, top: Vec::new() });
    let own = Sampler::new(SamplingOptions { logprobs: Some(0), ..options }, &[]).sample(&mut logits.to_vec()).unwrap();
    assert!(own.logprob.is_some() && own.top.is_empty());
}

#[test]
fn rows_that_cannot_be_chosen_from_are_errors_and_count_for_nothing() {
    for options in [plain(), SamplingOptions { temperature: 0.0, ..plain() }, SamplingOptions { top_p: 0.5, ..plain() }]
    {
        let mut sampler = Sampler::new(options.clone(), &[]);
        for (bad, error) in [(f32::NAN, Unusable::NotFinite), (f32::INFINITY, Unusable::NotFinite)] {
            let mut logits = row(100, 1);
            logits[70] = bad;
            assert_eq!(sampler.sample(&mut logits), Err(error));
        }
        assert_eq!(sampler.sample(&mut [f32::NEG_INFINITY; 100]), Err(Unusable::Nothing));
        let mut fresh = Sampler::new(options, &[]);
        assert_eq!(sampler.sample(&mut row(100, 1)), fresh.sample(&mut row(100, 1)));
    }
}

#[test]
fn a_sequence_goes_on_elsewhere_as_it_would_have_here() {
    let options = SamplingOptions { seed: 42, repetition_penalty: 1.2, frequency_penalty: 0.3, top_p: 0.95, ..plain() };
    let rows: Vec<Vec<f32>> = (0..30).map(|seed| row(200, seed)).collect();
    let mut here = Sampler::new(options.clone(), &[1, 2, 3]);
    let whole: Vec<u32> = rows.iter().map(|row| here.sample(&mut row.clone()).unwrap().token).collect();
    for moved in [0, 1, 13, 29] {
        let mut there = Sampler::new(options.clone(), &[1, 2, 3]);
        whole[..moved].iter().for_each(|token| there.accept(*token));
        let rest: Vec<u32> = rows[moved..].iter().map(|row| there.sample(&mut row.clone()).unwrap().token).collect();
        assert_eq!(rest, whole[moved..]);
    }
}

fn any_options() -> impl Strategy<Value = SamplingOptions> {
    (
        0.05f32..2.0,
        prop_oneof![Just(0i64), 1i64..30],
        prop_oneof![Just(1.0f32), 0.01f32..1.0],
        prop_oneof![Just(0f32), 0f32..=1.0],
        any::<u64>(),
    )
        .prop_map(|(temperature, top_k, top_p, min_p, seed)| SamplingOptions {
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
            ..plain()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn only_what_is_allowed_is_drawn(
        logits in proptest::collection::vec(prop_oneof![6 => -9f32..9.0, 1 => Just(f32::NEG_INFINITY), 1 => Just(2.5f32)], 1..200),
        options in any_options(),
    ) {
        prop_assume!(logits.iter().any(|logit| logit.is_finite()));
        let token = drawn(&logits, &options, &[]) as usize;
        prop_assert!(logits[token].is_finite());
        let want = exact(&logits, &options);
        let got = allowed(&logits, &options, &[], &[]);
        for (token, (got, want)) in got.iter().zip(&want).enumerate() {
            // at the edge of a cut rounding may decide
            let edge = (*got == 0.0) != (*want == 0.0) && on_an_edge(&logits, &options);
            prop_assert!(edge || (got - want).abs() < 1e-4, "token {}: {} is not {}", token, got, want);
        }
        prop_assert!(got[token] > 0.0);
    }

    /// Distinct logits in another order are the same tokens under other names.
    #[test]
    fn the_order_of_the_vocabulary_does_not_matter(
        order in Just((0..150u32).collect::<Vec<_>>()).prop_shuffle(),
        options in any_options(),
    ) {
        let logits: Vec<f32> = row(150, 11);
        let mut shuffled = vec![0.0; logits.len()];
        order.iter().zip(&logits).for_each(|(to, logit)| shuffled[*to as usize] = *logit);
        let (a, b) = (drawn(&logits, &options, &[]), drawn(&shuffled, &options, &[]));
        prop_assert_eq!(order[a as usize], b);
    }
}

/// Whether a slightly different cut leaves other tokens.
fn on_an_edge(logits: &[f32], options: &SamplingOptions) -> bool {
    let tokens = |factor: f32| {
        let options = SamplingOptions {
            top_p: (options.top_p * factor).min(if options.top_p < 1.0 { 0.999_999 } else { 1.0 }),
            min_p: options.min_p * factor,
            ..options.clone()
        };
        exact(logits, &options).iter().map(|p| *p > 0.0).collect::<Vec<_>>()
    };
    tokens(1.0 - 1e-5) != tokens(1.0 + 1e-5)
}

proptest! {
    #[test]
    fn taking_the_likeliest_is_what_sampling_a_whole_row_does(
        logits in proptest::collection::vec(
            prop_oneof![
                60 => (-5i8..5).prop_map(f32::from),
                6 => Just(f32::NEG_INFINITY),
                1 => prop_oneof![Just(f32::NAN), Just(f32::INFINITY)],
            ],
            1..60,
        ),
    ) {
        let rows = crate::ops::Tensor::from_vec(logits.clone(), (1, logits.len()), &crate::ops::Device::Cpu).unwrap();
        let likeliest = crate::ops::likeliest(&rows, &[true]).unwrap();
        let [mut whole, mut short] = [(); 2].map(|()| Sampler::new(SamplingOptions { temperature: 0.0, ..plain() }, &[1]));
        prop_assert!(short.takes_likeliest());
        prop_assert_eq!(short.take(&likeliest[0]), whole.sample(&mut logits.clone()));
        prop_assert_eq!(short.count, whole.count);
    }
}

#[test]
fn whole_rows_are_needed_where_more_than_the_likeliest_is_asked_for() {
    let greedy = || SamplingOptions { temperature: 0.0, ..plain() };
    for (options, takes) in [
        (greedy(), true),
        (SamplingOptions { top_k: 5, top_p: 0.5, min_p: 0.1, seed: 9, ..greedy() }, true),
        (plain(), false),
        (SamplingOptions { repetition_penalty: 1.1, ..greedy() }, false),
        (SamplingOptions { presence_penalty: 0.5, ..greedy() }, false),
        (SamplingOptions { frequency_penalty: -0.5, ..greedy() }, false),
        (SamplingOptions { logit_bias: [(1, 1.0)].into(), ..greedy() }, false),
        (SamplingOptions { logprobs: Some(0), ..greedy() }, false),
    ] {
        assert_eq!(Sampler::new(options.clone(), &[1, 2]).takes_likeliest(), takes, "{options:?}");
    }
}

fn likely_of(logits: &[f32], temperature: f32) -> crate::ops::Likely {
    let rows = crate::ops::Tensor::from_vec(logits.to_vec(), (1, logits.len()), &crate::ops::Device::Cpu).unwrap();
    crate::ops::likely(&rows, &[Some(temperature)]).unwrap().remove(0)
}

proptest! {
    #[test]
    fn a_draw_from_what_is_told_is_the_draw_from_the_whole_row(
        logits in proptest::collection::vec(
            prop_oneof![
                300 => (-30i8..10).prop_map(|x| f32::from(x) / 2.0),
                20 => Just(f32::NEG_INFINITY),
                1 => prop_oneof![Just(f32::NAN), Just(f32::INFINITY)],
            ],
            1..300,
        ),
        temperature in 0.05f32..2.0,
        top_k in prop_oneof![Just(0i64), 1i64..80],
        top_p in prop_oneof![Just(1.0f32), 0.1f32..1.0],
        min_p in prop_oneof![Just(0.0f32), 1e-5f32..0.5],
        seed: u64,
    ) {
        let options = SamplingOptions { temperature, top_k, top_p, min_p, seed, ..plain() };
        let [mut whole, mut told] = [(); 2].map(|()| Sampler::new(options.clone(), &[1]));
        prop_assert_eq!(told.draws_at(), Some(temperature));
        let want = whole.sample(&mut logits.clone());
        match told.draw_from(&likely_of(&logits, temperature)) {
            Ok(Some(choice)) => prop_assert_eq!(Ok(choice), want),
            Ok(None) => prop_assert_eq!(told.count, 0),
            Err(why) => prop_assert_eq!(Err(why), want),
        }
    }
}

/// Tokens as likely as words of a language are: all draws but those that fall among the rare ones need no more than is told.
#[test]
fn only_draws_of_rare_tokens_need_the_whole_row() {
    let mut logits: Vec<f32> = (0..30_000).map(|rank| -1.3 * (1.0 + rank as f32).ln()).collect();
    logits.iter_mut().step_by(2).for_each(|logit| *logit += 3.0);
    logits.rotate_right(7_000);
    let share = |options: SamplingOptions| {
        let likely = likely_of(&logits, options.temperature);
        let needed = (0..1000).filter(|seed| {
            let [mut whole, mut told] =
                [(); 2].map(|()| Sampler::new(SamplingOptions { seed: *seed, ..options.clone() }, &[]));
            let choice = told.draw_from(&likely).unwrap();
            choice.is_some_and(|choice| {
                assert_eq!(Ok(choice), whole.sample(&mut logits.clone()), "{options:?}, {seed}");
                true
            })
        });
        needed.count()
    };
    let plainly = share(plain());
    assert!((800..980).contains(&plainly), "{plainly}");
    for options in [
        SamplingOptions { top_k: 50, ..plain() },
        SamplingOptions { top_p: 0.8, ..plain() },
        SamplingOptions { min_p: 0.01, ..plain() },
        SamplingOptions { temperature: 0.6, top_p: 0.95, ..plain() },
        SamplingOptions { temperature: 0.7, top_k: 30, top_p: 0.9, min_p: 0.02, ..plain() },
    ] {
        assert_eq!(share(options.clone()), 1000, "{options:?}");
    }
}
