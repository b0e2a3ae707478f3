//! An authority for one test, and the certificates that it issues to servers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::proc::{self, TempDir};

/// The name that certificates have unless they are to have another.
pub const NAME: &str = "web.internal";

/// `openssl ca` is the one that takes dates of the past.
const CONFIG: &str = "[ca]\ndefault_ca = it\n[it]\nnew_certs_dir = .\ndatabase = index\nserial = serial\n\
    default_md = sha256\npolicy = any\nunique_subject = no\ncopy_extensions = copy\n[any]\ncommonName = supplied\n";

pub struct Authority {
    dir: TempDir,
}

/// A certificate and its key, as files.
pub struct Certificate {
    pub chain: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Authority {
        let dir = TempDir::new("authority");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("a directory to share");
        for (name, text) in [("config", CONFIG), ("index", ""), ("serial", "01\n")] {
            fs::write(dir.join(name), text).expect("a file of the authority");
        }
        let authority = Authority { dir };
        let new = ["req", "-x509", "-days", "30", "-subj", "/CN=a test's authority", "-out", "ca.pem"];
        authority.openssl(&[&new, &key("ca.key")[..]].concat());
        authority
    }

    /// What `verify` names.
    pub fn file(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// For that name and 127.0.0.1, good for years.
    pub fn certificate(&self, name: &str) -> Certificate {
        self.issue(name, "20200101000000Z", "20490101000000Z")
    }

    /// The same, good for one day of the past.
    pub fn expired(&self, name: &str) -> Certificate {
        self.issue(name, "20200101000000Z", "20200102000000Z")
    }

    fn issue(&self, name: &str, from: &str, to: &str) -> Certificate {
        let (request, chain, secret) = (format!("{name}.csr"), format!("{name}.pem"), format!("{name}.key"));
        let (subject, names) = (format!("/CN={name}"), format!("subjectAltName=DNS:{name},IP:127.0.0.1"));
        let asked = ["req", "-new", "-subj", &subject, "-out", &request, "-addext", &names];
        let of_a_server = ["-addext", "basicConstraints=CA:FALSE"];
        self.openssl(&[&asked, &of_a_server[..], &key(&secret)].concat());
        let issue = ["ca", "-batch", "-notext", "-config", "config", "-cert", "ca.pem", "-keyfile", "ca.key"];
        let what = ["-in", &request, "-out", &chain, "-startdate", from, "-enddate", to];
        self.openssl(&[&issue, &what[..]].concat());
        Certificate { chain: self.dir.join(&chain), key: self.dir.join(&secret) }
    }

    fn openssl(&self, args: &[&str]) {
        proc::run(Command::new("openssl").args(args).current_dir(self.dir.path()));
    }
}

impl Certificate {
    /// Servers that have a user of their own read their key as that user alone.
    pub fn owned_by(self, user: &str) -> Certificate {
        if proc::is_root() {
            proc::run(Command::new("chown").arg(user).arg(&self.key));
        }
        fs::set_permissions(&self.key, fs::Permissions::from_mode(0o600)).expect("for one alone");
        self
    }
}

/// A new key in that file.
fn key(file: &str) -> [&str; 7] {
    ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", file]
}

/// `tls` of a check that trusts this authority alone.
pub fn trusting(file: &Path) -> String {
    format!("tls = {{ verify = {file:?}, sni = \"{NAME}\" }}\n")
}
