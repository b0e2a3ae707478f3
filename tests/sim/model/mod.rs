//! What must hold, told plainly: a second opinion on each core, from lists and counts alone.
//!
//! Nothing here calls the product, and nothing is fast.

pub mod circuit; // a breaker
pub mod door; // who may come in
pub mod doubt; // a server that did not take its last client
pub mod line; // who waits, and whose turn it is
pub mod met; // what one client has met in its search
pub mod record; // what a server has done of late, and who of a pool is out
pub mod retries; // how many were in vain
pub mod ties; // who is known to whom
