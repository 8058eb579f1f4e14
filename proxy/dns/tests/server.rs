//! The server on the loopback, with a client and upstreams of a few lines.

#![expect(clippy::unwrap_used, reason = "a failed test panics")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use api::core::Service;
use dns::{Config, Counters, Handle, Server};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const TIMEOUT: Duration = Duration::from_secs(60);

fn service(name: &str, spec: Value) -> Service {
    let value = json!({"metadata": {"namespace": "default", "name": name}, "spec": spec});
    serde_json::from_value(value).unwrap()
}

/// A running server; it stops when dropped.
struct Running {
    address: SocketAddr,
    counters: Arc<Counters>,
    zone: Handle,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn start(ip: IpAddr, upstreams: Vec<SocketAddr>) -> Running {
    let zone = Handle::new("cluster.local", &[ip]).unwrap();
    let web = json!({"clusterIP": "10.96.0.77", "ports": [{"name": "http", "port": 80}]});
    let ext = json!({"type": "ExternalName", "externalName": "www.example.com"});
    zone.update(|zone| {
        zone.set(&service("web", web), []);
        zone.set(&service("ext", ext), []);
    });
    zone.set_ready();
    let addresses = [SocketAddr::new(ip, 0)];
    let server = Server::bind(&addresses, Config { upstreams })
        .await
        .unwrap();
    Running {
        address: server.addresses()[0],
        counters: server.counters(),
        zone: zone.clone(),
        task: tokio::spawn(server.serve(zone)),
    }
}

fn localhost() -> IpAddr {
    Ipv4Addr::LOCALHOST.into()
}

fn question(id: u16, name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

async fn udp(server: SocketAddr, message: &Message) -> Message {
    let any: IpAddr = match server.ip() {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(&message.to_vec().unwrap()).await.unwrap();
    let mut bytes = [0; 9000];
    let length = timeout(TIMEOUT, socket.recv(&mut bytes)).await;
    Message::from_vec(&bytes[..length.unwrap().unwrap()]).unwrap()
}

async fn tcp_send(stream: &mut TcpStream, message: &Message) {
    let bytes = message.to_vec().unwrap();
    let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
    let packet = [&length[..], &bytes].concat();
    stream.write_all(&packet).await.unwrap();
}

async fn tcp_receive(stream: &mut TcpStream) -> Message {
    let receive = async {
        let length = stream.read_u16().await.unwrap();
        let mut bytes = vec![0; usize::from(length)];
        stream.read_exact(&mut bytes).await.unwrap();
        Message::from_vec(&bytes).unwrap()
    };
    timeout(TIMEOUT, receive).await.unwrap()
}

async fn tcp(server: SocketAddr, message: &Message) -> Message {
    let mut stream = TcpStream::connect(server).await.unwrap();
    tcp_send(&mut stream, message).await;
    tcp_receive(&mut stream).await
}

fn addresses(message: &Message) -> Vec<String> {
    let data = message.answers.iter().map(|record| record.data.to_string());
    data.collect()
}

/// What an upstream does.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// Answers with this last octet; names with `big` need TCP.
    Answers(u8),
    /// Answers SERVFAIL.
    Fails,
    /// Reads, and says nothing.
    Silent,
    /// Answers wrongly first, then rightly.
    Lies,
}

/// An upstream, and how many questions it got.
async fn upstream(manner: Manner) -> (SocketAddr, Arc<AtomicUsize>) {
    // A port that is free for both.
    let (udp, address, tcp) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = udp.local_addr().unwrap();
        if let Ok(tcp) = TcpListener::bind(address).await {
            break (udp, address, tcp);
        }
    };
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        let mut bytes = [0; 4096];
        loop {
            let (length, from) = udp.recv_from(&mut bytes).await.unwrap();
            counted.fetch_add(1, Ordering::Relaxed);
            let Ok(asked) = Message::from_vec(&bytes[..length]) else {
                continue;
            };
            for answer in answers(manner, &asked, false) {
                udp.send_to(&answer, from).await.unwrap();
            }
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let asked = tcp_receive(&mut stream).await;
            for answer in answers(manner, &asked, true) {
                let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
                let packet = [&length[..], &answer].concat();
                stream.write_all(&packet).await.unwrap();
            }
        }
    });
    (address, count)
}

