//! Steps that were recorded: they tell what the same steps do op by op, whatever they are of.

use common::decoders::Sequence;
use cutover::model::{Begun, Likeliest, Logits};

use super::*;

/// What is told of rows, as bits; of those that are drawn from the rows themselves as well.
fn bits(logits: &Logits) -> (Vec<[u32; 3]>, Vec<Vec<u32>>) {
    let told = |found: &Likeliest| [found.token, found.logit.to_bits(), found.log_sum.to_bits()];
    let likely = logits.likely().iter();
    let drawn = likely.clone().map(|likely| {
        let tokens = likely.tokens.iter().flatten().flat_map(|(token, logit)| [*token, logit.to_bits()]);
        let whole = likely.whole().unwrap();
        tokens.chain(whole.iter().map(|logit| logit.to_bits())).chain([likely.sum.to_bits() as u32]).collect()
    });
    (
        logits.likeliest().iter().chain(likely.clone().map(|likely| &likely.likeliest)).map(told).collect(),
        drawn.collect(),
    )
}

/// Goes on with so many of some sequences by the token that is likeliest now, or drawn from, and tells what of each.
fn told_step(running: &mut Running, sequences: &mut [Sequence], dues: &[usize], turn: usize) -> Logits {
    let wants = |at: usize| match (at + turn) % 3 {
        1 => Wants::Likely { temperature: 0.8 },
        _ => Wants::Likeliest,
    };
    let mut step: Vec<_> =
        sequences.iter_mut().zip(dues).enumerate().map(|(at, (of, due))| (of, *due, wants(at))).collect();
    let logits = running.logits(&mut step);
    let (mut greedy, mut likely) = (logits.likeliest().iter(), logits.likely().iter());
    for (at, sequence) in sequences.iter_mut().enumerate() {
        let found = match wants(at) {
            Wants::Likeliest => greedy.next().unwrap(),
            _ => &likely.next().unwrap().likeliest,
        };
        sequence.tokens.push(found.token);
    }
    logits
}

/// Steps of any number of sequences up to eight, over keys of several parts, by a model that has recorded steps and one that has not.
fn assert_recorded_steps_are_the_same(version: &Version, gpu: &(Opened, Machine), format: DType, what: &str) {
    let (mut model, _recorded) = loaded(version, gpu, format);
    let warmth = model.warm(true, &Progress::new());
    assert!(warmth.failed.is_none() && warmth.recorded == 7, "{what}: {warmth:?}");
    let mut with = Running::with_its_own(model);
    let (mut without, _memory) = running(version, gpu, format);
    // Some are for short contexts only.
    let room = with.model.context() - 21;
    let prompt =
        |at: usize| (0..room.min(3 + 7 * at)).map(|token| ((token * 7 + at) % 90) as u32).collect::<Vec<u32>>();
    for count in [1, 2, 3, 5, 8] {
        let [mut ours, mut theirs] = [(); 2]
            .map(|()| (0..count).map(|at| Sequence { tokens: prompt(at), ..Sequence::default() }).collect::<Vec<_>>());
        let mut dues: Vec<usize> = ours.iter().map(|sequence| sequence.tokens.len()).collect();
        for turn in 0..20 {
            let got = told_step(&mut with, &mut ours, &dues, turn);
            let want = told_step(&mut without, &mut theirs, &dues, turn);
            let what = format!("{what}, {count} sequences, turn {turn}");
            if is_exact(gpu, format) {
                assert!(bits(&got) == bits(&want), "{what}: {got:?} {want:?}");
            } else {
                let near = |of: &Logits| of.likeliest().iter().map(|found| found.logit).collect::<Vec<_>>();
                assert_near(&near(&got), &near(&want), tolerance(format).1, &what);
                // They go on alike whatever a last bit has decided.
                for (ours, theirs) in ours.iter_mut().zip(&theirs) {
                    ours.tokens.clone_from(&theirs.tokens);
                }
            }
            dues.fill(1);
        }
        (with.next, without.next) = (256, 256);
    }
}

#[test]
fn a_recorded_step_tells_what_the_same_step_does_op_by_op() {
    let Some(gpu) = gpu() else { return };
    for name in names() {
        let fixture = Fixture::open(&name);
        let all = ["llama-biases", "qwen3", "mistral-window"].contains(&name.as_str());
        for format in FORMATS.into_iter().take(if all { 3 } else { 1 }) {
            let what = format!("{name} in {}", format.as_str());
            assert_recorded_steps_are_the_same(&fixture.version(), gpu, format, &what);
        }
    }
    // Heads that tensor cores have kernels for.
    for (width, heads) in [(64, (4, 2)), (128, (3, 1))] {
        let version = with_heads_of(width, heads);
        for format in FORMATS {
            let what = format!("{heads:?} heads of {width} in {}", format.as_str());
            assert_recorded_steps_are_the_same(&version.version(), gpu, format, &what);
        }
    }
}

