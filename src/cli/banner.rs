//! What `cutover serve` says when everything is up: what is served, and what to try. Pure: facts in, text out.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::slot::Slot;

/// Where to knock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Doorway {
    pub(super) clients: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) grpc: Option<SocketAddr>,
    /// The admin routes ask for a token.
    pub(super) token: bool,
    /// Both speak TLS.
    pub(super) tls: bool,
}

impl Doorway {
    fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }

    /// An address that this machine can connect to.
    fn reachable(address: SocketAddr) -> SocketAddr {
        let ip = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        SocketAddr::new(ip, address.port())
    }
}

pub(super) fn text(slots: &BTreeMap<String, Arc<Slot>>, doorway: &Doorway) -> String {
    let mut lines = vec![format!("\nCutover listens on {}://{}", doorway.scheme(), doorway.clients)];
    lines.extend(doorway.grpc.map(|grpc| format!("gRPC on {grpc}")));
    lines.extend(slots.values().map(|slot| served(slot)));
    if slots.is_empty() {
        lines.push("  no models: a folder in the models folder is one when it holds a model.toml".into());
    }
    if let Some(digits) = slots.get("digits") {
        lines.extend(to_try(digits, doorway));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn served(slot: &Slot) -> String {
    let task = slot.task().map(|task| format!(" ({task})")).unwrap_or_default();
    match slot.route() {
        Some(route) => format!("  {}{task} serves {}", slot.name(), route.live.version()),
        None => format!("  {}{task} serves nothing: {}", slot.name(), slot.reason().unwrap_or_default()),
    }
}

/// For the model that is bundled.
fn to_try(digits: &Slot, doorway: &Doorway) -> Vec<String> {
    let Some(route) = digits.route() else { return Vec::new() };
    let (scheme, clients) = (doorway.scheme(), Doorway::reachable(doorway.clients));
    let mut lines = vec![format!(
        "\nTry:\n  curl --data-binary @models/digits/samples/7.png -H 'content-type: image/png' {scheme}://{clients}/models/digits/infer"
    )];
    if let Some(version) = digits.versions().iter().find(|version| *version != route.live.version()) {
        let admin = Doorway::reachable(doorway.admin);
        let (mut command, mut header) = (format!("cutover promote {version}"), String::new());
        if admin.port() != 8080 || !admin.ip().is_loopback() || doorway.tls {
            command += &format!(" --url {scheme}://{admin}");
        }
        if doorway.token {
            command += " --token-file FILE";
            header = " -H \"authorization: Bearer $(cat FILE)\"".into();
        }
        lines
            .push(format!("  {command}        (or: curl -X POST{header} {scheme}://{admin}/models/{version}/promote)"));
    }
    lines
}
