//! The unit file: systemd understands every line of it, and finds it tightly shut.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Of `systemd-analyze security`: 0 is shut, 10 is wide open.
const EXPOSURE_MAX: f64 = 2.0;

fn unit() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/tidegate.service")
}

fn analyze(arguments: &[&str], unit: &Path) -> Output {
    Command::new("systemd-analyze")
        .args(arguments)
        .arg(unit)
        .env("SYSTEMD_COLORS", "0")
        .output()
        .expect("systemd-analyze is needed for this test: install the package `systemd`")
}

/// A copy whose commands exist on this machine, since `verify` looks for them.
struct Copy(PathBuf);

impl Copy {
    fn new() -> Self {
        let directory = std::env::temp_dir().join(format!("tidegate-unit-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("made");
        let text = fs::read_to_string(unit()).expect("readable");
        assert!(text.contains("/usr/bin/tidegate"), "the unit names another binary");
        let text = text.replace("/usr/bin/tidegate", env!("CARGO_BIN_EXE_tidegate"));
        fs::write(directory.join("tidegate.service"), text).expect("written");
        Copy(directory)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // a leftover in the temporary directory harms nobody
    }
}

#[test]
fn systemd_understands_every_line() {
    let copy = Copy::new();
    let verified = analyze(&["verify", "--man=no"], &copy.0.join("tidegate.service"));
    let said = String::from_utf8_lossy(&verified.stderr);
    let ours: Vec<_> = said.lines().filter(|line| line.contains("tidegate")).collect();
    assert!(verified.status.success() && ours.is_empty(), "{said}");
}

#[test]
fn the_service_is_tightly_shut() {
    let rated = analyze(&["security", "--offline=yes", "--no-pager"], &unit());
    let said = String::from_utf8_lossy(&rated.stdout);
    let level = said
        .lines()
        .find_map(|line| line.split("Overall exposure level for tidegate.service: ").nth(1))
        .and_then(|rest| rest.split(' ').next())
        .and_then(|level| level.parse::<f64>().ok());
    assert!(level.is_some_and(|level| level <= EXPOSURE_MAX), "{said}");
}

#[test]
fn what_the_exit_codes_mean_is_what_the_unit_says() {
    let text = fs::read_to_string(unit()).expect("readable");
    for line in ["SuccessExitStatus=3", "RestartPreventExitStatus=77 78", "Restart=on-failure", "Type=notify"]
    {
        assert!(text.lines().any(|found| found == line), "{line}");
    }
}
