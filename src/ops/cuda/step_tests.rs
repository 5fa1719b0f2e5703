use proptest::prelude::*;

use super::*;

fn spec() -> KvSpec {
    KvSpec { layers: 1, heads: 2, head_dim: 64, dtype: DType::F32, block_tokens: 16 }
}

fn of<'a>(runs: &'a [Run<'a>], given: &'a Given) -> OfStep<'a> {
    OfStep { runs, given }
}

/// Tokens of each row, all of which are wanted.
fn given(rows: usize) -> Given {
    let asks = (0..rows).map(|row| if row % 2 == 0 { Ask::Likeliest } else { Ask::Likely { temperature: 0.5 } });
    Given { ids: (0..rows as u32).map(|row| row + 40).collect(), wanted: (0..rows).collect(), asks: asks.collect() }
}

/// What kernels make of an item: the run, its rows, and the keys of its part or of all.
fn items(step: &Step, launch: &Launch) -> Vec<[u32; 4]> {
    let [count, first, ..] = step.words[launch.items..][..4] else { panic!("a head of four words") };
    assert_eq!(count as usize, launch.count);
    let all = &step.words[launch.items + 4 * first as usize..][..4 * launch.count];
    all.as_chunks::<4>().0.to_vec()
}

proptest! {
    #[test]
    fn every_row_has_its_keys_once_and_parts_that_lie_apart(
        tensor_cores: bool, lengths in prop::collection::vec((0usize..3000, 1usize..90), 0..6), group in 1usize..9, window in 0usize..700,
    ) {
        let blocks: Vec<u32> = (0..200).collect();
        let runs: Vec<Run<'_>> =
            lengths.iter().map(|&(from, tokens)| Run { tokens, from, blocks: &blocks }).collect();
        let windows = [None, Some(window.max(1)), None];
        let dtype = if tensor_cores { DType::BF16 } else { DType::F32 };
        let (spec, many) = (KvSpec { dtype, ..spec() }, if tensor_cores { 64 } else { ROWS });
        let nothing = Given::default();
        let step = Step::of(of(&runs, &nothing), Heads { spec: &spec, group, windows: &windows, frequencies: &[1.0] });
        prop_assert_eq!(step.launches.len(), 2);
        for (window, launches) in &step.launches {
            let mut keys = vec![0usize; runs.len()];
            for launch in launches {
                let mut places = std::collections::HashMap::new();
                for [run, first, part, place] in items(&step, launch) {
                    let one = &runs[run as usize];
                    let most = if part == ALL_PARTS { many } else { ROWS };
                    let rows = (one.tokens * group - first as usize).min(most);
                    let tokens = (first as usize / group, (first as usize + rows - 1) / group);
                    let all = seen(one, tokens, *window);
                    if part == ALL_PARTS {
                        prop_assert!((first as usize).is_multiple_of(many));
                        keys[run as usize] += all.len() * rows;
                        continue;
                    }
                    let number = part as usize - all.start / PART + place as usize;
                    prop_assert!(number < launch.parts && rows <= launch.kept);
                    prop_assert!(places.insert(number, run).is_none());
                    let (begin, end) = (part as usize * PART, (part as usize + 1) * PART);
                    let own = begin.max(all.start)..end.min(all.end);
                    prop_assert!(!own.is_empty());
                    keys[run as usize] += own.len() * rows;
                }
                prop_assert_eq!(places.len(), launch.parts);
                prop_assert!(launch.parts * launch.kept * 2 * 68 <= step.parts);
                prop_assert!(step.parts as u64 * 4 <= parts_bytes(&spec, 3100));
                let finished = step.words[launch.items + 2] as usize;
                prop_assert!(step.words[finished..][..2 * launch.parts].iter().all(|count| *count == 0));
                prop_assert_eq!(launch.blocks, launch.count);
            }
            for (run, keys) in runs.iter().zip(keys) {
                let rows = run.tokens * group;
                let most = if rows > ROWS { many } else { ROWS };
                let want = (0..rows).step_by(most).map(|first| {
                    let last = (first + most).min(rows) - 1;
                    seen(run, (first / group, last / group), *window).len() * (last + 1 - first)
                });
                prop_assert_eq!(keys, want.sum::<usize>());
            }
        }
    }

    /// A step that was recorded finds everything where it is for any other of as many rows.
    #[test]
    fn filled_up_everything_lies_where_it_does_for_any_other_step_and_says_the_same(
        lengths in prop::collection::vec(0usize..3000, 0..9), more in 0usize..5, group in 1usize..9, window in 1usize..700,
    ) {
        let blocks: Vec<u32> = (0..200).map(|block| 200 - block).collect();
        let runs: Vec<Run<'_>> = lengths.iter().map(|&from| Run { tokens: 1, from, blocks: &blocks }).collect();
        let (given, spec, rows) = (given(runs.len()), spec(), runs.len() + more);
        let windows = [None, Some(window), None];
        let heads = Heads { spec: &spec, group, windows: &windows, frequencies: &[1.0, 0.1] };
        let eager = Step::of(of(&runs, &given), heads);
        let filled = Step::filled_up(of(&runs, &given), heads, (rows, 3100)).unwrap();
        let empty = Step::filled_up(of(&[], &Given::default()), heads, (rows, 3100)).unwrap();
        let places = |step: &Step| {
            let heads = step.launches.iter().map(|(window, of)| (*window, of[0].kernel, of[0].items, of[0].blocks, of[0].kept));
            let sections = [step.ids, step.told, step.positions, step.places, step.frequencies, step.runs, step.asked, step.counts];
            (sections, heads.collect::<Vec<_>>(), step.rows)
        };
        prop_assert_eq!(places(&filled), places(&empty));
        prop_assert!(filled.words.len().max(empty.words.len()) <= table_words(rows, 3100, heads));
        prop_assert!(filled.parts as u64 * 4 <= parts_bytes(&spec, 3100));
        let count = runs.len();
        for (at, of_eager, each) in [
            (filled.ids, eager.ids, 1), (filled.told, eager.told, 1), (filled.positions, eager.positions, 1), (filled.places, eager.places, 1),
            (filled.asked, eager.asked, 2), (filled.counts, eager.counts, 1),
        ] {
            prop_assert_eq!(&filled.words[at..][..each * count], &eager.words[of_eager..][..each * count]);
        }
        let nobodys = &filled.words[filled.places..][..rows];
        prop_assert!(nobodys[count..].iter().all(|place| *place == NOWHERE));
        prop_assert!(filled.words[filled.asked..][..2 * rows][2 * count..].iter().all(|bits| *bits == 0));
        for ((_, filled_launches), (_, of_eager)) in filled.launches.iter().zip(&eager.launches) {
            let [launch] = &filled_launches[..] else { panic!("one launch") };
            match &of_eager[..] {
                [] => prop_assert_eq!(launch.count, 0),
                [other] => {
                    prop_assert_eq!(items(&filled, launch), items(&eager, other));
                    prop_assert_eq!((launch.kept, launch.parts, launch.kernel), (other.kept, other.parts, other.kernel));
                }
                _ => prop_assert!(false, "{:?}", of_eager),
            }
        }
        for (run, length) in lengths.iter().enumerate() {
            let [row, from, tokens, at] = filled.words[filled.runs + 4 * run..][..4] else { panic!("four words") };
            prop_assert_eq!((row as usize, from as usize, tokens), (run, *length, 1));
            let needed = (length + 1).div_ceil(16);
            prop_assert_eq!(&filled.words[at as usize..][..needed], &blocks[..needed]);
        }
    }
}

