//! Which pool serves a client. As yet a listener has one pool; rules by name and source go here.

use std::sync::Arc;

use crate::snapshot::{Listener, Pool};

pub(super) fn route(listener: &Listener) -> &Arc<Pool> {
    &listener.pool
}
