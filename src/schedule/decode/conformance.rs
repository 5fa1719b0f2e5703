//! The scheduler against a plain model, whatever happens: every answer is the one that its prompt gets alone, everything that
//! always holds does, and nothing is left in the end.

use std::sync::Arc;

use proptest::prelude::*;

use super::testing::{PoorHasher, World, prompted};
use super::{DecodeLimits, Prompted, Refusal};

#[derive(Debug, Clone)]
enum Op {
    Push(Request),
    Step,
    /// A step during which a sequence is cancelled and another one comes.
    StepMeanwhile(usize, Request),
    /// A step in which nothing is sampled for one run, while the block tables are still held.
    StepUnsampled(usize),
    /// A step that breaks off, during which a sequence may be cancelled.
    Fail(Option<usize>),
    Cancel(usize),
    /// From now on a plan has so many tokens of prompts at most.
    Allow(usize),
    /// A step in which the keys of a run come out as no numbers.
    Poison(usize),
    /// Steps each of which is begun before the one before it was applied, as long as that can be, and what comes between.
    Ahead(Vec<Meanwhile>),
}

#[derive(Debug, Clone)]
enum Meanwhile {
    Nothing,
    Cancel(usize),
    Push(Request),
    /// Nothing is sampled for one run.
    Unsampled(usize),
    /// All that was begun breaks off.
    Fail,
}

fn meanwhile() -> impl Strategy<Value = Meanwhile> {
    prop_oneof![
        12 => Just(Meanwhile::Nothing),
        1 => any::<usize>().prop_map(Meanwhile::Cancel),
        1 => request().prop_map(Meanwhile::Push),
        1 => any::<usize>().prop_map(Meanwhile::Unsampled),
        1 => Just(Meanwhile::Fail),
    ]
}

#[derive(Debug, Clone)]
struct Request {
    family: u32,
    prompt: usize,
    max_new: usize,
    priority: i32,
    urgent: bool,
    scored: bool,
}

fn request() -> impl Strategy<Value = Request> {
    let kinds = (-1i32..2, prop::bool::weighted(0.1), prop::bool::weighted(0.2));
    (0u32..3, 1usize..30, 0usize..20, kinds).prop_map(|(family, prompt, max_new, (priority, urgent, scored))| Request {
        family,
        prompt,
        max_new,
        priority,
        urgent,
        scored,
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => request().prop_map(Op::Push),
        8 => Just(Op::Step),
        1 => (any::<usize>(), request()).prop_map(|(which, request)| Op::StepMeanwhile(which, request)),
        1 => any::<usize>().prop_map(Op::StepUnsampled),
        1 => prop::option::of(any::<usize>()).prop_map(Op::Fail),
        1 => any::<usize>().prop_map(Op::Cancel),
        1 => prop_oneof![0usize..6, Just(usize::MAX)].prop_map(Op::Allow),
        2 => prop::collection::vec(meanwhile(), 1..12).prop_map(Op::Ahead),
    ]
}

fn op_or_poison() -> impl Strategy<Value = Op> {
    prop_oneof![12 => op(), 1 => any::<usize>().prop_map(Op::Poison)]
}

fn limits() -> impl Strategy<Value = DecodeLimits> {
    (1usize..5, 2usize..30, 1usize..20, 1usize..7, 10usize..60).prop_map(
        |(block_tokens, blocks, step_tokens, sequences, context)| DecodeLimits {
            block_tokens,
            blocks,
            step_tokens,
            sequences,
            context,
        },
    )
}

/// Prompts of a family begin alike; families part after a while.
fn prompt(family: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|at| if at < 6 { at % 2 } else { (at * (family + 1) + family) % 3 }).collect()
}

type Tested = World<PoorHasher>;

fn push(world: &mut Tested, now: u64, request: &Request) -> Result<(), TestCaseError> {
    let Request { family, prompt: len, max_new, priority, urgent, scored } = *request;
    let DecodeLimits { block_tokens, blocks, context, .. } = world.limits;
    let needed = (len + max_new.saturating_sub(1)).div_ceil(block_tokens);
    let expected = match (len + max_new > context, needed > blocks) {
        (true, _) => Err(Refusal::Context { prompt: len, max_new, context }),
        (_, true) => Err(Refusal::Blocks { prompt: len, max_new, needed, blocks }),
        _ => Ok(()),
    };
    let request = prompted(now, prompt(family, len), max_new);
    prop_assert_eq!(world.push(Prompted { priority, urgent, scored, ..request }), expected);
    Ok(())
}

fn cancel(world: &mut Tested, which: usize) {
    let alive = world.asked.iter().filter(|(_, asked)| asked.finish.is_none() && !asked.cancelled);
    let alive: Vec<u64> = alive.map(|(key, _)| *key).collect();
    if !alive.is_empty() {
        assert!(world.cancel(alive[which % alive.len()]));
    }
}

