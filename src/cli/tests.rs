use super::mock::{Faults, Mock};
use super::*;
use clap::CommandFactory as _;
use clap::error::ErrorKind;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn what_the_design_promises_can_be_typed() {
    for line in [
        "cutover serve --models m --model a --model b --device cuda:1 --listen 127.0.0.1:9 --state s --config c.toml --log json",
        "cutover serve --api-key-file a --api-key-file b --tls-cert c --tls-key k",
        "cutover watch --url https://host --ca-cert c",
        "cutover status --api-key-file k --token-file t",
        "cutover promote v2 --observe 5m --wait settled --reason why --actor me --accept-contract-change --json",
        "cutover promote v2 --canary 5,25,50 --canary-step 1m --sticky header:x-user --shadow 0.1",
        "cutover promote v2 --canary 0",
        "cutover stage v2 --shadow 0.5",
        "cutover experiment start tone v1=70 v2=30 --model digits --sticky api-key",
        "cutover experiment status --json",
        "cutover experiment stop tone",
        "cutover stage minilm@f16 --url http://localhost:1 --token-file t",
        "cutover stage minilm@f16 --park --reason why",
        "cutover rollback digits",
        "cutover settle",
        "cutover abort 17",
        "cutover drop digits@v2 --json",
        "cutover status",
        "cutover watch --model digits",
        "cutover history --verify --state .cutover",
        "cutover golden record digits@v1",
        "cutover golden record digits@v1 --inputs f --max-abs 0.01 --min-cosine 0.99 --force --state s",
        "cutover golden check digits@v1 --models m",
        "cutover alerts test",
        "cutover alerts test --target ops --json",
        "cutover diff v2",
        "cutover diff v1 v2 --check --json",
        "cutover diff models/digits/v1 models/digits/v2 --task image-classify",
        "cutover inspect models/digits/v1 --json",
        "cutover bench serve --model digits --clients 1,8,32",
        "cutover bench serve --model minilm --dialect openai --rate 100 --duration 10s",
        "cutover bench swap --model digits --versions v1,v2 --switches 50 --observe 1s --load 60%",
        "cutover bench soak --model digits --versions v1,v2 --refused v3 --mishaps 10% --every 25 --svg f",
        "cutover bench chat --model smollm2 --clients 32 --prompt-words 16,64 --max-tokens 64 --duration 30s --json -",
        "cutover bench chat --model smollm2 --versions q4_1,f16 --switches 50 --ignore-eos --check --svg f",
        "cutover bench forward minilm@f32 --device cpu --batches 128x1,5-250x64 --duration 1s --warmup 1s --json -",
        "cutover bench forward minilm@f32 --models m --clients 1,64 --batch 32 --batch-tokens 16384",
        "cutover inspect models/digits/v1 --task image-classify",
        "cutover convert models/m/q4_1/m.gguf models/m/f16 --dtype f16",
        "cutover pull org/name",
        "cutover pull org/name --revision v1.0 --as name@v1 --task embed --endpoint http://hub --token secret",
        "cutover pull org/name --golden f --device cpu",
    ] {
        if let Err(e) = Cli::try_parse_from(line.split(' ')) {
            panic!("{line}: {e}");
        }
    }
}

#[test]
fn mistakes_on_the_command_line_exit_with_2() {
    for line in [
        "cutover",
        "cutover promote",
        "cutover promote v2 --observe soon",
        "cutover promote v2 --url ftp://x",
        "cutover promote v2 --canary 50,25",
        "cutover promote v2 --canary 5 --canary-step 1m --canary-requests 5",
        "cutover promote v2 --shadow 2",
        "cutover promote v2 --sticky moon",
        "cutover experiment start tone v1=50",
        "cutover experiment start tone v1 v2",
        "cutover serve --device tpu",
        "cutover bench swap --model digits --versions v1",
        "cutover bench swap --model digits --versions v1,v1",
        "cutover bench swap --model digits --versions v1,v2 --rate 5 --load 60%",
        "cutover bench soak --model digits --versions v1,v2 --mishaps 101%",
        "cutover bench serve --model digits --clients 0",
        "cutover bench chat --model smollm2 --prompt-words 0",
        "cutover bench chat --model smollm2 --switches 3",
        "cutover bench forward minilm",
        "cutover bench forward minilm@f32 --batches 128x",
        "cutover bench forward minilm@f32 --batches 1x1 --clients 1",
        "cutover alerts",
        "cutover diff",
        "cutover diff v1 v2 v3",
        "cutover golden check digits",
        "cutover golden check digits@../v1",
        "cutover golden record digits@v1 --min-cosine 2",
        "cutover inspect models/digits/v1 --task digits",
        "cutover history --limit 0",
        "cutover history --limit 1001",
        "cutover history r1 --limit 5",
        "cutover pull org/name --device cpu",
        "cutover convert m.gguf",
        "cutover convert m.gguf f16 --dtype f8",
    ] {
        let Err(error) = Cli::try_parse_from(line.split(' ')) else { panic!("{line} was taken") };
        assert_eq!(error.exit_code(), 2, "{line}");
    }
    let bench = Cli::try_parse_from(["cutover", "bench", "--help"]).unwrap_err().to_string();
    assert!(bench.contains("--realtime"), "{bench}");
    let help = Cli::try_parse_from(["cutover", "--help"]).unwrap_err();
    assert_eq!(help.kind(), ErrorKind::DisplayHelp);
}

