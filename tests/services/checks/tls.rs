//! Checks over TLS: what a handshake proves, and what is said where it proves nothing.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, Stream};

use super::Watched;
use crate::authority::{Authority, Certificate, NAME, trusting};
use crate::mariadb::{MariaDb, ask};
use crate::nginx::Nginx;
use crate::postgres::Postgres;
use crate::redis::Redis;
use crate::support::{PATIENCE, TempDir, eventually, free_port};

/// Its `listen` for TLS on that port.
fn secure_port(port: u16, certificate: &Certificate) -> String {
    let (chain, key) = (certificate.chain.display(), certificate.key.display());
    format!("listen 127.0.0.1:{port} ssl; ssl_certificate {chain}; ssl_certificate_key {key};")
}

/// An nginx with that certificate, and its port for TLS.
fn nginx(certificate: &Certificate) -> (Nginx, u16) {
    let port = free_port();
    (Nginx::start_with(&secure_port(port, certificate)), port)
}

#[track_caller]
fn verdict(port: u16, check: &str, state: &str, message: &str) {
    Watched::start(&[port], check).wait_for("a", state, message);
}

#[test]
fn a_handshake_is_enough_for_a_server_of_the_right_name() {
    let authority = Authority::new();
    let (nginx, port) = nginx(&authority.certificate(NAME));
    let check = format!("type = \"tls\"\n{}", trusting(&authority.file()));
    let watched = Watched::start(&[port], &check);
    watched.wait_for("a", "up", "ok");
    watched.wait_for_checks("a", 50);
    assert_eq!(watched.checks("a", "failed"), 0);
    // Without a name it is the address that the certificate must have, and this one has it.
    verdict(port, &format!("type = \"tls\"\ntls = {{ verify = {:?} }}", authority.file()), "up", "ok");
    assert_eq!(nginx.file("error.log"), "");
}

#[test]
fn a_certificate_that_proves_nothing_says_what_is_wrong_with_it() {
    let (authority, other) = (Authority::new(), Authority::new());
    let check = format!("type = \"tls\"\n{}", trusting(&authority.file()));

    let (_nginx, port) = nginx(&authority.expired(NAME));
    verdict(port, &check, "down", "its certificate has expired (2020-01-02T00:00:00Z)");
    verdict(port, "type = \"tls\"\ntls = { verify = \"off\" }", "up", "ok");

    let (_nginx, port) = nginx(&authority.certificate("other.internal"));
    let names = "its certificate is for other.internal, 127.0.0.1, not for web.internal";
    verdict(port, &check, "down", names);

    let (_nginx, port) = nginx(&other.certificate(NAME));
    verdict(port, &check, "down", "its certificate is from no authority in /");
    verdict(port, "type = \"tls\"", "down", "from an authority that this machine does not know");
}

/// It once heard the end of the connection and nothing else, which its log cannot explain.
#[test]
fn a_server_whose_certificate_is_not_taken_hears_why() {
    let authority = Authority::new();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&heard);
    let port = scripted(
        &authority.certificate("other.internal"),
        |_| {},
        move |secure| noted.lock().unwrap().push(secure.read(&mut [0]).map_err(|error| error.to_string())),
    );
    let check = format!("type = \"tls\"\n{}", trusting(&authority.file()));
    verdict(port, &check, "down", "not for web.internal");
    let first = eventually("its word", PATIENCE, || heard.lock().unwrap().first().cloned());
    assert_eq!(first, Err("received fatal alert: BadCertificate".into()));
}

#[test]
fn a_server_in_clear_is_told_by_what_it_says() {
    let (nginx, redis) = (Nginx::start(), Redis::start());
    verdict(nginx.port, "type = \"tls\"", "down", "speaks no TLS: it said \"HTTP/1.1 400 Bad Request\"");
    let maria = MariaDb::start();
    verdict(maria.port, "type = \"tls\"", "down", "speaks no TLS: it said ");
    drop(redis);
}

#[test]
fn a_web_server_is_asked_within_tls_by_the_name_of_its_host() {
    let authority = Authority::new();
    let (nginx, port) = nginx(&authority.certificate(NAME));
    nginx.serve("health", "ready\n");
    let check = format!(
        "type = \"http\"\npath = \"/health\"\nhost = \"{NAME}\"\nexpect_body = \"ready\"\ntls = {{ verify = {:?} }}",
        authority.file()
    );
    let watched = Watched::start(&[port], &check);
    watched.wait_for("a", "up", "ok");
    watched.wait_for_checks("a", 50);
    nginx.serve("health", "not yet\n");
    watched.wait_for("a", "down", "the body holds no \"ready\"");
    verdict(port, "type = \"http\"", "down", "status 400, wanted 200-299");
    assert_eq!(nginx.file("error.log"), "");
}

