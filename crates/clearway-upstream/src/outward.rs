//! One plain request to a server that is no provider and that a caller named: a webhook, an `http`
//! step.
//!
//! Whoever may name an address must not reach through us what only we can reach. So a name is
//! resolved once, every address is judged, and the connection goes to a judged address; redirects
//! are answers like any other and are not followed.
//!
//! **Invariant:** one deadline covers the whole exchange; dropping the future closes its socket; no
//! more of an answer is kept than the caller asked for.

use std::fmt;
use std::future::{Future, poll_fn};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout_at};

use crate::{Endpoint, TcpDial};

/// Sends requests under a [`Policy`].
#[derive(Debug)]
pub struct Outward {
    dial: TcpDial,
    policy: Policy,
}

/// Which addresses may be asked besides those of the public internet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    pub allow: Vec<Allowed>,
}

/// Something of the own network that may be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// A host by its name, whatever its address.
    Host(String),
    /// Addresses that begin with so many bits of this one.
    Net(IpAddr, u8),
}

impl Allowed {
    /// `hooks.internal`, `10.1.2.3`, or `10.0.0.0/8`.
    ///
    /// # Errors
    /// Says what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let bare = address.trim_start_matches('[').trim_end_matches(']');
        match (bare.parse::<IpAddr>(), bits) {
            (Ok(ip), None) => Ok(Self::Net(ip, width(ip))),
            (Ok(ip), Some(bits)) => match bits.parse::<u8>() {
                Ok(bits) if bits <= width(ip) => Ok(Self::Net(ip, bits)),
                _ => Err(format!("`{text}`: a network of {ip} has 0 to {} bits", width(ip))),
            },
            (Err(_), Some(_)) => Err(format!("`{text}` is no network, such as 10.0.0.0/8")),
            (Err(_), None) => {
                let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
                match !text.is_empty() && text.chars().all(plain) {
                    true => Ok(Self::Host(text.to_owned())),
                    false => Err(format!("`{text}` is no host, address or network")),
                }
            }
        }
    }
}

const fn width(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

impl Policy {
    /// Whether a connection to this address of this host may be made.
    pub fn allows(&self, host: &str, ip: IpAddr) -> bool {
        is_public(ip)
            || self.allow.iter().any(|allowed| match allowed {
                Allowed::Host(name) => name.eq_ignore_ascii_case(host),
                Allowed::Net(net, bits) => holds(*net, *bits, ip),
            })
    }
}

fn holds(net: IpAddr, bits: u8, ip: IpAddr) -> bool {
    let bits = u32::from(bits);
    match (net, ip) {
        (IpAddr::V4(net), IpAddr::V4(ip)) => {
            (u32::from(net) ^ u32::from(ip)).leading_zeros() >= bits
        }
        (IpAddr::V6(net), IpAddr::V6(ip)) => {
            (u128::from(net) ^ u128::from(ip)).leading_zeros() >= bits
        }
        _ => false,
    }
}

/// Whether an address belongs to the public internet, as far as its number tells.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_documentation()
        || a == 0
        // Multicast, reserved, broadcast.
        || a >= 224
        // Shared between a carrier and its customers.
        || (a == 100 && (64..128).contains(&b))
        // Protocol assignments, and measurements of networks.
        || (a, b, c) == (192, 0, 0)
        || (a == 198 && (b == 18 || b == 19)))
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let parts = ip.segments();
    // Addresses that stand for an IPv4 one are judged by that.
    let inner = |high: u16, low: u16| {
        is_public_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)))
    };
    match parts {
        [0, 0, 0, 0, 0, 0xffff | 0, high, low] => inner(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => inner(high, low),
        [0x2002, high, low, ..] => inner(high, low),
        // Only this is handed out as public; documentation and Teredo lie within it.
        [first, second, ..] => {
            (0x2000..0x4000).contains(&first)
                && !(first == 0x2001 && (second == 0xdb8 || second == 0))
        }
    }
}

/// What became of a post.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Posted {
    pub status: u16,
    /// When the receiver wants to be asked again, if it says so.
    pub retry_after: Option<Duration>,
}

/// The most that is read of an answer that nobody looks at.
const POSTED: usize = 64 << 10;

/// Why a request brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum OutwardError {
    #[error("{0}")]
    Url(String),
    /// It may never be asked.
    #[error("{host} is in a private network (as {address})")]
    Private { host: String, address: IpAddr },
    #[error("{0}")]
    Connect(String),
    #[error("the connection to {host} broke: {problem}")]
    Broken { host: String, problem: String },
    #[error("{host} did not answer in time")]
    Timeout { host: String },
    #[error("the answer of {host} is longer than {limit} bytes")]
    TooLong { host: String, limit: usize },
}

impl Outward {
    pub fn new(policy: Policy) -> Self {
        Self { dial: TcpDial::new(), policy }
    }

