//! The way from a command to the daemon: one GET on the admin socket, and what to say when it fails.
//!
//! Every reading command goes through [`show`]: the API's own JSON with `--json`, else a few
//! aligned lines. Commands never look into the daemon any other way.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::exit::{FAILURE, NO_PERMISSION};

/// For the whole exchange. The daemon answers in milliseconds, or its control thread is stuck.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// An answer larger than this is not one of ours.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What every reading command takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Reading {
    /// The admin socket of the daemon
    #[arg(
        long = "admin",
        value_name = "PATH",
        env = "TIDEGATE_ADMIN",
        default_value = "/run/tidegate/admin.sock"
    )]
    pub socket: PathBuf,
    /// Print the API's JSON
    #[arg(long)]
    pub json: bool,
}

/// Asks for `path` and prints the answer: as it is with `--json`, else what `human` makes of it.
pub fn show<T: DeserializeOwned>(
    reading: &Reading,
    path: &str,
    human: impl Fn(&T, Paint) -> String,
) -> ExitCode {
    let shown = get(&reading.socket, path).and_then(|body| match reading.json {
        true => Ok(body),
        false => {
            let value = serde_json::from_str(&body).map_err(|error| Trouble::strange(&error))?;
            Ok(human(&value, Paint::for_stdout()))
        }
    });
    match shown {
        Ok(text) => print(&text),
        Err(trouble) => {
            let _ = writeln!(io::stderr(), "error: {}", trouble.text); // nowhere left to say so
            ExitCode::from(trouble.exit)
        }
    }
}

/// A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

/// Why there is no answer, what to do about it, and the exit code.
#[derive(Debug)]
pub struct Trouble {
    pub text: String,
    pub exit: u8,
}

impl Trouble {
    fn new(text: String) -> Self {
        Trouble { text, exit: FAILURE }
    }

    fn strange(error: &dyn std::fmt::Display) -> Self {
        Trouble::new(format!("the answer is not one that this version understands: {error}"))
    }

    fn connecting(socket: &Path, error: &io::Error) -> Self {
        let place = socket.display();
        match error.kind() {
            io::ErrorKind::NotFound => Trouble::new(format!(
                "there is no admin socket at {place}\n\
                 is tidegate running? if its socket is elsewhere, say so: `--admin PATH` or TIDEGATE_ADMIN"
            )),
            io::ErrorKind::ConnectionRefused => Trouble::new(format!(
                "nobody answers at {place}: tidegate is not running, and has left its socket behind"
            )),
            io::ErrorKind::PermissionDenied => Trouble {
                text: format!(
                    "no permission to use {place}\n\
                     it belongs to the user that tidegate runs as: use `sudo`, or become that user"
                ),
                exit: NO_PERMISSION,
            },
            _ => Trouble::new(format!("cannot reach tidegate at {place}: {error}")),
        }
    }
}

/// The body of a good answer to `GET path`.
pub fn get(socket: &Path, path: &str) -> Result<String, Trouble> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Trouble::new(format!("cannot begin: {error}")))?;
    runtime.block_on(async {
        let late = |_| Trouble::new(format!("no answer from {} within {ANSWER_WITHIN:?}", socket.display()));
        timeout(ANSWER_WITHIN, exchange(socket, path)).await.map_err(late)?
    })
}

async fn exchange(socket: &Path, path: &str) -> Result<String, Trouble> {
    let broken =
        |error: hyper::Error| Trouble::new(format!("tidegate at {} broke off: {error}", socket.display()));
    let stream = UnixStream::connect(socket).await;
    let stream = stream.map_err(|error| Trouble::connecting(socket, &error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(connection);
    let request = Request::get(path).header("host", "tidegate").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| Trouble::strange(&error))?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| Trouble::strange(&error))?.to_bytes();
    let body = String::from_utf8(body.to_vec()).map_err(|error| Trouble::strange(&error))?;
    match status.is_success() {
        true => Ok(body),
        false => Err(Trouble::new(format!("tidegate answered {status}: {}", body.trim_end()))),
    }
}

/// Colour, or not: only for a terminal, and never where NO_COLOR is set (no-color.org).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paint(bool);

impl Paint {
    #[cfg(test)]
    pub const NEVER: Paint = Paint(false);

    fn for_stdout() -> Self {
        let is_unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Paint(io::stdout().is_terminal() && !is_unwanted)
    }

    /// A state in green, yellow or red; anything else as it is.
    fn state(self, word: &str, text: &str) -> String {
        let colour = match word {
            _ if !self.0 => return text.to_owned(),
            "up" | "serving" | "listening" | "ok" => 32,
            "down" | "empty" | "cut-off" | "refused" => 31,
            "degraded" | "checking" | "draining" | "full" => 33,
            _ => return text.to_owned(),
        };
        format!("\x1b[{colour}m{text}\x1b[0m")
    }