#[test]
fn recorded_steps_attend_to_long_sequences_as_others_do() {
    let Some(gpu) = gpu() else { return };
    let tokens: Vec<u32> = (0..900).map(|at| (at * 7 + at / 13) % 96).collect();
    for (name, width) in [("llama", None), ("mistral-window", None), ("llama", Some(64))] {
        let fixture = match width {
            Some(width) => with_heads_of(width, (4, 2)),
            None => Fixture::changed(name, |config| config["max_position_embeddings"] = json!(2048)),
        };
        for format in [DType::F32, DType::BF16] {
            let mut all = Vec::new();
            for records in [true, false] {
                let (mut model, _memory) = loaded(&fixture.version(), gpu, format);
                assert!(model.warm(records, &Progress::new()).failed.is_none());
                let mut running = Running::with_its_own(model);
                let mut sequences: Vec<Sequence> =
                    [255, 256, 700, 30].map(|length| running.start(&tokens[..length])).into_iter().collect();
                for sequence in &mut sequences {
                    let due = sequence.tokens.len() - 1;
                    running.step(&mut [(sequence, due, Wants::Nothing)]);
                }
                all.push((0..4).map(|turn| told_step(&mut running, &mut sequences, &[1; 4], turn)).collect::<Vec<_>>());
            }
            for (got, want) in all[0].iter().zip(&all[1]) {
                let what = format!("{name}, {width:?}, {}", format.as_str());
                let near = |of: &Logits| of.likeliest().iter().map(|found| found.logit).collect::<Vec<_>>();
                assert_near(&near(got), &near(want), tolerance(format).1, &what);
                assert!(!is_exact(gpu, format) || bits(got) == bits(want), "{what}");
            }
        }
    }
}

/// Begins a step of the likeliest token of each, after one on its way or by tokens that are known.
fn begin(running: &mut Running, sequences: &mut [Sequence], after: Option<&mut Begun>) -> Option<Begun> {
    let mut due: Vec<_> = sequences.iter_mut().map(|sequence| (sequence, 1, Wants::Likeliest)).collect();
    let step = running.input(&mut due);
    running.model.begin(&step, after, &mut running.kv).unwrap()
}

/// Sequences after their prompts, each with the token that is likeliest then.
fn prompted(running: &mut Running, count: usize) -> Vec<Sequence> {
    let mut sequences: Vec<Sequence> = (0..count)
        .map(|at| running.start(&(0..3 + 6 * at).map(|token| ((token * 7 + at) % 90) as u32).collect::<Vec<_>>()))
        .collect();
    for sequence in &mut sequences {
        let due = sequence.tokens.len();
        let logits = running.logits(&mut [(&mut *sequence, due, Wants::Likeliest)]);
        sequence.tokens.push(logits.likeliest()[0].token);
    }
    sequences
}

#[test]
fn a_step_goes_on_with_what_the_one_before_tells_before_anybody_has_read_it() {
    let Some(gpu) = gpu() else { return };
    const STEPS: usize = 20;
    for name in ["llama-biases", "qwen3", "mistral-window"] {
        let fixture = Fixture::open(name);
        for format in [DType::F32, DType::BF16] {
            let (mut model, _recorded) = loaded(&fixture.version(), gpu, format);
            assert!(model.warm(true, &Progress::new()).failed.is_none());
            let mut running = Running::with_its_own(model);
            assert!(running.model.begins());
            for count in [1, 3, 5] {
                // Waited for one by one, and not: the same recorded steps.
                let mut texts = Vec::new();
                for ahead in [false, true] {
                    let mut sequences = prompted(&mut running, count);
                    let (mut told, mut on_its_way) = (Vec::new(), None);
                    for _ in 0..STEPS {
                        let mut before: Option<Begun> = on_its_way.take();
                        on_its_way = begin(&mut running, &mut sequences, before.as_mut());
                        assert!(on_its_way.is_some());
                        if !ahead {
                            before = on_its_way.take();
                        }
                        let Some(before) = before else { continue };
                        let found = before.wait().unwrap();
                        for (sequence, found) in sequences.iter_mut().zip(&found) {
                            sequence.tokens.push(found.token);
                        }
                        told.push(found);
                    }
                    told.extend(on_its_way.map(|last| last.wait().unwrap()));
                    texts.push(told);
                    running.next = 256;
                }
                let what = format!("{name} in {}, {count} sequences", format.as_str());
                assert!(texts[0].len() == STEPS && texts[0].iter().flatten().all(|found| found.sound), "{what}");
                assert!(texts[0].iter().all(|found| found.len() == count) && texts[0] == texts[1], "{what}: {texts:?}");
            }
        }
    }
}

#[test]
fn a_step_is_begun_only_where_all_that_it_uses_is_its_own_or_that_of_the_one_before() {
    let Some(gpu) = gpu() else { return };
    let (mut model, _memory) = loaded(&Fixture::open("qwen3").version(), gpu, DType::F32);
    assert!(model.warm(true, &Progress::new()).failed.is_none());
    let mut running = Running::with_its_own(model);
    let mut sequences = prompted(&mut running, 3);
    let mut first = begin(&mut running, &mut sequences, None).unwrap();
    // Memory is the first one's, and it is of other sequences.
    let (others, rest) = sequences.split_at_mut(2);
    let done = |sequences: &mut [Sequence]| sequences.iter_mut().for_each(|sequence| sequence.done -= 1);
    assert!(begin(&mut running, others, None).is_none());
    done(others);
    assert!(begin(&mut running, others, Some(&mut first)).is_none());
    done(others);
    assert!(begin(&mut running, rest, None).is_none());
    done(rest);
    let mut second = begin(&mut running, &mut sequences, Some(&mut first)).unwrap();
    done(&mut sequences);
    // It is followed once only.
    assert!(begin(&mut running, &mut sequences, Some(&mut first)).is_none());
    done(&mut sequences);
    let third = begin(&mut running, &mut sequences, Some(&mut second)).unwrap();
    assert_eq!(first.wait().unwrap().len(), 3);
    // What nobody waits for is let go of, and its memory with it.
    drop((second, third));
    for sequence in &mut sequences {
        sequence.done = sequence.tokens.len() - 1;
    }
    assert!(begin(&mut running, &mut sequences, None).is_some());
}
