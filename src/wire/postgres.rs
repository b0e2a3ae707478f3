//! PostgreSQL's protocol, version 3.0, as much as a health check needs: a login, one question, its
//! answer of one row, and the goodbye (its manual, chapter 55).
//!
//! A message is one letter, a length, and what the letter says.

use super::md5;
use super::{Halt, Parsed};

/// The goodbye. Without it the server's log tells of an "unexpected EOF on client connection".
pub const TERMINATE: &[u8] = b"X\x00\x00\x00\x04";

/// Asks for TLS before anything else is said. A length, and a version that never was (80877103).
pub const TLS_REQUEST: &[u8] = b"\x00\x00\x00\x08\x04\xd2\x16\x2f";

/// Of what a login and one row consist, nothing comes near this.
const MESSAGE_MAX: usize = 32 * 1024;

const PROTOCOL: i32 = 3 << 16;

/// The first message: who connects, and to which database.
pub fn startup(user: &str, database: &str) -> Vec<u8> {
    let mut body = PROTOCOL.to_be_bytes().to_vec();
    for (key, value) in [("user", user), ("database", database), ("application_name", "tidegate")] {
        body.extend_from_slice(format!("{key}\0{value}\0").as_bytes());
    }
    body.push(0);
    with_length(&body)
}

pub fn query(sql: &str) -> Vec<u8> {
    message(b'Q', format!("{sql}\0").as_bytes())
}

/// The answer to [`TLS_REQUEST`]: one letter.
pub fn has_tls(bytes: &[u8]) -> Parsed<bool> {
    match bytes.first() {
        Some(b'S') => Ok((true, 1)),
        Some(b'N') => Ok((false, 1)),
        Some(_) => Err(Halt::Malformed("speaks no PostgreSQL")),
        None => Err(Halt::NeedMore),
    }
}

/// The answer to [`Login::Cleartext`].
pub fn password(password: &str) -> Vec<u8> {
    message(b'p', format!("{password}\0").as_bytes())
}

/// The answer to [`Login::Md5`].
pub fn md5_password(user: &str, password: &str, salt: [u8; 4]) -> Vec<u8> {
    let inner = md5::hex(format!("{password}{user}").as_bytes());
    let outer = md5::hex(&[inner.as_bytes(), &salt].concat());
    message(b'p', format!("md5{outer}\0").as_bytes())
}

/// The answer to [`Login::Sasl`].
pub fn sasl_first(mechanism: &str, data: &str) -> Vec<u8> {
    let mut body = format!("{mechanism}\0").into_bytes();
    body.extend_from_slice(&length(data.len())); // here it counts the data alone
    body.extend_from_slice(data.as_bytes());
    message(b'p', &body)
}

/// The answer to [`Login::SaslContinue`].
pub fn sasl_next(data: &str) -> Vec<u8> {
    message(b'p', data.as_bytes())
}

fn message(letter: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![letter];
    bytes.extend_from_slice(&with_length(body));
    bytes
}

/// Behind its length, which counts itself.
fn with_length(body: &[u8]) -> Vec<u8> {
    [&length(body.len() + 4), body].concat()
}

fn length(bytes: usize) -> [u8; 4] {
    // Ours are made of texts that the configuration bounds.
    u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes()
}

/// What the server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Login(Login),
    Error(ServerError),
    /// It waits for a query.
    Ready,
    /// The columns of one row as text; `None` is NULL.
    Row(Vec<Option<String>>),
    /// Settings, notices, the shape of a row, the end of a command.
    Other,
}

/// A step of the login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    Ok,
    Cleartext,
    Md5([u8; 4]),
    /// The mechanisms that it offers.
    Sasl(Vec<String>),
    SaslContinue(Vec<u8>),
    SaslFinal(Vec<u8>),
    /// GSSAPI, SSPI and what may come.
    Unknown(i32),
}

/// What the server refuses, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError {
    /// Five letters or digits (appendix A of its manual).
    pub code: String,
    pub text: Vec<u8>,
}

/// The next message.
pub fn read(bytes: &[u8]) -> Parsed<Message> {
    const NO_POSTGRES: Halt = Halt::Malformed("speaks no PostgreSQL");
    let Some(letter) = bytes.first() else { return Err(Halt::NeedMore) };
    if !b"RESKNvZTDCIAG".contains(letter) {
        return Err(NO_POSTGRES);
    }
    let length = bytes.get(1..5).ok_or(Halt::NeedMore)?;
    let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
    if !(4..=MESSAGE_MAX).contains(&length) {
        return Err(NO_POSTGRES);
    }
    let body = bytes.get(5..1 + length).ok_or(Halt::NeedMore)?;
    let read = match letter {
        b'R' => login(body).map(Message::Login),
        b'E' => Some(Message::Error(error(body))),
        b'Z' => Some(Message::Ready),
        b'D' => row(body).map(Message::Row),
        _ => Some(Message::Other),
    };
    Ok((read.ok_or(Halt::Malformed("sent a malformed message"))?, 1 + length))
}

