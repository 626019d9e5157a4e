//! Random schedules: whatever providers do, and in whatever order, calls end in time and leave
//! nothing.
//!
//! A seed makes a configuration, what every connection meets, and calls of which some are left
//! early. `CLEARWAY_SEEDS` says how many seeds are tried and `CLEARWAY_SEED` which is the first; one
//! that fails is named.

use std::sync::atomic::AtomicU64;

use super::*;
use crate::guard::jitter::Jitter;

/// What every whole answer says, in so many words.
const WORDS: u64 = 8;

#[test]
fn random_schedules() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first: u64 = number("CLEARWAY_SEED").unwrap_or(1);
    for seed in first..first + number("CLEARWAY_SEEDS").unwrap_or(300) {
        let named = Named(seed);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(schedule(seed));
        drop(named);
    }
}

/// Tells its seed when the test fails.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}", self.0);
        }
    }
}

struct Dice(Jitter);

impl Dice {
    /// Of one thing within a seed.
    fn of(seed: u64, thing: u64) -> Self {
        Self(Jitter::new(seed.wrapping_mul(0x0001_0000_01b3) ^ thing.wrapping_mul(0x9e37_79b9)))
    }

    /// A number below `sides`.
    fn roll(&mut self, sides: u64) -> u64 {
        self.0.below(Duration::from_secs(sides)).as_secs()
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }

    fn millis(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.roll(most))
    }

    fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.roll(from.len() as u64)).unwrap()]
    }
}

/// A provider whose connections are as the dice will have it.
#[derive(Debug)]
struct Chaos {
    seed: u64,
    provider: u64,
    /// In percent of the requests.
    good: u64,
    dialled: AtomicU64,
    tasks: Mutex<JoinSet<()>>,
}

impl Dial for Chaos {
    fn dial<'a>(
        &'a self,
        _: &'a Endpoint,
        report: Report<'a>,
    ) -> BoxFuture<'a, Result<Box<dyn Io>, DialError>> {
        let number = self.dialled.fetch_add(1, Ordering::Relaxed);
        let mut dice = Dice::of(self.seed, self.provider * 1_000_000 + number);
        let bad = dice.roll(100) >= self.good;
        Box::pin(async move {
            let phase = dice.choose(&[DialPhase::Dns, DialPhase::Connect, DialPhase::Tls]);
            match dice.roll(12) {
                0 if bad => return Err(DialError::new(phase, "refused")),
                1 if bad => {
                    report(phase);
                    std::future::pending::<()>().await;
                }
                2 => tokio::time::sleep(dice.millis(4000)).await,
                _ => {}
            }
            let (ours, io) = duplex(64 * 1024);
            self.tasks.lock().unwrap().spawn(serve(Peer { io }, dice, self.good));
            Ok(Box::new(ours) as Box<dyn Io>)
        })
    }
}

async fn serve(mut peer: Peer, mut dice: Dice, good: u64) {
    while let Some(request) = peer.request().await {
        let messages = request["messages"].as_array().unwrap();
        // An answer that has begun already is gone on with.
        let begun = messages.last().filter(|last| last["role"] == "assistant");
        let said = begun.map_or("", |message| message["content"].as_str().unwrap());
        let from = said.split_whitespace().count() as u64;
        if dice.roll(100) < good {
            tokio::time::sleep(dice.millis(3000)).await;
            say(&mut peer, from, WORDS, Duration::ZERO).await;
            peer.close_answer().await;
            if dice.one_in(4) {
                return;
            }
        } else if !misbehave(&mut peer, &mut dice, from).await {
            return;
        }
    }
}

/// The words of the answer `from..to`.
async fn say(peer: &mut Peer, from: u64, to: u64, pace: Duration) {
    peer.head().await;
    for number in from..to {
        tokio::time::sleep(pace).await;
        peer.token(&word(number)).await;
    }
}

fn word(number: u64) -> String {
    format!("w{number} ")
}

