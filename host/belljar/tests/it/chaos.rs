//! Invariant 3 in short: a host is killed at every point that has a name, Postgres once, while customers work. The whole is
//! `cargo xtask chaos`.

use load::{
    Place,
    chaos::{self, Scale},
};

use crate::process::guests;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_or_charged_twice_while_hosts_are_killed() {
    let place = Place { belljar: env!("CARGO_BIN_EXE_belljar").into(), guests: guests() };
    chaos::run(&place, Scale::SHORT).await.unwrap();
}
