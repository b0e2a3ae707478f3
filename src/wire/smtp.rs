//! SMTP (RFC 5321), as much as a health check needs: replies, the greeting and the goodbye.

use std::net::{IpAddr, SocketAddr};

use super::{Halt, Parsed, line};

pub const QUIT: &[u8] = b"QUIT\r\n";
/// RFC 3207. What follows its answer is a TLS handshake.
pub const STARTTLS: &[u8] = b"STARTTLS\r\n";

/// RFC 5321, section 4.5.3.1.5, allows 512; some servers say more.
const LINE_MAX: usize = 2048;
/// Lines of one reply. An answer to EHLO has a line for each extension, some twenty.
const LINES_MAX: usize = 100;

/// Who we are: the address that we connect from, as a server without a name should say.
pub fn ehlo(from: SocketAddr) -> Vec<u8> {
    match from.ip() {
        IpAddr::V4(ip) => format!("EHLO [{ip}]\r\n").into_bytes(),
        IpAddr::V6(ip) => format!("EHLO [IPv6:{ip}]\r\n").into_bytes(),
    }
}

/// A reply of one or more lines: its code, and the text of its last line.
pub fn reply(bytes: &[u8]) -> Parsed<(u16, Vec<u8>)> {
    let (mut used, mut code) = (0, None);
    for _ in 0..LINES_MAX {
        let (text, taken) = line(&bytes[used..], LINE_MAX, "sent a line without end")?;
        used += taken;
        let digits = text.get(..3).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        let digits = digits.filter(|code| (200..600).contains(code));
        let this: u16 = digits.ok_or(Halt::Malformed("speaks no SMTP"))?;
        if *code.get_or_insert(this) != this {
            return Err(Halt::Malformed("changed its mind in the middle of a reply"));
        }
        match text.get(3) {
            Some(b'-') => {}
            Some(b' ') | None => return Ok(((this, text.get(4..).unwrap_or_default().to_vec()), used)),
            Some(_) => return Err(Halt::Malformed("speaks no SMTP")),
        }
    }
    Err(Halt::Malformed("sent a reply without end"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_reply_ends_with_the_line_that_says_so() {
        let greeting = b"220 mail.example.com ESMTP\r\n";
        assert_eq!(reply(greeting), Ok(((220, b"mail.example.com ESMTP".to_vec()), greeting.len())));
        let many = b"250-mail.example.com\r\n250-SIZE 1000\r\n250 SMTPUTF8\r\n221 bye\r\n";
        assert_eq!(reply(many), Ok(((250, b"SMTPUTF8".to_vec()), many.len() - 9)));
        assert_eq!(reply(b"250\r\n"), Ok(((250, Vec::new()), 5)));
        assert_eq!(reply(b"250-mail.example.com\r\n250-SI"), Err(Halt::NeedMore));
    }

    #[test]
    fn what_is_no_smtp_says_so() {
        for said in
            [&b"SSH-2.0-OpenSSH\r\n"[..], b"HTTP/1.1 400\r\n", b"\r\n", b"2200\r\n", b"250-a\r\n220 b\r\n"]
        {
            assert!(matches!(reply(said), Err(Halt::Malformed(_))), "{said:?}");
        }
        assert!(matches!(reply(&b"250-x\r\n".repeat(LINES_MAX)), Err(Halt::Malformed(_))));
    }

    #[test]
    fn we_say_where_we_come_from() {
        assert_eq!(ehlo("192.0.2.1:99".parse().expect("an address")), b"EHLO [192.0.2.1]\r\n");
        assert_eq!(ehlo("[2001:db8::1]:99".parse().expect("an address")), b"EHLO [IPv6:2001:db8::1]\r\n");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_the_same_whether_they_come_at_once_or_not(
            start in prop::sample::select(vec!["", "220 x", "250-a\r\n250", "25"]),
            rest in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let bytes = [start.as_bytes(), &rest].concat();
            let grown = (0..=bytes.len()).map(|end| reply(&bytes[..end])).find(|read| *read != Err(Halt::NeedMore));
            prop_assert_eq!(grown.unwrap_or(Err(Halt::NeedMore)), reply(&bytes));
        }
    }
}