/// Whether the connection can be used again.
async fn misbehave(peer: &mut Peer, dice: &mut Dice, from: u64) -> bool {
    let cut = from + dice.roll(WORDS + 1 - from.min(WORDS));
    match dice.roll(26) {
        // Gone.
        0 => false,
        // Silent.
        1 => {
            peer.closed().await;
            false
        }
        2 => {
            tokio::time::sleep(dice.millis(40_000)).await;
            say(peer, from, WORDS, Duration::ZERO).await;
            peer.close_answer().await;
            true
        }
        3 => refuse(peer, "429 Too Many Requests", "", "rate_limit_exceeded").await,
        4 | 5 => {
            let hint = dice.choose(&[
                "0",
                "1",
                "2",
                "0.3",
                "7",
                "60",
                "3600",
                "-1",
                "NaN",
                "1000000000000",
                "1e400",
                "Wed, 21 Oct 2015 07:28:00 GMT",
                "soon",
            ]);
            let header = format!("retry-after: {hint}\r\n");
            refuse(peer, "429 Too Many Requests", &header, "rate_limit_exceeded").await
        }
        6 => {
            let status = dice.choose(&["500 Oh", "502 Bad", "503 Later", "504 Late", "529 Full"]);
            refuse(peer, status, "", "server_error").await
        }
        7 => {
            let header = dice.choose(&["x-should-retry: true\r\n", "x-should-retry: false\r\n"]);
            refuse(peer, "500 Oh", header, "server_error").await
        }
        8 => refuse(peer, "401 No", "", "invalid_api_key").await,
        9 => refuse(peer, "429 Too Many Requests", "", "insufficient_quota").await,
        10 => {
            let status = dice.choose(&["400 Bad", "403 No", "404 Gone", "408 Slow", "409 Busy"]);
            refuse(peer, status, "", "something").await
        }
        11 => {
            peer.respond("200 OK", "content-type: text/html\r\n", "<html>hello</html>").await;
            true
        }
        12 => {
            peer.respond("200 OK", "content-type: text/event-stream\r\n", "").await;
            true
        }
        // Cut: without the end of the body, and with it.
        13 => {
            say(peer, from, cut, Duration::ZERO).await;
            false
        }
        14 => {
            say(peer, from, cut, Duration::ZERO).await;
            peer.raw("0\r\n\r\n").await;
            true
        }
        // Stalled, with and without a sign of life.
        15 => {
            say(peer, from, cut, Duration::ZERO).await;
            peer.closed().await;
            false
        }
        16 => {
            say(peer, from, cut, Duration::ZERO).await;
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                peer.chunk(": here\n\n").await;
            }
        }
        // Slow, but whole.
        17 => {
            say(peer, from, WORDS, dice.millis(25_000)).await;
            peer.close_answer().await;
            true
        }
        18 => {
            say(peer, from, cut, Duration::ZERO).await;
            peer.chunk("data: {\"choices\": [\n\n").await;
            false
        }
        19 => {
            say(peer, from, cut, Duration::ZERO).await;
            peer.event(&json!({"error": {"message": "oh", "type": "server_error"}})).await;
            false
        }
        // Whole, but the end is missing.
        20 => {
            say(peer, from, WORDS, Duration::ZERO).await;
            peer.event(&stop()).await;
            if dice.one_in(2) {
                peer.closed().await;
            }
            false
        }
        // Not HTTP, and not all of it.
        21 => {
            peer.raw("SSH-2.0-OpenSSH_9.6\r\n").await;
            peer.closed().await;
            false
        }
        22 => {
            for byte in b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n" {
                peer.raw([*byte]).await;
                tokio::time::sleep(dice.millis(2000)).await;
            }
            peer.closed().await;
            false
        }
        // A refusal whose reasons never come.
        23 => {
            peer.raw("HTTP/1.1 500 Oh\r\ncontent-length: 1000\r\n\r\n{\"error\"").await;
            peer.closed().await;
            false
        }
        24 => {
            peer.head().await;
            loop {
                peer.chunk(&"x".repeat(16 * 1024)).await;
            }
        }
        // A tool call that breaks off.
        _ => {
            peer.head().await;
            let call = json!({"index": 0, "id": "c", "type": "function",
                "function": {"name": "search", "arguments": "{\"q\": "}});
            peer.event(&json!({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]})).await;
            peer.raw("0\r\n\r\n").await;
            true
        }
    }
}

