//! The listener: admission of connections, and their end.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use clearway_engine::Engine;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::{Address, App};
use crate::auth::ApiKey;
use crate::campaigns;
use crate::conn::{self, Notes};
use crate::routes;
use crate::service::HttpService;
use crate::stop::Stage;

/// How the server is set up.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    pub listen: SocketAddr,
    pub doors: Vec<Door>,
    /// The agent behind `/chat/async` at the root.
    pub default_agent: String,
    pub limits: HttpLimits,
    /// Listen beyond loopback although no keys are configured.
    pub insecure: bool,
    /// Once there is one, every address needs one.
    pub keys: Vec<ApiKey>,
    /// Hosts other than this machine's whose pages may ask a server on loopback.
    pub allowed_hosts: Vec<String>,
    /// Shown to people and in `/health`.
    pub version: String,
    /// Where data is kept, as the old services' clients expect to read it.
    pub data_path: String,
}

impl ServerOptions {
    /// The co-founder's door at the root, default limits.
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            doors: vec![Door::cofounder("/", "cofounder")],
            default_agent: "agent".to_owned(),
            limits: HttpLimits::default(),
            insecure: false,
            keys: Vec::new(),
            allowed_hosts: Vec::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            data_path: String::new(),
        }
    }
}

/// A dialect, mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Door {
    pub kind: DoorKind,
    /// `/`, or a path without a slash at its end.
    pub mount: String,
    pub agent: String,
    /// Whether `/state` answers.
    pub expose_state: bool,
    /// Of a door to notes: which source they are. `None` is the only one.
    pub source: Option<String>,
    /// What people are told about the model behind the agent.
    pub model: String,
    /// And about its tools.
    pub tools: Vec<String>,
}

impl Door {
    pub fn cofounder(mount: &str, agent: &str) -> Self {
        Self {
            kind: DoorKind::CoFounder,
            mount: mount.to_owned(),
            agent: agent.to_owned(),
            expose_state: false,
            source: None,
            model: String::new(),
            tools: Vec::new(),
        }
    }
}

/// Which dialect a door speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoorKind {
    CoFounder,
    /// Over a workflow.
    Campaign,
    /// Chat over notes.
    Knowledge,
}

/// Every bound of the HTTP side in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// Open connections; one more is answered with 503. Lowered at start when the process may not
    /// open enough files for it.
    pub connections: usize,
    pub body_bytes: usize,
    /// For the whole body.
    pub body_timeout: Duration,
    /// From the connection, or the first byte of a later request, to the end of the head.
    pub header_timeout: Duration,
    pub header_bytes: usize,
    pub headers: usize,
    /// How long a connection may be idle between two requests.
    pub keep_alive: Duration,
    /// A client that reads nothing of its answer for so long is let go.
    pub stalled_reader: Duration,
    pub heartbeat: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            body_bytes: 1 << 20,
            body_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            header_bytes: 32 << 10,
            headers: 100,
            keep_alive: Duration::from_secs(75),
            stalled_reader: Duration::from_secs(30),
            heartbeat: Duration::from_secs(15),
        }
    }
}

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    #[error(
        "{0} is in use by another process; choose another port with --port, or stop that process"
    )]
    AddressInUse(SocketAddr),
    #[error(
        "refusing to listen on {0}: it is reachable from other machines and no keys are configured; \
         configure keys, listen on 127.0.0.1, or write --insecure if everybody who reaches it may use it"
    )]
    Unguarded(SocketAddr),
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("`{mount}` cannot be a door's mount: {reason}")]
    InvalidMount { mount: String, reason: &'static str },
    #[error("two doors have the address {0}; give one of them another mount")]
    AddressTaken(String),
}

impl From<Address> for BindError {
    fn from(address: Address) -> Self {
        Self::AddressTaken(address.to_string())
    }
}

/// The HTTP server; see [`Server::bind`].
#[derive(Clone, Copy, Debug)]
pub struct Server;

impl Server {
    /// Opens the listening socket. Connections wait in it until [`Bound::serve`] runs.
    ///
    /// # Errors
    /// Says what is in the way, and what to do about it.
    pub async fn bind(engine: Engine, mut options: ServerOptions) -> Result<Bound, BindError> {
        if !options.listen.ip().is_loopback() && options.keys.is_empty() && !options.insecure {
            return Err(BindError::Unguarded(options.listen));
        }
        options.doors.iter().try_for_each(check_mount)?;
        let listener = listen(options.listen)?;
        let health = timeout(Duration::from_secs(2), engine.health()).await.ok();
        if let Some(health) = &health {
            let possible = connections_for(health.open_files_limit);
            if possible < options.limits.connections {
                tracing::info!(connections = possible, "fewer connections, for want of open files");
                options.limits.connections = possible;
            }
        }
        let app = App::new(engine, options, health);
        let (router, _) = routes::table(&app.options)?.into_parts();
        let router = router.with_state(app.clone());
        Ok(Bound { listener, app, router })
    }
}

