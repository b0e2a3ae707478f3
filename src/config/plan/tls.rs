//! TLS to a server: who it must prove to be, and what it is called.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// `tls = { verify = .., sni = .. }`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    pub verify: Verify,
    /// The name that is sent, and that the certificate must have. `None`: none is sent, and the
    /// certificate must have the server's IP address.
    pub sni: Option<String>,
}

/// Who may have issued the server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verify {
    /// An authority that the system trusts.
    System,
    /// Anybody, and the certificate may have any name.
    Off,
    Authorities(Authorities),
}

/// Certificates of authorities, and the file that they come from. A file that has changed is a
/// changed plan.
#[derive(Clone, PartialEq, Eq)]
pub struct Authorities {
    pub file: PathBuf,
    /// At least one, each in DER, and each fit for an authority. Shared by all servers of the pool: a
    /// system's bundle has 200 KiB.
    pub certificates: Arc<[Vec<u8>]>,
}

impl fmt::Debug for Authorities {
    /// Without kilobytes of certificates.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorities").field("file", &self.file).finish_non_exhaustive()
    }
}
