//! The check of a web server: one request, and what its answer must be.

use std::borrow::Cow;

use super::line::{Fault, Line};
use crate::config::plan::Http;
use crate::wire::http::BODY_MAX;
use crate::wire::{find, http, printable};

pub async fn ask(line: &mut Line, http: &Http) -> Result<(), Fault> {
    let host = match &http.host {
        Some(host) => host.clone(),
        None => line.peer().to_string(),
    };
    line.say(&http::request(http.method.word(), &http.path, &host)).await?;
    let mut answer = http::Answer::to(http.method.word());
    while !answer.has_head() {
        hear(line, &mut answer, "HTTP answer").await?;
    }
    judge_head(http, &answer)?;
    let Some(expected) = &http.expect_body else { return Ok(()) };
    let mut searched = 0;
    // What has come may be enough, though the answer goes on or its connection never ends.
    while find(&answer.body[searched..], expected.as_bytes()).is_none() {
        if answer.is_whole() {
            let is_long = answer.body.len() >= BODY_MAX;
            let part = if is_long { "the first 64 KiB of the body hold" } else { "the body holds" };
            return Err(Fault::theirs(format!("{part} no \"{expected}\"")));
        }
        searched = answer.body.len().saturating_sub(expected.len() - 1); // it may have begun
        hear(line, &mut answer, format!("\"{expected}\" in the body, nor an end of it,")).await?;
    }
    Ok(())
}

async fn hear(
    line: &mut Line,
    answer: &mut http::Answer,
    what: impl Into<Cow<'static, str>>,
) -> Result<(), Fault> {
    let some = line.hear_some(what).await?;
    let done = if some.is_empty() { answer.on_end() } else { answer.on_bytes(&some) };
    done.map_err(Fault::theirs)
}

fn judge_head(http: &Http, answer: &http::Answer) -> Result<(), Fault> {
    let status = answer.status;
    if !http.expect.iter().any(|statuses| statuses.0.contains(&status)) {
        let expected: Vec<_> = http.expect.iter().map(ToString::to_string).collect();
        return Err(Fault::theirs(format!("status {status}, wanted {}", expected.join(" or "))));
    }
    for (name, wanted) in &http.expect_headers {
        let values: Vec<_> = answer.values(name).collect();
        let is_right = |value: &&str| wanted.as_ref().is_none_or(|wanted| wanted == value);
        if !values.iter().any(is_right) {
            let found = match values.first() {
                Some(value) => format!("is \"{}\"", printable(value.as_bytes())),
                None => "is missing".to_owned(),
            };
            let wanted = wanted.as_ref().map(|wanted| format!(", wanted \"{wanted}\"")).unwrap_or_default();
            return Err(Fault::theirs(format!("header {name} {found}{wanted}")));
        }
    }
    Ok(())
}
