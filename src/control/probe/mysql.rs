//! The check of MySQL and MariaDB: the whole login, `read_only` where a role is wanted, the node's state
//! where it must be in step with a Galera cluster, and COM_QUIT.
//!
//! Never ends a connection between greeting and login while the server is well: MySQL counts those
//! against our host and blocks it at `max_connect_errors`, for clients too (MDEV-21456). Where we have
//! something against the server, it hears a login that it must refuse: those it does not count.

use super::line::{Fault, Line};
use super::wrong_role;
use crate::config::plan::{Galera, Mysql, Role};
use crate::wire::mysql::{self, Answer, CACHING, QUIT, ServerError};
use crate::wire::{Halt, Parsed, printable};

/// Steps of a login: at most a switch of the plugin, its answer, and the end.
const STEPS_MAX: usize = 5;

pub async fn ask(line: &mut Line, check: &Mysql) -> Result<(), Fault> {
    log_in(line, check).await?;
    if let Some(wanted) = check.role {
        check_role(line, wanted).await?;
    }
    match check.galera {
        Some(wanted) => check_galera(line, wanted).await,
        None => Ok(()),
    }
}

async fn check_role(line: &mut Line, wanted: Role) -> Result<(), Fault> {
    line.say(&mysql::query("SELECT @@global.read_only")).await?;
    let said = line.hear("answer to the question for read_only", mysql::row).await?;
    let found = match said.map_err(|answer| refused(&answer))?.as_deref() {
        Some(b"0" | b"OFF") => Role::Primary,
        _ => Role::Replica,
    };
    match found == wanted {
        true => Ok(()),
        false => Err(wrong_role(format!("read_only says {found}"), wanted)),
    }
}

/// A node that has lost its cluster, or is not yet in step with it, takes logins and even answers
/// `SELECT @@global.read_only`, so its state is asked for.
/// (Galera's documentation, "Node State Changes" and `wsrep_local_state`.)
async fn check_galera(line: &mut Line, wanted: Galera) -> Result<(), Fault> {
    line.say(&mysql::query("SHOW GLOBAL STATUS LIKE 'wsrep_local_state'")).await?;
    let said = line.hear("answer to the question for wsrep_local_state", mysql::row).await?;
    let state = said.map_err(|answer| refused(&answer))?;
    let found = match state.as_deref() {
        Some(b"4") => return Ok(()),
        Some(b"2") if wanted == Galera::SyncedOrDonor => return Ok(()),
        Some(b"0") => "outside of its cluster's primary component",
        Some(b"1") => "joining",
        Some(b"2") => "donor or desynced",
        Some(b"3") => "joined, and still catching up",
        Some(_) => "in a state of its own",
        None => return Err(Fault::theirs("is no node of a Galera cluster: it has no wsrep_local_state")),
    };
    Err(Fault::theirs(format!("the node is {found}, wanted {wanted}")))
}

/// Who logs in, and why the check fails although the login goes on.
struct Login<'a> {
    user: &'a str,
    /// Empty from the first fault on: then the server refuses the login, which it does not hold
    /// against this host.
    password: &'a str,
    fault: Option<Fault>,
}

impl Login<'_> {
    fn fail(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
        self.password = "";
    }
}

/// Whatever is wrong, the login comes to its end, unless the connection does before.
async fn log_in(line: &mut Line, check: &Mysql) -> Result<(), Fault> {
    let password = check.login.password.as_ref().map_or("", |password| &password.secret);
    let user = check.login.user.as_deref().unwrap_or_default();
    let mut login = Login { user, password, fault: None };
    let ended = introduce(line, &mut login).await;
    match login.fault {
        Some(fault) => Err(fault),
        None => ended,
    }
}

async fn introduce(line: &mut Line, login: &mut Login<'_>) -> Result<(), Fault> {
    let (mut sequence, payload) = line.hear("greeting", packet).await?;
    let greeting = mysql::greeting(&payload).map_err(|error| match error {
        Some(error) => said(&error),
        None => Fault::theirs("speaks no MySQL"),
    })?;
    if line.wants_tls() && !greeting.has_tls {
        login.fail(Fault::theirs("offers no TLS"));
    } else if line.wants_tls() {
        sequence = sequence.wrapping_add(1);
        line.say(&mysql::tls_request(sequence)).await?;
        match line.secure().await {
            Err(fault) if line.speaks_tls() => login.fail(fault), // of the certificate: TLS itself stands
            secured => secured?,
        }
    }
    // What it would like may be a plugin that we do not have; the user's own may be another.
    let plugin = mysql::proof(&greeting.plugin, "", &[]).map_or(mysql::NATIVE, |_| &greeting.plugin);
    let proof = mysql::proof(plugin, login.password, &greeting.salt).unwrap_or_default();
    let hello = mysql::login(sequence.wrapping_add(1), login.user, plugin, &proof, line.speaks_tls());
    line.say(&hello).await?;
    prove(line, login).await
}

/// Answers what the server asks for until it has decided.
async fn prove(line: &mut Line, login: &mut Login<'_>) -> Result<(), Fault> {
    for _ in 0..STEPS_MAX {
        let (sequence, payload) = line.hear("answer to the login", packet).await?;
        let next = sequence.wrapping_add(1);
        match mysql::answer(&payload) {
            Answer::Ok => {
                line.will_say(QUIT);
                return Ok(());
            }
            Answer::More(3) => {} // known from an earlier login: the end follows
            Answer::More(_) => {
                if !line.is_private() {
                    login.fail(unknown_password(line.wants_tls()));
                }
                line.say(&mysql::password(next, login.password)).await?;
            }
            Answer::Switch { plugin, salt } => match mysql::proof(&plugin, login.password, &salt) {
                Some(proof) => line.say(&mysql::proof_alone(next, &proof)).await?,
                None => {
                    login.fail(strange(&plugin));
                    line.say(&mysql::no_proof(next, &plugin)).await?;
                }
            },
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

/// The server has not this user's password at hand, and would have to hear it.
fn unknown_password(has_tls: bool) -> Fault {
    let way = if has_tls { "a `verify` that is not \"off\"" } else { "`tls`" };
    Fault::theirs(format!(
        "{CACHING} wants to hear the password, which takes {way}: else let the user log in once by other \
         means, or have an empty password or mysql_native_password"
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
