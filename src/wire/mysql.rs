//! The protocol of MySQL and MariaDB, as much as a health check needs: the server's greeting, a login,
//! one question, its answer of one value, and the goodbye.
//!
//! A packet is three bytes of length, one of sequence, and the payload; numbers are little-endian.
//! (MySQL's "Client/Server Protocol", MariaDB's "Client/Server Protocol".)

use aws_lc_rs::digest::{self, Algorithm, SHA1_FOR_LEGACY_USE_ONLY as SHA1, SHA256};

use super::{Halt, Parsed};

/// The goodbye. A connection that ends without it is counted in `Aborted_clients`.
pub const QUIT: &[u8] = b"\x01\x00\x00\x00\x01";

pub const NATIVE: &str = "mysql_native_password";
pub const CACHING: &str = "caching_sha2_password";
const ED25519: &str = "client_ed25519";

/// Greetings have about a hundred bytes, answers of one value less.
const PACKET_MAX: usize = 16 * 1024;
/// What both plugins send.
const SALT_BYTES: usize = 20;

const LONG_PASSWORD: u32 = 1;
const PROTOCOL_41: u32 = 1 << 9;
const TLS: u32 = 1 << 11;
const TRANSACTIONS: u32 = 1 << 13;
const SECURE_CONNECTION: u32 = 1 << 15;
const PLUGIN_AUTH: u32 = 1 << 19;
/// utf8mb4, which every server since 2010 knows.
const CHARSET: u8 = 45;

/// The next packet: its sequence number and its payload.
pub fn packet(bytes: &[u8]) -> Parsed<(u8, &[u8])> {
    let head = bytes.get(..4).ok_or(Halt::NeedMore)?;
    let length = u32::from_le_bytes([head[0], head[1], head[2], 0]) as usize;
    if !(1..=PACKET_MAX).contains(&length) {
        return Err(Halt::Malformed("speaks no MySQL"));
    }
    let payload = bytes.get(4..4 + length).ok_or(Halt::NeedMore)?;
    Ok(((head[3], payload), 4 + length))
}

fn framed(sequence: u8, payload: &[u8]) -> Vec<u8> {
    // Ours are made of texts that the configuration bounds.
    let length = u32::try_from(payload.len()).unwrap_or(0).to_le_bytes();
    [&length[..3], &[sequence], payload].concat()
}

/// The server's first packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    pub salt: Vec<u8>,
    /// How it would have us log in.
    pub plugin: String,
    pub has_tls: bool,
}

/// An error as clients see it, such as 1040, "Too many connections".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError {
    pub code: u16,
    pub text: Vec<u8>,
}

/// What the server says after its greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Ok,
    Error(ServerError),
    /// Another plugin, and a fresh salt for it.
    Switch {
        plugin: String,
        salt: Vec<u8>,
    },
    /// Of the plugin: for `caching_sha2_password`, 3 is "known" and 4 "prove it in full".
    More(u8),
    Malformed,
}

/// Reads the first packet's payload.
///
/// # Errors
/// An error of the server's in its place, or `None`: it speaks something else.
pub fn greeting(payload: &[u8]) -> Result<Greeting, Option<ServerError>> {
    match payload.first() {
        Some(10) => parse_greeting(&payload[1..]).ok_or(None),
        Some(0xff) => Err(error(&payload[1..])),
        _ => Err(None),
    }
}

fn parse_greeting(rest: &[u8]) -> Option<Greeting> {
    let version = rest.iter().position(|byte| *byte == 0)?;
    let rest = rest.get(version + 1 + 4..)?; // and the number of the connection
    let (first, rest) = rest.split_at_checked(8)?;
    let (fixed, rest) = rest.split_at_checked(1 + 2 + 1 + 2 + 2 + 1 + 10)?;
    let capabilities = u32::from_le_bytes([fixed[1], fixed[2], fixed[6], fixed[7]]);
    if capabilities & PROTOCOL_41 == 0 || capabilities & SECURE_CONNECTION == 0 {
        return None; // older than 4.1
    }
    let (second, rest) = rest.split_at_checked(SALT_BYTES - 8)?;
    let name = rest.get(1..).unwrap_or_default(); // behind a zero
    let plugin = if capabilities & PLUGIN_AUTH == 0 { NATIVE.into() } else { until_zero(name) };
    let has_tls = capabilities & TLS != 0;
    Some(Greeting { salt: [first, second].concat(), plugin, has_tls })
}

