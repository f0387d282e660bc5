//! The rule, simulated: no clock, no database, no task.

use std::collections::VecDeque;

use super::*;

fn tenant(n: u128) -> TenantId {
    uuid::Uuid::from_u128(n).into()
}

fn plan(weight: u32, runs_max: u32) -> Entitlement {
    Entitlement { weight, runs_max }
}

/// A process and its tenants. Each run takes as long as its tenant's do; time jumps from one end to the next.
struct House {
    scheduler: Scheduler,
    now: Timestamp,
    running: Vec<Running>,
    /// When each waiting run came.
    waiting: HashMap<TenantId, VecDeque<Timestamp>>,
    takes: HashMap<TenantId, Duration>,
    /// Worker-time given since the last look.
    given: HashMap<TenantId, Duration>,
    longest_wait: HashMap<TenantId, Duration>,
}

#[derive(Clone, Copy)]
struct Running {
    tenant: TenantId,
    began: Timestamp,
    ends: Timestamp,
}

impl House {
    fn new(places: usize) -> House {
        House {
            scheduler: Scheduler::new(places, usize::MAX),
            now: Timestamp::from_unix_us(1_000_000),
            running: Vec::new(),
            waiting: HashMap::new(),
            takes: HashMap::new(),
            given: HashMap::new(),
            longest_wait: HashMap::new(),
        }
    }

    fn tenant(&mut self, n: u128, plan: Entitlement, takes: Duration) {
        self.scheduler.entitled(tenant(n), plan, self.now);
        self.takes.insert(tenant(n), takes);
    }

    fn come(&mut self, n: u128) {
        let tenant = tenant(n);
        if self.scheduler.enter(tenant, self.now) {
            self.begin(tenant);
        } else {
            self.scheduler.wait(tenant, self.now);
            self.waiting.entry(tenant).or_default().push_back(self.now);
            self.fill();
        }
    }

    fn begin(&mut self, tenant: TenantId) {
        let ends = self.now.plus(self.takes[&tenant]);
        self.running.push(Running { tenant, began: self.now, ends });
    }

    fn fill(&mut self) {
        while let Some(tenant) = self.scheduler.next(self.now) {
            let came = self.waiting.get_mut(&tenant).and_then(VecDeque::pop_front).unwrap();
            let longest = self.longest_wait.entry(tenant).or_default();
            *longest = (*longest).max(self.now.since(came));
            self.begin(tenant);
        }
    }

    /// The next run ends; the next ones begin. `again`: whose next run comes at once.
    fn step(&mut self, again: impl Fn(TenantId) -> bool) -> bool {
        let Some(at) = (0..self.running.len()).min_by_key(|at| self.running[*at].ends) else { return false };
        let Running { tenant, began, ends } = self.running.swap_remove(at);
        self.now = self.now.max(ends);
        *self.given.entry(tenant).or_default() += self.now.since(began);
        self.scheduler.leave(tenant, began, self.now);
        self.fill();
        if again(tenant) {
            let n = tenant.uuid().as_u128();
            self.come(n);
        }
        true
    }

    fn until(&mut self, end: Timestamp, again: impl Fn(TenantId) -> bool) {
        while self.running.iter().any(|run| run.ends <= end) {
            self.step(&again);
        }
        self.now = self.now.max(end);
    }

    /// The part of all worker-time that went to a tenant.
    fn share(&self, n: u128) -> f64 {
        let all: Duration = self.given.values().sum();
        self.given.get(&tenant(n)).copied().unwrap_or_default().as_secs_f64() / all.as_secs_f64()
    }
}

const SHORT: Duration = Duration::from_millis(20);
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_full_queue_refuses_and_says_whose_it_is() {
    let now = Timestamp::from_unix_us(0);
    let mut scheduler = Scheduler::new(2, 100);
    scheduler.entitled(tenant(1), plan(1, 1), now);
    // One may run, and 32 may wait.
    for _ in 0..33 {
        assert_eq!(scheduler.arrive(tenant(1), now), Ok(()));
    }
    assert_eq!(scheduler.arrive(tenant(1), now), Err(Full::Tenant(33)));
    assert_eq!(scheduler.arrive(tenant(2), now), Ok(()), "another's queue is its own");
    scheduler.arrived(tenant(1));
    assert_eq!(scheduler.arrive(tenant(1), now), Ok(()), "one was not accepted after all");
    for n in 3..69 {
        assert_eq!(scheduler.arrive(tenant(n), now), Ok(()));
    }
    assert_eq!(scheduler.arrive(tenant(70), now), Err(Full::All));
}

