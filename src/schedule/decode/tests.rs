//! Each rule by itself.

use std::collections::hash_map::RandomState;
use std::sync::Arc;

use super::testing::{World, alone, prompted};
use super::*;

mod ahead;

fn limits() -> DecodeLimits {
    DecodeLimits { block_tokens: 4, blocks: 64, step_tokens: 16, sequences: 8, context: 128 }
}

fn world(limits: DecodeLimits) -> World<RandomState> {
    World::new(limits)
}

/// Tokens that begin no chain twice.
fn tokens(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|at| seed * 1_000 + at).collect()
}

/// Keys, positions and lengths of a plan's runs.
fn runs(plan: &Plan) -> Vec<(u64, usize, usize)> {
    plan.runs.iter().map(|run| (run.key, run.from, run.tokens.len())).collect()
}

/// Steps, with answers that never end of themselves; what each step ran.
fn steps(world: &mut World<RandomState>, count: usize) -> Vec<Vec<(u64, usize, usize)>> {
    (0..count)
        .map_while(|_| {
            let plan = world.plan()?;
            let runs = runs(&plan);
            let sampled = world.compute(&plan).into_iter().map(|sampled| Sampled { stop: false, ..sampled });
            world.apply(plan, &sampled.collect::<Vec<_>>());
            Some(runs)
        })
        .collect()
}

#[test]
fn prompts_are_computed_in_chunks_beside_those_that_write() {
    let mut world = world(limits());
    world.push(prompted(1, tokens(1, 3), 50)).unwrap();
    assert_eq!(steps(&mut world, 1), [[(1, 0, 3)]]);
    world.push(prompted(2, tokens(2, 40), 50)).unwrap();
    world.push(prompted(3, tokens(3, 4), 50)).unwrap();
    let expected = [
        vec![(1, 3, 1), (2, 0, 15)],
        vec![(1, 4, 1), (2, 15, 15)],
        vec![(1, 5, 1), (2, 30, 10), (3, 0, 4)],
        vec![(1, 6, 1), (2, 40, 1), (3, 4, 1)],
    ];
    assert_eq!(steps(&mut world, 4), expected);
}

#[test]
fn only_the_end_of_what_there_is_wants_a_row() {
    let mut world = world(limits());
    world.push(prompted(1, tokens(1, 20), 2)).unwrap();
    let plan = world.plan().unwrap();
    assert_eq!((plan.tokens, plan.runs[0].wants, plan.runs[0].sample), (16, Wants::Nothing, false));
    let sampled = world.compute(&plan);
    assert!(sampled.is_empty() && world.apply(plan, &[]).is_empty());
    let plan = world.plan().unwrap();
    assert_eq!((plan.tokens, plan.runs[0].wants, plan.runs[0].sample), (4, Wants::Last, true));
}

#[test]
fn no_more_than_so_many_sequences_run_at_once() {
    let mut two = world(DecodeLimits { sequences: 2, ..limits() });
    (1..=3).for_each(|key| two.push(prompted(key, tokens(key as u32, 2), 3)).unwrap());
    assert_eq!(steps(&mut two, 1), [[(1, 0, 2), (2, 0, 2)]]);
    assert_eq!((two.scheduler.figures().running, two.scheduler.figures().waiting), (2, 1));
    // Fewer tokens in a step than sequences: each that runs gets its token in every step all the same.
    let mut one = world(DecodeLimits { step_tokens: 2, ..limits() });
    (1..=3).for_each(|key| one.push(prompted(key, tokens(key as u32, 1), 3)).unwrap());
    assert_eq!(steps(&mut one, 2), [[(1, 0, 1), (2, 0, 1)], [(1, 1, 1), (2, 1, 1)]]);
}

#[test]
fn a_prompt_that_was_computed_once_is_found_again() {
    let mut world = world(limits());
    world.push(prompted(1, tokens(1, 10), 0)).unwrap();
    world.run_to_the_end();
    let longer = [tokens(1, 10), tokens(2, 6)].concat();
    world.push(prompted(2, longer, 1)).unwrap();
    assert_eq!(steps(&mut world, 1), [[(2, 8, 8)]]);
    let figures = world.scheduler.figures();
    assert_eq!((figures.prefix_asked, figures.prefix_hits), (26, 8));
}

