//! TLS: a certificate chain and its key from PEM files, exchanged while connections stay open.
//!
//! rustls with ring; TLS 1.2 and 1.3; HTTP/1.1 by ALPN, or HTTP/2 where a listener speaks that. A connection keeps the
//! certificate that it began with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

use super::Protocol;
use crate::error::{Error, Result};
use crate::http::auth::warn_of_readers;

/// A certificate and its key, as the listeners show them.
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    shown: Arc<Shown>,
    http1: TlsAcceptor,
    http2: TlsAcceptor,
}

/// What new connections are shown.
#[derive(Debug)]
struct Shown(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl Tls {
    /// Reads a PEM file with the chain, the server's own certificate first, and one with its key.
    ///
    /// # Errors
    /// `Config`, naming the file: one that cannot be read or holds nothing of the kind, a key that is not the
    /// certificate's.
    pub fn open(certificate: PathBuf, key: PathBuf) -> Result<Tls> {
        let shown = Arc::new(Shown(ArcSwap::from_pointee(read(&certificate, &key)?)));
        let acceptor = |protocol: &str| {
            let resolver: Arc<dyn ResolvesServerCert> = Arc::clone(&shown) as _;
            let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
                .map_err(Error::internal)?
                .with_no_client_auth()
                .with_cert_resolver(resolver);
            config.alpn_protocols = vec![protocol.into()];
            Result::Ok(TlsAcceptor::from(Arc::new(config)))
        };
        let (http1, http2) = (acceptor("http/1.1")?, acceptor("h2")?);
        Ok(Tls { certificate, key, shown, http1, http2 })
    }

    /// Reads the files again: connections that begin from now on are shown what is there now.
    ///
    /// # Errors
    /// As for `open`; what is shown stays as it was.
    pub fn reload(&self) -> Result<()> {
        self.shown.0.store(Arc::new(read(&self.certificate, &self.key)?));
        Ok(())
    }

    pub fn files(&self) -> [&Path; 2] {
        [&self.certificate, &self.key]
    }

    pub(super) fn acceptor(&self, protocol: Protocol) -> &TlsAcceptor {
        match protocol {
            Protocol::Http1 => &self.http1,
            Protocol::Http2 => &self.http2,
        }
    }
}

fn read(certificate: &Path, key: &Path) -> Result<CertifiedKey> {
    let wrong =
        |file: &Path, reason: String| Error::Config { file: file.display().to_string(), key: String::new(), reason };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| wrong(certificate, unreadable("a certificate", &e)))?;
    if chain.is_empty() {
        return Err(wrong(certificate, unreadable("a certificate", &pem::Error::NoItemsFound)));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| wrong(key, unreadable("a private key", &e)))?;
    warn_of_readers(&[key.to_owned()]);
    let signer =
        ring::sign::any_supported_type(&private).map_err(|e| wrong(key, format!("is no key to sign with: {e}")))?;
    let certified = CertifiedKey::new(chain, signer);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => {
            Err(wrong(key, format!("is not the key of the certificate in {}", certificate.display())))
        }
        Err(e) => Err(wrong(certificate, format!("is no certificate that can be used: {e}"))),
    }
}

fn unreadable(what: &str, error: &pem::Error) -> String {
    match error {
        pem::Error::NoItemsFound => format!("holds no {}; expected PEM", what.trim_start_matches("a ")),
        pem::Error::Io(error) => format!("could not be read: {error}"),
        other => format!("is not {what} in PEM: {other}"),
    }
}
