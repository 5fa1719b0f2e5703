//! TLS against the real binary: who trusts it, who is sent away, and certificates that are exchanged under open
//! connections.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::http::answered;
use crate::common::inputs::digit;
use crate::common::{PATIENCE, Server, Site, until};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::json;

/// An authority of our own.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    /// Writes a certificate for this machine and its key.
    fn issue(&self, pair: &Pair, change: impl FnOnce(&mut CertificateParams)) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(&pair.certificate, certificate.pem()).unwrap();
        fs::write(&pair.key, key.serialize_pem()).unwrap();
    }

    fn client(&self, url: &str) -> reqwest::Client {
        let _already = rustls::crypto::ring::default_provider().install_default();
        let root = reqwest::Certificate::from_pem(self.issuer.pem().as_bytes()).unwrap();
        assert!(url.starts_with("https://"), "{url}");
        reqwest::Client::builder().no_proxy().tls_certs_only([root]).timeout(PATIENCE).build().unwrap()
    }
}

struct Pair {
    certificate: PathBuf,
    key: PathBuf,
}

impl Pair {
    fn in_folder(folder: &Path) -> Pair {
        Pair { certificate: folder.join("chain.pem"), key: folder.join("key.pem") }
    }
}

/// Digits behind TLS, and who vouches for them.
fn secured() -> (Site, Authority, Pair) {
    let site = Site::digits().config("[server]\nread_timeout = '1s'\n[limits]\nhandshake_timeout = '1s'");
    let (authority, pair) = (Authority::new("ours"), Pair::in_folder(site.path()));
    authority.issue(&pair, |_| {});
    let site = site.arg("--tls-cert").arg(pair.certificate.to_str().unwrap());
    let site = site.arg("--tls-key").arg(pair.key.to_str().unwrap());
    (site, authority, pair)
}

async fn label(client: &reqwest::Client, url: &str) -> Result<String, String> {
    let request = client.post(format!("{url}/models/digits/infer")).header("content-type", "image/png").body(digit(7));
    let answer = answered(request).await.map_err(|error| format!("{error:?}"))?;
    Ok(answer.expect(200).label().to_owned())
}

fn address(server: &Server) -> &str {
    server.url.strip_prefix("https://").unwrap()
}

/// The certificate that a new connection is shown, whoever signed it, and what was agreed on.
fn shown(server: &Server, authority: &Authority) -> (Vec<u8>, Option<Vec<u8>>) {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.issuer.der().clone()).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut session =
        rustls::ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
    let mut stream = TcpStream::connect(address(server)).unwrap();
    while session.is_handshaking() {
        session.complete_io(&mut stream).unwrap();
    }
    (session.peer_certificates().unwrap()[0].to_vec(), session.alpn_protocol().map(<[u8]>::to_vec))
}

