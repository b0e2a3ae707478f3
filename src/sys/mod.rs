//! Every raw system call, and all unsafe code. Safe functions outside, one file per kernel facility.
#![allow(unsafe_code)] // the one place: each block says which invariant it rests on

pub mod socket; // options of listening and connecting sockets
pub mod handshakes; // is a client on its way whom no listener shows yet
pub mod accept; // accept4(2) with the peer's address, in one call
pub mod pipe; // pipe2(2) and splice(2)
pub mod ring; // io_uring: operations in, events out
pub mod cores; // which cores we may use: affinity mask and cgroup quota
pub mod limits; // RLIMIT_NOFILE, and core dumps off
