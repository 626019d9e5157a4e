//! Over real sockets: lines that lead nowhere, callers that leave, keys, and embeddings.

use std::net::SocketAddr;

use clearway_sim::{KeyRule, KeyState, Options};
use futures_util::future::join_all;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use super::lab::*;
use super::*;

/// A client of one provider at `url`, which is given up after two failures.
fn client_of(url: &str, dial: Option<Arc<dyn Dial>>) -> Upstream {
    let change = |config: &mut Config| {
        let provider = &mut config.providers[0];
        provider.endpoint = Endpoint::parse(url).unwrap();
        provider.timeouts = Timeouts { connect: Duration::from_millis(400), ..short_timeouts() };
        provider.breaker.failures = 2;
        provider.breaker.recovery = Duration::from_secs(60);
        provider.dial = dial.is_some().then(|| "own".to_owned());
    };
    let config = config(change);
    let dialers = dial.map(|dial| ("own".to_owned(), dial)).into_iter().collect();
    Upstream::new(config, dialers).unwrap()
}

/// Two calls fail with `code` in `phase` after the connect limit or at once; then the endpoint's
/// breaker is open, and the third call is told so without being made.
async fn leads_nowhere(upstream: &Upstream, code: Code, phase: &str, at_once: bool) {
    for _ in 0..2 {
        let call = cx(Duration::from_secs(10));
        let began = now();
        let failure = upstream.chat(call.clone(), ask()).await.unwrap_err().into_failure();
        let took = now() - began;
        assert_eq!((failure.code, &failure.detail["phase"]), (code, &json!(phase)), "{failure}");
        let limit = Duration::from_millis(400);
        assert!(at_once || took >= limit, "{phase}: {took:?}");
        assert!(took < limit + Duration::from_secs(1), "{phase}: {took:?}");
        assert!(!call.probe.is_connected());
        let spent = call.wait.read(now()).spent;
        let kind = if phase == "dns" { WaitKind::Dns } else { WaitKind::Connect };
        assert!(at_once || spent.get(kind) >= limit / 2, "{phase}: {spent}");
    }
    let view = upstream.provider_views().remove(0);
    assert_eq!((view.breaker.state, view.models[0].breaker.state), ("open", "closed"), "{phase}");
    assert_eq!((view.limiter.in_flight, view.connections.idle), (0, 0));
    assert_eq!(view.connections.opened, view.connections.closed);
    let refused = upstream.chat(cx(Duration::from_secs(5)), ask()).await.unwrap_err();
    assert_eq!(refused.code(), Code::UpstreamRouteOpen);
    assert!(refused.failure().retry_after.is_some());
}

/// An address whose queue of connections is full, so that no further one is answered.
async fn black_hole() -> (TcpListener, Vec<TcpStream>, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut fillers = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await
    {
        fillers.push(stream);
        assert!(fillers.len() < 10, "the queue does not fill");
    }
    (listener, fillers, address)
}

#[tokio::test]
async fn no_answer_below_http_ends_at_the_connect_limit() {
    let (_hole, _fillers, hole) = black_hole().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tls = silent.local_addr().unwrap().port();
    let names = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let deaf: Arc<dyn Dial> = Arc::new(TcpDial::asking(names.local_addr().unwrap().port()));
    let [hole, tls, name] = [
        client_of(&format!("http://{hole}/v1"), None),
        client_of(&format!("https://localhost:{tls}/v1"), None),
        client_of("http://provider.test/v1", Some(deaf)),
    ];
    tokio::join!(
        leads_nowhere(&hole, Code::UpstreamConnectTimeout, "connect", false),
        leads_nowhere(&tls, Code::UpstreamConnectTimeout, "tls", false),
        leads_nowhere(&name, Code::UpstreamDnsFailed, "dns", false),
    );
}

