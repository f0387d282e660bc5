//! The migrations are part of this crate: a new file among them must rebuild it, or it would not be run.

fn main() {
    println!("cargo::rerun-if-changed=../../migrations");
}
