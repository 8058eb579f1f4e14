//! Asking others. A question is sent on as it came, only with another identity, and the answer comes
//! back as it is, so that nothing is lost of what this program does not understand.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::counters::{Counters, add};

/// Questions under way at once. Each costs a socket and some KiB; more than this at 2 s each means
/// that upstream is gone, and waiting helps nobody.
pub(crate) const IN_FLIGHT_MAX: usize = 512;

/// How long an answer is awaited before the question is sent again, and then for good.
const UDP_WAITS: [Duration; 2] = [Duration::from_millis(800), Duration::from_millis(1500)];

/// How long all servers together may take: resolvers in pods give up after 5 s.
const ANSWER_WITHIN: Duration = Duration::from_millis(4500);

/// How long connecting, writing and reading may each take.
const TCP_WAIT: Duration = Duration::from_secs(2);

/// For how long a server that did not answer is asked last.
const AVOIDED: Duration = Duration::from_secs(10);

/// The largest packet.
const BYTES_MAX: usize = u16::MAX as usize;

/// How the asker can take the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Via {
    /// In one packet; one that says it is truncated will do.
    Udp,
    /// Whole.
    Tcp,
}

/// Those who know the rest of the world.
#[derive(Debug)]
pub(crate) struct Forwarder {
    upstreams: Vec<Upstream>,
    in_flight: Semaphore,
    counters: Arc<Counters>,
    started: Instant,
}

#[derive(Debug)]
struct Upstream {
    address: SocketAddr,
    /// Until when it is asked last, in milliseconds since the start.
    avoided_until: AtomicU64,
}

impl Forwarder {
    /// Asks `upstreams` in this order. Those that are `own` addresses of this server are left out: it
    /// would ask itself for ever.
    pub(crate) fn new(
        upstreams: &[SocketAddr],
        own: &[SocketAddr],
        counters: Arc<Counters>,
    ) -> Self {
        let mut kept: Vec<Upstream> = Vec::new();
        for address in upstreams {
            if is_own(*address, own) {
                tracing::warn!("upstream {address} is this server itself and is not asked");
            } else if kept.iter().all(|other| other.address != *address) {
                kept.push(Upstream {
                    address: *address,
                    avoided_until: AtomicU64::new(0),
                });
            }
        }
        Self {
            upstreams: kept,
            in_flight: Semaphore::new(IN_FLIGHT_MAX),
            counters,
            started: Instant::now(),
        }
    }

    /// Whether there is nobody to ask.
    pub(crate) fn is_empty(&self) -> bool {
        self.upstreams.is_empty()
    }

    /// Sends a question on; gives the answer with the question's own identity. None: nobody
    /// answered, or too many questions are under way.
    pub(crate) async fn ask(&self, question: &[u8], via: Via) -> Option<Vec<u8>> {
        let Ok(_permit) = self.in_flight.try_acquire() else {
            add(&self.counters.over_limit);
            return None;
        };
        add(&self.counters.forwarded);
        let mut refused = None;
        let answer = timeout(ANSWER_WITHIN, self.ask_all(question, via, &mut refused)).await;
        answer.ok().flatten().or(refused)
    }

    /// The first good answer; one that is none goes to `refused`.
    async fn ask_all(
        &self,
        question: &[u8],
        via: Via,
        refused: &mut Option<Vec<u8>>,
    ) -> Option<Vec<u8>> {
        for upstream in self.in_order() {
            // One that was silent of late is not waited for as long.
            let waits = if self.is_avoided(upstream) {
                UDP_WAITS.get(..1).unwrap_or_default()
            } else {
                &UDP_WAITS
            };
            match exchange(upstream.address, question, via, waits).await {
                Ok(answer) if is_refusal(&answer) => *refused = Some(answer),
                Ok(answer) => {
                    upstream.avoided_until.store(0, Ordering::Relaxed);
                    return Some(answer);
                }
                Err(error) => {
                    add(&self.counters.upstream_failures);
                    tracing::debug!("upstream {}: {error}", upstream.address);
                    let until = self.millis().saturating_add(millis(AVOIDED));
                    upstream.avoided_until.store(until, Ordering::Relaxed);
                }
            }
        }
        None
    }

    fn is_avoided(&self, upstream: &Upstream) -> bool {
        upstream.avoided_until.load(Ordering::Relaxed) > self.millis()
    }