#[tokio::test]
async fn refusals_below_http_are_told_at_once() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = closed.local_addr().unwrap();
    drop(closed);
    // Whatever is asked does not exist.
    let names = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = names.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut query = [0; 512];
        loop {
            let (length, from) = names.recv_from(&mut query).await.unwrap();
            let name = query[12..length].iter().position(|&byte| byte == 0).unwrap();
            let mut reply = vec![query[0], query[1], 0x81, 0x83, 0, 1, 0, 0, 0, 0, 0, 0];
            reply.extend_from_slice(&query[12..12 + name + 5]);
            names.send_to(&reply, from).await.unwrap();
        }
    });
    // Not TLS, whatever the client says.
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tls = plain.local_addr().unwrap().port();
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = plain.accept().await.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let asking: Arc<dyn Dial> = Arc::new(TcpDial::asking(port));
    let [nobody, name, tls] = [
        client_of(&format!("http://{nobody}/v1"), None),
        client_of("http://provider.test/v1", Some(asking)),
        client_of(&format!("https://localhost:{tls}/v1"), None),
    ];
    tokio::join!(
        leads_nowhere(&nobody, Code::UpstreamConnectFailed, "connect", true),
        leads_nowhere(&name, Code::UpstreamDnsFailed, "dns", true),
        leads_nowhere(&tls, Code::UpstreamTlsFailed, "tls", true),
    );
}

/// Providers are spoken to in HTTP/1.1. One that answers in HTTP/2 is told apart at once, whether it
/// greets, says goodbye or says nothing after that.
#[tokio::test]
async fn a_provider_that_speaks_another_http_is_told_at_once() {
    let settings = b"\0\0\0\x04\0\0\0\0\0".as_slice();
    let goodbye = b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0".as_slice();
    for frames in [settings.to_vec(), [settings, goodbye].concat()] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut kept = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_all(&frames).await.unwrap();
                kept.push(stream);
            }
        });
        let upstream = client_of(&url, None);
        let began = now();
        let failure = upstream.chat(cx(Duration::from_secs(10)), ask()).await.unwrap_err();
        assert_eq!(failure.code(), Code::UpstreamBadResponse, "{failure}");
        assert!(now() - began < Duration::from_secs(1));
        let connections = upstream.provider_views()[0].connections;
        assert_eq!((connections.opened, connections.closed), (1, 1));
    }
}

/// Books what became of attempts.
#[derive(Debug, Default)]
struct Rows(Mutex<Vec<UsageRow>>);

impl Observer for Rows {
    fn attempt(&self, row: &UsageRow) {
        self.0.lock().unwrap().push(row.clone());
    }
}

/// A caller that leaves while its call waits for `kind`; what is booked of its attempts.
async fn leave(
    lab: &Lab,
    kind: WaitKind,
    seen_there: bool,
) -> Vec<(&'static str, Phase, UsageSource)> {
    let rows = Arc::new(Rows::default());
    let call = CallCx { observer: Some(rows.clone()), ..cx(Duration::from_secs(60)) };
    let before = lab.sims[0].stats();
    {
        let chat = async {
            let mut stream = lab.upstream.chat(call.clone(), ask()).await?;
            while stream.next().await?.is_some() {}
            Ok::<_, Error>(())
        };
        let mut chat = std::pin::pin!(chat);
        let began = now();
        while waits_for(&call, now()) != kind
            || seen_there && lab.sims[0].stats().in_flight == before.in_flight
            || kind == WaitKind::NextToken && lab.sims[0].stats().tokens_sent < 20
        {
            tokio::select! {
                end = chat.as_mut() => panic!("{kind:?}: it ended: {end:?}"),
                () = settle() => {}
            }
            assert!(now() - began < Duration::from_secs(5), "{kind:?}");
        }
    }
    // The provider sees it at once, and nothing of it is left here.
    let left = now();
    assert!(!call.probe.is_connected(), "{kind:?}");
    while lab.sims[0].stats().in_flight > before.in_flight {
        settle().await;
        assert!(now() - left < Duration::from_secs(1), "{kind:?}: the provider works on");
    }
    if seen_there {
        let aborted = lab.sims[0].stats().aborted_by_client - before.aborted_by_client;
        assert_eq!(aborted, 1, "{kind:?}");
    }
    let rows = rows.0.lock().unwrap();
    rows.iter().map(|row| (row.outcome, row.phase, row.source)).collect()
}