#[test]
fn a_tenant_runs_no_more_than_its_plan_says_wherever_its_runs_are() {
    let now = Timestamp::from_unix_us(0);
    let mut scheduler = Scheduler::new(16, 100);
    let seen =
        |waiting, elsewhere| Seen { tenant: tenant(1), entitlement: plan(1, 4), waiting, ready: waiting, elsewhere };
    scheduler.see(&[seen(9, 2)], now, now);
    assert!(!scheduler.enter(tenant(1), now), "its own wait before");
    assert_eq!([(); 3].map(|()| scheduler.next(now)), [Some(tenant(1)), Some(tenant(1)), None]);
    scheduler.see(&[seen(7, 0)], now, now);
    assert_eq!([(); 3].map(|()| scheduler.next(now)), [Some(tenant(1)), Some(tenant(1)), None]);
}

#[test]
fn the_last_quarter_of_the_places_is_for_the_others() {
    let mut house = House::new(8);
    house.tenant(1, plan(8, 100), SECOND * 3600);
    house.tenant(2, plan(1, 100), SHORT);
    for _ in 0..100 {
        house.come(1);
    }
    assert_eq!(house.running.len(), 6);
    house.come(2);
    assert_eq!(house.running.len(), 7, "at once");
}

#[test]
fn worker_seconds_are_shared_by_weight_whatever_a_run_takes() {
    let mut house = House::new(8);
    // Within their plans, all of them: so many may run at once.
    house.tenant(1, plan(1, 1000), SHORT);
    house.tenant(2, plan(1, 1000), SHORT * 10);
    house.tenant(3, plan(6, 1000), SHORT * 3);
    for n in [1, 2, 3] {
        for _ in 0..100 {
            house.come(n);
        }
    }
    // The places that were free went to who came first.
    house.until(house.now.plus(SECOND * 20), |_| true);
    house.given.clear();
    house.until(house.now.plus(SECOND * 400), |_| true);
    // Six of eight places are the most that one may hold, which is what it is entitled to.
    for (n, fair) in [(1, 0.125), (2, 0.125), (3, 0.75)] {
        let share = house.share(n);
        assert!((share / fair - 1.0).abs() < 0.05, "tenant {n} got {share}, fair is {fair}");
    }
}

#[test]
fn a_flood_waits_behind_who_is_within_its_plan() {
    let mut house = House::new(4);
    house.tenant(1, plan(8, 32), SECOND);
    house.tenant(2, plan(8, 32), SHORT);
    for _ in 0..1000 {
        house.come(1);
    }
    for _ in 0..200 {
        house.until(house.now.plus(SECOND / 5), |_| false);
        house.come(2);
    }
    assert_eq!(house.longest_wait.get(&tenant(2)), None, "5 a second, and never one that waits");
    assert!(house.share(1) > 0.9, "the flood has all that is left: {}", house.share(1));
}

#[test]
fn who_is_over_its_plan_is_served_last_and_never_starves() {
    let mut house = House::new(4);
    // Ten tenants within their plans keep the four places busy for ever.
    for n in 1..=10 {
        house.tenant(n, plan(1, 4), SHORT);
    }
    house.tenant(99, plan(1, 4), SHORT);
    for n in (1..=10).chain([99; 64]) {
        house.come(n);
    }
    let begun = house.now;
    house.until(house.now.plus(SECOND * 100), |of| of != tenant(99));
    let given = house.given[&tenant(99)].as_secs_f64() / SHORT.as_secs_f64();
    let aged = house.now.since(begun).as_secs_f64() / AGED.as_secs_f64();
    assert!((given - aged).abs() <= 2.0, "one run each time it has aged: {given} runs, aged {aged} times");
    // When no more wait than its plan lets run at once, it is served like the others, and is owed nothing.
    while !house.waiting[&tenant(99)].is_empty() {
        house.until(house.now.plus(SECOND), |of| of != tenant(99));
    }
    (0..3).for_each(|_| house.come(99));
    house.given.clear();
    house.until(house.now.plus(SECOND * 4), |_| true);
    let share = house.share(99);
    assert!((0.06..0.12).contains(&share), "one of eleven: {share}");
}