    /// Whether an address could be asked, as far as that can be told without looking names up.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, url: &str) -> Result<Endpoint, OutwardError> {
        let endpoint = Endpoint::parse(url).map_err(OutwardError::Url)?;
        let address = match endpoint.host.parse::<IpAddr>() {
            Ok(address) => Some(address),
            Err(_) if endpoint.host.eq_ignore_ascii_case("localhost") => {
                Some(Ipv4Addr::LOCALHOST.into())
            }
            Err(_) => None,
        };
        match address.filter(|address| !self.policy.allows(&endpoint.host, *address)) {
            Some(address) => Err(OutwardError::Private { host: endpoint.host, address }),
            None => Ok(endpoint),
        }
    }

    /// Posts JSON and looks only at what became of it.
    ///
    /// # Errors
    /// As [`Outward::send`].
    pub async fn post(
        &self,
        url: &str,
        headers: &[(&'static str, String)],
        body: Bytes,
        deadline: Instant,
    ) -> Result<Posted, OutwardError> {
        let mut request = Request::post(url).header(CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request.body(body).map_err(|error| OutwardError::Url(error.to_string()))?;
        let answer = self.send(request, deadline, POSTED).await?;
        let after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        Ok(Posted {
            status: answer.status().as_u16(),
            retry_after: after.and_then(|text| text.parse().ok()).map(Duration::from_secs),
        })
    }

    /// Sends a request with an absolute address; the answer, whatever its status, with at most
    /// `limit` bytes of body.
    ///
    /// # Errors
    /// [`OutwardError`] says why there is none.
    pub async fn send(
        &self,
        request: Request<Bytes>,
        deadline: Instant,
        limit: usize,
    ) -> Result<Response<Bytes>, OutwardError> {
        let endpoint = self.check(&request.uri().to_string())?;
        let host = endpoint.host.clone();
        match timeout_at(deadline, self.exchange(&endpoint, request, limit)).await {
            Ok(result) => result,
            Err(_) => Err(OutwardError::Timeout { host }),
        }
    }

    async fn exchange(
        &self,
        endpoint: &Endpoint,
        request: Request<Bytes>,
        limit: usize,
    ) -> Result<Response<Bytes>, OutwardError> {
        let host = endpoint.host.clone();
        let judge = |address: IpAddr| self.policy.allows(&host, address);
        let io = self.dial.dial_judged(endpoint, &judge).await.map_err(|error| match error {
            Judged::Refused(address) => OutwardError::Private { host: host.clone(), address },
            Judged::Failed(error) => OutwardError::Connect(error.to_string()),
        })?;
        let broken = |error: &dyn fmt::Display| OutwardError::Broken {
            host: host.clone(),
            problem: error.to_string(),
        };
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(64 << 10)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| broken(&error))?;
        let (mut parts, body) = request.into_parts();
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
        parts.uri = target.parse().map_err(|error| broken(&error))?;
        let host_header = HeaderValue::try_from(endpoint.host_header());
        parts.headers.insert(HOST, host_header.map_err(|error| broken(&error))?);
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        let agent = HeaderValue::from_static(concat!("clearway/", env!("CARGO_PKG_VERSION")));
        parts.headers.entry(USER_AGENT).or_insert(agent);
        let work = async {
            let request = Request::from_parts(parts, Full::new(body));
            let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
            let (head, mut body) = response.into_parts();
            let mut bytes = BytesMut::new();
            while let Some(frame) = body.frame().await {
                let Ok(data) = frame.map_err(|error| broken(&error))?.into_data() else { continue };
                if bytes.len() + data.len() > limit {
                    return Err(OutwardError::TooLong { host: host.clone(), limit });
                }
                bytes.extend_from_slice(&data);
            }
            Ok(Response::from_parts(head, bytes.freeze()))
        };
        // The connection does its work while somebody waits for it, and only then.
        let (mut connection, mut work) = (pin!(connection), pin!(work));
        let mut done = false;
        poll_fn(|cx| {
            let answer = work.as_mut().poll(cx);
            if answer.is_ready() {
                return answer;
            }
            if !done && connection.as_mut().poll(cx).is_ready() {
                done = true;
            }
            // What the connection brought is told without another wake.
            work.as_mut().poll(cx)
        })
        .await
    }
}

/// Why a judged address was not connected to.
pub(crate) enum Judged {
    Refused(IpAddr),
    Failed(crate::DialError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_are_told_from_public_ones() {
        for private in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "192.0.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
            "::127.0.0.1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in
            ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8"]
        {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn what_is_allowed_by_name_or_network() {
        let allow = ["127.0.0.1", "10.0.0.0/8", "hooks.internal"];
        let policy =
            Policy { allow: allow.iter().map(|text| Allowed::parse(text).unwrap()).collect() };
        let allows = |host: &str, ip: &str| policy.allows(host, ip.parse().unwrap());
        assert!(allows("x", "127.0.0.1") && !allows("x", "127.0.0.2"));
        assert!(allows("x", "10.200.0.1") && !allows("x", "192.168.0.1"));
        assert!(allows("Hooks.internal", "192.168.0.1"));
        assert!(allows("x", "8.8.8.8"));
        for bad in ["", "10.0.0.0/33", "a b", "host/8", "http://x"] {
            assert!(Allowed::parse(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn private_addresses_are_refused_before_anything_is_sent() {
        let outward = Outward::new(Policy::default());
        for url in [
            "http://127.0.0.1:1/x",
            "http://localhost/x",
            "http://[::1]/",
            "https://169.254.169.254/latest",
        ] {
            let request = Request::post(url).body(Bytes::new()).unwrap();
            let deadline = Instant::now() + std::time::Duration::from_secs(1);
            let error = outward.send(request, deadline, 10).await.unwrap_err();
            assert!(matches!(error, OutwardError::Private { .. }), "{url}: {error}");
        }
    }
}
