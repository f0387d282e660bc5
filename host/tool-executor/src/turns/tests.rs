//! The rule, simulated: no clock, no thread, no task.

use super::*;

const SLICE: Duration = Duration::from_micros(100);

fn tenant(n: u128) -> TenantId {
    uuid::Uuid::from_u128(n).into()
}

fn share(weight: u32) -> Share {
    Share { weight, ..Share::default() }
}

/// Tenants with work on cores. Time goes by in slices: whoever holds a core works for one and asks again.
struct Cores {
    turns: Turns<TenantId>,
    holders: Vec<TenantId>,
    slices: HashMap<TenantId, u64>,
    shares: HashMap<TenantId, Share>,
}

impl Cores {
    fn new(cores: usize) -> Self {
        Cores { turns: Turns::new(cores), holders: Vec::new(), slices: HashMap::new(), shares: HashMap::new() }
    }

    fn ask(&mut self, tenant: TenantId, share: Share) {
        self.shares.insert(tenant, share);
        if self.turns.enter(tenant, share) {
            self.holders.push(tenant);
        } else {
            self.turns.wait(tenant, share, tenant);
        }
    }

    /// One slice on every core. Those for whom `again` holds want another.
    fn slice(&mut self, again: impl Fn(TenantId) -> bool) {
        for tenant in std::mem::take(&mut self.holders) {
            *self.slices.entry(tenant).or_default() += 1;
            let next = self.turns.leave(tenant, SLICE);
            self.holders.extend(next);
            if again(tenant) {
                self.ask(tenant, self.shares[&tenant]);
            }
        }
    }

    fn slices(&self, n: u128) -> u64 {
        self.slices.get(&tenant(n)).copied().unwrap_or_default()
    }
}

#[test]
fn cores_are_shared_by_weight_whatever_the_number_of_calls() {
    let mut cores = Cores::new(2);
    for _ in 0..64 {
        cores.ask(tenant(1), share(1));
    }
    for _ in 0..4 {
        cores.ask(tenant(2), share(1));
        cores.ask(tenant(3), share(8));
    }
    for _ in 0..50_000 {
        cores.slice(|_| true);
    }
    let all = 100_000.0;
    for (n, fair) in [(1, 0.1), (2, 0.1), (3, 0.8)] {
        let got = cores.slices(n) as f64 / all;
        assert!((got - fair).abs() < 0.01, "tenant {n} got {got}, fair is {fair}");
    }
}

#[test]
fn who_comes_from_a_pause_goes_next_and_has_saved_nothing_up() {
    let mut cores = Cores::new(1);
    for _ in 0..64 {
        cores.ask(tenant(1), share(8));
    }
    for _ in 0..10_000 {
        cores.slice(|_| true);
    }
    cores.ask(tenant(2), share(1));
    cores.slice(|_| true);
    assert_eq!(cores.holders, [tenant(2)], "behind one slice, not behind 64 calls");
    // From now on it wants all it can get: one slice of nine.
    for _ in 0..9_000 {
        cores.slice(|_| true);
    }
    assert!((995..=1_005).contains(&cores.slices(2)), "{}", cores.slices(2));
}

#[test]
fn nobody_starves_among_hundreds() {
    let mut cores = Cores::new(2);
    for n in 0..300 {
        cores.ask(tenant(n), share(if n % 2 == 0 { 10 } else { 1 }));
    }
    for _ in 0..5_000 {
        cores.slice(|_| true);
    }
    // 10,000 slices by weight: 6 for each of the light ones.
    let least = (0..300).map(|n| cores.slices(n)).min();
    assert!(least >= Some(5), "{least:?}");
}

#[test]
fn a_tenant_has_a_most_and_the_rest_is_free_for_others() {
    let mut turns = Turns::new(4);
    let two = Share { weight: 1, calls_max: 2 };
    assert!(turns.enter(tenant(1), two) && turns.enter(tenant(1), two));
    assert!(!turns.enter(tenant(1), two));
    turns.wait(tenant(1), two, "first");
    assert!(turns.enter(tenant(2), two) && turns.enter(tenant(2), two), "who waits at its own most stops nobody");
    assert_eq!(turns.leave(tenant(2), SLICE), None);
    assert_eq!(turns.leave(tenant(1), SLICE), Some("first"));
}

#[test]
fn a_place_in_line_is_given_up_or_handed_back() {
    let mut turns = Turns::new(1);
    assert!(turns.enter(tenant(1), share(1)));
    let (a, b) = (turns.wait(tenant(2), share(1), "a"), turns.wait(tenant(2), share(1), "b"));
    assert!(turns.give_up(tenant(2), a));
    assert_eq!(turns.leave(tenant(1), SLICE), Some("b"));
    assert!(!turns.give_up(tenant(2), b), "it has its turn");
    assert_eq!(turns.leave(tenant(2), Duration::ZERO), None);
    assert!(turns.enter(tenant(3), share(1)));
}

#[test]
fn idle_tenants_are_forgotten() {
    let mut turns: Turns<()> = Turns::new(2);
    for n in 0..1_000 {
        assert!(turns.enter(tenant(n), share(1)));
        turns.leave(tenant(n), SLICE);
    }
    assert_eq!(turns.parties.len(), 0);
    // The same while somebody always waits.
    assert!(turns.enter(tenant(1), share(1)) && turns.enter(tenant(2), share(1)));
    for n in 3..1_000 {
        turns.wait(tenant(n), share(1), ());
        assert!(turns.leave(tenant(n - 2), SLICE).is_some());
    }
    assert!(turns.parties.len() <= KNOWN_MAX + 1, "{}", turns.parties.len());
}

#[tokio::test]
async fn a_dropped_turn_and_a_dropped_wait_free_the_line() {
    let line = Line::new(1);
    let held = line.turn(tenant(1), share(1)).await;
    let mut waits = polled(line.turn(tenant(2), share(1)));
    let mut behind = polled(line.turn(tenant(3), share(1)));
    assert!(waits.poll_once().is_none() && behind.poll_once().is_none());
    drop(held);
    drop(waits);
    assert!(behind.poll_once().is_some(), "a turn that nobody took goes on");
}

struct PollOnce<F>(std::pin::Pin<Box<F>>);

fn polled<F: Future>(future: F) -> PollOnce<F> {
    PollOnce(Box::pin(future))
}

impl<F: Future> PollOnce<F> {
    fn poll_once(&mut self) -> Option<F::Output> {
        match self.0.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }
}
