//! What the tests share: a model that can be foretold, on a cache that shows whatever is wrong in it, and a world in which
//! the scheduler drives it while everything that always holds is looked at after each call.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};

use super::{DecodeLimits, DecodeScheduler, Effect, Finish, Plan, Prompted, Refusal, Sampled, Wants};

/// Few hashes for many chains.
#[derive(Default)]
pub(super) struct Poor(u8);

pub(super) type PoorHasher = BuildHasherDefault<Poor>;

impl Hasher for Poor {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |sum, byte| sum.wrapping_add(*byte));
    }

    fn finish(&self) -> u64 {
        u64::from(self.0 % 4)
    }
}

/// The model: what it writes after these tokens, and whether that is the end.
pub(super) fn next(tokens: &[u32]) -> (u32, bool) {
    let hash = tokens.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, token| {
        (hash ^ u64::from(*token)).wrapping_mul(0x0100_0000_01b3).rotate_left(23)
    });
    ((hash % 3) as u32, (hash >> 32).is_multiple_of(31))
}

/// What it writes after a prompt when nobody else is there.
pub(super) fn alone(prompt: &[u32], max_new: usize) -> (Vec<u32>, Finish) {
    let mut tokens = prompt.to_vec();
    while tokens.len() < prompt.len() + max_new {
        match next(&tokens) {
            (_, true) => return (tokens[prompt.len()..].to_vec(), Finish::Stop),
            (token, false) => tokens.push(token),
        }
    }
    (tokens[prompt.len()..].to_vec(), Finish::Length)
}

#[derive(Debug)]
pub(super) struct Asked {
    pub(super) prompt: Vec<u32>,
    pub(super) max_new: usize,
    pub(super) scored: bool,
    pub(super) written: Vec<u32>,
    /// How often each row of the prompt came.
    pub(super) rows: Vec<usize>,
    pub(super) finish: Option<Finish>,
    pub(super) cancelled: bool,
}

/// A request that is like any other.
pub(super) fn prompted(key: u64, tokens: Vec<u32>, max_new: usize) -> Prompted {
    Prompted { key, tokens, max_new, priority: 0, arrived: key, urgent: false, scored: false }
}

pub(super) struct World<S> {
    pub(super) limits: DecodeLimits,
    pub(super) scheduler: DecodeScheduler<S>,
    /// The cache: by block and place, the token whose key lies there. Nothing was written where it is `EMPTY`.
    cells: Vec<u32>,
    pub(super) asked: BTreeMap<u64, Asked>,
    /// Tokens that were computed by steps that counted.
    pub(super) computed: usize,
    pub(super) preempted: Vec<u64>,
    /// Runs were struck so that their keys are no numbers.
    pub(super) poisoned: bool,
    /// Tokens of prompts that a plan may have.
    pub(super) allowed: usize,
    /// Sequences that failed for it.
    pub(super) condemned: Vec<u64>,
    /// Those whose row of a plan ahead, by its number, came out as no numbers.
    failed_ahead: Vec<(u64, u64)>,
}

const EMPTY: u32 = u32::MAX;
/// What a failed step leaves where it should have written, and what is computed from that.
const BROKEN: u32 = u32::MAX - 1;

