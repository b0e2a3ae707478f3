//! `tls`: who a server must prove to be, and what it is called.
//!
//! The file of authorities is read here, with the rest, so that a reload takes a new one or says
//! why not.

use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, DnsName};

use super::leaf;
use super::section::{Field, Section};
use super::{keys, probe};
use crate::config::file::Kind;
use crate::config::mistake::{Code, Mistake, Mistakes, quoted};
use crate::config::open;
use crate::config::plan::{Authorities, Tls, Verify};

/// Four times what systems bring. What is longer is another file.
const AUTHORITIES_BYTES_MAX: usize = 1024 * 1024;

const SHAPE: &str = "{ verify = \"system\", sni = \"web.internal\" }";

/// What others say for our words.
const FOREIGN_VERIFY: &[(&str, &str)] = &[
    ("none", "off"),
    ("no", "off"),
    ("optional", "off"),
    ("required", "system"),
    ("peer", "system"),
    ("on", "system"),
    ("yes", "system"),
    ("full", "system"),
    ("verify-full", "system"),
];

pub fn tls(field: Field<'_>, found: &mut Mistakes) -> Option<Tls> {
    if let Kind::Boolean(is_wanted) = field.value.kind {
        let mistake = field.wrong_type("a table");
        found.add(match is_wanted {
            true => mistake.patch(field.value.span.clone(), "{ verify = \"system\" }"),
            false => mistake.help("without TLS, leave it out"),
        });
        return is_wanted.then(Tls::default);
    }
    let table = leaf::table(field, &format!("a table such as {SHAPE}"), found)?;
    let section = Section::read("tls", table, &keys::TLS, found);
    let mut tls = Tls::default();
    if let Some(field) = section.get("verify") {
        tls.verify = verify(field, found).unwrap_or(tls.verify);
    }
    tls.sni = section.get("sni").and_then(|field| sni(field, found));
    Some(tls)
}

fn verify(field: Field<'_>, found: &mut Mistakes) -> Option<Verify> {
    if let Kind::Boolean(is_wanted) = field.value.kind {
        let word = if is_wanted { "\"system\"" } else { "\"off\"" };
        found.add(field.wrong_type("\"system\", \"off\" or a path").patch(field.value.span.clone(), word));
        return None;
    }
    let written = leaf::text(field, "\"system\", \"off\" or a path", found)?;
    match written {
        "system" => Some(Verify::System),
        "off" => Some(Verify::Off),
        path if path.contains(['/', '.']) => authorities(field, found).map(Verify::Authorities),
        word => {
            let mistake = leaf::unknown_word(field, word, &["system", "off"], FOREIGN_VERIFY);
            let also = "a file of authorities is named by its path, such as \"/etc/ssl/ca.pem\"";
            found.add(if mistake.help.is_none() { mistake.help(also) } else { mistake });
            None
        }
    }
}

fn authorities(field: Field<'_>, found: &mut Mistakes) -> Option<Authorities> {
    let file = leaf::path(field, false, found)?;
    match read(&file) {
        Ok(certificates) => Some(Authorities { file, certificates: certificates.into() }),
        Err(why) => {
            let message = "the file of authorities cannot be used";
            let mistake = Mistake::new(Code::BadAuthorities, field.value.span.clone(), message);
            found.add(mistake.label(why));
            None
        }
    }
}

fn read(file: &Path) -> Result<Vec<Vec<u8>>, String> {
    let (bytes, _) = open::bounded(file, AUTHORITIES_BYTES_MAX + 1).map_err(|mistake| mistake.message)?;
    if bytes.len() > AUTHORITIES_BYTES_MAX {
        return Err("it is larger than 1 MiB".into());
    }
    let mut certificates = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let certificate = certificate.map_err(|error| format!("it is no PEM: {error}"))?;
        let number = certificates.len() + 1;
        RootCertStore::empty()
            .add(certificate.clone())
            .map_err(|error| format!("certificate {number} in it is none: {error}"))?;
        certificates.push(certificate.to_vec());
    }
    match certificates.is_empty() {
        true => Err("it holds no certificate in PEM".into()),
        false => Ok(certificates),
    }
}

fn sni(field: Field<'_>, found: &mut Mistakes) -> Option<String> {
    let name = probe::some_text(field, "a name", found)?;
    let mistake = |message: String| Mistake::new(Code::OutOfRange, field.value.span.clone(), message);
    if name.parse::<std::net::IpAddr>().is_ok() {
        let help = "leave it out: then the certificate must have the server's IP address";
        found.add(mistake(format!("{} is an address, not a name", quoted(&name))).help(help));
        return None;
    }
    if DnsName::try_from(name.as_str()).is_err() {
        found.add(mistake(format!("{} is no host name", quoted(&name))).help("for example \"web.internal\""));
        return None;
    }
    Some(name)
}

/// The name in a `Host` header, where it is one.
pub fn name_in(host: &str) -> Option<String> {
    let name = host.rsplit_once(':').map_or(host, |(name, _port)| name);
    let is_name = name.parse::<std::net::IpAddr>().is_err() && DnsName::try_from(name).is_ok();
    is_name.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_header_holds_a_name_or_an_address() {
        assert_eq!(name_in("www.example.com").as_deref(), Some("www.example.com"));
        assert_eq!(name_in("www.example.com:8443").as_deref(), Some("www.example.com"));
        for none in ["192.0.2.1", "192.0.2.1:443", "[2001:db8::1]:443", ""] {
            assert_eq!(name_in(none), None, "{none}");
        }
    }
}
