//! The migrations are part of this crate: a new file among them must rebuild it, or it would not be run.
#![expect(clippy::print_stdout, reason = "this is how a build script speaks to cargo")]

fn main() {
    println!("cargo::rerun-if-changed=../../migrations");
}
