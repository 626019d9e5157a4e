//! Ports for children.
//!
//! Tests run in parallel processes. Asking the system for any free port would race: what it hands
//! out here may be taken as the source of somebody's connection before the child binds it. So ports
//! come from below the range of such sources, and each test process starts at its own place in it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

const FIRST: u32 = 12_000;
const COUNT: u32 = 20_000;
/// More than one test starts.
const PER_PROCESS: u32 = 16;

/// A loopback address that nobody listens on.
///
/// # Errors
/// All of them are taken, which means that something is very wrong with the machine.
pub fn free_port() -> Result<SocketAddr> {
    reserve_port().map(|(address, _)| address)
}

/// A loopback address that stays taken for as long as the listener lives.
///
/// # Errors
/// As [`free_port`].
pub fn reserve_port() -> Result<(SocketAddr, TcpListener)> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(PER_PROCESS);
    (0..COUNT)
        .find_map(|_| {
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            let port = FIRST + start.wrapping_add(step) % COUNT;
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, u16::try_from(port).ok()?));
            Some((address, TcpListener::bind(address).ok()?))
        })
        .context("no free port on loopback")
}
