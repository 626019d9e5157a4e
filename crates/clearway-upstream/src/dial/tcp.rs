//! TCP, with TLS where the endpoint says `https`.
//!
//! Names are resolved inside the process (no helper threads, so a burst of calls cannot exhaust the
//! host's thread limit). Addresses are tried in the resolver's order, the next one joining in when
//! one has not connected after [`STAGGER`]; the first to connect wins and the others are dropped.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use hickory_resolver::config::{LookupIpStrategy, ResolveHosts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::{ResolverBuilder, TokioResolver};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::{Dial, DialError, DialPhase, Io, Report};
use crate::Endpoint;
use crate::outward::Judged;

/// Dials over TCP.
pub struct TcpDial {
    /// Without a readable resolver configuration only addresses and `localhost` can be dialled.
    resolver: Result<TokioResolver, String>,
    tls: TlsConnector,
    /// Connectors that trust one more file of certificates each.
    tls_with: HashMap<PathBuf, TlsConnector>,
    /// The last good answer per name, for when the resolver fails; names come from configuration,
    /// so there are few.
    known: Mutex<HashMap<String, Known>>,
}

struct Known {
    addresses: Arc<[IpAddr]>,
    at: Instant,
}

impl fmt::Debug for TcpDial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpDial").finish_non_exhaustive()
    }
}

impl TcpDial {
    /// Reads the host's resolver configuration once.
    pub fn new() -> Self {
        Self {
            resolver: resolver(),
            tls: connector(roots()),
            tls_with: HashMap::new(),
            known: Mutex::new(HashMap::new()),
        }
    }

    /// Prepares for endpoints whose `ca_file` is `path`. Reads the file; call it at start-up.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or holds no certificate that can be trusted.
    pub fn trust(&mut self, path: &Path) -> std::io::Result<()> {
        let mut roots = roots();
        let pem = std::fs::read(path)?;
        let mut added = 0;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(std::io::Error::other)?;
            roots.add(certificate).map_err(std::io::Error::other)?;
            added += 1;
        }
        if added == 0 {
            return Err(std::io::Error::other("no PEM certificate in it"));
        }
        self.tls_with.insert(path.to_owned(), connector(roots));
        Ok(())
    }

    async fn open(
        &self,
        endpoint: &Endpoint,
        report: Report<'_>,
    ) -> Result<Box<dyn Io>, DialError> {
        let addresses = self.addresses(&endpoint.host, report).await?;
        self.connect(&addresses, endpoint, report).await
    }

    /// Dials an endpoint that a caller named: each address is judged, and only a judged one is
    /// connected to. Nothing is remembered of it.
    pub(crate) async fn dial_judged(
        &self,
        endpoint: &Endpoint,
        judge: &(dyn Fn(IpAddr) -> bool + Sync),
    ) -> Result<Box<dyn Io>, Judged> {
        let addresses = match literal(&endpoint.host) {
            Some(addresses) => addresses,
            None => self.look_up(&endpoint.host).await.map_err(|error| {
                Judged::Failed(match error {
                    LookUp::Nothing(text) | LookUp::Failed(text) => {
                        DialError::new(DialPhase::Dns, text)
                    }
                })
            })?,
        };
        let good: Vec<IpAddr> = addresses.iter().copied().filter(|one| judge(*one)).collect();
        if let (true, Some(refused)) = (good.is_empty(), addresses.first()) {
            return Err(Judged::Refused(*refused));
        }
        self.connect(&good, endpoint, &|_| {}).await.map_err(Judged::Failed)
    }

    async fn connect(
        &self,
        addresses: &[IpAddr],
        endpoint: &Endpoint,
        report: Report<'_>,
    ) -> Result<Box<dyn Io>, DialError> {
        report(DialPhase::Connect);
        let stream = connect(addresses, endpoint.port).await?;
        if !endpoint.tls {
            return Ok(Box::new(stream));
        }
        report(DialPhase::Tls);
        let failed = |message: String| DialError::new(DialPhase::Tls, message);
        let connector = match &endpoint.ca_file {
            None => &self.tls,
            Some(path) => self
                .tls_with
                .get(path)
                .ok_or_else(|| failed(format!("{} was not loaded at start", path.display())))?,
        };
        let name = ServerName::try_from(endpoint.host.clone())
            .map_err(|error| failed(format!("{:?}: {error}", endpoint.host)))?;
        let stream = connector
            .connect(name, stream)
            .await
            .map_err(|error| failed(format!("TLS with {}: {error}", endpoint.host)))?;
        Ok(Box::new(stream))
    }

    async fn addresses(&self, host: &str, report: Report<'_>) -> Result<Arc<[IpAddr]>, DialError> {
        if let Some(addresses) = literal(host) {
            return Ok(addresses);
        }
        report(DialPhase::Dns);
        let failed = |message: String| DialError::new(DialPhase::Dns, message);
        match self.look_up(host).await {
            Ok(addresses) => {
                let known = Known { addresses: addresses.clone(), at: Instant::now() };
                self.known().insert(host.to_owned(), known);
                Ok(addresses)
            }
            // The name server says that there is nothing: an old answer would be a lie.
            Err(LookUp::Nothing(message)) => Err(failed(message)),
            Err(LookUp::Failed(message)) => match self.known().get(host) {
                Some(known) if known.at.elapsed() <= STALE => Ok(known.addresses.clone()),
                _ => Err(failed(message)),
            },
        }
    }

    /// Asks the name server.
    async fn look_up(&self, host: &str) -> Result<Arc<[IpAddr]>, LookUp> {
        let resolver = self.resolver.as_ref().map_err(|error| LookUp::Nothing(error.clone()))?;
        match resolver.lookup_ip(host).await {
            Ok(answer) => {
                let addresses: Arc<[IpAddr]> = interleave(answer.iter()).into();
                match addresses.is_empty() {
                    true => Err(LookUp::Nothing(format!("{host} has no address"))),
                    false => Ok(addresses),
                }
            }
            Err(error) if error.is_no_records_found() || error.is_nx_domain() => {
                Err(LookUp::Nothing(format!("{host} does not exist: {error}")))
            }
            Err(error) => Err(LookUp::Failed(format!("cannot resolve {host}: {error}"))),
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a name has no address.
enum LookUp {
    /// That is the answer.
    Nothing(String),
    /// There was no answer.
    Failed(String),
}

/// A host that needs no name server.
fn literal(host: &str) -> Option<Arc<[IpAddr]>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Some(Arc::new([address]));
    }
    host.eq_ignore_ascii_case("localhost").then(|| {
        Arc::new([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]) as Arc<[IpAddr]>
    })
}

