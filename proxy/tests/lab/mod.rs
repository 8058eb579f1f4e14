//! A node with two pods, a remote pod and a client, each a network namespace of the test's own, and
//! the real binary on the node.
//!
//! ```text
//!   cli 192.168.0.9 ---- eth0 192.168.0.2 [node] cni0 10.180.0.254 ---- p1 .1, p2 .2
//!                                            rem0 10.180.1.254 -------- p3 10.180.1.1
//! ```
//! IPv6 beside it: 2001:db8::9 and ::2, fd00:180::fe with ::1 and ::2, fd00:180:1::fe with ::1.

pub(crate) mod asking;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::sockets::Sockets;
use linux::addr::Addr;
use linux::exec::Exec;
use linux::iptables::{Family, Iptables};
use linux::link::{LinkChange, NewBridge, NewVeth};
use linux::nftables::Nftables;
use linux::process::Daemon;
use linux::route::Route;
use linux::{Host, Kernel, NetNs};
use proxy::backend::Mode;
use proxy::backend::nftables::dump;

/// The port that every pod's server listens on.
pub(crate) const PORT: u16 = 8080;

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The same in a guest, where everything takes longer.
fn patience() -> Duration {
    let scale = std::env::var("SEAWAY_TIME_SCALE").ok();
    PATIENCE * scale.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// How long a condition is waited for. After it has compared all rules the proxy rests ten times as
/// long as that took, which on a busy machine is a second or two.
fn patience_for_conditions() -> Duration {
    patience() * 6
}

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// One network namespace.
pub(crate) struct Place {
    /// Its door.
    pub(crate) kernel: Kernel,
    path: PathBuf,
    /// The control group that its threads run in, where that matters.
    group: Option<PathBuf>,
    /// Another handle of a place that is somebody else's.
    is_twin: bool,
}

impl Place {
    fn new(name: &str) -> Self {
        let path = PathBuf::from(format!("/run/seaway-test/{}-{name}", unique()));
        let netns = NetNs::create(&path).unwrap();
        let mut kernel = Kernel::open_in(netns).unwrap();
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

    fn up(&mut self, link: &str, addresses: &[&str]) {
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

    fn default_route(&mut self, gateways: &[&str]) {
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

    /// One connection: who answered, and which source it saw.
    pub(crate) fn ask(&self, to: &str) -> Result<(String, IpAddr), std::io::ErrorKind> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(|| ask(to)).map(|(who, peer, _)| (who, peer))
    }

    /// A page over HTTP: its code, and its text with the headers.
    pub(crate) fn get(&self, at: &str, page: &str) -> Result<(u16, String), std::io::ErrorKind> {
        let to: SocketAddr = at.parse().unwrap();
        let run = || -> std::io::Result<(u16, String)> {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(1))?;
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
    pub(crate) fn ask_many(&self, to: &str, n: usize) -> Vec<(String, IpAddr)> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(|| {
            (0..n)
                .map(|_| ask(to).map(|(who, peer, _)| (who, peer)))
                .collect::<Result<_, _>>()
        })
        .unwrap_or_else(|e| panic!("{to}: {e}"))
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

fn answer(mut stream: TcpStream, name: &str) {
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

fn ask(to: SocketAddr) -> Result<(String, IpAddr, TcpStream), std::io::ErrorKind> {
    let run = || -> std::io::Result<_> {
        let stream = TcpStream::connect_timeout(&to, patience() / 10)?;
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

/// The whole lab.
pub(crate) struct Lab {
    pub(crate) node: Place,
    pub(crate) p1: Place,
    pub(crate) p2: Place,
    pub(crate) p3: Place,
    pub(crate) cli: Place,
    pub(crate) manifests: PathBuf,
    log: PathBuf,
    mode: Mode,
    more: Vec<String>,
    proxy: Option<Child>,
    sockets: Option<Sockets>,
    _dir: tempfile::TempDir,
}

impl Lab {
    /// In mode iptables.
    pub(crate) fn new(test: &str) -> Option<Self> {
        Self::in_mode(test, Mode::Iptables)
    }

    /// Without rights: says so, and is `None`.
    pub(crate) fn in_mode(test: &str, mode: Mode) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED {test}: needs root");
            return None;
        }
        let mut lab = Self::places(mode);
        wire(&mut lab);
        for (place, name) in [(&lab.p1, "p1"), (&lab.p2, "p2"), (&lab.p3, "p3")] {
            place.serve(name);
        }
        lab.settle();
        Some(lab)
    }

    /// Waits until everybody reaches everybody: links come up and neighbours are learnt by and by.
    fn settle(&self) {
        let pods = [
            "10.180.0.1",
            "10.180.0.2",
            "10.180.1.1",
            "[fd00:180::1]",
            "[fd00:180::2]",
            "[fd00:180:1::1]",
        ];
        for place in [&self.node, &self.p1, &self.p2, &self.p3, &self.cli] {
            for pod in pods {
                let to = format!("{pod}:{PORT}");
                self.wait(&to, |_| place.ask(&to).is_ok());
            }
        }
    }

    fn places(mode: Mode) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let manifests = dir.path().join("manifests");
        fs::create_dir(&manifests).unwrap();
        let [node, p1, p2, p3, cli] = ["node", "p1", "p2", "p3", "cli"].map(Place::new);
        Self {
            node,
            p1,
            p2,
            p3,
            cli,
            log: dir.path().join("log"),
            manifests,
            mode,
            more: Vec::new(),
            proxy: None,
            sockets: None,
            _dir: dir,
        }
    }

    /// More flags for the proxy, or another value for one.
    #[must_use]
    pub(crate) fn with(mut self, flags: &[&str]) -> Self {
        self.more_flags(flags);
        self
    }

    /// As [`Lab::with`], from the next start on.
    pub(crate) fn more_flags(&mut self, flags: &[&str]) {
        if let Some(at) = self
            .more
            .iter()
            .position(|known| flags.first() == Some(&known.as_str()))
        {
            self.more.drain(at..at + flags.len());
        }
        self.more
            .extend(flags.iter().map(|flag| (*flag).to_owned()));
    }

    /// In mode ebpf, with the node and its pods in a control group of their own.
    #[must_use]
    pub(crate) fn with_sockets(mut self) -> Self {
        let sockets = Sockets::new().unwrap();
        for place in [&mut self.node, &mut self.p1, &mut self.p2] {
            place.group = Some(sockets.dir.clone());
        }
        self.more.push("--mode=ebpf".to_owned());
        self.more.extend(sockets.args());
        self.sockets = Some(sockets);
        self
    }

    /// Where mode ebpf pins.
    pub(crate) fn pins(&self) -> Option<PathBuf> {
        Some(self.sockets.as_ref()?.pins.clone())
    }

    fn args(&self) -> Vec<String> {
        let mut args: Vec<String> = [
            "--hostname-override",
            "node",
            "--cluster-cidr",
            "10.180.0.0/16,fd00:180::/32",
            "--log-level",
            "debug",
        ]
        .map(str::to_owned)
        .into();
        if !self.more.iter().any(|flag| flag.starts_with("--master")) {
            args.extend([
                "--manifests".to_owned(),
                self.manifests.display().to_string(),
            ]);
        }
        args.extend(["--mode".to_owned(), self.mode.name().to_owned()]);
        args.extend(self.more.iter().cloned());
        args
    }

    fn daemon(&self, args: Vec<String>) -> Child {
        let daemon = Daemon {
            program: env!("CARGO_BIN_EXE_proxy").into(),
            args: args.into_iter().map(Into::into).collect(),
            netns: Some(self.node.path.clone()),
            log: Some(self.log.clone()),
            ..Daemon::default()
        };
        daemon.spawn().unwrap()
    }

    /// Starts the proxy and waits for its first sync.
    pub(crate) fn start(&mut self) {
        let before = self.log_text().matches("full sync").count();
        self.proxy = Some(self.daemon(self.args()));
        self.wait("the first sync of both families", |lab| {
            lab.log_text().matches("full sync").count() >= before + 2
        });
    }

    /// Another proxy with the same flags, until it ends: its exit code and what it said.
    pub(crate) fn second(&self) -> (Option<i32>, String) {
        let log = self.log.with_extension("second");
        let daemon = Daemon {
            program: env!("CARGO_BIN_EXE_proxy").into(),
            args: self.args().into_iter().map(Into::into).collect(),
            netns: Some(self.node.path.clone()),
            log: Some(log.clone()),
            ..Daemon::default()
        };
        let status = daemon.spawn().unwrap().wait().unwrap();
        (status.code(), fs::read_to_string(log).unwrap_or_default())
    }

    /// Starts the proxy and waits for nothing.
    pub(crate) fn spawn(&mut self) {
        self.proxy = Some(self.daemon(self.args()));
    }

    /// Waits until the proxy has ended by itself.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let mut child = self.proxy.take().unwrap();
        let mut code = None;
        self.wait("the end of the proxy", |_| {
            match child.try_wait().unwrap() {
                Some(status) => {
                    code = status.code();
                    true
                }
                None => false,
            }
        });
        code
    }

    /// Runs the proxy with `--cleanup`.
    pub(crate) fn cleanup(&mut self) {
        let mut args = self.args();
        args.push("--cleanup".to_owned());
        let status = self.daemon(args).wait().unwrap();
        assert!(status.success(), "{}", self.log_text());
    }

    /// Stops the proxy.
    pub(crate) fn stop(&mut self, signal: nix::sys::signal::Signal) {
        if let Some(mut child) = self.proxy.take() {
            let pid = i32::try_from(child.id()).unwrap();
            linux::process::signal(pid, signal).unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Writes a manifest as editors and tools do: beside it, then moved.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let temporary = self.manifests.join(format!(".{name}"));
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.manifests.join(name)).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.manifests.join(name)).unwrap();
    }

    /// Waits for a condition; shows rules and log when it does not come.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + patience_for_conditions();
        while !done(self) {
            if Instant::now() > deadline {
                panic!(
                    "{what} did not come\n{}\n{}",
                    self.rules(Family::V4),
                    self.log_text()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The rules on the node, without what changes by itself.
    pub(crate) fn rules(&self, family: Family) -> String {
        // The program first reads the rules and then asks for the name of each set in them. When rules
        // and sets go in between, it fails; the next one is whole.
        let save = || Iptables::detect(family).unwrap().save(None);
        let deadline = Instant::now() + patience_for_conditions();
        let text = loop {
            match self.node.run(save) {
                Ok(text) => break text,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let own =
            |line: &&str| line.starts_with("-A") || (line.starts_with(':') && line.contains(" - "));
        text.lines()
            .filter(own)
            .map(|line| format!("{line}\n"))
            .collect()
    }

    /// The table of nftables mode, as the kernel has it; empty where there is none.
    pub(crate) fn table(&self, family: api::cidr::Family) -> String {
        let list = move || {
            let mut nft = Nftables::open().unwrap();
            dump::kernel(&mut nft, family).unwrap().unwrap_or_default()
        };
        self.node.run(list)
    }

    /// Whether anything for a service is in the kernel.
    pub(crate) fn knows(&self, service: &str) -> bool {
        let text = match self.mode {
            Mode::Nftables => self.table(api::cidr::Family::V4),
            _ => self.rules(Family::V4),
        };
        text.contains(service)
    }

    /// From now on (after the next start) in another mode.
    pub(crate) fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// Runs a program on the node, as somebody else would.
    pub(crate) fn run_program(&self, program: &str, words: &[&str]) -> String {
        let run = || Exec::new(program).args(words).output().unwrap();
        let output = self.node.run(run);
        assert!(output.status.success(), "{program} {words:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Applies restore text on the node, as somebody else would.
    pub(crate) fn restore(&self, text: &str) {
        self.node
            .run(|| Iptables::detect(Family::V4).unwrap().restore(text).unwrap());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop(nix::sys::signal::Signal::SIGKILL);
        if std::thread::panicking() {
            println!("{}", self.log_text());
        }
    }
}

fn wire(lab: &mut Lab) {
    let node = &mut lab.node;
    node.kernel
        .add_bridge(&NewBridge {
            name: "cni0".into(),
            ..NewBridge::default()
        })
        .unwrap();
    node.up("cni0", &["10.180.0.254/24", "fd00:180::fe/64"]);
    let pods = [
        (&mut lab.p1, "v1", "10.180.0.1/24", "fd00:180::1/64"),
        (&mut lab.p2, "v2", "10.180.0.2/24", "fd00:180::2/64"),
    ];
    for (pod, veth, v4, v6) in pods {
        pair(node, veth, Some("cni0"), pod);
        let hairpin = LinkChange {
            up: Some(true),
            hairpin: Some(true),
            ..LinkChange::default()
        };
        node.kernel.set_link(veth, &hairpin).unwrap();
        pod.up("eth0", &[v4, v6]);
        pod.default_route(&["10.180.0.254", "fd00:180::fe"]);
    }
    pair(node, "rem0", None, &mut lab.p3);
    node.up("rem0", &["10.180.1.254/24", "fd00:180:1::fe/64"]);
    lab.p3.up("eth0", &["10.180.1.1/24", "fd00:180:1::1/64"]);
    lab.p3.default_route(&["10.180.1.254", "fd00:180:1::fe"]);
    pair(node, "eth0", None, &mut lab.cli);
    node.up("eth0", &["192.168.0.2/24", "2001:db8::2/64"]);
    lab.cli.up("eth0", &["192.168.0.9/24", "2001:db8::9/64"]);
    lab.cli.default_route(&["192.168.0.2", "2001:db8::2"]);
    node.default_route(&["192.168.0.9", "2001:db8::9"]);
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        node.kernel.set_sysctl(key, "1").unwrap();
    }
    // The client is the node's router, too, so service addresses would lead back to it. The kernel
    // counts redirects and unreachables against one limit, and would swallow a refusal.
    for link in ["all", "eth0"] {
        let key = format!("net/ipv4/conf/{link}/send_redirects");
        node.kernel.set_sysctl(&key, "0").unwrap();
    }
}

fn pair(node: &mut Place, name: &str, master: Option<&str>, peer: &mut Place) {
    let veth = NewVeth {
        name: name.into(),
        master: master.map(Into::into),
        peer_name: "eth0".into(),
        peer_netns: Some(peer.kernel.netns()),
        ..NewVeth::default()
    };
    node.kernel.add_veth(&veth).unwrap();
}

/// A service and its endpoints.
pub(crate) fn service(name: &str, spec: &str, endpoints: &[(&str, &str)]) -> String {
    let v4: Vec<_> = endpoints
        .iter()
        .filter(|(ip, _)| !ip.contains(':'))
        .collect();
    let v6: Vec<_> = endpoints
        .iter()
        .filter(|(ip, _)| ip.contains(':'))
        .collect();
    let mut text = format!("kind: Service\nmetadata: {{name: {name}}}\nspec: {spec}\n");
    for (kind, endpoints) in [("IPv4", v4), ("IPv6", v6)] {
        let list: Vec<String> = endpoints
            .iter()
            .map(|(ip, node)| format!("{{addresses: [\"{ip}\"], nodeName: {node}}}"))
            .collect();
        text.push_str(&format!(
            "---\nkind: EndpointSlice\nmetadata: {{name: {name}-{}, labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: {kind}\nports: [{{port: {PORT}}}, {{name: udp, port: {PORT}, protocol: UDP}}]\nendpoints: [{}]\n",
            kind.to_lowercase(),
            list.join(", ")
        ));
    }
    text
}

impl Place {
    /// Where the namespace is mounted.
    pub(crate) fn kernel_path(&self) -> &std::path::Path {
        &self.path
    }
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