#[test]
fn local_commands_are_handed_back_and_not_run() {
    let line = ["cutover", "history", "--verify", "--state", "somewhere"];
    match Cli::try_parse_from(line).unwrap().dispatch() {
        Dispatch::Local(Local::Verify { state, json }) => {
            assert_eq!(state, std::path::Path::new("somewhere"));
            assert!(!json);
        }
        other => panic!("{other:?}"),
    }
}

/// Runs a client command against a server; what it printed, and how it ended.
async fn run(mock: &Mock, line: &str) -> (String, Result<(), Failure>) {
    let url = mock.url();
    let words = line.split(' ').chain(["--url", &url]);
    let cli = Cli::try_parse_from(std::iter::once("cutover").chain(words)).unwrap();
    let mut out = Vec::new();
    let result = match cli.command {
        Command::Stage(args) => promote::stage(&args, &mut out).await,
        Command::Promote(args) => promote::promote(&args, &mut out).await,
        Command::Rollback(args) => operate::rollback(&args, &mut out).await,
        Command::Settle(args) => operate::settle(&args, &mut out).await,
        Command::Abort(args) => operate::abort(&args, &mut out).await,
        Command::Drop(args) => operate::release(&args, &mut out).await,
        Command::Experiment(args) => experiment::experiment(&args, &mut out).await,
        Command::Status(args) => status::status(&args, &mut out).await,
        Command::Diff(args) => diff::ask(&args, &mut out).await,
        Command::Alerts(AlertsArgs { command: AlertsCommand::Test(args) }) => alerts::test(&args, &mut out).await,
        Command::History(args) => history::history(&args, &mut out).await,
        other => panic!("{other:?}"),
    };
    (String::from_utf8(out).unwrap(), result)
}

#[tokio::test]
async fn promote_follows_the_rollout_and_sums_it_up() {
    let mock = Mock::start(Faults::default()).await;
    let line = "promote digits@v2 --observe 5m --wait settled --reason why --actor me --accept-contract-change";
    let (shown, result) = run(&mock, line).await;
    result.unwrap();
    assert!(shown.starts_with("digits: v1 → v2 observing\n"), "{shown}");
    assert!(shown.contains("golden") && shown.contains("passed") && shown.contains("downtime_ms"), "{shown}");
    let expected = r#"POST /models/digits@v2/promote {"wait":"settled","observe":"5m","reason":"why","actor":"me","accept_contract_change":true}"#;
    assert_eq!(mock.asked(), [expected]);
    let (shown, _) = run(&mock, "status").await;
    insta::assert_snapshot!(shown, @r"
    model   task            live  candidate  previous  versions
    minilm  embed           f32   -          -         f32 f16
    digits  image-classify  v2    -          v1        v1 v2 v3
    devices
      device  reserved    budget
      cpu     3.00 MiB  1.00 GiB
    ");
}

#[tokio::test]
async fn a_refused_promote_shows_every_failing_case_and_exits_with_1() {
    let mock = Mock::start(Faults { refuse: true, ..Faults::default() }).await;
    let (_, result) = run(&mock, "promote digits@v2").await;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = result.unwrap_err().report(false, &mut out, &mut err);
    let err = String::from_utf8(err).unwrap();
    assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(1)));
    assert!(err.contains("error: the gate refused it") && err.contains("nine") && err.contains("FAILED"), "{err}");
    assert!(out.is_empty());
    // For a program, the same as the server said it.
    let (_, result) = run(&mock, "promote digits@v2 --json").await;
    result.unwrap_err().report(true, &mut out, &mut Vec::new());
    let body: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(body["error"]["details"]["gate"][1]["case"], "nine");
}

