use std::pin::pin;

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::*;

/// Dials and returns the phases gone through, with the stream or the error.
async fn dial(
    tcp: &TcpDial,
    endpoint: &Endpoint,
) -> (Vec<DialPhase>, Result<Box<dyn Io>, DialError>) {
    let phases = Mutex::new(Vec::new());
    let result = tcp.dial(endpoint, &|phase| phases.lock().unwrap().push(phase)).await;
    (phases.into_inner().unwrap(), result)
}

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[test]
fn families_take_turns() {
    let v4 = |last| IpAddr::from([127, 0, 0, last]);
    let v6 = IpAddr::from(Ipv6Addr::LOCALHOST);
    assert_eq!(interleave([v4(1), v4(2), v6].into_iter()), [v4(1), v6, v4(2)]);
}

#[tokio::test]
async fn literals_and_localhost_need_no_resolver() {
    let (_listener, port) = listen().await;
    for host in ["127.0.0.1", "localhost", "LocalHost"] {
        let endpoint = Endpoint::parse(&format!("http://{host}:{port}")).unwrap();
        let (phases, result) = dial(&TcpDial::new(), &endpoint).await;
        assert!(result.is_ok());
        assert_eq!(phases, [DialPhase::Connect]);
    }
}

#[tokio::test]
async fn a_refused_connection_names_the_address() {
    let (listener, port) = listen().await;
    drop(listener);
    let endpoint = Endpoint::parse(&format!("http://127.0.0.1:{port}")).unwrap();
    let error = dial(&TcpDial::new(), &endpoint).await.1.map(drop).unwrap_err();
    assert_eq!(error.phase, DialPhase::Connect);
    assert!(error.message.contains(&format!("127.0.0.1:{port}")), "{error}");
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_refuses() {
    let (_listener, port) = listen().await;
    // Nothing listens on the second address of the loopback network.
    let addresses = [IpAddr::from([127, 0, 0, 2]), IpAddr::from([127, 0, 0, 1])];
    let stream = connect(&addresses, port).await.unwrap();
    assert_eq!(stream.peer_addr().unwrap().ip(), addresses[1]);
}

#[test]
fn a_file_without_certificates_is_refused() {
    let mut dial = TcpDial::new();
    assert!(dial.trust(Path::new("/nonexistent/ca.pem")).is_err());
    assert!(dial.trust(Path::new("/dev/null")).is_err());
}

// The authority's own key was thrown away; the certificate is for localhost and good for nothing else.
const SERVER: &[u8] = include_bytes!("fixtures/server.pem");
const SERVER_KEY: &[u8] = include_bytes!("fixtures/server.key");

fn authority() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/dial/tcp/fixtures/ca.pem")
}

/// A TLS server that greets; it tells the protocol that was agreed on.
async fn greet(listener: TcpListener) {
    let chain = CertificateDer::pem_slice_iter(SERVER).collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(SERVER_KEY).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        // A client that does not trust us breaks the handshake off.
        if let Ok(mut stream) = acceptor.accept(stream).await {
            let protocol = stream.get_ref().1.alpn_protocol().unwrap().to_vec();
            let _ = stream.write_all(&protocol).await;
            let _ = stream.shutdown().await;
        }
    }
}

#[tokio::test]
async fn tls_trusts_what_it_is_told_to() {
    let (listener, port) = listen().await;
    let mut server = JoinSet::new();
    server.spawn(greet(listener));
    let mut tcp = TcpDial::new();
    let mut endpoint = Endpoint::parse(&format!("https://localhost:{port}")).unwrap();

    let (phases, result) = dial(&tcp, &endpoint).await;
    let error = result.map(drop).unwrap_err();
    assert_eq!(error.phase, DialPhase::Tls, "{error}");
    assert!(error.message.contains("localhost"), "{error}");
    assert_eq!(phases, [DialPhase::Connect, DialPhase::Tls]);

    endpoint.ca_file = Some(authority());
    let error = dial(&tcp, &endpoint).await.1.map(drop).unwrap_err();
    assert!(error.message.contains("was not loaded at start"), "{error}");

    tcp.trust(&authority()).unwrap();
    let mut stream = dial(&tcp, &endpoint).await.1.unwrap();
    let mut greeting = String::new();
    stream.read_to_string(&mut greeting).await.unwrap();
    assert_eq!(greeting, "http/1.1", "never HTTP/2");

    // The right authority, but another name.
    endpoint.host = "127.0.0.1".into();
    let error = dial(&tcp, &endpoint).await.1.map(drop).unwrap_err();
    assert_eq!(error.phase, DialPhase::Tls, "{error}");
}

