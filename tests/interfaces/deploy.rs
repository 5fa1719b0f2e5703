//! The files that operators take from `deploy/`, held against the metrics of a running server: no rule and no panel names one that
//! is not there. Their syntax is `promtool`'s to check, where it is installed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::common::inputs::digit;
use crate::common::{PATIENCE, Site, root};
use serde_json::{Value, json};

/// What Prometheus has of every scrape.
const ITS_OWN: [&str; 1] = ["up"];
/// Words of PromQL that may stand without a parenthesis behind them and are no metric.
const WORDS: [&str; 17] = [
    "and",
    "avg",
    "bool",
    "by",
    "count",
    "group_left",
    "group_right",
    "ignoring",
    "inf",
    "max",
    "min",
    "offset",
    "on",
    "or",
    "sum",
    "unless",
    "without",
];
/// Labels that Prometheus gives to what it scrapes.
const GIVEN: [&str; 3] = ["instance", "job", "le"];

fn deployed(name: &str) -> String {
    fs::read_to_string(root().join("deploy").join(name)).unwrap()
}

/// The expressions of the rules; each is on one line.
fn rules() -> Vec<String> {
    let text = deployed("prometheus-rules.yml");
    let found: Vec<String> =
        text.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).map(str::to_owned).collect();
    assert_eq!(found.len(), text.matches("- alert: ").count(), "every rule has its expression on one line");
    found
}

/// The expressions of the board: panels, annotations, variables.
fn board() -> Vec<String> {
    let board: Value = serde_json::from_str(&deployed("grafana.json")).unwrap();
    let mut found = Vec::new();
    let mut walk = vec![&board];
    while let Some(value) = walk.pop() {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value {
                        Value::String(text) if matches!(name.as_str(), "expr" | "definition") => {
                            found.push(text.clone())
                        }
                        other => walk.push(other),
                    }
                }
            }
            Value::Array(items) => walk.extend(items),
            _ => {}
        }
    }
    assert!(found.len() > 20, "{found:?}");
    found
}

/// What an expression asks for: metrics, and the labels by which it chooses or sums.
#[derive(Debug, Default, PartialEq)]
struct Asked {
    metrics: BTreeSet<String>,
    labels: BTreeSet<String>,
}

