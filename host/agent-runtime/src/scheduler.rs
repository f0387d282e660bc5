//! Whose run goes next, when more runs wait than a process has places for. Pure: it holds numbers, and is told the time.
//!
//! A queue is one tenant's. Places go by stride scheduling in worker-seconds: a tenant's virtual time grows by how long its
//! runs hold places, those that still run included, divided by its plan's weight, and the least goes next. A pause saves
//! nothing up. A tenant in whose queue more waits than its plan lets run at once is over its plan: it is served behind
//! all others, and with them again once it has waited for `AGED`, so that nobody starves for good.

use std::{cmp::Ordering, collections::HashMap, time::Duration};

use domain::{TenantId, Timestamp};

/// A tenant over its plan that was given no place for this long is served like everybody else, once.
const AGED: Duration = Duration::from_secs(10);
/// Runs that may wait in a tenant's queue, for each that its plan lets run at once. More would wait longer than a client
/// does.
const QUEUED_PER_RUN: usize = 32;
/// Runs of one tenant that are accepted at the same time: they wait for its transactions, and more would wait longer than
/// a refusal takes.
const ARRIVING_MAX: usize = 64;
/// A tenant that wants nothing is remembered for this long, for its worker-seconds to be told.
const REMEMBERED: Duration = Duration::from_secs(15 * 60);

/// What its plan gives to a tenant. Both are greater than zero (`Plan::check`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entitlement {
    pub(crate) weight: u32,
    /// Runs at once, whichever process drives them.
    pub(crate) runs_max: u32,
}

impl Entitlement {
    fn queued_max(self) -> usize {
        (self.runs_max as usize).saturating_mul(QUEUED_PER_RUN)
    }
}

/// The order in which queues are served. The first is served first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    WithinPlan,
    /// More waits than the plan lets run at once.
    OverPlan,
}

impl Class {
    pub(crate) fn of(waiting: usize, entitlement: Entitlement) -> Class {
        if waiting > entitlement.runs_max as usize { Class::OverPlan } else { Class::WithinPlan }
    }
}

/// Why a run is not even queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// So many of the tenant's wait, or are being accepted.
    Tenant(usize),
    All,
}

/// What the database says of one tenant's queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) tenant: TenantId,
    pub(crate) entitlement: Entitlement,
    pub(crate) waiting: usize,
    /// Of those that wait, about how many could begin now. Of one conversation, only the first can.
    pub(crate) ready: usize,
    /// Driven by other processes.
    pub(crate) elsewhere: usize,
}

pub(crate) struct Scheduler {
    places: usize,
    taken: usize,
    /// Runs that may wait in all queues together.
    queued_max: usize,
    /// Of all queues.
    waiting: usize,
    /// Runs that are being accepted, and may come to wait.
    arriving: usize,
    /// The virtual time of now: where whoever comes from a pause begins.
    present: u128,
    queues: HashMap<TenantId, Queue>,
}

struct Queue {
    /// Unknown until its first run has been accepted or it was seen in the database.
    entitlement: Option<Entitlement>,
    /// Places that its runs hold here.
    here: usize,
    elsewhere: usize,
    /// Runs that are being accepted, and may come to wait.
    arriving: usize,
    waiting: usize,
    /// Of those that wait, about how many could begin now. Never more.
    ready: usize,
    /// When one came to wait last.
    waited_at: Option<Timestamp>,
    /// Microseconds given, each divided by the weight of the moment.
    virtual_time: u128,
    /// The sum of the moments at which the held places were taken, in microseconds.
    taken_at: i128,
    /// Since when it has been passed by: it was given a place, or wanted none.
    passed_by_since: Timestamp,
    /// When it was last seen to want something.
    wanted_at: Timestamp,
    over_plan: bool,
    spent: Duration,
}

impl Scheduler {
    pub(crate) fn new(places: usize, queued_max: usize) -> Self {
        Scheduler { places, taken: 0, queued_max, waiting: 0, arriving: 0, present: 0, queues: HashMap::new() }
    }

    /// Places that one tenant may hold: the last quarter is for the others, however long its runs take.
    fn most(&self) -> usize {
        self.places - self.places / 4
    }

    fn has_room(&self) -> bool {
        self.taken < self.places
    }

    /// A run comes. Until `arrived` it counts as one that waits.
    pub(crate) fn arrive(&mut self, tenant: TenantId, now: Timestamp) -> Result<(), Full> {
        if self.waiting + self.arriving >= self.queued_max {
            return Err(Full::All);
        }
        let queue = self.queue(tenant, now);
        let queued = queue.waiting + queue.arriving;
        // Of an unknown tenant nobody waits.
        let queued_max = queue.entitlement.map_or(usize::MAX, |entitlement| {
            entitlement.queued_max().saturating_add((entitlement.runs_max as usize).saturating_sub(queue.running()))
        });
        if queued >= queued_max || queue.arriving >= ARRIVING_MAX {
            return Err(Full::Tenant(queued));
        }
        queue.arriving += 1;
        self.arriving += 1;
        Ok(())
    }

