//! The man pages in `doc/man` are those of this command line. `TIDEGATE_BLESS=1` writes them anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn pages_in(folder: &Path) -> BTreeMap<String, String> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (name_of(&path), fs::read_to_string(&path).unwrap())).collect()
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn the_man_pages_tell_what_the_command_line_takes() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("doc/man");
    let made = env::temp_dir().join(format!("tidegate-man-{}", std::process::id()));
    let target: &PathBuf = if env::var_os("TIDEGATE_BLESS").is_some() { &shipped } else { &made };
    fs::create_dir_all(target).unwrap();
    clap_mangen::generate_to(tidegate::cli::command(), target).unwrap();
    let (made, shipped) = (pages_in(target), pages_in(&shipped));
    let _ = fs::remove_dir_all(env::temp_dir().join(format!("tidegate-man-{}", std::process::id())));
    assert!(made.contains_key("tidegate.1") && made.contains_key("tidegate-run.1"), "{:?}", made.keys());
    for (name, page) in &made {
        assert_eq!(shipped.get(name), Some(page), "doc/man/{name} is not what this command line says");
    }
    assert_eq!(made.len(), shipped.len(), "a page of a command that is no more");
}
