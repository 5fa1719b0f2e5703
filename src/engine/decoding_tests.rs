use std::collections::HashSet;

use candle_core::DType;

use super::*;
use crate::model::{KvSpec, Warmth};
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
}

fn greedy() -> SamplingOptions {
    SamplingOptions { temperature: 0.0, ..SamplingOptions::default() }
}

struct Bench {
    model: Counting,
    cache: KvCache,
    decoding: Decoding,
    now: Nanos,
}

impl Bench {
    fn new() -> Bench {
        let model = Counting::default();
        let cache = KvCache::new(&model.kv(), 32, &crate::ops::Device::Cpu).unwrap();
        let batch = BatchLimits { max_tokens: 64, max_items: 8, max_wait: 0 };
        let decoding = Decoding::new("tiny@a", (&model, &cache), batch, (Arc::default(), Arc::default()));
        Bench { model, cache, decoding, now: 0 }
    }

    fn ask(&mut self, tokens: Vec<u32>, written: usize, max_new: usize) -> mpsc::UnboundedReceiver<Written> {
        self.ask_with((tokens, written, max_new), greedy())
    }

    fn ask_with(
        &mut self,
        (tokens, written, max_new): (Vec<u32>, usize, usize),
        sampling: SamplingOptions,
    ) -> mpsc::UnboundedReceiver<Written> {
        let (reader, written_to) = mpsc::unbounded_channel();
        let prompt = Prompt { tokens, written, max_new, sampling, ends: Arc::new([]), priority: 0 };
        self.decoding.submit(Commission { prompt, arrived: self.now, urgent: false, reader });
        written_to
    }

    /// Steps until nobody waits, each beginning a second after the one before.
    fn run(&mut self) {
        loop {
            self.now += 1_000_000_000;
            let (Some(plan), _) = self.decoding.plan() else { return };
            let step = |model: &mut dyn Decoder, input: &StepInput, cache: &mut KvCache| model.step(input, cache);
            let spread = |work: &mut (dyn FnMut() + Send)| work();
            self.decoding.step((&mut self.model, &mut self.cache), plan, self.now, (&step, &spread));
        }
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
    let biased = SamplingOptions { logit_bias: vec![(30, 100.0)], ..greedy() };
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
