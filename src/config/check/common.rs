//! `[defaults]`, and the keys that a listener and a pool read alike.
//!
//! A value is looked for in the table itself, then in `[defaults]`, then in `defaults.rs`.

use std::sync::Arc;
use std::time::Duration;

use super::leaf::{self, Span};
use super::section::{Field, Section};
use super::{admission, keys, priority};
use crate::config::defaults as built_in;
use crate::config::file::Kind;
use crate::config::mistake::{Code, Mistake, Mistakes};
use crate::config::plan::{Admission, Balance, Bandwidth, Classes, OnNoServer, Queue, Retry, Tcp, WhenFull};

/// More attempts than any pool has servers worth trying while a client waits.
const ATTEMPTS_MAX: i64 = 100;
/// Each client that waits holds a descriptor: no machine has more of them.
const QUEUE_MAX: i64 = 1_000_000;

/// What holds for every listener and pool that does not say otherwise.
#[derive(Clone, Debug)]
pub struct Common {
    pub idle_timeout: Option<Duration>,
    pub half_close_timeout: Option<Duration>,
    pub tcp: Tcp,
    pub connect_timeout: Duration,
    pub balance: Balance,
    pub when_full: WhenFull,
    pub admission: Admission,
    pub classes: Arc<Classes>,
    pub bandwidth_per_connection: Option<Bandwidth>,
    pub on_no_server: OnNoServer,
    pub retry: Retry,
    pub slow_start: Option<Duration>,
    pub queue: Option<Queue>,
}

impl Default for Common {
    fn default() -> Self {
        Common {
            idle_timeout: built_in::IDLE_TIMEOUT,
            half_close_timeout: built_in::HALF_CLOSE_TIMEOUT,
            tcp: Tcp::default(),
            connect_timeout: built_in::CONNECT_TIMEOUT,
            balance: built_in::BALANCE,
            when_full: built_in::WHEN_FULL,
            admission: Admission::default(),
            classes: Arc::default(),
            bandwidth_per_connection: None,
            on_no_server: built_in::ON_NO_SERVER,
            retry: Retry::default(),
            slow_start: built_in::SLOW_START,
            queue: None,
        }
    }
}

/// Reads `[defaults]`.
pub fn defaults(root: &Section<'_>, found: &mut Mistakes) -> Common {
    let mut common = Common::default();
    for field in root.all("defaults") {
        if let Some(table) = leaf::table(field, "a table", found) {
            let section = Section::read("defaults", table, &keys::DEFAULTS, found);
            common = for_listener(&section, common, found);
            common = for_pool(&section, common, found);
            common.tcp = tcp(&section, common.tcp, found);
        }
    }
    common
}

/// What a listener's table changes of the defaults, but for [`tcp`].
pub fn for_listener(section: &Section<'_>, mut common: Common, found: &mut Mistakes) -> Common {
    if let Some(field) = section.get("idle_timeout") {
        common.idle_timeout =
            leaf::duration_or_off(field, Span::Positive, found).unwrap_or(common.idle_timeout);
    }
    if let Some(field) = section.get("half_close_timeout") {
        common.half_close_timeout =
            leaf::duration_or_off(field, Span::Positive, found).unwrap_or(common.half_close_timeout);
    }
    if let Some(field) = section.get("when_full") {
        let read = leaf::word(field, WhenFull::ALL, WhenFull::word, keys::FOREIGN_REFUSE, found);
        common.when_full = read.unwrap_or(common.when_full);
    }
    if let Some(field) = section.get("bandwidth_per_connection") {
        let read = leaf::bandwidth_or_off(field, found);
        common.bandwidth_per_connection = read.unwrap_or(common.bandwidth_per_connection);
    }
    common.admission = admission::admission(section, common.admission, found);
    common.classes = priority::classes(section, common.classes, found);
    common
}

/// What a pool's table changes of the defaults, but for [`tcp`].
pub fn for_pool(section: &Section<'_>, mut common: Common, found: &mut Mistakes) -> Common {
    if let Some(field) = section.get("connect_timeout") {
        let read = leaf::duration(field, Span::Positive, found);
        common.connect_timeout = read.unwrap_or(common.connect_timeout);
    }
    if let Some(field) = section.get("balance") {
        let read = leaf::word(field, Balance::ALL, Balance::word, keys::FOREIGN_BALANCE, found);
        common.balance = read.unwrap_or(common.balance);
    }
    if let Some(field) = section.get("on_no_server") {
        let read = leaf::word(field, OnNoServer::ALL, OnNoServer::word, keys::FOREIGN_REFUSE, found);
        common.on_no_server = read.unwrap_or(common.on_no_server);
    }
    if let Some(field) = section.get("retry") {
        common.retry = retry(field, found).unwrap_or(common.retry);
    }
    if let Some(field) = section.get("slow_start") {
        common.slow_start = leaf::duration_or_off(field, Span::Positive, found).unwrap_or(common.slow_start);
    }
    if let Some(field) = section.get("queue") {
        common.queue = queue(field, found).or(common.queue);
    }
    common
}