fn check_mount(door: &Door) -> Result<(), BindError> {
    let mount = &door.mount;
    let invalid = |reason| Err(BindError::InvalidMount { mount: mount.clone(), reason });
    if mount == "/" {
        return Ok(());
    }
    if !mount.starts_with('/') {
        return invalid("it must begin with a slash");
    }
    if mount.ends_with('/') {
        return invalid("it must not end with a slash");
    }
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte);
    if !mount.bytes().all(is_plain) || mount.contains("//") {
        return invalid("only letters, digits, and - _ . ~ between single slashes");
    }
    if mount.split('/').any(|segment| matches!(segment, "." | "..")) {
        return invalid("clients resolve `.` and `..` before they ask");
    }
    Ok(())
}

fn listen(address: SocketAddr) -> Result<TcpListener, BindError> {
    let open = || -> io::Result<TcpListener> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restarted server must get its port back while old connections still linger.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    open().map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::AddressInUse(address),
        _ => BindError::Listen { address, source },
    })
}

/// How many connections so many open files allow: each may need one more to a provider, and the
/// store, logs and listeners need some.
const fn connections_for(open_files: u64) -> usize {
    let possible = open_files.saturating_sub(RESERVED_FILES) / 2;
    if possible < 16 { 16 } else { possible as usize }
}

/// How many open files a server needs for so many connections; with fewer it takes fewer.
pub const fn open_files_for(connections: usize) -> u64 {
    (connections as u64).saturating_mul(2).saturating_add(RESERVED_FILES)
}

const RESERVED_FILES: u64 = 128;

/// A server that listens.
pub struct Bound {
    listener: TcpListener,
    app: App,
    router: Router,
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bound").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl Bound {
    /// Where it really listens, which matters when the port was 0.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until it is told to stop and everything has ended.
    ///
    /// `soft`: open exchanges are finished, and the listener closes; while the engine drains it stays
    /// open until that is over, for whoever wants to know or cancel what still runs. `hard`: streams
    /// say why they end, then every connection closes.
    pub async fn serve(self, soft: CancellationToken, hard: CancellationToken) {
        let Self { listener, app, router } = self;
        if app.options.doors.iter().any(|door| door.kind == DoorKind::Campaign) {
            app.engine.tasks().spawn(campaigns::tell_ends(app.clone()));
        }
        let connections = TaskTracker::new();
        tokio::select! {
            () = accept(&listener, &app, &router, &connections) => {}
            () = drained(&app, &soft) => {}
            () = hard.cancelled() => {}
        }
        // Closed, so that whoever connects now is refused at once instead of waiting.
        drop(listener);
        app.stop.advance(Stage::Closed);
        connections.close();
        tokio::select! {
            () = connections.wait() => {}
            () = hard.cancelled() => {}
        }
        app.stop.advance(Stage::Hard);
        connections.wait().await;
        app.tasks.close();
        if timeout(LAST_TASKS, app.tasks.wait()).await.is_err() {
            tracing::warn!(
                tasks = app.tasks.len(),
                "some cancels of clients that left are still under way"
            );
        }
    }
}

/// Waits for the stop, and then for the engine, which has a bound of its own for that: connections do
/// not count, so nobody keeps the server up by coming again and again.
async fn drained(app: &App, soft: &CancellationToken) {
    soft.cancelled().await;
    app.stop.advance(Stage::Soft);
    if app.engine.is_draining() {
        app.engine.tasks().hard.cancelled().await;
    }
}

/// Accepts for ever.
async fn accept(listener: &TcpListener, app: &App, router: &Router, connections: &TaskTracker) {
    let limits = &app.options.limits;
    let places = Arc::new(Semaphore::new(limits.connections));
    let refusals = Arc::new(Semaphore::new(REFUSALS));
    loop {
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) if is_of_one_connection(&error) => continue,
            Err(error) => {
                // Out of descriptors or memory: those that are open will free some.
                tracing::warn!(%error, "cannot accept connections");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            // Beyond the second bound they are closed without a word.
            if let Ok(permit) = refusals.clone().try_acquire_owned() {
                connections.spawn(async move {
                    refuse(socket).await;
                    drop(permit);
                });
            }
            continue;
        };
        // A token must not wait for the next one; the socket works without it, too.
        let _ = socket.set_nodelay(true);
        let notes = Arc::new(Notes::new(Instant::now()));
        let service = HttpService { app: app.clone(), router: router.clone(), notes };
        let connection = conn::serve(socket, service, limits, app.stop.clone());
        connections.spawn(async move {
            connection.await;
            drop(place);
        });
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Answers a connection that is one too many, without reading what it wants.
async fn refuse(mut socket: TcpStream) {
    let body = "{\"type\":\"/errors/overloaded\",\"title\":\"Too much at once\",\"status\":503,\
                \"detail\":\"the server has no room for another connection\",\
                \"code\":\"overloaded\",\"retry_after_ms\":1000}";
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\n\
         content-length: {}\r\nretry-after: 1\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let say = async {
        socket.write_all(head.as_bytes()).await?;
        socket.write_all(body.as_bytes()).await?;
        socket.shutdown().await?;
        // What it has sent is read and dropped: closing with unread data would reset the
        // connection, and the answer would be lost with it.
        let mut sink = [0; 1024];
        while socket.read(&mut sink).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = timeout(Duration::from_secs(1), say).await;
}

/// Connections that the system keeps before they are accepted.
const BACKLOG: u32 = 4096;
/// Connections beyond the limit that are told so at once.
const REFUSALS: usize = 64;
/// How long the last cancels may take when everything else is closed.
const LAST_TASKS: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