    /// A word that is a state of something.
    pub fn word(self, word: &str) -> String {
        self.state(word, word)
    }
}

/// Rows under a head, in columns two spaces apart; numbers to the right, the rest to the left.
pub fn table<const N: usize>(head: [&str; N], rows: Vec<[String; N]>, paint: Paint) -> String {
    let rows: Vec<[String; N]> = rows.into_iter().map(|row| row.map(|cell| printable(&cell))).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or_default()
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let is_number = |column: usize| {
        !rows.is_empty()
            && rows.iter().all(|row| row[column].bytes().all(|byte| byte.is_ascii_digit() || byte == b'-'))
    };
    let numeric: [bool; N] = std::array::from_fn(is_number);
    let mut text = String::new();
    for row in std::iter::once(head.map(str::to_owned)).chain(rows) {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let gap = " ".repeat(widths[column] - cell.chars().count());
            match numeric[column] {
                true => format!("{gap}{cell}"),
                false => format!("{}{gap}", paint.word(cell)),
            }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Nothing in a cell may steer the terminal.
fn printable(cell: &str) -> String {
    let letters = cell.chars().map(|letter| match letter.is_control() {
        true => letter.escape_default().to_string(),
        false => letter.to_string(),
    });
    letters.collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;
    use crate::config::plan::Admin;
    use crate::control::fixture::{desk_of, plan_of};
    use crate::control::{Doors, admin, api};

    fn scratch() -> PathBuf {
        std::env::temp_dir().join(format!("tidegate-cli-{}-{}.sock", std::process::id(), fastrand::u64(..)))
    }

    #[test]
    fn a_missing_socket_says_what_to_do() {
        let trouble = get(&scratch(), "/api/v1/status").expect_err("nothing there");
        assert_eq!(trouble.exit, 1);
        for word in ["is tidegate running?", "--admin PATH", "TIDEGATE_ADMIN"] {
            assert!(trouble.text.contains(word), "{}", trouble.text);
        }
    }

    #[test]
    fn what_the_daemon_answers_is_what_the_command_reads() {
        let socket = scratch();
        let doors = Doors::open(&Admin { socket: Some(socket.clone()), http: None }).expect("opens");
        let desk = desk_of(&plan_of("api", &["a", "b"]));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let daemon = thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! { () = admin::serve(doors, desk) => (), _ = ended => () }
            });
        });
        let status = get(&socket, "/api/v1/status").expect("answers");
        let status: api::Status = serde_json::from_str(&status).expect("as promised");
        assert_eq!((status.state.as_str(), status.pools.total), ("serving", 1));
        let servers = get(&socket, "/api/v1/servers").expect("answers");
        assert_eq!(serde_json::from_str::<Vec<api::Server>>(&servers).expect("as promised").len(), 2);
        let trouble = get(&socket, "/api/v1/nothing").expect_err("there is none");
        assert!(trouble.text.contains("404") && trouble.text.contains("not_found"), "{}", trouble.text);
        drop(end);
        daemon.join().expect("no panic");
    }

    #[test]
    fn a_socket_left_behind_is_told_from_a_missing_one() {
        let path = scratch();
        drop(UnixListener::bind(&path).expect("binds"));
        let trouble = get(&path, "/api/v1/status").expect_err("nobody answers");
        assert!(trouble.text.contains("has left its socket behind"), "{}", trouble.text);
        std::fs::remove_file(&path).expect("removed");
    }

    #[test]
    fn no_permission_has_an_exit_code_and_a_fix() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let trouble = Trouble::connecting(Path::new("/run/tidegate/admin.sock"), &denied);
        assert_eq!(trouble.exit, 77);
        assert!(trouble.text.contains("sudo"), "{}", trouble.text);
    }

    #[test]
    fn columns_line_up_and_numbers_stand_to_the_right() {
        let rows = vec![
            ["web".to_owned(), "7".to_owned(), "up".to_owned()],
            ["a-long-name".to_owned(), "1234".to_owned(), "down".to_owned()],
        ];
        let plain = table(["NAME", "ACTIVE", "STATE"], rows.clone(), Paint::NEVER);
        assert_eq!(plain, "NAME         ACTIVE  STATE\nweb               7  up\na-long-name    1234  down\n");
        let painted = table(["NAME", "ACTIVE", "STATE"], rows, Paint(true));
        assert!(painted.contains("\x1b[32mup\x1b[0m") && painted.contains("\x1b[31mdown\x1b[0m"));
    }

    #[test]
    fn a_name_cannot_steer_the_terminal() {
        let rows = vec![["\x1b[2Jx".to_owned()]];
        assert_eq!(table(["NAME"], rows, Paint::NEVER), "NAME\n\\u{1b}[2Jx\n");
    }
}