#[test]
fn a_prompt_that_is_found_whole_still_computes_its_last_token() {
    let mut world = world(limits());
    world.push(prompted(1, tokens(1, 8), 0)).unwrap();
    world.run_to_the_end();
    world.push(prompted(2, tokens(1, 8), 2)).unwrap();
    world.push(prompted(3, tokens(1, 9), 2)).unwrap();
    // In a block of its own: the one that is findable is not written.
    assert_eq!(steps(&mut world, 1), [[(3, 8, 1), (2, 4, 4)]]);
    world.run_to_the_end();
}

#[test]
fn what_is_being_computed_for_one_is_not_computed_for_others_beside_it() {
    let mut eight = world(limits());
    (1..=8).for_each(|key| eight.push(prompted(key, tokens(1, 10), 4)).unwrap());
    eight.push(prompted(9, tokens(2, 3), 4)).unwrap();
    let ran = steps(&mut eight, 2);
    assert_eq!(ran[0], [(1, 0, 10)]);
    let rest: Vec<_> = (2..=8).map(|key| (key, 8, 2)).collect();
    assert_eq!(ran[1], [vec![(1, 10, 1)], rest].concat());
    // A scored prompt needs all of its rows: it does not wait for what it cannot use.
    let mut scored = world(limits());
    scored.push(prompted(1, tokens(1, 8), 4)).unwrap();
    scored.push(Prompted { scored: true, ..prompted(2, tokens(1, 8), 0) }).unwrap();
    assert_eq!(steps(&mut scored, 1), [[(1, 0, 8), (2, 0, 8)]]);
}

#[test]
fn sequences_that_write_the_same_come_to_share_their_blocks() {
    let mut world = world(limits());
    world.push(prompted(1, tokens(1, 4), 12)).unwrap();
    world.push(Prompted { scored: true, ..prompted(2, tokens(1, 4), 12) }).unwrap();
    (0..9).for_each(|_| assert!(world.step()));
    // 12 tokens of each are computed.
    assert_eq!(world.scheduler.running[0].table()[..3], world.scheduler.running[1].table()[..3]);
    world.run_to_the_end();
    world.check_the_end();
}

#[test]
fn when_blocks_run_out_the_last_in_rank_gives_up_its_own() {
    let mut world = world(DecodeLimits { blocks: 6, ..limits() });
    world.push(Prompted { priority: 1, ..prompted(1, tokens(1, 3), 20) }).unwrap();
    world.push(prompted(2, tokens(2, 3), 12)).unwrap();
    world.push(Prompted { priority: 1, ..prompted(3, tokens(3, 3), 12) }).unwrap();
    steps(&mut world, 6);
    assert_eq!((world.scheduler.figures().blocks_used, world.preempted.len()), (6, 0));
    // Each needs a third block: 2 matters less than 3, which came later.
    let ran = steps(&mut world, 1);
    assert_eq!((ran[0].as_slice(), world.preempted.as_slice()), (&[(1, 8, 1), (3, 8, 1)][..], &[2][..]));
    let figures = world.scheduler.figures();
    assert_eq!((figures.running, figures.waiting, figures.preemptions), (2, 1, 1));
}

#[test]
fn whoever_was_preempted_goes_on_where_it_was() {
    let mut world = world(DecodeLimits { blocks: 8, context: 40, ..limits() });
    let long = (0..).filter(|seed| alone(&tokens(*seed, 3), 20).1 == Finish::Length);
    for seed in long.take(3) {
        world.push(prompted(seed.into(), tokens(seed, 3), 20)).unwrap();
    }
    world.run_to_the_end();
    assert!(!world.preempted.is_empty());
    world.check_the_end();
}

#[test]
fn the_oldest_is_never_preempted_however_little_it_matters() {
    let mut world = world(DecodeLimits { blocks: 8, ..limits() });
    world.push(Prompted { priority: -9, ..prompted(1, tokens(1, 3), 28) }).unwrap();
    for key in 2..=5 {
        world.push(Prompted { urgent: true, ..prompted(key, tokens(key as u32, 3), 16) }).unwrap();
    }
    steps(&mut world, 200);
    assert!(!world.preempted.is_empty() && !world.preempted.contains(&1), "{:?}", world.preempted);
    assert!(world.scheduler.is_idle());
}

