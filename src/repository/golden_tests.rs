use std::fs;

use super::*;
use crate::value::Output;
use proptest::prelude::*;

fn read(text: impl AsRef<[u8]>) -> Result<Vec<GoldenCase>> {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("v1");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("golden.jsonl"), text).unwrap();
    read_golden(&folder.join("golden.jsonl"))
}

#[track_caller]
fn assert_refused(text: impl AsRef<[u8]>, file: &str, expected: &str) {
    match read(text) {
        Err(Error::Unloadable { file: found, reason }) => {
            assert_eq!(found, file, "{reason}");
            assert!(reason.contains(expected), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

fn one(expect: &str) -> String {
    format!(r#"{{"id": "a", "input": "x", "expect": {expect}}}"#)
}

fn several(inputs: usize, expect: &str) -> String {
    let inputs = vec!["\"x\""; inputs].join(",");
    format!(r#"{{"id": "a", "inputs": [{inputs}], "expect": {expect}}}"#)
}

#[test]
fn every_form_of_case_is_read_and_written_back_the_same() {
    let lines = [
        one(r#"{"label": "7"}"#),
        one(r#"{"label": "7", "min_score": 0.5}"#),
        one(r#"{"labels": [{"label": "7", "score": 0.98}], "max_abs": 0.01}"#),
        one(r#"{"embedding": [0.5, -1], "min_cosine": 0.9999}"#),
        one(r#"{"embedding": [0.5, -1], "min_cosine": 0.9999, "max_abs": 0}"#),
        r#"{"id": "a", "input": ["q", "d"], "expect": {"score": 0.93, "max_abs": 0.01}}"#.to_owned(),
        r#"{"id": "a", "input": {"image": "aGk="}, "expect": {"label": "7"}}"#.to_owned(),
        several(2, r#"{"similar_at_least": 0.6}"#),
        several(2, r#"{"similar_at_most": 0.3}"#),
        several(3, r#"{"order": [2, 0, 1]}"#),
        several(4, r#"{"order": [2, 0, 1]}"#),
        several(1, r#"{"label": "7"}"#),
    ];
    for line in lines {
        let cases = read(&line).unwrap();
        assert_eq!(cases.len(), 1, "{line}");
        assert_eq!(read(serde_json::to_string(&cases[0]).unwrap()).unwrap(), cases, "{line}");
    }
}

#[test]
fn a_missing_file_is_no_cases_and_blank_lines_are_skipped() {
    let dir = tempfile::tempdir().unwrap();
    assert!(read_golden(&dir.path().join("golden.jsonl")).unwrap().is_empty());
    assert!(read("").unwrap().is_empty());
    let text =
        format!("\r\n{}\r\n  \n{}", one(r#"{"label": "7"}"#), one(r#"{"label": "7"}"#).replace("\"a\"", "\"b\""));
    assert_eq!(read(text).unwrap().len(), 2);
}

#[test]
fn a_broken_line_is_named_by_file_and_line() {
    let good = one(r#"{"label": "7"}"#);
    assert_refused(format!("{good}\n\n{{\"id\": "), "v1/golden.jsonl:3", "EOF while parsing a value (column");
    assert_refused(format!("{good}\n{good}"), "v1/golden.jsonl:2", "\"a\" is used twice");
    assert_refused(format!("{good}\n[]"), "v1/golden.jsonl:2", "invalid");
    assert_refused(b"\n\xff\n", "v1/golden.jsonl:2", "not UTF-8");
    assert_refused("[".repeat(10_000), "v1/golden.jsonl:1", "(column");
}

#[test]
fn a_line_that_is_too_long_is_refused_without_being_read_whole() {
    let mut text = b"\n".to_vec();
    text.resize(MAX_LINE_BYTES as usize + 10, b' ');
    assert_refused(&text, "v1/golden.jsonl:2", "longer than 16777216 bytes");
}

#[test]
fn a_folder_in_place_of_the_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("golden.jsonl")).unwrap();
    assert!(read_golden(&dir.path().join("golden.jsonl")).unwrap_err().to_string().contains("not a regular file"));
}

#[test]
fn a_case_that_is_not_in_the_format_is_refused_with_the_reason() {
    let cases = [
        (one(r#"{}"#), "expected one of label, labels"),
        (one(r#"{"label": "7", "score": 1, "max_abs": 1}"#), "label cannot stand with score, max_abs"),
        (one(r#"{"label": "7", "max_abs": 1}"#), "label cannot stand with max_abs"),
        (one(r#"{"score": 1, "max_abs": 1, "min_cosine": 1}"#), "score cannot stand with min_cosine"),
        (one(r#"{"lable": "7"}"#), "unknown field `lable`"),
        (one(r#"{"label": "7", "label": "8"}"#), "duplicate field `label`"),
        (one(r#"{"score": 1}"#), "max_abs is missing"),
        (one(r#"{"score": 1, "max_abs": null}"#), "max_abs is missing"),
        (one(r#"{"embedding": [1]}"#), "min_cosine is missing"),
        (r#"{"id": "a", "input": "x", "expect": {"label": "7"}, "more": 1}"#.to_owned(), "unknown field `more`"),
        (r#"{"input": "x", "expect": {"label": "7"}}"#.to_owned(), "missing field `id`"),
        (r#"{"id": "", "input": "x", "expect": {"label": "7"}}"#.to_owned(), "id: expected"),
        (r#"{"id": "a\nb", "input": "x", "expect": {"label": "7"}}"#.to_owned(), "id: expected"),
        (r#"{"id": "a", "expect": {"label": "7"}}"#.to_owned(), "either input or inputs"),
        (
            r#"{"id": "a", "input": "x", "inputs": ["x"], "expect": {"label": "7"}}"#.to_owned(),
            "either input or inputs",
        ),
        (r#"{"id": "a", "inputs": [], "expect": {"label": "7"}}"#.to_owned(), "at least one"),
        (r#"{"id": "a", "input": 3, "expect": {"label": "7"}}"#.to_owned(), "expected an input: a string"),
        (r#"{"id": "a", "input": {"image": "%"}, "expect": {"label": "7"}}"#.to_owned(), "base64"),
        (several(2, r#"{"label": "7"}"#), "needs one input, found 2"),
        (several(3, r#"{"similar_at_most": 0.3}"#), "needs two inputs, found 3"),
        (several(5, r#"{"order": [2, 0, 1]}"#), "needs 3 inputs, or a query and 3 inputs"),
        (several(2, r#"{"order": [0, 0]}"#), "each index from 0 once"),
        (several(2, r#"{"order": [1, 2]}"#), "each index from 0 once"),
        (several(2, r#"{"order": [0]}"#), "at least two"),
        (several(2, r#"{"order": [-1, 0]}"#), "invalid value"),
    ];
    for (line, expected) in cases {
        assert_refused(line, "v1/golden.jsonl:1", expected);
    }
}

#[test]
fn a_number_that_would_pass_or_fail_everything_is_refused() {
    let cases = [
        (one(r#"{"score": 1, "max_abs": NaN}"#), "(column"),
        (one(r#"{"score": 1, "max_abs": "NaN"}"#), "invalid type"),
        (one(r#"{"score": 1, "max_abs": 1e39}"#), "max_abs: expected a finite number"),
        (one(r#"{"score": 1, "max_abs": 1e999}"#), "out of range"),
        (one(r#"{"score": 1, "max_abs": -0.1}"#), "max_abs: expected a finite number of at least 0"),
        (one(r#"{"score": 1e39, "max_abs": 1}"#), "score: expected a finite number"),
        (one(r#"{"label": "7", "min_score": 1e39}"#), "min_score: expected a finite number"),
        (one(r#"{"labels": [], "max_abs": 1}"#), "labels: expected at least one"),
        (one(r#"{"labels": [{"label": "7", "score": 1}, {"label": "7", "score": 1}], "max_abs": 1}"#), "listed twice"),
        (one(r#"{"labels": [{"label": "7", "score": 1e39}], "max_abs": 1}"#), "labels: expected a finite number"),
        (one(r#"{"embedding": [], "min_cosine": 0.9}"#), "a length above 0"),
        (one(r#"{"embedding": [0, 0], "min_cosine": 0.9}"#), "a length above 0"),
        (one(r#"{"embedding": [1e39], "min_cosine": 0.9}"#), "embedding: expected a finite number"),
        (one(r#"{"embedding": [1], "min_cosine": 1.1}"#), "a cosine from -1 to 1"),
        (one(r#"{"embedding": [1], "min_cosine": 0.9, "max_abs": -1}"#), "max_abs"),
        (several(2, r#"{"similar_at_least": 2}"#), "a cosine from -1 to 1"),
        (several(2, r#"{"similar_at_most": -2}"#), "a cosine from -1 to 1"),
    ];
    for (line, expected) in cases {
        assert_refused(line, "v1/golden.jsonl:1", expected);
    }
}

#[test]
fn expectations_fit_the_tasks_that_can_show_them() {
    let all = [Task::Embed, Task::Classify, Task::Rerank, Task::Generate, Task::ImageClassify];
    let fitting = |expect: Expect| all.into_iter().filter(|task| expect.fits(*task).is_ok()).collect::<Vec<_>>();
    let label = Expect::Label { label: "7".to_owned(), min_score: None };
    assert_eq!(fitting(label.clone()), [Task::Classify, Task::ImageClassify]);
    assert_eq!(fitting(Expect::Labels { labels: Vec::new(), max_abs: 1.0 }), [Task::Classify, Task::ImageClassify]);
    let embedding = Expect::Embedding { embedding: vec![1.0], min_cosine: 0.9, max_abs: None };
    assert_eq!(fitting(embedding), [Task::Embed]);
    assert_eq!(fitting(Expect::SimilarAtLeast(0.5)), [Task::Embed]);
    assert_eq!(fitting(Expect::SimilarAtMost(0.5)), [Task::Embed]);
    assert_eq!(fitting(Expect::Score { score: 1.0, max_abs: 0.1 }), [Task::Rerank]);
    assert_eq!(fitting(Expect::Order(vec![1, 0])), [Task::Embed, Task::Rerank]);
    assert_eq!(label.fits(Task::Embed).unwrap_err(), "label cannot be expected of a model whose task is embed");
}

fn labels(scores: &[(&str, f32)]) -> Output {
    let labels = scores.iter().map(|(label, score)| LabelScore { label: (*label).to_owned(), score: *score });
    Output::Labels { labels: labels.collect() }
}

fn embedding(values: &[f32]) -> Output {
    Output::Embedding { embedding: values.to_vec() }
}

fn scores(values: &[f32]) -> Vec<Output> {
    values.iter().map(|score| Output::Score { score: *score }).collect()
}

#[test]
fn the_top_label_is_judged_by_its_score() {
    let expect = |min_score| Expect::Label { label: "7".to_owned(), min_score };
    let verdict = expect(None).judge(&[labels(&[("7", 0.6), ("1", 0.4)])]);
    assert!(verdict.passed, "{verdict:?}");
    assert!((verdict.measure - 0.6).abs() < 1e-6 && (verdict.limit - 0.4).abs() < 1e-6, "{verdict:?}");
    assert!(!expect(Some(0.7)).judge(&[labels(&[("7", 0.6), ("1", 0.4)])]).passed);
    assert!(expect(Some(0.6)).judge(&[labels(&[("7", 0.6), ("1", 0.4)])]).passed);
    // whatever order the answer is in
    assert!(expect(None).judge(&[labels(&[("1", 0.4), ("7", 0.6)])]).passed);
    assert!(expect(None).judge(&[labels(&[("7", -3.0)])]).passed);
    let wrong = expect(None).judge(&[labels(&[("1", 0.6), ("7", 0.4)])]);
    assert!(!wrong.passed && wrong.message.contains("the top label is \"1\", expected \"7\""), "{wrong:?}");
}

#[test]
fn a_tie_or_a_missing_or_unmeasurable_label_does_not_pass() {
    let expect = Expect::Label { label: "7".to_owned(), min_score: None };
    for answer in [
        labels(&[("7", 0.5), ("1", 0.5)]),
        labels(&[("1", 1.0)]),
        labels(&[]),
        labels(&[("7", f32::NAN), ("1", 0.4)]),
        labels(&[("7", 0.6), ("1", f32::NAN)]),
        labels(&[("7", f32::INFINITY)]),
        embedding(&[1.0]),
    ] {
        let verdict = expect.judge(std::slice::from_ref(&answer));
        assert!(!verdict.passed, "{answer:?}: {verdict:?}");
    }
    assert!(!expect.judge(&[]).passed);
    assert!(!expect.judge(&[labels(&[("7", 1.0)]), labels(&[("7", 1.0)])]).passed);
}

#[test]
fn label_scores_pass_within_the_tolerance_only() {
    let wanted = [("7", 0.75), ("1", 0.25)].map(|(label, score)| LabelScore { label: label.to_owned(), score });
    let expect = Expect::Labels { labels: wanted.to_vec(), max_abs: 0.125 };
    let exact = expect.judge(&[labels(&[("7", 0.75), ("1", 0.125), ("2", 9.0)])]);
    assert!(exact.passed && exact.measure == 0.125 && exact.limit == 0.125, "{exact:?}");
    let beyond = expect.judge(&[labels(&[("7", 0.5), ("1", 0.25)])]);
    assert!(!beyond.passed && beyond.measure == 0.25 && beyond.message.contains("\"7\""), "{beyond:?}");
    assert!(!expect.judge(&[labels(&[("7", 0.75)])]).passed);
    assert!(!expect.judge(&[labels(&[("7", 0.75), ("1", f32::NAN)])]).passed);
    // of a label that occurs twice the nearest is meant
    assert!(expect.judge(&[labels(&[("7", 0.75), ("7", 0.0), ("1", 0.25)])]).passed);
}

#[test]
fn an_embedding_passes_by_direction_and_where_told_by_deviation() {
    let expect = |max_abs| Expect::Embedding { embedding: vec![3.0, 4.0], min_cosine: 0.999, max_abs };
    let verdict = expect(None).judge(&[embedding(&[6.0, 8.0])]);
    assert!(verdict.passed && (verdict.measure - 1.0).abs() < 1e-12, "{verdict:?}");
    let scaled = expect(Some(0.5)).judge(&[embedding(&[6.0, 8.0])]);
    assert!(!scaled.passed && scaled.measure == 4.0 && scaled.limit == 0.5, "{scaled:?}");
    assert!(expect(Some(0.5)).judge(&[embedding(&[3.0, 4.25])]).passed);
    for bad in [&[4.0, 3.0][..], &[0.0, 0.0], &[f32::NAN, 4.0], &[f32::INFINITY, 4.0], &[3.0], &[3.0, 4.0, 0.0]] {
        assert!(!expect(None).judge(&[embedding(bad)]).passed, "{bad:?}");
        assert!(!expect(Some(1e30)).judge(&[embedding(bad)]).passed, "{bad:?}");
    }
    // even the loosest of cosines is not passed by a vector without a direction
    let loose = Expect::Embedding { embedding: vec![1.0], min_cosine: -1.0, max_abs: None };
    assert!(!loose.judge(&[embedding(&[0.0])]).passed);
}

#[test]
fn scores_and_similarities_pass_at_their_limits() {
    let score = Expect::Score { score: 0.5, max_abs: 0.25 };
    assert!(score.judge(&scores(&[0.75])).passed && score.judge(&scores(&[0.25])).passed);
    for bad in [&[0.76][..], &[f32::NAN], &[0.5, 0.5], &[]] {
        assert!(!score.judge(&scores(bad)).passed, "{bad:?}");
    }
    let pair = |a: &[f32], b: &[f32]| [embedding(a), embedding(b)];
    let (same, apart) = (pair(&[1.0, 0.0], &[2.0, 0.0]), pair(&[1.0, 0.0], &[0.0, 1.0]));
    assert!(Expect::SimilarAtLeast(1.0).judge(&same).passed && !Expect::SimilarAtLeast(0.1).judge(&apart).passed);
    assert!(Expect::SimilarAtMost(0.0).judge(&apart).passed && !Expect::SimilarAtMost(0.9).judge(&same).passed);
    for bad in [pair(&[0.0, 0.0], &[1.0, 0.0]), pair(&[f32::NAN, 0.0], &[1.0, 0.0]), pair(&[1.0], &[1.0, 0.0])] {
        assert!(!Expect::SimilarAtMost(1.0).judge(&bad).passed, "{bad:?}");
        assert!(!Expect::SimilarAtLeast(-1.0).judge(&bad).passed, "{bad:?}");
    }
}

#[test]
fn an_order_is_of_scores_or_of_cosines_with_the_query() {
    let expect = Expect::Order(vec![2, 0, 1]);
    assert!(expect.judge(&scores(&[0.5, 0.1, 0.9])).passed);
    let half = expect.judge(&scores(&[0.1, 0.5, 0.9]));
    assert!(!half.passed && half.measure == 0.5 && half.message.contains("[2, 1, 0], expected [2, 0, 1]"), "{half:?}");
    let found = [embedding(&[1.0, 0.0]), embedding(&[1.0, 1.0]), embedding(&[-1.0, 0.0]), embedding(&[5.0, 0.1])];
    assert!(expect.judge(&found).passed);
    // the lengths of the vectors do not count
    assert!(
        Expect::Order(vec![1, 0])
            .judge(&[embedding(&[1.0, 0.0]), embedding(&[9.0, 9.0]), embedding(&[0.1, 0.0])])
            .passed
    );
}

#[test]
fn a_tie_or_a_number_that_is_none_is_not_an_order() {
    let expect = Expect::Order(vec![0, 1]);
    assert!(!expect.judge(&scores(&[0.5, 0.5])).passed);
    assert!(!expect.judge(&scores(&[0.5, f32::NAN])).passed);
    assert!(!expect.judge(&scores(&[f32::INFINITY, 0.5])).passed);
    assert!(!expect.judge(&scores(&[0.5, 0.4, 0.3])).passed);
    assert!(!expect.judge(&[embedding(&[1.0]), embedding(&[1.0])]).passed);
    assert!(!expect.judge(&[embedding(&[0.0]), embedding(&[1.0]), embedding(&[-1.0])]).passed);
    assert!(!expect.judge(&[]).passed);
}

#[test]
fn what_could_not_be_measured_is_null_in_json() {
    let verdict = Expect::SimilarAtLeast(0.5).judge(&[]);
    let json = serde_json::to_value(&verdict).unwrap();
    assert!(json["measure"].is_null() && json["limit"] == 0.5 && json["passed"] == false, "{json}");
}

proptest! {
    #[test]
    fn no_line_makes_the_reader_panic(line in "\\PC{0,60}") {
        let _ = parse_case(&line);
    }

    #[test]
    fn an_answer_with_a_nan_never_passes(values in prop::collection::vec(-2.0f32..2.0, 2..6), at in 0usize..6) {
        let mut broken = values.clone();
        let at = at % broken.len();
        broken[at] = f32::NAN;
        let close = Expect::Embedding { embedding: values.clone(), min_cosine: -1.0, max_abs: Some(1e30) };
        prop_assert!(!close.judge(&[embedding(&broken)]).passed);
        prop_assert!(!Expect::SimilarAtMost(1.0).judge(&[embedding(&values), embedding(&broken)]).passed);
        prop_assert!(!Expect::Order((0..broken.len()).collect()).judge(&scores(&broken)).passed);
    }
}
