//! Making one probe: a program in the container, an HTTP request, or a TCP connection.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::context::blocking;
use crate::rt::{ExecSpec, PodRuntime};
use crate::stream;

/// So much of an answer or output goes into a message (upstream: 10 KiB).
const OUTPUT_MAX: usize = 10 << 10;
/// A message in an event is cut there (upstream's limit of an event is 1 KiB).
const MESSAGE_MAX: usize = 900;

/// What a probe says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All is well.
    Good,
    /// Something is wrong, and what.
    Bad(String),
}

fn bad(why: impl Into<String>) -> Verdict {
    let mut why = why.into();
    let mut end = why.len().min(MESSAGE_MAX);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    why.truncate(end);
    Verdict::Bad(why)
}

/// Runs `argv` in container `id`; good when it ends with 0, in time.
pub async fn exec(
    rt: Arc<dyn PodRuntime>,
    id: String,
    argv: Vec<String>,
    timeout: Option<Duration>,
) -> Verdict {
    let spec = ExecSpec {
        argv,
        ..ExecSpec::default()
    };
    let session = match blocking(move || rt.exec(&id, &spec)).await {
        Ok(session) => session,
        Err(e) => return bad(e.to_string()),
    };
    let control: Arc<dyn crate::rt::ExecControl> = session.control.into();
    let waiter = control.clone();
    let work = async {
        let out = stream::read_up_to(session.stdout, OUTPUT_MAX);
        let err = stream::read_up_to(session.stderr, OUTPUT_MAX);
        let code = blocking(move || waiter.wait());
        futures::join!(out, err, code)
    };
    let limit = timeout.unwrap_or(Duration::MAX);
    match tokio::time::timeout(limit, work).await {
        Ok((_, _, Ok(0))) => Verdict::Good,
        Ok((out, err, Ok(code))) => {
            let text = [out, err].concat();
            let text = String::from_utf8_lossy(&text);
            bad(match text.trim() {
                "" => format!("command exited with {code}"),
                text => text.to_owned(),
            })
        }
        Ok((_, _, Err(e))) => bad(e.to_string()),
        Err(_) => {
            blocking(move || control.kill()).await;
            bad(format!("command timed out after {} s", limit.as_secs()))
        }
    }
}

/// The number of a port given by number or by name.
pub fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(n) => Some(*n),
        IntOrString::String(name) => {
            let mut all = container.ports.iter().flatten();
            let named = all.find(|p| p.name.as_deref() == Some(name));
            named.map(|p| p.container_port).or(name.parse().ok())
        }
    };
    let number = number
        .and_then(|n| u16::try_from(n).ok())
        .filter(|n| *n > 0);
    let shown = match port {
        IntOrString::Int(n) => n.to_string(),
        IntOrString::String(s) => s.clone(),
    };
    number.ok_or_else(|| format!("port {shown}: no such port of the container"))
}

async fn connect(
    host: Option<&str>,
    ip: IpAddr,
    port: u16,
    timeout: Duration,
) -> Result<TcpStream, String> {
    let fail = |e: std::io::Error| format!("dial tcp {}: {e}", SocketAddr::new(ip, port));
    let connecting = async {
        match host.filter(|h| !h.is_empty()) {
            Some(host) => TcpStream::connect((host, port)).await,
            None => TcpStream::connect((ip, port)).await,
        }
    };
    match tokio::time::timeout(timeout, connecting).await {
        Ok(result) => result.map_err(fail),
        Err(_) => Err(format!(
            "dial tcp {}: i/o timeout",
            SocketAddr::new(ip, port)
        )),
    }
}

/// Opens a TCP connection; good when it opens, in time.
pub async fn tcp(host: Option<&str>, port: u16, ip: IpAddr, timeout: Duration) -> Verdict {
    match connect(host, ip, port, timeout).await {
        Ok(_) => Verdict::Good,
        Err(e) => bad(e),
    }
}

