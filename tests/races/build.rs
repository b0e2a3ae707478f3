//! Turns the switch of `src/sync.rs` to loom for this package alone, so that no flag has to be set and
//! nothing else is built anew.

fn main() {
    println!("cargo::rustc-cfg=loom");
    println!("cargo::rerun-if-changed=build.rs");
}
