//! The check of MySQL and MariaDB: the whole login, `read_only` where a role is wanted, and COM_QUIT.
//!
//! Never ends a connection between greeting and login while the server is well: MySQL counts those
//! against our host and blocks it at `max_connect_errors`, for clients too (MDEV-21456).

use super::line::{Fault, Line};
use super::wrong_role;
use crate::config::plan::{Mysql, Role};
use crate::wire::mysql::{self, Answer, CACHING, QUIT, ServerError};
use crate::wire::{Halt, Parsed, printable};

/// Steps of a login: at most a switch of the plugin, its answer, and the end.
const STEPS_MAX: usize = 5;

pub async fn ask(line: &mut Line, check: &Mysql) -> Result<(), Fault> {
    log_in(line, check).await?;
    line.will_say(QUIT);
    let Some(wanted) = check.role else { return Ok(()) };
    line.say(&mysql::query("SELECT @@global.read_only")).await?;
    let said = line.hear("answer to the question for read_only", mysql::value).await?;
    let found = match said.map_err(|answer| refused(&answer))?.as_slice() {
        b"0" | b"OFF" => Role::Primary,
        _ => Role::Replica,
    };
    match found == wanted {
        true => Ok(()),
        false => Err(wrong_role(format!("read_only says {found}"), wanted)),
    }
}

async fn log_in(line: &mut Line, check: &Mysql) -> Result<(), Fault> {
    let user = check.login.user.as_deref().unwrap_or_default();
    let password = check.login.password.as_ref().map_or("", |password| &password.secret);
    let (sequence, payload) = line.hear("greeting", packet).await?;
    let greeting = mysql::greeting(&payload).map_err(|error| match error {
        Some(error) => said(&error),
        None => Fault::theirs("speaks no MySQL"),
    })?;
    // What it would like may be a plugin that we do not have; the user's own may be another.
    let plugin = mysql::proof(&greeting.plugin, "", &[]).map_or(mysql::NATIVE, |_| &greeting.plugin);
    let proof = mysql::proof(plugin, password, &greeting.salt).unwrap_or_default();
    line.say(&mysql::login(sequence.wrapping_add(1), user, plugin, &proof)).await?;
    for _ in 0..STEPS_MAX {
        let (sequence, payload) = line.hear("answer to the login", packet).await?;
        match mysql::answer(&payload) {
            Answer::Ok => return Ok(()),
            Answer::More(3) => {} // known from an earlier login: the end follows
            Answer::More(_) => return Err(unknown_password()),
            Answer::Switch { plugin, salt } => {
                let proof = mysql::proof(&plugin, password, &salt).ok_or_else(|| strange(&plugin))?;
                line.say(&mysql::proof_alone(sequence.wrapping_add(1), &proof)).await?;
            }
            answer => return Err(refused(&answer)),
        }
    }
    Err(Fault::theirs("comes to no end with the login"))
}

fn packet(bytes: &[u8]) -> Parsed<(u8, Vec<u8>)> {
    match mysql::packet(bytes) {
        Ok(((sequence, payload), used)) => Ok(((sequence, payload.to_vec()), used)),
        Err(halt) => Err::<_, Halt>(halt),
    }
}

/// The server has not this user's password at hand, and the long way round needs TLS.
fn unknown_password() -> Fault {
    Fault::theirs(format!(
        "{CACHING} wants a full login, which needs TLS: let the user log in once by other means, or have \
         an empty password or mysql_native_password"
    ))
}

fn strange(plugin: &str) -> Fault {
    Fault::theirs(format!(
        "wants the login plugin {}, which checks do not have",
        printable(plugin.as_bytes())
    ))
}

fn refused(answer: &Answer) -> Fault {
    match answer {
        Answer::Error(error) => said(error),
        _ => Fault::theirs("sent a malformed answer"),
    }
}

fn said(error: &ServerError) -> Fault {
    Fault::theirs(format!("error {}: {}", error.code, printable(&error.text)))
}
