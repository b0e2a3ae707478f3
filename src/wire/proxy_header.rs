//! The PROXY protocol's words for a connection that is the balancer's own: nobody stands behind it.
//!
//! A server that requires the header gets it with a health check, too, and takes the check for what
//! it is (its specification, sections 2.1 and 2.2: `UNKNOWN` and `LOCAL`).

/// Version 1.
pub const UNKNOWN: &[u8] = b"PROXY UNKNOWN\r\n";

/// Version 2: the signature; version 2 and the command LOCAL; no family; no addresses.
pub const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_as_long_as_its_specification_says() {
        assert_eq!(UNKNOWN.len(), 15);
        let (signature, rest) = LOCAL.split_at(12);
        assert_eq!(signature, [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a]);
        assert_eq!(rest, [0x20, 0, 0, 0]);
    }
}