async fn refuse(peer: &mut Peer, status: &str, header: &str, code: &str) -> bool {
    let headers = format!("content-type: application/json\r\n{header}");
    let body = json!({"error": {"message": code, "type": code, "code": code}}).to_string();
    peer.respond(status, &headers, &body).await;
    true
}

/// The configuration of a seed, with its providers.
fn client(seed: u64) -> (Upstream, Vec<Arc<Chaos>>, Config) {
    let mut dice = Dice::of(seed, 0);
    let (mut config, mut providers) = (Config::default(), Vec::new());
    let mut dialers = HashMap::<_, Arc<dyn Dial>>::new();
    for number in 1..2 + dice.roll(3) {
        let name = format!("p{number}");
        let endpoint = Endpoint::parse(&format!("http://{name}/v1")).unwrap();
        let mut provider = ProviderConfig::new(&name, endpoint);
        provider.dial = Some(name.clone());
        provider.keys =
            (0..dice.roll(4)).map(|key| (None, Secret::new(format!("key-{key}")))).collect();
        provider.retry.attempts = 1 + dice.roll(4) as u32;
        let limits = &mut provider.limits;
        limits.concurrent = 1 + dice.roll(4) as usize;
        limits.queue = dice.one_in(2).then(|| 1 + dice.roll(6) as usize);
        limits.per_minute = dice.one_in(4).then(|| 6 + dice.roll(60) as u32);
        limits.tokens_per_minute = dice.one_in(4).then(|| 600 + dice.roll(6000));
        provider.timeouts.total = dice.one_in(4).then_some(Duration::from_secs(100));
        config.providers.push(provider);
        let mut model = ModelConfig::new(format!("m{number}"), &name, format!("real-{number}"));
        model.commit = dice.choose(&[Commit::Fail, Commit::Restart, Commit::Continue]);
        model.prefill = dice.one_in(2);
        model.reasoning = dice.one_in(4);
        config.models.push(model);
        let chaos = Arc::new(Chaos {
            seed,
            provider: number,
            good: dice.choose(&[0, 20, 50, 80, 95]),
            dialled: AtomicU64::new(0),
            tasks: Mutex::default(),
        });
        dialers.insert(name, chaos.clone());
        providers.push(chaos);
    }
    let names: Vec<String> = config.models.iter().map(|model| model.name.clone()).collect();
    config.models[0].fallback = names[1..].to_vec();
    (Upstream::new(config.clone(), dialers).unwrap(), providers, config)
}

#[derive(Debug, Default)]
struct Rows(Mutex<Vec<UsageRow>>);

impl Observer for Rows {
    fn attempt(&self, row: &UsageRow) {
        self.0.lock().unwrap().push(row.clone());
    }
}

/// Plays a seed to its end and looks at what is left.
async fn schedule(seed: u64) {
    let (upstream, providers, config) = client(seed);
    let mut dice = Dice::of(seed, 1);
    let mut calls = JoinSet::new();
    for number in 0..1 + dice.roll(12) {
        let model = &config.models[dice.roll(config.models.len() as u64) as usize];
        let attempts = config
            .providers
            .iter()
            .find(|provider| provider.name == model.provider)
            .map_or(0, |provider| provider.retry.attempts);
        let (upstream, model) = (upstream.clone(), model.clone());
        let dice = Dice::of(seed, 2 + number);
        calls.spawn(async move { call(&upstream, dice, &model, attempts).await });
    }
    let mut made = 0;
    while let Some(rows) = calls.join_next().await {
        made += rows.unwrap();
    }
    let views = upstream.provider_views();
    for view in &views {
        let queued: usize = view.limiter.queued.iter().sum();
        assert_eq!((view.limiter.in_flight, queued), (0, 0), "{}", view.name);
        let connections = view.connections;
        assert_eq!(connections.opened - connections.closed, connections.idle as u64);
    }
    let told: u64 = views.iter().flat_map(|view| view.tally.attempts.values()).sum();
    assert_eq!(told, made as u64, "every attempt is told of once");

    // Nobody goes on, and idle connections go.
    let dialled = || -> Vec<_> {
        providers.iter().map(|provider| provider.dialled.load(Ordering::Relaxed)).collect()
    };
    let before = dialled();
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(dialled(), before);
    upstream.expire_idle(now());
    for view in upstream.provider_views() {
        assert_eq!(view.connections.opened, view.connections.closed, "{}", view.name);
    }
}

