//! The configurations that come with Tidegate: all of them hold, and the reference shows the
//! defaults as they are.

use std::fs;
use std::path::{Path, PathBuf};

use tidegate::config::plan::{
    Admin, Affinity, CircuitBreaker, HealthCheck, Listener, Log, OutlierDetection, Plan, Pool, Priority,
    Process, Server,
};
use tidegate::config::{self, Colour, Format};

fn conf() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conf")
}

/// The plan of a file that earns not even a warning.
fn flawless(path: &Path) -> Plan {
    let loaded = config::load(path)
        .unwrap_or_else(|mistakes| panic!("{}", mistakes.render(Format::Human, Colour::Plain)));
    let warnings = loaded.warnings.render(Format::Human, Colour::Plain);
    assert!(loaded.warnings.is_empty(), "{warnings}");
    loaded.plan
}

fn every_file() -> Vec<PathBuf> {
    let of = |folder: PathBuf| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = of(conf()).chain(of(conf().join("examples"))).filter(|path| path.is_file());
    files.collect()
}

#[test]
fn every_file_is_flawless_and_survives_being_written_again() {
    let files = every_file();
    assert!(files.len() >= 5, "{files:?}");
    for file in files {
        let plan = flawless(&file);
        let again = config::parse("again.toml", &config::render(&plan)).unwrap();
        assert_eq!(again.plan, plan, "{}", file.display());
    }
}

#[test]
fn the_reference_shows_the_defaults() {
    let plan = flawless(&conf().join("tidegate.toml"));
    assert_eq!(plan.process, Process::default());
    assert_eq!(plan.admin, Admin::default());
    assert_eq!(plan.log, Log::default());
    let listener = &plan.listeners[0];
    assert_eq!(*listener, Listener::new("web", listener.bind.clone(), "web"));
    let pool = &plan.pools[0];
    let plain = |server: &Server| match server.name.as_str() {
        // The example has a name and a limit, which have no default.
        "web1" => {
            Server { name: "web1".to_owned(), max_connections: Some(500), ..Server::from(server.address) }
        }
        _ => Server::from(server.address),
    };
    let servers: Vec<_> = pool.servers.iter().map(plain).collect();
    let expected = Pool {
        health_check: Some(HealthCheck::default()),
        outlier_detection: Some(OutlierDetection::default()),
        circuit_breaker: Some(CircuitBreaker::default()),
        ..Pool::new("web", servers)
    };
    assert_eq!(*pool, expected);
}

/// The reference with its commented keys in force.
fn with_every_key() -> String {
    let text = fs::read_to_string(conf().join("tidegate.toml")).unwrap();
    let is_key = |line: &str| {
        if line.starts_with("# [[") {
            return true;
        }
        let key = line.strip_prefix("# ").and_then(|line| line.split_once(" = "));
        key.is_some_and(|(key, _)| key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
    };
    let lines = text.lines().map(|line| if is_key(line) { &line[2..] } else { line });
    lines.collect::<Vec<_>>().join("\n")
}

/// The lines below a header, up to the next one.
fn below<'t>(text: &'t str, header: &str) -> &'t str {
    let (_, rest) = text.split_once(&format!("\n{header}\n")).unwrap_or_else(|| panic!("no {header}"));
    rest.split("\n[").next().unwrap()
}

#[test]
fn the_reference_shows_every_key_in_its_table() {
    let text = with_every_key();
    for keys in config::KEYS {
        let header = keys.header.replace("NAME", "web");
        for key in keys.names {
            let is_shown = match keys.header {
                "the file" => text.contains(&format!("\n[{key}")),
                "retry"
                | "queue"
                | "affinity"
                | "canary"
                | "tls"
                | "priority_from"
                | "a table of `servers`"
                | "a table of `steps`" => text.contains(&format!(" {key} = ")),
                "[listener.NAME]" if *key == "route" => text.contains(".route]]\n"),
                // A table of its own.
                _ if ["access", "health_check", "circuit_breaker", "outlier_detection"].contains(key) => {
                    text.contains(&format!(".{key}]\n"))
                }
                _ => below(&text, &header).lines().any(|line| line.starts_with(&format!("{key} = "))),
            };
            assert!(is_shown, "`{key}` of {} is not shown", keys.header);
        }
    }
}