fn perform(world: &mut Tested, now: u64, op: &Op) -> Result<(), TestCaseError> {
    match op {
        Op::Push(request) => push(world, now, request)?,
        Op::Step => {
            world.step();
        }
        Op::StepMeanwhile(which, request) => {
            if let Some(plan) = world.plan() {
                prop_assert_eq!(world.scheduler.plan(), None, "one plan is out at a time");
                cancel(world, *which);
                let sampled = world.compute(&plan);
                push(world, now, request)?;
                cancel(world, which / 2);
                world.apply(plan, &sampled);
            }
        }
        Op::StepUnsampled(which) => {
            if let Some(plan) = world.plan() {
                let held: Vec<_> = plan.runs.iter().map(|run| Arc::clone(&run.blocks)).collect();
                let before: Vec<Vec<u32>> = held.iter().map(|table| table.to_vec()).collect();
                let mut sampled = world.compute(&plan);
                if !sampled.is_empty() {
                    sampled.remove(which % sampled.len());
                }
                sampled.reverse();
                world.apply(plan, &sampled);
                prop_assert!(held.iter().map(|table| table.to_vec()).eq(before), "a table changed under its reader");
            }
        }
        Op::Fail(which) => {
            if let Some(which) = which {
                cancel(world, *which);
            }
            world.fail();
        }
        Op::Cancel(which) => cancel(world, *which),
        Op::Allow(prompts) => world.allowed = *prompts,
        Op::Poison(which) => world.poison(*which),
        Op::Ahead(between) => ahead(world, now, between)?,
    }
    Ok(())
}

fn ahead(world: &mut Tested, now: u64, between: &[Meanwhile]) -> Result<(), TestCaseError> {
    let Some(mut plan) = world.plan() else { return Ok(()) };
    // Of a step that was begun ahead.
    let mut computed = None;
    for meanwhile in between {
        let next = world.plan_ahead(&plan);
        let mut sampled = computed.take().unwrap_or_else(|| world.compute(&plan));
        let next = next.map(|next| {
            let sampled = world.compute_ahead(&next, &sampled);
            (next, sampled)
        });
        match meanwhile {
            Meanwhile::Nothing => {}
            Meanwhile::Cancel(which) => cancel(world, *which),
            Meanwhile::Push(request) => {
                if !world.asked.contains_key(&now) {
                    push(world, now, request)?;
                }
            }
            Meanwhile::Unsampled(which) => {
                if !sampled.is_empty() {
                    sampled.remove(which % sampled.len());
                }
            }
            Meanwhile::Fail => {
                world.fail_both(plan, next.map(|(next, _)| next));
                return Ok(());
            }
        }
        world.apply(plan, &sampled);
        let Some((next, sampled)) = next else { return Ok(()) };
        (plan, computed) = (next, Some(sampled));
    }
    let sampled = computed.unwrap_or_else(|| world.compute(&plan));
    world.apply(plan, &sampled);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn every_sequence_gets_the_tokens_that_it_gets_alone(
        limits in limits(), ops in prop::collection::vec(op(), 1..120),
    ) {
        let mut world = Tested::new(limits);
        for (now, op) in ops.iter().enumerate() {
            perform(&mut world, now as u64, op)?;
        }
        world.run_to_the_end();
        world.check_the_end();
    }

    /// Keys that are no numbers fail those who read them, and no others; whatever of them was found once is not found again. So a
    /// prompt fails once at most for what others left behind.
    #[test]
    fn what_failed_is_found_by_nobody(
        limits in limits(), ops in prop::collection::vec(op_or_poison(), 1..120),
    ) {
        let mut world = Tested::new(limits);
        for (now, op) in ops.iter().enumerate() {
            perform(&mut world, now as u64, op)?;
        }
        world.run_to_the_end();
        let mut now = ops.len() as u64;
        let most = limits.context.min(limits.blocks * limits.block_tokens);
        for family in 0..3 {
            // Longer than any before it, where there is room: it goes on from all that can be found.
            let prompt = prompt(family, most - 1);
            let mut ask = || {
                now += 1;
                world.push(prompted(now, prompt.clone(), 1)).unwrap();
                world.run_to_the_end();
                world.condemned.contains(&now)
            };
            let failed = ask();
            prop_assert!(!(failed && ask()), "it fails again and again");
        }
        // Those that did not fail wrote what they write alone.
        world.check_the_end();
    }

    /// Somebody of the least priority, and a flood that never ends of others that are urgent or matter more. Each step computes
    /// for the oldest that runs, and whoever waits longest is overtaken by three at most: so there is a bound, however long
    /// the flood.
    #[test]
    fn nobody_starves_in_a_flood_of_urgent_ones(
        block_tokens in 1usize..4, blocks in 6usize..20, step_tokens in 1usize..12, sequences in 1usize..5,
        before in prop::collection::vec(request(), 0..4), flood in prop::collection::vec(request(), 1..8),
    ) {
        let context = (blocks * block_tokens).min(16);
        let limits = DecodeLimits { block_tokens, blocks, step_tokens, sequences, context };
        let mut world = Tested::new(limits);
        let fit = |request: &Request| Request {
            prompt: 1 + request.prompt % (context / 2),
            max_new: request.max_new % (context / 2),
            ..request.clone()
        };
        for (now, request) in before.iter().enumerate() {
            push(&mut world, now as u64, &Request { urgent: true, ..fit(request) })?;
        }
        let mut now = before.len() as u64;
        let last = prompted(now, prompt(0, context / 2), context / 2);
        prop_assert_eq!(world.push(Prompted { priority: i32::MIN, ..last }), Ok(()));
        let (last, mut steps) = (now, 0);
        // Each of those before it, and itself: three others and itself have to find room, for each of which all that run may
        // have to end; and then it runs.
        let bound = (before.len() + 1) * (4 * sequences * context + context);
        while world.asked[&last].finish.is_none() {
            while world.scheduler.figures().waiting < 3 {
                now += 1;
                let request = fit(&flood[now as usize % flood.len()]);
                let priority = request.priority.abs();
                push(&mut world, now, &Request { urgent: now.is_multiple_of(2), priority, ..request })?;
            }
            world.step();
            steps += 1;
            prop_assert!(steps <= bound, "not served after {steps} steps");
        }
        world.run_to_the_end();
        world.check_the_end();
    }
}
