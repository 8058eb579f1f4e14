//! A small HTTP/1 server for pages that are read, with limits.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket};

/// A connection must be over by then.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections served at a time; more wait.
const CONNECTIONS_MAX: usize = 64;

/// Connections that wait.
const BACKLOG: u32 = 128;

/// A page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Code.
    pub code: StatusCode,
    /// `Content-Type`.
    pub kind: &'static str,
    /// More headers.
    pub headers: Vec<(&'static str, String)>,
    /// Text.
    pub body: String,
}

impl Page {
    /// A page with code 200.
    pub fn new(kind: &'static str, body: impl Into<String>) -> Self {
        Self {
            code: StatusCode::OK,
            kind,
            headers: Vec::new(),
            body: body.into(),
        }
    }

    /// Text with code 200.
    pub fn text(body: impl Into<String>) -> Self {
        Self::new("text/plain; charset=utf-8", body)
    }

    /// 404.
    pub fn not_found() -> Self {
        Self {
            code: StatusCode::NOT_FOUND,
            ..Self::text("404 page not found\n")
        }
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(self.body)));
        *response.status_mut() = self.code;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.kind));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        for (name, value) in self.headers {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        response
    }
}

/// Answers the path of a request.
pub type Answer = Arc<dyn Fn(&str) -> Page + Send + Sync>;

/// Listens at an address. `[::]` is IPv6 only where `v6_only` says so.
///
/// # Errors
/// The address is taken, or not this machine's.
pub fn listen(address: SocketAddr, v6_only: bool) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        let socket = TcpSocket::new_v6()?;
        if v6_only {
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv6V6Only, &true)?;
        }
        socket
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, answer: Answer) {
    let limit = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = limit.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let response = answer(request.uri().path()).into_response();
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
                tracing::debug!(%error, "connection to a page");
            }
            drop(permit);
        });
    }
}
