use std::collections::HashSet;

use candle_core::DType;

use super::*;
use crate::faults::At;
use crate::model::{Begun, KvSpec, Wants, Warmth};
use crate::ops::{Device, Tensor};
use crate::weights::Progress;

const VOCABULARY: usize = 32;

/// Writes the number after the last one, and remembers which positions of which blocks hold no numbers: whatever reads one of
/// them answers with none.
#[derive(Default)]
struct Counting {
    /// What is computed for this token is broken, while it is set.
    breaks: Option<u32>,
    broken: HashSet<(u32, usize)>,
    /// Tokens that steps computed.
    computed: usize,
    /// Rows that were wanted whole.
    whole: usize,
    /// Steps are begun without waiting.
    begins: bool,
    /// Steps that were begun, and those of them that went on from one on its way.
    begun: (usize, usize),
    /// Of steps that are begun, this one fails when it is waited for.
    loses: Option<usize>,
    /// How many sequences were in it.
    lost: Option<usize>,
}

impl Decoder for Counting {
    fn kv(&self) -> KvSpec {
        KvSpec { layers: 1, heads: 1, head_dim: 8, dtype: DType::F32, block_tokens: KvSpec::BLOCK_TOKENS }
    }

    fn context(&self) -> usize {
        256
    }

    fn vocabulary(&self) -> usize {
        VOCABULARY
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn blocks_to_score(&self) -> usize {
        0
    }

    fn warm(&mut self, _: &mut KvCache, _: (bool, &Progress)) -> Warmth {
        Warmth::default()
    }

    fn step(&mut self, step: &StepInput, _: &mut KvCache) -> Result<Logits> {
        let mut values = Vec::new();
        for sequence in &step.sequences {
            let place = |at: usize| (sequence.blocks[at / KvSpec::BLOCK_TOKENS], at % KvSpec::BLOCK_TOKENS);
            let mut is_broken = (0..sequence.from).any(|at| self.broken.contains(&place(at)));
            for (at, token) in (sequence.from..).zip(&sequence.tokens) {
                is_broken |= self.breaks == Some(*token);
                match is_broken {
                    true => self.broken.insert(place(at)),
                    false => self.broken.remove(&place(at)),
                };
            }
            self.computed += sequence.tokens.len();
            if sequence.wants != Wants::Nothing {
                let next = (sequence.tokens[sequence.tokens.len() - 1] + 1) as usize % VOCABULARY;
                let logit = |token| if is_broken { f32::NAN } else { f32::from(u8::from(token == next)) };
                values.extend((0..VOCABULARY).map(logit));
            }
        }
        let rows = Tensor::from_vec(values, (step.rows(), VOCABULARY), &Device::Cpu).unwrap();
        self.whole += step.sequences.iter().filter(|sequence| sequence.wants == Wants::Last).count();
        Logits::of(&rows, step)
    }

    fn begins(&self) -> bool {
        self.begins
    }

    fn begin(&mut self, step: &StepInput, after: Option<&mut Begun>, cache: &mut KvCache) -> Result<Option<Begun>> {
        let mut step = step.clone();
        self.begun.0 += 1;
        if let Some(Begun::Here(before)) = after {
            self.begun.1 += 1;
            // Of a step that is lost, anything is gone on from.
            let told = before
                .as_ref()
                .map_or(vec![0; step.sequences.len()], |told| told.iter().map(|told| told.token).collect());
            assert_eq!(told.len(), step.sequences.len());
            for (sequence, token) in step.sequences.iter_mut().zip(told) {
                assert_eq!(sequence.tokens, [0], "nobody knows it yet");
                sequence.tokens = vec![token];
            }
        }
        let told = self.step(&step, cache)?.likeliest().to_vec();
        let is_lost = self.loses == Some(self.begun.0);
        if is_lost {
            self.lost = Some(told.len());
        }
        Ok(Some(Begun::Here(if is_lost { Err(candle_core::Error::msg("lost")) } else { Ok(told) })))
    }
}

fn greedy() -> SamplingOptions {
    SamplingOptions { temperature: 0.0, ..SamplingOptions::default() }
}

struct Bench {
    model: Counting,
    cache: KvCache,
    decoding: Decoding,
    now: Nanos,
    /// Tokens that end a text.
    ends: Arc<[u32]>,
}

impl Bench {
    fn new() -> Bench {
        let model = Counting::default();
        let cache = KvCache::new(&model.kv(), 32, &crate::ops::Device::Cpu).unwrap();
        let batch = BatchLimits { max_tokens: 64, max_items: 8, max_wait: 0 };
        let decoding = Decoding::new("tiny@a", (&model, &cache), batch, (Arc::default(), Arc::default()));
        Bench { model, cache, decoding, now: 0, ends: Arc::new([]) }
    }

