//! Tidegate between real clients and real servers.
//!
//! Needs the Debian packages that `tests/run` names. Each scenario starts its own servers on
//! free ports, in a directory of its own, and claims only what must hold for a balancer of
//! TCP connections: what cannot be promised (a session that its server cuts) is counted
//! exactly and found again in the access log, never tolerated in bulk.

#[path = "../support/mod.rs"]
mod support;

mod rig; // two servers behind Tidegate, and what every scenario asks of it afterwards

mod authority; // certificates for servers
mod mariadb;
mod nginx;
mod postgres;
mod redis;

mod checks; // health checks that speak to real servers, and what these say of it

mod patroni; // the example for Patroni, in front of a real cluster
mod failover; // a PostgreSQL replica takes over under load
mod churn; // ten thousand short connections leave nothing behind
mod relay; // byte for byte, both ways, in bulk
mod slow; // readers that stop for a while
