//! A server in the outside world: what is sent to it cannot be taken back. It writes down who asked for what, and under
//! which idempotency key.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use serde_json::json;
use tokio::net::TcpStream;

use crate::{
    chaos::traps::{At, Traps},
    http::{self, Request, Served, Site},
};

/// The header that the agent's grant names.
pub(crate) const KEY_HEADER: &str = "x-effect-key";

/// What came, by operation: the key of each time, if it had one.
pub(crate) type Ledger = BTreeMap<String, Vec<Option<String>>>;

pub(crate) struct Effects {
    served: Served,
    world: Arc<World>,
}

#[derive(Default)]
struct World {
    ledger: Mutex<Ledger>,
    traps: Arc<Traps>,
}

impl Effects {
    pub(crate) async fn start(traps: Arc<Traps>) -> Result<Effects> {
        let world = Arc::new(World { ledger: Mutex::default(), traps });
        Ok(Effects { served: Served::start(Arc::clone(&world)).await?, world })
    }

    pub(crate) fn authority(&self) -> String {
        self.served.address.to_string()
    }

    pub(crate) fn ledger(&self) -> Ledger {
        self.world.ledger.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Site for World {
    async fn answer(&self, request: Request, out: &mut TcpStream) -> io::Result<()> {
        let op = request.path().rsplit('/').next().unwrap_or_default().to_owned();
        let key = request.header(KEY_HEADER).map(str::to_owned);
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).entry(op.clone()).or_default().push(key);
        self.traps.pass(At::EffectReceived, None).await;
        http::json(out, "200 OK", &json!({"done": op})).await?;
        self.traps.pass(At::EffectAnswered, None).await;
        Ok(())
    }
}
