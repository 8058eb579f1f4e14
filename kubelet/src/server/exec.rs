//! exec and attach: a WebSocket joined to the streams of a program in a container.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Mutex;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

use super::channel::{self, FromClient};
use super::{Body, Query, text};
use crate::context::{Context, blocking};
use crate::rt::{ExecControl, ExecSession, ExecSpec};
use crate::stream;

/// Bytes of output in one message.
const OUTPUT: usize = 16 << 10;
/// A caller has this long to answer the end of a session.
const GOODBYE_LIMIT: Duration = Duration::from_secs(2);

type Socket = WebSocketStream<TokioIo<Upgraded>>;
type Sink = Arc<Mutex<SplitSink<Socket, Message>>>;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Exec,
    Attach,
}

/// The streams of the request.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

/// Answers with an upgrade to a WebSocket, and goes on there.
pub(super) async fn answer(
    mut request: Request<Incoming>,
    ctx: &Context,
    namespace: &str,
    pod: &str,
    container: &str,
    verb: Verb,
) -> Response<Body> {
    let query = Query::of(&request);
    let id = match running(ctx, namespace, pod, container) {
        Ok(id) => id,
        Err((status, why)) => return text(status, why),
    };
    let (key, protocol) = match handshake(request.headers()) {
        Ok(pair) => pair,
        Err(why) => return text(StatusCode::BAD_REQUEST, why),
    };
    let tty = query.is_set("tty");
    let wanted = Wanted {
        stdin: query.is_set("stdin"),
        stdout: query.is_set("stdout"),
        stderr: query.is_set("stderr") && !tty,
    };
    let spec = ExecSpec {
        argv: query.all("command"),
        stdin: wanted.stdin,
        tty,
        ..ExecSpec::default()
    };
    if verb == Verb::Exec && spec.argv.is_empty() {
        return text(StatusCode::BAD_REQUEST, "command: at least one is needed\n");
    }
    let rt = ctx.rt.clone();
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let upgraded = match upgrade.await {
            Ok(upgraded) => upgraded,
            Err(e) => return tracing::debug!(error = %e, "upgrade"),
        };
        let io = TokioIo::new(upgraded);
        let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        let session = blocking(move || match verb {
            Verb::Exec => rt.exec(&id, &spec),
            Verb::Attach => rt.attach(&id, spec.stdin),
        });
        match session.await {
            Ok(session) => join(socket, session, wanted, verb).await,
            Err(e) => refuse(socket, e.message).await,
        }
    });
    switching(&key, protocol)
}