    fn ask(&mut self, tokens: Vec<u32>, written: usize, max_new: usize) -> mpsc::UnboundedReceiver<Written> {
        self.ask_with((tokens, written, max_new), greedy())
    }

    fn ask_with(
        &mut self,
        asked: (Vec<u32>, usize, usize),
        sampling: SamplingOptions,
    ) -> mpsc::UnboundedReceiver<Written> {
        self.ask_as(asked, sampling, false)
    }

    fn ask_as(
        &mut self,
        (tokens, written, max_new): (Vec<u32>, usize, usize),
        sampling: SamplingOptions,
        urgent: bool,
    ) -> mpsc::UnboundedReceiver<Written> {
        let (reader, written_to) = mpsc::unbounded_channel();
        let ends = Arc::clone(&self.ends);
        let prompt = Prompt { tokens, written, max_new, sampling, ends, priority: 0 };
        self.decoding.submit(Commission { prompt, arrived: self.now, urgent, reader });
        written_to
    }

    /// Steps until nobody waits, each beginning a second after the one before.
    fn run(&mut self) {
        while self.turn() {}
    }

    /// One step, where there is one.
    fn turn(&mut self) -> bool {
        self.now += 1_000_000_000;
        let (Some(due), _) = self.decoding.plan(None) else { return false };
        let step = |model: &mut dyn Decoder, input: &StepInput, cache: &mut KvCache| model.step(input, cache);
        let spread = |work: &mut (dyn FnMut() + Send)| work();
        let how = How { step: &step, spread: &spread, goes_ahead: true };
        self.decoding.step((&mut self.model, &mut self.cache), due, self.now, how);
        true
    }

    /// Asks for one text and runs until it is there: its tokens, or why it failed.
    fn write(&mut self, tokens: Vec<u32>, max_new: usize) -> Result<Vec<u32>> {
        let reader = self.ask(tokens, 0, max_new);
        self.run();
        read(reader)
    }