    /// It has been accepted with a place, or refused, or it was queued before.
    pub(crate) fn arrived(&mut self, tenant: TenantId) {
        if let Some(queue) = self.queues.get_mut(&tenant)
            && queue.arriving > 0
        {
            queue.arriving -= 1;
            self.arriving -= 1;
        }
    }

    pub(crate) fn entitled(&mut self, tenant: TenantId, entitlement: Entitlement, now: Timestamp) {
        self.queue(tenant, now).entitlement = Some(entitlement);
    }

    /// Takes a place at once, where that passes nobody by: of those who wait and could go, none goes before.
    pub(crate) fn enter(&mut self, tenant: TenantId, now: Timestamp) -> bool {
        let (has_room, most, present) = (self.has_room(), self.most(), self.present);
        let queue = self.queue(tenant, now);
        if !has_room || queue.ready > 0 || !queue.has_room(most) {
            return false;
        }
        queue.wake(present);
        // Looking through all queues is dear, and most of the time nobody waits.
        if self.waiting > 0 {
            let mine = &self.queues[&tenant];
            if self.queues.values().any(|other| other.is_served(most) && other.before(mine, now).is_le()) {
                return false;
            }
        }
        let queue = self.queue(tenant, now);
        queue.take(now);
        self.taken += 1;
        true
    }

    /// A run was accepted and waits.
    pub(crate) fn wait(&mut self, tenant: TenantId, now: Timestamp) {
        let present = self.present;
        let queue = self.queue(tenant, now);
        queue.wake(present);
        if queue.waiting == 0 {
            queue.passed_by_since = now;
        }
        queue.waiting += 1;
        queue.ready += 1;
        queue.waited_at = Some(now);
        queue.classify(present);
        self.waiting += 1;
    }

    /// What the database said when it was asked, of every tenant of whom a run waits or is driven. Of all others,
    /// nothing waits.
    pub(crate) fn see(&mut self, seen: &[Seen], asked_at: Timestamp, now: Timestamp) {
        for seen in seen {
            self.queue(seen.tenant, now).entitlement = Some(seen.entitlement);
        }
        let of: HashMap<TenantId, &Seen> = seen.iter().map(|seen| (seen.tenant, seen)).collect();
        for (tenant, queue) in &mut self.queues {
            let seen = of.get(tenant);
            let (mut waiting, mut ready) = seen.map_or((0, 0), |seen| (seen.waiting, seen.ready));
            if queue.waited_at.is_some_and(|at| at >= asked_at) {
                // The database may not have known of it. A claim will tell.
                (waiting, ready) = (waiting.max(queue.waiting), ready.max(queue.ready));
            }
            if waiting > 0 && queue.waiting == 0 {
                queue.wake(self.present);
                queue.passed_by_since = queue.passed_by_since.max(now);
            }
            (queue.waiting, queue.ready) = (waiting, ready.min(waiting));
            queue.elsewhere = seen.map_or(0, |seen| seen.elsewhere);
            queue.classify(self.present);
            if queue.wants() {
                queue.wanted_at = now;
            } else {
                // Its plan may be another when it comes again.
                queue.entitlement = None;
            }
        }
        self.queues.retain(|_, queue| now.since(queue.wanted_at) < REMEMBERED);
        self.waiting = self.queues.values().map(|queue| queue.waiting).sum();
    }

    /// The tenant whose run goes next, with its place taken. Where it turns out that none can begin: `miss`.
    pub(crate) fn next(&mut self, now: Timestamp) -> Option<TenantId> {
        if !self.has_room() {
            return None;
        }
        let most = self.most();
        let served = self.queues.iter_mut().filter(|(_, queue)| queue.is_served(most));
        let (tenant, queue) = served.min_by(|(_, a), (_, b)| a.before(b, now))?;
        self.present = self.present.max(queue.virtual_now(now));
        queue.take(now);
        queue.waiting -= 1;
        queue.ready -= 1;
        queue.classify(self.present);
        self.taken += 1;
        self.waiting = self.waiting.saturating_sub(1);
        Some(*tenant)
    }

    /// None of the tenant's runs could begin: the place is handed back, and nothing is tried until one ends, one is
    /// queued or the database says otherwise.
    pub(crate) fn miss(&mut self, tenant: TenantId, taken_at: Timestamp, now: Timestamp) {
        self.give_back(tenant, taken_at, now);
        if let Some(queue) = self.queues.get_mut(&tenant) {
            queue.ready = 0;
            queue.waiting += 1;
            self.waiting += 1;
        }
    }

