//! A real `cutover serve` for tests: its own folder, port, models and state, killed when the test ends.
//!
//! Nothing here knows the server's rooms: what tests see of it is HTTP, files, signals and log lines.
#![allow(dead_code, unused_imports, reason = "every test file takes what it needs")]

pub(crate) mod decoders;
pub(crate) mod disk;
pub(crate) mod fake_gpu;
pub(crate) mod fetched;
pub(crate) mod http;
pub(crate) mod inputs;
pub(crate) mod minilm;
pub(crate) mod models;
pub(crate) mod python;
pub(crate) mod random_models;
pub(crate) mod smollm2;
pub(crate) mod streams;
pub(crate) mod tensors;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::sync::oneshot;

pub(crate) use http::{Answer, Client, Events, answered};

/// Longer than anything takes on a busy machine; only a defect waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The digits model for tests: a window that ends when a test says so, and no verdict on timings of tiny models.
pub(crate) const DIGITS: &str = r#"
task = "image-classify"
live = "v1"
[gate]
max_latency_ratio = 1000.0
latency_rounds = 2
case_timeout = "20s"
[observe]
window = "1h"
max_p99_ratio = 1000.0
golden_every = "1h"
"#;

/// The repository. What cargo says when it runs the tests goes first: a test binary may be run where it was not built
/// (`benches/gpu/run tests`).
#[allow(clippy::disallowed_methods, reason = "cargo tells it through the environment")]
pub(crate) fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).into()
    })
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

/// A folder with models, a state folder and a configuration, where servers can be started one after the other.
pub(crate) struct Site {
    dir: Arc<TempDir>,
    config: String,
    args: Vec<String>,
    /// Where it listens; by default at any port that is free.
    listen: String,
    /// Where it serves from.
    device: String,
    environment: Vec<(String, String)>,
    /// A command that the server is started through: `sh -c` gets it, with the server's own line as `"$@"`.
    wrapper: Option<String>,
}

impl Site {
    /// No model yet.
    pub(crate) fn new() -> Site {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        fs::create_dir(dir.path().join("models")).unwrap();
        Site {
            dir,
            config: String::new(),
            args: Vec::new(),
            listen: "127.0.0.1:0".into(),
            device: "cpu".into(),
            environment: Vec::new(),
            wrapper: None,
        }
    }

    /// `digits` with `v1` live, `v2`, and the broken `v3`.
    pub(crate) fn digits() -> Site {
        let site = Site::new();
        site.add_digits("digits");
        site
    }

    pub(crate) fn add_digits(&self, name: &str) {
        let bundled = root().join("models/digits");
        self.model(name, DIGITS);
        fs::copy(bundled.join("golden.jsonl"), self.models().join(name).join("golden.jsonl")).unwrap();
        for version in ["v1", "v2", "v3"] {
            self.version(name, version, &bundled.join(version));
        }
    }

