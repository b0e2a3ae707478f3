//! The check in the operator's own words: each step says something, waits for something, or both.
//!
//! What is expected may stand anywhere behind what was expected before it; what comes in between is
//! skipped. All of it is bounded by what one check may hear.

use super::line::{Fault, Line};
use crate::config::plan::Step;
use crate::wire::{find, printable};

pub async fn ask(line: &mut Line, steps: &[Step]) -> Result<(), Fault> {
    let mut heard = Vec::new();
    for (number, step) in (1..).zip(steps) {
        line.say(&step.send).await?;
        wait_for(line, &step.expect, number, &mut heard).await.map_err(|fault| match fault {
            Fault::Theirs(why) => Fault::theirs(format!("step {number}: {why}")),
            ours @ Fault::Ours(_) => ours,
        })?;
    }
    Ok(())
}

/// Hears until the text has come, and takes it with all before it.
async fn wait_for(line: &mut Line, text: &[u8], number: usize, heard: &mut Vec<u8>) -> Result<(), Fault> {
    let mut searched = 0;
    loop {
        if let Some(at) = find(&heard[searched..], text) {
            heard.drain(..searched + at + text.len());
            return Ok(());
        }
        // Where the text has begun it may yet be completed; nothing is looked at twice besides.
        searched = heard.len().saturating_sub(text.len() - 1);
        let some = line.hear_some(format!("answer that step {number} expects")).await?;
        if some.is_empty() {
            let last = &heard[heard.len().saturating_sub(text.len().max(32))..];
            let said = if heard.is_empty() { "nothing".into() } else { format!("\"{}\"", printable(last)) };
            return Err(Fault::theirs(format!("heard {said} to the end, wanted \"{}\"", printable(text))));
        }
        heard.extend_from_slice(&some);
    }
}
