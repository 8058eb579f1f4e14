use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime};

use super::*;

fn name(name: &str) -> ServiceName {
    ServiceName::new("shop", name)
}

/// The rows of table T11 about a service: local endpoints, whether the proxy keeps up, code.
#[test]
fn codes_headers_and_text() {
    for (local, healthy, code) in [
        (0, true, 503),
        (1, true, 200),
        (3, true, 200),
        (3, false, 503),
        (0, false, 503),
    ] {
        let page = page(&name("web"), local, healthy);
        assert_eq!(page.code.as_u16(), code, "{local} {healthy}");
        assert_eq!(page.kind, "application/json");
        let weight = ("x-load-balancing-endpoint-weight", local.to_string());
        assert_eq!(page.headers, [weight]);
    }
    let page = page(&name("web"), 2, true);
    let expect = "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
    assert_eq!(page.body, expect);
}

/// A loopback address with this process's number in it: nobody else listens there.
fn own_address() -> Ipv4Addr {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 0x80 | a, b, c)
}

fn get(port: u16) -> Result<String, ErrorKind> {
    let run = || {
        let mut stream = TcpStream::connect((own_address(), port))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.write_all(b"GET /any HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok::<_, std::io::Error>(text)
    };
    run().map_err(|e| e.kind())
}

async fn asked(port: u16) -> Result<String, ErrorKind> {
    tokio::task::spawn_blocking(move || get(port))
        .await
        .unwrap()
}

#[tokio::test]
async fn ports_come_and_go_with_their_services() {
    let health = Arc::new(Health::new(Duration::from_secs(60)));
    let mut servers = Servers::new(health.clone(), Events::log_only());
    let local = NodePortScope::Only(vec![own_address().into()]);
    servers.apply(Update::Scope(Family::V4, local)).await;
    let (a, b) = (20_001, 20_002);
    let update = |service: &str, check| Update::Service(Family::V4, name(service), check);
    let check = |port, local| Some(Check { port, local });
    servers.apply(update("a", check(a, 1))).await;
    servers.apply(update("b", check(b, 0))).await;
    let text = asked(a).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert!(
        text.contains("\r\nx-content-type-options: nosniff\r\n"),
        "{text}"
    );
    assert!(
        text.contains("\r\nx-load-balancing-endpoint-weight: 1\r\n"),
        "{text}"
    );
    assert!(asked(b).await.unwrap().starts_with("HTTP/1.1 503 "));
    // Endpoints come, the proxy falls behind and catches up.
    servers.apply(update("b", check(b, 2))).await;
    assert!(asked(b).await.unwrap().starts_with("HTTP/1.1 200 "));
    health.queued(Family::V4, Instant::now() - Duration::from_secs(61));
    assert!(asked(b).await.unwrap().starts_with("HTTP/1.1 503 "));
    health.synced(Family::V4, SystemTime::now());
    assert!(asked(b).await.unwrap().starts_with("HTTP/1.1 200 "));
    // A node that goes does not matter here.
    health.node_goes(true);
    assert!(asked(b).await.unwrap().starts_with("HTTP/1.1 200 "));
    // The port is closed, and another service may have it.
    servers.apply(update("a", None)).await;
    assert_eq!(asked(a).await, Err(ErrorKind::ConnectionRefused));
    servers.apply(update("b", check(a, 2))).await;
    assert!(asked(a).await.unwrap().contains("\"b\""));
    assert_eq!(asked(b).await, Err(ErrorKind::ConnectionRefused));
}
