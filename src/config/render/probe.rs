//! What a health check asks, as keys of its table; `type` is written already.

use super::{Out, text};
use crate::config::plan::{Http, Probe};

pub(super) fn probe(probe: &Probe, out: &mut Out) {
    match probe {
        Probe::Tcp => {}
        Probe::Http(it) => http(it, out),
    }
}

fn http(http: &Http, out: &mut Out) {
    let default = Http::default();
    out.unless("method", &http.method, &default.method, |method| text(method.word()));
    out.unless("path", &http.path, &default.path, |path| text(path));
    maybe("host", http.host.as_deref(), out);
    out.unless("expect", &http.expect, &default.expect, |expect| {
        let items: Vec<_> = expect.iter().map(|statuses| text(&statuses.to_string())).collect();
        format!("[{}]", items.join(", "))
    });
    maybe("expect_body", http.expect_body.as_deref(), out);
    if !http.expect_headers.is_empty() {
        let item = |(name, value): &(String, Option<String>)| match value {
            Some(value) => text(&format!("{name}: {value}")),
            None => text(name),
        };
        let items: Vec<_> = http.expect_headers.iter().map(item).collect();
        out.key("expect_headers", format_args!("[{}]", items.join(", ")));
    }
}

fn maybe(key: &str, value: Option<&str>, out: &mut Out) {
    if let Some(value) = value {
        out.key(key, text(value));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::plan::{Method, Statuses};

    pub fn any_probe() -> impl Strategy<Value = Probe> {
        prop_oneof![Just(Probe::Tcp), http().prop_map(Probe::Http)]
    }

    fn words() -> impl Strategy<Value = String> {
        "[a-z\"'\\\\é# ]{0,20}[a-z]".prop_map(String::from)
    }

    fn http() -> impl Strategy<Value = Http> {
        let statuses = (100..400u16, 0..200u16).prop_map(|(from, more)| Statuses(from..=from + more));
        let header = ("[A-Za-z-]{1,10}", prop::option::of("[a-z0-9=; ]{0,10}[a-z]"));
        let header = header.prop_map(|(name, value)| (name, value.map(|value| value.trim().to_owned())));
        (
            "/[a-z?&=%\"]{0,20}",
            prop::option::of("[a-z.]{1,10}"),
            prop::collection::vec(statuses, 1..4),
            prop::option::of(words()),
            prop::collection::vec(header, 0..3),
        )
            .prop_map(|(path, host, expect, expect_body, expect_headers)| Http {
                method: if expect_body.is_none() { Method::Head } else { Method::Get },
                path,
                host,
                expect,
                expect_body,
                expect_headers,
            })
    }
}