impl<S: BuildHasher + Default> World<S> {
    pub(super) fn new(limits: DecodeLimits) -> Self {
        World {
            limits,
            scheduler: DecodeScheduler::with_hasher(limits, S::default()),
            cells: vec![EMPTY; limits.blocks * limits.block_tokens],
            asked: BTreeMap::new(),
            computed: 0,
            preempted: Vec::new(),
            poisoned: false,
            allowed: usize::MAX,
            condemned: Vec::new(),
            failed_ahead: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, prompted: Prompted) -> Result<(), Refusal> {
        let asked = Asked {
            prompt: prompted.tokens.clone(),
            max_new: prompted.max_new,
            scored: prompted.scored,
            written: Vec::new(),
            rows: vec![0; prompted.tokens.len()],
            finish: None,
            cancelled: false,
        };
        let key = prompted.key;
        self.scheduler.push(prompted)?;
        self.asked.insert(key, asked);
        self.audit();
        Ok(())
    }

    pub(super) fn cancel(&mut self, key: u64) -> bool {
        let was_there = self.scheduler.cancel(key);
        if was_there {
            self.asked.get_mut(&key).unwrap().cancelled = true;
        }
        if self.scheduler.out.is_none() {
            self.audit();
        }
        was_there
    }

    pub(super) fn plan(&mut self) -> Option<Plan> {
        let busy = !self.scheduler.is_idle();
        let plan = self.scheduler.plan_within(self.allowed);
        assert_eq!(plan.is_some(), busy, "there is a plan exactly while there is work");
        self.audit();
        if let Some(plan) = &plan {
            self.check(plan);
        }
        plan
    }

    /// The plan after the one that is out, where there may be one.
    pub(super) fn plan_ahead(&mut self, plan: &Plan) -> Option<Plan> {
        let next = self.scheduler.plan_ahead();
        self.audit();
        if let Some(next) = &next {
            assert_eq!((self.scheduler.plan(), self.scheduler.plan_ahead()), (None, None), "two are out at a time");
            let places = |plan: &Plan| plan.runs.iter().map(|run| (run.key, run.from)).collect::<Vec<_>>();
            let after: Vec<_> = places(plan).into_iter().map(|(key, from)| (key, from + 1)).collect();
            assert_eq!((places(next), next.tokens), (after, plan.tokens));
            self.check_writes(next);
        }
        next
    }

    pub(super) fn condemn(&mut self, key: u64) {
        let table = self.scheduler.running.iter().find(|sequence| sequence.key == key).unwrap().table().to_vec();
        assert!(self.scheduler.condemn(key));
        self.asked.get_mut(&key).unwrap().cancelled = true;
        self.condemned.push(key);
        for block in table.into_iter().filter(|block| self.scheduler.blocks.is_findable(*block)) {
            let cells = &self.cells[block as usize * self.limits.block_tokens..][..self.limits.block_tokens];
            assert!(!cells.contains(&BROKEN), "what {key} failed of is findable");
        }
    }

    /// A step in which the keys of one run come out as no numbers. Nobody notices before a token is to be chosen.
    pub(super) fn poison(&mut self, which: usize) {
        let Some(plan) = self.plan() else { return };
        let run = &plan.runs[which % plan.runs.len()];
        self.poisoned = true;
        let sampled = self.compute_struck(&plan, Some(run.key));
        self.apply(plan, &sampled);
    }

    /// A whole step; false when there was nothing to do.
    pub(super) fn step(&mut self) -> bool {
        let Some(plan) = self.plan() else { return false };
        let sampled = self.compute(&plan);
        self.apply(plan, &sampled);
        true
    }

    /// A step that breaks off after it wrote.
    pub(super) fn fail(&mut self) {
        let Some(plan) = self.plan() else { return };
        self.fail_both(plan, None);
    }

    pub(super) fn run_to_the_end(&mut self) {
        for _ in 0..20_000 {
            if !self.step() {
                return;
            }
        }
        panic!("it does not come to an end");
    }

    /// The model's pass: it writes the keys of its tokens, and reads all that stand before them.
    pub(super) fn compute(&mut self, plan: &Plan) -> Vec<Sampled> {
        self.compute_struck(plan, None)
    }

    /// The pass of a plan ahead, right after that of the plan before: what was sampled there is known to the device only.
    pub(super) fn compute_ahead(&mut self, plan: &Plan, before: &[Sampled]) -> Vec<Sampled> {
        let mut sampled = Vec::new();
        for run in &plan.runs {
            let told = before.iter().find(|sampled| sampled.key == run.key);
            let token = told.map_or(0, |told| told.token);
            let seen = |world: &Self, end: usize| -> Vec<u32> {
                (0..end).map(|at| world.cells[world.cell(&run.blocks, at)]).collect()
            };
            let broken = seen(self, run.from).contains(&BROKEN);
            let cell = self.cell(&run.blocks, run.from);
            self.cells[cell] = if broken { BROKEN } else { token };
            // Of whoever has just ended anything may come.
            if !broken && told.is_none_or(|told| !told.stop) {
                let own = [self.so_far(run.key), vec![token]].concat();
                assert_eq!(seen(self, run.from + 1), own, "{} reads what is not its own", run.key);
            }
            if broken {
                self.failed_ahead.push((plan.number, run.key));
                continue;
            }
            let (token, stop) = next(&seen(self, run.from + 1));
            sampled.push(Sampled { key: run.key, token, stop });
        }
        sampled
    }

    /// Two steps break off after they wrote.
    pub(super) fn fail_both(&mut self, plan: Plan, ahead: Option<Plan>) {
        for run in plan.runs.iter().chain(ahead.iter().flat_map(|ahead| &ahead.runs)) {
            for at in run.from..run.from + run.tokens.len() {
                let cell = self.cell(&run.blocks, at);
                self.cells[cell] = BROKEN;
            }
        }
        ahead.into_iter().for_each(|ahead| self.scheduler.discard(ahead));
        self.scheduler.discard(plan);
        self.audit();
    }

    fn compute_struck(&mut self, plan: &Plan, struck: Option<u64>) -> Vec<Sampled> {
        for run in &plan.runs {
            // What is no number makes everything so that is computed from it.
            let before = (0..run.from).any(|at| self.cells[self.cell(&run.blocks, at)] == BROKEN);
            let broken = before || struck == Some(run.key);
            for (at, token) in run.tokens.iter().enumerate() {
                let cell = self.cell(&run.blocks, run.from + at);
                self.cells[cell] = if broken { BROKEN } else { *token };
            }
        }
        let mut sampled = Vec::new();
        for run in &plan.runs {
            let end = run.from + run.tokens.len();
            let seen: Vec<u32> = (0..end).map(|at| self.cells[self.cell(&run.blocks, at)]).collect();
            let own = self.so_far(run.key);
            let broken = seen.contains(&BROKEN);
            assert!(!broken || self.poisoned);
            let is_own = |(seen, own): (&u32, &u32)| seen == own || *seen == BROKEN;
            assert!(seen.iter().zip(&own).all(is_own), "{} reads what is not its own", run.key);
            match (run.sample, broken) {
                (false, _) => {}
                (true, true) => self.condemn(run.key),
                (true, false) => {
                    let (token, stop) = next(&seen);
                    sampled.push(Sampled { key: run.key, token, stop });
                }
            }
        }
        sampled
    }

    pub(super) fn apply(&mut self, plan: Plan, sampled: &[Sampled]) -> Vec<Effect> {
        self.computed += plan.tokens;
        // What a plan ahead came to is known only now.
        for (number, key) in std::mem::take(&mut self.failed_ahead) {
            match number == plan.number {
                true if !self.asked[&key].cancelled && self.asked[&key].finish.is_none() => self.condemn(key),
                true => {}
                false => self.failed_ahead.push((number, key)),
            }
        }
        for run in plan.runs.iter().filter(|run| run.wants == Wants::Every) {
            let rows = &mut self.asked.get_mut(&run.key).unwrap().rows;
            rows[run.from..run.from + run.tokens.len()].iter_mut().for_each(|count| *count += 1);
        }
        let effects = self.scheduler.apply(plan, sampled);
        for effect in &effects {
            let (Effect::Token { key, .. } | Effect::Finished { key, .. } | Effect::Preempted { key }) = *effect;
            let asked = self.asked.get_mut(&key).unwrap();
            assert_eq!(asked.finish, None, "{key} is told of after its end");
            match *effect {
                Effect::Token { token, .. } => asked.written.push(token),
                Effect::Finished { finish, .. } => asked.finish = Some(finish),
                Effect::Preempted { key } => self.preempted.push(key),
            }
            let told = !matches!(effect, Effect::Preempted { .. });
            assert!(!(told && asked.cancelled), "{key} is told of after it was cancelled");
        }
        self.audit();
        effects
    }

    /// When all is over: every answer is the one that its prompt gets alone, and nothing is left.
    pub(super) fn check_the_end(&self) {
        assert!(self.scheduler.is_idle());
        let figures = self.scheduler.figures();
        assert_eq!((figures.running, figures.waiting, figures.blocks_used), (0, 0, 0));
        assert_eq!(figures.blocks_free + figures.blocks_cached, self.limits.blocks);
        for (key, asked) in self.asked.iter().filter(|(_, asked)| !asked.cancelled) {
            let (written, finish) = alone(&asked.prompt, asked.max_new);
            assert_eq!((&asked.written, asked.finish), (&written, Some(finish)), "{key}");
            let rows = usize::from(asked.scored);
            assert!(asked.rows.iter().all(|count| *count == rows), "{key}: rows {:?}", asked.rows);
        }
    }

    /// The tokens of a sequence as its client knows them.
    fn so_far(&self, key: u64) -> Vec<u32> {
        let asked = &self.asked[&key];
        [asked.prompt.as_slice(), &asked.written].concat()
    }

    fn cell(&self, table: &[u32], at: usize) -> usize {
        table[at / self.limits.block_tokens] as usize * self.limits.block_tokens + at % self.limits.block_tokens
    }

    /// What holds for every plan.
    fn check(&self, plan: &Plan) {
        let running = &self.scheduler.running;
        assert_eq!(plan.tokens, plan.runs.iter().map(|run| run.tokens.len()).sum::<usize>());
        assert!((1..=self.limits.step_tokens).contains(&plan.tokens), "{} tokens", plan.tokens);
        assert!(plan.runs.len() <= self.limits.sequences);
        let writers = running.iter().filter(|sequence| sequence.planned() > 0 && sequence.is_writing()).count();
        // One whose prompt was found up to its last token is let in as a prompt.
        assert!(
            plan.tokens - plan.prompts <= writers,
            "{} tokens are of {writers} writers",
            plan.tokens - plan.prompts
        );
        assert!(plan.prompts <= self.allowed.max(1), "{} tokens of prompts, {} allowed", plan.prompts, self.allowed);
        let keys: HashSet<u64> = plan.runs.iter().map(|run| run.key).collect();
        assert_eq!(keys.len(), plan.runs.len(), "each runs once");
        for (at, sequence) in running.iter().enumerate().filter(|(at, s)| *at == 0 || s.is_writing()) {
            assert!(keys.contains(&sequence.key), "{} at place {at} has to wait", sequence.key);
        }
        for run in &plan.runs {
            let end = run.from + run.tokens.len();
            assert_eq!(run.tokens, self.so_far(run.key)[run.from..end], "{}", run.key);
        }
        self.check_writes(plan);
    }

    /// Nobody else reads what a plan writes.
    fn check_writes(&self, plan: &Plan) {
        let mut held = BTreeMap::new();
        for block in self.scheduler.running.iter().flat_map(|sequence| sequence.table()) {
            *held.entry(*block).or_insert(0) += 1;
        }
        for run in &plan.runs {
            for at in run.from..run.from + run.tokens.len() {
                let block = run.blocks[at / self.limits.block_tokens];
                assert_eq!(held[&block], 1, "{} writes where others read", run.key);
                assert!(!self.scheduler.blocks.is_findable(block), "{} writes into what is findable", run.key);
            }
        }
    }

    /// What holds between any two calls.
    pub(super) fn audit(&self) {
        let running = &self.scheduler.running;
        self.scheduler.blocks.audit(running.iter().map(|sequence| sequence.table()));
        assert!(running.len() <= self.limits.sequences.min(self.limits.step_tokens));
        let oldest = running.iter().map(|sequence| sequence.rank.age).min();
        assert_eq!(running.first().map(|sequence| sequence.rank.age), oldest, "the oldest is first");
        assert!(running.iter().skip(1).is_sorted_by_key(|sequence| sequence.rank), "then goes rank");
        let figures = self.scheduler.figures();
        assert_eq!(figures.blocks_used + figures.blocks_cached + figures.blocks_free, self.limits.blocks);
        assert_eq!(figures.preemptions as usize, self.preempted.len() + self.scheduler.told.len());
        let alive = self.asked.values().filter(|asked| asked.finish.is_none() && !asked.cancelled).count();
        let over = running.iter().filter(|sequence| sequence.over).count();
        assert_eq!(figures.running + figures.waiting, alive + over);
    }
}
