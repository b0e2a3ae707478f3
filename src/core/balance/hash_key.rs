//! What a consistent hash goes by, as one number.
//!
//! Pure. Two machines in front of the same servers must send a client to the same one, so the
//! bytes that are hashed and the seed are fixed for ever; golden values in the tests hold them.

use std::net::{IpAddr, SocketAddr};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::core::outcome::words;

words! {
    /// What a consistent hash is taken of.
    HashKey { SourceIp = "source-ip", SourceIpPort = "source-ip-port", Destination = "destination" }
}

/// The seed of all keys: `tidegate` in ASCII. Another value would send every client elsewhere.
const SEED: u64 = 0x7469_6465_6761_7465;

/// The key of a connection from `source` (the client) to `destination` (the address it
/// connected to): XXH3 of the address's 4 or 16 bytes and, except for `source-ip`, the port's 2
/// bytes, most significant first. An IPv4 client of an IPv6 socket has the key of its IPv4 address.
pub fn key(by: HashKey, source: SocketAddr, destination: SocketAddr) -> u64 {
    let (address, port) = match by {
        HashKey::SourceIp => (source.ip(), None),
        HashKey::SourceIpPort => (source.ip(), Some(source.port())),
        HashKey::Destination => (destination.ip(), Some(destination.port())),
    };
    let mut bytes = [0_u8; 18]; // the longest: 16 of IPv6 and the port
    let mut length = match address.to_canonical() {
        IpAddr::V4(v4) => put(&mut bytes, 0, &v4.octets()),
        IpAddr::V6(v6) => put(&mut bytes, 0, &v6.octets()),
    };
    if let Some(port) = port {
        length = put(&mut bytes, length, &port.to_be_bytes());
    }
    xxh3_64_with_seed(&bytes[..length], SEED)
}

/// Writes `part` at `at` and says where it ends.
fn put(bytes: &mut [u8; 18], at: usize, part: &[u8]) -> usize {
    let end = at + part.len();
    bytes[at..end].copy_from_slice(part);
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: &str = "192.0.2.17:40123";
    const LOCAL: &str = "[2001:db8::1]:443";

    fn of(by: HashKey, source: &str, destination: &str) -> u64 {
        key(by, source.parse().unwrap(), destination.parse().unwrap())
    }

    #[test]
    fn keys_are_the_same_on_every_machine_for_ever() {
        // Worked out by another implementation of XXH3, from the bytes that `key` describes.
        assert_eq!(of(HashKey::SourceIp, CLIENT, LOCAL), 0x9e58_5a95_384f_bce1);
        assert_eq!(of(HashKey::SourceIpPort, CLIENT, LOCAL), 0x8939_a21b_bbcb_8ff7);
        assert_eq!(of(HashKey::Destination, CLIENT, LOCAL), 0x6db5_9d8c_53e8_e96d);
        assert_eq!(of(HashKey::SourceIp, LOCAL, CLIENT), 0xf042_4a2e_802d_39f4);
    }

    #[test]
    fn each_key_goes_by_its_own_part_alone() {
        use HashKey::{Destination, SourceIp, SourceIpPort};
        let (other_port, other_local) = ("192.0.2.17:1", "[2001:db8::1]:80");
        assert_eq!(of(SourceIp, CLIENT, LOCAL), of(SourceIp, other_port, other_local));
        assert_ne!(of(SourceIpPort, CLIENT, LOCAL), of(SourceIpPort, other_port, LOCAL));
        assert_eq!(of(SourceIpPort, CLIENT, LOCAL), of(SourceIpPort, CLIENT, other_local));
        assert_ne!(of(Destination, CLIENT, LOCAL), of(Destination, CLIENT, other_local));
        assert_eq!(of(Destination, CLIENT, LOCAL), of(Destination, other_port, LOCAL));
    }

    #[test]
    fn an_ipv4_client_of_an_ipv6_socket_has_the_same_key() {
        for by in HashKey::ALL {
            let (mapped, local) = ("[::ffff:192.0.2.17]:40123", "[::ffff:192.0.2.1]:443");
            assert_eq!(of(*by, mapped, local), of(*by, CLIENT, "192.0.2.1:443"));
        }
    }
}
