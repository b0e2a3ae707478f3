//! A verdict that waits until the handshake is over: some servers hold a handshake that we break off
//! against our whole host (MySQL), and are told in their own words instead.
//!
//! For one connection. Who shakes hands with it must ask for the verdict before saying anything secret.

use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

use super::anybody::Anybody;

#[derive(Debug)]
pub struct Lenient {
    strict: Arc<dyn ServerCertVerifier>,
    /// What was found first: all that follows from it says less.
    verdict: OnceLock<Error>,
}

impl Lenient {
    /// Without a strict one nobody is trusted.
    pub fn new(strict: Option<Arc<WebPkiServerVerifier>>) -> Self {
        match strict {
            Some(strict) => Lenient { strict, verdict: OnceLock::new() },
            None => Lenient {
                strict: Arc::new(Anybody::default()),
                verdict: Error::from(CertificateError::UnknownIssuer).into(),
            },
        }
    }

    /// Once the handshake is over: what the strict one has against the server.
    pub fn verdict(&self) -> Option<&Error> {
        self.verdict.get()
    }

    fn note<T>(&self, judged: Result<T, Error>, accepted: T) -> Result<T, Error> {
        judged.or_else(|error| {
            let _ = self.verdict.set(error); // another came first
            Ok(accepted)
        })
    }
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let judged = self.strict.verify_server_cert(end_entity, intermediates, name, ocsp_response, now);
        self.note(judged, ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let judged = self.strict.verify_tls12_signature(message, certificate, signed);
        self.note(judged, HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let judged = self.strict.verify_tls13_signature(message, certificate, signed);
        self.note(judged, HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.strict.supported_verify_schemes()
    }
}