    /// A run that nobody may let wait: it was begun before, by a process that died.
    pub(crate) fn take(&mut self, tenant: TenantId, now: Timestamp) {
        let present = self.present;
        let queue = self.queue(tenant, now);
        queue.wake(present);
        queue.take(now);
        self.taken += 1;
    }

    /// A run has left its place.
    pub(crate) fn leave(&mut self, tenant: TenantId, taken_at: Timestamp, now: Timestamp) {
        self.give_back(tenant, taken_at, now);
        if let Some(queue) = self.queues.get_mut(&tenant)
            && queue.waiting > 0
        {
            // The next of its conversation may begin.
            queue.ready = queue.ready.max(1);
        }
    }

    fn give_back(&mut self, tenant: TenantId, taken_at: Timestamp, now: Timestamp) {
        let Some(queue) = self.queues.get_mut(&tenant) else { return };
        let held = now.since(taken_at);
        queue.here = queue.here.saturating_sub(1);
        queue.taken_at -= i128::from(taken_at.unix_us());
        queue.virtual_time += held.as_micros() / queue.weight();
        queue.spent += held;
        self.taken = self.taken.saturating_sub(1);
    }

    /// Worker-seconds that the tenant's runs have held here, those that run now included.
    pub(crate) fn spent(&self, tenant: TenantId, now: Timestamp) -> Duration {
        let micros = |queue: &Queue| u64::try_from(queue.held_us(now)).unwrap_or(u64::MAX);
        self.queues.get(&tenant).map(|queue| queue.spent + Duration::from_micros(micros(queue))).unwrap_or_default()
    }

    fn queue(&mut self, tenant: TenantId, now: Timestamp) -> &mut Queue {
        self.queues.entry(tenant).or_insert_with(|| Queue {
            entitlement: None,
            here: 0,
            elsewhere: 0,
            arriving: 0,
            waiting: 0,
            ready: 0,
            waited_at: None,
            virtual_time: 0,
            taken_at: 0,
            passed_by_since: now,
            wanted_at: now,
            over_plan: false,
            spent: Duration::ZERO,
        })
    }
}

impl Queue {
    fn weight(&self) -> u128 {
        u128::from(self.entitlement.map_or(1, |entitlement| entitlement.weight).max(1))
    }

    fn running(&self) -> usize {
        self.here + self.elsewhere
    }

    fn wants(&self) -> bool {
        self.here + self.arriving + self.waiting > 0
    }

    fn has_room(&self, most: usize) -> bool {
        let runs_max = self.entitlement.map_or(1, |entitlement| entitlement.runs_max) as usize;
        self.here < most && self.running() < runs_max
    }

    fn is_served(&self, most: usize) -> bool {
        self.ready > 0 && self.has_room(most)
    }

    /// Who wants something after a pause has saved nothing up.
    fn wake(&mut self, present: u128) {
        if self.here == 0 && self.waiting == 0 {
            self.virtual_time = self.virtual_time.max(present);
        }
    }

    fn take(&mut self, now: Timestamp) {
        self.here += 1;
        self.taken_at += i128::from(now.unix_us());
        self.passed_by_since = now;
    }

    /// Nor has who was behind the others for being over its plan.
    fn classify(&mut self, present: u128) {
        let class = self.entitlement.map_or(Class::WithinPlan, |entitlement| Class::of(self.waiting, entitlement));
        let over_plan = class == Class::OverPlan;
        if self.over_plan && !over_plan {
            self.virtual_time = self.virtual_time.max(present);
        }
        self.over_plan = over_plan;
    }

    fn held_us(&self, now: Timestamp) -> u128 {
        u128::try_from(i128::from(now.unix_us()) * self.here as i128 - self.taken_at).unwrap_or(0)
    }

    fn virtual_now(&self, now: Timestamp) -> u128 {
        self.virtual_time + self.held_us(now) / self.weight()
    }

    fn class(&self, now: Timestamp) -> Class {
        match self.over_plan && now.since(self.passed_by_since) < AGED {
            true => Class::OverPlan,
            false => Class::WithinPlan,
        }
    }

    fn before(&self, other: &Queue, now: Timestamp) -> Ordering {
        let key = |queue: &Queue| (queue.class(now), queue.virtual_now(now));
        // Who was given nothing yet shares by weight as well.
        let held = (self.here as u128 * other.weight()).cmp(&(other.here as u128 * self.weight()));
        key(self).cmp(&key(other)).then(held)
    }
}

#[cfg(test)]
mod tests;
