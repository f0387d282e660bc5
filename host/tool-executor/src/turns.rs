//! Who goes next, when more tenants want a thing than there is of it: processor cores, places of the engine's pool,
//! turns at the compiler. One rule for all three, pure; below it what waits.
//!
//! The rule is stride scheduling (Waldspurger and Weihl, 1995): each tenant has a virtual time that grows by what it was
//! given, divided by its weight, and the tenant with the least goes next. Who comes back after a pause begins at the
//! present: a pause saves nothing up, and nobody who waits is passed by for ever.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use domain::TenantId;
use tool_api::Share;

/// Tenants that are remembered while others want something. More are looked through, and forgotten where they want
/// nothing and their virtual time has passed.
const KNOWN_MAX: usize = 64;

/// Who holds what, and who waits. `W` is what a waiting one left to be called with.
pub(crate) struct Turns<W> {
    capacity: usize,
    taken: usize,
    waiting: usize,
    tickets: u64,
    parties: HashMap<TenantId, Party<W>>,
    /// The virtual time of now: where whoever comes back from a pause begins.
    present: u128,
}

struct Party<W> {
    share: Share,
    taken: usize,
    /// Nanoseconds given, divided by the weight of the moment.
    virtual_time: u128,
    waiting: VecDeque<(Ticket, W)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Ticket(u64);

impl<W> Turns<W> {
    pub(crate) fn new(capacity: usize) -> Self {
        Turns { capacity: capacity.max(1), taken: 0, waiting: 0, tickets: 0, parties: HashMap::new(), present: 0 }
    }

    /// Takes a turn at once, where that passes nobody by.
    pub(crate) fn enter(&mut self, tenant: TenantId, share: Share) -> bool {
        // Whoever waits while there is room is at its own most.
        let (room, present) = (self.taken < self.capacity, self.present);
        let party = self.party(tenant, share);
        if !room || !party.waiting.is_empty() || !party.has_room() {
            return false;
        }
        party.virtual_time = party.virtual_time.max(present);
        party.taken += 1;
        self.taken += 1;
        true
    }

    /// Waits behind the tenant's others.
    pub(crate) fn wait(&mut self, tenant: TenantId, share: Share, waker: W) -> Ticket {
        self.tickets += 1;
        self.waiting += 1;
        let (ticket, present) = (Ticket(self.tickets), self.present);
        let party = self.party(tenant, share);
        if party.taken == 0 && party.waiting.is_empty() {
            party.virtual_time = party.virtual_time.max(present);
        }
        party.waiting.push_back((ticket, waker));
        ticket
    }

    /// The place in line, to leave another waker there. `None`: it has been given its turn.
    pub(crate) fn waiting(&mut self, tenant: TenantId, ticket: Ticket) -> Option<&mut W> {
        let line = &mut self.parties.get_mut(&tenant)?.waiting;
        line.iter_mut().find(|(waiting, _)| *waiting == ticket).map(|(_, waker)| waker)
    }

    /// Leaves the line. False: the turn was given already, and has to be handed back.
    pub(crate) fn give_up(&mut self, tenant: TenantId, ticket: Ticket) -> bool {
        let Some(party) = self.parties.get_mut(&tenant) else { return false };
        let before = party.waiting.len();
        party.waiting.retain(|(waiting, _)| *waiting != ticket);
        let left = before - party.waiting.len();
        self.waiting -= left;
        left > 0
    }

    /// Hands a turn back after it was used for `spent`. Whoever is given it is called with what it left.
    pub(crate) fn leave(&mut self, tenant: TenantId, spent: Duration) -> Option<W> {
        if let Some(party) = self.parties.get_mut(&tenant) {
            party.taken = party.taken.saturating_sub(1);
            party.virtual_time += spent.as_nanos() / u128::from(party.share.weight.max(1));
            self.taken = self.taken.saturating_sub(1);
            if self.waiting == 0 {
                // Nobody was passed by, so that nobody is owed anything.
                self.present = self.present.max(party.virtual_time);
                if party.taken == 0 {
                    self.parties.remove(&tenant);
                }
                return None;
            }
        }
        // Time goes by as if all who want something were served at once, each by its weight.
        let served = self.parties.iter().filter(|(who, party)| **who == tenant || party.wants());
        let weights: u128 = served.map(|(_, party)| u128::from(party.share.weight.max(1))).sum();
        self.present += spent.as_nanos() / weights.max(1);
        if self.parties.len() > KNOWN_MAX {
            let present = self.present;
            self.parties.retain(|_, party| party.wants() || party.virtual_time > present);
        }
        self.next()
    }

