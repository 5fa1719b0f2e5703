use clap::Parser as _;

use super::*;
use crate::cli::{Cli, Command};

struct Repo(tempfile::TempDir);

impl Repo {
    /// The bundled digits, to be changed, without what was recorded for `v1`.
    fn digits() -> Repo {
        let root = tempfile::tempdir().unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/digits");
        let to = root.path().join("models/digits");
        for version in ["v1", "v3"] {
            fs::create_dir_all(to.join(version)).unwrap();
            for file in ["config.json", "model.safetensors", "preprocessor_config.json"] {
                fs::copy(from.join(version).join(file), to.join(version).join(file)).unwrap();
            }
        }
        for file in ["model.toml", "golden.jsonl"] {
            fs::copy(from.join(file), to.join(file)).unwrap();
        }
        Repo(root)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn golden(&self, line: &str) -> (Result<bool>, String) {
        let (models, state) = (self.path("models"), self.path("state"));
        let mut words = vec!["cutover", "golden"];
        words.extend(line.split(' '));
        words.extend(["--models", models.to_str().unwrap()]);
        if line.starts_with("record") {
            words.extend(["--state", state.to_str().unwrap()]);
        }
        let Command::Golden(args) = Cli::try_parse_from(words).unwrap().command else { panic!("golden") };
        let mut out = Vec::new();
        let result = run(&args, &mut out);
        (result, String::from_utf8(out).unwrap())
    }
}

#[test]
fn what_is_recorded_passes_and_what_is_changed_afterwards_fails() {
    let repo = Repo::digits();
    let (result, shown) = repo.golden("record digits@v1");
    assert!(result.unwrap());
    assert!(shown.starts_with("recorded 40 cases in digits/v1/golden.jsonl"), "{shown}");
    let (result, shown) = repo.golden("check digits@v1");
    assert!(result.unwrap(), "{shown}");
    // 40 of the model, 40 of the version, and batch invariance
    assert!(shown.contains("digits@v1 passed 81 checks") && shown.contains("batch-invariance"), "{shown}");

    let file = repo.path("models/digits/v1/golden.jsonl");
    let mut cases = read_golden(&file).unwrap();
    let Expect::Labels { labels, .. } = &mut cases[3].expect else { panic!("labels") };
    labels[0].score -= 0.5;
    write_lines(&cases, &file).unwrap();
    let (result, shown) = repo.golden("check digits@v1 --json");
    assert!(!result.unwrap());
    let report: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let failed: Vec<_> = report["checks"].as_array().unwrap().iter().filter(|c| c["passed"] == false).collect();
    assert_eq!((failed.len(), &failed[0]["case"]), (1, &json!(cases[3].id)));
    assert!((failed[0]["measure"].as_f64().unwrap() - 0.5).abs() < 0.01);
}

#[test]
fn a_version_that_does_not_behave_fails_its_check() {
    let repo = Repo::digits();
    let (result, shown) = repo.golden("check digits@v3");
    assert!(!result.unwrap());
    assert!(shown.contains("FAILED") && shown.contains("digits@v3 failed"), "{shown}");
}

#[test]
fn what_was_recorded_is_not_replaced_unless_forced() {
    let repo = Repo::digits();
    repo.golden("record digits@v1").0.unwrap();
    let file = repo.path("models/digits/v1/golden.jsonl");
    let before = fs::read(&file).unwrap();
    let refused = repo.golden("record digits@v1 --max-abs 0.5").0.unwrap_err().to_string();
    assert!(refused.contains("has a golden.jsonl already") && refused.contains("--force"), "{refused}");
    assert_eq!(fs::read(&file).unwrap(), before);
    repo.golden("record digits@v1 --max-abs 0.5 --force").0.unwrap();
    assert!(fs::read_to_string(&file).unwrap().contains("\"max_abs\":0.5"));
}

#[test]
fn a_version_that_a_server_has_seen_is_left_as_it_is() {
    let repo = Repo::digits();
    fs::create_dir(repo.path("state")).unwrap();
    let ledger = Ledger::open(&repo.path("state/ledger.sqlite")).unwrap();
    ledger.record_manifest("digits", "v1", &json!({"digest": "x"})).unwrap();
    let refused = repo.golden("record digits@v1").0.unwrap_err().to_string();
    assert!(refused.contains("has seen digits@v1") && refused.contains("new version name"), "{refused}");
    assert!(!repo.path("models/digits/v1/golden.jsonl").exists());
    // Another version of the same model was not seen.
    repo.golden("record digits@v3").0.unwrap();
    repo.golden("record digits@v1 --force").0.unwrap();
}

#[test]
fn inputs_of_a_file_are_recorded_once_each_and_broken_ones_are_named() {
    let repo = Repo::digits();
    let image = |digit: u8| {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("models/digits/samples/{digit}.png"));
        serde_json::to_string(&RawInput::Image(fs::read(file).unwrap())).unwrap()
    };
    let inputs = repo.path("inputs");
    fs::remove_file(repo.path("models/digits/golden.jsonl")).unwrap();
    fs::write(&inputs, format!("{}\n\n{}\n{}\n", image(7), image(3), image(7))).unwrap();
    let record = format!("record digits@v1 --inputs {}", inputs.display());
    repo.golden(&record).0.unwrap();
    let cases = read_golden(&repo.path("models/digits/v1/golden.jsonl")).unwrap();
    assert_eq!(cases.iter().map(|case| case.id.as_str()).collect::<Vec<_>>(), ["input-1", "input-3"]);
    let Expect::Labels { labels, max_abs } = &cases[0].expect else { panic!("labels") };
    assert_eq!((labels[0].label.as_str(), labels.len(), *max_abs), ("7", 10, 0.005));

    for (broken, part) in [("{\"image\": \"%\"}", "inputs:2"), ("\"a text\"", "input-2: the version cannot answer")] {
        fs::write(&inputs, format!("{}\n{broken}\n", image(1))).unwrap();
        let refused = repo.golden(&format!("{record} --force")).0.unwrap_err().to_string();
        assert!(refused.contains(part), "{refused}");
    }
    // The file that was there is whole, and nothing half-written lies about.
    assert_eq!(read_golden(&repo.path("models/digits/v1/golden.jsonl")).unwrap(), cases);
    let left = fs::read_dir(repo.path("models/digits")).unwrap().count();
    assert_eq!(left, ["model.toml", "v1", "v3"].len());
}

#[test]
fn nothing_to_record_or_to_check_is_no_success() {
    let repo = Repo::digits();
    fs::remove_file(repo.path("models/digits/golden.jsonl")).unwrap();
    assert!(repo.golden("record digits@v1").0.unwrap_err().to_string().contains("nothing to record"));
    assert!(repo.golden("check digits@v1").0.unwrap_err().to_string().contains("no golden cases"));
    assert!(matches!(repo.golden("check digits@v9").0.unwrap_err(), Error::Unknown { .. }));
}

#[test]
fn of_very_many_labels_the_highest_are_kept_and_none_twice() {
    let label = |name: &str, score: f32| LabelScore { label: name.into(), score };
    let mut labels: Vec<LabelScore> = (0..30).map(|n| label(&n.to_string(), 1.0 - n as f32)).collect();
    labels.insert(0, label("crane", 2.0));
    labels.insert(5, label("crane", -2.0));
    let kept = highest(labels);
    assert_eq!((kept.len(), kept[0].label.as_str()), (MOST_LABELS, "0"));
}