#[test]
fn rows_are_told_their_places_and_runs_their_blocks() {
    let (one, other) = ([7u32, 3], [5u32, 9, 1]);
    let runs = [Run { tokens: 2, from: 15, blocks: &one }, Run { tokens: 1, from: 32, blocks: &other }];
    let spec = spec();
    let given =
        Given { ids: vec![50, 51, 52], wanted: vec![1, 2], asks: vec![Ask::Nothing, Ask::Likely { temperature: 0.5 }] };
    let heads = Heads { spec: &spec, group: 2, windows: &[None], frequencies: &[0.5, 2.0] };
    let step = Step::of(of(&runs, &given), heads);
    assert_eq!(step.words[step.ids..][..3], [50, 51, 52]);
    assert_eq!(step.words[step.wanted..][..2], [1, 2]);
    assert_eq!(step.words[step.asked..][..4], [0, 0, 2f32.to_bits(), 4f32.to_bits()]);
    assert_eq!(step.words[step.counts..][..2], [0, 0]);
    assert_eq!(step.words[step.positions..][..3], [15, 16, 32]);
    assert_eq!(step.words[step.places..][..3], [7 * 16 + 15, 3 * 16, 16]);
    assert_eq!(step.words[step.frequencies..][..2], [0.5f32.to_bits(), 2f32.to_bits()]);
    let of_runs = &step.words[step.runs..][..8];
    let [first, second] = [of_runs[3] as usize, of_runs[7] as usize];
    assert_eq!(*of_runs, [0, 15, 2, first as u32, 2, 32, 1, second as u32]);
    assert_eq!((&step.words[first..][..2], &step.words[second..][..3]), (&one[..], &other[..]));
}

#[test]
fn what_is_too_much_for_one_launch_is_several() {
    let blocks: Vec<u32> = (0..4096).collect();
    let runs = vec![Run { tokens: 1, from: 65_000, blocks: &blocks }; 64];
    let spec = KvSpec { heads: 8, ..spec() };
    let heads = Heads { spec: &spec, group: 4, windows: &[None], frequencies: &[] };
    let given = given(runs.len());
    let step = Step::of(of(&runs, &given), heads);
    assert!(Step::filled_up(of(&runs, &given), heads, (64, 65_536)).is_none(), "it is not recorded");
    assert!(Step::filled_up(of(&runs[..4], &self::given(4)), heads, (64, 65_536)).is_some());
    let launches = &step.launches[0].1;
    assert!(launches.len() > 5 && step.parts as u64 * 4 <= PARTS_ROOM, "{launches:?}");
    assert_eq!(launches.iter().map(|launch| launch.count).sum::<usize>(), 64 * 254);
}

#[test]
fn what_is_more_than_a_token_of_each_and_a_row_of_each_is_not_filled_up() {
    let (blocks, spec) = ([7u32, 3], spec());
    let heads = Heads { spec: &spec, group: 2, windows: &[None], frequencies: &[] };
    let run = |tokens| Run { tokens, from: 3, blocks: &blocks };
    let filled =
        |runs: &[Run<'_>], wanted: usize, heads| Step::filled_up(of(runs, &given(wanted)), heads, (4, 32)).is_some();
    assert!(filled(&[run(1), run(1)], 2, heads));
    assert!(!filled(&[run(1), run(2)], 2, heads) && !filled(&[run(1), run(1)], 1, heads));
    assert!(!filled(&[run(1); 5], 5, heads));
    assert!(!filled(&[run(1)], 1, Heads { group: ROWS + 1, ..heads }));
}
