//! Where a listener's clients go: `pool`, `canary` and `[[listener.NAME.route]]`.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::admission::{Networks, networks, plain};
use super::listener::missing;
use super::section::{Field, Section};
use super::taken::Taken;
use super::{check_name, keys, leaf};
use crate::config::defaults;
use crate::config::file::{Kind, Value};
use crate::config::mistake::{Code, Mistake, Mistakes, quoted};
use crate::config::plan::{Acl, Canary, Route, Share, Split, SplitBy, Target};

/// Where clients go, with the places that [`super::across`] may point at.
#[derive(Debug, Default)]
pub struct Ways {
    pub routes: Vec<Route>,
    pub target: Option<Target>,
    pub named: Vec<Named>,
    /// A pool is not named where one should be; that is reported already.
    pub is_in_doubt: bool,
}

/// A pool, and where it is named.
#[derive(Debug)]
pub struct Named {
    pub pool: String,
    pub span: Range<usize>,
    /// What it falls back to is not asked then.
    pub is_canary: bool,
}

pub fn ways(section: &Section<'_>, found: &mut Mistakes) -> Ways {
    let mut ways = Ways::default();
    let mut taken = Taken::default();
    ways.routes = routes(section, &mut ways, &mut taken, found);
    ways.target = target(section, &mut ways, found);
    match section.get("pool") {
        None if section.get("route").is_none() => {
            ways.is_in_doubt = true;
            found.add(missing(section, "pool", "pool = \"NAME\""));
        }
        Some(field) if taken.is_everybody() && !section.is_guessed("route") => {
            let mistake = Mistake::new(Code::NoEffect, field.value.span.clone(), "`pool` has no effect");
            found.add(mistake.label("the routes take every client"));
        }
        _ => {}
    }
    ways
}

/// `pool` and `canary` of a listener or of a route.
fn target(section: &Section<'_>, ways: &mut Ways, found: &mut Mistakes) -> Option<Target> {
    let pool = section.get("pool").map(|field| pool(field, false, ways, found));
    let canary = section.get("canary").map(|field| (field, canary(field, ways, found)));
    let Some(pool) = pool else {
        if let Some((field, _)) = canary {
            let mistake = Mistake::new(Code::NoEffect, field.value.span.clone(), "`canary` has no effect");
            found.add(mistake.label("it takes a share of what would go to `pool`, which is not there"));
        }
        return None;
    };
    let target = Target { pool: pool?, canary: canary.and_then(|(_, canary)| canary) };
    if let (Some(canary), Some(named)) = (&target.canary, ways.named.last())
        && canary.pool == target.pool
    {
        let mistake = Mistake::new(Code::NoEffect, named.span.clone(), "`canary` has no effect");
        found.add(mistake.label("this is the pool that has the rest, too"));
    }
    Some(target)
}

fn pool(field: Field<'_>, is_canary: bool, ways: &mut Ways, found: &mut Mistakes) -> Option<String> {
    let name = leaf::text(field, "the name of a pool", found).map(str::to_owned);
    match &name {
        Some(name) => {
            let (pool, span) = (name.clone(), field.value.span.clone());
            ways.named.push(Named { pool, span, is_canary });
        }
        None => ways.is_in_doubt = true,
    }
    name
}

fn canary(field: Field<'_>, ways: &mut Ways, found: &mut Mistakes) -> Option<Canary> {
    if let Kind::Text(pool) = &field.value.kind {
        ways.is_in_doubt = true;
        let mistake = field.wrong_type("a table").help("the table has a key for it");
        found.add(mistake.patch(field.value.span.clone(), format!("{{ pool = {pool:?}, share = \"5%\" }}")));
        return None;
    }
    let table = leaf::table(field, "a table such as { pool = \"web-next\", share = \"5%\" }", found)?;
    let section = Section::read("canary", table, &keys::CANARY, found);
    let by = section
        .get("by")
        .and_then(|field| leaf::word(field, SplitBy::ALL, SplitBy::word, keys::FOREIGN_SPLIT, found));
    let from = section.get("from").map(|field| plain(&some_networks(field, found)));
    let share = match section.get("share") {
        Some(field) => share(field, found),
        None => {
            found.add(missing(&section, "share", "share = \"5%\""));
            None
        }
    };
    let pool = match section.get("pool") {
        Some(field) => pool(field, true, ways, found),
        None => {
            ways.is_in_doubt = true;
            found.add(missing(&section, "pool", "pool = \"NAME\""));
            None
        }
    };
    let split = Split { share: share?, by: by.unwrap_or(defaults::SPLIT_BY) };
    Some(Canary { pool: pool?, split, from: Arc::new(Acl::new(from.unwrap_or_default(), [])) })
}

fn share(field: Field<'_>, found: &mut Mistakes) -> Option<Share> {
    let part = leaf::percent(field, found)?;
    let share = Share::of(part);
    if share.is_none() {
        let mistake = Mistake::new(Code::OutOfRange, field.value.span.clone(), "`share` is out of range");
        found.add(mistake.label("four digits behind the point at most, such as \"0.0001%\""));
    }
    share
}

