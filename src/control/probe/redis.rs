//! The check of Redis: `AUTH` where there is a password, `PING`, and `ROLE` where a role is wanted.
//!
//! `PING` comes first, because `ROLE` is answered even while the data is being loaded. Whatever error
//! the server names (`LOADING`, `MASTERDOWN`, `NOAUTH`), it would name it to clients as well.
//!
//! `AUTH` says the password in clear words. Where TLS is asked for, only a server that has proven who it is
//! hears it; where none is, the operator has chosen so.

use super::line::{Fault, Line};
use super::wrong_role;
use crate::config::plan::{Login, Redis, Role};
use crate::wire::printable;
use crate::wire::redis::{QUIT, Said, command, role, status};

pub async fn ask(line: &mut Line, redis: &Redis) -> Result<(), Fault> {
    line.will_say(QUIT);
    if line.wants_tls() && !line.is_private() && redis.login.password.is_some() {
        return Err(Fault::theirs(
            "would hear the password in clear without having proven who it is: name the file of its authority \
             in `verify`, or leave `password_file` out",
        ));
    }
    if let Some(auth) = auth(&redis.login) {
        line.say(&auth).await?;
        accepted("AUTH", line.hear("answer to AUTH", status).await?)?;
    }
    line.say(&command(&[b"PING"])).await?;
    let said = accepted("PING", line.hear("answer to PING", status).await?)?;
    if said != b"PONG" {
        return Err(Fault::theirs(format!("answered PING with \"{}\"", printable(&said))));
    }
    let Some(wanted) = redis.role else { return Ok(()) };
    line.say(&command(&[b"ROLE"])).await?;
    let said = accepted("ROLE", line.hear("answer to ROLE", role).await?)?;
    let found = match said.role.as_slice() {
        b"master" => Some(Role::Primary),
        b"slave" => Some(Role::Replica),
        _ => None, // a sentinel
    };
    match found {
        Some(Role::Replica) if wanted == Role::Replica && said.link != b"connected" => {
            // It answers what it knew when it lost its primary, or knows little yet.
            let link = printable(&said.link);
            Err(Fault::theirs(format!(
                "the replica's link to its primary is \"{link}\", wanted \"connected\""
            )))
        }
        Some(found) if found == wanted => Ok(()),
        Some(found) => Err(wrong_role(format!("ROLE says {found}"), wanted)),
        None => Err(wrong_role(format!("ROLE says {}", printable(&said.role)), wanted)),
    }
}

/// `None`: nobody to log in as. A user without a password is one that takes any.
fn auth(login: &Login) -> Option<Vec<u8>> {
    let password = login.password.as_ref().map(|password| password.secret.as_bytes());
    match (&login.user, password) {
        (None, None) => None,
        (None, Some(password)) => Some(command(&[b"AUTH", password])),
        (Some(user), password) => Some(command(&[b"AUTH", user.as_bytes(), password.unwrap_or_default()])),
    }
}

fn accepted<T>(asked: &str, said: Said<T>) -> Result<T, Fault> {
    said.map_err(|error| Fault::theirs(format!("{asked} says {}", printable(&error))))
}
