//! What a GPU tells of rows of logits that stay there, against the rows themselves.

use cutover::process::{Sampler, SamplingOptions};

use super::*;

/// How likely tokens are that stand in a text already, in one step with the same rows whole.
#[test]
fn tokens_are_scored_on_a_gpu_by_what_is_in_their_rows() {
    let Some(gpu) = gpu() else { return };
    let fixture = Fixture::open("qwen3");
    for format in FORMATS {
        let (mut running, _memory) = running(&fixture.version(), gpu, format);
        let how = (is_exact(gpu, format), tolerance(format));
        for prompt in fixture.prompts.iter().filter(|prompt| prompt.tokens.len() > 1) {
            let count = (prompt.tokens.len() - 1).min(ROWS_PER_STEP / 2 - 1);
            let next = prompt.tokens[count];
            let [mut whole, mut scored, mut greedy, mut drawn] = [(); 4].map(|()| running.start(&prompt.tokens));
            let logits = running.logits(&mut [
                (&mut greedy, count, Wants::Likeliest),
                (&mut scored, count, Wants::Scored { next }),
                (&mut whole, count, Wants::Every),
                (&mut drawn, count, Wants::Likely { temperature: 0.7 }),
            ]);
            assert_eq!((logits.scored().len(), logits.likeliest().len(), logits.likely().len()), (count, 1, 1));
            for ((row, scored), token) in logits.rows().zip(logits.scored()).zip(&prompt.tokens[1..]) {
                let what = format!("{token} in {}, {scored:?}", format.as_str());
                let near = row.iter().fold(0f32, |most, logit| most.max(logit.abs())) * how.1.1;
                let sum = row.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln() as f32;
                let best = row.iter().copied().fold(f32::MIN, f32::max);
                let [own, likeliest] = scored.logarithms();
                assert!(!how.0 || scored.logit == row[*token as usize], "{what}");
                assert!((own - (row[*token as usize] - sum)).abs() <= 2.0 * near.max(1e-4), "{what}");
                assert!((likeliest - (best - sum)).abs() <= 2.0 * near.max(1e-4) && own <= likeliest, "{what}");
            }
            running.next = 256;
        }
    }
}

/// From what a GPU tells of rows, and from the rows themselves, which it has kept.
#[test]
fn draws_from_what_a_gpu_tells_of_rows_are_those_from_whole_rows() {
    let Some(gpu) = gpu() else { return };
    let fixture = Fixture::open("qwen3");
    for format in FORMATS {
        let (mut running, _memory) = running(&fixture.version(), gpu, format);
        let prompts = &fixture.prompts;
        let mut sequences: Vec<_> = prompts.iter().map(|prompt| running.start(&prompt.tokens)).collect();
        let temperatures = [0.1, 0.4, 1.0, 1.7];
        let wants = |at: usize| match at % 5 {
            4 => Wants::Likeliest,
            at => Wants::Likely { temperature: temperatures[at] },
        };
        let mut dues: Vec<usize> = prompts.iter().map(|prompt| prompt.tokens.len()).collect();
        let (mut drawn, mut covered) = (0, 0);
        for turn in 0..4 {
            let mut step: Vec<_> = sequences
                .iter_mut()
                .zip(&dues)
                .enumerate()
                .map(|(at, (of, due))| (of, *due, wants(at + turn)))
                .collect();
            let logits = running.logits(&mut step);
            assert_eq!(logits.count(), prompts.len());
            let mut likely = logits.likely().iter();
            for (at, sequence) in sequences.iter_mut().enumerate() {
                let Wants::Likely { temperature } = wants(at + turn) else {
                    sequence.tokens.push(7);
                    continue;
                };
                let likely = likely.next().unwrap();
                let row = likely.whole().unwrap();
                assert!(likely.likeliest.logit == row[likely.likeliest.token as usize] && likely.likeliest.sound);
                for seed in 0..40 {
                    let cuts = SamplingOptions { temperature, seed, ..SamplingOptions::default() };
                    let cuts = match seed % 4 {
                        0 => SamplingOptions { top_k: 5, ..cuts },
                        1 => SamplingOptions { top_p: 0.7, ..cuts },
                        2 => SamplingOptions { min_p: 0.1, ..cuts },
                        _ => cuts,
                    };
                    let [mut whole, mut told] = [(); 2].map(|()| Sampler::new(cuts.clone(), &[]));
                    drawn += 1;
                    if let Some(choice) = told.draw_from(likely).unwrap() {
                        covered += 1;
                        assert_eq!(Ok(choice), whole.sample(&mut row.clone()), "{} {cuts:?}", format.as_str());
                    }
                }
                let chosen = Sampler::new(SamplingOptions::default(), &[]).sample(&mut row.clone()).unwrap();
                sequence.tokens.push(chosen.token);
            }
            assert!(likely.next().is_none());
            dues.fill(1);
        }
        assert!(drawn >= 4 * 40 * 2 && covered * 2 >= drawn, "{covered} of {drawn}");
    }
}

/// Of rows that stay on the GPU, beside others that come whole.
#[test]
fn the_likeliest_token_that_a_gpu_finds_is_that_of_the_row() {
    let Some(gpu) = gpu() else { return };
    for name in ["llama", "qwen3"] {
        let fixture = Fixture::open(name);
        for format in FORMATS {
            let (mut running, _memory) = running(&fixture.version(), gpu, format);
            let how = (is_exact(gpu, format), tolerance(format));
            let mut pairs: Vec<_> =
                fixture.prompts.iter().map(|prompt| [(); 2].map(|()| running.start(&prompt.tokens))).collect();
            let mut dues: Vec<usize> = fixture.prompts.iter().map(|prompt| prompt.tokens.len()).collect();
            for _ in 0..6 {
                let mut step = Vec::new();
                for ([whole, short], due) in pairs.iter_mut().zip(&dues) {
                    step.extend([(whole, *due, Wants::Last), (short, *due, Wants::Likeliest)]);
                }
                let logits = running.logits(&mut step);
                assert_eq!((logits.rows().len(), logits.likeliest().len()), (pairs.len(), pairs.len()));
                for (([whole, short], row), found) in pairs.iter_mut().zip(logits.rows()).zip(logits.likeliest()) {
                    let what = format!("{name} in {}, {found:?}", format.as_str());
                    // Rows of the same tokens in one step: the same bits on the fake driver, near each other on a GPU.
                    let near = row.iter().fold(0f32, |most, logit| most.max(logit.abs())) * how.1.1;
                    let first =
                        row.iter().position(|logit| *logit == row.iter().copied().fold(f32::MIN, f32::max)).unwrap();
                    assert!(found.sound && (found.logit - row[first]).abs() <= near, "{what}");
                    assert!(row[found.token as usize] >= row[first] - 2.0 * near, "{what}");
                    assert!(!how.0 || found.token as usize == first && found.logit == row[first], "{what}");
                    let sum = row.iter().map(|logit| f64::from(logit - row[first]).exp()).sum::<f64>().ln() as f32;
                    assert!((found.log_sum - found.logit - sum).abs() <= near.max(1e-4), "{what}, {sum}");
                    for sequence in [whole, short] {
                        sequence.tokens.push(first as u32);
                    }
                }
                dues.fill(1);
            }
        }
    }
}
