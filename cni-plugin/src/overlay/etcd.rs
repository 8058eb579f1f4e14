//! Subnets from etcd in place of `spec.podCIDRs`, in flannel's layout: the configuration under
//! `PREFIX/config`, a lease for each node under `PREFIX/subnets/`. What other nodes tell there comes
//! out as events of Nodes, what this node tells goes in.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::core::Node;
use api::watch::Event;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, Identity,
    KeyValue, PutOptions, TlsOptions, Txn, TxnOp, WatchOptions, WatchStream,
};
use futures::channel::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, sleep};

use super::daemon::Annotations;
use super::lease::{self, Attrs, LeaseKey};
use super::netconf::{self, NetConf};

/// How long a lease lives without being renewed, in seconds (flannel's).
const LEASE_SECONDS: i64 = 24 * 3600;

/// How often it is renewed: early, so that etcd may be away for most of a day.
const RENEW: Duration = Duration::from_secs(3600);

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The shortest and longest wait before etcd is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// How often the race for a free network is run again.
const RACES_MAX: usize = 10;

/// Where etcd is, and how to be let in.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// URLs.
    pub endpoints: Vec<String>,
    /// What all keys begin with.
    pub prefix: String,
    /// Who may have signed the servers' certificates.
    pub ca: Option<PathBuf>,
    /// Our certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Name and password.
    pub user: Option<(String, String)>,
}

/// The lease of this node.
#[derive(Debug, Clone)]
pub struct Held {
    /// Its networks.
    pub key: LeaseKey,
    /// What is told in it.
    pub attrs: Attrs,
    /// None: a reservation, which does not end.
    lease: Option<i64>,
}

/// The leases of all nodes.
pub struct Registry {
    client: Client,
    prefix: String,
}

impl Registry {
    /// Connects.
    ///
    /// # Errors
    /// A file that cannot be read, or an endpoint that is none.
    pub async fn connect(options: &Options) -> Result<Self> {
        let mut connect = ConnectOptions::new()
            .with_connect_timeout(REQUEST_TIMEOUT)
            .with_keep_alive(Duration::from_secs(20), REQUEST_TIMEOUT)
            .with_keep_alive_while_idle(true)
            // A server that is cut off from the others ends the watch.
            .with_require_leader(true);
        if let Some((name, password)) = &options.user {
            connect = connect.with_user(name, password);
        }
        let read = |path: &PathBuf| std::fs::read(path).with_context(|| path.display().to_string());
        let mut tls = None;
        if let Some(ca) = &options.ca {
            let certificate = Certificate::from_pem(read(ca).context("--etcd-cafile")?);
            tls = Some(TlsOptions::new().ca_certificate(certificate));
        }
        if let Some((certificate, key)) = &options.identity {
            let certificate = read(certificate).context("--etcd-certfile")?;
            let key = read(key).context("--etcd-keyfile")?;
            let identity = Identity::from_pem(certificate, key);
            tls = Some(tls.unwrap_or_default().identity(identity));
        }
        if let Some(tls) = tls {
            connect = connect.with_tls(tls);
        }
        let client = Client::connect(&options.endpoints, Some(connect));
        Ok(Self {
            client: client.await.context("--etcd-endpoints")?,
            prefix: options.prefix.trim_end_matches('/').to_owned(),
        })
    }

    fn path(&self, key: &LeaseKey) -> String {
        format!("{}/subnets/{key}", self.prefix)
    }

