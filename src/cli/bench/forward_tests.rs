use super::*;

fn batch(text: &str) -> Batch {
    text.parse().unwrap()
}

#[test]
fn batches_are_read_and_others_refused() {
    assert_eq!(batch("32"), Batch { count: 32, lengths: None });
    assert_eq!(batch("128x16"), Batch { count: 16, lengths: Some((128, 128)) });
    assert_eq!(batch("5-250x64"), Batch { count: 64, lengths: Some((5, 250)) });
    for text in ["32", "128x16", "5-250x64"] {
        assert_eq!(batch(text).to_string(), text);
    }
    for bad in ["", "0", "x", "x3", "3x", "0x3", "9-5x3", "5-x3", "a", "5-250", "1x2x3", "99999999x1"] {
        assert!(bad.parse::<Batch>().is_err(), "{bad}");
    }
}

#[test]
fn mixed_lengths_are_spread_evenly_from_end_to_end() {
    assert_eq!(batch("32").lengths(), None);
    assert_eq!(batch("7x3").lengths().unwrap(), [7, 7, 7]);
    let lengths = batch("5-250x128").lengths().unwrap();
    assert_eq!(lengths.len(), 128);
    assert!(lengths.iter().all(|length| (5..=250).contains(length)));
    assert!(lengths.iter().any(|length| *length < 10) && lengths.iter().any(|length| *length > 245));
    // So are any few that follow each other.
    for few in lengths.chunks(16) {
        let mean = few.iter().sum::<usize>() as f64 / 16.0;
        assert!((105.0..150.0).contains(&mean), "{few:?}");
    }
}

/// The fixture of that folder as a version of a repository, run with these arguments.
fn results(fixture: &str, task: &str, more: &[&str]) -> Result<Value, Failure> {
    use clap::Parser as _;
    let models = tempfile::tempdir().unwrap();
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    std::fs::create_dir(models.path().join("tiny")).unwrap();
    std::fs::write(models.path().join("tiny/model.toml"), format!("task = \"{task}\"\n")).unwrap();
    std::os::unix::fs::symlink(fixtures.join(fixture), models.path().join("tiny/one")).unwrap();
    let place = models.path().to_str().unwrap();
    let line = ["cutover", "bench", "forward", "tiny@one", "--models", place, "--device", "cpu", "--json", "-"];
    let timed = ["--duration", "20ms", "--warmup", "1ms"];
    let cli = super::super::super::Cli::try_parse_from(line.iter().chain(&timed).chain(more)).unwrap();
    let super::super::super::Command::Bench(super::super::BenchArgs {
        command: super::super::BenchCommand::Forward(args),
    }) = cli.command
    else {
        panic!("not bench forward")
    };
    let mut out = Vec::new();
    run(&args, &mut out)?;
    Ok(serde_json::from_slice(&out).unwrap())
}

#[test]
fn each_batch_is_run_and_its_figures_fit_together() {
    let told = results("bert-embed-mean", "embed", &["--batches", "16x4,3-20x8"]).unwrap();
    let batches = told["batches"].as_array().unwrap();
    assert_eq!(batches.len(), 2, "{told}");
    assert_eq!((batches[0]["tokens"].as_u64(), batches[0]["inputs"].as_u64()), (Some(64), Some(4)));
    for batch in batches {
        let of = |key: &str| batch[key].as_f64().unwrap();
        assert!(of("passes") >= 3.0 && of("least_ms") <= of("p50_ms") && of("p50_ms") <= of("p90_ms"), "{batch}");
        let lengths: u64 = batch["lengths"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
        assert_eq!(lengths, batch["tokens"].as_u64().unwrap());
        let per_text = of("tokens_per_s") / of("inputs_per_s");
        assert!((per_text - of("tokens") / of("inputs")).abs() < 0.1, "{batch}");
    }
}

#[test]
fn images_are_run_by_their_number() {
    let told = results("vit-classify", "image-classify", &["--batches", "1,3"]).unwrap();
    let inputs: Vec<_> = told["batches"].as_array().unwrap().iter().map(|batch| batch["inputs"].as_u64()).collect();
    assert_eq!(inputs, [Some(1), Some(3)], "{told}");
}

#[test]
fn more_clients_come_in_larger_passes_and_all_are_answered() {
    let told = results("bert-embed-mean", "embed", &["--clients", "1,6", "--batch", "2", "--corpus", "16"]).unwrap();
    let levels = told["clients"].as_array().unwrap();
    let of = |at: usize, key: &str| levels[at][key].as_f64().unwrap();
    for at in [0, 1] {
        assert!(of(at, "requests") >= 1.0 && of(at, "seconds") > 0.0, "{told}");
        assert!((of(at, "texts_per_s") / of(at, "requests_per_s") - 2.0).abs() < 0.7, "{told}");
    }
    assert_eq!(of(0, "texts_a_pass"), 2.0, "{told}");
    assert!(of(1, "texts_a_pass") > 3.0, "{told}");
}

#[test]
fn what_a_model_does_not_take_is_refused_by_name() {
    for (fixture, task, more, why) in [
        ("bert-embed-mean", "embed", ["--batches", "3"], "says no length"),
        ("bert-embed-mean", "embed", ["--batches", "600x1"], "tokens"),
        ("vit-classify", "image-classify", ["--batches", "8x2"], "images"),
        ("vit-classify", "image-classify", ["--clients", "2"], "text"),
    ] {
        let error = results(fixture, task, &more).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}
