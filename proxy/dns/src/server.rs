//! Questions from the network, answers to it.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::RecordType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::Handle;
use crate::answer::{Answer, Reply};
use crate::counters::{Counters, add};
use crate::forward::{Forwarder, IN_FLIGHT_MAX, Via};
use crate::message::{self, Incoming, Request};

/// How long a TCP connection may be silent. RFC 7766 asks for seconds; resolvers come back at once or
/// not at all.
const TCP_IDLE: Duration = Duration::from_secs(10);

/// TCP connections at once. Each costs some KiB.
const TCP_CONNECTIONS_MAX: usize = 256;

/// Questions under way on one TCP connection.
const TCP_PIPELINED_MAX: usize = 32;

/// Larger questions over UDP are cut off, and so malformed.
const UDP_QUESTION_BYTES_MAX: usize = 4096;

/// A pause after the kernel refused, so that a lasting refusal does not become a busy loop.
const PAUSE: Duration = Duration::from_millis(10);

/// Ports that are free for UDP are tried in turn, at most so many, until one is free for TCP too.
const FREE_TRIES: u32 = 64;

/// What the server is told beside its addresses.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Who is asked for names outside of the cluster, in order. Nobody: such names do not exist.
    pub upstreams: Vec<SocketAddr>,
}

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listen for DNS on {address} ({transport}): {source}")]
pub struct BindError {
    address: SocketAddr,
    transport: &'static str,
    source: std::io::Error,
}

/// Bound sockets, not yet answering.
#[derive(Debug)]
pub struct Server {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
    addresses: Vec<SocketAddr>,
    forwarder: Forwarder,
    counters: Arc<Counters>,
}

