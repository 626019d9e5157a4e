//! What needs real sockets, and therefore real time: each test waits for a state, never for a duration.

use std::io::ErrorKind;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::Stats;

/// A served listener; stopped when told.
struct Served {
    sim: Sim,
    address: SocketAddr,
    shutdown: CancellationToken,
    server: JoinSet<std::io::Result<()>>,
}

impl Served {
    async fn new(options: Options) -> Self {
        let sim = Sim::new(options);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let mut server = JoinSet::new();
        let (provider, stop) = (sim.clone(), shutdown.clone());
        server.spawn(async move { provider.serve(listener, stop).await });
        Self { sim, address, shutdown, server }
    }

    async fn send(&self, request: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        stream
    }

    /// Waits for the counters to say so.
    async fn until(&self, what: impl Fn(&Stats) -> bool) {
        let reached = async {
            while !what(&self.sim.stats()) {
                tokio::time::sleep(MS).await;
            }
        };
        assert!(timeout(10 * SECOND, reached).await.is_ok(), "{:?}", self.sim.stats());
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        self.server.join_next().await.unwrap().unwrap().unwrap();
        let stats = self.sim.stats();
        assert_eq!((stats.connections_open, stats.in_flight), (0, 0));
    }
}

/// Everything that comes, and how it ends.
async fn read_all(stream: &mut TcpStream) -> (Vec<u8>, Result<(), ErrorKind>) {
    let mut bytes = Vec::new();
    let result = timeout(10 * SECOND, stream.read_to_end(&mut bytes)).await.unwrap();
    (bytes, result.map(|_| ()).map_err(|error| error.kind()))
}

#[tokio::test]
async fn resets_are_resets_and_closes_are_closes() {
    let served = Served::new(Options { tokens: Some(30), ..Options::default() }).await;
    let mut reset = served.send(&chat_request("", &streamed("m+reset"))).await;
    assert_eq!(read_all(&mut reset).await, (Vec::new(), Err(ErrorKind::ConnectionReset)));
    let mut cut = served.send(&chat_request("", &streamed("m+cut_rst"))).await;
    assert_eq!(read_all(&mut cut).await.1, Err(ErrorKind::ConnectionReset));
    let mut closed = served.send(&chat_request("", &streamed("m+cut_fin"))).await;
    let (bytes, result) = read_all(&mut closed).await;
    assert_eq!(
        (result, Answer::new(&bytes, End::Closed, Instant::now(), MS).text().len()),
        (Ok(()), 109)
    );
    let mut missing = served.send(&chat_request("", &streamed("m+cut_chunk"))).await;
    let (bytes, result) = read_all(&mut missing).await;
    assert!(result.is_ok() && !bytes.ends_with(crate::http::LAST_CHUNK));
    served.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_is_counted() {
    let options = Options { tokens: Some(30), token_interval: 3600 * SECOND, ..Options::default() };
    let served = Served::new(options).await;
    let large = {
        let mut body = streamed("m");
        body["messages"][0]["content"] = "x".repeat(50_000).into();
        body
    };
    let requests = [
        chat_request("", &streamed("m")),
        chat_request("", &whole("m")),
        chat_request("", &streamed("m+no_answer")),
        chat_request("x-sim-fault: no_read\r\n", &large),
    ];
    for (count, request) in (1..).zip(requests) {
        let stream = served.send(&request).await;
        served.until(|stats| stats.in_flight == 1).await;
        drop(stream);
        served.until(|stats| stats.aborted_by_client == count && stats.in_flight == 0).await;
        served.until(|stats| stats.connections_open == 0).await;
    }
    served.stop().await;
}

#[tokio::test]
async fn an_early_refusal_arrives_although_the_body_is_still_on_its_way() {
    let served = Served::new(Options::default()).await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let send = async {
        let head =
            format!("POST /v1/chat/completions HTTP/1.1\r\ncontent-length: {}\r\n\r\n", 64 << 20);
        writer.write_all(head.as_bytes()).await.unwrap();
        // Fails at some point, when the provider has seen enough.
        let _ = writer.write_all(&vec![b' '; 512 * 1024]).await;
    };
    let mut bytes = vec![0; 64];
    let receive = async { reader.read_exact(&mut bytes).await.unwrap() };
    tokio::join!(send, receive);
    assert!(bytes.starts_with(b"HTTP/1.1 413 Content Too Large\r\n"));
    drop(stream);
    served.until(|stats| stats.connections_open == 0).await;
    served.stop().await;
}

#[tokio::test]
async fn stopping_drops_what_is_open() {
    let served = Served::new(Options { ttft: 3600 * SECOND, ..Options::default() }).await;
    let mut stream = served.send(&chat_request("", &streamed("m"))).await;
    served.until(|stats| stats.in_flight == 1).await;
    served.stop().await;
    assert!(read_all(&mut stream).await.0.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_at_once_are_all_whole() {
    let options =
        Options { tokens: Some(20), token_interval: 5 * MS, jitter: 0.5, ..Options::default() };
    let served = Served::new(options).await;
    let mut clients = JoinSet::new();
    for _ in 0..200 {
        let address = served.address;
        clients.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(&chat_request("connection: close\r\n", &streamed("m"))).await.unwrap();
            let (bytes, result) = read_all(&mut stream).await;
            assert_eq!(result, Ok(()));
            Answer::new(&bytes, End::Closed, Instant::now(), MS).text()
        });
    }
    let expected = (0..20).map(|index| format!("tok{index}")).collect::<Vec<_>>().join(" ");
    let texts = clients.join_all().await;
    assert!(texts.len() == 200 && texts.iter().all(|text| *text == expected));
    served
        .until(|stats| (stats.completed, stats.tokens_sent, stats.in_flight) == (200, 4000, 0))
        .await;
    served.stop().await;
}