#[tokio::test]
async fn whoever_leaves_is_gone_at_every_stage() {
    let one = |config: &mut Config| config.providers[0].limits.concurrent = 1;
    // A client that asks for one JSON document is streamed to all the same, so this is its case, too.
    for (fault, kind, expected) in [
        ("no_answer", WaitKind::FirstByte, ("cancelled", Phase::Headers, UsageSource::None)),
        ("ttft:60000", WaitKind::FirstByte, ("cancelled", Phase::FirstToken, UsageSource::None)),
        ("stall", WaitKind::NextToken, ("cancelled", Phase::Stream, UsageSource::Partial)),
        (
            "retry_after:5",
            WaitKind::Retry,
            ("upstream.rate_limited", Phase::ErrorBody, UsageSource::None),
        ),
    ] {
        let patient = |config: &mut Config| {
            one(config);
            let timeouts = &mut config.providers[0].timeouts;
            (timeouts.headers, timeouts.ttft) = (Duration::from_secs(5), Duration::from_secs(5));
            timeouts.idle_output = Duration::from_secs(5);
        };
        let lab = Lab::on_sockets([options(fault)], patient).await;
        let rows = leave(&lab, kind, kind != WaitKind::Retry).await;
        let [(outcome, phase, source)] = rows[..] else { panic!("{fault}: {rows:?}") };
        assert_eq!((outcome, source), (expected.0, expected.2), "{fault}");
        // Whether the head had been read is the client's and the scheduler's affair.
        assert!(phase == expected.1 || fault.starts_with("ttft"), "{fault}: {phase}");
        let requests = lab.requests(0);
        lab.assert_closed(fault).await;
        assert_eq!(lab.requests(0), requests, "{fault}: nothing begins afterwards");
    }
    // In the queue, behind one that holds the only slot: never a request.
    let lab = Lab::on_sockets([options("stall")], one).await;
    let holder = lab.upstream.chat(cx(Duration::from_secs(60)), ask()).await.unwrap();
    assert_eq!(leave(&lab, WaitKind::ProviderSlot, false).await, []);
    assert_eq!(lab.requests(0), 1);
    drop(holder);
    lab.assert_closed("queue").await;
}

#[tokio::test]
async fn whoever_leaves_while_dialling_closes_the_socket() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream =
        client_of(&format!("https://localhost:{}/v1", silent.local_addr().unwrap().port()), None);
    let call = cx(Duration::from_secs(60));
    let mut accepted = {
        let mut chat = std::pin::pin!(upstream.chat(call.clone(), ask()));
        tokio::select! {
            _ = chat.as_mut() => panic!("nobody answers"),
            accepted = silent.accept() => accepted.unwrap().0,
        }
    };
    assert!(!call.probe.is_connected());
    assert_eq!(upstream.provider_views()[0].limiter.in_flight, 0);
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(1), accepted.read_to_end(&mut rest)).await;
    assert!(read.is_ok(), "the socket is open");
}

#[tokio::test]
async fn five_hundred_that_vanish_leave_nothing() {
    let lab = Arc::new(
        Lab::on_sockets([options("stall")], |config| config.providers[0].limits.concurrent = 50)
            .await,
    );
    let calls = (0..500).map(|number| {
        let lab = lab.clone();
        async move {
            let patience = Duration::from_millis(number * 2);
            let call = lab.call_with(cx(Duration::from_secs(10)), ask(), &[]);
            assert!(
                tokio::time::timeout(patience, call)
                    .await
                    .map_or(true, |call| call.error.is_some())
            );
        }
    });
    join_all(calls).await;
    lab.assert_closed("500").await;
    lab.sims[0].change(|control| control.fault = None);
    lab.upstream.reset("a");
    lab.call().await.assert_whole();
}

