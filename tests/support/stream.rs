//! Byte streams that know every byte they should carry.
//!
//! A stream is cut into chunks, and each chunk is a piece of one block of random bytes, from a
//! place that the stream's seed and the chunk's number choose. Sending costs a copy and
//! checking a comparison, so even an unoptimised build checks at memory speed; and unlike
//! a checksum, a comparison says where the first wrong byte is. Two streams never look
//! alike, so a byte of another connection is a wrong byte.

use std::io::{self, Read, Write};
use std::sync::LazyLock;

/// Larger than any relay's buffer would need; small enough to stay in the cache.
const BLOCK_BYTES: usize = 4 << 20;
const CHUNK_BYTES: usize = 64 << 10;

static BLOCK: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let words = (0..BLOCK_BYTES as u64 / 8).map(mix);
    words.flat_map(u64::to_le_bytes).collect()
});

/// A well-mixed function of one number (the finaliser of MurmurHash3, 64 bits).
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

/// The bytes of chunk `number` in the stream `seed`.
fn chunk(seed: u64, number: u64) -> &'static [u8] {
    let place = mix(mix(seed) ^ number) as usize % (BLOCK_BYTES - CHUNK_BYTES);
    &BLOCK[place..place + CHUNK_BYTES]
}

/// The piece of the stream at `offset`: as far as its chunk goes, at most `limit` bytes.
fn piece(seed: u64, offset: u64, limit: u64) -> &'static [u8] {
    let chunk = chunk(seed, offset / CHUNK_BYTES as u64);
    let rest = &chunk[(offset % CHUNK_BYTES as u64) as usize..];
    &rest[..rest.len().min(usize::try_from(limit).unwrap_or(usize::MAX))]
}

/// Writes the bytes `from..to` of the stream `seed`.
pub fn send(mut to: impl Write, seed: u64, range: std::ops::Range<u64>) -> io::Result<()> {
    let mut offset = range.start;
    while offset < range.end {
        let piece = piece(seed, offset, range.end - offset);
        to.write_all(piece)?;
        offset += piece.len() as u64;
    }
    Ok(())
}

/// Reads the bytes `from..to` of the stream `seed` and compares each. A wrong byte or an early
/// end is an error that says at which offset.
pub fn expect(mut from: impl Read, seed: u64, range: std::ops::Range<u64>) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut offset = range.start;
    while offset < range.end {
        let limit = usize::try_from(range.end - offset).unwrap_or(usize::MAX).min(buffer.len());
        let length = from.read(&mut buffer[..limit])?;
        if length == 0 {
            let what = format!("stream {seed} ended at byte {offset} of {}", range.end);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        compare(&buffer[..length], seed, offset)?;
        offset += length as u64;
    }
    Ok(())
}

/// Expects the end of the stream, and not one byte more.
pub fn expect_end(mut from: impl Read) -> io::Result<()> {
    match from.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "more bytes than were sent")),
    }
}

fn compare(mut got: &[u8], seed: u64, mut offset: u64) -> io::Result<()> {
    while !got.is_empty() {
        let want = piece(seed, offset, got.len() as u64);
        let (head, tail) = got.split_at(want.len());
        // The comparison of slices is a memcmp; byte by byte is only for saying where.
        if head != want {
            let place = head.iter().zip(want).take_while(|(got, want)| got == want).count() as u64;
            let what = format!("stream {seed} is wrong from byte {}", offset + place);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        offset += want.len() as u64;
        got = tail;
    }
    Ok(())
}