/// Makes a call, which may be left early, and says how many attempts it took.
async fn call(upstream: &Upstream, mut dice: Dice, model: &ModelConfig, attempts: u32) -> usize {
    tokio::time::sleep(dice.millis(20_000)).await;
    let budget = dice.choose(&[100, 1000, 5000, 25_000, 120_000]);
    let budget = Duration::from_millis(budget) + dice.millis(1000);
    let rows = Arc::new(Rows::default());
    let cx = CallCx {
        observer: Some(rows.clone()),
        class: dice.choose(&[Class::Interactive, Class::Run, Class::Bulk]),
        ..cx(budget)
    };
    let patience = if dice.one_in(4) { dice.millis(30_000) } else { Duration::from_secs(1000) };
    let outcome = tokio::time::timeout(patience, follow(upstream, &cx, &mut dice, model)).await;
    assert!(!cx.probe.is_connected());
    let rows = rows.0.lock().unwrap();
    assert!(rows.len() <= attempts as usize, "{rows:?}");
    let numbers: Vec<_> = rows.iter().map(|row| row.number).collect();
    assert_eq!(numbers, (1..=rows.len() as u32).collect::<Vec<_>>());
    match outcome {
        Ok(Ok(())) => assert!(rows.last().unwrap().is_ok(), "{rows:?}"),
        Ok(Err(error)) => {
            assert_ne!(error.code(), Code::Internal, "{error}");
            let told = error.failure().detail["attempts"].as_array().unwrap();
            assert_eq!(told.len(), rows.len(), "{error}: {rows:?}");
            assert!(rows.iter().all(|row| !row.is_ok()), "{rows:?}");
        }
        // Left.
        Err(_) => {}
    }
    rows.len()
}

/// Reads an answer to its end, now and then slowly.
async fn follow(
    upstream: &Upstream,
    cx: &CallCx,
    dice: &mut Dice,
    model: &ModelConfig,
) -> Result<(), Error> {
    // Whatever happens, control is back in time.
    let in_time = |entered: Instant| {
        let due = cx.deadline.0.max(entered) + Duration::from_millis(250);
        assert!(now() <= due, "{:?} late", now() - due);
    };
    let entered = now();
    let stream = upstream.chat(cx.clone(), ask_model(&model.name)).await;
    in_time(entered);
    let mut stream = stream?;
    let whole: String = (0..WORDS).map(word).collect();
    let (mut text, mut is_whole) = (String::new(), false);
    loop {
        if dice.one_in(6) {
            tokio::time::sleep(dice.millis(3000)).await;
        }
        let entered = now();
        let event = stream.next().await;
        in_time(entered);
        let Some(event) = event? else { break };
        assert!(!is_whole, "nothing follows the end");
        match event {
            ChatEvent::Text(piece) => text.push_str(&piece),
            ChatEvent::Reset { .. } => {
                assert_ne!(model.commit, Commit::Fail);
                text.clear();
            }
            ChatEvent::Finish { .. } => is_whole = true,
            ChatEvent::Reasoning(_) | ChatEvent::ToolCall { .. } => {}
        }
        // Never twice, never with a hole.
        assert!(whole.starts_with(&text), "{text:?}");
    }
    assert!(is_whole);
    assert_eq!(text, whole);
    Ok(())
}