#[test]
fn nobody_is_admitted_into_blocks_that_those_who_run_will_need() {
    // Three blocks are left beside the first prompt, and the second needs three.
    for (max_new, expected) in [(5, vec![(1, 0, 4)]), (1, vec![(1, 0, 4), (2, 0, 12)])] {
        let mut world = world(DecodeLimits { blocks: 4, ..limits() });
        world.push(prompted(1, tokens(1, 4), max_new)).unwrap();
        world.push(prompted(2, tokens(2, 12), 1)).unwrap();
        assert_eq!(steps(&mut world, 1), [expected]);
        if max_new > 1 {
            assert_eq!(steps(&mut world, 5)[3..], [[(1, 7, 1)], [(2, 0, 12)]]);
        }
    }
}

#[test]
fn a_plan_that_preempts_admits_nobody() {
    let mut world = world(DecodeLimits { blocks: 8, step_tokens: 32, ..limits() });
    world.push(prompted(1, tokens(1, 4), 28)).unwrap();
    world.push(prompted(2, tokens(2, 16), 16)).unwrap();
    steps(&mut world, 5);
    world.push(Prompted { urgent: true, ..prompted(3, tokens(3, 8), 4) }).unwrap();
    // 1 takes the last block and 2 gives up all of its own; the next plan sees who gets them.
    assert_eq!(steps(&mut world, 2), [vec![(1, 8, 1)], vec![(1, 9, 1), (3, 0, 8)]]);
    assert_eq!(world.preempted, [2]);
}

#[test]
fn what_can_never_fit_is_refused_with_the_numbers() {
    let mut world = world(DecodeLimits { blocks: 8, context: 40, ..limits() });
    assert_eq!(world.push(prompted(1, vec![], 4)), Err(Refusal::Empty));
    let context = Refusal::Context { prompt: 30, max_new: 11, context: 40 };
    assert_eq!(world.push(prompted(1, tokens(1, 30), 11)), Err(context));
    assert_eq!(context.to_string(), "30 tokens of prompt and 11 to write are more than the context of 40");
    assert!(matches!(world.push(prompted(1, tokens(1, 3), usize::MAX)), Err(Refusal::Context { .. })));
    let blocks = Refusal::Blocks { prompt: 30, max_new: 4, needed: 9, blocks: 8 };
    assert_eq!(world.push(prompted(1, tokens(1, 30), 4)), Err(blocks));
    // The keys of the last token are never needed.
    assert_eq!(world.push(prompted(1, tokens(1, 30), 3)), Ok(()));
    assert_eq!(world.push(prompted(1, tokens(2, 3), 3)), Err(Refusal::Known { key: 1 }));
    world.step();
    assert_eq!(world.push(prompted(1, tokens(2, 3), 3)), Err(Refusal::Known { key: 1 }));
    world.run_to_the_end();
    world.check_the_end();
}

#[test]
fn it_ends_by_a_stop_token_which_is_not_told_or_by_length() {
    let mut scheduler = DecodeScheduler::new(limits());
    scheduler.push(prompted(1, tokens(1, 2), 2)).unwrap();
    scheduler.push(prompted(2, tokens(2, 2), 2)).unwrap();
    scheduler.push(prompted(3, tokens(3, 2), 0)).unwrap();
    let plan = scheduler.plan().unwrap();
    assert_eq!((plan.runs[2].wants, plan.runs[2].sample), (Wants::Nothing, false));
    let sampled = |key, stop| Sampled { key, token: 7, stop };
    let effects = scheduler.apply(plan, &[sampled(1, false), sampled(2, true)]);
    let token = Effect::Token { key: 1, token: 7 };
    let finished = |key, finish| Effect::Finished { key, finish };
    assert_eq!(effects, [token, finished(2, Finish::Stop), finished(3, Finish::Length)]);
    let plan = scheduler.plan().unwrap();
    assert_eq!(scheduler.apply(plan, &[sampled(1, false)]), [token, finished(1, Finish::Length)]);
    assert_eq!((scheduler.is_idle(), scheduler.plan()), (true, None));
}