    /// The configuration; waits until there is one.
    ///
    /// # Errors
    /// It is broken.
    pub async fn config(&mut self) -> Result<NetConf> {
        let path = format!("{}/config", self.prefix);
        let mut wait = RETRY.0;
        let text = loop {
            match timely(self.client.get(path.as_str(), None)).await {
                Ok(answer) => match answer.kvs().first() {
                    Some(found) => break String::from_utf8_lossy(found.value()).into_owned(),
                    None => tracing::warn!("waiting for the key {path} in etcd"),
                },
                Err(error) => tracing::warn!("read {path} in etcd: {error:#}"),
            }
            sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        };
        netconf::parse(&text)
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("{path} in etcd"))
    }

    /// All leases and the revision at which they were so. One that cannot be read is logged and left
    /// out.
    async fn list(&mut self) -> Result<(Vec<(LeaseKey, Attrs)>, i64)> {
        let path = format!("{}/subnets/", self.prefix);
        let options = GetOptions::new().with_prefix();
        let answer = timely(self.client.get(path, Some(options))).await;
        let answer = answer.context("list the leases in etcd")?;
        let revision = answer.header().map_or(0, |header| header.revision());
        let mut leases = Vec::new();
        for found in answer.kvs() {
            match (self.key_of(found), attrs_of(found)) {
                (Some(key), Ok(attrs)) => leases.push((key, attrs)),
                (_, outcome) => left_out(found, outcome.err()),
            }
        }
        Ok((leases, revision))
    }

    fn key_of(&self, found: &KeyValue) -> Option<LeaseKey> {
        let text = std::str::from_utf8(found.key()).ok()?;
        let name = text.strip_prefix(&self.prefix)?.strip_prefix("/subnets/")?;
        name.parse().ok()
    }

    /// Gets a lease for the node that has `attrs`; waits for etcd, but not for a free network.
    ///
    /// # Errors
    /// No network is free.
    pub async fn acquire(
        &mut self,
        conf: &NetConf,
        attrs: &Attrs,
        previous: Option<LeaseKey>,
    ) -> Result<Held> {
        let mut wait = RETRY.0;
        for _ in 0..RACES_MAX {
            let leases = loop {
                match self.list().await {
                    Ok((leases, _)) => break leases,
                    Err(error) => tracing::warn!("{error:#}"),
                }
                sleep(wait).await;
                wait = (wait * 2).min(RETRY.1);
            };
            let seed = rand::random();
            let choice = lease::choose(conf, &leases, attrs.public_ip, previous, seed)
                .map_err(anyhow::Error::msg)?;
            if let Some(old) = choice.outdated {
                tracing::info!("the lease of {old} does not fit the configuration any more");
                let gone = timely(self.client.delete(self.path(&old), None)).await;
                gone.with_context(|| format!("delete the lease of {old}"))?;
            }
            // What was told before holds until this start has more to tell.
            let own = leases.into_iter().find(|(key, _)| *key == choice.key);
            let attrs = match own {
                Some((_, told)) => Attrs {
                    public_ipv6: attrs.public_ipv6,
                    ..told
                },
                None => attrs.clone(),
            };
            match self.hold(choice.key, attrs).await {
                Ok(held) => {
                    tracing::info!("the lease of {} is this node's", held.key);
                    return Ok(held);
                }
                Err(error) => tracing::info!("{error:#}"),
            }
        }
        bail!("lost the race for a network {RACES_MAX} times");
    }

    /// Makes a lease ours, or keeps it, unless it is another's.
    async fn hold(&mut self, key: LeaseKey, attrs: Attrs) -> Result<Held> {
        let path = self.path(&key);
        let there = timely(self.client.get(path.as_str(), None)).await?;
        let there = there.kvs().first();
        let before = match there {
            Some(found) => {
                let other = attrs_of(found).with_context(|| format!("the lease of {key}"))?;
                if other.public_ip != attrs.public_ip {
                    bail!("the lease of {key} is that of {}", other.public_ip);
                }
                Compare::mod_revision(path.as_str(), CompareOp::Equal, found.mod_revision())
            }
            None => Compare::version(path.as_str(), CompareOp::Equal, 0),
        };
        let reserved = there.is_some_and(|found| found.lease() == 0);
        let lease = match reserved {
            true => None,
            false => Some(
                timely(self.client.lease_grant(LEASE_SECONDS, None))
                    .await?
                    .id(),
            ),
        };
        let held = Held { key, attrs, lease };
        let put = TxnOp::put(path, serde_json::to_vec(&held.attrs)?, held.options());
        let answer = timely(self.client.txn(Txn::new().when([before]).and_then([put]))).await;
        match (answer, lease) {
            (Ok(answer), _) if answer.succeeded() => Ok(held),
            (answer, Some(lease)) => {
                // One that nothing hangs on would stay for a day.
                drop(timely(self.client.lease_revoke(lease)).await);
                answer?;
                bail!("the lease of {key} was changed by another meanwhile");
            }
            (answer, None) => {
                answer?;
                bail!("the lease of {key} was changed by another meanwhile");
            }
        }
    }

    /// Tells what is in `held`.
    async fn put(&mut self, held: &Held) -> Result<()> {
        let value = serde_json::to_vec(&held.attrs)?;
        let put = self.client.put(self.path(&held.key), value, held.options());
        timely(put).await.context("write this node's lease")?;
        Ok(())
    }

    /// Renews the lease of this node; false when there is none any more.
    async fn renew(&mut self, held: &Held) -> Result<bool> {
        let Some(id) = held.lease else {
            return Ok(true);
        };
        let (mut keeper, mut answers) = timely(self.client.lease_keep_alive(id)).await?;
        timely(keeper.keep_alive()).await?;
        let answer = timely(answers.message()).await?;
        Ok(answer.is_some_and(|answer| answer.ttl() > 0))
    }

    /// Keeps the lease, tells what comes in by `annotations`, and sends out what other nodes tell, as
    /// events of Nodes of which `own_name` is this one. Watches from revision `since` at first, or
    /// lists if it is 0.
    ///
    /// # Errors
    /// The lease became another's. Everything else is tried again for ever.
    pub async fn run(
        mut self,
        mut held: Held,
        own_name: String,
        events: UnboundedSender<Event<Node>>,
        mut annotations: watch::Receiver<Annotations>,
        mut since: i64,
    ) -> Result<()> {
        let mut renew = tokio::time::interval(RENEW);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut wait = RETRY.0;
        let mut sender = Sender {
            events,
            own: own_name,
        };
        loop {
            let mut work = Work {
                registry: &mut self,
                held: &mut held,
                sender: &mut sender,
                annotations: &mut annotations,
                renew: &mut renew,
            };
            let ended = match work.start(&mut since).await {
                Ok(stream) => {
                    wait = RETRY.0;
                    work.follow(stream, &mut since).await
                }
                Err(error) => Err(error),
            };
            match ended {
                Ok(()) => return Ok(()),
                Err(error) if error.is::<Taken>() => return Err(error),
                Err(error) => tracing::warn!("etcd: {error:#}; trying again"),
            }
            sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }
}