/// The id of the running container.
fn running(
    ctx: &Context,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<String, (StatusCode, String)> {
    let Some(shown) = ctx.board.find(namespace, pod) else {
        let why = format!("pod \"{pod}\" not found in namespace \"{namespace}\" on this node\n");
        return Err((StatusCode::NOT_FOUND, why));
    };
    let run = shown.observed.latest(container).filter(|r| r.is_running());
    match run {
        Some(run) => Ok(run.id.clone()),
        None => {
            let why = format!("container not found (\"{container}\"): it is not running\n");
            Err((StatusCode::NOT_FOUND, why))
        }
    }
}

/// The key and the chosen subprotocol of a WebSocket request.
fn handshake(headers: &HeaderMap) -> Result<(String, &'static str), String> {
    let get = |name: HeaderName| {
        let all = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
        all.collect::<Vec<_>>().join(",")
    };
    if !get(UPGRADE).eq_ignore_ascii_case("websocket") {
        let why = "exec and attach need a WebSocket (SPDY is not supported)\n";
        return Err(why.to_owned());
    }
    let key = get(SEC_WEBSOCKET_KEY);
    if key.is_empty() {
        return Err("Sec-WebSocket-Key: missing\n".to_owned());
    }
    let offered = get(SEC_WEBSOCKET_PROTOCOL);
    let protocol = channel::choose(&offered).ok_or_else(|| {
        format!("Sec-WebSocket-Protocol: none of \"{offered}\" is supported (v5.channel.k8s.io and v4.channel.k8s.io are)\n")
    })?;
    Ok((key, protocol))
}

fn switching(key: &str, protocol: &'static str) -> Response<Body> {
    let mut response = text(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = response.headers_mut();
    headers.clear();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    // The accept key is base64, which is always a header value.
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

async fn refuse(mut socket: Socket, why: String) {
    let end = Message::Binary(channel::end(Err(why)));
    for message in [end, goodbye()] {
        if let Err(e) = socket.send(message).await {
            return tracing::debug!(error = %e, "refusing a session");
        }
    }
}

/// Carries bytes both ways until the program ends, or kills it when the caller goes away.
async fn join(socket: Socket, session: ExecSession, wanted: Wanted, verb: Verb) {
    let (sink, source) = socket.split();
    let sink: Sink = Arc::new(Mutex::new(sink));
    let control: Arc<dyn ExecControl> = session.control.into();
    let mut input = tokio::spawn(input(
        source,
        sink.clone(),
        session.stdin,
        control.clone(),
        wanted.stdin,
    ));
    let out = output(session.stdout, channel::STDOUT, wanted.stdout, sink.clone());
    let err = output(session.stderr, channel::STDERR, wanted.stderr, sink.clone());
    let waiter = control.clone();
    let ended = async {
        let (_, _, code) = futures::join!(out, err, blocking(move || waiter.wait()));
        code
    };
    tokio::select! {
        code = ended => {
            let end = channel::end(code.map_err(|e| e.message));
            say(&sink, Message::Binary(end)).await;
            say(&sink, goodbye()).await;
            // The caller answers the goodbye; closing before that could cost it our last words.
            if tokio::time::timeout(GOODBYE_LIMIT, &mut input).await.is_err() {
                input.abort();
            }
        }
        // The caller is gone: nobody waits for the program.
        _ = &mut input => {
            if verb == Verb::Exec {
                blocking(move || control.kill()).await;
            }
        }
    }
}

fn goodbye() -> Message {
    Message::Close(Some(CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    }))
}

async fn say(sink: &Sink, message: Message) -> bool {
    sink.lock().await.send(message).await.is_ok()
}

/// Carries a stream of the program to the client; an unwanted one is read and dropped.
async fn output(fd: Option<OwnedFd>, number: u8, wanted: bool, sink: Sink) {
    let Some(Ok(mut reader)) = fd.map(stream::Reader::new) else {
        return;
    };
    let mut buffer = vec![0; OUTPUT];
    while let Ok(n @ 1..) = reader.read(&mut buffer).await {
        if wanted && !say(&sink, Message::Binary(channel::frame(number, &buffer[..n]))).await {
            return;
        }
    }
}

/// Carries what the client sends to the program; ends when the client goes away.
async fn input(
    mut source: SplitStream<Socket>,
    sink: Sink,
    stdin: Option<OwnedFd>,
    control: Arc<dyn ExecControl>,
    wanted: bool,
) {
    let mut stdin = stdin
        .filter(|_| wanted)
        .and_then(|fd| stream::writer(fd).ok());
    while let Some(Ok(message)) = source.next().await {
        let bytes: Bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            Message::Ping(bytes) => {
                say(&sink, Message::Pong(bytes)).await;
                continue;
            }
            Message::Close(_) => return,
            Message::Pong(_) | Message::Frame(_) => continue,
        };
        match channel::parse(&bytes) {
            FromClient::Stdin(bytes) => {
                if let Some(pipe) = &mut stdin {
                    // A program that has closed its input does not mind the rest.
                    if pipe.write_all(&bytes).await.is_err() {
                        stdin = None;
                    }
                }
            }
            FromClient::StdinEnds => stdin = None,
            FromClient::Resize { width, height } => {
                let control = control.clone();
                if let Err(e) = blocking(move || control.resize(width, height)).await {
                    tracing::debug!(error = %e, "resize");
                }
            }
            FromClient::Other => {}
        }
    }
}
