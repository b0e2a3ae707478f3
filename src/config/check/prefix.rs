//! Networks: an IP address and how many of its bits count, or an address alone.
//!
//! Pure. A network with bits set behind those that count is a mistake and not rounded in silence: the
//! address or the length may be the slip. The patch takes the length for what is meant.

use std::net::{IpAddr, Ipv4Addr};

use crate::config::file::{Kind, Value};
use crate::config::mistake::{Code, Mistake, Mistakes, quoted};
use crate::core::prefix::Prefix;

/// Reads one network; a mistake is reported.
pub fn prefix(value: &Value, found: &mut Mistakes) -> Option<Prefix> {
    let Kind::Text(text) = &value.kind else {
        let message = format!("a network is a text such as \"10.0.0.0/8\", not {}", value.kind.name());
        found.add(Mistake::new(Code::WrongType, value.span.clone(), message));
        return None;
    };
    match parsed(text) {
        Ok(prefix) => Some(prefix),
        Err(unfit) => {
            let message = format!("{} is no network", quoted(text));
            let mistake = Mistake::new(Code::BadPrefix, value.span.clone(), message).label(unfit.why);
            found.add(match (unfit.instead, unfit.help) {
                (Some(better), _) => mistake.patch(value.span.clone(), format!("\"{better}\"")),
                (None, Some(help)) => mistake.help(help),
                (None, None) => {
                    mistake.help("for example \"10.0.0.0/8\", \"2001:db8::/32\" or \"192.0.2.1\"")
                }
            });
            None
        }
    }
}

/// Why a text is no network, for the caret; and what to write instead, where that can be known.
struct Unfit {
    why: &'static str,
    instead: Option<String>,
    help: Option<&'static str>,
}

fn unfit(why: &'static str) -> Unfit {
    Unfit { why, instead: None, help: None }
}

fn rather(why: &'static str, better: Option<impl ToString>) -> Unfit {
    Unfit { why, instead: better.map(|better| better.to_string()), help: None }
}

fn parsed(text: &str) -> Result<Prefix, Unfit> {
    let Some((address, length)) = text.split_once('/') else {
        return text.parse().map(Prefix::of).map_err(|_| not_an_address(text));
    };
    let address: IpAddr = match address.parse() {
        Ok(address) => address,
        Err(_) => return Err(not_an_address_with(address, length)),
    };
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let Ok(length) = length.parse::<u16>() else {
        let mask = length.parse().ok().and_then(ones);
        let better = mask.and_then(|length| Prefix::around(address, length));
        return Err(rather("the length is a number of bits", better));
    };
    let Some(prefix) = u8::try_from(length).ok().and_then(|length| Prefix::around(address, length)) else {
        let why = if bits == 32 { "IPv4 has 32 bits" } else { "IPv6 has 128 bits" };
        return Err(rather(why, Some(format!("{address}/{bits}"))));
    };
    match prefix.network() == address || prefix.network() == address.to_canonical() {
        true => Ok(prefix),
        false => Err(rather("bits are set behind those that count", Some(prefix))),
    }
}

/// `255.255.0.0` as 16.
fn ones(mask: Ipv4Addr) -> Option<u8> {
    let ones = mask.to_bits().leading_ones();
    (mask.to_bits().count_ones() == ones).then_some(ones as u8)
}

fn not_an_address_with(address: &str, length: &str) -> Unfit {
    let number = length.parse::<u8>().ok();
    if let Some(inner) = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let plain = inner.parse().ok().zip(number);
        let better = plain.and_then(|(address, length)| Prefix::around(address, length));
        return rather("a network stands without brackets", better);
    }
    let parts = address.split('.').count();
    let padded = format!("{address}{}", ".0".repeat(4_usize.saturating_sub(parts)));
    match padded.parse().ok().zip(number) {
        Some((address, length)) if parts < 4 => {
            rather("an IPv4 address has four parts", Prefix::around(address, length))
        }
        _ => unfit("the part before the `/` is no IP address"),
    }
}

fn not_an_address(text: &str) -> Unfit {
    if ["*", "all", "any", "everybody", "everyone"].contains(&text.to_ascii_lowercase().as_str()) {
        let help = "all of IPv4 is \"0.0.0.0/0\", all of IPv6 is \"::/0\"";
        return Unfit { why: "each family has a network of its own", instead: None, help: Some(help) };
    }
    if let Ok(address) = text.parse::<std::net::SocketAddr>() {
        return rather("a network has no port", Some(address.ip()));
    }
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return rather("an address stands without brackets here", inner.parse::<IpAddr>().ok());
    }
    if let Some((first, last)) = text.split_once('-')
        && first.trim().parse::<IpAddr>().is_ok()
        && last.trim().parse::<IpAddr>().is_ok()
    {
        let help = "write the networks that make up the range";
        return Unfit { why: "ranges are not understood", instead: None, help: Some(help) };
    }
    let is_name = text.bytes().any(|byte| byte.is_ascii_alphabetic()) && !text.contains(':');
    unfit(if is_name { "names are not resolved" } else { "expected an IP address, or one and a length" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_read_as_it_is_meant() {
        let read =
            |text: &str| parsed(text).map_or_else(|unfit| unfit.why.to_owned(), |prefix| prefix.to_string());
        assert_eq!(read("10.0.0.0/8"), "10.0.0.0/8");
        assert_eq!(read("192.0.2.1"), "192.0.2.1");
        assert_eq!(read("2001:db8::/32"), "2001:db8::/32");
        assert_eq!(read("::ffff:10.0.0.0/104"), "10.0.0.0/8");
        assert_eq!(read("::ffff:10.0.0.1"), "10.0.0.1");
        assert_eq!(read("::/0"), "::/0");
    }

    #[test]
    fn a_slip_earns_what_was_likely_meant() {
        let instead = |text: &str| parsed(text).err().and_then(|unfit| unfit.instead).unwrap_or_default();
        for (slip, better) in [
            ("10.0.0.1/8", "10.0.0.0/8"),
            ("10.0.0.0/33", "10.0.0.0/32"),
            ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
            ("10.0.0.1/255.255.0.0", "10.0.0.0/16"),
            ("10/8", "10.0.0.0/8"),
            ("172.16/12", "172.16.0.0/12"),
            ("2001:db8::1/32", "2001:db8::/32"),
            ("2001:db8::/129", "2001:db8::/128"),
            ("[2001:db8::]/32", "2001:db8::/32"),
            ("192.0.2.1:80", "192.0.2.1"),
            ("[2001:db8::1]:80", "2001:db8::1"),
            ("::ffff:10.0.0.1/104", "10.0.0.0/8"),
        ] {
            assert_eq!(instead(slip), better, "{slip}");
        }
        for hopeless in
            ["", "/8", "10.0.0.0/", "10.0.0.0/-1", "10.0.0.0/0.255.0.255", "web1", "*", "1.2.3.4-1.2.3.9"]
        {
            assert!(parsed(hopeless).is_err_and(|unfit| unfit.instead.is_none()), "{hopeless}");
        }
    }
}