impl Held {
    fn options(&self) -> Option<PutOptions> {
        self.lease.map(|id| PutOptions::new().with_lease(id))
    }
}

/// This node's networks were given to another: its pods have addresses of that other.
#[derive(Debug, thiserror::Error)]
#[error("this node's lease is lost: {0}")]
struct Taken(String);

async fn timely<T, E: Into<anyhow::Error>>(
    request: impl Future<Output = std::result::Result<T, E>>,
) -> Result<T> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(result) => result.map_err(Into::into),
        Err(_elapsed) => bail!("no answer within {} seconds", REQUEST_TIMEOUT.as_secs()),
    }
}

fn attrs_of(found: &KeyValue) -> Result<Attrs> {
    Ok(serde_json::from_slice(found.value())?)
}

fn left_out(found: &KeyValue, error: Option<anyhow::Error>) {
    let key = String::from_utf8_lossy(found.key());
    let why = error.unwrap_or_else(|| anyhow::anyhow!("the key names no networks"));
    tracing::warn!("etcd: {key} is left out: {why:#}");
}

/// Sends events out.
struct Sender {
    events: UnboundedSender<Event<Node>>,
    own: String,
}

impl Sender {
    /// False: nobody listens any more.
    fn send(&self, event: Event<Node>) -> bool {
        self.events.unbounded_send(event).is_ok()
    }

    fn node(&self, held: &Held, key: &LeaseKey, attrs: Option<&Attrs>) -> Result<Node> {
        let name = match *key == held.key {
            true => self.own.clone(),
            false => key.to_string(),
        };
        Ok(lease::node(&name, key, attrs)?)
    }
}

/// What is at hand while the connection holds.
struct Work<'a> {
    registry: &'a mut Registry,
    held: &'a mut Held,
    sender: &'a mut Sender,
    annotations: &'a mut watch::Receiver<Annotations>,
    renew: &'a mut tokio::time::Interval,
}

