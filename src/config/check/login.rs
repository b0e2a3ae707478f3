//! Who logs in for a health check: `user`, and the password in a file of its own.
//!
//! The configuration is shown, mailed and kept in repositories, so no password stands in it. The
//! file is read here, with the rest, so that a reload takes a new password or says why not.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::leaf;
use super::probe::some_text;
use super::section::{Field, Section};
use crate::config::mistake::{Code, Mistake, Mistakes};
use crate::config::open;
use crate::config::plan::{Login, Password};

/// MySQL takes 32 letters of a user and PostgreSQL 63 bytes; what Redis takes is as long as a text.
/// A password longer than this is no password but the wrong file.
const PASSWORD_MAX: usize = 1024;

pub fn login(section: &Section<'_>, found: &mut Mistakes) -> Login {
    let user = section.get("user").and_then(|field| some_text(field, "a name", found));
    let password = section.get("password_file").and_then(|field| password(field, found));
    Login { user, password }
}

fn password(field: Field<'_>, found: &mut Mistakes) -> Option<Password> {
    let file = leaf::path(field, false, found)?;
    let wrong = |message: &str| Mistake::new(Code::BadSecret, field.value.span.clone(), message);
    match read(&file) {
        Ok((secret, mode)) => {
            if mode & 0o004 != 0 {
                let message = "every user of this machine may read the password";
                let mistake = Mistake::new(Code::OpenSecret, field.value.span.clone(), message);
                found.add(mistake.label(format!("its mode is {:04o}", mode & 0o7777)).help("chmod o-r"));
            }
            Some(Password { file, secret })
        }
        Err(why) => {
            found.add(wrong("the file of the password cannot be used").label(why));
            None
        }
    }
}

/// The one line of the file, and the file's mode. Never shown: an error tells of the file alone.
fn read(file: &Path) -> Result<(String, u32), String> {
    let (bytes, metadata) = open::bounded(file, PASSWORD_MAX + 1).map_err(|mistake| mistake.message)?;
    let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
    let secret = text.strip_suffix('\n').unwrap_or(&text);
    let secret = secret.strip_suffix('\r').unwrap_or(secret);
    match () {
        () if secret.is_empty() => Err("it is empty".into()),
        () if secret.len() > PASSWORD_MAX => Err(format!("it has more than {PASSWORD_MAX} bytes")),
        () if secret.contains(char::is_control) => Err("it has more than one line".into()),
        () => Ok((secret.to_owned(), metadata.permissions().mode())),
    }
}