#[tokio::test]
async fn a_thousand_calls_that_time_out_leave_no_socket() {
    for fault in ["no_answer", "stall"] {
        let lab = Lab::on_sockets([options(fault)], |config| {
            config.providers[0].limits.concurrent = 100;
            config.providers[0].limits.queue = Some(1000);
            config.providers[0].breaker.failures = 10_000;
            config.providers[0].timeouts.headers = Duration::from_secs(9);
            config.providers[0].timeouts.ttft = Duration::from_secs(9);
            config.providers[0].timeouts.ttft_reasoning = Duration::from_secs(9);
        })
        .await;
        let calls = (0..1000_u64).map(|number| {
            let budget = Duration::from_millis(200 + number % 100 * 3);
            let call = lab.call_with(cx(budget), ask(), &[]);
            async move { (budget, call.await) }
        });
        for (budget, call) in join_all(calls).await {
            // In the queue or at the provider; none is told anything else.
            let code = call.code();
            let timely =
                [Code::DeadlineExceeded, Code::UpstreamShedDeadline, Code::UpstreamShedQueueFull];
            assert!(code.is_some_and(|code| timely.contains(&code)), "{fault}: {}", call.line());
            assert!(call.took <= budget + Duration::from_millis(1500), "{fault}: {:?}", call.took);
        }
        lab.assert_closed(fault).await;
    }
}

#[tokio::test]
async fn the_good_key_takes_over_within_a_second() {
    let rules = [("dead", KeyState::Dead), ("limited", KeyState::Limited), ("fine", KeyState::Ok)];
    let keys = rules.map(|(key, state)| KeyRule { key: key.to_owned(), state });
    let options = Options { keys: keys.to_vec(), ..options("") };
    let change = |config: &mut Config| {
        let keys = rules.map(|(key, _)| (Some(key.to_owned()), Secret::new(key)));
        config.providers[0].keys = keys.to_vec();
    };
    let lab = Lab::on_sockets([options], change).await;
    let call = lab.call().await;
    call.assert_whole();
    assert!(call.took < Duration::from_secs(1), "{:?}", call.took);
    let used: Vec<_> = call.rows.iter().map(|row| (&*row.key, row.outcome)).collect();
    let (dead, limited) = ("upstream.credentials_exhausted", "upstream.rate_limited");
    assert_eq!(used, [("dead", dead), ("limited", limited), ("fine", "ok")]);
    let states: Vec<_> =
        lab.upstream.provider_views()[0].keys.iter().map(|key| (key.state, key.reason)).collect();
    assert_eq!(states, [("disabled", Some("auth")), ("cooling", None), ("ok", None)]);
    lab.assert_closed("keys").await;
}

/// A model `embed` at provider `a`, for vectors of eight numbers.
fn embeds(config: &mut Config) {
    let mut model = ModelConfig::new("embed", "a", "text-embedding-3-small");
    model.embedding = Some(EmbeddingModel { dimensions: Some(8) });
    config.models.push(model);
}

fn texts(texts: impl IntoIterator<Item = String>, purpose: Purpose) -> EmbedRequest {
    EmbedRequest {
        model: "embed".into(),
        texts: texts.into_iter().map(Arc::from).collect(),
        purpose,
        dimensions: Some(8),
    }
}

/// What became of the texts: their vectors' number, and the first error.
async fn embed(lab: &Lab, request: EmbedRequest) -> (usize, Option<Code>) {
    let answer = lab.upstream.embed(cx(Duration::from_secs(20)), request).await.unwrap();
    let good = answer.vectors.iter().filter(|one| one.is_ok()).count();
    let error = answer.vectors.iter().find_map(|one| one.as_ref().err().map(Error::code));
    (good, error)
}

