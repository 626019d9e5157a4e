//! The provider of one side: the simulator behind a socket, with a switch for an outage.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clearway_sim::{Fault, FaultSpec, Options, Sim};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Serves until dropped.
#[derive(Debug)]
pub(crate) struct Provider {
    address: SocketAddr,
    working: Sim,
    broken: Sim,
    is_out: watch::Sender<bool>,
    _server: JoinSet<()>,
}

/// What the provider saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) requests: u64,
    pub(crate) open: u64,
}

impl Provider {
    /// A provider with these options; in an outage it answers 503.
    pub(crate) async fn start(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let working = Sim::new(options);
        let broken = Sim::new(Options {
            fault: Some(FaultSpec::from(Fault::Unavailable)),
            ..Options::default()
        });
        let (is_out, outage) = watch::channel(false);
        let mut server = JoinSet::new();
        server.spawn(serve(listener, working.clone(), broken.clone(), outage));
        Ok(Self { address, working, broken, is_out, _server: server })
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Begins or ends an outage. Open connections are closed, as when a provider restarts.
    pub(crate) fn outage(&self, is_out: bool) {
        self.is_out.send_replace(is_out);
    }

    pub(crate) fn seen(&self) -> Seen {
        let (working, broken) = (self.working.stats(), self.broken.stats());
        Seen {
            requests: working.requests + broken.requests,
            open: working.connections_open + broken.connections_open,
        }
    }

    /// What it saw once no connection is open any more, or after a moment: an end that was sent
    /// takes a while to be noticed.
    pub(crate) async fn seen_at_rest(&self) -> Seen {
        let until = Instant::now() + SETTLE;
        while self.seen().open > 0 && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
        self.seen()
    }
}

const SETTLE: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(10);

async fn serve(
    listener: TcpListener,
    working: Sim,
    broken: Sim,
    mut outage: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            changed = outage.changed() => match changed {
                Ok(()) => connections.shutdown().await,
                Err(_) => return,
            },
            // Finished ones are taken out, or the set would grow.
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    // Failing, tokens come a little later.
                    let _ = stream.set_nodelay(true);
                    let sim = if *outage.borrow() { &broken } else { &working };
                    connections.spawn(sim.serve_connection(stream));
                }
                // Out of files: those that are open will free some.
                Err(_) => tokio::time::sleep(LOOK).await,
            },
        }
    }
}