fn on_disk(pair: &Pair) -> Vec<u8> {
    CertificateDer::from_pem_file(&pair.certificate).unwrap().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_trusts_the_authority_is_served_and_others_refuse_the_server() {
    let (site, authority, pair) = secured();
    let server = site.start().await;
    assert!(server.url.starts_with("https://"), "{}", server.url);
    assert_eq!(label(&authority.client(&server.url), &server.url).await.unwrap(), "7");
    assert_eq!(shown(&server, &authority), (on_disk(&pair), Some(b"http/1.1".to_vec())));
    let foreign = label(&Authority::new("foreign").client(&server.url), &server.url).await.unwrap_err();
    assert!(foreign.contains("UnknownIssuer") || foreign.contains("BadSignature"), "{foreign}");
    drop(server);

    authority.issue(&pair, |params| {
        (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
    });
    let server = site.start().await;
    let expired = label(&authority.client(&server.url), &server.url).await.unwrap_err();
    assert!(expired.contains("Expired"), "{expired}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_shown_to_new_connections_and_open_ones_stay() {
    let (site, authority, pair) = secured();
    let server = site.start().await;
    let client = authority.client(&server.url);
    let mut events = client.get(format!("{}/admin/events", server.url)).send().await.unwrap();
    assert_eq!(label(&client, &server.url).await.unwrap(), "7");
    let first = on_disk(&pair);

    // The certificate is there before its key is: for a moment they do not fit.
    let fresh = Pair::in_folder(&site.models());
    authority.issue(&fresh, |_| {});
    fs::copy(&fresh.certificate, &pair.certificate).unwrap();
    until("it is told that they do not fit", async || {
        let log = server.log();
        (log.contains("stay as they were") && log.contains("is not the key of the certificate")).then_some(())
    })
    .await;
    assert_eq!(shown(&server, &authority).0, first);
    fs::copy(&fresh.key, &pair.key).unwrap();
    until("the new one is shown", async || (shown(&server, &authority).0 == on_disk(&fresh)).then_some(())).await;

    // What was open before goes on.
    let told = tokio::spawn(async move { events.chunk().await });
    let promoted = client.post(format!("{}/models/v2/promote", server.url)).json(&json!({}));
    answered(promoted).await.unwrap().expect(200);
    assert!(told.await.unwrap().unwrap().is_some(), "the stream of events was cut");
    assert_eq!(label(&client, &server.url).await.unwrap(), "7");

    for (what, text) in [("nothing", ""), ("no PEM", "certificate"), ("half", "-----BEGIN CERTIFICATE-----\nMIIB")] {
        let kept = || server.log().matches("stay as they were").count();
        let before = kept();
        fs::write(&pair.certificate, text).unwrap();
        assert!(Command::new("kill").args(["-HUP", &server.pid().to_string()]).status().unwrap().success());
        until(what, async || (kept() > before).then_some(())).await;
        assert_eq!(shown(&server, &authority).0, on_disk(&fresh), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_does_not_start_with_a_pair_that_makes_no_sense() {
    let (site, authority, pair) = secured();
    let certificate = fs::read(&pair.certificate).unwrap();
    let key = fs::read(&pair.key).unwrap();
    authority.issue(&pair, |_| {});
    fs::write(&pair.certificate, &certificate).unwrap();
    let (code, said) = site.refused();
    assert!(code == 1 && said.contains("key.pem: is not the key of the certificate in"), "{code}: {said}");
    for (file, text, part) in [
        (&pair.key, &certificate[..], "key.pem: holds no private key"),
        (
            &pair.key,
            &b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"[..],
            "key.pem: is no key to sign with",
        ),
        (&pair.certificate, &key[..], "chain.pem: holds no certificate"),
        (
            &pair.certificate,
            &b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n"[..],
            "chain.pem: is not a certificate in PEM",
        ),
    ] {
        fs::write(&pair.certificate, &certificate).unwrap();
        fs::write(&pair.key, &key).unwrap();
        fs::write(file, text).unwrap();
        let (code, said) = site.refused();
        assert!(code == 1 && said.contains(part), "expected {part}: {said}");
        assert!(!said.contains("BEGIN"), "{said}");
    }
    fs::write(&pair.certificate, &certificate).unwrap();
    fs::remove_file(&pair.key).unwrap();
    assert!(site.refused().1.contains("key.pem: could not be read"));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_speak_no_tls_are_told_and_those_that_say_nothing_are_closed() {
    let (site, authority, _) = secured();
    let server = site.start().await;
    let client = authority.client(&server.url);
    assert_eq!(label(&client, &server.url).await.unwrap(), "7");
    let raw = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(address(&server)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    };
    let body = "x".repeat(100_000);
    let plain =
        format!("POST /models/digits/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n{body}");
    let answer = raw(plain.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("https://"), "{answer}");
    let baseline = server.open_files();
    let silent: Vec<TcpStream> = (0..50).map(|_| TcpStream::connect(address(&server)).unwrap()).collect();
    // Nothing, half a hello, and what is none.
    for (at, mut stream) in silent.iter().enumerate() {
        stream.write_all([&b""[..], b"\x16\x03\x01\x02\x00\x01\x00", b"\x00\xff\x00\xff"][at % 3]).unwrap();
    }
    let began = Instant::now();
    assert_eq!(label(&authority.client(&server.url), &server.url).await.unwrap(), "7");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    until("those who said nothing are closed", async || (server.open_files() <= baseline).then_some(())).await;
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_listeners_speak_tls_and_the_command_line_checks_who_it_speaks_to() {
    let (site, authority, _) = secured();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let site = site.arg("--admin-listen").arg(&format!("127.0.0.1:{port}"));
    let server = site.start().await;
    let (ours, foreign) = (site.path().join("ours.pem"), site.path().join("foreign.pem"));
    fs::write(&ours, authority.issuer.pem()).unwrap();
    fs::write(&foreign, Authority::new("foreign").issuer.pem()).unwrap();
    let cutover = |url: &str, ca: &Path, args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cutover"));
        command.args(args).args(["--url", url, "--ca-cert", ca.to_str().unwrap()]).current_dir(crate::common::root());
        let output = command.output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap_or(-1), text)
    };
    let admin = format!("https://localhost:{port}");
    let (code, said) = cutover(&admin, &ours, &["promote", "v2"]);
    assert_eq!(code, 0, "{said}");
    let (code, said) = cutover(&admin, &foreign, &["promote", "v1"]);
    assert!(code == 1 && said.contains("certificate"), "{code}: {said}");
    let (code, said) = cutover(&admin, &site.path().join("nowhere.pem"), &["status"]);
    assert!(code != 0 && said.contains("nowhere.pem"), "{code}: {said}");
    let bench = ["bench", "serve", "--model", "digits", "--clients", "2", "--requests", "20", "--warmup", "100ms"];
    let (code, said) = cutover(&server.url, &ours, &bench);
    assert_eq!(code, 0, "{said}");
    let (code, said) = cutover(&server.url, &foreign, &bench);
    assert!(code == 1, "{code}: {said}");
}
