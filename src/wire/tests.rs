//! Whatever a server says, and however it comes: all parsers together.

use proptest::prelude::*;

use super::*;

/// Says what it has found as text, so that all have one type.
type Parser = fn(&[u8]) -> Parsed<String>;

fn told<T: std::fmt::Debug>((value, used): (T, usize)) -> (String, usize) {
    (format!("{value:?}"), used)
}

/// Each with messages that it knows, whole ones.
const PARSERS: [(Parser, &[&[u8]]); 7] = [
    (|bytes| redis::status(bytes).map(told), &[b"+PONG\r\n", b"-NOAUTH Authentication required.\r\n", b"+\n"]),
    (
        |bytes| redis::role(bytes).map(told),
        &[
            b"*3\r\n$6\r\nmaster\r\n",
            b"*5\r\n$5\r\nslave\r\n$4\r\nhost\r\n:6379\r\n$9\r\nconnected\r\n",
            b"*1\r\n$0\r\n\r\n",
            b"-ERR unknown\r\n",
        ],
    ),
    (|bytes| smtp::reply(bytes).map(told), &[b"220 a.test ESMTP\r\n", b"250-a.test\r\n250-SIZE 9\r\n250 OK\r\n"]),
    (|bytes| mysql::packet(bytes).map(told), &[b"\x09\0\0\0\x03SELECT 1", b"\x01\0\0\x02\x0e"]),
    (
        |bytes| mysql::row(bytes).map(told),
        &[
            b"\x01\0\0\x01\x01\x04\0\0\x02\x03def\x05\0\0\x03\xfe\0\0\x02\0\x02\0\0\x04\x010\x05\0\0\x05\xfe\0\0\x02\0",
            b"\x0b\0\0\x01\xff\x15\x04#28000no",
        ],
    ),
    (
        |bytes| postgres::read(bytes).map(told),
        &[
            b"Z\0\0\0\x05I",
            b"R\0\0\0\x0c\0\0\0\x05salt",
            b"R\0\0\0\x0e\0\0\0\x0aA\0B\0\0\0",
            b"E\0\0\0\x13SFATAL\0C57P03\0\0",
            b"D\0\0\0\x0f\0\x02\0\0\0\x01t\xff\xff\xff\xff",
        ],
    ),
    (|bytes| postgres::has_tls(bytes).map(told), &[b"S", b"N"]),
];

/// More than any value takes: a reply of SMTP has a hundred lines of 2 KiB.
const VALUE_MAX: usize = 256 * 1024;

#[test]
fn a_message_is_found_with_its_last_byte_and_nothing_of_what_follows_is_taken() {
    for (parse, messages) in PARSERS {
        for message in messages {
            let whole = parse(message).unwrap_or_else(|halt| panic!("{halt:?}: {message:?}"));
            assert_eq!(whole.1, message.len(), "{message:?}");
            for end in 0..message.len() {
                assert_eq!(parse(&message[..end]), Err(Halt::NeedMore), "{message:?} up to {end}");
            }
            let followed: [&[u8]; 4] = [b"\r\n", b"\0", &[0xff; 300], message];
            for more in followed {
                assert_eq!(parse(&[message, more].concat()), Ok(whole.clone()), "{message:?} {more:?}");
            }
        }
    }
}

#[test]
fn who_never_comes_to_an_end_is_not_waited_for() {
    let (column, long) =
        (b"\x04\0\0\x02\x03def".as_slice(), [b"\0\x40\0\x01".as_slice(), &[3; 0x4000]].concat());
    let line = [b"250-".as_slice(), &[b'x'; 2000], b"\r\n"].concat();
    let endless: [&[u8]; 9] = [b"x", b"\0", b"\xff", b"+", b"*1\r\n$9", b"250-a\r\n", &line, column, &long];
    for (parse, messages) in PARSERS {
        let starts = messages.iter().flat_map(|message| [&message[..1], &message[..message.len() / 2]]);
        for (start, again) in starts.chain([&b""[..]]).flat_map(|start| endless.map(|again| (start, again))) {
            let bytes = [start, &again.repeat(VALUE_MAX / again.len() + 1)].concat();
            let found = parse(&bytes);
            assert_ne!(
                found,
                Err(Halt::NeedMore),
                "{start:?}, then {:?} for ever",
                &again[..again.len().min(9)]
            );
        }
    }
}

/// One byte of a message comes otherwise, or not, or there is one more.
fn spoil(mut message: Vec<u8>, faults: &[(u8, prop::sample::Index, u8)]) -> Vec<u8> {
    for (kind, place, byte) in faults {
        let place = place.index(message.len() + 1);
        match kind {
            0 if place < message.len() => message[place] = *byte,
            1 if place < message.len() => _ = message.remove(place),
            _ => message.insert(place, *byte),
        }
    }
    message
}

proptest! {
    /// Every parser hears every other's messages too.
    #[test]
    fn a_message_with_faults_is_a_value_or_is_none_and_the_same_however_it_is_split(
        which in any::<prop::sample::Index>(),
        faults in prop::collection::vec((0..3_u8, any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let known: Vec<&[u8]> = PARSERS.iter().flat_map(|(_, messages)| *messages).copied().collect();
        let bytes = spoil(which.get(&known).to_vec(), &faults);
        for (parse, _) in PARSERS {
            let found = parse(&bytes);
            let grown = (0..=bytes.len()).map(|end| parse(&bytes[..end])).find(|it| *it != Err(Halt::NeedMore));
            prop_assert_eq!(&grown.unwrap_or(Err(Halt::NeedMore)), &found);
            prop_assert!(found.is_err() || found.is_ok_and(|(_, used)| (1..=bytes.len()).contains(&used)));
        }
    }

    /// These are handed what another parser has cut out, or a whole stream.
    #[test]
    fn any_bytes_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), first in 0..=255_u8) {
        let bytes = [&[first], bytes.as_slice()].concat();
        let _ = (mysql::greeting(&bytes), mysql::answer(&bytes), md5::hex(&bytes), find(&bytes, &bytes[1..]));
        let _ = scram::Opening::new("joe", [7; 18]).prove(&bytes, "secret");
        let mut answer = http::Answer::to("GET");
        let _ = (answer.on_bytes(&bytes), answer.on_end());
        for (parse, _) in PARSERS {
            prop_assert!(parse(&bytes).is_err() || parse(&bytes).is_ok_and(|(_, used)| used <= bytes.len()));
        }
    }

    #[test]
    fn any_text_becomes_one_short_line(said in prop::collection::vec(any::<u8>(), 0..1000)) {
        let text = printable(&said);
        prop_assert!(text.chars().count() <= SAID_MAX + 3 && !text.chars().any(char::is_control));
    }
}

#[test]
fn what_a_server_said_cannot_break_a_log_line() {
    assert_eq!(printable(b"-ERR \x1b[2J\r\nevil"), "-ERR  [2J  evil");
    assert_eq!(printable(&[b'x'; 500]).len(), SAID_MAX + 3);
    assert_eq!(printable(b"\xff\xfe"), "\u{fffd}\u{fffd}");
    assert_eq!(printable("abc\u{202e}def\u{2028}g".as_bytes()), "abc def g");
}
