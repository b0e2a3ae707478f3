//! The configuration, read twice: as written (`file`), then as meant (`plan`).
//!
//! [`load`] and [`parse`] find every mistake in one run; [`render`] writes a plan back as a
//! file. Nothing here touches the network, and nothing outside interprets the operator's text.

mod open; // reading a file that may be anything
mod syntax; // what is not TOML, without its echo
pub mod file; // as written: tables, keys, values, each with its place
pub mod check; // all mistakes of meaning
pub mod plan; // as meant: every value decided
pub mod defaults; // what holds where nothing is written
pub mod units; // durations and shares
mod codes; // the name of each mistake
pub mod mistake; // where, what, and what to write instead
mod print; // mistakes as text
mod render; // a plan as a file

use std::path::Path;

pub use check::keys::ALL as KEYS;
pub use mistake::{Code, Mistake, Mistakes};
pub use open::refused;
pub use plan::Plan;
pub use print::{Colour, Format};
pub use render::render;

/// A configuration without errors.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub plan: Plan,
    /// What is worth a second look; often empty.
    pub warnings: Mistakes,
}

/// Reads a file; see [`parse`]. Bounded in time and memory, whatever the path leads to.
///
/// # Errors
/// Every mistake, also that the file cannot be read ([`Mistakes::is_permission`]).
pub fn load(path: &Path) -> Result<Loaded, Mistakes> {
    let name = path.display().to_string();
    parse(&name, &open::read(path)?)
}

/// Reads the text of a file that messages call `name`.
///
/// # Errors
/// Every mistake, and the warnings with them, in order of their places.
pub fn parse(name: &str, text: &str) -> Result<Loaded, Mistakes> {
    let mut mistakes = Mistakes::none(name, text);
    if text.trim().is_empty() {
        // Without the text, which has no line to show.
        mistakes = Mistakes::none(name, "");
        mistakes.add(check::empty());
        return Err(mistakes);
    }
    let file = file::File::read(text, &mut mistakes);
    let syntax = mistakes.list.len();
    let plan = check::check(&file, &mut mistakes);
    if !file.is_whole {
        // What was taken out of an unreadable file is not missing from it.
        let is_syntax = |mistake: &Mistake| mistake.code < Code::UnknownKey;
        let mut place = 0..;
        mistakes.list.retain(|mistake| {
            place.next().is_some_and(|place| place < syntax)
                || !(is_syntax(mistake) || mistake.code.is_about_absence())
        });
    }
    mistakes.finish();
    if mistakes.has_errors() { Err(mistakes) } else { Ok(Loaded { plan, warnings: mistakes }) }
}
