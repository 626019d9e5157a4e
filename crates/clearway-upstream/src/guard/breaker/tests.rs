use proptest::prelude::*;

use super::*;

struct Rig {
    breaker: Breaker,
    now: Instant,
}

impl Rig {
    fn new() -> Self {
        let now = Instant::now();
        Self { breaker: Breaker::new(BreakerSettings::default(), 7, now), now }
    }

    fn ticket(&self) -> Ticket {
        match self.breaker.admit(Class::Bulk, self.now) {
            Gate::Pass(ticket) | Gate::Probe(ticket) => ticket,
            Gate::Open { .. } => panic!("it is open"),
        }
    }

    fn probe(&self) -> Ticket {
        let ticket = self.ticket();
        assert!(ticket.is_probe);
        ticket
    }

    fn fail(&self) {
        self.ticket().failure(self.now, "server_error", None);
    }

    fn trip(&self) {
        for _ in 0..5 {
            self.fail();
        }
        assert_eq!(self.state(), "open");
    }

    fn wait(&mut self, seconds: f64) {
        self.now += Duration::from_secs_f64(seconds);
    }

    /// How long it stays open from now; then it is as long later.
    fn wait_until_probe(&mut self) -> f64 {
        let Gate::Open { until } = self.breaker.admit(Class::Bulk, self.now) else {
            panic!("it is not open")
        };
        let wait = until - self.now;
        self.now = until;
        wait.as_secs_f64()
    }

    fn may(&self, class: Class) -> bool {
        !matches!(self.breaker.admit(class, self.now), Gate::Open { .. })
    }

    fn view(&self) -> BreakerView {
        self.breaker.view(self.now)
    }

    fn state(&self) -> &'static str {
        self.view().state
    }
}

#[test]
fn five_failures_in_a_row_within_the_window_open_it() {
    let mut rig = Rig::new();
    for _ in 0..4 {
        rig.fail();
    }
    rig.ticket().success(rig.now);
    for _ in 0..4 {
        rig.fail();
    }
    rig.wait(61.0);
    rig.fail();
    assert_eq!(rig.state(), "closed", "four of them are too old");
    for _ in 0..4 {
        rig.fail();
    }
    let view = rig.view();
    assert_eq!((view.state, view.consecutive_failures), ("open", 5));
    assert_eq!(view.history[0].reason, "server_error");
}

#[test]
fn half_of_enough_calls_failing_opens_it() {
    let mut rig = Rig::new();
    for _ in 0..4 {
        rig.fail();
        rig.ticket().success(rig.now);
        rig.wait(5.0);
    }
    assert_eq!(rig.state(), "closed", "eight are too few");
    rig.ticket().success(rig.now);
    rig.fail();
    assert_eq!(rig.view().recent, RecentView { samples: 10, failures: 5 });
    assert_eq!(rig.state(), "open");

    let mut rig = Rig::new();
    for _ in 0..100 {
        rig.fail();
        rig.ticket().success(rig.now);
        rig.ticket().success(rig.now);
        rig.wait(1.0);
    }
    assert_eq!(rig.state(), "closed", "a third");
    assert!(rig.view().recent.samples <= 180, "the older ones are forgotten");
}

#[test]
fn open_times_double_with_failed_probes_up_to_their_maximum() {
    let mut rig = Rig::new();
    rig.trip();
    for nominal in [10.0, 20.0, 25.0, 25.0] {
        let wait = rig.wait_until_probe();
        assert!((nominal * 0.8..=nominal * 1.2).contains(&wait), "{wait} for {nominal}");
        rig.probe().failure(rig.now, "overloaded", None);
    }
    rig.wait_until_probe();
    assert!(!rig.probe().success(rig.now));
    assert_eq!(rig.state(), "half_open");
    assert!(rig.probe().success(rig.now), "the second closes it");
    assert_eq!(rig.state(), "closed");
    assert_eq!(rig.view().recent, RecentView::default());

    // It flaps.
    rig.trip();
    assert!(rig.wait_until_probe() >= 20.0);
    rig.probe().success(rig.now);
    rig.probe().success(rig.now);
    rig.wait(60.0);
    rig.trip();
    assert!(rig.wait_until_probe() <= 12.0, "a minute of peace is forgiveness");
}

