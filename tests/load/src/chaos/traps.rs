//! Points outside of the host at which it can be ended: the fakes wait at them while somebody pulls the trigger.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Where a request has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    ModelAsked,
    /// Half of the answer is written.
    ModelMidway,
    ModelAnswered,
    /// The effect has happened, and nobody was told.
    EffectReceived,
    EffectAnswered,
}

impl At {
    pub(crate) const ALL: [At; 5] =
        [At::ModelAsked, At::ModelMidway, At::ModelAnswered, At::EffectReceived, At::EffectAnswered];

    pub(crate) fn name(self) -> &'static str {
        match self {
            At::ModelAsked => "outside: the model is asked",
            At::ModelMidway => "outside: half of the model's answer is out",
            At::ModelAnswered => "outside: the model has answered",
            At::EffectReceived => "outside: an effect has happened",
            At::EffectAnswered => "outside: an effect was answered",
        }
    }
}

/// Those that are set. Each springs once.
#[derive(Default)]
pub(crate) struct Traps(Mutex<Vec<Trap>>);

struct Trap {
    at: At,
    host: usize,
    spring: oneshot::Sender<Sprung>,
}

/// Whoever has come to the point waits until this is dropped.
pub(crate) struct Sprung {
    _let_go: oneshot::Sender<()>,
}

impl Traps {
    /// The next one of this host that comes to this point is held. An effect tells no host: any one is.
    pub(crate) fn set(&self, at: At, host: usize) -> oneshot::Receiver<Sprung> {
        let (spring, sprung) = oneshot::channel();
        self.lock().push(Trap { at, host, spring });
        sprung
    }

    /// Those of a host that has ended.
    pub(crate) fn clear(&self, host: usize) {
        self.lock().retain(|trap| trap.host != host);
    }

    pub(crate) fn is_set(&self, at: At, host: Option<usize>) -> bool {
        self.lock().iter().any(|trap| trap.fits(at, host))
    }

    pub(crate) async fn pass(&self, at: At, host: Option<usize>) {
        let trap = {
            let mut traps = self.lock();
            let found = traps.iter().position(|trap| trap.fits(at, host));
            found.map(|found| traps.swap_remove(found))
        };
        let Some(trap) = trap else { return };
        let (let_go, gone) = oneshot::channel();
        if trap.spring.send(Sprung { _let_go: let_go }).is_ok() {
            let _ = gone.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Trap>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Trap {
    fn fits(&self, at: At, host: Option<usize>) -> bool {
        self.at == at && host.is_none_or(|host| host == self.host)
    }
}