fn answers(manner: Manner, asked: &Message, tcp: bool) -> Vec<Vec<u8>> {
    let mut answer = Message::response(asked.metadata.id, OpCode::Query);
    answer.metadata.recursion_available = true;
    answer.add_queries(asked.queries.clone());
    let name = asked.queries[0].name().clone();
    let record = |last, name| Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, last)));
    let last = match manner {
        Manner::Silent => return Vec::new(),
        Manner::Fails => {
            answer.metadata.response_code = ResponseCode::ServFail;
            return vec![answer.to_vec().unwrap()];
        }
        Manner::Answers(last) => last,
        Manner::Lies => 9,
    };
    if name.to_string().contains("big") && !tcp {
        answer.metadata.truncation = true;
    } else {
        let count = if name.to_string().contains("big") {
            100
        } else {
            1
        };
        for _ in 0..count {
            answer.add_answer(record(last, name.clone()));
        }
    }
    let good = answer.to_vec().unwrap();
    if manner != Manner::Lies {
        return vec![good];
    }
    let mut other_id = good.clone();
    other_id[0] ^= 1;
    let mut other_name = good.clone();
    other_name[13] ^= 1;
    vec![other_id, other_name, b"rubbish".to_vec(), good]
}

#[tokio::test]
async fn both_transports_of_both_families() {
    for ip in [localhost(), Ipv6Addr::LOCALHOST.into()] {
        let server = start(ip, vec![]).await;
        let asked = question(5, "web.default.svc.cluster.local.", RecordType::A);
        for answer in [
            udp(server.address, &asked).await,
            tcp(server.address, &asked).await,
        ] {
            assert_eq!(answer.metadata.id, 5);
            assert!(answer.metadata.authoritative && !answer.metadata.recursion_available);
            assert_eq!(addresses(&answer), ["10.96.0.77"]);
        }
        // Changed while it runs.
        let spec = json!({"clusterIP": "10.96.0.78"});
        server
            .zone
            .update(|zone| zone.set(&service("web", spec), []));
        assert_eq!(
            addresses(&udp(server.address, &asked).await),
            ["10.96.0.78"]
        );
        let counted = server.counters.queries();
        assert_eq!(counted, [("A", "NOERROR", 3)]);
        let latency = server.counters.latency();
        assert_eq!(latency.count, 3);
        assert_eq!(latency.buckets.last().unwrap().1, 3);
    }
}

#[tokio::test]
async fn many_questions_of_one_connection() {
    let (silent, _) = upstream(Manner::Silent).await;
    let server = start(localhost(), vec![silent]).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    // One that takes long does not hold up the others.
    tcp_send(&mut stream, &question(99, "example.com.", RecordType::A)).await;
    for id in 0..20 {
        let name = "web.default.svc.cluster.local.";
        tcp_send(&mut stream, &question(id, name, RecordType::A)).await;
    }
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(tcp_receive(&mut stream).await.metadata.id);
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..20).collect::<Vec<u16>>());
    // The client says that it has no more questions; the last answer comes all the same.
    stream.shutdown().await.unwrap();
    let last = tcp_receive(&mut stream).await;
    assert_eq!(
        (last.metadata.id, last.metadata.response_code),
        (99, ResponseCode::ServFail)
    );
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0, "closed");
}

#[tokio::test]
async fn rubbish_over_tcp_hurts_nobody() {
    let server = start(localhost(), vec![]).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&[0, 3, 1, 2, 3, 0, 0]).await.unwrap();
    let asked = question(5, "web.default.svc.cluster.local.", RecordType::A);
    tcp_send(&mut stream, &asked).await;
    assert_eq!(tcp_receive(&mut stream).await.metadata.id, 5);
    let dropped = server.counters.others();
    assert!(dropped.contains(&("dropped", 2)), "{dropped:?}");
}

