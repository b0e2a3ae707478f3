//! SCRAM-SHA-256 (RFC 5802, RFC 7677) from the client's side: both ends prove that they know the
//! password, and neither sends it.
//!
//! Without channel binding, which needs TLS. The server chooses how long the proof takes; beyond
//! [`ROUNDS_MAX`] it is refused, for it is computed on the thread that watches everything.

use aws_lc_rs::{constant_time, digest, hmac, pbkdf2};

pub const MECHANISM: &str = "SCRAM-SHA-256";

/// PostgreSQL asks for 4096 unless told otherwise. This many take about 50 ms.
const ROUNDS_MAX: u32 = 100_000;
/// A server's message; PostgreSQL's have some 90 bytes.
const MESSAGE_MAX: usize = 1024;

const KEY_BYTES: usize = 32;
type Key = [u8; KEY_BYTES];

/// Before the server's first message.
#[derive(Debug)]
pub struct Opening {
    nonce: String,
    bare: String,
}

/// Before the server's last message.
#[derive(Debug)]
pub struct Proof {
    /// To be sent.
    pub message: String,
    signature: hmac::Tag,
}

impl Opening {
    /// `random` is fresh for each login. PostgreSQL takes the user from elsewhere, so it may be empty.
    pub fn new(user: &str, random: [u8; 18]) -> Self {
        Opening::with_nonce(user, base64(&random))
    }

    fn with_nonce(user: &str, nonce: String) -> Self {
        let user = user.replace('=', "=3D").replace(',', "=2C");
        Opening { bare: format!("n={user},r={nonce}"), nonce }
    }

    /// The first message.
    pub fn message(&self) -> String {
        format!("n,,{}", self.bare)
    }

    /// Takes the server's first message.
    ///
    /// # Errors
    /// What is wrong with it, in one clause.
    pub fn prove(self, server_first: &[u8], password: &str) -> Result<Proof, &'static str> {
        const MALFORMED: &str = "sent a malformed SCRAM challenge";
        let server_first = text(server_first).ok_or(MALFORMED)?;
        let mut parts = server_first.split(',');
        let mut part = |name| parts.next().and_then(|part| part.strip_prefix(name)).ok_or(MALFORMED);
        let nonce = part("r=")?;
        let salt = unbase64(part("s=")?).ok_or(MALFORMED)?;
        let rounds: u32 = part("i=")?.parse().map_err(|_| MALFORMED)?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err("sent a SCRAM challenge that is not for us");
        }
        let rounds = std::num::NonZeroU32::new(rounds).filter(|rounds| rounds.get() <= ROUNDS_MAX);
        let rounds = rounds.ok_or("wants a password hashed more often than a check can")?;

        let mut salted: Key = [0; KEY_BYTES];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, password.as_bytes(), &mut salted);
        let client_key = sign(&salted, b"Client Key");
        let stored_key = digest::digest(&digest::SHA256, client_key.as_ref());
        let unsigned = format!("c=biws,r={nonce}");
        let signed = format!("{},{server_first},{unsigned}", self.bare);
        let client_signature = sign(stored_key.as_ref(), signed.as_bytes());
        let proof: Vec<_> =
            client_key.as_ref().iter().zip(client_signature.as_ref()).map(|(key, sign)| key ^ sign).collect();
        let server_key = sign(&salted, b"Server Key");
        Ok(Proof {
            message: format!("{unsigned},p={}", base64(&proof)),
            signature: sign(server_key.as_ref(), signed.as_bytes()),
        })
    }
}

impl Proof {
    /// Whether the server has shown that it knows the password, too.
    pub fn is_answered_by(&self, server_final: &[u8]) -> bool {
        let signature = text(server_final).and_then(|text| text.split(',').next()?.strip_prefix("v="));
        let signature = signature.and_then(unbase64);
        signature.is_some_and(|signature| {
            constant_time::verify_slices_are_equal(&signature, self.signature.as_ref()).is_ok()
        })
    }
}

fn sign(key: &[u8], message: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message)
}

fn text(message: &[u8]) -> Option<&str> {
    std::str::from_utf8(message).ok().filter(|text| text.len() <= MESSAGE_MAX)
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits =
            group.iter().enumerate().fold(0, |bits, (i, byte)| bits | u32::from(*byte) << (16 - 8 * i));
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) & 63;
            text.push(if digit <= group.len() { char::from(DIGITS[value as usize]) } else { '=' });
        }
    }
    text
}

fn unbase64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for digit in digits.bytes() {
        let value = DIGITS.iter().position(|known| *known == digit)?;
        bits = (bits << 6 | value as u32) & 0xffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SERVER_FIRST: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    fn opening() -> Opening {
        Opening::with_nonce("user", "rOprNGfwEbeRWgbNEkqO".into())
    }

    /// RFC 7677, section 3.
    #[test]
    fn the_conversation_of_the_rfc_is_ours() {
        assert_eq!(opening().message(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let proof = opening().prove(SERVER_FIRST.as_bytes(), "pencil").expect("a challenge");
        assert_eq!(
            proof.message,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert!(proof.is_answered_by(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="));
        assert!(!proof.is_answered_by(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95H4="));
        assert!(!proof.is_answered_by(b"e=invalid-proof"));
    }

    #[test]
    fn a_challenge_for_somebody_else_or_without_end_is_refused() {
        let refused = |message: &str| opening().prove(message.as_bytes(), "pencil").unwrap_err();
        assert!(refused("r=another,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096").contains("not for us"));
        assert!(refused("r=rOprNGfwEbeRWgbNEkqO,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096").contains("not for us"));
        assert!(refused(&SERVER_FIRST.replace("4096", "4294967295")).contains("more often"));
        assert!(refused(&SERVER_FIRST.replace("4096", "0")).contains("more often"));
        for wrong in ["", "r=x", "e=other-error", &SERVER_FIRST.replace("==", "="), &"r".repeat(5000)] {
            assert!(refused(wrong).contains("malformed"), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn base64_reads_back_as_it_was(bytes in prop::collection::vec(any::<u8>(), 0..50)) {
            prop_assert_eq!(unbase64(&base64(&bytes)), Some(bytes));
        }

        #[test]
        fn any_message_is_taken_or_refused(
            message in "(r=rOprNGfwEbeRWgbNEkqO)?[a-z,=0-9]{0,40}(,i=[0-9]{1,3})?",
            last in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let _ = opening().prove(message.as_bytes(), "pencil");
            let proof = opening().prove(SERVER_FIRST.replace("4096", "1").as_bytes(), "pencil").expect("a challenge");
            prop_assert!(!proof.is_answered_by(&last));
        }
    }
}
