//! TLS to a server under check: who it must be, the handshake, and what to say where it fails.
//!
//! Sessions are never resumed: a resumed one shows no certificate, and one that has expired would
//! go unnoticed.

mod anybody; // takes any certificate
mod lenient; // judges, and says so when the handshake is over
mod noted; // remembers how a server began

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, ClientConfig, Error, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client};

use super::line::Fault;
use crate::config::plan::{Authorities, Probe, Tls, Verify};
use crate::wire::printable;
use lenient::Lenient;
use noted::Noted;

pub type TlsStream = client::TlsStream<Noted>;

/// One server's side of what `tls` says; made once for many checks.
#[derive(Clone)]
pub struct Client {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    /// Whose word counts, for a message; `None`: anybody's.
    trust: Option<String>,
    /// Who is trusted, where the verdict is to wait until the handshake is over.
    postponed: Option<Arc<RootCertStore>>,
}

/// A handshake that came to its end.
pub struct Shaken {
    pub stream: Box<TlsStream>,
    /// The server has proven nothing, and must hear no secret.
    pub doubt: Option<Fault>,
}

/// Who is trusted, read once for all checks that begin together: a store has hundreds of kilobytes,
/// and a pool may have a thousand servers.
#[derive(Default)]
pub struct Stores {
    system: Option<Arc<RootCertStore>>,
    /// The last file's: the servers of a pool come one after the other.
    file: Option<OfFile>,
}

struct OfFile {
    certificates: Arc<[Vec<u8>]>,
    store: Arc<RootCertStore>,
}

impl Stores {
    /// Empty where the machine has none.
    fn of_the_system(&mut self) -> Arc<RootCertStore> {
        let read = || {
            let mut store = RootCertStore::empty();
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            Arc::new(store)
        };
        Arc::clone(self.system.get_or_insert_with(read))
    }

    fn of(&mut self, authorities: &Authorities) -> Arc<RootCertStore> {
        let wanted = &authorities.certificates;
        if let Some(last) = self.file.as_ref().filter(|last| Arc::ptr_eq(&last.certificates, wanted)) {
            return Arc::clone(&last.store);
        }
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(wanted.iter().map(|der| CertificateDer::from(der.as_slice())));
        let store = Arc::new(store);
        self.file = Some(OfFile { certificates: Arc::clone(wanted), store: Arc::clone(&store) });
        store
    }
}

impl Client {
    pub fn new(tls: &Tls, probe: &Probe, target: SocketAddr, stores: &mut Stores) -> Client {
        let trusted = match &tls.verify {
            Verify::Off => None,
            Verify::System => Some(("this machine".to_owned(), stores.of_the_system())),
            Verify::Authorities(authorities) => {
                Some((authorities.file.display().to_string(), stores.of(authorities)))
            }
        };
        let (trust, store) = trusted.unzip();
        let builder = ClientConfig::builder();
        let builder = match &store {
            None => {
                let verifier = Arc::new(anybody::Anybody::default());
                builder.dangerous().with_custom_certificate_verifier(verifier)
            }
            Some(store) => builder.with_root_certificates(Arc::clone(store)),
        };
        let mut config = builder.with_no_client_auth();
        config.resumption = Resumption::disabled();
        if let Probe::Http(_) = probe {
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
        }
        let name = tls.sni.clone().and_then(|name| ServerName::try_from(name).ok());
        let name = name.unwrap_or_else(|| ServerName::from(target.ip()));
        // See `mysql.rs`: there a handshake that breaks off is counted against this host.
        let postponed = store.filter(|_| matches!(probe, Probe::Mysql(_)));
        Client { config: Arc::new(config), name, trust, postponed }
    }

    /// Whether a server proves who it is before it hears a secret.
    pub fn verifies(&self) -> bool {
        self.trust.is_some()
    }

    /// Gives the connection back where there is no TLS to be had.
    pub async fn shake_hands(&self, stream: TcpStream) -> Result<Shaken, (Fault, TcpStream)> {
        let mut config = Arc::clone(&self.config);
        let lenient = self.lenient();
        if let Some(lenient) = &lenient {
            let verifier = Arc::clone(lenient);
            Arc::make_mut(&mut config).dangerous().set_certificate_verifier(verifier);
        }
        let connector = TlsConnector::from(config);
        match connector.connect(self.name.clone(), Noted::new(stream)).into_fallible().await {
            Ok(stream) => {
                let verdict = lenient.as_ref().and_then(|lenient| lenient.verdict());
                Ok(Shaken { stream: Box::new(stream), doubt: verdict.map(|error| self.tls_fault(error)) })
            }
            Err((error, noted)) => Err((self.fault(error, noted.beginning()), noted.into_inner())),
        }
    }