/// How dead peers are found out, on the side that the table is about.
pub fn tcp(section: &Section<'_>, mut tcp: Tcp, found: &mut Mistakes) -> Tcp {
    if let Some(field) = section.get("tcp_keepalive") {
        tcp.keepalive = leaf::duration_or_off(field, Span::KeepaliveSeconds, found).unwrap_or(tcp.keepalive);
    }
    if let Some(field) = section.get("tcp_user_timeout") {
        tcp.user_timeout = leaf::duration_or_off(field, Span::UserTimeout, found).unwrap_or(tcp.user_timeout);
        if let (Some(user), Some(keepalive)) = (tcp.user_timeout, tcp.keepalive)
            && user < 2 * keepalive
        {
            let message = "one lost keepalive probe will end idle connections";
            let label = "shorter than twice `tcp_keepalive`";
            let help =
                "leave it \"off\": keepalive finds dead peers; or make it twice `tcp_keepalive` at least";
            let mistake = Mistake::new(Code::HastyTimeout, field.value.span.clone(), message);
            found.add(mistake.label(label).help(help));
        }
    }
    tcp
}

fn queue(field: Field<'_>, found: &mut Mistakes) -> Option<Queue> {
    if let Kind::Integer(max) = field.value.kind {
        let mistake = field.wrong_type("a table").help("the table has a key for it");
        found.add(mistake.patch(field.value.span.clone(), format!("{{ max = {max} }}")));
        return None;
    }
    let table = leaf::table(field, "a table such as { max = 1000, timeout = \"5s\" }", found)?;
    let section = Section::read("queue", table, &keys::QUEUE, found);
    let mut queue = Queue::default();
    if let Some(field) = section.get("max") {
        let read = leaf::number(field, 1, QUEUE_MAX, found);
        queue.max = read.and_then(|max| usize::try_from(max).ok()).unwrap_or(queue.max);
    }
    if let Some(field) = section.get("timeout") {
        queue.timeout = leaf::duration(field, Span::Positive, found).unwrap_or(queue.timeout);
    }
    Some(queue)
}

fn retry(field: Field<'_>, found: &mut Mistakes) -> Option<Retry> {
    if let Kind::Integer(attempts) = field.value.kind {
        let mistake = field.wrong_type("a table").help("the table has a key for it");
        found.add(mistake.patch(field.value.span.clone(), format!("{{ attempts = {attempts} }}")));
        return None;
    }
    let table = leaf::table(field, "a table such as { attempts = 3 }", found)?;
    let section = Section::read("retry", table, &keys::RETRY, found);
    let mut retry = Retry::default();
    if let Some(field) = section.get("attempts") {
        let read = leaf::number(field, 1, ATTEMPTS_MAX, found);
        retry.attempts = read.and_then(|attempts| u32::try_from(attempts).ok()).unwrap_or(retry.attempts);
    }
    let mut length = |key, value: &mut Duration| {
        let read = section.get(key).and_then(|field| leaf::duration(field, Span::Positive, found));
        *value = read.unwrap_or(*value);
    };
    length("backoff", &mut retry.backoff);
    length("deadline", &mut retry.deadline);
    // Left out, it is no shorter than what is written for the first pause.
    retry.max_backoff = retry.max_backoff.max(retry.backoff);
    length("max_backoff", &mut retry.max_backoff);
    if let Some(field) = section.get("budget") {
        retry.budget = leaf::percent(field, found).unwrap_or(retry.budget);
    }
    check_pauses(&section, retry, found);
    Some(retry)
}

fn check_pauses(section: &Section<'_>, retry: Retry, found: &mut Mistakes) {
    let Retry { attempts, backoff, max_backoff, .. } = retry;
    if let Some(field) = section.get("max_backoff").filter(|_| max_backoff < backoff) {
        let message = "`max_backoff` is shorter than `backoff`";
        let label = format!("backoff is {backoff:?}");
        let mistake = Mistake::new(Code::OutOfRange, field.value.span.clone(), message).label(label);
        found.add(mistake.help("the first pause is `backoff`, and none is longer than `max_backoff`"));
    }
    if attempts > 1 {
        return;
    }
    for key in ["backoff", "max_backoff", "budget", "deadline"] {
        if let Some(field) = section.get(key) {
            let message = format!("`{key}` has no effect");
            let mistake = Mistake::new(Code::NoEffect, field.value.span.clone(), message);
            found.add(mistake.label("with one attempt there is no retry"));
        }
    }
}