#[test]
fn whoever_is_cancelled_leaves_at_once_or_when_the_step_is_over() {
    let mut world = world(DecodeLimits { sequences: 2, ..limits() });
    (1..=3).for_each(|key| world.push(prompted(key, tokens(key as u32, 4), 9)).unwrap());
    world.step();
    assert!(world.cancel(3) && !world.cancel(3) && !world.cancel(77));
    assert!(world.cancel(1));
    assert_eq!((world.scheduler.figures().running, world.scheduler.figures().waiting), (1, 0));
    let plan = world.plan().unwrap();
    let sampled = world.compute(&plan);
    assert!(world.cancel(2));
    // The step may still read and write its blocks.
    assert_eq!(world.scheduler.figures().blocks_used, 2);
    assert_eq!(world.apply(plan, &sampled), []);
    assert_eq!((world.scheduler.is_idle(), world.scheduler.figures().blocks_used), (true, 0));
}

#[test]
fn what_a_cancelled_step_computed_is_findable_and_what_a_failed_one_did_is_not() {
    for fails in [true, false] {
        let mut world = world(limits());
        world.push(prompted(1, tokens(1, 8), 4)).unwrap();
        if fails {
            world.fail();
        } else {
            let plan = world.plan().unwrap();
            let sampled = world.compute(&plan);
            world.cancel(1);
            world.apply(plan, &sampled);
        }
        world.cancel(1);
        world.push(prompted(2, tokens(1, 9), 4)).unwrap();
        assert_eq!(steps(&mut world, 1), [[(2, if fails { 0 } else { 8 }, if fails { 9 } else { 1 })]]);
    }
}

#[test]
fn what_failed_is_computed_anew_by_the_next_one() {
    let mut world = world(limits());
    let prompt = tokens(1, 20);
    world.push(prompted(1, prompt.clone(), 4)).unwrap();
    // The first chunk is findable at once, whatever is in it; a step later no token can be chosen.
    world.poison(0);
    world.push(prompted(2, prompt.clone(), 4)).unwrap();
    steps(&mut world, 1);
    assert_eq!((&world.condemned[..], world.scheduler.figures().running), (&[1, 2][..], 0));
    world.push(prompted(3, prompt.clone(), 4)).unwrap();
    assert_eq!(steps(&mut world, 1), [[(3, 0, 16)]]);
    world.run_to_the_end();
    // What others vouch for stays.
    world.push(prompted(4, [prompt.clone(), tokens(2, 8)].concat(), 4)).unwrap();
    world.poison(0);
    assert_eq!(world.condemned, [1, 2, 4]);
    world.push(prompted(5, [prompt, tokens(2, 8)].concat(), 4)).unwrap();
    assert_eq!(steps(&mut world, 1), [[(5, 20, 8)]]);
    world.run_to_the_end();
    world.check_the_end();
}

#[test]
fn whoever_holds_what_was_forgotten_goes_on_and_publishes_no_more() {
    let mut world = world(limits());
    world.push(prompted(1, tokens(1, 9), 12)).unwrap();
    steps(&mut world, 1);
    world.push(prompted(2, tokens(1, 10), 12)).unwrap();
    steps(&mut world, 1);
    world.condemn(1);
    world.audit();
    steps(&mut world, 11);
    assert_eq!(world.scheduler.figures().running, 0);
    world.push(prompted(3, tokens(1, 12), 1)).unwrap();
    assert_eq!(steps(&mut world, 1), [[(3, 0, 12)]]);
}

#[test]
fn what_was_left_behind_before_anybody_noticed_fails_one_and_no_more() {
    let mut world = world(limits());
    world.push(prompted(1, tokens(1, 20), 4)).unwrap();
    world.poison(0);
    world.cancel(1);
    for (key, from, fails) in [(2, 16, true), (3, 0, false)] {
        world.push(prompted(key, tokens(1, 18), 1)).unwrap();
        assert_eq!(steps(&mut world, 1)[0][0].1, from);
        world.run_to_the_end();
        assert_eq!(world.condemned.contains(&key), fails);
    }
}

#[test]
fn a_failed_step_is_done_again() {
    let mut world = world(limits());
    world.push(prompted(1, tokens(1, 20), 4)).unwrap();
    world.step();
    let plan = world.plan().unwrap();
    assert_eq!(runs(&plan), [(1, 16, 4)]);
    world.scheduler.discard(plan);
    world.fail();
    let again = world.plan().unwrap();
    assert_eq!(runs(&again), [(1, 16, 4)]);
    let sampled = world.compute(&again);
    world.apply(again, &sampled);
    world.run_to_the_end();
    world.check_the_end();
}