#[tokio::test]
async fn vectors_that_do_not_fit_and_providers_that_are_silent() {
    let four = || texts((0..4).map(|number| format!("text {number}")), Purpose::Document);
    let bad = Some(Code::UpstreamBadVectors);
    let cases = [
        ("embed_reorder", (4, None)),
        ("embed_short", (0, bad)),
        ("embed_duplicate", (0, bad)),
        ("embed_dims", (2, bad)),
        ("embed_nan", (2, bad)),
        ("embed_null", (2, bad)),
        ("embed_zeros", (2, bad)),
        ("embed_empty", (2, bad)),
        ("no_answer", (0, Some(Code::UpstreamHeadersTimeout))),
    ];
    let plays = cases.map(|(fault, expected)| async move {
        let lab = Lab::on_sockets([options(fault)], embeds).await;
        let began = now();
        let (good, error) = embed(&lab, four()).await;
        assert_eq!(error, expected.1, "{fault}");
        // Halves are asked for, so that the sound ones of a bad batch may be had.
        assert!(good == expected.0 || error == bad && good < 4, "{fault}: {good} good ones");
        assert!(now() - began < Duration::from_secs(15), "{fault}");
        lab.assert_closed(fault).await;
        lab.sims[0].change(|control| control.fault = None);
        lab.upstream.reset("a");
        assert_eq!(embed(&lab, four()).await, (4, None), "{fault}: afterwards");
    });
    join_all(plays).await;
}

#[tokio::test]
async fn many_texts_leave_within_all_caps() {
    let slow = Options { ttft: Duration::from_millis(20), ..options("") };
    let lab = Lab::on_sockets([slow], |config| {
        embeds(config);
        config.providers[0].limits.concurrent = 10;
        config.providers[0].timeouts = Timeouts::default();
    })
    .await;
    // About 180 tokens each, 900 000 in all.
    let many = (0..5000).map(|number| format!("text {number} {}", "of some length ".repeat(48)));
    assert_eq!(embed(&lab, texts(many, Purpose::Document)).await, (5000, None));
    let stats = lab.sims[0].stats();
    assert!(stats.peak_in_flight <= 10, "{}", stats.peak_in_flight);
    assert_eq!(stats.texts_embedded, 5000);
    assert!(
        stats.texts_per_request.keys().all(|texts| *texts <= 256),
        "{:?}",
        stats.texts_per_request
    );
    lab.assert_closed("many").await;
}

#[tokio::test]
async fn a_thousand_with_one_question_are_one_request() {
    let slow = Options { ttft: Duration::from_millis(100), ..options("") };
    let lab = Arc::new(Lab::on_sockets([slow], embeds).await);
    let question = || texts(["the same question".to_owned()], Purpose::Query);
    // The one that began leaves before there is an answer.
    let leader = {
        let lab = lab.clone();
        async move {
            let call = embed(&lab, question());
            assert!(tokio::time::timeout(Duration::from_millis(30), call).await.is_err());
        }
    };
    let others = (0..999).map(|_| embed(&lab, question()));
    let ((), others) = tokio::join!(leader, join_all(others));
    assert!(others.iter().all(|one| *one == (1, None)));
    assert_eq!(lab.requests(0), 1);
    lab.assert_closed("same").await;
}

#[tokio::test]
async fn a_slow_request_is_sent_again_and_the_loser_closed() {
    let lab = Lab::on_sockets([options("slow_headers_once:6000")], |config| {
        embeds(config);
        let provider = &mut config.providers[0];
        provider.timeouts = Timeouts { total: None, ..Timeouts::default() };
        provider.retry.attempts = 2;
    })
    .await;
    let began = now();
    let question = texts(["a question".to_owned()], Purpose::Query);
    assert_eq!(embed(&lab, question).await, (1, None));
    let took = now() - began;
    assert!((Duration::from_millis(1500)..Duration::from_secs(4)).contains(&took), "{took:?}");
    let tally = lab.upstream.provider_views()[0].tally.clone();
    assert_eq!((tally.hedges, tally.attempts["ok"], tally.attempts["cancelled"]), (1, 1, 1));
    lab.assert_closed("hedge").await;
    let stats = lab.sims[0].stats();
    assert_eq!((stats.requests, stats.aborted_by_client), (2, 1), "the loser is closed");
}