    fn metered(&self) -> super::super::Metered {
        self.decoding.meters.read()
    }
}

fn read(mut reader: mpsc::UnboundedReceiver<Written>) -> Result<Vec<u32>> {
    let mut tokens = Vec::new();
    loop {
        match reader.try_recv().expect("it ends with a word") {
            Written::Token(choice) => tokens.push(choice.token),
            Written::Finished(_) => return Ok(tokens),
            Written::Failed(error) => return Err(error),
        }
    }
}

fn prompt(last: u32) -> Vec<u32> {
    (0..100).map(|at| at % 7).chain([last]).collect()
}

/// A text that another generation failed is begun before everybody's; the two thousand tokens after that are not.
#[test]
fn an_urgent_text_goes_before_other_lanes_once_and_takes_turns_from_then_on() {
    let mut bench = Bench::new();
    let _text = bench.ask(prompt(1), 0, 20);
    bench.now = 7;
    bench.turn();
    bench.decoding.stepped_at(bench.now);
    assert_eq!(bench.decoding.turn(), Some((0, bench.now)));
    let _urgent = bench.ask_as((prompt(2), 0, 20), greedy(), true);
    assert_eq!(bench.decoding.turn(), Some((0, 0)));
    for _ in 0..3 {
        assert!(bench.turn());
        bench.decoding.stepped_at(bench.now);
    }
    assert_eq!(bench.decoding.turn(), Some((0, bench.now)));
}

#[test]
fn keys_that_are_no_numbers_are_not_handed_to_the_next_prompt() {
    let mut bench = Bench::new();
    bench.model.breaks = Some(5);
    assert!(matches!(bench.write(prompt(1), 3), Err(Error::NonFinite { .. })));
    // Whatever it was is over: the same prompt is computed anew, and found by the next.
    bench.model.breaks = None;
    let before = bench.model.computed;
    assert_eq!(bench.write(prompt(1), 3).unwrap(), [2, 3, 4]);
    assert_eq!(bench.model.computed - before, 101 + 2);
    assert_eq!(bench.write(prompt(9), 3).unwrap(), [10, 11, 12]);
    assert_eq!(bench.model.computed - before, 103 + 5 + 2);
    assert_eq!(bench.metered().scheduler.prefix_hits, 96);
}

#[test]
fn one_that_cannot_be_chosen_for_fails_and_its_neighbours_do_not() {
    let mut bench = Bench::new();
    bench.model.breaks = Some(20);
    let readers = [prompt(20), prompt(1)].map(|prompt| bench.ask(prompt, 0, 2));
    bench.run();
    let [struck, well] = readers.map(read);
    assert!(matches!(struck, Err(Error::NonFinite { .. })));
    assert_eq!(well.unwrap(), [2, 3]);
    // The prefix that both had is sound, and is kept.
    bench.model.breaks = None;
    bench.write(prompt(3), 1).unwrap();
    assert!(bench.metered().scheduler.prefix_hits >= 96);
    let scheduler = bench.metered().scheduler;
    assert_eq!((scheduler.running, scheduler.waiting, scheduler.blocks_used), (0, 0, 0));
}

#[test]
fn whole_rows_are_asked_for_only_where_something_is_drawn_from_them() {
    let mut bench = Bench::new();
    bench.write(prompt(1), 3).unwrap();
    assert_eq!(bench.model.whole, 0);
    // Beside each other, each of three tokens: of the greedy one no row comes.
    let drawn = SamplingOptions { temperature: 0.01, seed: 7, ..SamplingOptions::default() };
    let told = SamplingOptions { logprobs: Some(2), ..greedy() };
    let biased = SamplingOptions { logit_bias: [(30, 100.0)].into(), ..greedy() };
    let readers = [greedy(), drawn, told, biased].map(|sampling| bench.ask_with((prompt(1), 0, 3), sampling));
    bench.run();
    assert_eq!(bench.model.whole, 9);
    let [greedy, drawn, told, biased] = readers.map(|reader| read(reader).unwrap());
    assert_eq!((&greedy, &drawn, &told), (&vec![2, 3, 4], &vec![2, 3, 4], &vec![2, 3, 4]));
    assert_eq!(biased, [30, 30, 30]);
}

#[test]
fn faults_on_purpose_strike_rows_that_do_not_come() {
    let fault = |kind| crate::faults::Fault { version: "tiny@a".into(), kind, at: At::Serving, rate: 1.0, delay: None };
    let faults = Faults::of(&[fault(crate::faults::Kind::NonFinite)], "tiny@a");
    let mut bench = Bench::new();
    bench.decoding.faults = Arc::new(faults);
    assert!(matches!(bench.write(prompt(1), 3), Err(Error::NonFinite { .. })));
    assert_eq!(bench.model.whole, 0);
}

#[test]
fn meters_tell_tokens_and_the_times_between_them() {
    let mut bench = Bench::new();
    let readers = [bench.ask(prompt(1), 0, 4), bench.ask(prompt(2)[..50].to_vec(), 0, 4)];
    let metered = bench.metered();
    assert_eq!((metered.scheduler.waiting, metered.scheduler.blocks_free, metered.prompt_tokens), (2, 32, 0));
    bench.run();
    readers.into_iter().for_each(|reader| assert_eq!(read(reader).unwrap().len(), 4));
    let metered = bench.metered();
    assert_eq!((metered.prompt_tokens, metered.written_tokens), (151, 8));
    assert_eq!((metered.first.count(), metered.between.count()), (2, 6));
    // A step a second: the prompts took two.
    assert!((5.9..6.5).contains(&metered.between.seconds), "{}", metered.between.seconds);
    assert!((4.0..7.0).contains(&metered.first.seconds), "{}", metered.first.seconds);
    // What comes from another generation in mid-sentence has had its first token.
    let reader = bench.ask(prompt(1), 1, 2);
    bench.run();
    read(reader).unwrap();
    let metered = bench.metered();
    assert_eq!((metered.first.count(), metered.between.count(), metered.prompt_tokens), (2, 8, 251));
}

/// What somebody is told: tokens, and at the end perhaps why it failed.
type Told = Vec<Result<u32, String>>;

/// What is told of some prompts, each of which comes before a step and may be left by its reader after another.
fn told(prompts: &[(u32, usize, usize, Option<usize>)], model: Counting) -> (Vec<Told>, Bench) {
    let mut bench = Bench::new();
    (bench.model, bench.ends) = (model, Arc::new([30]));
    let mut readers: Vec<_> = prompts.iter().map(|_| None).collect();
    let mut told = vec![Told::new(); prompts.len()];
    for turn in 0..400 {
        for (at, (last, max_new, comes, leaves)) in prompts.iter().enumerate() {
            if *comes == turn {
                readers[at] = Some(bench.ask(prompt(*last), 0, *max_new));
            } else if leaves.is_some_and(|leaves| comes + leaves == turn) {
                readers[at] = None;
            }
        }
        bench.turn();
        for (reader, told) in readers.iter_mut().zip(&mut told) {
            while let Some(Ok(written)) = reader.as_mut().map(mpsc::UnboundedReceiver::try_recv) {
                match written {
                    Written::Token(choice) => told.push(Ok(choice.token)),
                    Written::Failed(error) => told.push(Err(error.to_string())),
                    Written::Finished(_) => {}
                }
            }
        }
    }
    (told, bench)
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn steps_ahead_change_nothing_of_what_anybody_is_told(
        prompts in proptest::collection::vec((1u32..29, 1usize..40, 0usize..60, proptest::option::of(1usize..30)), 1..12),
        breaks in proptest::option::of(1u32..30), loses in proptest::option::of(1usize..60),
    ) {
        let model = |begins| Counting { breaks, begins, loses, ..Counting::default() };
        let (want, _) = told(&prompts, model(false));
        let (mut got, bench) = told(&prompts, model(true));
        let mut struck = 0;
        for (((_, _, _, leaves), want), got) in prompts.iter().zip(&want).zip(&mut got) {
            // It is struck by what was lost, where it was alone in it.
            let is_struck = matches!(got.last(), Some(Err(error)) if error.contains("lost")) && bench.model.lost == Some(1);
            if is_struck {
                struck += 1;
                got.pop();
            }
            let short = want.len().min(got.len());
            proptest::prop_assert_eq!(&want[..short], &got[..short]);
            // Who comes may wait for a step that is on its way, and what was lost is done again: who leaves has read the
            // beginning of the same text. How much of it, the prompts also tell that have to be computed anew because one broke.
            let apart = want.len().abs_diff(got.len());
            let may_be = if leaves.is_none() { 0 } else if breaks.is_none() { 2 } else { usize::MAX };
            proptest::prop_assert!(is_struck || apart <= may_be, "{:?} and {:?}", want, got);
        }
        proptest::prop_assert!(struck <= 1, "{} were struck by one step", struck);
        let scheduler = bench.metered().scheduler;
        proptest::prop_assert_eq!((scheduler.running, scheduler.waiting, scheduler.blocks_used), (0, 0, 0));
        proptest::prop_assert!(!bench.decoding.is_on_its_way());
    }
}

#[test]
fn a_step_is_begun_before_the_last_one_is_told_and_told_of_once() {
    let mut bench = Bench::new();
    bench.model.begins = true;
    let readers = [bench.ask(prompt(1), 0, 20), bench.ask(prompt(2), 0, 20)];
    bench.run();
    let [one, two] = readers.map(|reader| read(reader).unwrap());
    assert_eq!((one, two), ((2..22).collect(), (3..23).collect()));
    // The first tokens come of the prompts, which take two steps, and the last step of each ends it.
    let (begun, ahead) = bench.model.begun;
    assert!(begun >= 18 && ahead >= begun - 3, "{begun} begun, {ahead} of them ahead");
    assert_eq!(bench.metered().written_tokens, 40);
}

#[test]
fn a_step_that_is_lost_is_done_again_with_the_one_that_went_on_from_it() {
    let mut bench = Bench::new();
    (bench.model.begins, bench.model.loses) = (true, Some(5));
    let readers = [bench.ask(prompt(1), 0, 20), bench.ask(prompt(2), 0, 20)];
    bench.run();
    let [one, two] = readers.map(|reader| read(reader).unwrap());
    assert_eq!((one, two), ((2..22).collect(), (3..23).collect()));
    // Who is alone in it is told.
    let mut bench = Bench::new();
    (bench.model.begins, bench.model.loses) = (true, Some(5));
    let error = bench.write(prompt(1), 20).unwrap_err();
    assert!(matches!(&error, Error::ForwardFailed { message, .. } if message.contains("lost")), "{error}");
}

#[test]
fn whoever_fails_in_a_step_is_told_nothing_of_the_one_ahead() {
    for breaks in [None, Some(9)] {
        let mut bench = Bench::new();
        (bench.model.begins, bench.model.breaks) = (true, breaks);
        let readers = [bench.ask(prompt(1), 0, 20), bench.ask(prompt(12), 0, 12)];
        bench.run();
        let [mut struck, well] = readers;
        let mut told = Vec::new();
        while let Ok(Written::Token(choice)) = struck.try_recv() {
            told.push(choice.token);
        }
        assert_eq!(told, (2..if breaks.is_some() { 10 } else { 22 }).collect::<Vec<_>>());
        assert_eq!(read(well).unwrap(), (13..25).collect::<Vec<_>>());
        assert_eq!(bench.metered().scheduler.blocks_used, 0);
    }
}

#[test]
fn those_who_are_cut_short_end_where_they_are_and_the_step_ahead_with_them() {
    let mut bench = Bench::new();
    bench.model.begins = true;
    let reader = bench.ask(prompt(1), 0, 100);
    (0..6).for_each(|_| assert!(bench.turn()));
    assert!(bench.decoding.is_on_its_way());
    bench.decoding.cut_short();
    assert!(bench.decoding.turn().is_some(), "it has to be waited for");
    bench.run();
    assert_eq!(read(reader).unwrap().len(), 5);
    assert_eq!((bench.decoding.is_on_its_way(), bench.metered().scheduler.blocks_used), (false, 0));
}