#[test]
fn a_longer_retry_after_wins_and_nothing_shortens_it() {
    let rig = Rig::new();
    let late = [rig.ticket(), rig.ticket()];
    for _ in 0..4 {
        rig.fail();
    }
    rig.ticket().failure(rig.now, "overloaded", Some(Duration::from_secs(100)));
    let [soon, later] = late;
    soon.failure(rig.now, "overloaded", Some(Duration::from_secs(1)));
    assert_eq!(rig.view().next_probe_ms, Some(100_000));
    later.failure(rig.now, "overloaded", Some(Duration::from_secs(1_000_000)));
    assert_eq!(rig.view().next_probe_ms, Some(3_600_000), "but not for ever");
    rig.breaker.reset(rig.now);
    assert_eq!(rig.state(), "closed");
}

#[test]
fn one_probe_at_a_time_and_a_cancelled_one_is_no_verdict() {
    let mut rig = Rig::new();
    rig.trip();
    rig.wait_until_probe();
    let probe = rig.probe();
    assert!(
        matches!(rig.breaker.admit(Class::Bulk, rig.now), Gate::Open { until } if until > rig.now)
    );
    assert_eq!(rig.view().next_probe_ms, None);
    drop(probe);
    assert_eq!((rig.state(), rig.view().next_probe_ms), ("half_open", Some(0)));

    rig.probe().cooled(rig.now, rig.now + Duration::from_secs(3));
    assert_eq!(rig.state(), "half_open");
    assert!((rig.wait_until_probe() - 3.0).abs() < 1e-9);
    rig.probe().failure(rig.now, "server_error", None);
    let wait = rig.wait_until_probe();
    assert!((16.0..=24.0).contains(&wait), "doubled once, not for the rate limit: {wait}");
}

#[test]
fn late_results_are_counted_and_change_nothing() {
    let mut rig = Rig::new();
    let late: Vec<_> = (0..20).map(|_| rig.ticket()).collect();
    rig.trip();
    let open = rig.view();
    for (number, ticket) in late.into_iter().enumerate() {
        if number % 2 == 0 {
            ticket.success(rig.now);
        } else {
            ticket.failure(rig.now, "server_error", None);
        }
    }
    assert_eq!(rig.view(), BreakerView { late_results: 20, ..open });

    // A probe of an earlier opening does not free the place of the present one.
    rig.wait_until_probe();
    let stale = rig.probe();
    rig.breaker.reset(rig.now);
    rig.trip();
    rig.wait_until_probe();
    let probe = rig.probe();
    drop(stale);
    assert!(matches!(rig.breaker.admit(Class::Bulk, rig.now), Gate::Open { .. }));
    drop(probe);
}

#[test]
fn the_history_is_bounded() {
    let mut rig = Rig::new();
    for _ in 0..50 {
        rig.trip();
        rig.wait_until_probe();
        rig.breaker.reset(rig.now);
    }
    let history = rig.view().history;
    assert_eq!(history.len(), HISTORY);
    assert_eq!(
        history.last().map(|it| (it.from, it.to, it.reason)),
        Some(("open", "closed", "reset"))
    );
}

#[derive(Clone, Copy, Debug)]
enum Move {
    Wait(u64),
    Admit,
    Succeed(usize),
    Fail(usize, Option<u64>),
    Cool(usize, u64),
    Drop(usize),
    Reset,
}

fn moves() -> impl Strategy<Value = Move> {
    let ms = 0_u64..40_000;
    prop_oneof![
        3 => ms.clone().prop_map(Move::Wait),
        6 => Just(Move::Admit),
        2 => any::<usize>().prop_map(Move::Succeed),
        5 => (any::<usize>(), proptest::option::weighted(0.2, ms.clone()))
            .prop_map(|(ticket, after)| Move::Fail(ticket, after)),
        1 => (any::<usize>(), ms).prop_map(|(ticket, after)| Move::Cool(ticket, after)),
        1 => any::<usize>().prop_map(Move::Drop),
        1 => Just(Move::Reset),
    ]
}

