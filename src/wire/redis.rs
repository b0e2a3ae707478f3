//! RESP, as much as a health check needs: commands, and the two replies that it looks at.
//!
//! Of `ROLE` only the first word is read, and of a replica's the state of its link: what follows is as long as the
//! primary has replicas.

use super::{Halt, Parsed, line};

/// Asks for the end of the connection: the server sends its `+OK` and closes.
pub const QUIT: &[u8] = b"*1\r\n$4\r\nQUIT\r\n";

/// A status or an error has no bound of its own; none that Redis sends is near this.
const LINE_MAX: usize = 1024;

/// What a reply says: a status such as `PONG`, or an error such as `LOADING ...`.
pub type Said<T> = Result<T, Vec<u8>>;

/// A command with its arguments.
pub fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// The reply to `PING` or `AUTH`.
pub fn status(bytes: &[u8]) -> Parsed<Said<Vec<u8>>> {
    match bytes.first() {
        None => Err(Halt::NeedMore),
        Some(b'+') => text(bytes).map(|(text, used)| (Ok(text), used)),
        Some(b'-') => text(bytes).map(|(text, used)| (Err(text), used)),
        Some(_) => Err(Halt::Malformed("speaks no Redis")),
    }
}

/// What a server says of its role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// `master`, `slave` or `sentinel`.
    pub role: Vec<u8>,
    /// Of a replica: how it is with its primary, such as `connected`, `sync` or `connect`; else empty.
    pub link: Vec<u8>,
}

/// The reply to `ROLE`, as far as it is looked at.
pub fn role(bytes: &[u8]) -> Parsed<Said<Standing>> {
    match bytes.first() {
        None => return Err(Halt::NeedMore),
        Some(b'-') => return text(bytes).map(|(text, used)| (Err(text), used)),
        Some(b'*') => {}
        Some(_) => return Err(NO_ROLE),
    }
    let (_, mut at) = text(bytes)?;
    let role = word(bytes, &mut at)?;
    if role != b"slave" {
        return Ok((Ok(Standing { role, link: Vec::new() }), at));
    }
    word(bytes, &mut at)?; // its primary's host
    let (_, port) = text(&bytes[at..])?;
    at += port;
    let link = word(bytes, &mut at)?;
    Ok((Ok(Standing { role, link }), at))
}

const NO_ROLE: Halt = Halt::Malformed("sent no answer to ROLE");

/// A bulk string at that place, which moves behind it.
fn word(bytes: &[u8], at: &mut usize) -> Result<Vec<u8>, Halt> {
    let (length, head) = text(&bytes[*at..])?;
    let is_bulk = bytes[*at] == b'$';
    let length: Option<usize> = std::str::from_utf8(&length).ok().and_then(|length| length.parse().ok());
    let length = length.filter(|length| is_bulk && *length <= LINE_MAX).ok_or(NO_ROLE)?;
    let start = *at + head;
    let word = bytes.get(start..start + length + 2).ok_or(Halt::NeedMore)?;
    *at = start + length + 2; // and the end of its line
    Ok(word[..length].to_vec())
}

/// A line without its first byte.
fn text(bytes: &[u8]) -> Parsed<Vec<u8>> {
    let (line, used) = line(bytes, LINE_MAX, "sent a line without end")?;
    Ok((line.get(1..).unwrap_or_default().to_vec(), used))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_command_is_exactly_this() {
        assert_eq!(command(&[b"PING"]), b"*1\r\n$4\r\nPING\r\n");
        assert_eq!(command(&[b"AUTH", b"a\r\nb"]), b"*2\r\n$4\r\nAUTH\r\n$4\r\na\r\nb\r\n");
        assert_eq!(command(&[b"QUIT"]), QUIT);
    }

    #[test]
    fn a_status_is_told_from_an_error() {
        assert_eq!(status(b"+PONG\r\n+OK\r\n"), Ok((Ok(b"PONG".to_vec()), 7)));
        assert_eq!(status(b"-LOADING wait\r\n"), Ok((Err(b"LOADING wait".to_vec()), 15)));
        assert_eq!(status(b"+PON"), Err(Halt::NeedMore));
        assert_eq!(status(b"HTTP/1.1 400"), Err(Halt::Malformed("speaks no Redis")));
        assert!(matches!(status(&[b'+'; LINE_MAX]), Err(Halt::Malformed(_))));
    }

    #[test]
    fn the_role_is_the_first_word_of_its_reply_and_a_replica_says_how_its_link_is() {
        let standing = |role: &[u8], link: &[u8]| Ok(Standing { role: role.into(), link: link.into() });
        let primary = b"*3\r\n$6\r\nmaster\r\n:3129659\r\n*0\r\n";
        assert_eq!(role(primary), Ok((standing(b"master", b""), 16)));
        let replica = b"*5\r\n$5\r\nslave\r\n$9\r\n127.0.0.1\r\n:6379\r\n$9\r\nconnected\r\n:1\r\n";
        assert_eq!(role(replica), Ok((standing(b"slave", b"connected"), 52)));
        assert_eq!(role(b"-NOPERM no\r\n"), Ok((Err(b"NOPERM no".to_vec()), 12)));
        for wrong in [&b"+OK\r\n"[..], b"*1\r\n:5\r\n", b"*1\r\n$-1\r\n", b"*1\r\n$99999999999999999999\r\n"]
        {
            assert!(matches!(role(wrong), Err(Halt::Malformed(_))), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_the_same_whether_they_come_at_once_or_not(
            start in prop::sample::select(vec!["", "+", "-", "*3\r\n$6\r\nmas", "*1\r\n$", "*5\r\n$5\r\nslave\r\n$1\r\na\r\n:1\r\n$"]),
            rest in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let bytes = [start.as_bytes(), &rest].concat();
            let ends = || 0..=bytes.len();
            let grown = ends().map(|end| status(&bytes[..end])).find(|read| *read != Err(Halt::NeedMore));
            prop_assert_eq!(grown.unwrap_or(Err(Halt::NeedMore)), status(&bytes));
            let grown = ends().map(|end| role(&bytes[..end])).find(|read| *read != Err(Halt::NeedMore));
            prop_assert_eq!(grown.unwrap_or(Err(Halt::NeedMore)), role(&bytes));
        }
    }
}
