//! What servers and clients say: bytes -> value | NeedMore | Malformed, and the few messages that
//! we say ourselves.
//!
//! Pure: no I/O, no clock, no randomness of its own. Every parser has a bound on what it reads, never
//! panics whatever it is given, and finds the same however its bytes were split on the way; each
//! holds a test of that. Who reads and writes is `control/probe`.

pub mod http; // answers of HTTP/1.x, and the request for one
pub mod mysql; // MySQL and MariaDB: greeting, login, one question
pub mod postgres; // messages of version 3.0, and the login
pub mod proxy_header; // a connection of our own, to a server that requires the header
pub mod scram; // SCRAM-SHA-256: proves a password without telling it
mod md5; // for logins that are older than SCRAM
pub mod smtp; // replies, EHLO, QUIT
pub mod redis; // RESP: commands, their replies, and the role

#[cfg(test)]
mod tests; // whatever they say, and however it comes

/// What a parser finds at the start of the bytes: a value, and how many of them it took.
pub type Parsed<T> = Result<(T, usize), Halt>;

/// Why there is no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    /// It may come yet.
    NeedMore,
    /// It never will; one clause that says what is wrong, such as "speaks no SMTP".
    Malformed(&'static str),
}

/// Characters of a server's text that are repeated in a message.
const SAID_MAX: usize = 120;

/// What a server said, fit for a message: one line of printable characters, and not too long.
pub fn printable(said: &[u8]) -> String {
    // A character has four bytes at the most, and what is not UTF-8 becomes one for each byte.
    let text = String::from_utf8_lossy(&said[..said.len().min(4 * SAID_MAX)]).into_owned();
    let text: Vec<char> = text.trim().chars().map(|c| if is_plain(c) { c } else { ' ' }).collect();
    match text.get(..SAID_MAX) {
        Some(start) if text.len() > SAID_MAX => start.iter().collect::<String>() + "...",
        _ => text.into_iter().collect(),
    }
}

/// Is shown where it stands, and does nothing to what stands around it: no control, no end of a line, and
/// nothing that turns the direction of the text (Unicode, UAX #9) or is not seen.
fn is_plain(c: char) -> bool {
    let is_hidden =
        matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    !c.is_control() && !is_hidden
}

/// Where the text begins. For short texts: each place is tried.
pub fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    if text.is_empty() {
        return Some(0);
    }
    bytes.windows(text.len()).position(|window| window == text)
}

/// The next line, without its end, and where the one after it begins. Ends in `\n` or `\r\n`: what
/// answers a check is sometimes a script of three lines.
fn line<'a>(bytes: &'a [u8], most: usize, too_long: &'static str) -> Parsed<&'a [u8]> {
    match bytes.iter().take(most).position(|byte| *byte == b'\n') {
        Some(end) => {
            let line = &bytes[..end];
            Ok((line.strip_suffix(b"\r").unwrap_or(line), end + 1))
        }
        None if bytes.len() >= most => Err(Halt::Malformed(too_long)),
        None => Err(Halt::NeedMore),
    }
}
