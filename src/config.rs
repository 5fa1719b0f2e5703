//! The command line and `cutover.toml`, made into one validated configuration.
//!
//! The only room that reads the environment. What the command line says goes before the file.

mod file;
mod place;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use self::file::parse_address;
use self::file::read_file;
pub use self::place::{Place, Places};
use crate::cli::{LogFormat, ServeArgs};
use crate::device::DeviceSpec;
use crate::error::{Error, Result};
use crate::http::ListenLimits;
use crate::ledger::Keep;
use crate::telling::{AlertTarget, TelemetryTarget};

/// Threads beyond these are a slip of the hand: they would only wait for each other.
const MOST_THREADS_A_CORE: usize = 4;
const MOST_THREADS_AT_LEAST: usize = 64;
/// A shorter token could be guessed, as a shorter key.
const SHORTEST_TOKEN: usize = 16;
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

#[derive(Debug, Clone)]
pub struct Config {
    /// What `cutover.toml` is called, for errors about what it names.
    pub file: String,
    pub models: PathBuf,
    pub only: Vec<String>,
    pub state: PathBuf,
    pub device: DeviceSpec,
    /// Processors that models may keep busy.
    pub threads: usize,
    /// Bytes that generations may take in all.
    pub memory: Option<u64>,
    pub stall_after: Duration,
    pub batch_tokens: usize,
    /// Whether passes of small batches are recorded on a GPU.
    pub graphs: bool,
    pub listen: SocketAddr,
    pub admin_listen: Option<SocketAddr>,
    /// Where gRPC is spoken, if anywhere.
    pub grpc_listen: Option<SocketAddr>,
    pub admin_token: Option<String>,
    /// A certificate chain and its key: with them, every listener speaks TLS.
    pub tls: Option<TlsFiles>,
    /// Files of keys that models ask for; with none they answer everybody.
    pub api_key_files: Vec<PathBuf>,
    pub max_body_bytes: usize,
    /// Bytes of all bodies together.
    pub max_buffered_bytes: usize,
    pub read_timeout: Duration,
    pub listen_limits: ListenLimits,
    /// Answers text-embeddings-inference's routes, which name no model.
    pub tei_model: Option<String>,
    /// How long everybody is still served, by a server that says that it is not ready, before it stops.
    pub lame_duck: Duration,
    /// How long admitted requests may take to finish when the server stops.
    pub drain_timeout: Duration,
    pub log: LogFormat,
    pub log_filter: String,
    pub keep: Keep,
    /// Who is told of what.
    pub alerts: Vec<AlertTarget>,
    pub telemetry: TelemetryTarget,
    pub faults: Vec<crate::faults::Fault>,
    pub places: Places,
}