fn asked(expression: &str) -> Asked {
    let mut asked = Asked::default();
    let chars: Vec<char> = expression.chars().collect();
    let (mut at, mut labels_until) = (0, None);
    let word = |from: usize| -> String {
        chars[from..].iter().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':')).collect()
    };
    while at < chars.len() {
        match chars[at] {
            '"' => at += chars[at + 1..].iter().position(|c| *c == '"').unwrap() + 1,
            // A length of time, or Grafana's name for one.
            '[' => at += chars[at..].iter().position(|c| *c == ']').unwrap(),
            '$' => at += word(at + 1).len(),
            '{' => labels_until = Some('}'),
            c if labels_until == Some(c) => labels_until = None,
            c if c.is_ascii_alphabetic() || c == '_' => {
                let name = word(at);
                at += name.len();
                let next = chars[at..].iter().find(|c| !c.is_whitespace());
                if labels_until.is_some() {
                    asked.labels.insert(name);
                } else if matches!(name.as_str(), "by" | "without" | "on" | "ignoring") {
                    labels_until = Some(')');
                } else if next != Some(&'(') && !WORDS.contains(&name.as_str()) {
                    asked.metrics.insert(name);
                }
                continue;
            }
            // With its unit, or in scientific notation.
            c if c.is_ascii_digit() => {
                at += word(at).len();
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    // `label_values(metric{…}, label)` is Grafana's: its second argument is a label.
    if let Some(label) = expression.strip_prefix("label_values(").and_then(|rest| rest.rsplit_once(", ")) {
        let label = label.1.trim_end_matches(')').to_owned();
        asked.metrics.remove(&label);
        asked.labels.insert(label);
    }
    asked
}

#[test]
fn what_an_expression_asks_for_is_found_in_it() {
    let found =
        asked(r#"sum by (le, model) (rate(a_total{b=~"c|d", e="f"}[5m])) / 0.5e3 > bool a_count offset 1h or up"#);
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(found.metrics, set(&["a_total", "a_count", "up"]));
    assert_eq!(found.labels, set(&["le", "model", "b", "e"]));
    let variable = asked(r#"label_values(info{instance=~"$instance"}, model)"#);
    assert_eq!((variable.metrics, variable.labels), (set(&["info"]), set(&["instance", "model"])));
}

/// The series of a page by name, with the labels that they have; families without any series, too.
fn series(page: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut series: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in page.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            let suffixes: &[&str] = match kind {
                "counter" => &["_total"],
                "histogram" => &["_bucket", "_count", "_sum"],
                _ => &[""],
            };
            for suffix in suffixes {
                series.entry(format!("{name}{suffix}")).or_default();
            }
        } else if !line.starts_with('#') {
            let (name, labels) = line.split_once(['{', ' ']).unwrap();
            // A route has braces of its own.
            let labels = labels.rsplit_once('}').map_or("", |(labels, _)| labels);
            let keys = labels.split("\",").filter_map(|label| Some(label.split_once('=')?.0.trim().to_owned()));
            series.entry(name.to_owned()).or_default().extend(keys);
        }
    }
    series
}

#[tokio::test(flavor = "multi_thread")]
async fn no_rule_and_no_panel_names_a_metric_that_is_not_there() {
    // A family is on the page once it has a series, so everything has to happen once: also a failover, a span
    // and an alert that are told.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let collector = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(|| async {})).await });
    let site = Site::digits()
        .config(&format!(
            "[telemetry]\notlp = '{collector}'\n[[alerts]]\nkind = 'slack'\nurl = '{collector}'\non = ['switched']\n"
        ))
        .fault("version = 'digits@v2'\nkind = 'error'");
    site.add_writer("tiny");
    let server = site.start().await;
    server.image("digits", &digit(7)).await.expect(200);
    server.promote("v2", json!({})).await.expect(200);
    server.image("digits", &digit(7)).await.expect(200);
    let began = std::time::Instant::now();
    let page = loop {
        let page = server.get("/metrics").await.expect(200).body;
        let told = |family: &str| page.as_str().unwrap().contains(&format!("cutover_{family}_total{{"));
        if told("spans") && told("alerts") {
            break page;
        }
        assert!(began.elapsed() < PATIENCE, "no span or no alert was told");
        // The page says when it is there, and nothing else does.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let series = series(page.as_str().unwrap());
    let everything: BTreeSet<&String> = series.values().flatten().collect();
    let mut used = BTreeSet::new();
    for expression in rules().into_iter().chain(board()) {
        let asked = asked(&expression);
        assert!(!asked.metrics.is_empty(), "{expression}");
        for metric in asked.metrics.iter().filter(|metric| !ITS_OWN.contains(&metric.as_str())) {
            assert!(series.contains_key(metric), "there is no {metric}: {expression}");
            used.insert(metric.clone());
        }
        for label in asked.labels.iter().filter(|label| !GIVEN.contains(&label.as_str())) {
            // Of a family that has no series yet nobody can say; some other has it then.
            let known =
                asked.metrics.iter().filter_map(|metric| series.get(metric)).any(|labels| labels.contains(label));
            let silent = asked.metrics.iter().any(|metric| series.get(metric).is_none_or(BTreeSet::is_empty));
            assert!(known || silent && everything.contains(label), "nothing has a label {label}: {expression}");
        }
    }
    assert!(used.len() > 15, "{used:?}");
}

/// One that is installed, or that `.ci/promtool` has brought.
fn promtool() -> Option<PathBuf> {
    let brought = root().join("target/promtool/promtool");
    let runs = |path: &PathBuf| Command::new(path).arg("--version").output().is_ok();
    [PathBuf::from("promtool"), brought].into_iter().find(runs)
}

#[test]
fn promtool_takes_the_rules_and_they_fire_when_they_should() {
    let Some(promtool) = promtool() else {
        eprintln!("SKIPPED: there is no promtool here (.ci/promtool brings one), so the rules were not run");
        return;
    };
    let (rules, tests) = (root().join("deploy/prometheus-rules.yml"), root().join("tests/deploy/rules.yml"));
    let lines = [
        vec!["check".into(), "rules".into(), "--lint-fatal".into(), rules.into_os_string()],
        vec!["test".into(), "rules".into(), tests.into_os_string()],
    ];
    for line in lines {
        let ended = Command::new(&promtool).args(&line).output().unwrap();
        let said = String::from_utf8_lossy(&ended.stdout).into_owned() + &String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{line:?}: {said}");
    }
}