#[test]
fn authorities_are_read_again_at_a_reload() {
    let (old, new) = (Authority::new(), Authority::new());
    let dir = TempDir::new("authorities");
    let file = dir.join("ca.pem");
    fs::copy(old.file(), &file).expect("a copy");
    let (_nginx, port) = nginx(&new.certificate(NAME));
    let mut watched = Watched::start(&[port], &format!("type = \"tls\"\n{}", trusting(&file)));
    watched.wait_for("a", "down", "its certificate is from no authority in");
    let both = [old.file(), new.file()].map(|file| fs::read_to_string(file).expect("an authority")).concat();
    fs::write(&file, both).expect("both");
    watched.reload();
    watched.wait_for("a", "up", "ok");
}

/// A PostgreSQL that admits `scrammer` and `plain` within TLS alone.
fn postgres(authority: &Authority) -> Postgres {
    let certificate = authority.certificate(NAME).owned_by("postgres");
    let a = Postgres::start_empty();
    a.sql("create role scrammer login password 'right one'");
    a.sql("create role plain login password 'right one'");
    a.sql(&format!("alter system set ssl_cert_file = '{}'", certificate.chain.display()));
    a.sql(&format!("alter system set ssl_key_file = '{}'", certificate.key.display()));
    a.sql("alter system set ssl = on");
    a.admit("hostssl all scrammer 127.0.0.1/32 scram-sha-256\nhostssl all plain 127.0.0.1/32 password");
    eventually("TLS", PATIENCE, || (a.sql("show ssl") == "on\n").then_some(()));
    a
}

#[test]
fn postgres_that_takes_nobody_in_clear_is_logged_in_to_within_tls() {
    let dir = TempDir::new("password");
    let file = dir.join("password");
    fs::write(&file, "right one\n").expect("a password");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("for us alone");
    let login = |user: &str| {
        format!(
            "type = \"postgres\"\nuser = {user:?}\ndatabase = \"postgres\"\npassword_file = {file:?}\nrole = \"primary\"\n"
        )
    };
    for user in ["scrammer", "plain"] {
        // Each with a server of its own: a daemon that is killed in a check leaves a word in its log.
        let authority = Authority::new();
        let a = postgres(&authority);
        let watched = Watched::start(&[a.port], &format!("{}{}", login(user), trusting(&authority.file())));
        watched.wait_for("a", "up", "ok");
        watched.wait_for_checks("a", 50);
        assert_eq!(watched.checks("a", "failed"), 0);
        let is_complaint = |line: &&str| {
            ["unexpected EOF", "FATAL", "ERROR", "reset by peer", "SSL"]
                .iter()
                .any(|word| line.contains(word))
        };
        let log = a.log();
        assert_eq!(log.lines().filter(is_complaint).collect::<Vec<_>>(), Vec::<&str>::new());
    }
    let a = postgres(&Authority::new());
    verdict(a.port, &login("scrammer"), "down", "no pg_hba.conf entry");
    let to_anybody = |user: &str| format!("{}tls = {{ verify = \"off\" }}", login(user));
    verdict(a.port, &to_anybody("scrammer"), "up", "ok");
    verdict(a.port, &to_anybody("plain"), "down", "wants the password in clear, which a check does not send");
    let b = Postgres::start_empty();
    verdict(b.port, &to_anybody("plain"), "down", "offers no TLS");
}

#[test]
fn mariadb_that_requires_tls_gets_it_and_counts_no_error() {
    let authority = Authority::new();
    let certificate = authority.certificate(NAME).owned_by("mysql");
    let (chain, key) = (certificate.chain.display(), certificate.key.display());
    let (chain, key) = (format!("--ssl-cert={chain}"), format!("--ssl-key={key}"));
    let a = MariaDb::start_with(&["--log-warnings=9", &chain, &key]);
    ask(a.port, "create user tidegate@'127.0.0.1'");
    ask(a.port, "set global require_secure_transport = on");
    let complaints = || a.log().matches("Aborted connection").count();
    // The test's own look whether the port is open.
    eventually("a first one", PATIENCE, || (complaints() >= 1).then_some(()));
    let before = complaints();
    let check = "type = \"mysql\"\nuser = \"tidegate\"\nrole = \"primary\"\n";
    let watched = Watched::start(&[a.port], &format!("{check}{}", trusting(&authority.file())));
    watched.wait_for("a", "up", "ok");
    watched.wait_for_checks("a", 100);
    assert_eq!((watched.checks("a", "failed"), complaints()), (0, before));
    drop(watched);
    verdict(a.port, check, "down", "error 1045: Access denied");
    let plain = MariaDb::start_with(&["--skip-ssl"]);
    verdict(plain.port, &format!("{check}tls = {{ verify = \"off\" }}"), "down", "offers no TLS");
}