impl Default for TcpDial {
    fn default() -> Self {
        Self::new()
    }
}

impl Dial for TcpDial {
    fn dial<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        report: Report<'a>,
    ) -> BoxFuture<'a, Result<Box<dyn Io>, DialError>> {
        Box::pin(self.open(endpoint, report))
    }
}

fn resolver() -> Result<TokioResolver, String> {
    finish(TokioResolver::builder_tokio().map_err(unusable)?)
}

fn finish(mut builder: ResolverBuilder<TokioRuntimeProvider>) -> Result<TokioResolver, String> {
    let options = builder.options_mut();
    options.use_hosts_file = ResolveHosts::Always;
    // A container often has IPv6 addresses in DNS and no route to them.
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    // Two tries have to fit into the connect limit.
    options.timeout = Duration::from_secs(2);
    options.attempts = 2;
    builder.build().map_err(unusable)
}

fn unusable(error: NetError) -> String {
    format!("the host's resolver configuration is unusable: {error}")
}

fn roots() -> RootCertStore {
    RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }
}

fn connector(roots: RootCertStore) -> TlsConnector {
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring implements the default protocol versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    // HTTP/2 would queue surplus calls inside one connection, where nobody sees them wait.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsConnector::from(Arc::new(config))
}

/// Both families by turns, so that a dead one costs one stagger and not one per address.
fn interleave(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let (v4, v6): (Vec<_>, Vec<_>) = addresses.partition(IpAddr::is_ipv4);
    let mut mixed = Vec::with_capacity(v4.len() + v6.len());
    let (mut v4, mut v6) = (v4.into_iter(), v6.into_iter());
    loop {
        let pair = (v4.next(), v6.next());
        mixed.extend(pair.0);
        mixed.extend(pair.1);
        if pair == (None, None) {
            return mixed;
        }
    }
}

async fn connect(addresses: &[IpAddr], port: u16) -> Result<TcpStream, DialError> {
    let mut waiting = addresses.iter().map(|&address| SocketAddr::new(address, port));
    let mut trying = FuturesUnordered::new();
    let mut failures = Vec::new();
    trying.extend(waiting.next().map(connect_one));
    loop {
        tokio::select! {
            outcome = trying.next() => match outcome {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(failure)) => {
                    failures.push(failure);
                    trying.extend(waiting.next().map(connect_one));
                }
                None => return Err(DialError::new(DialPhase::Connect, failures.join("; "))),
            },
            () = sleep(STAGGER), if waiting.len() > 0 => {
                trying.extend(waiting.next().map(connect_one));
            }
        }
    }
}

async fn connect_one(address: SocketAddr) -> Result<TcpStream, String> {
    let failed = |error| format!("{address}: {error}");
    let stream = TcpStream::connect(address).await.map_err(failed)?;
    // Without it a small request waits for the acknowledgement of the one before.
    stream.set_nodelay(true).map_err(failed)?;
    Ok(stream)
}

/// A connecting address is joined by the next one after this time.
const STAGGER: Duration = Duration::from_millis(300);

/// How long the last good answer serves while the resolver fails.
const STALE: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests;
