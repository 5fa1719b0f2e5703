use std::fs;

use proptest::prelude::*;

use super::*;
use crate::repository::ModelConfig;

fn contract() -> Contract {
    Contract {
        task: Task::Classify,
        dimension: None,
        labels: ["a", "b", "c"].map(str::to_owned).to_vec(),
        tokenizer: Some("00".to_owned()),
        pooling: None,
        normalize: None,
        max_tokens: Some(128),
        chats: None,
    }
}

/// A version folder with this configuration.
fn spec(task: Task, config: Value) -> (tempfile::TempDir, Spec) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    fs::write(dir.path().join("model.safetensors"), "").unwrap();
    let spec = Spec::read(dir.path(), "m", "v", &ModelConfig::new(task)).unwrap();
    (dir, spec)
}

fn told(compared: &Compared) -> Vec<(&str, Severity)> {
    compared.differences.iter().map(|difference| (difference.what.as_str(), difference.severity)).collect()
}

#[test]
fn breaking_is_what_the_contract_calls_a_change_and_nothing_else() {
    let live = contract();
    let changes: [fn(&mut Contract); 7] = [
        |c| c.task = Task::Rerank,
        |c| c.dimension = Some(4),
        |c| c.labels.reverse(),
        |c| c.tokenizer = Some("01".to_owned()),
        |c| c.pooling = Some("cls".to_owned()),
        |c| c.normalize = Some(true),
        |c| c.max_tokens = Some(64),
    ];
    for change in changes {
        let mut now = contract();
        change(&mut now);
        let breaking: Vec<_> = contracts(&live, &now).differences.into_iter().map(|d| (d.what, d.severity)).collect();
        let refused: Vec<_> =
            now.changes_from(&live).iter().map(|change| (change.field.to_owned(), Severity::Breaking)).collect();
        assert_eq!(breaking, refused);
        assert_eq!(breaking.len(), 1);
    }
    let mut longer = contract();
    longer.max_tokens = Some(256);
    assert_eq!(told(&contracts(&live, &longer)), [("max_tokens", Severity::Harmless)]);
}

#[test]
fn labels_and_tokenizers_are_told_in_words_and_not_written_out() {
    let (live, mut now) = (contract(), contract());
    now.labels = ["a", "x", "y", "z"].map(str::to_owned).to_vec();
    now.tokenizer = Some("01".to_owned());
    let told = contracts(&live, &now).differences;
    let expected =
        r#"3 of 4 labels are others: 1 is "x", and was "b"; 2 is "y", and was "c"; 3 is "z", and was nothing"#;
    assert_eq!(told[0].message, expected);
    assert_eq!(told[1].message, "the tokenizer is another");
    assert_eq!(told[0].to, json!(["a", "x", "y", "z"]));
    let same = contracts(&live, &live).same;
    assert_eq!(same, ["task", "labels", "tokenizer", "max_tokens"]);
}

#[test]
fn keys_of_the_configuration_are_told_with_their_paths() {
    let config = |factor: f64, hidden: u64, writer: &str| {
        json!({"model_type": "llama", "hidden_size": hidden, "transformers_version": writer,
               "rope_scaling": {"factor": factor, "rope_type": "linear"}, "bos_token_id": null})
    };
    let (_dir, before) = spec(Task::Generate, config(2.0, 8, "4.1"));
    let (_other, now) = spec(Task::Generate, config(4.0, 16, "4.2"));
    let compared = descriptions(&before, &now);
    assert_eq!(
        told(&compared),
        [
            ("config.hidden_size", Severity::Notable),
            ("config.rope_scaling.factor", Severity::Notable),
            ("config.transformers_version", Severity::Harmless),
        ]
    );
    assert_eq!(compared.differences[0].message, "config: hidden_size is 16, and was 8");
    let (_dir, plain) = spec(Task::Generate, json!({"model_type": "llama", "hidden_size": 8}));
    let gone = &descriptions(&before, &plain).differences[0];
    assert_eq!((gone.message.as_str(), &gone.to), ("config: rope_scaling.factor is absent, and was 2.0", &Value::Null));
}