/// Both in PEM.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Config {
    /// Joins the command line, the file and the environment, and checks what must fit together.
    pub fn load(args: ServeArgs) -> Result<Config> {
        let (file, label) = read_file(args.config.as_deref())?;
        let wrong = |key: &str, reason: String| Error::Config { file: label.clone(), key: key.into(), reason };
        // Of what the command line does not say, the file does.
        let place = |in_file: bool, argument: &str, key: &str| match in_file {
            true => Place::new(&label, key),
            false => Place::argument(argument),
        };
        let places = Places {
            device: place(args.device.is_none() && file.device.device.is_some(), "--device", "device.device"),
            log_filter: match (log_filter(), &file.log.filter) {
                (None, Some(_)) => Place::new(&label, "log.filter"),
                _ => Place::new("environment", "CUTOVER_LOG"),
            },
            listen: place(args.listen.is_none() && file.server.listen.is_some(), "--listen", "server.listen"),
            admin_listen: place(args.admin_listen.is_none(), "--admin-listen", "server.admin_listen"),
            grpc_listen: place(args.grpc_listen.is_none(), "--grpc-listen", "server.grpc_listen"),
        };
        let device = match (args.device, &file.device.device) {
            (Some(device), _) => device,
            (None, Some(text)) => text.parse().map_err(|reason| wrong("device.device", reason))?,
            (None, None) => DeviceSpec::Auto,
        };
        if !file.faults.is_empty() && !args.allow_faults {
            let reason = "faults are for rehearsals: start with --allow-faults, or take the section out";
            return Err(wrong("faults", reason.into()));
        }
        for (at, fault) in (1..).zip(&file.faults) {
            fault.check().map_err(|(key, reason)| wrong(&format!("faults[{at}].{key}"), reason))?;
        }
        for (at, alert) in (1..).zip(&file.alerts) {
            alert.check().map_err(|(key, reason)| wrong(&format!("alerts[{at}].{key}"), reason))?;
        }
        file.telemetry.check().map_err(|(key, reason)| wrong(&format!("telemetry.{key}"), reason))?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = args.threads.or(file.device.threads).unwrap_or(cores);
        let most = (MOST_THREADS_A_CORE * cores).max(MOST_THREADS_AT_LEAST);
        if threads == 0 || threads > most {
            let reason = format!("expected at least 1 and, with {cores} processors, at most {most}; found {threads}");
            return Err(place(args.threads.is_none(), "--threads", "device.threads").wrong(reason));
        }
        file.check_some().map_err(|(key, expected)| wrong(key, format!("expected {expected}")))?;
        let token_file = args.admin_token_file.or(file.server.admin_token_file);
        let read_timeout = file.server.read_timeout.unwrap_or(Duration::from_secs(30));
        let listen_limits = ListenLimits {
            max_connections: file.limits.max_connections.unwrap_or(4096),
            head: read_timeout,
            // Longer than load balancers keep theirs (60 s), so that they do not use one that is being closed.
            keep_alive: file.limits.keep_alive.unwrap_or(Duration::from_secs(75)),
            write: file.limits.write_timeout.unwrap_or(Duration::from_secs(30)),
            handshake: file.limits.handshake_timeout.unwrap_or(Duration::from_secs(10)),
        };
        let (certificate_in_file, key_in_file) = (args.tls_cert.is_none(), args.tls_key.is_none());
        let tls = match (args.tls_cert.or(file.server.tls_cert), args.tls_key.or(file.server.tls_key)) {
            (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key }),
            (None, None) => None,
            (given, _) => {
                // Told where the other one stands.
                let [certificate, key] = match if given.is_some() { certificate_in_file } else { key_in_file } {
                    true => ["tls_cert", "tls_key"],
                    false => ["--tls-cert", "--tls-key"],
                };
                let (there, missing) = if given.is_some() { (certificate, key) } else { (key, certificate) };
                let place = place(!there.starts_with('-'), missing, &format!("server.{missing}"));
                return Err(place.wrong(format!("is missing beside {there}")));
            }
        };
        let api_key_files = match args.api_key_files.is_empty() {
            true => file.server.api_key_files.into_vec(),
            false => args.api_key_files,
        };
        let max_body_bytes = file.server.max_body_bytes.unwrap_or(64 << 20);
        let max_buffered_bytes = file.limits.max_buffered_bytes.unwrap_or((512 << 20).max(max_body_bytes));
        if max_buffered_bytes < max_body_bytes {
            let reason = format!("expected at least max_body_bytes ({max_body_bytes}), found {max_buffered_bytes}");
            return Err(wrong("limits.max_buffered_bytes", reason));
        }
        let config = Config {
            file: label.clone(),
            models: args.models.or(file.server.models).unwrap_or_else(|| "models".into()),
            only: args.model,
            state: args.state.or(file.server.state).unwrap_or_else(|| ".cutover".into()),
            device,
            threads,
            memory: file.device.memory,
            stall_after: file.device.stall_after.unwrap_or(Duration::from_secs(30)),
            batch_tokens: file.device.batch_tokens.unwrap_or(512),
            graphs: file.device.graphs.unwrap_or(true),
            listen: args.listen.or(file.server.listen).unwrap_or(DEFAULT_LISTEN),
            admin_listen: args.admin_listen.or(file.server.admin_listen),
            grpc_listen: args.grpc_listen.or(file.server.grpc_listen),
            admin_token: token_file.as_deref().map(read_token).transpose()?,
            tls,
            api_key_files,
            max_body_bytes,
            max_buffered_bytes,
            read_timeout,
            listen_limits,
            tei_model: file.tei.model,
            lame_duck: file.server.lame_duck.unwrap_or_default(),
            drain_timeout: file.server.drain_timeout.unwrap_or(Duration::from_secs(30)),
            log: args.log.or(file.log.format).unwrap_or(LogFormat::Text),
            log_filter: log_filter().or(file.log.filter).unwrap_or_else(|| "info".into()),
            keep: Keep {
                rollouts: file.ledger.keep_rollouts.unwrap_or(1_000),
                events: file.ledger.keep_events.unwrap_or(100_000),
            },
            alerts: file.alerts,
            telemetry: file.telemetry,
            faults: file.faults,
            places,
        };
        config.check_listeners()?;
        Ok(config)
    }

    /// Admin routes that others can reach need a token, or a listener that others cannot reach.
    fn check_listeners(&self) -> Result<()> {
        let grpc = self.grpc_listen.map(|address| (&self.places.grpc_listen, address));
        let changing = match self.admin_listen {
            Some(address) => [Some((&self.places.admin_listen, address)), None],
            None => [Some((&self.places.listen, self.listen)), grpc],
        };
        let open = changing.into_iter().flatten().find(|(_, address)| !address.ip().is_loopback());
        let Some((place, address)) = open.filter(|_| self.admin_token.is_none()) else { return Ok(()) };
        Err(place.wrong(format!(
            "{address} can be reached from other machines and would let anybody change models; \
             give --admin-token-file FILE, or --admin-listen with a loopback address"
        )))
    }
}