#[tokio::test]
async fn without_an_upstream_the_world_does_not_exist() {
    let server = start(localhost(), vec![]).await;
    let answer = udp(server.address, &question(1, "example.com.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert!(!answer.metadata.authoritative && answer.authorities.is_empty());
    let ext = question(1, "ext.default.svc.cluster.local.", RecordType::A);
    let answer = udp(server.address, &ext).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    assert_eq!(addresses(&answer), ["www.example.com."]);
    let transfer = question(1, "cluster.local.", RecordType::AXFR);
    let answer = udp(server.address, &transfer).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn other_names_are_asked_upstream() {
    let (up, count) = upstream(Manner::Answers(1)).await;
    let server = start(localhost(), vec![up]).await;
    let asked = question(0x1234, "example.com.", RecordType::A);
    for answer in [
        udp(server.address, &asked).await,
        tcp(server.address, &asked).await,
    ] {
        assert_eq!(answer.metadata.id, 0x1234);
        assert_eq!(addresses(&answer), ["192.0.2.1"]);
    }
    assert_eq!(count.load(Ordering::Relaxed), 2);
    // Truncated upstream: told so to one who can come back, whole to one who came by TCP.
    let big = question(7, "big.example.com.", RecordType::A);
    assert!(udp(server.address, &big).await.metadata.truncation);
    assert_eq!(addresses(&tcp(server.address, &big).await).len(), 100);
    // An alias that leads there comes with what is there.
    let ext = question(8, "ext.default.svc.cluster.local.", RecordType::A);
    let answer = udp(server.address, &ext).await;
    assert_eq!(addresses(&answer), ["www.example.com.", "192.0.2.1"]);
    // An address that is none of ours.
    let pointer = question(9, "1.0.0.10.in-addr.arpa.", RecordType::PTR);
    assert_eq!(udp(server.address, &pointer).await.metadata.id, 9);
    let before = count.load(Ordering::Relaxed);
    let ours = question(9, "nothing.default.svc.cluster.local.", RecordType::A);
    let answer = udp(server.address, &ours).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    assert!(answer.metadata.recursion_available);
    assert_eq!(
        count.load(Ordering::Relaxed),
        before,
        "nobody else is asked"
    );
}

#[tokio::test]
async fn upstreams_take_over_from_each_other() {
    let (silent, asked_silent) = upstream(Manner::Silent).await;
    let (fails, _) = upstream(Manner::Fails).await;
    let (good, _) = upstream(Manner::Answers(2)).await;
    let server = start(localhost(), vec![fails, silent, good]).await;
    let asked = question(1, "example.com.", RecordType::A);
    assert_eq!(addresses(&udp(server.address, &asked).await), ["192.0.2.2"]);
    // The silent one is asked last for a while.
    let before = asked_silent.load(Ordering::Relaxed);
    assert_eq!(addresses(&udp(server.address, &asked).await), ["192.0.2.2"]);
    assert_eq!(asked_silent.load(Ordering::Relaxed), before);
    // Only failures: that is what is told.
    let server = start(localhost(), vec![fails]).await;
    let answer = udp(server.address, &asked).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn answers_to_other_questions_are_not_believed() {
    let (lies, _) = upstream(Manner::Lies).await;
    let server = start(localhost(), vec![lies]).await;
    let asked = question(1, "example.com.", RecordType::A);
    assert_eq!(addresses(&udp(server.address, &asked).await), ["192.0.2.9"]);
}

#[tokio::test]
async fn nobody_asks_itself() {
    // Nobody else listens on an address that has this process's number in it.
    let [_, a, b, c] = std::process::id().to_be_bytes();
    let address = SocketAddr::from(([127, 0x80 | a, b, c], 20_053));
    let zone = Handle::new("cluster.local", &[]).unwrap();
    let config = Config {
        upstreams: vec![address],
    };
    let server = Server::bind(&[address], config).await.unwrap();
    let task = tokio::spawn(server.serve(zone));
    let answer = udp(address, &question(1, "example.com.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    task.abort();
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let taken = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let error = Server::bind(&[address], Config::default())
        .await
        .unwrap_err();
    let expect = format!("listen for DNS on {address} (UDP): Address already in use (os error 98)");
    assert_eq!(error.to_string(), expect);
}
