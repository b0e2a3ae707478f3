//! TLS 1.3 as a client: a session beside a socket, bytes in and bytes out.
//!
//! Does no I/O of its own beyond one send and what the caller received, and never judges a certificate
//! for trust: it is the bench's own. Everybody is offered the same and only choice (X25519,
//! AES-128-GCM), so that proxies are compared and not what they would have negotiated.

use std::collections::VecDeque;
use std::io::{self, BufRead, ErrorKind, Write};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, HandshakeKind, NamedGroup, SignatureScheme,
    version,
};

use crate::sys;

/// The name that clients ask for; the certificate has it too, though nobody compares them.
const SERVER_NAME: &str = "bench.test";

/// Tickets that a thread keeps: twice those of its 32 connections with two tickets each. rustls' own store
/// keeps 8 for a server, and a turn in which more than that end at once would throw tickets away.
const TICKETS_MAX: usize = 128;

/// What the sessions of one thread share.
pub struct Client {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Client {
    /// With `is_resuming`, each session uses a ticket of an earlier one of this client, if there is one.
    pub fn new(is_resuming: bool) -> io::Result<Self> {
        let provider = Arc::new(CryptoProvider {
            cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
            kx_groups: vec![aws_lc_rs::kx_group::X25519],
            ..aws_lc_rs::default_provider()
        });
        let verifier = Glance { provider: Arc::clone(&provider), has_looked: AtomicBool::new(false) };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.resumption = match is_resuming {
            true => Resumption::store(Arc::new(Tickets::default())),
            false => Resumption::disabled(),
        };
        let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
        Ok(Client { config: Arc::new(config), name })
    }

    pub fn session(&self) -> io::Result<Session> {
        let connection = ClientConnection::new(Arc::clone(&self.config), self.name.clone());
        Ok(Session { connection: connection.map_err(io::Error::other)?, outgoing: Vec::new() })
    }
}

/// One connection's TLS, without its socket.
pub struct Session {
    connection: ClientConnection,
    /// Encrypted, and not yet taken by the socket.
    outgoing: Vec<u8>,
}

impl Session {
    /// Has `message` sent: at once, or as soon as the handshake is over.
    pub fn say(&mut self, message: &[u8]) -> io::Result<()> {
        self.connection.writer().write_all(message)
    }

    /// Announces that nothing more will be said.
    pub fn end(&mut self) {
        self.connection.send_close_notify();
    }

    /// Sends in one call all there is to send; false when the socket has not taken all of it.
    pub fn flush(&mut self, socket: RawFd) -> io::Result<bool> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut self.outgoing)?;
        }
        if self.outgoing.is_empty() {
            return Ok(true);
        }
        match sys::send(socket, &self.outgoing) {
            Ok(sent) => drop(self.outgoing.drain(..sent)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(self.outgoing.is_empty())
    }

    /// Takes what the socket received, and calls `hear` with each piece of plain text in it.
    pub fn take(&mut self, mut wire: &[u8], mut hear: impl FnMut(&[u8])) -> Result<(), NotTls> {
        while !wire.is_empty() {
            let taken = self.connection.read_tls(&mut wire).map_err(|_| NotTls)?;
            let state = self.connection.process_new_packets().map_err(|_| NotTls)?;
            if taken == 0 {
                return Ok(()); // after the other side's close_notify nothing counts
            }
            let mut left = state.plaintext_bytes_to_read();
            let mut reader = self.connection.reader();
            while left > 0 {
                let piece = reader.fill_buf().map_err(|_| NotTls)?;
                hear(piece);
                let heard = piece.len();
                reader.consume(heard);
                left -= heard;
            }
        }
        Ok(())
    }

    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    pub fn is_resumed(&self) -> bool {
        self.connection.handshake_kind() == Some(HandshakeKind::Resumed)
    }
}

/// The other side broke the protocol, or refused with an alert.
pub struct NotTls;

/// Looks at the first signature of each thread only: that a proxy signs at all is worth knowing once, and
/// checking each would take the load longer than it takes the proxy to sign. What both sides
/// agreed on is proved by every handshake's Finished.
#[derive(Debug)]
struct Glance {
    provider: Arc<CryptoProvider>,
    has_looked: AtomicBool,
}

impl ServerCertVerifier for Glance {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 was offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.has_looked.swap(true, Relaxed) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    /// A certificate with any other key is refused by the proxy itself.
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// The tickets of one thread; the lock is what the trait asks for, and never waited for.
#[derive(Debug, Default)]
struct Tickets(Mutex<VecDeque<Tls13ClientSessionValue>>);

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _server: ServerName<'static>, _group: NamedGroup) {}

    fn kx_hint(&self, _server: &ServerName<'_>) -> Option<NamedGroup> {
        None // there is one group only
    }

    fn set_tls12_session(&self, _server: ServerName<'static>, _value: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _server: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _server: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let mut tickets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tickets.len() == TICKETS_MAX {
            tickets.pop_front();
        }
        tickets.push_back(ticket);
    }

    fn take_tls13_ticket(&self, _server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_back()
    }
}