#[test]
fn a_pause_saves_nothing_up() {
    let mut house = House::new(2);
    house.tenant(1, plan(1, 100), SHORT);
    house.tenant(2, plan(1, 100), SHORT);
    for _ in 0..10 {
        house.come(1);
    }
    house.until(house.now.plus(SECOND * 60), |_| true);
    for _ in 0..10 {
        house.come(2);
    }
    house.given.clear();
    house.until(house.now.plus(SECOND * 10), |_| true);
    let share = house.share(2);
    assert!((0.45..0.55).contains(&share), "{share}");
}

#[test]
fn thousands_of_tenants_share_a_process() {
    let mut house = House::new(64);
    // Of each hundred, ninety send a run now and then, nine always have some, and one floods.
    const TENANTS: u128 = 2000;
    let kind = |n: u128| n % 100;
    for n in 0..TENANTS {
        house.tenant(n, plan(if n % 2 == 0 { 8 } else { 1 }, 32), SHORT * 5);
        let runs = match kind(n) {
            0 => 200,
            1..10 => 4,
            _ => 1,
        };
        for _ in 0..runs {
            house.come(n);
        }
    }
    house.until(house.now.plus(SECOND * 30), |of| kind(of.uuid().as_u128()) < 10);
    let least =
        (0..TENANTS).filter(|n| kind(*n) < 10).map(|n| house.given.get(&tenant(n)).copied().unwrap_or_default());
    assert!(least.min() >= Some(SHORT * 5), "nobody was passed by for good");
    assert!((0..TENANTS).all(|n| house.given.contains_key(&tenant(n))), "everybody was served");
    // Of those who always have some within their plan, by weight: eight times the worker-time.
    let given = |heavy: bool| -> f64 {
        let always = (0..TENANTS).filter(|n| (1..10).contains(&kind(*n)) && (n % 2 == 0) == heavy);
        let times: Vec<f64> = always.map(|n| house.given[&tenant(n)].as_secs_f64()).collect();
        times.iter().sum::<f64>() / times.len() as f64
    };
    let ratio = given(true) / given(false);
    assert!((7.0..9.0).contains(&ratio), "{ratio}");
}

#[test]
fn what_the_database_says_corrects_what_was_believed() {
    let (asked, now) = (Timestamp::from_unix_us(10), Timestamp::from_unix_us(20));
    let mut scheduler = Scheduler::new(4, 100);
    scheduler.entitled(tenant(1), plan(1, 4), asked);
    scheduler.wait(tenant(1), Timestamp::from_unix_us(5));
    scheduler.see(&[], asked, now);
    assert_eq!(scheduler.next(now), None, "another process took it");
    scheduler.entitled(tenant(1), plan(1, 4), asked);
    scheduler.wait(tenant(1), Timestamp::from_unix_us(15));
    scheduler.see(&[], asked, now);
    assert_eq!(scheduler.next(now), Some(tenant(1)), "it came after the database was asked");
    scheduler.miss(tenant(1), now, now);
    assert_eq!(scheduler.next(now), None, "none could begin, and nothing is tried again at once");
    assert_eq!(scheduler.waiting, 1);
}

#[test]
fn the_next_in_line_is_tried_when_a_run_has_ended() {
    let now = Timestamp::from_unix_us(0);
    let mut scheduler = Scheduler::new(4, 100);
    scheduler.entitled(tenant(1), plan(1, 4), now);
    assert!(scheduler.enter(tenant(1), now));
    scheduler.wait(tenant(1), now);
    assert_eq!(scheduler.next(now), Some(tenant(1)));
    scheduler.miss(tenant(1), now, now);
    assert_eq!(scheduler.next(now), None);
    scheduler.leave(tenant(1), now, now);
    assert_eq!(scheduler.next(now), Some(tenant(1)));
}

