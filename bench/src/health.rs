//! How long a small request takes while the server is busy.
//!
//! The probe has an OS thread of its own and blocks in it, so that it measures the server's queue and not the rig's.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::stats::Hist;

const EVERY: Duration = Duration::from_millis(10);
const LIMIT: Duration = Duration::from_secs(10);

/// A probe that runs until it is finished.
#[derive(Debug)]
pub(crate) struct Probe {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Probed>,
}

/// What it saw.
#[derive(Debug, Default)]
pub(crate) struct Probed {
    pub(crate) times: Hist,
    /// Answers that were not 200, and connections that failed.
    pub(crate) failures: usize,
}

impl Probe {
    pub(crate) fn start(address: SocketAddr, path: &'static str) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("health-probe".into()).spawn({
            let stop = Arc::clone(&stop);
            move || probe(address, path, &stop)
        });
        Ok(Self { stop, thread: thread.context("starting the health probe")? })
    }

    pub(crate) fn finish(self) -> Result<Probed> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("the health probe panicked")
    }
}

fn probe(address: SocketAddr, path: &str, stop: &AtomicBool) -> Probed {
    let mut probed = Probed::default();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let mut connection = None;
    while !stop.load(Ordering::Relaxed) {
        let begin = Instant::now();
        match once(&mut connection, address, request.as_bytes()) {
            Ok(()) => probed.times.add(begin.elapsed()),
            Err(_) => {
                probed.failures += 1;
                connection = None;
            }
        }
        std::thread::sleep(EVERY.saturating_sub(begin.elapsed()));
    }
    probed
}

fn once(connection: &mut Option<TcpStream>, address: SocketAddr, request: &[u8]) -> Result<()> {
    let stream = match connection {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect_timeout(&address, LIMIT)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(LIMIT))?;
            connection.insert(stream)
        }
    };
    stream.write_all(request)?;
    let mut answer = Vec::with_capacity(1024);
    loop {
        let mut piece = [0; 4096];
        let n = stream.read(&mut piece)?;
        anyhow::ensure!(n > 0, "closed");
        answer.extend_from_slice(&piece[..n]);
        if is_whole(&answer)? {
            return Ok(());
        }
    }
}

/// Whether a 200 with a length is there; other kinds of answers are failures.
fn is_whole(answer: &[u8]) -> Result<bool> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(head) = response.parse(answer)? else { return Ok(false) };
    anyhow::ensure!(response.code == Some(200), "status {:?}", response.code);
    let length = response
        .headers
        .iter()
        .find(|field| field.name.eq_ignore_ascii_case("content-length"))
        .context("an answer without a length")?;
    let length: usize = std::str::from_utf8(length.value)?.trim().parse()?;
    Ok(answer.len() >= head + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_with_its_last_byte() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        for end in 0..answer.len() {
            assert!(!is_whole(&answer[..end]).unwrap(), "{end}");
        }
        assert!(is_whole(answer).unwrap());
        assert!(is_whole(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").is_err());
    }
}