    /// Writes `model.toml`, in place of one that is there.
    pub(crate) fn model(&self, name: &str, toml: &str) {
        let dir = self.models().join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("model.toml"), toml).unwrap();
    }

    /// Copies a version folder to where the server finds it whole: written beside its place, then renamed.
    pub(crate) fn version(&self, model: &str, version: &str, from: &Path) -> PathBuf {
        let place = self.models().join(model).join(version);
        let fresh = self.models().join(model).join(format!(".{version}.new"));
        copy_folder(from, &fresh);
        fs::rename(&fresh, &place).unwrap();
        place
    }

    /// Adds to `cutover.toml`.
    pub(crate) fn config(mut self, text: &str) -> Site {
        self.config.push_str(text);
        self.config.push('\n');
        self
    }

    /// Adds one fault on purpose: `[[faults]]` with these lines.
    pub(crate) fn fault(mut self, lines: &str) -> Site {
        if !self.args.iter().any(|arg| arg == "--allow-faults") {
            self.args.push("--allow-faults".into());
        }
        self.config(&format!("[[faults]]\n{lines}"))
    }

    pub(crate) fn no_faults(mut self) -> Site {
        self.args.retain(|arg| arg != "--allow-faults");
        self.config.clear();
        self
    }

    pub(crate) fn arg(mut self, arg: &str) -> Site {
        self.args.push(arg.into());
        self
    }

    /// Servers that are started from now on listen at this address.
    pub(crate) fn at(mut self, address: &str) -> Site {
        self.listen = address.into();
        self
    }

    pub(crate) fn device(mut self, device: &str) -> Site {
        self.device = device.into();
        self
    }

    pub(crate) fn variable(mut self, name: &str, value: impl Into<String>) -> Site {
        self.environment.push((name.into(), value.into()));
        self
    }

    pub(crate) fn wrapped(mut self, command: &str) -> Site {
        self.wrapper = Some(command.into());
        self
    }

    pub(crate) fn models(&self) -> PathBuf {
        self.dir.path().join("models")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    fn command(&self) -> Command {
        let file = self.dir.path().join("cutover.toml");
        fs::write(&file, &self.config).unwrap();
        let mut command = match &self.wrapper {
            None => Command::new(env!("CARGO_BIN_EXE_cutover")),
            Some(wrapper) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", wrapper, "sh", env!("CARGO_BIN_EXE_cutover")]);
                shell
            }
        };
        command.args(["serve", "--listen", &self.listen, "--device", &self.device]);
        command.envs(self.environment.iter().cloned());
        command.arg("--models").arg(self.models()).arg("--state").arg(self.state()).arg("--config").arg(file);
        command.args(&self.args).current_dir(self.dir.path()).env_remove("CUTOVER_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts a server and waits until it has brought up its models, or has failed to.
    pub(crate) async fn start(&self) -> Server {
        let server = self.announced().await;
        // The pipe was closed, or nothing came: the log, which is printed on the way out, says why.
        server.unwrap_or_else(|_server| panic!("the server did not announce itself"))
    }

    /// The same where a server may end at once.
    pub(crate) async fn try_start(&self) -> Option<Server> {
        self.announced().await.ok()
    }

    async fn announced(&self) -> Result<Server, Server> {
        let mut child = self.command().spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (found, url) = oneshot::channel();
        let gathering = vec![
            gather(child.stdout.take().unwrap(), Arc::clone(&log), Some(found)),
            gather(child.stderr.take().unwrap(), Arc::clone(&log), None),
        ];
        let mut server =
            Server { child, log, gathering, client: Client::new(""), status: None, _dir: Arc::clone(&self.dir) };
        match tokio::time::timeout(PATIENCE, url).await {
            Ok(Ok(url)) => server.client = Client::new(&url),
            _ => return Err(server),
        }
        Ok(server)
    }

    /// Starts a server that must refuse to; its exit code and what it said.
    pub(crate) fn refused(&self) -> (i32, String) {
        let output = self.command().output().unwrap();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// `cutover history --verify` on this state folder: whether it is whole, and what it said.
    pub(crate) fn verify(&self) -> (bool, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cutover"));
        let output = command.args(["history", "--verify", "--state"]).arg(self.state()).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }
}

/// A running server.
pub(crate) struct Server {
    child: Child,
    log: Arc<Mutex<String>>,
    /// They end with what the server's pipes hold.
    gathering: Vec<JoinHandle<()>>,
    client: Client,
    status: Option<ExitStatus>,
    /// The site's folder lives as long as its servers.
    _dir: Arc<TempDir>,
}

impl std::ops::Deref for Server {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Server {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What has been read of what the server wrote: all of it once it has ended, and perhaps not its last lines before.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until the log says this; what it says then.
    pub(crate) async fn says(&self, what: &str) -> String {
        until(&format!("the log says '{what}'"), async || {
            let log = self.log();
            log.contains(what).then_some(log)
        })
        .await
    }

    /// `cutover` as its client, with these arguments; the exit code and what it said.
    pub(crate) fn cutover(&self, args: &[&str]) -> (i32, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cutover"));
        command.args(args).args(["--url", &self.url]).current_dir(root());
        let output = command.env_remove("CUTOVER_API_KEY_FILE").output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap_or(-1), text)
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.status = Some(self.child.wait().unwrap());
    }

    pub(crate) fn terminate(&self) {
        let sent = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status().unwrap();
        assert!(sent.success(), "SIGTERM could not be sent");
    }

    /// Waits until it has ended by itself; its exit code.
    pub(crate) async fn ended(&mut self) -> i32 {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.status = Some(status);
                for gathering in self.gathering.drain(..) {
                    gathering.join().unwrap();
                }
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < until, "the server did not end");
            // Nothing signals a child's end without unsafe code or a dependency.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether it has not ended by itself yet.
    pub(crate) fn runs(&mut self) -> bool {
        self.status = self.child.try_wait().unwrap();
        self.status.is_none()
    }

    pub(crate) fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    pub(crate) fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.status.is_none() {
            // It may have ended by itself; there is nothing to do about either.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- what the server said ---\n{}", self.log());
        }
    }
}

/// Keeps what the server writes, and finds the line that says where it listens.
fn gather(
    pipe: impl Read + Send + 'static,
    log: Arc<Mutex<String>>,
    mut found: Option<oneshot::Sender<String>>,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines() {
            let Ok(line) = line else { return };
            if let Some(url) = line.strip_prefix("Cutover listens on ")
                && let Some(found) = found.take()
            {
                // A test that gave up does not mind.
                let _ = found.send(url.trim().to_owned());
            }
            let mut log = log.lock().unwrap();
            log.push_str(&line);
            log.push('\n');
        }
    })
}

pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap_or_else(|e| panic!("{}: {e}", from.display())) {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// Asks again and again, for what nothing signals. Says what it waited for when it never comes.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let limit = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < limit, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Says that a test did nothing, past the harness's capture, so that it is read.
pub(crate) fn skipped(why: &str) {
    // Nobody to read it is no reason to fail.
    let _ = writeln!(std::io::stderr(), "\nSKIPPED: {why}\n");
}