#[test]
fn each_row_of_a_scored_prompt_comes_once_and_no_prefix_is_skipped() {
    let mut world = world(limits());
    world.push(prompted(1, tokens(1, 20), 2)).unwrap();
    world.run_to_the_end();
    world.push(Prompted { scored: true, ..prompted(2, tokens(1, 20), 2) }).unwrap();
    let plan = world.plan().unwrap();
    assert_eq!((runs(&plan), plan.runs[0].wants, plan.runs[0].sample), (vec![(2, 0, 16)], Wants::Every, false));
    let sampled = world.compute(&plan);
    world.apply(plan, &sampled);
    let plan = world.plan().unwrap();
    assert_eq!((runs(&plan), plan.runs[0].wants, plan.runs[0].sample), (vec![(2, 16, 4)], Wants::Every, true));
    let sampled = world.compute(&plan);
    world.apply(plan, &sampled);
    world.run_to_the_end();
    world.check_the_end();
}

#[test]
fn rows_that_came_before_a_preemption_do_not_come_again() {
    let mut world = world(DecodeLimits { blocks: 6, step_tokens: 2, ..limits() });
    world.push(prompted(1, tokens(1, 3), 20)).unwrap();
    steps(&mut world, 2);
    world.push(Prompted { scored: true, ..prompted(2, tokens(2, 12), 0) }).unwrap();
    // Beside each token of 1 one row of 2 comes, until 1 needs a block that 2 holds.
    let ran = steps(&mut world, 10);
    assert_eq!((&ran[8][..], &ran[9][..]), (&[(1, 11, 1), (2, 8, 1)][..], &[(1, 12, 1)][..]));
    assert_eq!((&world.preempted[..], world.asked[&2].rows[..].iter().sum::<usize>()), (&[2][..], 9));
    world.run_to_the_end();
    assert_eq!(world.asked[&2].rows, [1; 12]);
}

#[test]
fn a_run_that_nothing_was_sampled_for_computes_its_last_token_again() {
    let mut world = world(limits());
    world.push(prompted(1, tokens(1, 8), 3)).unwrap();
    let plan = world.plan().unwrap();
    world.compute(&plan);
    assert_eq!(world.apply(plan, &[]), []);
    // The last block is written again, so it is not findable yet: `plan` looks at that.
    let plan = world.plan().unwrap();
    assert_eq!(runs(&plan), [(1, 7, 1)]);
    let sampled = world.compute(&plan);
    world.apply(plan, &sampled);
    world.run_to_the_end();
    world.check_the_end();
}

#[test]
fn block_tables_are_shared_with_the_plan_and_not_copied() {
    let mut scheduler = DecodeScheduler::new(limits());
    scheduler.push(prompted(1, tokens(1, 2), 9)).unwrap();
    let mut tables = Vec::new();
    for _ in 0..6 {
        let plan = scheduler.plan().unwrap();
        tables.push(Arc::as_ptr(&plan.runs[0].blocks));
        scheduler.apply(plan, &[Sampled { key: 1, token: 5, stop: false }]);
    }
    assert_eq!(scheduler.running[0].table().len(), 2);
    tables.dedup();
    assert_eq!(tables.len(), 1);
}

#[test]
fn the_oldest_that_waits_or_runs_is_told() {
    let mut world = world(DecodeLimits { sequences: 1, ..limits() });
    assert_eq!(world.scheduler.oldest(), None);
    world.push(prompted(5, tokens(1, 2), 2)).unwrap();
    world.push(prompted(6, tokens(1, 2), 2)).unwrap();
    assert_eq!(world.scheduler.oldest(), Some(5));
    world.step();
    world.cancel(5);
    assert_eq!(world.scheduler.oldest(), Some(6));
    world.push(Prompted { urgent: true, ..prompted(7, tokens(1, 2), 2) }).unwrap();
    assert_eq!(world.scheduler.oldest(), Some(6));
}

#[test]
fn the_model_of_the_tests_writes_answers_of_both_kinds() {
    let ends: Vec<Finish> = (0..40).map(|seed| alone(&tokens(seed, 3), 16).1).collect();
    assert!(ends.contains(&Finish::Stop) && ends.contains(&Finish::Length));
}