/// Sends a GET; good when the answer's status is 200 to 399, in time. Redirects are not followed.
pub async fn http_get(
    action: &HTTPGetAction,
    container: &Container,
    ip: IpAddr,
    timeout: Duration,
) -> Verdict {
    let port = match port(&action.port, container) {
        Ok(port) => port,
        Err(e) => return bad(e),
    };
    let host = action.host.as_deref().filter(|h| !h.is_empty());
    let authority = host.map_or_else(
        || SocketAddr::new(ip, port).to_string(),
        |h| format!("{h}:{port}"),
    );
    let tls = action.scheme.as_deref() == Some("HTTPS");
    let scheme = if tls { "https" } else { "http" };
    let path = action.path.as_deref().unwrap_or("/");
    let path = format!("/{}", path.trim_start_matches('/'));
    let url = format!("{scheme}://{authority}{path}");
    let work = async {
        let tcp = connect(host, ip, port, timeout).await?;
        let request = request(action, &authority, &path)?;
        if tls {
            let tls = crate::tls::connect_unverified(tcp, ip).await?;
            send(tls, request).await
        } else {
            send(tcp, request).await
        }
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(Ok((status, _))) if (200..400).contains(&status) => Verdict::Good,
        Ok(Ok((status, _))) => bad(format!("HTTP probe failed with statuscode: {status}")),
        Ok(Err(e)) => bad(format!("Get \"{url}\": {e}")),
        Err(_) => bad(format!(
            "Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

fn request(
    action: &HTTPGetAction,
    authority: &str,
    path: &str,
) -> Result<Request<Empty<Bytes>>, String> {
    let mut request = Request::get(path);
    let headers = action.http_headers.as_deref().unwrap_or_default();
    let has = |name: &str| headers.iter().any(|h| h.name.eq_ignore_ascii_case(name));
    for (name, value) in [
        ("Host", authority),
        ("User-Agent", "kube-probe/1.36"),
        ("Accept", "*/*"),
    ] {
        if !has(name) {
            request = request.header(name, value);
        }
    }
    for header in headers {
        request = request.header(&header.name, &header.value);
    }
    request.body(Empty::new()).map_err(|e| e.to_string())
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<(u16, Bytes), String> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    let exchange = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        // The rest of a long answer does not matter.
        let body = Limited::new(response.into_body(), OUTPUT_MAX)
            .collect()
            .await;
        let body = body
            .map(http_body_util::Collected::to_bytes)
            .unwrap_or_default();
        Ok((status, body))
    };
    tokio::pin!(exchange, connection);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = &mut connection => match ended {
            Ok(()) => exchange.await,
            Err(e) => Err(e.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn serve(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0; 1024];
                let n = stream.read(&mut buffer).await.unwrap();
                let text = String::from_utf8_lossy(&buffer[..n]);
                let answer = if text.contains("GET /bad") {
                    "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"
                } else {
                    answer
                };
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        port
    }

    fn get(path: &str, port: u16) -> HTTPGetAction {
        HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::Int(port.into()),
            ..Default::default()
        }
    }

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn http_answers() {
        let ip = "127.0.0.1".parse().unwrap();
        let c = Container::default();
        let port = serve("HTTP/1.1 204 Fine\r\n\r\n").await;
        assert_eq!(
            http_get(&get("ok", port), &c, ip, LIMIT).await,
            Verdict::Good
        );
        assert_eq!(
            http_get(&get("/bad", port), &c, ip, LIMIT).await,
            Verdict::Bad("HTTP probe failed with statuscode: 500".into())
        );
        assert_eq!(tcp(None, port, ip, LIMIT).await, Verdict::Good);
        // Port 1 is given to nobody who asks for any.
        let Verdict::Bad(why) = http_get(&get("/", 1), &c, ip, LIMIT).await else {
            panic!("nobody listens");
        };
        assert!(
            why.contains("connection refused") || why.contains("Connection refused"),
            "{why}"
        );
    }

    #[tokio::test]
    async fn an_answer_that_does_not_come_is_bad() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let ip = "127.0.0.1".parse().unwrap();
        let short = Duration::from_millis(50);
        let verdict = http_get(&get("/", port), &Container::default(), ip, short).await;
        assert!(matches!(verdict, Verdict::Bad(why) if why.contains("deadline exceeded")));
    }

    #[test]
    fn ports_by_name_and_number() {
        let c: Container = serde_json::from_value(serde_json::json!({
            "name": "c", "ports": [{"name": "http", "containerPort": 8080}]
        }))
        .unwrap();
        assert_eq!(port(&IntOrString::String("http".into()), &c), Ok(8080));
        assert_eq!(port(&IntOrString::String("81".into()), &c), Ok(81));
        assert_eq!(port(&IntOrString::Int(80), &c), Ok(80));
        assert!(port(&IntOrString::String("x".into()), &c).is_err());
        assert!(port(&IntOrString::Int(0), &c).is_err());
    }
}
