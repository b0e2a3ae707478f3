//! Addresses: an IP address and a port, nothing that would have to be looked up.
//!
//! Pure. An IPv4 address in IPv6 clothes (`::ffff:192.0.2.1`) is read as what it is: IPv6
//! sockets here take IPv6 alone, so the kernel would refuse it, and two spellings of one
//! address could not be told to clash.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::config::file::{Kind, Value};
use crate::config::mistake::{Code, Mistake, Mistakes, quoted};

/// Reads one address; a mistake is reported.
pub fn address(value: &Value, found: &mut Mistakes) -> Option<SocketAddr> {
    let Kind::Text(text) = &value.kind else {
        let message = format!("an address is an IP address and a port in quotes, not {}", value.kind.name());
        found.add(Mistake::new(Code::WrongType, value.span.clone(), message));
        return None;
    };
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() == 0 => {
            let message = format!("{} has port 0", quoted(text));
            let mistake = Mistake::new(Code::OutOfRange, value.span.clone(), message);
            found.add(mistake.label("a port is from 1 to 65535"));
            None
        }
        Ok(address) => Some(plain(address)),
        Err(_) => {
            found.add(explained(value, text));
            None
        }
    }
}

/// The same address in its own family.
fn plain(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(ip) => SocketAddr::new(IpAddr::V4(ip), v6.port()),
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}

/// Says what is wrong with a text that is no address: the most specific reason comes first.
fn explained(value: &Value, text: &str) -> Mistake {
    let wrong = |code, why: &str| {
        Mistake::new(code, value.span.clone(), format!("{} is no address", quoted(text))).label(why)
    };
    let bad = |why: &str| wrong(Code::BadAddress, why);
    let instead =
        |mistake: Mistake, better: String| mistake.patch(value.span.clone(), format!("\"{better}\""));
    if let (Ok(_), Some((host, port))) = (text.parse::<Ipv6Addr>(), text.rsplit_once(':'))
        && host.parse::<Ipv6Addr>().is_ok()
        && port.parse::<u16>().is_ok_and(|port| port > 0)
    {
        return bad("an IPv6 address stands in brackets, its port behind them")
            .help(format!("write \"[{host}]:{port}\", or \"[{text}]:PORT\" if this is the whole address"));
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return bad("the port is missing").help(format!("for example \"{}\"", SocketAddr::new(ip, 8080)));
    }
    if let Some((_, rest)) = text.split_once("://") {
        let rest = rest.trim_end_matches('/');
        let mistake = bad("an address has no scheme");
        return if rest.parse::<SocketAddr>().is_ok() { instead(mistake, rest.to_owned()) } else { mistake };
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return no_colon(value, text);
    };
    if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return bad("a port is a number").help("each address has one port: list the addresses one by one");
    }
    if port.parse::<u16>().is_err() {
        return wrong(Code::OutOfRange, "a port is from 1 to 65535");
    }
    match host {
        "" | "*" => instead(bad("the IP address is missing"), format!("0.0.0.0:{port}"))
            .help("all IPv4 addresses are 0.0.0.0; all IPv6 addresses are [::]"),
        "localhost" => {
            instead(bad("names are not resolved"), format!("127.0.0.1:{port}")).help("write the IP address")
        }
        _ if host.parse::<Ipv6Addr>().is_ok() => {
            instead(bad("an IPv6 address stands in brackets"), format!("[{host}]:{port}"))
        }
        _ if looks_numeric(host) => bad("the part before the port is no IP address"),
        _ => bad("names are not resolved").help("write an IP address and a port, such as \"192.0.2.1:80\""),
    }
}

fn no_colon(value: &Value, text: &str) -> Mistake {
    let mistake =
        Mistake::new(Code::BadAddress, value.span.clone(), format!("{} is no address", quoted(text)));
    if text.starts_with('/') {
        return mistake.label("unix sockets are not supported here").help("write an IP address and a port");
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let mistake = mistake.label("the IP address is missing");
        return mistake
            .patch(value.span.clone(), format!("\"0.0.0.0:{text}\""))
            .help("all IPv4 addresses are 0.0.0.0; all IPv6 addresses are [::]");
    }
    mistake
        .label("expected an IP address and a port")
        .help("for example \"192.0.2.1:80\" or \"[2001:db8::1]:80\"")
}

/// Digits and dots, brackets and colons: meant as an IP address, not as a name.
fn looks_numeric(host: &str) -> bool {
    let is_v4 = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    is_v4 || host.starts_with('[') || host.contains(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_in_ipv6_clothes_is_taken_for_what_it_is() {
        let read = |text: &str| plain(text.parse().unwrap()).to_string();
        assert_eq!(read("[::ffff:192.0.2.1]:80"), "192.0.2.1:80");
        assert_eq!(read("[::ffff:0.0.0.0]:80"), "0.0.0.0:80");
        assert_eq!(read("[::1]:80"), "[::1]:80");
    }
}
