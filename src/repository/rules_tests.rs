//! Rules that are read, and rules that are refused: each with its key and what was expected.

use super::*;
use crate::error::Error;
use crate::repository::ModelConfig;

fn refused(text: &str) -> (String, String) {
    match ModelConfig::parse(text, "m/model.toml") {
        Err(Error::Config { file, key, reason }) => {
            assert_eq!(file, "m/model.toml");
            (key, reason)
        }
        other => panic!("{text}: {other:?}"),
    }
}

/// One rule with these lines.
fn rule(lines: &str) -> String {
    format!("task = 'embed'\n[observe]\nwindow = '5m'\n[[observe.rule]]\n{lines}\n")
}

fn read(lines: &str) -> Rule {
    let text = rule(lines);
    let config = ModelConfig::parse(&text, "m").unwrap_or_else(|e| panic!("{text}: {e}"));
    let written = toml::to_string(&config).unwrap();
    assert_eq!(ModelConfig::parse(&written, "m").unwrap(), config, "{written}");
    config.observe.rules().pop().unwrap()
}

#[test]
fn the_short_keys_are_rules() {
    let observe = ObserveConfig {
        min_requests: 7,
        max_error_rate: 0.1,
        max_nonfinite: 3,
        max_p99_ratio: 2.5,
        ..Default::default()
    };
    let told: Vec<_> =
        observe.rules().into_iter().map(|r| (r.name, r.limit, r.min_samples, r.hold.as_secs())).collect();
    let expected = [
        ("non-finite outputs", Limit::Count(3), 7, 0),
        ("error rate", Limit::AtMost(0.1), 7, 0),
        ("p99 latency", Limit::Times(2.5), 100, 3),
        ("p50 latency", Limit::Times(2.5), 100, 3),
    ];
    assert_eq!(told, expected.map(|(name, limit, fewest, hold)| (name.to_owned(), limit, fewest, hold)));
    let apart = ObserveConfig { max_p50_ratio: Some(1.5), ..observe };
    assert_eq!(apart.rules()[3].limit, Limit::Times(1.5));
}

#[test]
fn a_rule_written_out_is_read_with_its_defaults_and_written_again() {
    let slow = read("name = 'slow'\nmetric = 'p95'\nthreshold = 1.3");
    assert_eq!((slow.metric, slow.limit, slow.min_samples), (Metric::P95, Limit::Times(1.3), 100));
    assert_eq!(slow.hold, HOLD_OF_LATENCIES);
    let budget =
        "name = 'budget'\nmetric = 'p99'\ncomparison = 'absolute'\nthreshold = '250ms'\nmin_samples = 400\nfor = '10s'";
    let budget = read(budget);
    assert_eq!(budget.limit, Limit::Time(Duration::from_millis(250)));
    assert_eq!((budget.min_samples, budget.hold), (400, Duration::from_secs(10)));
    let late = read("name = 'late'\nmetric = 'timeouts'\nthreshold = 0.01");
    assert_eq!((late.limit, late.min_samples, late.hold), (Limit::AtMost(0.01), 20, Duration::ZERO));
    assert_eq!(
        read("name = 'worse'\nmetric = 'error_rate'\ncomparison = 'relative'\nthreshold = 0").limit,
        Limit::Above(0.0)
    );
    assert_eq!(read("name = 'few'\nmetric = 'nonfinite'\ncomparison = 'count'\nthreshold = 5").limit, Limit::Count(5));
    assert_eq!(read("name = 'same'\nmetric = 'shadow_agreement'\nthreshold = 0.98").limit, Limit::AtLeast(0.98));
}

