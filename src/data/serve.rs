//! The story of one connection, on one screen.
//!
//! Each step takes what the last one returned; whatever it holds (a place, a lease, a socket)
//! is given back when it is dropped, so a step may end the story at any point with `?`, and an
//! order from outside may drop it in the middle.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use super::accept::Client;
use super::admit::admit;
use super::brake::brake;
use super::close::{close, cut_off};
use super::connect::connect;
use super::first_byte::first_byte;
use super::relay::{patience, relay};
use super::route::route;
use super::visit::Visit;
use super::worker::Worker;
use crate::core::outcome::Close;
use crate::net::{Either, either};
use crate::snapshot::Listener;

/// Serves one client until the connection has ended, and tells how.
pub(super) async fn serve(client: Client, visit: Rc<Visit>, world: Arc<Listener>, worker: Rc<Worker>) {
    let end = {
        let cut = pin!(visit.cut.raised());
        let life = pin!(live(client, &visit, world, &worker));
        match either(cut, life).await {
            Either::Left(cut) => cut_off(cut, &visit),
            Either::Right(Ok(end) | Err(end)) => end,
        }
    };
    close(&visit, end, &worker);
}

/// The steps, in order. `Ok` is an end after bytes could flow, `Err` one before that.
async fn live(client: Client, visit: &Visit, world: Arc<Listener>, worker: &Worker) -> Result<Close, Close> {
    let admitted = admit(client)?;
    let (admitted, world) = first_byte(admitted, world, visit, worker).await?;
    let way = route(&world, visit, worker)?;
    // Boxed, so that what connecting needs is given back before the connection idles.
    let joined = Box::pin(connect(admitted, way, visit, worker)).await?;
    let (patience, brake) = (patience(&world, &joined.pool), brake(&world.plan, visit, worker));
    drop(world); // an open connection holds no snapshot
    Ok(relay(joined, patience, brake, visit, worker).await)
}