fn read_token(path: &Path) -> Result<String> {
    let wrong =
        |reason: String| Error::Config { file: path.display().to_string(), key: "--admin-token-file".into(), reason };
    let text = std::fs::read_to_string(path).map_err(|e| wrong(format!("could not be read: {e}")))?;
    match text.trim() {
        "" => Err(wrong("is empty; expected a token".into())),
        token if token.len() < SHORTEST_TOKEN => {
            Err(wrong(format!("is too short; expected a token of at least {SHORTEST_TOKEN} characters")))
        }
        token => Ok(token.to_owned()),
    }
}

/// `CUTOVER_LOG`, in the syntax of tracing's `EnvFilter`.
#[allow(clippy::disallowed_methods, reason = "this is the room that reads the environment")]
fn log_filter() -> Option<String> {
    std::env::var("CUTOVER_LOG").ok().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn load(args: &[&str], file: Option<&str>) -> Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, file.unwrap_or("")).unwrap();
        let mut line = vec!["cutover", "serve", "--config", path.to_str().unwrap()];
        line.extend(args);
        let Command::Serve(args) = Cli::try_parse_from(line).unwrap().command else { panic!("serve") };
        Config::load(args)
    }

    #[test]
    fn the_command_line_goes_before_the_file() {
        let file =
            "[server]\nlisten = \"127.0.0.1:1\"\nmax_body_bytes = \"1MiB\"\n[device]\nthreads = 3\nmemory = \"24GB\"\n";
        let config = load(&["--listen", "127.0.0.1:2"], Some(file)).unwrap();
        assert_eq!((config.listen.port(), config.threads), (2, 3));
        assert_eq!((config.memory, config.max_body_bytes), (Some(24_000_000_000), 1 << 20));
    }

    #[test]
    fn errors_name_file_key_and_what_was_expected() {
        for (file, part) in [
            ("[server]\nlisten = 5\n", "line 2 (listen): "),
            ("[sever]\n", "line 1 ([sever]): unknown field `sever`"),
            ("[device]\ndevice = \"tpu\"\n", "expected auto, cpu or cuda:N"),
            ("[device]\nthreads = 0\n", "expected at least 1"),
            ("[limits]\nmax_buffered_bytes = 1000\n", "limits.max_buffered_bytes: expected at least max_body_bytes"),
            ("[server]\nread_timeout = \"soon\"\n", "read_timeout"),
            ("[server]\napi_key_file = 5\n", "a path, or a list of paths"),
            ("[limits]\nmax_connections = 0\n", "limits.max_connections: expected at least 1"),
            (
                "[device]\nmemory = \"much\"\n",
                "no whole number in \"much\", expected bytes as a whole number, or a size such as",
            ),
            ("[ledger]\nkeep_events = \"all\"\n", "expected a whole number"),
            ("[server]\nmax_body_bytes = 0\n", "server.max_body_bytes: expected at least 1"),
            ("[server]\nread_timeout = \"0s\"\n", "server.read_timeout: expected more than 0s"),
            ("[device]\nthreads = 100000\n", "device.threads: expected at least 1 and, with"),
            ("[server]\nlisten = \"0.0.0.0:1\"\n", "server.listen: 0.0.0.0:1 can be reached"),
            ("[server]\ntls_cert = \"chain.pem\"\n", "server.tls_key: is missing beside tls_cert"),
        ] {
            let message = load(&[], Some(file)).unwrap_err().to_string();
            assert!(message.contains(part) && message.contains("c.toml"), "{file}: {message}");
        }
    }

    #[test]
    fn a_value_that_is_refused_is_not_repeated() {
        for (file, part) in [
            ("[[alerts]]\nkind = 'slack'\nulr = 'https://a/s3cr3t'\n", "line 3 (ulr): unknown field `ulr`"),
            ("[[alerts]]\nkind = 'https://a/s3cr3t'\n", "line 2 (kind): unknown variant, expected one of `json`"),
            ("[telemetry]\nsample = 'https://a/s3cr3t'\n", "line 2 (sample): invalid type: string, expected f64"),
            ("[server]\nadmin_token = \"a s3cr3t\"\n", "line 2 (admin_token): unknown field"),
            ("[server]\nadmin_token = a s3cr3t\n", "line 2 (admin_token): "),
            ("[server]\nlisten = '127.0.0.1:1'\na s3cr3t\n", "line 3"),
            ("[server]\ns3cr3t==\n", "line 2"),
            ("alerts = [\n  'https://a/?token=s3cr3t',\n]\n", "line 2: invalid type: string, expected"),
            ("telemetry = { otpl = 'https://a/s3cr3t' }\n", "line 1 (telemetry): unknown field `otpl`"),
            ("[server]\ntls_cert = \"\"\"\nx = s3cr3t\n", "line"),
        ] {
            let message = load(&[], Some(file)).unwrap_err().to_string();
            assert!(message.contains(part) && message.contains("c.toml"), "{file}: {message}");
            assert!(!message.contains("s3cr3t"), "{file}: {message}");
        }
    }

    #[test]
    fn admin_routes_that_others_reach_need_a_token() {
        assert!(load(&["--listen", "0.0.0.0:1"], None).unwrap_err().to_string().contains("--admin-token-file"));
        assert!(load(&["--listen", "0.0.0.0:1", "--admin-listen", "127.0.0.1:2"], None).is_ok());
        assert!(load(&["--admin-listen", "0.0.0.0:2"], None).is_err());
        let token = tempfile::NamedTempFile::new().unwrap();
        let path = token.path().to_str().unwrap();
        assert!(
            load(&["--listen", "0.0.0.0:1", "--admin-token-file", path], None)
                .unwrap_err()
                .to_string()
                .contains("empty")
        );
        std::fs::write(token.path(), "secret\n").unwrap();
        let short = load(&["--admin-token-file", path], None).unwrap_err().to_string();
        assert!(short.contains("at least 16 characters") && !short.contains("secret"), "{short}");
        std::fs::write(token.path(), "a secret that is long\n").unwrap();
        let config = load(&["--listen", "0.0.0.0:1", "--admin-token-file", path], None).unwrap();
        assert_eq!(config.admin_token.as_deref(), Some("a secret that is long"));
    }

    #[test]
    fn errors_blame_the_place_where_it_was_said() {
        for threads in ["0", "100000"] {
            let message = load(&["--threads", threads], None).unwrap_err().to_string();
            assert!(message.contains("command line: --threads: expected at least 1"), "{message}");
        }
        let message = load(&["--tls-cert", "x"], None).unwrap_err().to_string();
        assert!(message.contains("command line: --tls-key: is missing beside --tls-cert"), "{message}");
        let message = load(&["--tls-key", "x"], None).unwrap_err().to_string();
        assert!(message.contains("command line: --tls-cert: is missing beside --tls-key"), "{message}");

        let file = "[server]\ngrpc_listen = \"127.0.0.1:3\"\n[device]\ndevice = \"cuda:0\"\n[log]\nfilter = \"!\"\n";
        let blamed = |place: &Place| place.blame(device_error()).to_string();
        fn device_error() -> Error {
            Place::argument("--device").wrong("no such device".into())
        }
        let places = load(&["--listen", "127.0.0.1:2"], Some(file)).unwrap().places;
        for (place, part) in [
            (&places.device, "c.toml: device.device: no such device"),
            (&places.log_filter, "c.toml: log.filter: "),
            (&places.listen, "command line: --listen: "),
            (&places.grpc_listen, "c.toml: server.grpc_listen: "),
        ] {
            assert!(blamed(place).contains(part), "{}", blamed(place));
        }
        let places = load(&["--device", "cpu"], Some(file)).unwrap().places;
        assert!(blamed(&places.device).contains("command line: --device"));
    }

    #[test]
    fn faults_that_could_not_strike_are_refused() {
        for (lines, part) in [
            ("kind = \"panic\"\nrate = 1.5", "faults[1].rate: expected a number above 0 and at most 1"),
            ("kind = \"panic\"\nrate = -1.0", "faults[1].rate"),
            ("kind = \"panic\"\nrate = 0.0", "faults[1].rate"),
            ("kind = \"panic\"\nrate = nan", "faults[1].rate"),
            ("kind = \"panic\"\nrate = inf", "faults[1].rate"),
            ("kind = \"delay\"", "faults[1].delay: is missing beside kind = \"delay\""),
            ("kind = \"error\"\ndelay = \"1s\"", "faults[1].delay: is for kind = \"delay\" only"),
        ] {
            let file = format!("[[faults]]\nversion = \"digits@v2\"\n{lines}\n");
            let message = load(&["--allow-faults"], Some(&file)).unwrap_err().to_string();
            assert!(message.contains(part) && message.contains("c.toml"), "{lines}: {message}");
        }
        let file = "[[faults]]\nversion = \"v2\"\nkind = \"panic\"\n";
        let message = load(&["--allow-faults"], Some(file)).unwrap_err().to_string();
        assert!(message.contains("faults[1].version: expected model@version"), "{message}");
    }

    #[test]
    fn faults_need_to_be_allowed() {
        let file = "[[faults]]\nversion = \"digits@v2\"\nkind = \"panic\"\n";
        assert!(load(&[], Some(file)).unwrap_err().to_string().contains("--allow-faults"));
        assert_eq!(load(&["--allow-faults"], Some(file)).unwrap().faults.len(), 1);
    }
}
