use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::super::{Arena, lower_thread_priority};
use super::*;

const US: i64 = 1_000;
const MS: i64 = 1_000_000;

/// A budget of `threads`, passes of `pass` that come every `every`, and `workers` that work in pieces without end and
/// rest at most 19 times as long: the processor time that passes and workers took of `total`.
fn simulate((threads, workers): (usize, usize), (pass, every): (i64, i64), piece: i64, total: i64) -> (i64, i64) {
    const STEP: i64 = 100 * US;
    enum State {
        Works { until: i64 },
        Rests { since: i64 },
    }
    let mut usage = Usage::of(threads);
    let (mut time, mut work) = (0, 0);
    let mut states: Vec<State> = (0..workers).map(|_| State::Rests { since: 0 }).collect();
    for now in (0..total).step_by(STEP as usize) {
        let passes = Passes { now, running: now % every < pass, time };
        time += if passes.running { STEP } else { 0 };
        for state in &mut states {
            if matches!(state, State::Works { until } if now >= *until) {
                usage.worked(passes, Duration::from_nanos(piece as u64));
                *state = State::Rests { since: now };
            }
            if let State::Rests { since } = *state
                && (usage.rest(passes).is_none() || now - since >= 19 * piece)
            {
                *state = State::Works { until: now + piece };
            }
            work += if matches!(state, State::Works { .. }) { STEP } else { 0 };
        }
    }
    (time * threads as i64, work)
}

proptest! {
    #[test]
    fn no_more_is_used_than_there_is_but_for_what_a_rollout_needs_to_end(
        threads in 1usize..5, workers in 1usize..4, pass in 0i64..20, gap in 1i64..20, piece in 1i64..8,
    ) {
        let total = 20_000 * MS;
        let (passes, work) = simulate((threads, workers), (pass * MS, (pass + gap) * MS), piece * MS, total);
        let room = total * threads as i64;
        // A twentieth of a thread each, and what may be saved up.
        let most = room + total * workers as i64 / 19 + SAVED * threads as i64;
        prop_assert!(passes + work <= most, "{passes} and {work} of {room}");
        prop_assert!(work >= total * workers as i64 / 21, "a rollout must come to its end: {work} of {total}");
    }
}

#[test]
fn work_that_has_the_budget_to_itself_takes_all_of_it_and_not_more() {
    let total = 10_000 * MS;
    // One worker, however short or long its pieces are, never rests.
    for piece in [MS / 5, 8 * MS] {
        assert_eq!(simulate((1, 1), (0, MS), piece, total), (0, total));
    }
    let (_, work) = simulate((1, 3), (0, MS), MS, total);
    assert!((total * 9 / 10..total + total / 50).contains(&work), "three that take turns: {work} of {total}");
}

fn spin(time: Duration) {
    let began = thread_processor_time().unwrap();
    while thread_processor_time().unwrap() - began < time {
        std::hint::spin_loop();
    }
}

#[test]
fn a_thread_beside_passes_leaves_them_the_budget() {
    let processors = Arc::new(Processors::on(1, true));
    let over = AtomicBool::new(false);
    let began = Instant::now();
    let (passes, work) = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            processors.join(19);
            while !over.load(Ordering::Relaxed) {
                spin(Duration::from_micros(300));
                give_way();
            }
            (thread_processor_time().unwrap(), rested())
        });
        // Three quarters of the time.
        while began.elapsed() < Duration::from_millis(600) {
            let pass = processors.pass();
            spin(Duration::from_millis(3));
            drop(pass);
            std::thread::sleep(Duration::from_millis(1));
        }
        over.store(true, Ordering::Relaxed);
        let (work, rested) = worker.join().unwrap();
        assert!(!rested.is_zero());
        (thread_processor_time().unwrap(), work)
    });
    let used = (passes + work).as_secs_f64() / began.elapsed().as_secs_f64();
    assert!(used < 1.15, "{used} of one processor: {passes:?} and {work:?}");
    assert!(work > Duration::from_millis(5), "{work:?}");
}

#[test]
fn without_a_bound_and_on_threads_that_did_not_join_nobody_rests() {
    give_way();
    assert_eq!(rested(), Duration::ZERO);
    let processors = Processors::all();
    let _pass = processors.pass();
    processors.join(19);
    spin(PIECE * 2);
    give_way();
    assert_eq!(rested(), Duration::ZERO);
}

#[test]
#[cfg(target_os = "linux")]
fn a_budget_is_kept_where_the_machine_has_more() {
    let machine = online_processors().unwrap();
    assert!(Processors::of(machine).bound.is_none() && Processors::of(machine + 1).bound.is_none());
    assert_eq!(Processors::of(1).bound.is_some(), machine > 1);
}

#[test]
fn threads_that_share_a_threads_work_give_way_as_it_does() {
    let rests = || with_worker(|worker| worker.rests);
    let joined_by = |processors: Arc<Processors>| {
        std::thread::spawn(move || {
            processors.join(7);
            let join = company();
            std::thread::scope(|scope| {
                let shares = scope.spawn(|| {
                    join();
                    rests()
                });
                shares.join().unwrap()
            })
        })
    };
    assert_eq!(joined_by(Arc::new(Processors::on(1, true))).join().unwrap(), Some(7));
    // Where there is nothing to keep, nobody does.
    assert_eq!(joined_by(Arc::new(Processors::on(1, false))).join().unwrap(), None);
}

#[test]
fn threads_that_share_a_quiet_threads_work_allocate_apart_from_live_traffic_as_it_does() {
    use super::super::arena::of_this_thread;
    let quiet = std::thread::spawn(|| {
        lower_thread_priority();
        let (own, join) = (of_this_thread(), company());
        // While it fills an arena that is somebody's, those who help it do not.
        let filled = Arena::acquire(0).unwrap();
        let shares = filled.enter(|| {
            std::thread::scope(|scope| {
                let shares = scope.spawn(|| {
                    join();
                    of_this_thread()
                });
                shares.join().unwrap()
            })
        });
        (own, shares.unwrap())
    });
    let (own, shares) = quiet.join().unwrap();
    assert_eq!(own, shares);
    // Of a thread that is not quiet nobody leaves anything.
    let join = company();
    let before = of_this_thread();
    join();
    assert!(of_this_thread() == before && before != own);
}