#[test]
fn who_wants_nothing_is_forgotten_and_its_plan_read_again() {
    let now = Timestamp::from_unix_us(0);
    let mut scheduler = Scheduler::new(4, 100);
    for n in 0..1000 {
        scheduler.entitled(tenant(n), plan(1, 4), now);
        assert!(scheduler.enter(tenant(n), now));
        scheduler.leave(tenant(n), now, now.plus(SECOND));
    }
    scheduler.see(&[], now, now);
    assert_eq!((scheduler.queues[&tenant(7)].entitlement, scheduler.spent(tenant(7), now)), (None, SECOND));
    let later = now.plus(REMEMBERED + SECOND);
    scheduler.see(&[], later, later);
    assert_eq!(scheduler.queues.len(), 0);
}

/// Whatever happens in whatever order: the numbers add up, no plan is exceeded, and no place is idle while somebody who
/// may run waits.
#[test]
fn the_numbers_add_up_whatever_happens() {
    // A generator of numbers of its own (xorshift), so that a failure can be repeated.
    for seed in 1..=200_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut chance = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let places = 1 + chance(12) as usize;
        let mut scheduler = Scheduler::new(places, usize::MAX);
        let mut now = Timestamp::from_unix_us(1);
        let mut held: Vec<(TenantId, Timestamp)> = Vec::new();
        for _ in 0..400 {
            now = now.plus(Duration::from_millis(chance(2_000)));
            let of = u128::from(chance(6));
            let who = tenant(of);
            let limit = plan(1 + of as u32, 1 + of as u32 % 4);
            scheduler.entitled(who, limit, now);
            match chance(6) {
                0 | 1 => {
                    if scheduler.enter(who, now) {
                        held.push((who, now));
                    } else {
                        scheduler.wait(who, now);
                    }
                }
                2 | 3 => {
                    while let Some(next) = scheduler.next(now) {
                        held.push((next, now));
                    }
                    let most = scheduler.most();
                    let idle = scheduler.has_room() && scheduler.queues.values().any(|queue| queue.is_served(most));
                    assert!(!idle, "seed {seed}");
                }
                4 if !held.is_empty() => {
                    let (who, at) = held.swap_remove(chance(held.len() as u64) as usize);
                    scheduler.leave(who, at, now);
                }
                _ if !held.is_empty() => {
                    let (who, at) = held.swap_remove(chance(held.len() as u64) as usize);
                    scheduler.miss(who, at, now);
                }
                _ => {}
            }
            assert_eq!(scheduler.taken, held.len(), "seed {seed}");
            assert!(scheduler.taken <= places, "seed {seed}");
            let waiting: usize = scheduler.queues.values().map(|queue| queue.waiting).sum();
            assert_eq!(scheduler.waiting, waiting, "seed {seed}");
            for (who, queue) in &scheduler.queues {
                assert_eq!(queue.here, held.iter().filter(|(of, _)| of == who).count(), "seed {seed}");
                assert!(queue.ready <= queue.waiting, "seed {seed}");
                assert!(queue.here <= queue.entitlement.unwrap().runs_max as usize, "seed {seed}");
            }
        }
    }
}

#[test]
fn who_comes_takes_a_place_past_those_who_have_had_more() {
    let now = Timestamp::from_unix_us(0);
    let mut scheduler = Scheduler::new(8, 100);
    for n in 1..=3 {
        scheduler.entitled(tenant(n), plan(1, 4), now);
    }
    let has_had = |scheduler: &mut Scheduler, n: u128, seconds: u32| {
        assert!(scheduler.enter(tenant(n), now));
        scheduler.leave(tenant(n), now, now.plus(SECOND * seconds));
    };
    has_had(&mut scheduler, 1, 10);
    has_had(&mut scheduler, 3, 20);
    let now = now.plus(SECOND * 20);
    scheduler.wait(tenant(1), now);
    assert!(!scheduler.enter(tenant(3), now), "who waits has had less");
    assert!(!scheduler.enter(tenant(1), now), "its own wait before");
    assert!(scheduler.enter(tenant(2), now), "who waits has had more");
}