/// A name server that knows `provider.test` until it is told to fail.
async fn name_server(socket: UdpSocket, failing: Arc<std::sync::atomic::AtomicBool>) {
    let mut query = [0; 512];
    loop {
        let (length, from) = socket.recv_from(&mut query).await.unwrap();
        // The question ends four bytes behind the name's last label.
        let name_length = query[12..length].iter().position(|&byte| byte == 0).unwrap();
        let question = &query[12..12 + name_length + 5];
        let known = question.to_ascii_lowercase().starts_with(b"\x08provider\x04test\0");
        let wants_v4 = question[name_length + 2] == 1;
        let (status, answers) = if failing.load(std::sync::atomic::Ordering::Relaxed) {
            (2, 0) // server failure
        } else if known {
            (0, u8::from(wants_v4))
        } else {
            (3, 0) // no such name
        };
        let mut reply = vec![query[0], query[1], 0x81, 0x80 | status, 0, 1, 0, answers, 0, 0, 0, 0];
        reply.extend_from_slice(question);
        if answers > 0 {
            // The name of the question, A, IN, valid for no time at all, 127.0.0.1.
            reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1]);
        }
        socket.send_to(&reply, from).await.unwrap();
    }
}

#[tokio::test]
async fn names_are_resolved_in_the_process() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let tcp = TcpDial::asking(socket.local_addr().unwrap().port());

    let failing = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    tasks.spawn(name_server(socket, failing.clone()));
    let (_listener, port) = listen().await;

    let nobody = Endpoint::parse(&format!("http://nobody.test:{port}")).unwrap();
    let (phases, result) = dial(&tcp, &nobody).await;
    let error = result.map(drop).unwrap_err();
    assert_eq!(error.phase, DialPhase::Dns);
    assert!(error.message.starts_with("nobody.test does not exist"), "{error}");
    assert_eq!(phases, [DialPhase::Dns]);

    let endpoint = Endpoint::parse(&format!("http://provider.test:{port}")).unwrap();
    let (phases, result) = dial(&tcp, &endpoint).await;
    assert!(result.is_ok(), "{:?}", result.map(drop));
    assert_eq!(phases, [DialPhase::Dns, DialPhase::Connect]);

    // The last good answer outlives the name server, for a while.
    failing.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(dial(&tcp, &endpoint).await.1.is_ok());
    tcp.known().clear();
    let error = dial(&tcp, &endpoint).await.1.map(drop).unwrap_err();
    assert_eq!(error.phase, DialPhase::Dns);
    assert!(error.message.starts_with("cannot resolve provider.test"), "{error}");
}

#[tokio::test]
async fn giving_up_closes_what_is_half_open() {
    let (listener, port) = listen().await;
    let tcp = TcpDial::new();
    // It accepts and then says nothing, so that TLS never gets anywhere.
    let endpoint = Endpoint::parse(&format!("https://localhost:{port}")).unwrap();
    let mut accepted = {
        let mut dialling = pin!(dial(&tcp, &endpoint));
        tokio::select! {
            _ = &mut dialling => panic!("nobody answered"),
            accepted = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                // Its first words are here: TLS has begun.
                stream.read_u8().await.unwrap();
                stream
            } => accepted,
        }
    };
    let mut rest = Vec::new();
    accepted.read_to_end(&mut rest).await.unwrap();
}

impl TcpDial {
    /// One that asks a name server on this port of the loopback.
    pub(crate) fn asking(port: u16) -> Self {
        let mut udp = ConnectionConfig::udp();
        udp.port = port;
        let mut server = NameServerConfig::udp(Ipv4Addr::LOCALHOST.into());
        server.connections = vec![udp];
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        Self { resolver: finish(builder), ..Self::new() }
    }
}
