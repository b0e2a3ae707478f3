//! The check of PostgreSQL: a login, and one question where a role or a lag is asked for.
//!
//! A login alone proves that the server takes sessions: while it starts up, shuts down or has too
//! many, it says so instead. Never sends a password in clear, unless within TLS to a server that has
//! proven who it is.

use super::line::{Fault, Line};
use super::wrong_role;
use crate::config::plan::{Postgres, Role};
use crate::wire::postgres::{self, Login, Message, TERMINATE, TLS_REQUEST};
use crate::wire::{printable, scram};

/// Whether it is a replica, and how many milliseconds it is behind. What has been replayed as far as
/// it was received is behind by nothing, as long as somebody still sends: an idle primary
/// writes nothing, and its last transaction may be hours old. Below zero: its clock is late. NULL: nothing
/// has been replayed yet, and nobody sends.
const STANDING: &str = "SELECT pg_is_in_recovery(), CASE \
    WHEN NOT pg_is_in_recovery() THEN 0 \
    WHEN pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn() \
        AND EXISTS (SELECT FROM pg_stat_wal_receiver) THEN 0 \
    ELSE floor(1000 * extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())) \
    END::bigint";

/// Messages up to the end of a login or of an answer; a server that says more says nothing useful.
const MESSAGES_MAX: usize = 200;

pub async fn ask(line: &mut Line, check: &Postgres) -> Result<(), Fault> {
    log_in(line, check).await?;
    line.will_say(TERMINATE);
    if check.role.is_none() && check.max_lag.is_none() {
        return Ok(());
    }
    line.say(&postgres::query(STANDING)).await?;
    let (found, behind_ms) = standing(line).await?;
    match check.role {
        Some(wanted) if wanted != found => Err(wrong_role(format!("the server is a {found}"), wanted)),
        _ => judge_lag(check, behind_ms),
    }
}

fn judge_lag(check: &Postgres, behind_ms: Option<u64>) -> Result<(), Fault> {
    let Some(most) = check.max_lag else { return Ok(()) };
    match behind_ms {
        Some(behind) if u128::from(behind) <= most.as_millis() => Ok(()),
        Some(behind) => {
            let behind = std::time::Duration::from_millis(behind);
            Err(Fault::theirs(format!("{behind:?} behind its primary, max_lag is {most:?}")))
        }
        None => Err(Fault::theirs("nobody knows how far it is behind its primary")),
    }
}

async fn log_in(line: &mut Line, check: &Postgres) -> Result<(), Fault> {
    let user = check.login.user.as_deref().unwrap_or_default();
    let database = check.database.as_deref().unwrap_or(user);
    begin_tls(line).await?;
    line.say(&postgres::startup(user, database)).await?;
    for _ in 0..MESSAGES_MAX {
        match hear(line, "answer to the login").await? {
            Message::Login(step) => answer(line, check, user, step).await?,
            Message::Ready => return Ok(()),
            _ => {}
        }
    }
    Err(Fault::theirs("comes to no end with the login"))
}

/// Asks for TLS, where it is wanted.
async fn begin_tls(line: &mut Line) -> Result<(), Fault> {
    if !line.wants_tls() {
        return Ok(());
    }
    line.say(TLS_REQUEST).await?;
    match line.hear("answer to the request for TLS", postgres::has_tls).await? {
        true => line.secure().await,
        false => Err(Fault::theirs("offers no TLS (ssl = off)")),
    }
}

/// Answers one step of the login.
async fn answer(line: &mut Line, check: &Postgres, user: &str, step: Login) -> Result<(), Fault> {
    let password = || match &check.login.password {
        Some(password) => Ok(password.secret.as_str()),
        None => Err(Fault::theirs("asks for a password, and there is no password_file")),
    };
    match step {
        Login::Ok => Ok(()),
        Login::Md5(salt) => line.say(&postgres::md5_password(user, password()?, salt)).await,
        Login::Sasl(names) if names.iter().any(|name| name == scram::MECHANISM) => {
            prove(line, password()?).await
        }
        Login::Cleartext if line.is_private() => {
            let bytes = postgres::password(password()?);
            line.say(&bytes).await
        }
        Login::Cleartext => Err(Fault::theirs("wants the password in clear, which a check does not send")),
        _ => Err(Fault::theirs("wants a kind of login that checks do not have")),
    }
}

async fn prove(line: &mut Line, password: &str) -> Result<(), Fault> {
    let mut random = [0; 18];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| Fault::Ours("no random numbers".into()))?;
    let opening = scram::Opening::new("", random);
    line.say(&postgres::sasl_first(scram::MECHANISM, &opening.message())).await?;
    let Message::Login(Login::SaslContinue(challenge)) = hear(line, "answer to the login").await? else {
        return Err(Fault::theirs("sent no SCRAM challenge"));
    };
    let proof = opening.prove(&challenge, password).map_err(Fault::theirs)?;
    line.say(&postgres::sasl_next(&proof.message)).await?;
    match hear(line, "answer to the password").await? {
        Message::Login(Login::SaslFinal(last)) if proof.is_answered_by(&last) => Ok(()),
        _ => Err(Fault::theirs("does not know the password itself: who is this?")),
    }
}

async fn standing(line: &mut Line) -> Result<(Role, Option<u64>), Fault> {
    let mut found = None;
    for _ in 0..MESSAGES_MAX {
        match hear(line, "answer to the question for its role").await? {
            Message::Row(columns) => found = Some(columns),
            Message::Ready => {
                let columns = found.unwrap_or_default();
                let role = match columns.first() {
                    Some(Some(text)) if text == "t" => Role::Replica,
                    Some(Some(text)) if text == "f" => Role::Primary,
                    _ => return Err(Fault::theirs("did not say what it is")),
                };
                let behind = columns.get(1).and_then(|lag| lag.as_ref()?.parse::<i64>().ok());
                let behind = behind.map(|behind| behind.max(0).unsigned_abs());
                return Ok((role, behind));
            }
            _ => {}
        }
    }
    Err(Fault::theirs("comes to no end with its answer"))
}

/// The next message, unless it is an error: then its text, as a client would see it.
async fn hear(line: &mut Line, what: &'static str) -> Result<Message, Fault> {
    match line.hear(what, postgres::read).await? {
        Message::Error(error) => Err(Fault::theirs(printable(&error.text))),
        message => Ok(message),
    }
}
