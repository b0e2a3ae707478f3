//! SIGHUP: reads the configuration anew and brings the world in line, or leaves it as it is.
//!
//! All or nothing: a configuration with a mistake, or with a change that only a restart can
//! make, changes nothing at all and says why. A reload never touches a connection.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;

use super::desk::{Desk, Reloaded};
use super::notify::Notifier;
use super::prober::Prober;
use crate::config::plan::Plan;

/// Reads the configuration: a plan, or every mistake as text.
pub type Loader = Box<dyn Fn() -> Result<Plan, String> + Send>;

pub struct Reloader {
    desk: Arc<Desk>,
    prober: Prober,
    notifier: Arc<Notifier>,
    /// `None`: the daemon runs without a file.
    loader: Option<Arc<Mutex<Loader>>>,
    /// The plan in use.
    plan: Plan,
}

impl Reloader {
    /// Takes over the prober, which follows every reload; it begins to check at once.
    pub fn new(
        desk: Arc<Desk>,
        mut prober: Prober,
        notifier: Arc<Notifier>,
        loader: Option<Loader>,
        plan: Plan,
    ) -> Self {
        prober.follow();
        let loader = loader.map(|loader| Arc::new(Mutex::new(loader)));
        Reloader { desk, prober, notifier, loader, plan }
    }

    /// Reloads each time that it is asked to; runs until dropped.
    pub async fn serve(mut self, asked: Arc<Notify>) {
        loop {
            asked.notified().await;
            self.reload().await;
        }
    }

    async fn reload(&mut self) {
        self.notifier.reloading();
        let verdict = match self.load().await {
            Ok(_) if self.desk.is_draining() => Err("ignored: the daemon is draining".to_owned()),
            Ok(plan) => self.apply(plan),
            Err(mistakes) => Err(mistakes),
        };
        let (ok, message) = match verdict {
            Ok(message) => {
                tracing::info!("reload: {message}");
                (true, message)
            }
            Err(message) => {
                tracing::error!("reload refused, nothing has changed: {message}");
                (false, message)
            }
        };
        self.desk.note_reload(Reloaded { at: Timestamp::now(), ok, message });
        if !self.desk.is_draining() {
            self.notifier.ready();
        }
    }

    /// On another thread: a file on a dead mount must not hold up checks and the admin API.
    async fn load(&self) -> Result<Plan, String> {
        let Some(loader) = self.loader.clone() else {
            return Err("there is no file: the daemon was started without one".into());
        };
        let load = move || {
            let loader = loader.lock().unwrap_or_else(PoisonError::into_inner);
            catch_unwind(AssertUnwindSafe(&*loader))
        };
        match spawn_blocking(load).await {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(_)) | Err(_) => Err("internal: reading the configuration panicked".into()),
        }
    }

    fn apply(&mut self, plan: Plan) -> Result<String, String> {
        let fixed = fixed_changes(&self.plan, &plan);
        if !fixed.is_empty() {
            return Err(format!("only a restart can change {}", fixed.join(", ")));
        }
        self.desk.apply(&plan);
        self.prober.follow();
        self.plan = plan;
        Ok(format!("generation {} is in use", self.desk.snapshot().generation))
    }
}

