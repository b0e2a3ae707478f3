//! The check of a mail server: its greeting, EHLO, and QUIT.

use super::line::{Fault, Line};
use crate::wire::printable;
use crate::wire::smtp::{QUIT, ehlo, reply};

pub async fn ask(line: &mut Line) -> Result<(), Fault> {
    expect(line, "greeting", 220).await?;
    line.will_say(QUIT);
    let from = line.local()?;
    line.say(&ehlo(from)).await?;
    expect(line, "answer to EHLO", 250).await
}

async fn expect(line: &mut Line, what: &'static str, wanted: u16) -> Result<(), Fault> {
    let (code, text) = line.hear(what, reply).await?;
    match code == wanted {
        true => Ok(()),
        false => Err(Fault::theirs(format!("the {what} is {code} {}, wanted {wanted}", printable(&text)))),
    }
}
