//! A network namespace: its addresses and routes, servers and clients in it.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use linux::addr::Addr;
use linux::link::LinkChange;
use linux::route::Route;
use linux::{Host, Kernel, NetNs};

use super::talk::{PATIENCE, PORT, answer, ask, ask_shortly};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// One network namespace.
pub(crate) struct Place {
    /// Its door.
    pub(crate) kernel: Kernel,
    pub(super) path: PathBuf,
    /// The control group that its threads run in, where that matters.
    pub(super) group: Option<PathBuf>,
    /// Another handle of a place that is somebody else's.
    is_twin: bool,
}

impl Place {
    pub(super) fn new(name: &str) -> Self {
        let path = PathBuf::from(format!("/run/seaway-test/{}-{name}", unique()));
        let netns = NetNs::create(&path).unwrap();
        let mut kernel = Kernel::open_in(netns).unwrap();
        for (key, value) in [
            // Each refusal is one, however many there were before.
            ("net/ipv4/icmp_ratelimit", "0"),
            ("net/ipv6/icmp/ratelimit", "0"),
            // Nobody else has a link's own address; until the kernel is sure, it asks for no neighbour
            // from it.
            ("net/ipv6/conf/default/accept_dad", "0"),
        ] {
            kernel.set_sysctl(key, value).unwrap();
        }
        kernel
            .set_link(
                "lo",
                &LinkChange {
                    up: Some(true),
                    ..LinkChange::default()
                },
            )
            .unwrap();
        Self {
            kernel,
            path,
            group: None,
            is_twin: false,
        }
    }

    /// Runs `work` in there.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let work = || {
            if let Some(group) = &self.group {
                crate::sockets::enter(group);
            }
            work()
        };
        NetNs::open(&self.path).unwrap().run(work).unwrap()
    }

    /// Another handle of the same place, for threads that work while the lab changes.
    pub(crate) fn twin(&self) -> Self {
        Self {
            kernel: Kernel::open_in(NetNs::open(&self.path).unwrap()).unwrap(),
            path: self.path.clone(),
            group: self.group.clone(),
            is_twin: true,
        }
    }

    pub(super) fn up(&mut self, link: &str, addresses: &[&str]) {
        for address in addresses {
            self.kernel
                .add_addr(link, &Addr::new(address.parse().unwrap()))
                .unwrap();
        }
        self.kernel
            .set_link(
                link,
                &LinkChange {
                    up: Some(true),
                    ..LinkChange::default()
                },
            )
            .unwrap();
    }

    pub(super) fn default_route(&mut self, gateways: &[&str]) {
        for gateway in gateways {
            let gateway: IpAddr = gateway.parse().unwrap();
            let all = if gateway.is_ipv4() {
                "0.0.0.0/0"
            } else {
                "::/0"
            };
            self.kernel
                .add_route(&Route::to(all.parse().unwrap()).via(gateway))
                .unwrap();
        }
    }

    /// Serves TCP and UDP on [`PORT`]: says its name and the client's address, then repeats what
    /// it hears.
    pub(crate) fn serve(&self, name: &'static str) {
        let (tcp, udp) = self.run(|| {
            let any = SocketAddr::new("::".parse().unwrap(), PORT);
            (
                TcpListener::bind(any).unwrap(),
                UdpSocket::bind(any).unwrap(),
            )
        });
        std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                std::thread::spawn(move || answer(stream, name));
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let text = format!("{name} {}", peer.ip().to_canonical());
                let _sent = udp.send_to(text.as_bytes(), peer);
            }
        });
    }

    /// One connection: who answered, and which source it saw, or what came of it in a short time.
    pub(crate) fn ask(&self, to: &str) -> Result<(String, IpAddr), std::io::ErrorKind> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(|| ask_shortly(to))
            .map(|(who, peer, _)| (who, peer))
    }

    /// One connection, which is answered: by whom, and which source it saw.
    #[track_caller]
    pub(crate) fn answer(&self, to: &str) -> (String, IpAddr) {
        self.ask_many(to, 1).remove(0)
    }

    /// A page over HTTP: its code, and its text with the headers.
    pub(crate) fn get(&self, at: &str, page: &str) -> Result<(u16, String), std::io::ErrorKind> {
        let to: SocketAddr = at.parse().unwrap();
        let run = || -> std::io::Result<(u16, String)> {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE / 10)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let request = format!("GET {page} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes())?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            let code = text.split(' ').nth(1).and_then(|code| code.parse().ok());
            Ok((code.unwrap_or_default(), text))
        };
        self.run(run).map_err(|e| e.kind())
    }

    /// A connection that stays open.
    pub(crate) fn connect(&self, to: &str) -> TcpStream {
        let to: SocketAddr = to.parse().unwrap();
        self.run(|| ask(to)).unwrap().2
    }

    /// Whoever answers `n` connections, and the sources they saw.
    #[track_caller]
    pub(crate) fn ask_many(&self, to: &str, n: usize) -> Vec<(String, IpAddr)> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(|| {
            (0..n)
                .map(|_| ask(to).map(|(who, peer, _)| (who, peer)))
                .collect::<Result<_, _>>()
        })
        .unwrap_or_else(|e| panic!("{to}: {e}"))
    }

    /// Where the namespace is mounted.
    pub(crate) fn kernel_path(&self) -> &std::path::Path {
        &self.path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_twin {
            drop(NetNs::remove(&self.path));
        }
    }
}

fn unique() -> String {
    format!(
        "{}-{}",
        std::process::id(),
        COUNTER.fetch_add(1, Ordering::Relaxed)
    )
}