/// What differs between the plans and is fixed while the daemon runs: sockets, threads, logs.
fn fixed_changes(old: &Plan, new: &Plan) -> Vec<String> {
    let mut changes = Vec::new();
    for listener in &new.listeners {
        match old.listeners.iter().find(|other| other.name == listener.name) {
            None => changes.push(format!("the set of listeners (`{}` is new)", listener.name)),
            Some(before) if before.bind != listener.bind => {
                changes.push(format!("`listener.{}.bind`", listener.name));
            }
            Some(_) => {}
        }
    }
    for listener in &old.listeners {
        if !new.listeners.iter().any(|other| other.name == listener.name) {
            changes.push(format!("the set of listeners (`{}` is gone)", listener.name));
        }
    }
    let keys = [
        ("process.workers", old.process.workers != new.process.workers),
        ("process.pin_workers", old.process.pin_workers != new.process.pin_workers),
        ("process.io", old.process.io != new.process.io),
        ("admin.socket", old.admin.socket != new.admin.socket),
        ("admin.http", old.admin.http != new.admin.http),
        ("log.level", old.log.level != new.log.level),
        ("log.format", old.log.format != new.log.format),
        ("log.access", old.log.access != new.log.access),
    ];
    changes.extend(keys.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| format!("`{key}`")));
    changes
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::config::plan::{Auto, Level};
    use crate::control::fixture::{desk_of, plan_of, scratch, server};
    use crate::control::prober::Home;

    fn reloader(plan: &Plan, loader: impl Fn() -> Result<Plan, String> + Send + 'static) -> Reloader {
        let (desk, notifier) = (desk_of(plan), Arc::new(Notifier::default()));
        let prober = Prober::new(Arc::clone(&desk), &Home::here());
        Reloader::new(desk, prober, notifier, Some(Box::new(loader)), plan.clone())
    }

    #[tokio::test]
    async fn a_good_plan_is_applied_and_remembered() {
        let plan = plan_of("api", &["a"]);
        let mut next = plan.clone();
        next.pools[0].servers.push(server("b", 2));
        let mut reloader = reloader(&plan, move || Ok(next.clone()));
        reloader.reload().await;
        let now = reloader.desk.snapshot();
        assert_eq!((now.generation, now.pools["api"].servers.len()), (2, 2));
        let last = reloader.desk.last_reload().expect("remembered");
        assert_eq!((last.ok, last.message.as_str()), (true, "generation 2 is in use"));
    }

    #[tokio::test]
    async fn mistakes_leave_everything_as_it_is() {
        let plan = plan_of("api", &["a"]);
        let mut reloader = reloader(&plan, || Err("error[E0107]: no".into()));
        reloader.reload().await;
        assert_eq!(reloader.desk.snapshot().generation, 1);
        let last = reloader.desk.last_reload().expect("remembered");
        assert_eq!((last.ok, last.message.as_str()), (false, "error[E0107]: no"));
    }

    #[tokio::test]
    async fn what_only_a_restart_can_change_is_refused_as_a_whole() {
        let plan = plan_of("api", &["a"]);
        let mut next = plan.clone();
        next.pools[0].servers[0].weight = 1;
        next.process.workers = Auto::Set(9);
        let mut reloader = reloader(&plan, move || Ok(next.clone()));
        reloader.reload().await;
        let now = reloader.desk.snapshot();
        assert_eq!((now.generation, now.pools["api"].servers[0].plan.weight), (1, 100));
        let last = reloader.desk.last_reload().expect("remembered");
        assert_eq!(last.message, "only a restart can change `process.workers`");
    }

    #[tokio::test]
    async fn a_loader_that_panics_does_not_end_reloading() {
        let plan = plan_of("api", &["a"]);
        let is_first = std::sync::atomic::AtomicBool::new(true);
        let next = plan.clone();
        let mut reloader = reloader(&plan, move || {
            assert!(!is_first.swap(false, std::sync::atomic::Ordering::Relaxed), "on purpose");
            Ok(next.clone())
        });
        reloader.reload().await;
        assert!(!reloader.desk.last_reload().expect("remembered").ok);
        reloader.reload().await;
        assert!(reloader.desk.last_reload().expect("remembered").ok);
    }

    #[tokio::test]
    async fn without_a_file_a_reload_says_so_and_during_a_drain_it_is_ignored() {
        let plan = plan_of("api", &["a"]);
        let desk = desk_of(&plan);
        let (prober, notifier) =
            (Prober::new(Arc::clone(&desk), &Home::here()), Arc::new(Notifier::default()));
        let mut reloader = Reloader::new(Arc::clone(&desk), prober, notifier, None, plan.clone());
        reloader.reload().await;
        assert!(desk.last_reload().expect("remembered").message.starts_with("there is no file"));
        let same = plan.clone();
        reloader.loader = Some(Arc::new(Mutex::new(Box::new(move || Ok(same.clone())))));
        desk.begin_drain();
        reloader.reload().await;
        assert_eq!(desk.snapshot().generation, 1);
        assert!(!desk.last_reload().expect("remembered").ok);
    }

    #[tokio::test]
    async fn the_service_manager_hears_where_a_reload_begins_and_ends() {
        let path = scratch("reload");
        let manager = UnixDatagram::bind(&path).expect("binds");
        let plan = plan_of("api", &["a"]);
        let mut reloader = reloader(&plan, || Err("a mistake".into()));
        reloader.notifier = Arc::new(Notifier::to(path.as_os_str()).expect("connects"));
        reloader.reload().await;
        for expected in ["RELOADING=1\nMONOTONIC_USEC=", "READY=1\n"] {
            let mut message = [0; 64];
            let length = manager.recv(&mut message).expect("a message");
            assert!(message[..length].starts_with(expected.as_bytes()), "{expected}");
        }
        std::fs::remove_file(&path).expect("removed");
    }

    #[test]
    fn every_fixed_change_is_named() {
        let old = plan_of("api", &["a"]);
        let mut new = old.clone();
        new.listeners[0].bind.push("127.0.0.1:9".parse().expect("an address"));
        let mut added = new.listeners[0].clone();
        added.name = "extra".into();
        new.listeners.push(added);
        new.log.level = Level::Debug;
        new.admin.http = Some("127.0.0.1:9901".parse().expect("an address"));
        assert_eq!(
            fixed_changes(&old, &new),
            ["`listener.web.bind`", "the set of listeners (`extra` is new)", "`admin.http`", "`log.level`"]
        );
        assert_eq!(fixed_changes(&new, &old).len(), 4);
        assert!(fixed_changes(&old, &old).is_empty());
    }
}
