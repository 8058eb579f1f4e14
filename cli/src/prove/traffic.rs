//! Plain HTTP from inside a network namespace, once or all the time.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use linux::NetNs;

use super::WHOAMI;

/// A request that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Pause between two requests of a [`Probe`].
const PROBE_PAUSE: Duration = Duration::from_millis(5);

/// Who served a request, and whom it saw asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) server: String,
    pub(super) client: IpAddr,
}

/// Reads the answer of the sample's `whoami` page.
pub(super) fn parse(body: &str) -> Result<Answer> {
    let mut words = body.split_whitespace();
    let (Some(server), Some(client)) = (words.next(), words.next()) else {
        bail!("an odd answer: {body:?}");
    };
    // A socket for both families shows IPv4 peers as mapped addresses, some in brackets.
    let client: IpAddr = client
        .trim_matches(['[', ']'])
        .parse()
        .context("the peer's address")?;
    Ok(Answer {
        server: server.to_owned(),
        client: client.to_canonical(),
    })
}

/// One request over a connection of its own.
pub(super) fn get(address: SocketAddr) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)
        .with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let request = format!("GET {WHOAMI} HTTP/1.0\r\nHost: sample\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .with_context(|| format!("answer from {address}"))?;
    let (head, body) = text
        .split_once("\r\n\r\n")
        .context("no end of the header")?;
    if !head.starts_with("HTTP/1.0 200") && !head.starts_with("HTTP/1.1 200") {
        bail!(
            "{address} answered {:?}",
            head.lines().next().unwrap_or_default()
        );
    }
    parse(body)
}

/// `count` requests from inside the namespace at `netns`.
pub(super) fn get_from(netns: &Path, address: SocketAddr, count: usize) -> Result<Vec<Answer>> {
    let netns = NetNs::open(netns)?;
    netns.run(|| (0..count).map(|_| get(address)).collect())?
}

/// Requests that go on, one connection each, until asked how they went.
pub(super) struct Probe {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<String>>,
}

impl Probe {
    /// Starts asking `address` from inside the namespace at `netns`.
    pub(super) fn start(netns: &Path, address: SocketAddr) -> Result<Self> {
        let netns = NetNs::open(netns)?;
        let (stop, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&done));
        let thread = thread::spawn(move || {
            let ask = || {
                let mut failures = Vec::new();
                while !stopped.load(Ordering::SeqCst) {
                    match get(address) {
                        Ok(_) => count.fetch_add(1, Ordering::SeqCst),
                        Err(error) => {
                            failures.push(format!("{error:#}"));
                            0
                        }
                    };
                    thread::sleep(PROBE_PAUSE);
                }
                failures
            };
            netns
                .run(ask)
                .unwrap_or_else(|error| vec![error.to_string()])
        });
        Ok(Self { stop, done, thread })
    }

    /// Requests answered so far.
    pub(super) fn answered(&self) -> usize {
        self.done.load(Ordering::SeqCst)
    }

    /// Stops; how many were answered, and what went wrong with the others.
    pub(super) fn finish(self) -> Result<(usize, Vec<String>)> {
        self.stop.store(true, Ordering::SeqCst);
        match self.thread.join() {
            Ok(failures) => Ok((self.done.load(Ordering::SeqCst), failures)),
            Err(_) => bail!("the probing thread broke"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_name_server_and_client() {
        for text in [
            "web-1 10.244.1.3\n",
            "web-1 ::ffff:10.244.1.3",
            "web-1 [::ffff:10.244.1.3]",
        ] {
            let answer = parse(text).unwrap();
            assert_eq!(answer.server, "web-1");
            assert_eq!(answer.client.to_string(), "10.244.1.3");
        }
        assert!(parse("nothing").is_err());
    }
}
