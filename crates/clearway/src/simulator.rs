//! The place for a simulated provider inside this process.
//!
//! The façade does not know the simulator: whoever starts a server hands one in. Its connections
//! are pairs of memory buffers, so nothing of it can be reached from outside.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use clearway_engine::Tasks;
use clearway_upstream::{Dial, DialError, DialPhase, Endpoint, Io};
use tokio::io::DuplexStream;

use crate::config::Sim;

/// A future that serves one connection.
pub type Connection = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Serves connections of one provider.
pub type Serve = Arc<dyn Fn(DuplexStream) -> Connection + Send + Sync>;

type Make = dyn Fn(&Sim) -> Result<Serve, String> + Send + Sync;

/// Makes simulated providers from their configuration.
///
/// ```
/// use clearway::Simulator;
/// use std::sync::Arc;
///
/// let simulator = Simulator::new(|_settings| {
///     Ok(Arc::new(|connection| Box::pin(async move { drop(connection) })))
/// });
/// # let _ = simulator;
/// ```
#[derive(Clone)]
pub struct Simulator(Arc<Make>);

impl Simulator {
    /// `make` is called once per `kind = "sim"` provider, and says what is wrong with its settings.
    pub fn new(make: impl Fn(&Sim) -> Result<Serve, String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(make))
    }

    pub(crate) fn dial(&self, settings: &Sim, tasks: Tasks) -> Result<Arc<dyn Dial>, String> {
        Ok(Arc::new(InMemory { serve: (self.0)(settings)?, tasks }))
    }
}

impl fmt::Debug for Simulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Simulator")
    }
}

/// Opens connections to a provider in this process.
struct InMemory {
    serve: Serve,
    /// Owns the serving ends.
    tasks: Tasks,
}

/// What may be under way in each direction: some tokens, so that a client that does not read is
/// felt by the simulator as it is by a real provider.
const BUFFER: usize = 16 << 10;

impl Dial for InMemory {
    fn dial<'a>(
        &'a self,
        _endpoint: &'a Endpoint,
        report: &'a (dyn Fn(DialPhase) + Sync),
    ) -> Pin<Box<dyn Future<Output = Result<Box<dyn Io>, DialError>> + Send + 'a>> {
        Box::pin(async move {
            report(DialPhase::Connect);
            let (here, there) = tokio::io::duplex(BUFFER);
            let connection = (self.serve)(there);
            let hard = self.tasks.hard.clone();
            self.tasks.spawn(async move {
                tokio::select! {
                    () = connection => {}
                    () = hard.cancelled() => {}
                }
            });
            Ok(Box::new(here) as Box<dyn Io>)
        })
    }
}

impl fmt::Debug for InMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InMemory")
    }
}
