use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::headers::RateHeader;
use super::*;

fn ask(class: Class, tenant: &str, model: &str, tokens: u64) -> Ask {
    let min_useful = Duration::from_secs(2);
    Ask { class, tenant: tenant.into(), model: model.into(), tokens, min_useful }
}

fn interactive() -> Ask {
    ask(Class::Interactive, "t", "m", 10)
}

fn limiter(change: impl FnOnce(&mut LimiterSettings)) -> Arc<Limiter> {
    let mut settings = LimiterSettings::new(10);
    settings.queue = 1000;
    change(&mut settings);
    Arc::new(Limiter::new(settings, now()))
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Waits at most `patience` in the queue of a call that may take ten minutes.
async fn enter(limiter: &Limiter, ask: &Ask, patience: Duration) -> Result<Grant, Refused> {
    let mut watch = Watch::new(Deadline::after(now(), ms(600_000)));
    limiter.enter(&mut watch, ask, Deadline::after(now(), patience), &|_| {}).await
}

async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// Calls that note the order in which they are served.
struct Crowd {
    limiter: Arc<Limiter>,
    calls: JoinSet<()>,
    served: Arc<Mutex<Vec<(String, Duration)>>>,
    start: Instant,
}

impl Crowd {
    fn new(limiter: &Arc<Limiter>) -> Self {
        Self {
            limiter: limiter.clone(),
            calls: JoinSet::new(),
            served: Arc::default(),
            start: now(),
        }
    }

    /// A call that holds its grant for `hold` joins the queue.
    async fn join(&mut self, name: impl Into<String>, ask: Ask, hold: Duration) {
        let (limiter, served, name) = (self.limiter.clone(), self.served.clone(), name.into());
        let start = self.start;
        self.calls.spawn(async move {
            if let Ok(_grant) = enter(&limiter, &ask, ms(300_000)).await {
                served.lock().unwrap().push((name, now() - start));
                sleep(hold).await;
            }
        });
        settle().await;
    }

    async fn order(&mut self) -> Vec<String> {
        while self.calls.join_next().await.is_some() {}
        self.served.lock().unwrap().drain(..).map(|(name, _)| name).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_grant_is_held_until_dropped_and_nobody_overtakes() {
    let limiter = limiter(|it| (it.concurrent, it.reserve) = (2, 0));
    let first = limiter.try_enter(&interactive(), now()).unwrap();
    let second = limiter.try_enter(&interactive(), now()).unwrap();
    assert!(limiter.try_enter(&interactive(), now()).is_none());
    let mut crowd = Crowd::new(&limiter);
    for name in ["a", "b", "c"] {
        crowd.join(name, interactive(), ms(10)).await;
    }
    assert_eq!(limiter.view(now()).queued, [3, 0, 0]);
    drop(first);
    assert!(limiter.try_enter(&interactive(), now()).is_none(), "that slot is a's");
    assert_eq!(limiter.view(now()).in_flight, 2);
    drop(second);
    assert_eq!(crowd.order().await, ["a", "b", "c"]);
    let view = limiter.view(now());
    assert_eq!((view.in_flight, view.queued, view.peak), (0, [0; 3], 2));
}

#[tokio::test(start_paused = true)]
async fn waiting_is_told_bounded_and_ends_at_its_limit() {
    let limiter = limiter(|it| (it.concurrent, it.reserve, it.queue) = (1, 0, 1));
    let held = limiter.try_enter(&interactive(), now()).unwrap();
    let told = Mutex::new(Vec::new());
    let mut watch = Watch::new(Deadline::after(now(), ms(9_000)));
    let (deadline, start) = (Deadline::after(now(), ms(3_000)), now());
    let hear =
        |queued: Queued| told.lock().unwrap().push((queued.for_what.as_str(), queued.position));
    let asked = interactive();
    let waits = limiter.enter(&mut watch, &asked, deadline, &hear);
    let other = async {
        settle().await;
        let refused = enter(&limiter, &interactive(), ms(1_000)).await.unwrap_err();
        assert!(matches!(refused, Refused::QueueFull { queued: 1, .. }), "{refused:?}");
        assert_eq!(refused.retry_after(), Some(ms(1_000)));
        // The other classes have queues of their own.
        let run = ask(Class::Run, "t", "m", 1);
        let refused = enter(&limiter, &run, ms(500)).await.unwrap_err();
        assert_eq!(refused, Refused::Expired(Expired::Stage));
    };
    let (refused, ()) = tokio::join!(waits, other);
    assert_eq!(refused.unwrap_err(), Refused::Expired(Expired::Stage));
    assert_eq!(now() - start, ms(3_000));
    assert_eq!(*told.lock().unwrap(), [("slot", 0)]);

    let refused =
        limiter.enter(&mut watch, &asked, Deadline::after(now(), ms(99_000)), &hear).await;
    assert_eq!(refused.unwrap_err(), Refused::Expired(Expired::Deadline));
    drop(held);
    let refused = limiter.enter(&mut watch, &asked, deadline, &hear).await;
    assert!(matches!(refused, Err(Refused::Expired(_))), "too late, though a slot is free");
    let view = limiter.view(now());
    assert_eq!((view.in_flight, view.queued, view.shed_queue_full), (0, [0; 3], 1));
}

#[tokio::test(start_paused = true)]
async fn who_leaves_makes_room_at_once() {
    // One that leaves with a grant which it has not looked at gives it to the next.
    let limiter = limiter(|it| {
        (it.concurrent, it.reserve, it.tokens_per_minute) = (2, 0, Some(6_000));
    });
    let held = [(); 2].map(|()| limiter.try_enter(&interactive(), now()).unwrap());
    let mut crowd = Crowd::new(&limiter);
    let asked = interactive();
    let mut granted = Box::pin(enter(&limiter, &asked, ms(1_000)));
    assert!(futures_util::poll!(granted.as_mut()).is_pending());
    crowd.join("next", asked.clone(), ms(0)).await;
    let [one, other] = held;
    drop(one);
    drop(granted);
    settle().await;
    assert_eq!(crowd.served.lock().unwrap().len(), 1);
    drop(other);

    // One that leaves while it waits for more than there is lets the smaller one go, and one that
    // waits for time passes its timer on.
    let large = ask(Class::Interactive, "t", "m", 6_000);
    let mut large = Box::pin(enter(&limiter, &large, ms(1_000)));
    assert!(futures_util::poll!(large.as_mut()).is_pending());
    crowd.join("small", ask(Class::Interactive, "t", "m", 5_000), ms(0)).await;
    crowd.join("timed", ask(Class::Interactive, "t", "m", 1_000), ms(0)).await;
    assert_eq!(crowd.served.lock().unwrap().len(), 1);
    drop(large);
    settle().await;
    assert_eq!(crowd.served.lock().unwrap().len(), 2);
    assert_eq!(crowd.order().await, ["next", "small", "timed"]);
    assert_eq!(now() - crowd.start, ms(300), "thirty tokens were missing");
    assert_eq!(limiter.view(now()).in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn classes_go_in_order_tenants_in_turn_and_nobody_starves() {
    let limiter = limiter(|it| (it.concurrent, it.reserve) = (1, 0));
    let held = limiter.try_enter(&interactive(), now()).unwrap();
    let mut crowd = Crowd::new(&limiter);
    let of = |class, tenant| ask(class, tenant, "m", 1);
    crowd.join("bulk", of(Class::Bulk, "x"), ms(1)).await;
    for name in ["a1", "a2", "a3"] {
        crowd.join(name, of(Class::Run, "a"), ms(1)).await;
    }
    crowd.join("b1", of(Class::Run, "b"), ms(1)).await;
    crowd.join("now", of(Class::Interactive, "x"), ms(1)).await;
    drop(held);
    assert_eq!(crowd.order().await, ["now", "a1", "b1", "a2", "a3", "bulk"]);

    let held = limiter.try_enter(&interactive(), now()).unwrap();
    crowd.join("bulk", of(Class::Bulk, "x"), ms(1)).await;
    crowd.join("run", of(Class::Run, "x"), ms(1)).await;
    for _ in 0..20 {
        crowd.join("now", of(Class::Interactive, "x"), ms(1)).await;
    }
    drop(held);
    let order = crowd.order().await;
    let position = |name: &str| order.iter().position(|it| it == name).unwrap();
    assert_eq!((position("run"), position("bulk")), (8, 9));
}

#[tokio::test(start_paused = true)]
async fn some_slots_are_for_interactive_calls_but_not_against_a_class_whose_turn_it_is() {
    let limiter = limiter(|_| {});
    let run = ask(Class::Run, "t", "m", 1);
    let mut runs: Vec<_> = std::iter::from_fn(|| limiter.try_enter(&run, now())).collect();
    assert_eq!(runs.len(), 8);
    let mut crowd = Crowd::new(&limiter);
    crowd.join("run", run, ms(1)).await;
    // They wait for what this one may have.
    runs.extend(limiter.try_enter(&interactive(), now()));
    runs.extend(limiter.try_enter(&interactive(), now()));
    assert_eq!(runs.len(), 10);
    for _ in 0..20 {
        crowd.join("now", interactive(), ms(1_000)).await;
    }
    // Interactive calls fill each slot as it becomes free, the kept ones included.
    for held in runs.drain(..) {
        drop(held);
        settle().await;
    }
    let order = crowd.order().await;
    // Two were preferred before.
    assert_eq!(order.iter().position(|it| it == "run"), Some(6));
}

#[tokio::test(start_paused = true)]
async fn sixty_a_minute_are_a_burst_and_one_a_second_in_order() {
    let limiter = limiter(|it| (it.concurrent, it.reserve, it.per_minute) = (64, 0, Some(60)));
    let mut crowd = Crowd::new(&limiter);
    for number in 0..100 {
        let tenant = ["a", "b"][number % 2];
        let name = format!("{number:03}");
        crowd.join(name, ask(Class::Interactive, tenant, "m", 1), ms(5)).await;
        if number == 40 {
            assert_eq!(limiter.view(now()).queued, [27, 0, 0]);
        }
        sleep(ms(100)).await;
    }
    while crowd.calls.join_next().await.is_some() {}
    let served = mem::take(&mut *crowd.served.lock().unwrap());
    assert_eq!(served.len(), 100);
    for (rank, (name, at)) in served.iter().enumerate() {
        assert_eq!(name.parse(), Ok(rank));
        let room = 10.0 + at.as_secs_f64();
        assert!(rank as f64 <= room);
    }
    assert_eq!(served.last().unwrap().1, ms(90_000), "and not a second is lost");
}

#[tokio::test(start_paused = true)]
async fn tokens_are_reserved_then_settled() {
    let limiter = limiter(|it| it.tokens_per_minute = Some(6_000));
    let available = || limiter.view(now()).tokens.unwrap().available;
    let of = |tokens| ask(Class::Interactive, "t", "m", tokens);
    let mut less = limiter.try_enter(&of(4_000), now()).unwrap();
    assert!(limiter.try_enter(&of(4_000), now()).is_none());
    less.settle(Some(1_000), now());
    assert_eq!(available(), 5_000);
    let mut more = limiter.try_enter(&of(4_000), now()).unwrap();
    more.settle(Some(8_000), now());
    assert_eq!(available(), 0);
    drop((less, more));
    sleep(ms(30_000)).await;
    assert_eq!(available(), 0, "3000 were in debt");
    sleep(ms(10_000)).await;
    assert_eq!(available(), 1_000);
    let unsent = limiter.try_enter(&of(900), now()).unwrap();
    unsent.forgo();
    assert_eq!(available(), 1_000);
    let mut unknown = limiter.try_enter(&of(900), now()).unwrap();
    unknown.settle(None, now());
    drop(unknown);
    assert_eq!(available(), 100);
}

#[tokio::test(start_paused = true)]
async fn a_huge_request_is_neither_refused_nor_starved() {
    let limiter = limiter(|it| it.tokens_per_minute = Some(6_000));
    let of = |tokens| ask(Class::Interactive, "t", "m", tokens);
    let mut crowd = Crowd::new(&limiter);
    crowd.join("first", of(3_000), ms(1)).await;
    crowd.join("huge", of(9_000), ms(1)).await;
    for _ in 0..5 {
        crowd.join("small", of(100), ms(1)).await;
    }
    while crowd.calls.join_next().await.is_some() {}
    let served = crowd.served.lock().unwrap();
    let seconds: Vec<_> = served.iter().map(|(name, at)| (&**name, at.as_secs())).collect();
    // Full after 30 s, then 3000 in debt for another 30.
    let smalls = [61, 62, 63, 64, 65].map(|at| ("small", at));
    assert_eq!(seconds[..2], [("first", 0), ("huge", 30)]);
    assert_eq!(seconds[2..], smalls);
}

#[tokio::test(start_paused = true)]
async fn a_resting_model_holds_back_nobody_else() {
    let limiter = limiter(|it| it.queue = 3);
    let model: Arc<str> = "tired".into();
    let start = now();
    cool(&limiter, &model, start + ms(20_000), start);
    cool(&limiter, &model, start + ms(5_000), start);
    let mut crowd = Crowd::new(&limiter);
    for name in ["one", "two", "three"] {
        crowd.join(name, ask(Class::Interactive, "t", "tired", 1), ms(1)).await;
    }
    assert_eq!(limiter.view(now()).models[0].cooling_ms, Some(20_000));
    assert!(limiter.try_enter(&interactive(), now()).is_some());
    assert!(enter(&limiter, &interactive(), ms(1)).await.is_ok());
    let refused = enter(&limiter, &ask(Class::Interactive, "t", "tired", 1), ms(60_000)).await;
    assert!(matches!(refused, Err(Refused::QueueFull { queued: 3, eta }) if eta == ms(20_000)));
    crowd.order().await;
    assert_eq!(now() - start, ms(20_001));
}

#[tokio::test(start_paused = true)]
async fn what_headers_say_lowers_and_teaches() {
    let limiter = limiter(|it| (it.concurrent, it.most_per_minute) = (64, 1_000));
    let model: Arc<str> = "m".into();
    let told = |limit, remaining| RateHeaders {
        requests: Some(RateHeader { limit, remaining, reset: None }),
        tokens: None,
    };
    let requests = || limiter.view(now()).models[0].requests;
    limiter.learn(&model, &RateHeaders::default(), now());
    assert_eq!(limiter.view(now()).models, []);
    limiter.learn(&model, &told(500, 3), now());
    assert_eq!(requests(), Some(RateView { per_minute: 500, available: 3 }));
    limiter.learn(&model, &told(500, 400), now());
    assert_eq!(requests().unwrap().available, 3, "time fills it, not the provider's word");
    let grants: Vec<_> = std::iter::from_fn(|| limiter.try_enter(&interactive(), now())).collect();
    assert_eq!(grants.len(), 3);
    let start = now();
    assert!(enter(&limiter, &interactive(), ms(1_000)).await.is_ok());
    assert_eq!(now() - start, ms(120));
    limiter.learn(&model, &told(1_000_000, 900_000), now());
    assert_eq!(requests().unwrap().per_minute, 1_000, "no more than is configured");

    let daily = RateHeader { limit: 1_000, remaining: 0, reset: Some(ms(50_000_000)) };
    limiter.learn(&model, &RateHeaders { requests: Some(daily), tokens: None }, now());
    assert_eq!(limiter.view(now()).models[0].cooling_ms, Some(3_600_000));
}

#[tokio::test(start_paused = true)]
async fn who_cannot_be_served_in_time_is_told_at_once() {
    // A hundred in five seconds; a thousand come, and have five seconds.
    let limiter = limiter(|it| (it.concurrent, it.reserve) = (20, 0));
    for _ in 0..20 {
        let grant = limiter.try_enter(&interactive(), now()).unwrap();
        sleep(ms(1_000)).await;
        grant.clean(now());
    }
    let (served, shed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let start = now();
    let mut calls = JoinSet::new();
    for _ in 0..1000 {
        let (limiter, served, shed) = (limiter.clone(), served.clone(), shed.clone());
        calls.spawn(async move {
            let mut watch = Watch::new(Deadline::after(start, ms(5_000)));
            let ask = Ask { min_useful: ms(1_000), ..interactive() };
            let deadline = watch.deadline();
            match limiter.enter(&mut watch, &ask, deadline, &|_| {}).await {
                Ok(grant) => {
                    sleep(ms(1_000)).await;
                    grant.clean(now());
                    served.fetch_add(1, Ordering::Relaxed);
                    assert!(now() - start <= ms(5_000), "nothing is sent that comes too late");
                }
                Err(Refused::ShedDeadline { eta }) => {
                    assert_eq!(now(), start);
                    assert!(eta > ms(4_000) && eta < ms(5_000), "{eta:?}");
                    shed.fetch_add(1, Ordering::Relaxed);
                }
                Err(other) => panic!("{other:?}"),
            }
        });
    }
    while calls.join_next().await.is_some() {}
    let (served, shed) = (served.load(Ordering::Relaxed), shed.load(Ordering::Relaxed));
    assert_eq!((served, shed), (100, 900));
    assert_eq!(limiter.view(now()).shed_deadline, 900);
}

/// What a provider with a hidden cap makes of callers who never rest.
struct Outcome {
    /// Share of calls that were not refused, after the first half minute.
    success: f64,
    /// Share of the time that so many calls were allowed.
    limits: BTreeMap<usize, f64>,
}

async fn against_hidden_cap(cap: usize, slots: usize, class: Class, spread: u64) -> Outcome {
    let limiter = limiter(|it| *it = LimiterSettings::new(slots));
    let inside = Arc::new(AtomicUsize::new(0));
    let (good, bad) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let start = now();
    let is_warm = move || now() - start > ms(30_000);
    let mut calls = JoinSet::new();
    for caller in 0..30_u64 {
        let (limiter, inside) = (limiter.clone(), inside.clone());
        let (good, bad) = (good.clone(), bad.clone());
        calls.spawn(async move {
            let mut round = caller;
            while now() - start < ms(900_000) {
                let ask = ask(class, "t", "m", 1);
                let Ok(grant) = enter(&limiter, &ask, ms(100_000)).await else { continue };
                round = round.wrapping_mul(25_214_903_917).wrapping_add(11);
                let refused = inside.load(Ordering::Relaxed) >= cap;
                let count = if refused {
                    sleep(ms(30)).await;
                    grant.pressure(now());
                    &bad
                } else {
                    inside.fetch_add(1, Ordering::Relaxed);
                    sleep(ms(1_000 + (round >> 20) % spread)).await;
                    inside.fetch_sub(1, Ordering::Relaxed);
                    grant.clean(now());
                    &good
                };
                if is_warm() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                drop(grant);
                if refused {
                    sleep(ms(200)).await;
                }
            }
        });
    }
    let mut limits = BTreeMap::new();
    for _ in 0..900 {
        sleep(ms(1_000)).await;
        if is_warm() {
            *limits.entry(limiter.view(now()).models[0].limit).or_insert(0.0) += 1.0 / 870.0;
        }
    }
    while calls.join_next().await.is_some() {}
    let (good, bad) = (good.load(Ordering::Relaxed) as f64, bad.load(Ordering::Relaxed) as f64);
    Outcome { success: good / (good + bad), limits }
}

#[tokio::test(start_paused = true)]
async fn settles_just_below_a_hidden_cap() {
    for (slots, spread) in [(10, 1), (10, 2_000), (64, 1), (64, 500), (64, 5_000)] {
        let outcome = against_hidden_cap(7, slots, Class::Interactive, spread).await;
        let limits = &outcome.limits;
        assert!(outcome.success > 0.99, "{} of {slots} {spread}: {limits:?}", outcome.success);
        let settled: f64 = limits.range(6..=7).map(|(_, share)| share).sum();
        assert!(settled > 0.9, "{settled} of {slots} {spread}: {limits:?}");
    }
    // Runs leave a slot to interactive calls, which shifts the limit but not what is sent.
    let outcome = against_hidden_cap(7, 64, Class::Run, 500).await;
    assert!(outcome.success > 0.99, "{}: {:?}", outcome.success, outcome.limits);
    let settled: f64 = outcome.limits.range(7..=8).map(|(_, share)| share).sum();
    assert!(settled > 0.9, "{:?}", outcome.limits);
}

#[tokio::test(start_paused = true)]
async fn a_restarted_model_begins_with_one() {
    let limiter = limiter(|_| {});
    let model: Arc<str> = "m".into();
    limiter.restart(&model);
    let only = limiter.try_enter(&interactive(), now()).unwrap();
    assert!(limiter.try_enter(&interactive(), now()).is_none());
    only.clean(now());
    assert!(limiter.try_enter(&interactive(), now()).is_some());
}

/// One caller of the random crowd.
#[derive(Clone, Copy, Debug)]
struct Caller {
    arrives_ms: u64,
    class: Class,
    tenant: usize,
    model: usize,
    tokens: u64,
    holds_ms: u64,
    /// Leaves the queue of its own accord after that.
    patience_ms: Option<u64>,
    end: End,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Clean,
    Pressure,
    Settled(u64),
    Forgone,
    Dropped,
}

fn callers() -> impl Strategy<Value = Vec<Caller>> {
    let end = prop_oneof![
        4 => Just(End::Clean),
        1 => Just(End::Pressure),
        2 => (0_u64..300).prop_map(End::Settled),
        1 => Just(End::Forgone),
        1 => Just(End::Dropped),
    ];
    let class = prop_oneof![Just(Class::Interactive), Just(Class::Run), Just(Class::Bulk)];
    let patience = proptest::option::weighted(0.3, 0_u64..2_000);
    let caller =
        (0_u64..5_000, class, 0_usize..3, 0_usize..3, 0_u64..300, 0_u64..400, patience, end);
    let caller = caller.prop_map(
        |(arrives_ms, class, tenant, model, tokens, holds_ms, patience_ms, end)| Caller {
            arrives_ms,
            class,
            tenant,
            model,
            tokens,
            holds_ms,
            patience_ms,
            end,
        },
    );
    proptest::collection::vec(caller, 1..60)
}

/// What the crowd did, for the checks.
#[derive(Default)]
struct Log {
    in_flight: usize,
    most: usize,
    sent: Vec<Instant>,
    /// By class, tenant and model: numbers in the order of arrival and of service.
    arrived: BTreeMap<(usize, usize, usize), Vec<usize>>,
    served: BTreeMap<(usize, usize, usize), Vec<usize>>,
    waiting: usize,
}

async fn call(limiter: &Limiter, number: usize, caller: Caller, log: &Mutex<Log>) {
    sleep(ms(caller.arrives_ms)).await;
    let ask = ask(
        caller.class,
        ["a", "b", "c"][caller.tenant],
        ["x", "y", "z"][caller.model],
        caller.tokens,
    );
    let line = (caller.class as usize, caller.tenant, caller.model);
    log.lock().unwrap().arrived.entry(line).or_default().push(number);
    log.lock().unwrap().waiting += 1;
    let entering = enter(limiter, &ask, ms(500_000));
    let granted = match caller.patience_ms {
        Some(patience) => timeout(ms(patience), entering).await.ok(),
        None => Some(entering.await),
    };
    log.lock().unwrap().waiting -= 1;
    let Some(Ok(mut grant)) = granted else {
        assert!(granted.is_none(), "nobody is refused who has the time");
        return;
    };
    {
        let mut log = log.lock().unwrap();
        log.served.entry(line).or_default().push(number);
        log.in_flight += 1;
        log.most = log.most.max(log.in_flight);
    }
    if matches!(caller.end, End::Forgone) {
        log.lock().unwrap().in_flight -= 1;
        return grant.forgo();
    }
    log.lock().unwrap().sent.push(now());
    sleep(ms(caller.holds_ms)).await;
    match caller.end {
        End::Clean => grant.clean(now()),
        End::Pressure => grant.pressure(now()),
        End::Settled(tokens) => grant.settle(Some(tokens), now()),
        End::Forgone | End::Dropped => {}
    }
    log.lock().unwrap().in_flight -= 1;
}

/// Nothing is left that somebody could have had a moment ago.
fn assert_nobody_is_forgotten(limiter: &Limiter) {
    limiter.shared.with(|state| {
        let waiting = state.waiting();
        // Timers fire at whole milliseconds.
        if let Some(earlier) = now().checked_sub(ms(2)) {
            state.serve(earlier);
        }
        assert_eq!(state.waiting(), waiting);
    });
}

fn run(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(work);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn limits_hold_grants_return_and_nobody_is_forgotten(
        callers in callers(),
        concurrent in 1_usize..8,
        per_minute in proptest::option::of(60_u32..2_000),
        tokens_per_minute in proptest::option::of(1_000_u64..50_000),
    ) {
        run(async move {
            let limiter = limiter(|it| {
                *it = LimiterSettings::new(concurrent);
                it.queue = 1000;
                (it.per_minute, it.tokens_per_minute) = (per_minute, tokens_per_minute);
            });
            let log = Arc::new(Mutex::new(Log::default()));
            let mut calls = JoinSet::new();
            for (number, caller) in callers.iter().copied().enumerate() {
                let (limiter, log) = (limiter.clone(), log.clone());
                calls.spawn(async move { call(&limiter, number, caller, &log).await });
            }
            while !calls.is_empty() {
                let _ = timeout(ms(37), calls.join_next()).await.map(|it| it.unwrap().unwrap());
                settle().await;
                assert_nobody_is_forgotten(&limiter);
            }
            let view = limiter.view(now());
            assert_eq!((view.in_flight, view.queued), (0, [0; 3]));
            limiter.shared.with(|state| assert!(state.is_empty()));

            let log = log.lock().unwrap();
            assert_eq!(log.waiting, 0);
            assert!(log.most <= concurrent && view.peak <= concurrent);
            let burst = per_minute.map_or(0.0, |rate| f64::from(rate.min(10)));
            for (first, from) in log.sent.iter().enumerate().filter(|_| per_minute.is_some()) {
                for (count, at) in (1..).zip(&log.sent[first..]) {
                    let rate = f64::from(per_minute.unwrap()) / 60.0;
                    // Granted at most a millisecond before it is noted.
                    let elapsed = (*at - *from).as_secs_f64() + 0.002;
                    assert!(f64::from(count) <= burst + rate * elapsed + 1e-6);
                }
            }
            for (line, served) in &log.served {
                let arrived = &log.arrived[line];
                let stayed: Vec<_> = arrived.iter().filter(|it| served.contains(it)).copied().collect();
                assert_eq!(*served, stayed, "first come, first served");
            }
        });
    }
}

#[test]
fn a_free_slot_costs_next_to_nothing() {
    let limiter = Limiter::new(LimiterSettings::new(64), now());
    let ask = interactive();
    let start = Instant::now();
    for _ in 0..10_000 {
        drop(limiter.try_enter(&ask, start).unwrap());
    }
    // A hundred times what it takes, for slow machines and unoptimised code.
    assert!(start.elapsed() < Duration::from_secs(1));
}

/// What headers of a window that is used up come to.
fn cool(limiter: &Limiter, model: &Arc<str>, until: Instant, now: Instant) {
    limiter.shared.with(|state| {
        let model = state.model(model);
        state.cool(model, until, now);
    });
}