#[test]
fn labels_are_the_contracts_to_tell_where_the_task_has_them() {
    let config = |label: &str| json!({"model_type": "bert", "hidden_size": 8, "id2label": {"0": label, "1": "b"}});
    let ((_a, before), (_b, now)) = (spec(Task::Classify, config("x")), spec(Task::Classify, config("y")));
    assert!(descriptions(&before, &now).differences.is_empty());
    let ((_a, before), (_b, now)) = (spec(Task::Embed, config("x")), spec(Task::Embed, config("y")));
    assert_eq!(told(&descriptions(&before, &now)), [("config.id2label", Severity::Harmless)]);
}

#[test]
fn numbers_that_are_the_same_in_f32_are_the_same() {
    let number = |value: f64| Some(json!(value));
    assert!(equal(number(1e-5).as_ref(), number(f64::from(1e-5f32)).as_ref()));
    assert!(equal(Some(&json!(10000)), number(10000.0).as_ref()));
    assert!(!equal(number(1e-5).as_ref(), number(1e-6).as_ref()));
    assert!(!equal(Some(&json!(16_777_217)), Some(&json!(16_777_216))), "whole numbers are not rounded");
}

#[test]
fn many_keys_are_counted_and_long_values_cut() {
    let many = |from: usize| {
        let keys: Map<String, Value> = (0..100).map(|n| (format!("k{n}"), json!(n + from))).collect();
        let mut all = json!({"model_type": "bert", "hidden_size": 8, "long": vec![from; 5000]});
        all.as_object_mut().unwrap().extend(keys);
        all
    };
    let ((_a, before), (_b, now)) = (spec(Task::Embed, many(0)), spec(Task::Embed, many(1)));
    let compared = descriptions(&before, &now);
    assert_eq!(compared.differences.len(), MOST_KEYS + 1);
    assert_eq!(compared.differences[MOST_KEYS].message, "config: 37 keys more are not the same");
    let longest = compared.differences.iter().map(|d| serde_json::to_string(d).unwrap().len()).max().unwrap();
    assert!(longest < 2 * LONGEST_VALUE, "{longest}");
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![Just(json!(null)), Just(json!(1)), Just(json!(2.5)), Just(json!("x")), Just(json!([1, 2]))];
    leaf.prop_recursive(2, 8, 3, |inner| prop::collection::btree_map("[a-c]", inner, 0..3).prop_map(|map| json!(map)))
}

fn any_config() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-e]|dtype|id2label", any_value(), 0..6).prop_map(|map| json!(map))
}

proptest! {
    /// Of itself a description differs in nothing; and what two differ in is the same whichever comes first.
    #[test]
    fn a_comparison_is_empty_of_itself_and_names_the_same_both_ways(was in any_config(), is in any_config(), across: bool) {
        let compare = |was: &Value, is: &Value| {
            let mut compared = Compared::default();
            keys(&mut compared, ("config", was, is), (across, false));
            compared
        };
        let own = compare(&was, &was);
        prop_assert!(own.differences.is_empty() && own.incomparable.is_empty());
        let (there, back) = (compare(&was, &is), compare(&is, &was));
        let named = |compared: &Compared| -> Vec<(String, Severity, Value, Value)> {
            compared.differences.iter().map(|d| (d.what.clone(), d.severity, d.from.clone(), d.to.clone())).collect()
        };
        let turned: Vec<_> = named(&back).into_iter().map(|(what, severity, from, to)| (what, severity, to, from)).collect();
        prop_assert_eq!(named(&there), turned);
        prop_assert_eq!(there.incomparable.len(), back.incomparable.len());
        prop_assert_eq!(there.same, back.same);
    }

    #[test]
    fn contracts_name_the_same_both_ways(was in 0usize..3, is in 0usize..3, labels in prop::collection::vec("[a-b]", 0..3)) {
        let of = |limit: usize, labels: &[String]| Contract {
            max_tokens: [None, Some(8), Some(16)][limit], labels: labels.to_vec(), ..contract()
        };
        let (was, is) = (of(was, &labels), of(is, &["a".to_owned()]));
        let named = |from: &Contract, to: &Contract| -> Vec<String> {
            contracts(from, to).differences.into_iter().map(|d| d.what).collect()
        };
        prop_assert_eq!(named(&was, &is), named(&is, &was));
        prop_assert!(named(&was, &was).is_empty());
    }
}