#[test]
fn redis_is_asked_within_tls() {
    let authority = Authority::new();
    let certificate = authority.certificate(NAME);
    let (port, file) = (free_port(), authority.file());
    let [chain, key, file] =
        [&certificate.chain, &certificate.key, &file].map(|path| path.to_str().expect("UTF-8"));
    let more = ["--tls-port", &port.to_string(), "--tls-cert-file", chain, "--tls-key-file", key];
    let a =
        Redis::start_with(&[&more, &["--tls-ca-cert-file", file, "--tls-auth-clients", "no"][..]].concat());
    let watched = Watched::start(
        &[port],
        &format!("type = \"redis\"\nrole = \"primary\"\n{}", trusting(&authority.file())),
    );
    watched.wait_for("a", "up", "ok");
    watched.wait_for_checks("a", 50);
    assert_eq!(watched.checks("a", "failed"), 0);
    assert!(!a.log().contains("Error"), "{}", a.log());
}

/// A server that speaks TLS by a script, from where `begin` has left off.
fn scripted(
    certificate: &Certificate,
    begin: impl Fn(&mut TcpStream) + Send + Sync + 'static,
    then: impl Fn(&mut dyn Conversation) + Send + Sync + 'static,
) -> u16 {
    let chain = CertificateDer::pem_file_iter(&certificate.chain).expect("PEM");
    let chain = chain.map(|certificate| certificate.expect("PEM")).collect();
    let key = PrivateKeyDer::from_pem_file(&certificate.key).expect("PEM");
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).expect("a pair");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let talk = move |mut stream: TcpStream, config: Arc<ServerConfig>| {
        begin(&mut stream);
        let mut tls = ServerConnection::new(config).expect("a session");
        let mut secure = Stream::new(&mut tls, &mut stream);
        then(&mut secure);
        secure.conn.send_close_notify();
        let _ = secure.flush();
        let _ = stream.read_to_end(&mut Vec::new());
    };
    let (config, talk) = (Arc::new(config), Arc::new(talk));
    // Lives as long as the test's process; one that is left in the middle ends alone.
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let (config, talk) = (Arc::clone(&config), Arc::clone(&talk));
            thread::spawn(move || talk(stream, config));
        }
    });
    port
}

trait Conversation: Read + Write {
    /// Hears so many bytes.
    fn hear(&mut self, count: usize) -> Vec<u8> {
        let mut heard = vec![0; count];
        self.read_exact(&mut heard).expect("as much as that");
        heard
    }

    /// Hears one packet of MySQL.
    fn packet(&mut self) -> Vec<u8> {
        let head = self.hear(4);
        self.hear(usize::from(head[0]))
    }
}

impl<T: Read + Write> Conversation for T {}

#[test]
fn redis_says_no_password_to_a_server_that_may_be_anybody() {
    let dir = TempDir::new("password");
    let file = dir.join("password");
    fs::write(&file, "right one\n").expect("a password");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("for us alone");
    const QUIT: &[u8] = b"*1\r\n$4\r\nQUIT\r\n";
    let heard = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&heard);
    let hear = move |stream: &mut dyn Conversation| {
        noted.lock().expect("heard").push(stream.hear(QUIT.len()));
    };
    let port = scripted(&Authority::new().certificate(NAME), |_| {}, hear);
    let check = format!("type = \"redis\"\npassword_file = {file:?}\ntls = {{ verify = \"off\" }}\n");
    let watched = Watched::start(&[port], &check);
    watched.wait_for("a", "down", "would hear the password in clear without having proven who it is");
    eventually("two checks", PATIENCE, || (heard.lock().expect("heard").len() >= 2).then_some(()));
    assert!(heard.lock().expect("heard").iter().all(|said| said == QUIT));
}