/// Reads a payload of the login, or the first of the answer to a command.
pub fn answer(payload: &[u8]) -> Answer {
    let rest = payload.get(1..).unwrap_or_default();
    match payload.first() {
        Some(0) => Answer::Ok,
        Some(1) if rest.len() == 1 => Answer::More(rest[0]),
        Some(0xfe) if !rest.is_empty() => {
            let plugin = until_zero(rest);
            let salt = rest.get(plugin.len() + 1..).unwrap_or_default();
            Answer::Switch { plugin, salt: salt[..salt.len().min(SALT_BYTES)].to_vec() }
        }
        Some(0xff) => error(rest).map_or(Answer::Malformed, Answer::Error),
        _ => Answer::Malformed,
    }
}

fn error(rest: &[u8]) -> Option<ServerError> {
    let (code, text) = rest.split_first_chunk::<2>()?;
    // `#` and five letters of an SQLSTATE, which an error before the login does not have.
    let text = match text.first() {
        Some(b'#') => text.get(6..).unwrap_or_default(),
        _ => text,
    };
    Some(ServerError { code: u16::from_le_bytes(*code), text: text.to_vec() })
}

fn until_zero(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The answer to the greeting of a server with which TLS begins at once; the login comes after it.
pub fn tls_request(sequence: u8) -> Vec<u8> {
    framed(sequence, &hello(true))
}

/// What a login begins with.
fn hello(is_tls: bool) -> Vec<u8> {
    let capabilities = LONG_PASSWORD | PROTOCOL_41 | TRANSACTIONS | SECURE_CONNECTION | PLUGIN_AUTH;
    let capabilities = if is_tls { capabilities | TLS } else { capabilities };
    let mut payload = capabilities.to_le_bytes().to_vec();
    payload.extend_from_slice(&(PACKET_MAX as u32).to_le_bytes());
    payload.push(CHARSET);
    payload.extend_from_slice(&[0; 23]);
    payload
}

/// The answer to the greeting; within TLS, `is_tls`.
pub fn login(sequence: u8, user: &str, plugin: &str, proof: &[u8], is_tls: bool) -> Vec<u8> {
    let mut payload = hello(is_tls);
    payload.extend_from_slice(user.as_bytes());
    payload.push(0);
    payload.push(proof.len() as u8); // 0, 20 or 32
    payload.extend_from_slice(proof);
    payload.extend_from_slice(plugin.as_bytes());
    payload.push(0);
    framed(sequence, &payload)
}

/// The answer to [`Answer::Switch`].
pub fn proof_alone(sequence: u8, proof: &[u8]) -> Vec<u8> {
    if proof.is_empty() {
        // An empty payload would be the end of a longer packet.
        return framed(sequence, &[0]);
    }
    framed(sequence, proof)
}

/// An answer to [`Answer::Switch`] that proves nothing, of a length that the plugin takes: MariaDB counts a
/// wrong one of ed25519 as a handshake that went wrong, and a wrong signature as a wrong password.
/// (`server_ed25519.c`.)
pub fn no_proof(sequence: u8, plugin: &str) -> Vec<u8> {
    match plugin {
        ED25519 => framed(sequence, &[0; 64]),
        _ => proof_alone(sequence, &[]),
    }
}

/// The whole password, for [`Answer::More`] of 4. For a server that has proven who it is, within TLS.
pub fn password(sequence: u8, password: &str) -> Vec<u8> {
    framed(sequence, &[password.as_bytes(), &[0]].concat())
}

pub fn query(sql: &str) -> Vec<u8> {
    framed(0, &[&[3], sql.as_bytes()].concat())
}

/// What shows that we know the password; empty for an empty one. `None`: a plugin that we do not have.
pub fn proof(plugin: &str, password: &str, salt: &[u8]) -> Option<Vec<u8>> {
    let hash = |algorithm: &'static Algorithm, parts: &[&[u8]]| digest::digest(algorithm, &parts.concat());
    let (algorithm, salt_comes_first): (&'static Algorithm, bool) = match plugin {
        NATIVE => (&SHA1, true),
        CACHING => (&SHA256, false),
        _ => return None,
    };
    if password.is_empty() {
        return Some(Vec::new());
    }
    let once = hash(algorithm, &[password.as_bytes()]);
    let twice = hash(algorithm, &[once.as_ref()]);
    let mask = match salt_comes_first {
        true => hash(algorithm, &[salt, twice.as_ref()]),
        false => hash(algorithm, &[twice.as_ref(), salt]),
    };
    Some(once.as_ref().iter().zip(mask.as_ref()).map(|(once, mask)| once ^ mask).collect())
}

/// More columns than any answer has that is read here.
const COLUMNS_MAX: u8 = 2;

/// The answer to a question for one row of short texts: packets of the number of columns, each column,
/// an end, the row if there is one, an end. Gives the last text of the row, and takes all of them.
pub fn row(bytes: &[u8]) -> Parsed<Result<Option<Vec<u8>>, Answer>> {
    const MALFORMED: Halt = Halt::Malformed("sent a malformed answer");
    let ((_, first), mut used) = packet(bytes)?;
    let &[columns @ 1..=COLUMNS_MAX] = first else { return Ok((Err(answer(first)), used)) };
    let mut next = || -> Result<&[u8], Halt> {
        let ((_, payload), taken) = packet(&bytes[used..])?;
        used += taken;
        Ok(payload)
    };
    for _ in 0..columns {
        let _column = next()?;
    }
    let _end = next()?;
    let mut rest = next()?;
    match rest.first() {
        Some(0xff) => return Ok((Err(answer(rest)), used)),
        Some(0xfe) => return Ok((Ok(None), used)), // an end in the row's place: there is none
        _ => {}
    }
    let mut text = rest;
    for _ in 0..columns {
        // A text of less than 251 bytes stands behind its length.
        let (length, behind) = rest.split_first().ok_or(MALFORMED)?;
        let length = usize::from(*length);
        (text, rest) = behind.split_at_checked(length).filter(|_| length < 251).ok_or(MALFORMED)?;
    }
    let text = text.to_vec();
    let _end = next()?;
    Ok((Ok(Some(text)), used))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// MariaDB 10.11's, with a salt of letters.
    fn greeting_bytes() -> Vec<u8> {
        let mut payload = b"\x0a5.5.5-10.11.6-MariaDB\0\x05\0\0\0abcdefgh\0".to_vec();
        payload.extend_from_slice(b"\xfe\xf7\x2d\x02\0\xff\x81\x15\0\0\0\0\0\0\x1d\0\0\0ijklmnopqrst\0");
        payload.extend_from_slice(b"mysql_native_password\0");
        framed(0, &payload)
    }

    #[test]
    fn a_greeting_gives_salt_and_plugin() {
        let bytes = greeting_bytes();
        let ((sequence, payload), used) = packet(&bytes).expect("a packet");
        assert_eq!((sequence, used), (0, bytes.len()));
        let expected =
            Greeting { salt: b"abcdefghijklmnopqrst".to_vec(), plugin: NATIVE.into(), has_tls: false };
        assert_eq!(greeting(payload), Ok(expected));
    }

    #[test]
    fn an_error_in_the_greetings_place_is_the_servers_own() {
        let blocked = greeting(b"\xff\x69\x04Host '10.0.0.1' is blocked");
        assert_eq!(
            blocked,
            Err(Some(ServerError { code: 1129, text: b"Host '10.0.0.1' is blocked".to_vec() }))
        );
        let denied = answer(b"\xff\x15\x04#28000Access denied");
        assert_eq!(denied, Answer::Error(ServerError { code: 1045, text: b"Access denied".to_vec() }));
        assert_eq!(greeting(b"HTTP"), Err(None));
    }

    #[test]
    fn a_switch_names_the_plugin_and_gives_a_salt() {
        let switch = answer(b"\xfemysql_native_password\0abcdefghijklmnopqrst\0");
        assert_eq!(switch, Answer::Switch { plugin: NATIVE.into(), salt: b"abcdefghijklmnopqrst".to_vec() });
        assert_eq!(answer(&[1, 3]), Answer::More(3));
        assert_eq!(answer(b"\0\0\0\x02\0\0\0"), Answer::Ok);
        assert_eq!(answer(b""), Answer::Malformed);
    }

    #[test]
    fn a_login_is_as_long_as_its_parts() {
        let login = login(1, "tidegate", NATIVE, &[7; 20], false);
        assert_eq!(login.len(), 4 + 32 + 9 + 21 + 22);
        assert_eq!(login[..4], [84, 0, 0, 1]);
        assert_eq!(query("SELECT 1"), b"\x09\0\0\0\x03SELECT 1");
        let tls = tls_request(1);
        assert_eq!((&tls[..4], tls[4..8].to_vec()), (&[32, 0, 0, 1][..], vec![1, 0xaa, 8, 0]));
        assert_eq!(password(5, "secret"), b"\x07\0\0\x05secret\0");
        assert_eq!((no_proof(3, NATIVE), no_proof(3, ED25519).len()), (vec![1, 0, 0, 3, 0], 4 + 64));
    }

    /// A proof undoes to SHA1(password), of which the server keeps the hash.
    #[test]
    fn a_proof_is_right_where_the_server_can_undo_it() {
        let salt = b"abcdefghijklmnopqrst";
        let native = proof(NATIVE, "secret", salt).expect("a proof");
        let once = digest::digest(&SHA1, b"secret");
        let twice = digest::digest(&SHA1, once.as_ref());
        let mask = digest::digest(&SHA1, &[salt, twice.as_ref()].concat());
        let undone: Vec<u8> = native.iter().zip(mask.as_ref()).map(|(a, b)| a ^ b).collect();
        assert_eq!(undone, once.as_ref());
        assert_eq!(proof(CACHING, "secret", salt).map(|proof| proof.len()), Some(32));
        assert_eq!(proof(CACHING, "", salt), Some(Vec::new()));
        assert_eq!(proof(ED25519, "secret", salt), None);
    }

    #[test]
    fn the_text_of_a_row_is_its_last() {
        let parts: [&[u8]; 5] = [&[1], b"\x03def", b"\xfe\0\0\x02\0", b"\x010", b"\xfe\0\0\x02\0"];
        let bytes: Vec<u8> = (1..).zip(parts).flat_map(|(sequence, part)| framed(sequence, part)).collect();
        assert_eq!(row(&bytes), Ok((Ok(Some(b"0".to_vec())), bytes.len())));
        for end in 0..bytes.len() {
            assert_eq!(row(&bytes[..end]), Err(Halt::NeedMore));
        }
        assert!(matches!(row(&framed(1, b"\xff\x15\x04#28000no")), Ok((Err(Answer::Error(_)), _))));

        let pair: [&[u8]; 6] =
            [&[2], b"\x03def", b"\x03def", b"\xfe\0\0\x02\0", b"\x05state\x014", b"\xfe\0\0\x02\0"];
        let framed_all =
            |parts: &[&[u8]]| -> Vec<u8> { parts.iter().flat_map(|part| framed(1, part)).collect() };
        let bytes = framed_all(&pair);
        assert_eq!(row(&bytes), Ok((Ok(Some(b"4".to_vec())), bytes.len())));
        let nothing = framed_all(&[pair[0], pair[1], pair[2], pair[3], pair[5]]);
        assert_eq!(row(&nothing), Ok((Ok(None), nothing.len())));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_the_same_whether_they_come_at_once_or_not(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..6),
            columns in 0..4_u8,
            rest in prop::collection::vec(any::<u8>(), 0..10),
        ) {
            let start = if columns > 0 { framed(1, &[columns]) } else { Vec::new() };
            let middle: Vec<u8> = payloads.iter().flat_map(|payload| framed(0, payload)).collect();
            let bytes = [start, middle, rest].concat();
            let grown = (0..=bytes.len()).map(|end| row(&bytes[..end])).find(|read| *read != Err(Halt::NeedMore));
            prop_assert_eq!(grown.unwrap_or(Err(Halt::NeedMore)), row(&bytes));
            let _ = (answer(&bytes), greeting(&bytes));
        }

        #[test]
        fn a_greeting_cut_anywhere_is_no_panic(cut in 0..100_usize, byte in any::<u8>(), at in 0..100_usize) {
            let mut bytes = greeting_bytes();
            let (cut, at) = (cut.min(bytes.len()), at.min(bytes.len() - 1));
            bytes[at] = byte;
            let _ = greeting(&bytes[cut.min(4)..]);
            let _ = packet(&bytes[..cut]).map(|((_, payload), _)| greeting(payload));
        }
    }
}