/// At least one: a list that a script left empty would otherwise mean everybody, or nobody.
fn some_networks(field: Field<'_>, found: &mut Mistakes) -> Networks {
    if matches!(&field.value.kind, Kind::Array(items) if items.is_empty()) {
        let mistake = Mistake::new(Code::EmptyList, field.value.span.clone(), "`from` names nobody");
        found.add(mistake.label("at least one network is needed").help("for everybody, leave it out"));
    }
    networks(field, found)
}

fn routes(section: &Section<'_>, ways: &mut Ways, taken: &mut Taken, found: &mut Mistakes) -> Vec<Route> {
    let Some(field) = section.get("route") else { return Vec::new() };
    let tables = match &field.value.kind {
        Kind::Array(tables) => tables,
        Kind::Table(table) => {
            let header = format!("[[{}.route]]", section.name);
            let mistake = field.wrong_type("a list of tables").help(format!("write it as `{header}`"));
            let is_header = found.text.get(table.span.clone()).is_some_and(|text| text.starts_with('['));
            found.add(if is_header { mistake.patch(table.span.clone(), header) } else { mistake });
            std::slice::from_ref(field.value)
        }
        _ => {
            let mistake = field.wrong_type("a list of tables");
            found.add(mistake.help(format!("write each as `[[{}.route]]`", section.name)));
            &[]
        }
    };
    if let Some(beyond) = tables.get(Route::COUNT_MAX) {
        let message = format!("`{}` has {} routes", section.name, tables.len());
        let mistake = Mistake::new(Code::OutOfRange, beyond.span.clone(), message);
        let help = "each is asked about a client in its turn; `from` may name any number of networks";
        found.add(mistake.label(format!("at most {}", Route::COUNT_MAX)).help(help));
    }
    let mut names = HashMap::new();
    let numbered = (1..).zip(tables.iter().take(Route::COUNT_MAX));
    numbered
        .filter_map(|(number, table)| {
            let route = Reading { listener: &section.name, number, names: &mut names };
            route.read(table, ways, taken, found)
        })
        .collect()
}

/// One route that is being read.
struct Reading<'a> {
    /// `listener.web`
    listener: &'a str,
    number: usize,
    /// Of the routes before, and where.
    names: &'a mut HashMap<String, Range<usize>>,
}

impl Reading<'_> {
    fn read(
        mut self,
        value: &Value,
        ways: &mut Ways,
        taken: &mut Taken,
        found: &mut Mistakes,
    ) -> Option<Route> {
        let field = Field { key: "route", value };
        let table = leaf::table(field, "a table such as { from = [\"10.0.0.0/8\"], pool = \"web\" }", found)?;
        let section = Section::read(format!("{}.route", self.listener), table, &keys::ROUTE, found);
        let name = self.name(&section, found);
        let from = section.get("from").map(|field| some_networks(field, found));
        taken.note(&name, from.as_deref(), &section, found);
        let target = target(&section, ways, found);
        let rejects = section.get("reject").map(|field| (field, leaf::boolean(field, found)));
        check_goal(&section, rejects, found);
        Some(Route { name, from: Arc::new(Acl::new(plain(&from.unwrap_or_default()), [])), target })
    }

    /// What it is given, or else its number; neither what another one has.
    fn name(&mut self, section: &Section<'_>, found: &mut Mistakes) -> String {
        let number = (self.number.to_string(), section.span.clone());
        let written = section.get("name").and_then(|field| {
            let name = leaf::text(field, "a name", found)?;
            check_name(name, "route", field.value.span.clone(), found);
            Some((name.to_owned(), field.value.span.clone()))
        });
        let (name, span) = written.unwrap_or(number);
        if [Route::DEFAULT, "canary", "canary-fallback"].contains(&name.as_str()) {
            let message = format!("{} is no name for a route", quoted(&name));
            let mistake = Mistake::new(Code::BadName, span.clone(), message);
            found.add(mistake.label("the log calls so what takes no route"));
        }
        match self.names.get(&name) {
            Some(first) => {
                let message = format!("two routes of a listener have the name {}", quoted(&name));
                let mistake = Mistake::new(Code::NotUnique, span, message).also(first.clone(), "first here");
                let help =
                    "names tell routes apart in the log and in metrics; without one a route has its number";
                found.add(mistake.label("again").help(help));
            }
            None => _ = self.names.insert(name.clone(), span),
        }
        name
    }
}

/// A route goes to a pool, or nowhere.
fn check_goal(section: &Section<'_>, reject: Option<(Field<'_>, Option<bool>)>, found: &mut Mistakes) {
    let pool = section.get("pool");
    match (pool, reject) {
        (Some(pool), Some((reject, Some(true)))) => {
            let message = format!("a route of `{}` has both `pool` and `reject`", listener_of(section));
            let mistake = Mistake::new(Code::RouteGoal, reject.value.span.clone(), message);
            let mistake = mistake.label("refuses its clients").also(pool.value.span.clone(), "serves them");
            found.add(mistake.help("keep one of the two"));
        }
        (None, None | Some((_, Some(false)))) => {
            let message = format!("a route of `{}` has neither `pool` nor `reject`", listener_of(section));
            let mistake = Mistake::new(Code::RouteGoal, section.span.clone(), message);
            found.add(mistake.help("add `pool = \"NAME\"`, or `reject = true` to refuse its clients"));
        }
        _ => {}
    }
}

fn listener_of<'s>(section: &'s Section<'_>) -> &'s str {
    section.name.strip_suffix(".route").unwrap_or(&section.name)
}
