//! What servers and clients say to each other, and for how long one listens.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// The port that every pod's server listens on.
pub(crate) const PORT: u16 = 8080;

/// How long anything may take that is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// The same in a guest, where everything takes longer.
pub(crate) fn patience() -> Duration {
    linux::patience::scaled(PATIENCE)
}

/// Says `name` and the client's address, then repeats what it hears.
pub(super) fn answer(mut stream: TcpStream, name: &str) {
    let Ok(peer) = stream.peer_addr() else { return };
    let hello = format!("{name} {}\n", peer.ip().to_canonical());
    let _sent = stream.write_all(hello.as_bytes());
    let mut buffer = [0; 64];
    while let Ok(n) = stream.read(&mut buffer) {
        if n == 0 || stream.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}

/// One connection: who answered, which source it saw, and the connection.
pub(super) fn ask(to: SocketAddr) -> Result<(String, IpAddr, TcpStream), std::io::ErrorKind> {
    ask_within(to, patience())
}

/// The same where silence may be what is expected, or ends.
pub(super) fn ask_shortly(
    to: SocketAddr,
) -> Result<(String, IpAddr, TcpStream), std::io::ErrorKind> {
    ask_within(to, patience() / 10)
}

fn ask_within(
    to: SocketAddr,
    limit: Duration,
) -> Result<(String, IpAddr, TcpStream), std::io::ErrorKind> {
    let run = || -> std::io::Result<_> {
        let stream = TcpStream::connect_timeout(&to, limit)?;
        stream.set_read_timeout(Some(patience()))?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line)?;
        Ok((line, stream))
    };
    let (line, stream) = run().map_err(|e| e.kind())?;
    let (who, peer) = line
        .trim()
        .split_once(' ')
        .ok_or(std::io::ErrorKind::InvalidData)?;
    Ok((who.to_owned(), peer.parse().unwrap(), stream))
}

/// One connection, or what came of it.
pub(crate) fn ask_raw(to: SocketAddr) -> std::io::Result<()> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    BufReader::new(&stream).read_line(&mut String::new())?;
    Ok(())
}

/// Sends a line over an open connection and expects it back.
pub(crate) fn still_alive(stream: &mut TcpStream) {
    stream.write_all(b"ping").unwrap();
    let mut buffer = [0; 4];
    stream.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"ping");
}

/// One connection from the calling thread; whether it was answered.
pub(crate) fn ask_once(to: SocketAddr) -> bool {
    ask(to).is_ok()
}

/// Asks for the addresses of a name; `None` when it does not exist.
pub(crate) fn count_answers(server: SocketAddr, name: &str) -> Option<usize> {
    let any = if server.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut question = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).unwrap());
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    socket.send_to(&question, server).unwrap();
    let mut answer = [0; 512];
    socket.recv(&mut answer).unwrap();
    (answer[3] & 15 == 0).then(|| usize::from(u16::from_be_bytes([answer[6], answer[7]])))
}

/// A UDP socket of its own port, in the calling thread's namespace.
pub(crate) fn udp_socket() -> UdpSocket {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    socket
}

/// Who answers one datagram, if anybody does.
pub(crate) fn ask_udp(socket: &UdpSocket, to: SocketAddr) -> Option<String> {
    socket.send_to(b"?", to).ok()?;
    let mut buffer = [0; 64];
    let (n, _) = socket.recv_from(&mut buffer).ok()?;
    let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
    Some(text.split(' ').next().unwrap_or_default().to_owned())
}
