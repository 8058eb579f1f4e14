//! Plain HTTP from a node, once or all the time.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Child;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use linux::cgroup::Hierarchies;
use linux::patience::scaled;
use linux::process::Daemon;
use nix::sys::signal::Signal;

use super::WHOAMI;
use crate::layout::NodeLayout;

/// A request that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The same from a pod, where a program is started for it.
const POD_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two requests of a [`Probe`].
const PROBE_PAUSE: Duration = Duration::from_millis(5);

/// Who served a request, and whom it saw asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) server: String,
    pub(super) client: IpAddr,
}

/// Reads the answer of the sample's `whoami` page.
pub(super) fn parse(body: &str) -> Result<Answer> {
    let mut words = body.split_whitespace();
    let (Some(server), Some(client)) = (words.next(), words.next()) else {
        bail!("an odd answer: {body:?}");
    };
    // A socket for both families shows IPv4 peers as mapped addresses, some in brackets.
    let client: IpAddr = client
        .trim_matches(['[', ']'])
        .parse()
        .context("the peer's address")?;
    Ok(Answer {
        server: server.to_owned(),
        client: client.to_canonical(),
    })
}

/// The command that asks for `url` in a pod.
pub(super) fn wget(url: &str) -> String {
    let seconds = scaled(POD_TIMEOUT).as_secs();
    format!("timeout {seconds} wget -qO- '{url}'")
}

/// One request over a connection of its own.
pub(super) fn get(address: SocketAddr) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, scaled(TIMEOUT))
        .with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(scaled(TIMEOUT)))?;
    stream.set_write_timeout(Some(scaled(TIMEOUT)))?;
    let request = format!("GET {WHOAMI} HTTP/1.0\r\nHost: sample\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .with_context(|| format!("answer from {address}"))?;
    let (head, body) = text
        .split_once("\r\n\r\n")
        .context("no end of the header")?;
    if !head.starts_with("HTTP/1.0 200") && !head.starts_with("HTTP/1.1 200") {
        bail!(
            "{address} answered {:?}",
            head.lines().next().unwrap_or_default()
        );
    }
    parse(body)
}

/// What [`ask`] says of a request that was answered; anything else is why one failed.
const ANSWERED: &str = "answered";

/// The work of `seaway ask`: `count` requests, or as many as there is time for, each with a line on
/// standard output.
pub(crate) fn ask(address: SocketAddr, count: Option<usize>) -> Result<()> {
    // Nobody reads the lines once whoever started this is gone.
    nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
    let mut out = std::io::stdout();
    let mut asked = 0;
    while count.is_none_or(|count| asked < count) {
        match get(address) {
            Ok(Answer { server, client }) => writeln!(out, "{ANSWERED} {server} {client}")?,
            Err(error) => writeln!(out, "{error:#}")?,
        }
        asked += 1;
        if count.is_none() {
            thread::sleep(PROBE_PAUSE);
        }
    }
    Ok(())
}

/// Requests from a node: by a process in its network namespace and in its control group, as any
/// process of a node is.
struct Asking {
    process: Child,
    lines: PathBuf,
}

impl Asking {
    fn start(node: &NodeLayout, address: SocketAddr, count: Option<usize>) -> Result<Self> {
        let lines = node.log("ask");
        std::fs::write(&lines, "").with_context(|| format!("write {}", lines.display()))?;
        let groups = Hierarchies::detect()?;
        let group = node.daemon_cgroup("ask");
        groups.create(&group)?;
        let mut args = vec!["ask".to_owned(), address.to_string()];
        args.extend(count.map(|count| format!("--count={count}")));
        let daemon = Daemon {
            program: std::env::current_exe().context("find this program")?,
            args: args.into_iter().map(Into::into).collect(),
            netns: Some(node.netns.clone()),
            cgroup_procs: groups.procs_files(&group),
            log: Some(lines.clone()),
            ..Daemon::default()
        };
        let process = daemon.spawn()?;
        Ok(Self { process, lines })
    }

    /// The answers so far, and what went wrong with other requests.
    fn answers(&self) -> Result<(Vec<Answer>, Vec<String>)> {
        let text = std::fs::read_to_string(&self.lines)
            .with_context(|| format!("read {}", self.lines.display()))?;
        let (mut answers, mut failures) = (Vec::new(), Vec::new());
        // The last line may be half written.
        for line in text.split_inclusive('\n').filter(|l| l.ends_with('\n')) {
            match line.strip_prefix(ANSWERED) {
                Some(answer) => answers.push(parse(answer)?),
                None => failures.push(line.trim_end().to_owned()),
            }
        }
        Ok((answers, failures))
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.process.id()) {
            let _gone = linux::process::signal(pid, Signal::SIGTERM);
        }
        let _ended = self.process.wait();
    }
}

/// `count` requests from a node, all of them answered.
pub(super) fn get_from(
    node: &NodeLayout,
    address: SocketAddr,
    count: usize,
) -> Result<Vec<Answer>> {
    let mut asking = Asking::start(node, address, Some(count))?;
    let status = asking.process.wait().context("wait for the requests")?;
    let (answers, failures) = asking.answers()?;
    match failures.first() {
        Some(first) => bail!("{first}"),
        None if answers.len() == count => Ok(answers),
        None => bail!(
            "only {} of {count} requests were made: {status}",
            answers.len()
        ),
    }
}

/// Requests that go on, one connection each, until asked how they went.
pub(super) struct Probe(Asking);

impl Probe {
    /// Starts asking `address` from a node.
    pub(super) fn start(node: &NodeLayout, address: SocketAddr) -> Result<Self> {
        Asking::start(node, address, None).map(Self)
    }

    /// Requests answered so far.
    pub(super) fn answered(&self) -> Result<usize> {
        Ok(self.0.answers()?.0.len())
    }

    /// Stops; how many were answered, and what went wrong with the others.
    pub(super) fn finish(mut self) -> Result<(usize, Vec<String>)> {
        if let Some(status) = self.0.process.try_wait()? {
            bail!("the process that asked has ended: {status}");
        }
        let (answers, failures) = self.0.answers()?;
        Ok((answers.len(), failures))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_name_server_and_client() {
        for text in [
            "web-1 10.244.1.3\n",
            "web-1 ::ffff:10.244.1.3",
            "web-1 [::ffff:10.244.1.3]",
        ] {
            let answer = parse(text).unwrap();
            assert_eq!(answer.server, "web-1");
            assert_eq!(answer.client.to_string(), "10.244.1.3");
        }
        assert!(parse("nothing").is_err());
    }
}