    /// For one handshake.
    fn lenient(&self) -> Option<Arc<Lenient>> {
        let store = Arc::clone(self.postponed.as_ref()?);
        // It is none where nobody is trusted.
        let strict = WebPkiServerVerifier::builder_with_provider(store, anybody::provider()).build().ok();
        Some(Arc::new(Lenient::new(strict)))
    }

    fn tls_fault(&self, error: &Error) -> Fault {
        match error {
            Error::InvalidCertificate(wrong) => Fault::theirs(self.certificate(wrong)),
            error => Fault::theirs(said(error)),
        }
    }

    fn fault(&self, error: std::io::Error, beginning: &[u8]) -> Fault {
        if !is_tls(beginning) {
            return Fault::theirs(format!("speaks no TLS: it said \"{}\"", printable(beginning)));
        }
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(error) => self.tls_fault(error),
            None if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Fault::theirs("closed the connection in the TLS handshake: does it speak TLS?")
            }
            None => error.into(),
        }
    }

    fn certificate(&self, wrong: &CertificateError) -> String {
        let trust = self.trust.as_deref().unwrap_or_default();
        match wrong {
            CertificateError::ExpiredContext { not_after, .. } => {
                format!("its certificate has expired ({})", date(*not_after))
            }
            CertificateError::NotValidYetContext { not_before, .. } => {
                format!("its certificate is not valid before {}, unless a clock is wrong", date(*not_before))
            }
            CertificateError::NotValidForNameContext { expected, presented } => {
                let names: Vec<_> = presented.iter().map(|name| bare(name)).collect();
                let names = if names.is_empty() { "nobody by name".into() } else { names.join(", ") };
                let (names, expected) = (printable(names.as_bytes()), expected.to_str());
                format!("its certificate is for {names}, not for {expected}: let `sni` be a name that it has")
            }
            // An authority of the same name, but with another key, makes a bad signature of it.
            CertificateError::UnknownIssuer | CertificateError::BadSignature if trust == "this machine" => {
                "its certificate is from an authority that this machine does not know: let `verify` name \
                 the file of that authority"
                    .into()
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                format!("its certificate is from no authority in {trust}")
            }
            CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
                "its certificate is an authority's own (CA:TRUE), where a server's belongs (CA:FALSE)".into()
            }
            other => format!("its certificate cannot be used: {other}"),
        }
    }
}

/// What went wrong in TLS, in one clause.
pub fn said(error: &Error) -> String {
    match error {
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "wants a certificate from us, which checks do not have".into()
        }
        Error::AlertReceived(AlertDescription::UnrecognisedName) => "knows no server of that `sni`".into(),
        Error::AlertReceived(
            AlertDescription::HandshakeFailure
            | AlertDescription::ProtocolVersion
            | AlertDescription::InsufficientSecurity,
        )
        | Error::PeerIncompatible(_) => format!("has no version or cipher of TLS in common with us: {error}"),
        Error::AlertReceived(alert) => format!("ended TLS with the alert {alert:?}"),
        error => format!("TLS failed: {error}"),
    }
}

/// Whether a server that began so speaks TLS; one that said nothing may.
fn is_tls(beginning: &[u8]) -> bool {
    // The types of a record (RFC 8446, section 5.1), and a version from 3.0 on.
    match beginning {
        [] => true,
        [kind, rest @ ..] => (20..=23).contains(kind) && rest.first().is_none_or(|major| *major == 3),
    }
}

/// As in 2026-03-01T12:00:00Z.
fn date(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).ok();
    seconds
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map_or_else(String::new, |at| at.to_string())
}

/// `web.internal` for `DnsName("web.internal")`.
fn bare(name: &str) -> &str {
    let inner = name.split_once('(').map_or(name, |(_, inner)| inner);
    inner.trim_end_matches(')').trim_matches('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_tls_is_known_by_how_it_begins() {
        for tls in [&b""[..], b"\x16", b"\x16\x03\x03\0\x7a", b"\x15\x03\x01"] {
            assert!(is_tls(tls), "{tls:?}");
        }
        for other in
            [&b"HTTP/1.1 400"[..], b"SSH-2.0", b"220 mail", b"\x4a\0\0\0\x0a5.5.5", b"-ERR", b"\x16\x41"]
        {
            assert!(!is_tls(other), "{other:?}");
        }
    }

    #[test]
    fn names_are_shown_as_operators_write_them() {
        assert_eq!(bare("DnsName(\"web.internal\")"), "web.internal");
        assert_eq!(bare("IpAddress(192.0.2.1)"), "192.0.2.1");
        assert_eq!(
            date(UnixTime::since_unix_epoch(std::time::Duration::from_secs(0))),
            "1970-01-01T00:00:00Z"
        );
    }
}