impl Work<'_> {
    /// Lists, unless there is a revision to go on from, and watches.
    async fn start(&mut self, since: &mut i64) -> Result<WatchStream> {
        if *since == 0 {
            let (mut leases, revision) = self.registry.list().await?;
            if !leases.iter().any(|(key, _)| *key == self.held.key) {
                self.regain().await?;
                leases.push((self.held.key, self.held.attrs.clone()));
            }
            self.sender.send(Event::Init);
            for (key, attrs) in leases {
                let node = self.sender.node(self.held, &key, Some(&attrs))?;
                self.sender.send(Event::InitApply(node));
            }
            self.sender.send(Event::InitDone);
            *since = revision + 1;
        }
        let path = format!("{}/subnets/", self.registry.prefix);
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(*since);
        let stream = self.registry.client.watch(path, Some(options));
        timely(stream).await.context("watch the leases")
    }

    /// Follows the watch, keeps the lease and tells, until the connection breaks or nobody listens.
    async fn follow(&mut self, mut stream: WatchStream, since: &mut i64) -> Result<()> {
        loop {
            tokio::select! {
                message = stream.message() => {
                    let Some(message) = message? else {
                        bail!("the watch ended");
                    };
                    if message.compact_revision() > 0 {
                        // What happened in between is forgotten: only a list helps.
                        tracing::info!("etcd forgot what was after revision {since}; listing again");
                        *since = 0;
                        bail!("the history is compacted");
                    }
                    if message.canceled() {
                        bail!("the watch was ended: {}", message.cancel_reason());
                    }
                    for event in message.events() {
                        self.take(event).await?;
                    }
                    if let Some(header) = message.header() {
                        *since = header.revision() + 1;
                    }
                    if self.sender.events.is_closed() {
                        return Ok(());
                    }
                }
                changed = self.annotations.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.tell().await?;
                }
                _ = self.renew.tick() => {
                    if !self.registry.renew(self.held).await? {
                        self.regain().await?;
                    }
                }
            }
        }
    }

    async fn tell(&mut self) -> Result<()> {
        let changes = self.annotations.borrow_and_update().clone();
        self.held.attrs = self.held.attrs.changed(&changes);
        let told = self.registry.put(self.held).await;
        if told.is_err() {
            // Once more when the connection is back.
            self.annotations.mark_changed();
        }
        told
    }

    async fn take(&mut self, event: &etcd_client::Event) -> Result<()> {
        let Some(found) = event.kv() else {
            return Ok(());
        };
        let Some(key) = self.registry.key_of(found) else {
            left_out(found, None);
            return Ok(());
        };
        match event.event_type() {
            EventType::Delete if key == self.held.key => self.regain().await,
            EventType::Delete => {
                let node = self.sender.node(self.held, &key, None)?;
                self.sender.send(Event::Delete(node));
                Ok(())
            }
            EventType::Put => {
                let attrs = match attrs_of(found) {
                    Ok(attrs) => attrs,
                    Err(error) => {
                        left_out(found, Some(error));
                        return Ok(());
                    }
                };
                if key == self.held.key && attrs.public_ip != self.held.attrs.public_ip {
                    let why = format!("{key} is that of {}", attrs.public_ip);
                    return Err(Taken(why).into());
                }
                let node = self.sender.node(self.held, &key, Some(&attrs))?;
                self.sender.send(Event::Apply(node));
                Ok(())
            }
        }
    }

    /// The lease of this node is gone (it ran out while etcd was away, or someone deleted it), but its
    /// pods are still there: takes it again.
    async fn regain(&mut self) -> Result<()> {
        tracing::warn!("the lease of {} is gone; taking it again", self.held.key);
        let (leases, _) = self.registry.list().await?;
        let other = leases.iter().find(|(key, _)| *key == self.held.key);
        if let Some((key, attrs)) = other
            && attrs.public_ip != self.held.attrs.public_ip
        {
            let why = format!("{key} is that of {}", attrs.public_ip);
            return Err(Taken(why).into());
        }
        let attrs = self.held.attrs.clone();
        *self.held = self.registry.hold(self.held.key, attrs).await?;
        Ok(())
    }
}
