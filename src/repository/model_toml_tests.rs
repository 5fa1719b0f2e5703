use super::*;
use crate::repository::{Lasts, Sticky};

fn refused(text: &str) -> (String, String) {
    match ModelConfig::parse(text, "m/model.toml") {
        Err(Error::Config { file, key, reason }) => {
            assert_eq!(file, "m/model.toml");
            (key, reason)
        }
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn a_task_alone_is_enough_and_gives_the_documented_defaults() {
    let config = ModelConfig::parse("task = 'embed'", "m").unwrap();
    assert_eq!(config, ModelConfig::new(Task::Embed));
    assert_eq!(config.limits.max_inputs, 2048);
    assert_eq!(config.limits.max_body_bytes, 32 * 1024 * 1024);
    assert_eq!(config.observe.window, Duration::from_secs(300));
    assert_eq!(config.batch.max_wait, Duration::ZERO);
    assert_eq!((config.rollout.mode, config.rollout.park), (Mode::Beside, Park::None));
    // A prompt may take longer than any input of another task.
    let deadline = |text: &str| ModelConfig::parse(text, "m").unwrap().limits.deadline.as_secs();
    assert_eq!(deadline("task = 'generate'\n[limits]\nqueue = 3"), 300);
    assert_eq!(deadline("task = 'generate'\nlimits.deadline = '30s'"), 30);
    assert_eq!(deadline("task = 'embed'"), 30);
    // As many texts wait as several requests may hold; what waits as pixels, or is written for, is less.
    let queue = |text: &str| ModelConfig::parse(text, "m").unwrap().limits.queue;
    for (task, expected) in
        [("embed", 8192), ("classify", 8192), ("rerank", 8192), ("image-classify", 1024), ("generate", 1024)]
    {
        assert_eq!(queue(&format!("task = '{task}'")), expected, "{task}");
        assert_eq!(queue(&format!("task = '{task}'\nlimits.deadline = '1s'")), expected, "{task}");
        assert_eq!(queue(&format!("task = '{task}'\nlimits.queue = 7")), 7, "{task}");
    }
    assert!(!config.rollout.direct_reads);
    assert_eq!(config.gpu.f32_matmul, F32Matmul::F32);
}

#[test]
fn every_key_is_read() {
    let text = r#"
            task = "image-classify"
            family = "vit"
            live = "v1"
            description = "digits"
            limits = { max_inputs = 3, max_tokens = 77, max_text_bytes = '6kB', max_body_bytes = '9 MiB', queue = 5, deadline = "1s", max_image_pixels = 8 }
            [gate]
            min_pass = 0.9
            max_latency_ratio = 3
            latency_rounds = 2
            case_timeout = "2s"
            invariance_max_abs = 0.5
            max_token_latency_ratio = 3
            max_logprob_gap = 0.25
            max_perplexity_ratio = 1.25
            min_greedy_agreement = 0.75
            probation_timeout = "3s"
            [observe]
            window = "1h30m"
            min_requests = 1
            max_error_rate = 0
            max_nonfinite = 4
            max_p99_ratio = 9.5
            max_p50_ratio = 3
            golden_every = "250ms"
            drain_timeout = "0s"
            [[observe.rule]]
            name = "budget"
            metric = "p95"
            comparison = "absolute"
            threshold = "50ms"
            min_samples = 300
            for = "10s"
            [canary]
            steps = [1, 12.5]
            requests = 100
            sticky = "header:X-User"
            [shadow]
            share = 0.25
            min_agreement = 0.9
            min_samples = 7
            keep_inputs = false
            [batch]
            max_tokens = 10
            max_items = 11
            max_wait = "2ms"
            [rollout]
            mode = "beside"
            load_timeout = "4s"
            throttle = "2GB/s"
            direct_reads = true
            park = "host"
            [gpu]
            f32_matmul = "tf32"
        "#;
    let config = ModelConfig::parse(text, "m").unwrap();
    assert_eq!((config.family.as_deref(), config.live.as_deref()), (Some("vit"), Some("v1")));
    assert_eq!(config.limits.max_tokens, Some(77));
    assert_eq!(config.limits.deadline, Duration::from_secs(1));
    assert_eq!(config.gate.max_latency_ratio, 3.0);
    assert_eq!(config.gate.invariance_max_abs, 0.5);
    let GateConfig { max_token_latency_ratio, max_logprob_gap, max_perplexity_ratio, min_greedy_agreement, .. } =
        config.gate;
    assert_eq!(
        (max_token_latency_ratio, max_logprob_gap, max_perplexity_ratio, min_greedy_agreement),
        (Some(3.0), 0.25, 1.25, 0.75)
    );
    assert_eq!(config.observe.window, Duration::from_secs(5400));
    assert_eq!(config.observe.golden_every, Duration::from_millis(250));
    assert_eq!((config.observe.max_p50_ratio, config.observe.rule[0].min_samples), (Some(3.0), Some(300)));
    let CanaryConfig { steps, lasts, sticky } = &config.canary;
    assert_eq!((steps.as_slice(), *lasts), (&[1.0, 12.5][..], Lasts::Requests(100)));
    assert_eq!(*sticky, Sticky::Header("x-user".into()));
    let ShadowConfig { share, min_agreement, min_samples, keep_inputs } = config.shadow;
    assert_eq!((share, min_agreement, min_samples, keep_inputs), (0.25, Some(0.9), 7, false));
    assert_eq!((config.batch.max_tokens, config.batch.max_items), (Some(10), Some(11)));
    assert_eq!((config.rollout.mode, config.rollout.park), (Mode::Beside, Park::Host));
    assert_eq!((config.rollout.throttle, config.rollout.direct_reads), (LoadThrottle::Rate(2_000_000_000), true));
    assert_eq!(config.gpu.f32_matmul, F32Matmul::Tf32);
    let written = toml::to_string(&config).unwrap();
    assert_eq!(ModelConfig::parse(&written, "m").unwrap(), config);
}

#[test]
fn a_wrong_value_names_the_key_and_what_was_expected() {
    let cases = [
        ("live = 'v1'", "task", "expected one of embed"),
        ("task = 'sing'", "task", "expected one of `embed`"),
        ("task = 3", "task", "expected a string"),
        ("task = { embed = 1 }", "task", "expected a string"),
        ("task = 'embed'\nlive = 'a/b'", "live", "version folder"),
        ("task = 'embed'\nfamily = ' '", "family", "expected a name"),
        ("task = 'embed'\n[limits]\nmax_inputs = 'many'", "limits.max_inputs", "expected a whole number"),
        ("task = 'embed'\n[limits]\nmax_inputs = -1", "limits.max_inputs", "expected a whole number"),
        ("task = 'embed'\n[limits]\nmax_body_bytes = '0MB'", "limits.max_body_bytes", "at least 1"),
        ("task = 'embed'\n[limits]\nmax_text_bytes = '1k'", "limits.max_text_bytes", "a size such as"),
        ("task = 'embed'\n[gate]\nmin_pass = 'all'", "gate.min_pass", "expected a number"),
        ("task = 'embed'\n[limits]\nqueue = 0", "limits.queue", "at least 1"),
        ("task = 'embed'\nlimits = { max_tokens = 0 }", "limits.max_tokens", "at least 1"),
        ("task = 'embed'\nlimits.deadline = '0s'", "limits.deadline", "a longer one"),
        ("task = 'embed'\n[gate]\nmin_pass = nan", "gate.min_pass", "from 0.0 to 1.0"),
        ("task = 'embed'\n[gate]\nmin_pass = 1.01", "gate.min_pass", "from 0.0 to 1.0"),
        ("task = 'embed'\n[gate]\nmax_latency_ratio = inf", "gate.max_latency_ratio", "finite"),
        ("task = 'generate'\n[gate]\nmax_logprob_gap = 0", "gate.max_logprob_gap", "above 0"),
        ("task = 'generate'\n[gate]\nmax_perplexity_ratio = -1", "gate.max_perplexity_ratio", "above 0"),
        ("task = 'generate'\n[gate]\nmin_greedy_agreement = 1.5", "gate.min_greedy_agreement", "1"),
        ("task = 'embed'\n[gate]\ninvariance_max_abs = 1e300", "gate.invariance_max_abs", "32-bit"),
        ("task = 'embed'\n[gate]\nlatency_rounds = 0", "gate.latency_rounds", "at least 1"),
        ("task = 'embed'\n[observe]\nwindow = 300", "observe.window", "a duration such as"),
        ("task = 'embed'\n[observe]\nwindow = '5 minutes'", "observe.window", "a duration such as"),
        ("task = 'embed'\n[observe]\ngolden_every = '0s'", "observe.golden_every", "a longer one"),
        ("task = 'embed'\n[canary]\nsteps = [50, 25]", "canary.steps", "each more than the one before"),
        ("task = 'embed'\n[canary]\nsteps = 5", "canary.steps", "expected a sequence"),
        ("task = 'embed'\n[canary]\nstep = '0s'", "canary.step", "a longer one"),
        ("task = 'embed'\n[canary]\nrequests = 0", "canary.requests", "at least 1"),
        ("task = 'embed'\n[canary]\nstep = '9s'\nrequests = 9", "canary", "not both"),
        ("task = 'embed'\n[canary]\nsticky = 'cookie'", "canary.sticky", "header:<name>"),
        ("task = 'embed'\n[shadow]\nshare = 10", "shadow.share", "from 0.0 to 1.0"),
        ("task = 'embed'\n[shadow]\nmin_agreement = -1", "shadow.min_agreement", "from 0.0 to 1.0"),
        ("task = 'embed'\n[rollout]\nmode = 'yolo'", "rollout.mode", "expected `beside` or `replace`"),
        ("task = 'embed'\n[rollout]\npark = 'disk'", "rollout.park", "expected `none` or `host`"),
        ("task = 'embed'\nrollout.park = true", "rollout.park", "expected a string"),
        ("task = 'embed'\n[gpu]\nf32_matmul = 'fp8'", "gpu.f32_matmul", "expected `f32` or `tf32`"),
        ("task = 'embed'\n[gpu]\nf32_matmul = true", "gpu.f32_matmul", "expected a string"),
        ("task = 'embed'\n[gpu]\ntf32 = true", "gpu.tf32", "expected `f32_matmul`"),
        ("task = 'embed'\nlimits = 3", "limits", "expected"),
        ("task = 'embed'\n[canary]\nsteps = [5]\n[rollout]\nmode = 'replace'", "canary.steps", "one version at a time"),
        ("task = 'embed'\n[shadow]\nshare = 0.1\n[rollout]\nmode = 'replace'", "shadow.share", "expected 0 with"),
    ];
    for (text, key, expected) in cases {
        let (found, reason) = refused(text);
        assert_eq!(found, key, "{text}: {reason}");
        assert!(reason.contains(expected), "{text}: {reason}");
    }
}

#[test]
fn unknown_keys_are_refused_by_name_at_every_level() {
    let (key, reason) = refused("task = 'embed'\ntsak = 1");
    assert_eq!(key, "tsak", "{reason}");
    assert!(reason.contains("unknown field `tsak`") && reason.contains("(line 2)"), "{reason}");
    let (key, reason) = refused("task = 'embed'\n\n[gate]\nmin_pas = 1.0");
    assert_eq!(key, "gate.min_pas", "{reason}");
    assert!(reason.contains("min_pass") && reason.contains("(line 4)"), "{reason}");
}

#[test]
fn broken_toml_is_refused_with_its_line() {
    for text in ["task = 'embed'\n[gate", "task = 'embed'\ntask = 'embed'", "task = 'embed'\nx = ", "a\0b"] {
        let (key, reason) = refused(text);
        assert!(key.starts_with("(line "), "{text}: {key}: {reason}");
        assert!(reason.starts_with("not valid TOML") && !reason.contains('\n'), "{text}: {reason}");
    }
    assert_eq!(refused("task = 'embed'\n[gate").0, "(line 2)");
}