/// MySQL 8's bytes: Debian has only MariaDB, which does not know this plugin.
#[test]
fn caching_sha2_password_hears_the_password_within_tls_from_who_has_proven_his_name() {
    let authority = Authority::new();
    let dir = TempDir::new("password");
    let file = dir.join("password");
    fs::write(&file, "right one\n").expect("a password");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("for us alone");
    let heard = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&heard);
    // Of the last login's proof: 32, or nothing.
    let proof_length = Arc::new(AtomicU8::new(0));
    let length_said = Arc::clone(&proof_length);
    let greet = |stream: &mut TcpStream| {
        let mut payload = b"\x0a8.0.36\0\x08\0\0\0abcdefgh\0".to_vec();
        payload.extend_from_slice(b"\xff\xff\xff\x02\0\xff\xdf\x15\0\0\0\0\0\0\0\0\0\0ijklmnopqrst\0");
        payload.extend_from_slice(b"caching_sha2_password\0");
        let length = u8::try_from(payload.len()).expect("short");
        stream.write_all(&[&[length, 0, 0, 0], &payload[..]].concat()).expect("greeted");
        let request = stream.packet();
        assert_eq!((request.len(), request[1] & 8), (32, 8), "a request for TLS");
    };
    let log_in = move |stream: &mut dyn Conversation| {
        let login = stream.packet();
        assert!(login.windows(22).any(|part| part == b"caching_sha2_password\0"));
        length_said.store(login[32 + "tidegate\0".len()], Ordering::SeqCst);
        stream.write_all(b"\x02\0\0\x03\x01\x04").expect("it asks for all of it");
        let _ = stream.flush();
        let head = stream.hear(4);
        let said = stream.hear(usize::from(head[0]));
        if said == b"\x01" {
            return; // COM_QUIT
        }
        assert_eq!(head[3], 4, "the sequence goes on");
        if said == b"\0" {
            let _ = stream.write_all(b"\x0b\0\0\x05\xff\x15\x04#28000no"); // it proves nothing
            return;
        }
        noted.lock().expect("heard").push(said);
        stream.write_all(b"\x07\0\0\x05\0\0\0\x02\0\0\0").expect("OK");
        let _ = stream.flush();
        assert_eq!(stream.packet(), b"\x01", "COM_QUIT");
    };
    let port = scripted(&authority.certificate(NAME), greet, log_in);
    let check = format!("type = \"mysql\"\nuser = \"tidegate\"\npassword_file = {file:?}\n");
    let watched = Watched::start(&[port], &format!("{check}{}", trusting(&authority.file())));
    watched.wait_for("a", "up", "ok");
    watched.wait_for_checks("a", 5);
    assert!(heard.lock().expect("heard").iter().all(|said| said == b"right one\0"));
    drop(watched);
    let count = heard.lock().expect("heard").len();
    let to_anybody = format!("{check}tls = {{ verify = \"off\" }}");
    let message = "wants to hear the password, which takes a `verify` that is not \"off\"";
    verdict(port, &to_anybody, "down", message);
    assert_eq!(proof_length.load(Ordering::SeqCst), 32);
    let other = Authority::new();
    verdict(port, &format!("{check}{}", trusting(&other.file())), "down", "from no authority in /");
    assert_eq!(proof_length.load(Ordering::SeqCst), 0, "who has proven nothing is proven nothing");
    assert!(heard.lock().expect("heard").len() <= count + 1, "nobody else heard it");
}

#[test]
fn a_mail_server_begins_tls_when_it_is_asked_and_not_before() {
    let authority = Authority::new();
    let expect = |stream: &mut dyn Conversation, wanted: &str, answer: &str| {
        assert_eq!(String::from_utf8_lossy(&stream.hear(wanted.len())), wanted);
        stream.write_all(answer.as_bytes()).expect("answered");
        let _ = stream.flush();
    };
    let hello = "EHLO [127.0.0.1]\r\n";
    let begin = move |stream: &mut TcpStream| {
        stream.write_all(b"220 mail.example.com ESMTP\r\n").expect("greeted");
        expect(stream, hello, "250-mail.example.com\r\n250 STARTTLS\r\n");
        expect(stream, "STARTTLS\r\n", "220 go ahead\r\n");
    };
    let then = move |stream: &mut dyn Conversation| {
        expect(stream, hello, "250 mail.example.com\r\n");
        expect(stream, "QUIT\r\n", "221 bye\r\n");
    };
    let port = scripted(&authority.certificate(NAME), begin, then);
    let check = format!("type = \"smtp\"\nstarttls = true\n{}", trusting(&authority.file()));
    let watched = Watched::start(&[port], &check);
    watched.wait_for("a", "up", "ok");
    watched.wait_for_checks("a", 5);
    assert_eq!(watched.checks("a", "failed"), 0);
}
