//! Which cores this process may use: its affinity mask, cut down to its cgroup's CPU quota.

use std::fs;
use std::path::Path;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The cores in our affinity mask, in order.
pub fn allowed() -> Vec<usize> {
    match sched_getaffinity(Pid::from_raw(0)) {
        Ok(set) => (0..CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false)).collect(),
        Err(_) => vec![0],
    }
}

/// How many workers can run at once: at least 1.
pub fn usable() -> usize {
    let allowed = allowed().len().max(1);
    quota(Path::new("/sys/fs/cgroup"), &fs::read_to_string("/proc/self/cgroup").unwrap_or_default())
        .map_or(allowed, |quota| allowed.min(quota.ceil().max(1.0) as usize))
}

/// Binds the calling thread to one core. Fails silently: a thread that floats still works.
pub fn pin_to(core: usize) {
    let mut set = CpuSet::new();
    if set.set(core).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}

/// The CPU quota in cores: the tightest along our own cgroup's path, in version 2
/// (`cpu.max`) or version 1 (`cpu.cfs_quota_us`). `None` is no quota.
fn quota(root: &Path, memberships: &str) -> Option<f64> {
    let mut tightest: Option<f64> = None;
    for line in memberships.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let base = match controllers {
            "" => root.to_path_buf(),
            names if names.split(',').any(|name| name == "cpu") => root.join("cpu"),
            _ => continue,
        };
        let own = base.join(path.trim_start_matches('/'));
        for folder in own.ancestors().take_while(|folder| folder.starts_with(&base)) {
            if let Some(cores) = quota_of_v2(folder).or_else(|| quota_of_v1(folder)) {
                tightest = Some(tightest.map_or(cores, |so_far| so_far.min(cores)));
            }
        }
    }
    tightest
}

fn quota_of_v2(folder: &Path) -> Option<f64> {
    let text = fs::read_to_string(folder.join("cpu.max")).ok()?;
    let (quota, period) = text.trim().split_once(' ')?;
    Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?) // "max" does not parse: no quota
}

fn quota_of_v1(folder: &Path) -> Option<f64> {
    let read = |name| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<f64>().ok();
    let (quota, period) = (read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?);
    (quota > 0.0).then_some(quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroup(files: &[(&str, &str)]) -> std::path::PathBuf {
        let root = std::env::temp_dir().join(format!("tidegate-cgroup-{:x}", fastrand::u64(..)));
        for (name, text) in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_tightest_quota_on_the_way_up_counts() {
        let root = cgroup(&[("a/cpu.max", "150000 100000\n"), ("a/b/cpu.max", "max 100000\n")]);
        assert_eq!(quota(&root, "0::/a/b\n"), Some(1.5));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn version_1_without_a_quota_says_minus_one() {
        let root = cgroup(&[("cpu/x/cpu.cfs_quota_us", "-1\n"), ("cpu/x/cpu.cfs_period_us", "100000\n")]);
        assert_eq!(quota(&root, "4:cpu,cpuacct:/x\n3:memory:/x\n"), None);
        fs::remove_dir_all(root).unwrap();
    }
}
