//! Which hosts and which web pages may ask.
//!
//! A server on loopback without keys trusts whoever is on the machine. A web page in a browser on
//! the machine is not that: it may post to any address, and by rebinding its own name to 127.0.0.1
//! it may read the answer. So a request must name a host that cannot be rebound, and one that a
//! browser sends for a page must come from such a host's page.

use std::net::IpAddr;

use clearway_core::Code;
use http::header::{HOST, ORIGIN};
use http::{HeaderMap, Uri};

use crate::Problem;
use crate::extract::shown;
use crate::server::ServerOptions;

mod message;

pub(crate) use message::{check_coding, settle};

/// # Errors
/// `forbidden`, naming the host.
pub(crate) fn check(options: &ServerOptions, headers: &HeaderMap) -> Result<(), Problem> {
    if !options.keys.is_empty() || !options.listen.ip().is_loopback() {
        return Ok(());
    }
    if let Some(value) = headers.get(HOST) {
        let host = value.to_str().unwrap_or_default();
        if !is_trusted(options, host_of(host)) {
            return Err(refusal("Host", host));
        }
    }
    if let Some(value) = headers.get(ORIGIN) {
        let origin = value.to_str().unwrap_or_default();
        let host = origin.parse::<Uri>().ok().and_then(|uri| uri.host().map(ToOwned::to_owned));
        if !host.is_some_and(|host| is_trusted(options, &host)) {
            return Err(refusal("Origin", origin));
        }
    }
    Ok(())
}

/// As [`check`], and on listeners beyond loopback, too: for addresses that no page of another site has
/// any business with. There a host may be any number, which cannot be rebound, or a configured name.
///
/// # Errors
/// `forbidden`, naming the host.
pub(crate) fn check_strictly(options: &ServerOptions, headers: &HeaderMap) -> Result<(), Problem> {
    let is_number = |host: &str| {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host.parse::<IpAddr>().is_ok()
    };
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    if let Some(host) = text(HOST) {
        let name = host_of(host);
        if !is_trusted(options, name) && (options.listen.ip().is_loopback() || !is_number(name)) {
            return Err(refusal("Host", host).hint(ALLOW));
        }
    }
    if let Some(origin) = text(ORIGIN) {
        let host = origin.parse::<Uri>().ok().and_then(|uri| uri.host().map(ToOwned::to_owned));
        if !host.is_some_and(|host| is_trusted(options, &host)) {
            return Err(refusal("Origin", origin).hint(ALLOW));
        }
    }
    Ok(())
}

const ALLOW: &str = "Name the host in `allowed_hosts` of `[server]` to let it ask.";

/// An address that is a number cannot be rebound; `localhost` belongs to the machine.
fn is_trusted(options: &ServerOptions, host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_local = host.eq_ignore_ascii_case("localhost")
        || host.to_ascii_lowercase().ends_with(".localhost")
        || host.parse::<IpAddr>().is_ok_and(|ip| {
            // `0.0.0.0` is this machine to whoever connects to it.
            ip.is_loopback() || ip.is_unspecified() || ip == options.listen.ip()
        });
    is_local || options.allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(host))
}

/// A host without its port.
fn host_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') =>
        {
            name
        }
        _ => host,
    }
}

fn refusal(header: &str, value: &str) -> Problem {
    let text = format!(
        "{header} `{}` is not allowed: without keys this server answers only this machine",
        shown(value)
    );
    Problem::new(Code::Forbidden, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_other_sites_are_refused_on_loopback() {
        let mut options = ServerOptions::new("127.0.0.1:8123".parse().unwrap());
        options.allowed_hosts = vec!["dev.example".to_owned()];
        let asks = |options: &ServerOptions, host: &str, origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(ORIGIN, origin.parse().unwrap());
            }
            check(options, &headers).is_ok()
        };
        for host in [
            "127.0.0.1:8123",
            "localhost:8123",
            "localhost",
            "[::1]:8123",
            "[::1]",
            "0.0.0.0:8123",
            "dev.example:80",
        ] {
            assert!(asks(&options, host, None), "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example:8123", "", "::1:x", "10.0.0.1"] {
            assert!(!asks(&options, host, None), "{host}");
        }
        assert!(asks(&options, "localhost:8123", Some("http://localhost:3000")));
        assert!(asks(&options, "localhost:8123", Some("https://dev.example")));
        assert!(!asks(&options, "localhost:8123", Some("https://evil.example")));
        assert!(!asks(&options, "localhost:8123", Some("null")));
        options.keys = vec![crate::auth::ApiKey::new("k", "secret", "t")];
        assert!(asks(&options, "anything.example", Some("https://evil.example")));
        options.keys.clear();
        options.listen = "0.0.0.0:8123".parse().unwrap();
        assert!(asks(&options, "clearway:8123", None), "the listen guard decides there");
    }

    #[test]
    fn some_addresses_check_on_every_listener() {
        let mut options = ServerOptions::new("0.0.0.0:8123".parse().unwrap());
        options.allowed_hosts = vec!["dev.example".to_owned()];
        let asks = |host: &str, origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(ORIGIN, origin.parse().unwrap());
            }
            check_strictly(&options, &headers).is_ok()
        };
        assert!(
            asks("10.0.0.1:8123", None) && asks("localhost", None) && asks("dev.example", None)
        );
        assert!(!asks("clearway:8123", None) && !asks("evil.example", None));
        assert!(asks("10.0.0.1", Some("http://dev.example:3000")));
        assert!(!asks("10.0.0.1", Some("https://evil.example")));
        assert!(!asks("10.0.0.1", Some("http://10.0.0.9")), "another machine's page");
    }
}