#[test]
fn what_the_reference_comments_out_holds_too() {
    let text = with_every_key().replace("\"least-connections\"", "\"consistent-hash\"");
    // What it falls back to, and where routes and canaries lead.
    let others = ["web-static", "web-next", "web-office"];
    let others = others.map(|name| format!("\n[pool.{name}]\nservers = [\"192.0.2.20:8080\"]\n"));
    let text = text + &others.concat();
    let plan = config::parse("all.toml", &text).unwrap().plan;
    assert_eq!(plan.listeners[0].max_connections, Some(10_000));
    assert_eq!(plan.listeners[0].admission.acl.allowed().len(), 2);
    assert_eq!(plan.listeners[0].routes[0].name, "office");
    let shares = [&plan.listeners[0].target, &plan.listeners[0].routes[0].target].map(|target| {
        let canary = target.as_ref().unwrap().canary.as_ref().unwrap();
        canary.split.share.to_string()
    });
    assert_eq!(shares, ["5%", "0.5%"]);
    assert_eq!(plan.listeners[0].classes.of("10.1.1.1".parse().unwrap()), Priority::High);
    assert_eq!(plan.pools[0].health_check.as_ref().unwrap().port, Some(8008));
    assert_eq!(plan.pools[0].fallback.as_deref(), Some("web-static"));
    assert_eq!(plan.pools[0].affinity, Some(Affinity::default()));
    assert_eq!(plan.pools[0].hash_key, Pool::new("web", Vec::new()).hash_key);
}

#[test]
fn the_defaults_table_reaches_listeners_and_pools_that_say_nothing() {
    let text = "[defaults]\nallow = [\"192.0.2.0/24\"]\ndeny = [\"192.0.2.1\"]\npriority = \"low\"\npriority_from = { high = [\"192.0.2.1\"] }\nidle_timeout = \"off\"\ntcp_keepalive = \"7s\"\nbalance = \"first\"\nretry = { attempts = 9 }\n\
                [listener.a]\nbind = [\"127.0.0.1:80\"]\npool = \"a\"\n\
                [listener.b]\nbind = [\"127.0.0.1:81\"]\npool = \"b\"\nidle_timeout = \"3s\"\ndeny = []\npriority = \"lowest\"\n\
                [pool.a]\nservers = [\"192.0.2.1:80\"]\n\
                [pool.b]\nservers = [\"192.0.2.1:80\"]\nbalance = \"random\"\ntcp_keepalive = \"off\"\n";
    let plan = config::parse("t.toml", text).unwrap().plan;
    let seconds = std::time::Duration::from_secs;
    let rules = |listener: usize| {
        let acl = &plan.listeners[listener].admission.acl;
        (acl.allowed().len(), acl.denied().len())
    };
    assert_eq!((rules(0), rules(1)), ((1, 1), (1, 0)));
    let classes = |listener: usize| plan.listeners[listener].classes.all().collect::<Vec<_>>();
    assert_eq!(classes(0), [Priority::High, Priority::Low]);
    assert_eq!(classes(1), [Priority::High, Priority::Lowest]);
    assert_eq!(plan.listeners[0].idle_timeout, None);
    assert_eq!(plan.listeners[1].idle_timeout, Some(seconds(3)));
    assert_eq!(plan.listeners[1].tcp.keepalive, Some(seconds(7)));
    assert_eq!((plan.pools[0].balance.word(), plan.pools[1].balance.word()), ("first", "random"));
    assert_eq!((plan.pools[0].tcp.keepalive, plan.pools[1].tcp.keepalive), (Some(seconds(7)), None));
    assert_eq!(plan.pools[1].retry.attempts, 9);
}