    /// Those that answered of late first, each group in the order given.
    fn in_order(&self) -> impl Iterator<Item = &Upstream> {
        let (avoided, good): (Vec<_>, Vec<_>) =
            self.upstreams.iter().partition(|up| self.is_avoided(up));
        good.into_iter().chain(avoided)
    }

    fn millis(&self) -> u64 {
        millis(self.started.elapsed())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn is_own(address: SocketAddr, own: &[SocketAddr]) -> bool {
    own.iter().any(|own| {
        let any = own.ip().is_unspecified() && address.ip().is_loopback();
        own.port() == address.port() && (own.ip() == address.ip() || any)
    })
}

/// SERVFAIL or REFUSED: another may know better.
fn is_refusal(answer: &[u8]) -> bool {
    matches!(answer.get(3).map(|flags| flags & 0xf), Some(2 | 5))
}

fn is_truncated(answer: &[u8]) -> bool {
    answer.get(2).is_some_and(|flags| flags & 2 != 0)
}

/// One question to one server.
async fn exchange(
    server: SocketAddr,
    question: &[u8],
    via: Via,
    waits: &[Duration],
) -> io::Result<Vec<u8>> {
    // An identity and a port that nobody can guess: else anybody could answer in the server's place.
    let id: [u8; 2] = rand::random();
    let sent = with_id(question, id)?;
    let mut answer = over_udp(server, &sent, waits).await?;
    if via == Via::Tcp && is_truncated(&answer) {
        answer = over_tcp(server, &sent).await?;
    }
    let own = [question.first(), question.get(1)].map(|byte| byte.copied().unwrap_or(0));
    with_id(&answer, own)
}

fn with_id(message: &[u8], id: [u8; 2]) -> io::Result<Vec<u8>> {
    let mut message = message.to_vec();
    let place = message.get_mut(..2).ok_or(io::ErrorKind::InvalidData)?;
    place.copy_from_slice(&id);
    Ok(message)
}

async fn over_udp(server: SocketAddr, question: &[u8], waits: &[Duration]) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => [0; 4].into(),
        SocketAddr::V6(_) => [0; 16].into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let mut buffer = vec![0; 4096];
    for wait in waits {
        socket.send(question).await?;
        let answer = async {
            loop {
                let length = socket.recv(&mut buffer).await?;
                let bytes = buffer.get(..length).unwrap_or_default();
                if answers(bytes, question) {
                    return Ok::<_, io::Error>(bytes.to_vec());
                }
            }
        };
        if let Ok(answer) = timeout(*wait, answer).await {
            return answer;
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

async fn over_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = timeout(TCP_WAIT, TcpStream::connect(server)).await??;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    let mut packet = length.to_be_bytes().to_vec();
    packet.extend_from_slice(question);
    timeout(TCP_WAIT, stream.write_all(&packet)).await??;
    let read = async {
        let length = stream.read_u16().await?;
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await?;
        Ok::<_, io::Error>(answer)
    };
    let answer = timeout(TCP_WAIT, read).await??;
    if answers(&answer, question) {
        Ok(answer)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the answer is to another question",
        ))
    }
}

/// Whether `answer` is an answer to `question`: its identity, and the question in it, or an error
/// without a question.
pub(crate) fn answers(answer: &[u8], question: &[u8]) -> bool {
    let (Some(head), Some(asked)) = (answer.get(..12), question.get(..12)) else {
        return false;
    };
    let (&[a0, a1, flags, code, qd0, qd1, ..], &[q0, q1, ..]) = (head, asked) else {
        return false;
    };
    if [a0, a1] != [q0, q1] || flags & 0x80 == 0 {
        return false;
    }
    if [qd0, qd1] == [0, 0] {
        return code & 0xf != 0;
    }
    match question_end(question).map(|end| (answer.get(12..end), question.get(12..end))) {
        Some((Some(told), Some(asked))) => told.eq_ignore_ascii_case(asked),
        _ => false,
    }
}

/// Where the first question of a message ends. A question asked by a client is not compressed.
fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = 12;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1 + length;
        if length == 0 {
            break;
        }
        if length > 63 || at > BYTES_MAX {
            return None;
        }
    }
    Some(at + 4)
}
