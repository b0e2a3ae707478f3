//! What a health check asks, as keys of its table; `type` is written already.

use super::{Out, length, text};
use crate::config::plan::{Galera, Http, Login, Mysql, Postgres, Probe, Redis, Role, Step, Tls, Verify};

pub(super) fn probe(probe: &Probe, out: &mut Out) {
    match probe {
        Probe::Tcp | Probe::Tls => {}
        Probe::Smtp(it) => out.unless("starttls", &it.starttls, &false, bool::to_string),
        Probe::SendExpect(it) => steps(it, out),
        Probe::Http(it) => http(it, out),
        Probe::Postgres(it) => postgres(it, out),
        Probe::Mysql(it) => mysql(it, out),
        Probe::Redis(it) => redis(it, out),
    }
}

/// As a table on one line.
pub(super) fn tls(tls: &Tls) -> String {
    let verify = match &tls.verify {
        Verify::System => text("system"),
        Verify::Off => text("off"),
        Verify::Authorities(authorities) => text(&authorities.file.to_string_lossy()),
    };
    match &tls.sni {
        Some(sni) => format!("{{ verify = {verify}, sni = {} }}", text(sni)),
        None => format!("{{ verify = {verify} }}"),
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

fn steps(steps: &[Step], out: &mut Out) {
    let part = |key: &str, bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok("") => None,
        Ok(words) => Some(format!("{key} = {}", text(words))),
        Err(_) => {
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            Some(format!("{key}_hex = \"{digits}\""))
        }
    };
    let step = |step: &Step| {
        let parts = [part("send", &step.send), part("expect", &step.expect)];
        format!("{{ {} }}", parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
    };
    out.key("steps", format_args!("[{}]", steps.iter().map(step).collect::<Vec<_>>().join(", ")));
}

fn postgres(postgres: &Postgres, out: &mut Out) {
    login(&postgres.login, out);
    maybe("database", postgres.database.as_deref(), out);
    role(postgres.role, out);
    if let Some(lag) = &postgres.max_lag {
        out.key("max_lag", length(lag));
    }
}

fn mysql(mysql: &Mysql, out: &mut Out) {
    role(mysql.role, out);
    maybe("galera", mysql.galera.map(Galera::word), out);
    login(&mysql.login, out);
}

fn redis(redis: &Redis, out: &mut Out) {
    role(redis.role, out);
    login(&redis.login, out);
}

fn role(role: Option<Role>, out: &mut Out) {
    maybe("role", role.map(Role::word), out);
}

/// The file of the password, never the password.
fn login(login: &Login, out: &mut Out) {
    maybe("user", login.user.as_deref(), out);
    maybe("password_file", login.password.as_ref().and_then(|password| password.file.to_str()), out);
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
    use crate::config::plan::{CheckKind, Method, Smtp, Statuses};

    pub fn any_probe() -> impl Strategy<Value = Probe> {
        prop_oneof![
            Just(Probe::Tcp),
            Just(Probe::Tls),
            Just(Probe::Smtp(Smtp { starttls: false })),
            prop::collection::vec(step(), 1..4).prop_map(Probe::SendExpect),
            http().prop_map(Probe::Http),
            redis().prop_map(Probe::Redis),
            postgres().prop_map(Probe::Postgres),
            mysql().prop_map(Probe::Mysql)
        ]
    }

    /// As fits that probe: a handshake needs it, and a bare connection has none.
    pub fn any_tls(probe: &Probe) -> impl Strategy<Value = Option<Tls>> + use<> {
        let tls = |verify: bool, sni: Option<String>| {
            let verify = if verify { Verify::System } else { Verify::Off };
            Some(Tls { verify, sni })
        };
        let plain = probe.kind();
        // The name of a Host header stands in for one that is not written.
        let host = matches!(probe, Probe::Http(http) if http.host.is_some());
        (any::<bool>(), any::<bool>(), prop::option::of("[a-z]{1,10}\\.example")).prop_map(
            move |(has_tls, verify, sni)| match plain {
                CheckKind::Tcp => None,
                CheckKind::Tls => tls(verify, sni),
                _ if host => tls(verify, Some(sni.unwrap_or_else(|| "a.example".into()))).filter(|_| has_tls),
                _ => tls(verify, sni).filter(|_| has_tls),
            },
        )
    }

    fn words() -> impl Strategy<Value = String> {
        "[a-z\"'\\\\é# ]{0,20}[a-z]".prop_map(String::from)
    }

    fn role() -> impl Strategy<Value = Option<Role>> {
        prop::option::of(prop::sample::select(Role::ALL))
    }

    fn login() -> impl Strategy<Value = Login> {
        prop::option::of(words()).prop_map(|user| Login { user, password: None })
    }

    fn postgres() -> impl Strategy<Value = Postgres> {
        let lag = prop::option::of((0..100_000_u64).prop_map(std::time::Duration::from_millis));
        (words(), prop::option::of(words()), role(), lag).prop_map(|(user, database, role, max_lag)| {
            Postgres {
                login: Login { user: Some(user), password: None },
                database,
                role,
                max_lag: max_lag.filter(|_| role != Some(Role::Primary)),
            }
        })
    }

    fn step() -> impl Strategy<Value = Step> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..10);
        let words = "[ -~\\r\\n]{1,10}".prop_map(String::into_bytes);
        (bytes(), prop_oneof![words, prop::collection::vec(any::<u8>(), 1..10)])
            .prop_map(|(send, expect)| Step { send, expect })
    }

    fn mysql() -> impl Strategy<Value = Mysql> {
        let galera = prop::option::of(prop::sample::select(Galera::ALL));
        (words(), role(), galera).prop_map(|(user, role, galera)| Mysql {
            login: Login { user: Some(user), password: None },
            role,
            galera,
        })
    }

    fn redis() -> impl Strategy<Value = Redis> {
        (login(), role()).prop_map(|(login, role)| Redis { login, role })
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
