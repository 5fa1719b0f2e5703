//! Sockets, and what is asked of whoever comes through them: certificates, keys, how many at once.
//!
//! It must not know what is served behind them, nor when.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;

use super::banner::Doorway;
use super::renew::Renewed;
use crate::config::{Config, Place};
use crate::device;
use crate::error::Result;
use crate::http::{self, Access, ApiKeys, App, Door, Guard, ListenLimits, Protocol, Serves, Stage, Tls};

/// Connections that may wait to be accepted; the system may allow fewer.
const QUEUE: u32 = 4096;
/// Files that the process needs beside its connections: models being loaded, the ledger, its runtimes.
const OTHER_FILES: u64 = 128;

/// Sockets that are bound and not served yet.
pub(super) struct Listeners {
    main: TcpListener,
    admin: Option<TcpListener>,
    grpc: Option<TcpListener>,
}

pub(super) struct Doors {
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Listeners {
    pub(super) fn bind(config: &Config) -> Result<Listeners> {
        let places = &config.places;
        let bind = |place: &Place, address: SocketAddr| {
            listen(address).map_err(|e| place.wrong(format!("{address} cannot be listened on: {e}")))
        };
        let main = bind(&places.listen, config.listen)?;
        let admin = config.admin_listen.map(|address| bind(&places.admin_listen, address)).transpose()?;
        let grpc = config.grpc_listen.map(|address| bind(&places.grpc_listen, address)).transpose()?;
        Ok(Listeners { main, admin, grpc })
    }

    /// Where clients connect: with port 0 in the configuration, the port that the system chose.
    pub(super) fn doorway(&self, config: &Config) -> Doorway {
        let clients = self.main.local_addr().unwrap_or(config.listen);
        let admin = self.admin.as_ref().and_then(|admin| admin.local_addr().ok());
        Doorway {
            clients,
            admin: admin.unwrap_or(clients),
            grpc: self.grpc.as_ref().and_then(|grpc| grpc.local_addr().ok()),
            token: config.admin_token.is_some(),
            tls: config.tls.is_some(),
        }
    }

    pub(super) fn open(
        self,
        app: &Arc<App>,
        config: &Config,
        secrets: &Secrets,
        stage: watch::Receiver<Stage>,
    ) -> Doors {
        let access = Access::new(config.admin_token.as_deref(), secrets.keys.clone());
        let several = u64::from(self.admin.is_some()) + u64::from(self.grpc.is_some());
        let limits = limits(config, 1 + several);
        let door = |listener: TcpListener, protocol: Protocol, serves: Serves, address: SocketAddr| {
            let guard = Guard { loopback: http::is_loopback(&address), access: access.clone() };
            let router = match protocol {
                Protocol::Http1 => http::router(Arc::clone(app), serves, guard),
                Protocol::Http2 => http::grpc_router(Arc::clone(app), serves, guard),
            };
            let door = Door { listener, router, limits: limits.clone(), protocol, tls: secrets.tls.clone() };
            tokio::spawn(door.serve(stage.clone()))
        };
        let serves = if self.admin.is_some() { Serves::Inference } else { Serves::Everything };
        let mut tasks = vec![door(self.main, Protocol::Http1, serves, config.listen)];
        if let (Some(listener), Some(address)) = (self.admin, config.admin_listen) {
            tasks.push(door(listener, Protocol::Http1, Serves::Admin, address));
        }
        if let (Some(listener), Some(address)) = (self.grpc, config.grpc_listen) {
            tasks.push(door(listener, Protocol::Http2, serves, address));
        }
        Doors { tasks }
    }
}

/// With a queue longer than the usual 128: whoever comes in a burst that is larger waits for a second, until the system tries
/// again for it.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // As after any restart: connections of the one before may still be known to the system.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(QUEUE)
}

/// As configured, and no more connections than the process may have files open.
fn limits(config: &Config, listeners: u64) -> ListenLimits {
    let mut limits = config.listen_limits.clone();
    if let Some(files) = device::allow_open_files() {
        let room = (files.saturating_sub(OTHER_FILES).max(files / 2) / listeners).max(1);
        if (room as usize) < limits.max_connections {
            let wanted = limits.max_connections;
            tracing::warn!(files, wanted, "at most {room} connections a listener: ulimit -n allows no more");
            limits.max_connections = room as usize;
        }
    }
    limits
}

impl Doors {
    /// Resolves when every connection has finished what it was doing.
    pub(super) async fn closed(self) {
        for task in self.tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a listener ended badly");
            }
        }
    }
}

/// What is read from files of secrets, and read again when they change.
pub(super) struct Secrets {
    keys: Option<Arc<ApiKeys>>,
    tls: Option<Arc<Tls>>,
}

impl Secrets {
    pub(super) fn read(config: &Config) -> Result<Secrets> {
        let files = &config.api_key_files;
        let keys = match files.is_empty() {
            true => None,
            false => Some(Arc::new(ApiKeys::open(files.clone())?)),
        };
        if keys.is_some() && config.admin_token.is_none() {
            tracing::warn!(
                "models ask for a key, but whoever reaches the admin routes may change them: no admin token is set"
            );
        }
        let tls = config.tls.clone().map(|files| Tls::open(files.certificate, files.key)).transpose()?.map(Arc::new);
        Ok(Secrets { keys, tls })
    }

    pub(super) fn renewed(&self) -> Vec<Renewed> {
        let keys = self.keys.iter().map(|keys| {
            let keys = Arc::clone(keys);
            Renewed::new("API keys", keys.files().to_vec(), move || keys.reload().map(|n| format!("{n} keys")))
        });
        let tls = self.tls.iter().map(|tls| {
            let tls = Arc::clone(tls);
            let files = tls.files().map(Path::to_owned).to_vec();
            Renewed::new("certificate and its key", files, move || tls.reload().map(|()| "a new pair".to_owned()))
        });
        keys.chain(tls).collect()
    }
}
