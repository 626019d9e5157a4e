//! The same over real sockets, where connections can be reset. Real time, so nothing here waits for
//! a limit to pass.

use clearway_sim::{Options, Sim};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::*;

/// A client of a simulator that listens on the loopback.
struct Loopback {
    upstream: Upstream,
    sim: Sim,
    _server: JoinSet<std::io::Result<()>>,
}

impl Loopback {
    async fn new(options: Options) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let sim = Sim::new(options);
        let mut server = JoinSet::new();
        let serving = sim.clone();
        server.spawn(async move { serving.serve(listener, CancellationToken::new()).await });
        let change = |config: &mut Config| {
            config.providers[0].endpoint = Endpoint::parse(&url).unwrap();
            config.providers[0].dial = None;
        };
        let upstream = Upstream::new(config(change), HashMap::new()).unwrap();
        Self { upstream, sim, _server: server }
    }

    async fn run(&self, model: &str) -> Result<usize, Code> {
        let run = async {
            let mut tokens = 0;
            let mut stream =
                self.upstream.chat(cx(Duration::from_secs(60)), ask_model(model)).await?;
            while let Some(event) = stream.next().await? {
                tokens += usize::from(matches!(event, ChatEvent::Text(_)));
            }
            Ok(tokens)
        };
        run.await.map_err(|error: Error| error.code())
    }
}

#[tokio::test]
async fn answers_and_resets() {
    for (fault, first, second) in [
        (None, Ok(60), Ok(60)),
        (Some("close_after_reply"), Ok(60), Ok(60)),
        (Some("reset_reused"), Ok(60), Ok(60)),
        (Some("reset"), Err(Code::UpstreamConnectFailed), Err(Code::UpstreamConnectFailed)),
        (Some("cut_rst"), Err(Code::UpstreamStreamTruncated), Err(Code::UpstreamStreamTruncated)),
    ] {
        let fault = fault.map(|name| name.parse().unwrap());
        let loopback =
            Loopback::new(Options { fault, tokens: Some(60), ..Options::default() }).await;
        assert_eq!(loopback.run("m").await, first, "{fault:?}");
        assert_eq!(loopback.run("m").await, second, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_share_the_slots() {
    let options = Options {
        tokens: Some(20),
        token_interval: Duration::from_millis(1),
        max_concurrent: Some(10),
        ..Options::default()
    };
    let loopback = Arc::new(Loopback::new(options).await);
    let mut calls = JoinSet::new();
    for _ in 0..50 {
        let loopback = loopback.clone();
        calls.spawn(async move { loopback.run("m").await });
    }
    while let Some(tokens) = calls.join_next().await {
        // The simulator refuses the eleventh at once.
        assert_eq!(tokens.unwrap(), Ok(20));
    }
    let connections = loopback.upstream.provider_views()[0].connections;
    assert_eq!(connections.opened, 10);
    assert_eq!(connections.reused, 40);
}

#[tokio::test]
async fn a_client_that_leaves_is_seen_to_leave() {
    let options = Options {
        tokens: Some(1000),
        token_interval: Duration::from_millis(5),
        ..Options::default()
    };
    let loopback = Loopback::new(options).await;
    let call = cx(Duration::from_secs(60));
    let mut stream = loopback.upstream.chat(call.clone(), ask()).await.unwrap();
    stream.next().await.unwrap();
    assert!(call.probe.is_connected());
    drop(stream);
    assert!(!call.probe.is_connected());
    let left = Instant::now();
    while loopback.sim.stats().in_flight != 0 {
        tokio::task::yield_now().await;
        assert!(left.elapsed() < Duration::from_secs(5), "the provider goes on generating");
    }
}