#[tokio::test]
async fn every_command_asks_its_route_and_shows_the_answer() {
    let mock = Mock::start(Faults::default()).await;
    for (line, asked, shown) in [
        ("stage v3 --actor me", r#"POST /models/v3/stage {"actor":"me"}"#, "v1 → v3 ready"),
        (
            "stage v3 --park --actor me",
            r#"POST /models/v3/stage {"actor":"me","park":"host"}"#,
            "digits: v3 waits in host memory (2.00 KiB)",
        ),
        (
            "promote v3 --actor me --wait none",
            r#"POST /models/v3/promote {"wait":"none","actor":"me"}"#,
            "rollout r1 goes on",
        ),
        (
            "rollback digits --actor me",
            r#"POST /admin/rollback {"model":"digits","actor":"me"}"#,
            "rolled_back (instant)",
        ),
        ("abort r1 --actor me --reason no", r#"POST /admin/rollouts/r1/abort {"reason":"no","actor":"me"}"#, "aborted"),
        ("drop v2", "DELETE /models/v2 ", "v1 → v2 aborted"),
        ("drop v9", "DELETE /models/v9 ", "v9 was not in memory"),
        ("diff v2", "GET /models/v2/diff ", "digits@v1 → digits@v2: the gate refuses it in its place"),
        ("diff v1 v2", "GET /models/v2/diff?against=v1 ", "breaking  labels  2 of 10 labels are others"),
        ("history r1", "GET /admin/rollouts/r1 ", "v1 → v2 aborted"),
        ("history", "GET /admin/rollouts ", "success_rate  0.5"),
        ("history --model digits", "GET /admin/rollouts?model=digits ", "settled"),
        ("history --model digits --limit 9", "GET /admin/rollouts?model=digits&limit=9 ", "settled"),
        ("history --limit 2", "GET /admin/rollouts?limit=2 ", "the newest 2 of 234; --limit shows up to 1000"),
    ] {
        let (told, result) = run(&mock, line).await;
        result.unwrap();
        assert!(told.contains(shown), "{line}: {told}");
        assert_eq!(mock.asked().last().unwrap(), asked, "{line}");
    }
    let (told, _) = run(&mock, "history --model digits").await;
    assert!(!told.contains("minilm"), "{told}");
    let (_, refused) = run(&mock, "history --model nope").await;
    assert_eq!(refused.unwrap_err().to_string(), "no model or version is called 'nope'");
    let (_, refused) = run(&mock, "settle digits").await;
    assert_eq!(refused.unwrap_err().to_string(), "nothing to settle");
    let (_, refused) = run(&mock, "promote v9").await;
    assert!(refused.unwrap_err().to_string().contains("'v9'"));
}

#[tokio::test]
async fn the_token_is_sent_and_status_does_without_it() {
    let mock = Mock::start(Faults { token: Some("sesame"), ..Faults::default() }).await;
    let (shown, result) = run(&mock, "status digits").await;
    result.unwrap();
    assert!(shown.contains("memory: not shown"), "{shown}");
    let (_, refused) = run(&mock, "promote v2").await;
    assert_eq!(refused.unwrap_err().to_string(), "a token is needed");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "sesame\n").unwrap();
    let (shown, result) = run(&mock, &format!("promote v2 --token-file {}", file.path().display())).await;
    result.unwrap();
    assert!(shown.contains("v1 → v2"), "{shown}");
}

#[tokio::test]
async fn watch_goes_on_after_a_lost_connection_where_it_stopped() {
    let mock = Mock::start(Faults { events_end_after: Some(2), ..Faults::default() }).await;
    let url = mock.url();
    let line = ["cutover", "watch", "--model", "digits", "--json", "--url", &url];
    let Command::Watch(args) = Cli::try_parse_from(line).unwrap().command else { panic!("not watch") };
    let mut out = Vec::new();
    let watching = watch::watch(&args, &mut out);
    let ended = tokio::time::timeout(std::time::Duration::from_secs(1), watching).await;
    assert!(ended.is_err(), "watch ended: {ended:?}");
    let seen: Vec<i64> = String::from_utf8(out)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["seq"].as_i64().unwrap())
        .collect();
    assert!(seen.len() >= 3, "{seen:?}");
    assert!(seen.iter().enumerate().all(|(at, seq)| *seq == 2 * at as i64 + 1), "each once, in order: {seen:?}");
}