proptest! {
    #[test]
    fn never_two_probes_and_nobody_passes_while_open(moves in proptest::collection::vec(moves(), 1..300)) {
        let mut rig = Rig::new();
        let mut tickets: Vec<Ticket> = Vec::new();
        let mut next_probe: Option<Instant> = None;
        for step in moves {
            let pick = |index: usize, tickets: &mut Vec<Ticket>| {
                (!tickets.is_empty()).then(|| tickets.swap_remove(index % tickets.len()))
            };
            let before = rig.view();
            match step {
                Move::Wait(ms) => rig.now += Duration::from_millis(ms),
                Move::Admit => match rig.breaker.admit(Class::Bulk, rig.now) {
                    Gate::Pass(ticket) => {
                        prop_assert_eq!(before.state, "closed");
                        tickets.push(ticket);
                    }
                    Gate::Probe(ticket) => {
                        prop_assert_eq!(before.next_probe_ms, Some(0));
                        let generation = ticket.generation;
                        let out = tickets.iter().filter(|it| it.is_probe && it.generation == generation);
                        prop_assert_eq!(out.count(), 0);
                        tickets.push(ticket);
                    }
                    Gate::Open { until } => {
                        prop_assert!(until > rig.now);
                        prop_assert_ne!(before.state, "closed");
                    }
                },
                Move::Succeed(index) => {
                    if let Some(ticket) = pick(index, &mut tickets) {
                        let may = ticket.is_probe;
                        prop_assert!(may || !ticket.success(rig.now), "only a probe closes");
                    }
                }
                Move::Fail(index, after) => {
                    if let Some(ticket) = pick(index, &mut tickets) {
                        ticket.failure(rig.now, "f", after.map(Duration::from_millis));
                    }
                }
                Move::Cool(index, ms) => {
                    if let Some(ticket) = pick(index, &mut tickets) {
                        ticket.cooled(rig.now, rig.now + Duration::from_millis(ms));
                    }
                }
                Move::Drop(index) => drop(pick(index, &mut tickets)),
                Move::Reset => {
                    rig.breaker.reset(rig.now);
                    next_probe = None;
                }
            }
            let after = rig.view();
            if before.late_results != after.late_results {
                prop_assert_eq!(before.state, after.state);
            }
            // While it stays open, the next probe is never earlier than it was.
            let at = after.next_probe_ms.map(|ms| rig.now + Duration::from_millis(ms));
            if before.state == "open" && after.state == "open" && after.next_probe_ms != Some(0) {
                let tick = Duration::from_millis(1);
                prop_assert!(next_probe.is_none_or(|known| at.is_some_and(|at| at + tick >= known)));
            }
            next_probe = if after.state == "open" { at } else { None };
            prop_assert!(after.history.len() <= HISTORY);
            prop_assert!(after.consecutive_failures <= 5);
        }
    }
}

#[test]
fn the_least_urgent_of_those_who_wait_makes_the_probe() {
    let mut rig = Rig::new();
    rig.trip();
    let waiting = rig.breaker.wait(Class::Bulk);
    rig.wait_until_probe();
    // More urgent ones leave it to those behind them, but only for a moment.
    assert!(!rig.may(Class::Interactive) && !rig.may(Class::Run));
    assert!(rig.may(Class::Bulk));
    rig.wait(0.3);
    assert!(rig.may(Class::Interactive));
    drop(waiting);

    let mut rig = Rig::new();
    rig.trip();
    drop(rig.breaker.wait(Class::Run));
    let _waiting = rig.breaker.wait(Class::Interactive);
    rig.wait_until_probe();
    assert!(rig.may(Class::Interactive), "nobody less urgent waits any more");
}
