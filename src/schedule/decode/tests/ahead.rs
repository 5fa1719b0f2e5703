//! Plans that are made before the last one is applied.

use super::*;

/// What a step sampled: of each of these the same token.
fn all(keys: &[u64]) -> Vec<Sampled> {
    keys.iter().map(|key| Sampled { key: *key, token: 7, stop: false }).collect()
}

#[test]
fn a_step_is_planned_before_the_last_one_is_applied_while_all_go_on() {
    let mut scheduler = DecodeScheduler::new(limits());
    scheduler.push(prompted(1, tokens(1, 3), 4)).unwrap();
    scheduler.push(prompted(2, tokens(2, 5), 9)).unwrap();
    assert!(scheduler.plan_ahead().is_none(), "nothing is out");
    let prompts = scheduler.plan().unwrap();
    assert!(scheduler.plan_ahead().is_none(), "prompts are no steps of one token");
    scheduler.apply(prompts, &all(&[1, 2]));
    let first = scheduler.plan().unwrap();
    assert_eq!(runs(&first), [(1, 3, 1), (2, 5, 1)]);
    let second = scheduler.plan_ahead().unwrap();
    // The block that is lacking is there.
    assert_eq!((runs(&second), second.runs[0].blocks.len()), (vec![(1, 4, 1), (2, 6, 1)], 2));
    assert!(scheduler.plan_ahead().is_none() && scheduler.plan().is_none());
    assert_eq!(scheduler.apply(first, &all(&[1, 2])).len(), 2);
    let third = scheduler.plan_ahead().unwrap();
    assert_eq!(scheduler.apply(second, &all(&[1, 2])).len(), 2);
    // 1 ends by the step that is out.
    assert!(scheduler.plan_ahead().is_none());
    let finished = Effect::Finished { key: 1, finish: Finish::Length };
    assert!(scheduler.apply(third, &all(&[1, 2])).contains(&finished));
    assert_eq!(runs(&scheduler.plan().unwrap()), [(2, 8, 1)]);
}

#[test]
fn whoever_ended_in_a_step_keeps_its_blocks_until_the_one_ahead_is_over_and_is_told_nothing_more() {
    for cancelled in [false, true] {
        let mut world = world(limits());
        world.push(prompted(1, tokens(1, 4), 40)).unwrap();
        world.push(prompted(2, tokens(2, 4), 40)).unwrap();
        steps(&mut world, 1);
        let scheduler = &mut world.scheduler;
        let (first, second) = (scheduler.plan().unwrap(), scheduler.plan_ahead().unwrap());
        let used = scheduler.figures().blocks_used;
        let mut sampled = all(&[1, 2]);
        sampled[0].stop = !cancelled;
        if cancelled {
            scheduler.cancel(1);
        }
        scheduler.apply(first, &sampled);
        scheduler.push(prompted(3, tokens(3, 4), 4)).unwrap();
        assert_eq!((scheduler.figures().blocks_used, scheduler.figures().running), (used, 2));
        assert!(scheduler.plan_ahead().is_none(), "somebody is over");
        assert_eq!(scheduler.apply(second, &all(&[1, 2])), [Effect::Token { key: 2, token: 7 }]);
        assert_eq!((scheduler.figures().blocks_used, scheduler.figures().running), (used / 2, 1));
        // Only what was written before it ended can be found.
        assert_eq!(runs(&scheduler.plan().unwrap()), [(2, 6, 1), (3, 0, 4)]);
    }
}

#[test]
fn no_step_is_planned_ahead_where_somebody_may_be_let_in_or_blocks_run_out() {
    let mut full = DecodeScheduler::new(DecodeLimits { sequences: 1, ..limits() });
    full.push(prompted(1, tokens(1, 4), 9)).unwrap();
    let prompt = full.plan().unwrap();
    full.apply(prompt, &all(&[1]));
    full.push(prompted(2, tokens(2, 4), 9)).unwrap();
    // Nobody may be let in before 1 ends.
    let first = full.plan().unwrap();
    let second = full.plan_ahead().unwrap();
    // Who fails goes back to where it was.
    full.discard(second);
    full.discard(first);
    assert_eq!(runs(&full.plan().unwrap()), [(1, 4, 1)]);

    let mut open = DecodeScheduler::new(limits());
    open.push(prompted(1, tokens(1, 4), 9)).unwrap();
    let prompt = open.plan().unwrap();
    open.apply(prompt, &all(&[1]));
    open.plan().unwrap();
    open.push(prompted(2, tokens(2, 4), 9)).unwrap();
    assert!(open.plan_ahead().is_none());

    // Each of them needs another block, and there is one.
    let mut short = DecodeScheduler::new(DecodeLimits { blocks: 3, ..limits() });
    (1..=2).for_each(|key| short.push(prompted(key, tokens(key as u32, 3), 6)).unwrap());
    let prompts = short.plan().unwrap();
    short.apply(prompts, &all(&[1, 2]));
    let plan = short.plan().unwrap();
    assert!(plan.runs.len() == 2 && short.plan_ahead().is_none());
    assert_eq!(short.figures().blocks_free, 1);
}