    fn next(&mut self) -> Option<W> {
        if self.taken >= self.capacity {
            return None;
        }
        let ready = self.parties.values_mut().filter(|party| !party.waiting.is_empty() && party.has_room());
        let party = ready.min_by_key(|party| (party.virtual_time, party.taken))?;
        let (_, waker) = party.waiting.pop_front()?;
        self.waiting -= 1;
        party.taken += 1;
        self.taken += 1;
        self.present = self.present.max(party.virtual_time);
        Some(waker)
    }

    fn party(&mut self, tenant: TenantId, share: Share) -> &mut Party<W> {
        let party = self.parties.entry(tenant).or_insert_with(|| Party {
            share,
            taken: 0,
            virtual_time: 0,
            waiting: VecDeque::new(),
        });
        party.share = share;
        party
    }
}

impl<W> Party<W> {
    fn wants(&self) -> bool {
        self.taken > 0 || !self.waiting.is_empty()
    }

    fn has_room(&self) -> bool {
        self.taken < self.share.calls_max as usize
    }
}

/// A number of turns that tasks wait for.
#[derive(Clone)]
pub(crate) struct Line(Arc<Mutex<Turns<Waker>>>);

impl Line {
    pub(crate) fn new(capacity: usize) -> Self {
        Line(Arc::new(Mutex::new(Turns::new(capacity))))
    }

    /// The turns stay whole whatever panicked while they were held.
    fn turns(&self) -> MutexGuard<'_, Turns<Waker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hand_back(&self, tenant: TenantId, spent: Duration) {
        let next = self.turns().leave(tenant, spent);
        if let Some(waker) = next {
            waker.wake();
        }
    }

    /// A seat from which a tenant asks for turns. Dropping it gives up whatever it waits for.
    pub(crate) fn seat(&self, tenant: TenantId, share: Share) -> Seat {
        Seat { line: self.clone(), tenant, share, ticket: None }
    }

    /// Waits for a turn and holds it until the guard is dropped.
    pub(crate) async fn turn(&self, tenant: TenantId, share: Share) -> Turn {
        let mut seat = self.seat(tenant, share);
        std::future::poll_fn(|cx| seat.poll_enter(cx)).await;
        Turn { line: self.clone(), tenant, since: Instant::now() }
    }
}

/// Held: one turn of a `Line`. What it is charged is the time that it was held.
pub(crate) struct Turn {
    line: Line,
    tenant: TenantId,
    since: Instant,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.line.hand_back(self.tenant, self.since.elapsed());
    }
}

/// See `Line::seat`.
pub(crate) struct Seat {
    line: Line,
    tenant: TenantId,
    share: Share,
    ticket: Option<Ticket>,
}

impl Seat {
    fn poll_enter(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut turns = self.line.turns();
        match self.ticket {
            None if turns.enter(self.tenant, self.share) => Poll::Ready(()),
            None => {
                self.ticket = Some(turns.wait(self.tenant, self.share, cx.waker().clone()));
                Poll::Pending
            }
            Some(ticket) => match turns.waiting(self.tenant, ticket) {
                Some(waker) => {
                    waker.clone_from(cx.waker());
                    Poll::Pending
                }
                None => {
                    self.ticket = None;
                    Poll::Ready(())
                }
            },
        }
    }

    /// Polls work for as long as one poll takes, when it is this tenant's turn.
    pub(crate) fn poll<T>(&mut self, cx: &mut Context<'_>, work: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        if self.poll_enter(cx).is_pending() {
            return Poll::Pending;
        }
        // A guard, so that a panic hands the turn back as well.
        let _turn = Turn { line: self.line.clone(), tenant: self.tenant, since: Instant::now() };
        work(cx)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            let waited = self.line.turns().give_up(self.tenant, ticket);
            if !waited {
                self.line.hand_back(self.tenant, Duration::ZERO);
            }
        }
    }
}

#[cfg(test)]
mod tests;
