//! The check of a mail server: its greeting, EHLO, STARTTLS where it is wanted, and QUIT.

use super::line::{Fault, Line};
use crate::config::plan::Smtp;
use crate::wire::printable;
use crate::wire::smtp::{QUIT, STARTTLS, ehlo, reply};

pub async fn ask(line: &mut Line, smtp: &Smtp) -> Result<(), Fault> {
    if !smtp.starttls {
        line.secure().await?;
    }
    expect(line, "greeting", 220).await?;
    line.will_say(QUIT);
    let hello = ehlo(line.local());
    line.say(&hello).await?;
    expect(line, "answer to EHLO", 250).await?;
    if !smtp.starttls {
        return Ok(());
    }
    line.say(STARTTLS).await?;
    expect(line, "answer to STARTTLS", 220).await?;
    line.secure().await?;
    // What it said before TLS does not count any more (RFC 3207, section 4.2).
    line.say(&hello).await?;
    expect(line, "answer to EHLO over TLS", 250).await
}

async fn expect(line: &mut Line, what: &'static str, wanted: u16) -> Result<(), Fault> {
    let (code, text) = line.hear(what, reply).await?;
    match code == wanted {
        true => Ok(()),
        false => Err(Fault::theirs(format!("the {what} is {code} {}, wanted {wanted}", printable(&text)))),
    }
}