#[test]
fn a_bad_rule_names_its_key_and_what_was_expected() {
    let cases = [
        ("metric = 'p99'\nthreshold = 1.3", "observe.rule[0]", "missing field `name`"),
        ("name = 'a'\nthreshold = 1.3", "observe.rule[0]", "missing field `metric`"),
        ("name = 'a'\nmetric = 'p99'", "observe.rule[0]", "missing field `threshold`"),
        ("name = ' '\nmetric = 'p99'\nthreshold = 1.3", "observe.rule[0].name", "expected a name"),
        ("name = \"a\\nb\"\nmetric = 'p99'\nthreshold = 1.3", "observe.rule[0].name", "in one line"),
        ("name = 'error rate'\nmetric = 'error_rate'\nthreshold = 0.3", "observe.rule[0].name", "names another rule"),
        ("name = 'a'\nmetric = 'p98'\nthreshold = 1.3", "observe.rule[0].metric", "expected one of `error_rate`"),
        ("name = 'a'\nmetric = 3\nthreshold = 1.3", "observe.rule[0].metric", "expected a string"),
        (
            "name = 'a'\nmetric = 'p99'\ncomparison = 'ratio'\nthreshold = 2",
            "observe.rule[0].comparison",
            "expected one of `absolute`, `relative`, `count`",
        ),
        (
            "name = 'a'\nmetric = 'p99'\ncomparison = 'count'\nthreshold = 2",
            "observe.rule[0].comparison",
            "expected `absolute` or `relative`",
        ),
        (
            "name = 'a'\nmetric = 'shadow_agreement'\ncomparison = 'relative'\nthreshold = 0.9",
            "observe.rule[0].comparison",
            "expected `absolute`",
        ),
        ("name = 'a'\nmetric = 'error_rate'\nthreshold = -0.1", "observe.rule[0].threshold", "from 0.0 to below 1.0"),
        ("name = 'a'\nmetric = 'error_rate'\nthreshold = 1", "observe.rule[0].threshold", "from 0.0 to below 1.0"),
        ("name = 'a'\nmetric = 'timeouts'\nthreshold = '1s'", "observe.rule[0].threshold", "a share of all requests"),
        ("name = 'a'\nmetric = 'error_rate'\nthreshold = nan", "observe.rule[0].threshold", "a finite number"),
        ("name = 'a'\nmetric = 'error_rate'\nthreshold = true", "observe.rule[0].threshold", "a number, or a duration"),
        (
            "name = 'a'\nmetric = 'error_rate'\nthreshold = '5%'",
            "observe.rule[0].threshold",
            "expected it as a share: 0.05",
        ),
        ("name = 'a'\nmetric = 'p99'\nthreshold = 'soon'", "observe.rule[0].threshold", "a duration such as"),
        (
            "name = 'a'\nmetric = 'error_rate'\ncomparison = 'relative'\nthreshold = -1",
            "observe.rule[0].threshold",
            "more than of the version before",
        ),
        (
            "name = 'a'\nmetric = 'nonfinite'\ncomparison = 'count'\nthreshold = 0.5",
            "observe.rule[0].threshold",
            "a whole number of requests",
        ),
        ("name = 'a'\nmetric = 'p99'\nthreshold = 0.8", "observe.rule[0].threshold", "1.0 or more"),
        ("name = 'a'\nmetric = 'p99'\nthreshold = '250ms'", "observe.rule[0].threshold", "how many times"),
        (
            "name = 'a'\nmetric = 'p99'\ncomparison = 'absolute'\nthreshold = 250",
            "observe.rule[0].threshold",
            "such as \"250ms\"",
        ),
        (
            "name = 'a'\nmetric = 'p99'\ncomparison = 'absolute'\nthreshold = '0s'",
            "observe.rule[0].threshold",
            "how long p99 may be",
        ),
        ("name = 'a'\nmetric = 'shadow_agreement'\nthreshold = 0", "observe.rule[0].threshold", "must agree"),
        (
            "name = 'a'\nmetric = 'p99'\nthreshold = 2\nmin_samples = 0",
            "observe.rule[0].min_samples",
            "a whole number of at least 1",
        ),
        ("name = 'a'\nmetric = 'p99'\nthreshold = 2\nfor = '0s'", "observe.rule[0].for", "a longer one"),
        ("name = 'a'\nmetric = 'p99'\nthreshold = 2\nfor = 5", "observe.rule[0].for", "a duration such as"),
        ("name = 'a'\nmetric = 'p99'\nthreshold = 2\nfor = '6m'", "observe.rule[0].for", "less than the window"),
        ("name = 'a'\nmetric = 'p99'\nthreshold = 2\nfor = '299s'", "observe.rule[0].for", "less than the window"),
        (
            "name = 'a'\nmetric = 'timeouts'\ncomparison = 'count'\nthreshold = 2\nfor = '5s'",
            "observe.rule[0].for",
            "at once",
        ),
        ("name = 'a'\nmetric = 'p99'\nthreshold = 2\nhold = '6s'", "observe.rule[0].hold", "unknown field `hold`"),
    ];
    for (lines, key, expected) in cases {
        let (found, reason) = refused(&rule(lines));
        assert_eq!(found, key, "{lines}: {reason}");
        assert!(reason.contains(expected), "{lines}: {reason}");
        assert!(!reason.contains('\n'), "{reason}");
    }
}

#[test]
fn in_a_short_window_rules_hold_for_less() {
    let holds = |seconds| {
        let short = ObserveConfig { window: Duration::from_secs(seconds), ..ObserveConfig::default() };
        short.rules().into_iter().map(|rule| rule.hold.as_secs()).max()
    };
    assert_eq!(
        [300, 5, 4, 2, 1, 0].map(holds),
        [3, 3, 2, 0, 0, 3].map(Some),
        "without a window there is a canary's own time"
    );
}

#[test]
fn of_several_rules_the_one_that_is_wrong_is_named() {
    let good = "[[observe.rule]]\nname = 'a'\nmetric = 'p95'\nthreshold = 2\n";
    let text = format!("task = 'embed'\n{good}[[observe.rule]]\nname = 'b'\nmetric = 'p95'\nthreshold = []\n");
    assert_eq!(refused(&text).0, "observe.rule[1].threshold");
    let (key, reason) = refused(&format!("task = 'embed'\n{good}{good}"));
    assert_eq!(key, "observe.rule[1].name");
    assert!(reason.contains("\"a\" names another rule"), "{reason}");
    assert_eq!(refused("task = 'embed'\nobserve.rule = 3").0, "observe.rule");
    assert_eq!(refused("task = 'embed'\nobserve.rule = [3]").0, "observe.rule[0]");
}