impl Server {
    /// Listens on UDP and TCP of each address. Port 0 is one that is free for both.
    ///
    /// # Errors
    /// An address that is not this host's, or is taken.
    pub async fn bind(addresses: &[SocketAddr], config: Config) -> Result<Self, BindError> {
        let (mut udp, mut tcp, mut bound) = (Vec::new(), Vec::new(), Vec::new());
        for address in addresses {
            let fail = |transport| {
                move |source| BindError {
                    address: *address,
                    transport,
                    source,
                }
            };
            let mut tries = if address.port() == 0 { FREE_TRIES } else { 1 };
            let (socket, listener, local) = loop {
                let socket = UdpSocket::bind(address).await.map_err(fail("UDP"))?;
                let local = socket.local_addr().map_err(fail("UDP"))?;
                tries -= 1;
                match TcpListener::bind(local).await {
                    Ok(listener) => break (socket, listener, local),
                    Err(e) if e.kind() == ErrorKind::AddrInUse && tries > 0 => {}
                    Err(e) => return Err(fail("TCP")(e)),
                }
            };
            tcp.push(listener);
            udp.push(socket);
            bound.push(local);
        }
        let counters = Arc::new(Counters::default());
        Ok(Self {
            forwarder: Forwarder::new(&config.upstreams, &bound, Arc::clone(&counters)),
            udp,
            tcp,
            addresses: bound,
            counters,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What it counts.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Answers from `zone`, for ever; stops when dropped.
    pub async fn serve(self, zone: Handle) {
        let inner = Arc::new(Inner {
            zone,
            forwarder: self.forwarder,
            counters: self.counters,
            turn: AtomicUsize::new(0),
        });
        let mut loops = JoinSet::new();
        for socket in self.udp {
            loops.spawn(serve_udp(Arc::clone(&inner), Arc::new(socket)));
        }
        let connections = Arc::new(Semaphore::new(TCP_CONNECTIONS_MAX));
        for listener in self.tcp {
            let connections = Arc::clone(&connections);
            loops.spawn(serve_tcp(Arc::clone(&inner), listener, connections));
        }
        while loops.join_next().await.is_some() {}
    }
}

struct Inner {
    zone: Handle,
    forwarder: Forwarder,
    counters: Arc<Counters>,
    turn: AtomicUsize,
}

/// What to do with a packet.
enum Decision {
    /// Nothing.
    Drop,
    /// This is the answer.
    Answer(Vec<u8>),
    /// The answer takes longer.
    Later(Box<Later>),
}

/// A question that others have to be asked for.
struct Later {
    request: Request,
    /// The question as it came.
    bytes: Vec<u8>,
    /// The aliases so far and the name they lead to; none: the question itself is sent on.
    alias: Option<(Reply, hickory_proto::rr::Name)>,
    via: Via,
    start: Instant,
}

impl Inner {
    /// Decides on a packet, without waiting for anything.
    fn decide(&self, bytes: &[u8], via: Via) -> Decision {
        let start = Instant::now();
        let request = match message::read(bytes) {
            Incoming::Request(request) => *request,
            Incoming::Refusal(answer, code) => {
                self.counters
                    .answered(RecordType::ZERO, code, start.elapsed());
                return Decision::Answer(answer);
            }
            Incoming::Nothing => {
                add(&self.counters.dropped);
                return Decision::Drop;
            }
        };
        let kind = request.query.query_type();
        let reply = if matches!(kind, RecordType::AXFR | RecordType::IXFR) {
            Reply::code(ResponseCode::Refused)
        } else {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            let answer = self.zone.read().answer(request.query.name(), kind, turn);
            let alias = match answer {
                Answer::Ours(reply) => return self.finish(&request, reply, via, start),
                Answer::Elsewhere(reply, target) => Some((reply, target)),
                Answer::NotOurs => None,
            };
            if !self.forwarder.is_empty() {
                return Decision::Later(Box::new(Later {
                    request,
                    bytes: bytes.to_vec(),
                    alias,
                    via,
                    start,
                }));
            }
            match alias {
                Some((reply, _)) => reply,
                None => Reply::code(ResponseCode::NXDomain),
            }
        };
        self.finish(&request, reply, via, start)
    }

    /// Asks others.
    async fn later(&self, later: Later) -> Option<Vec<u8>> {
        let Later {
            request,
            bytes,
            alias,
            via,
            start,
        } = later;
        let kind = request.query.query_type();
        let decision = match alias {
            None => match self.forwarder.ask(&bytes, via).await {
                Some(answer) => {
                    let low = answer.get(3).map_or(0, |flags| flags & 0xf);
                    let code = ResponseCode::from_low(low);
                    self.counters.answered(kind, code, start.elapsed());
                    return Some(answer);
                }
                None => self.finish(&request, Reply::code(ResponseCode::ServFail), via, start),
            },
            Some((mut reply, target)) => {
                match self.ask_for(&target, kind).await {
                    Some(message) => {
                        reply.code = message.metadata.response_code;
                        reply.answers.extend(message.answers);
                        reply.authorities.extend(message.authorities);
                    }
                    None => reply = Reply::code(ResponseCode::ServFail),
                }
                self.finish(&request, reply, via, start)
            }
        };
        match decision {
            Decision::Answer(bytes) => Some(bytes),
            Decision::Drop | Decision::Later(_) => None,
        }
    }

    /// Asks others for a name of our own choice.
    async fn ask_for(&self, name: &hickory_proto::rr::Name, kind: RecordType) -> Option<Message> {
        let mut message = Message::new(0, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(name.clone(), kind));
        let bytes = message.to_vec().ok()?;
        let answer = self.forwarder.ask(&bytes, Via::Tcp).await?;
        Message::from_vec(&answer).ok()
    }

    fn finish(&self, request: &Request, reply: Reply, via: Via, start: Instant) -> Decision {
        let limit = match via {
            Via::Udp => request.udp_bytes_max(),
            Via::Tcp => usize::from(u16::MAX),
        };
        let code = reply.code;
        let recursive = !self.forwarder.is_empty();
        let Some((bytes, truncated)) = request.write(reply, recursive, limit) else {
            add(&self.counters.dropped);
            return Decision::Drop;
        };
        if truncated {
            add(&self.counters.truncated);
        }
        let kind = request.query.query_type();
        self.counters.answered(kind, code, start.elapsed());
        Decision::Answer(bytes)
    }

    /// The whole way, for those who can wait.
    async fn answer(&self, bytes: &[u8], via: Via) -> Option<Vec<u8>> {
        match self.decide(bytes, via) {
            Decision::Drop => None,
            Decision::Answer(answer) => Some(answer),
            Decision::Later(later) => self.later(*later).await,
        }
    }
}

async fn serve_udp(inner: Arc<Inner>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; UDP_QUESTION_BYTES_MAX];
    let mut waiting = JoinSet::new();
    loop {
        while waiting.try_join_next().is_some() {}
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!("receive: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let bytes = buffer.get(..length).unwrap_or_default();
        match inner.decide(bytes, Via::Udp) {
            Decision::Drop => {}
            Decision::Answer(answer) => send(&socket, &answer, from).await,
            Decision::Later(_) if waiting.len() >= IN_FLIGHT_MAX => add(&inner.counters.over_limit),
            Decision::Later(later) => {
                let (inner, socket) = (Arc::clone(&inner), Arc::clone(&socket));
                waiting.spawn(async move {
                    if let Some(answer) = inner.later(*later).await {
                        send(&socket, &answer, from).await;
                    }
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, answer: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(answer, to).await {
        tracing::debug!("answer {to}: {error}");
    }
}

async fn serve_tcp(inner: Arc<Inner>, listener: TcpListener, connections: Arc<Semaphore>) {
    let mut open = JoinSet::new();
    loop {
        while open.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!("accept: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else {
            add(&inner.counters.over_limit);
            continue;
        };
        add(&inner.counters.tcp_connections);
        let inner = Arc::clone(&inner);
        open.spawn(async move {
            serve_connection(inner, stream).await;
            drop(permit);
        });
    }
}

/// Questions of one connection. They are answered as they get ready, in any order (RFC 7766, 6.2.1.1).
async fn serve_connection(inner: Arc<Inner>, stream: TcpStream) {
    let (mut reader, mut writer) = stream.into_split();
    let (sender, mut answers) = mpsc::channel::<Vec<u8>>(TCP_PIPELINED_MAX);
    let read = async {
        let mut waiting = JoinSet::new();
        while let Some(bytes) = read_question(&mut reader).await {
            while waiting.try_join_next().is_some() {}
            if waiting.len() >= TCP_PIPELINED_MAX {
                waiting.join_next().await;
            }
            let (inner, sender) = (Arc::clone(&inner), sender.clone());
            waiting.spawn(async move {
                if let Some(answer) = inner.answer(&bytes, Via::Tcp).await {
                    // Fails when the client went away.
                    drop(sender.send(answer).await);
                }
            });
        }
        while waiting.join_next().await.is_some() {}
        drop(sender);
    };
    let write = async {
        while let Some(answer) = answers.recv().await {
            let Ok(length) = u16::try_from(answer.len()) else {
                continue;
            };
            let mut packet = length.to_be_bytes().to_vec();
            packet.extend_from_slice(&answer);
            match timeout(TCP_IDLE, writer.write_all(&packet)).await {
                Ok(Ok(())) => {}
                _ => break,
            }
        }
        // Answers that come after the client went away have nobody to go to.
        answers.close();
    };
    tokio::join!(read, write);
}

/// The next question; none at the end, after an error and after too long a silence.
async fn read_question(reader: &mut tokio::net::tcp::OwnedReadHalf) -> Option<Vec<u8>> {
    let read = async {
        let length = reader.read_u16().await?;
        let mut bytes = vec![0; usize::from(length)];
        reader.read_exact(&mut bytes).await?;
        Ok::<_, std::io::Error>(bytes)
    };
    timeout(TCP_IDLE, read).await.ok()?.ok()
}