fn login(body: &[u8]) -> Option<Login> {
    let (kind, rest) = body.split_first_chunk::<4>()?;
    Some(match i32::from_be_bytes(*kind) {
        0 => Login::Ok,
        3 => Login::Cleartext,
        5 => Login::Md5(*rest.first_chunk()?),
        10 => {
            let names = rest.split(|byte| *byte == 0).filter(|name| !name.is_empty());
            Login::Sasl(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect())
        }
        11 => Login::SaslContinue(rest.to_vec()),
        12 => Login::SaslFinal(rest.to_vec()),
        other => Login::Unknown(other),
    })
}

/// Fields, each a letter and a text; of them the code and the message.
fn error(body: &[u8]) -> ServerError {
    let fields = || body.split(|byte| *byte == 0);
    let of = |letter: u8| fields().find_map(|field| field.strip_prefix(&[letter])).unwrap_or_default();
    ServerError { code: String::from_utf8_lossy(of(b'C')).into_owned(), text: of(b'M').to_vec() }
}

fn row(body: &[u8]) -> Option<Vec<Option<String>>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut columns = Vec::new();
    for _ in 0..i16::from_be_bytes(*count) {
        let (length, behind) = rest.split_first_chunk::<4>()?;
        let length = i32::from_be_bytes(*length);
        let length = if length == -1 { None } else { Some(usize::try_from(length).ok()?) };
        let text = behind.get(..length.unwrap_or(0))?;
        columns.push(length.map(|_| String::from_utf8_lossy(text).into_owned()));
        rest = &behind[text.len()..];
    }
    Some(columns)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_message_names_user_and_database() {
        let startup = startup("tidegate", "postgres");
        assert_eq!(startup.len(), u32::from_be_bytes(startup[..4].try_into().expect("4 bytes")) as usize);
        assert!(
            startup.starts_with(b"\0\0\0\x43\0\x03\0\0user\0tidegate\0database\0postgres\0"),
            "{startup:?}"
        );
    }

    #[test]
    fn a_query_and_an_opening_of_sasl_are_exactly_these() {
        assert_eq!(query("x"), b"Q\0\0\0\x06x\0");
        assert_eq!(sasl_first("A", "xy"), b"p\0\0\0\x0cA\0\0\0\0\x02xy");
        assert_eq!(sasl_next("xy"), b"p\0\0\0\x06xy");
    }

    /// As `concat('md5', md5(md5('secret' || 'joe') || salt))` says in PostgreSQL.
    #[test]
    fn a_password_is_hashed_with_its_user_and_the_salt() {
        let inner = md5::hex(b"secretjoe");
        let outer = md5::hex(format!("{inner}salt").as_bytes());
        assert_eq!(md5_password("joe", "secret", *b"salt"), format!("p\0\0\0\x28md5{outer}\0").as_bytes());
    }

    #[test]
    fn what_a_server_says_is_understood() {
        let read_one = |bytes: &[u8]| read(bytes).map(|(message, _)| message);
        let login = |bytes: &[u8]| match read_one(&message(b'R', bytes)) {
            Ok(Message::Login(login)) => login,
            other => panic!("{other:?}"),
        };
        assert_eq!(login(b"\0\0\0\0"), Login::Ok);
        assert_eq!(login(b"\0\0\0\x05salt"), Login::Md5(*b"salt"));
        assert_eq!(login(b"\0\0\0\x0aA\0B\0\0"), Login::Sasl(vec!["A".into(), "B".into()]));
        let error = message(b'E', b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0");
        let Ok(Message::Error(error)) = read_one(&error) else { panic!("an error") };
        assert_eq!(
            error,
            ServerError { code: "57P03".into(), text: b"the database system is starting up".to_vec() }
        );
        let row = message(b'D', b"\0\x02\0\0\0\x01t\xff\xff\xff\xff");
        assert_eq!(read_one(&row), Ok(Message::Row(vec![Some("t".into()), None])));
        assert_eq!(read(b"Z\0\0\0\x05IR"), Ok((Message::Ready, 6)));
    }

    #[test]
    fn what_is_no_postgresql_says_so_at_once() {
        for said in [&b"HTTP/1.1 400"[..], b"-ERR", b"\x4a\0\0\0\x0a8.0", b"E\0\0\0\0", b"R\xff\xff\xff\xff"]
        {
            assert_eq!(read(said), Err(Halt::Malformed("speaks no PostgreSQL")), "{said:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_the_same_whether_they_come_at_once_or_not(
            letter in prop::sample::select(b"RESKNvZTDCIAGx".to_vec()),
            length in prop_oneof![0..70_u32, any::<u32>()],
            rest in prop::collection::vec(any::<u8>(), 0..70),
        ) {
            let bytes = [&[letter], length.to_be_bytes().as_slice(), &rest].concat();
            let grown = (0..=bytes.len()).map(|end| read(&bytes[..end])).find(|read| *read != Err(Halt::NeedMore));
            prop_assert_eq!(grown.unwrap_or(Err(Halt::NeedMore)), read(&bytes));
            if let Ok((_, used)) = read(&bytes) {
                prop_assert!(used <= bytes.len());
            }
        }
    }
}
