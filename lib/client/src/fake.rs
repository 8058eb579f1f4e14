//! An API server of a few lines, for tests and benchmarks: lists, watches and merges objects in
//! memory, over plain HTTP on any listener. No login, no schema, no admission.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// A server. Clones share its objects.
#[derive(Debug, Clone, Default)]
pub struct FakeApi {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    /// Changes up to this version are forgotten.
    compacted: u64,
    /// Watches that began before the present time end.
    times: u64,
    /// Nobody is answered.
    away: bool,
    list_delay: Duration,
    /// By path of the collection and name.
    objects: BTreeMap<(String, String), Value>,
    history: Vec<Change>,
}

/// A change: collection, version, type, object.
type Change = (String, u64, &'static str, Value);

impl FakeApi {
    fn lock(&self) -> MutexGuard<'_, State> {
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an object into a collection, e.g. `/api/v1/nodes`.
    pub fn put(&self, collection: &str, object: Value) {
        self.lock().put(collection, object);
        self.shared.changed.notify_all();
    }

    /// Puts an object into a collection, but tells no watch of it.
    pub fn put_unseen(&self, collection: &str, object: Value) {
        let mut state = self.lock();
        state.put(collection, object);
        state.history.pop();
    }

    /// Takes an object out of a collection.
    pub fn delete(&self, collection: &str, name: &str) {
        let mut state = self.lock();
        let key = (collection.to_owned(), name.to_owned());
        if let Some(object) = state.objects.remove(&key) {
            state.tell(collection, "DELETED", object);
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// An object.
    pub fn get(&self, collection: &str, name: &str) -> Option<Value> {
        let key = (collection.to_owned(), name.to_owned());
        self.lock().objects.get(&key).cloned()
    }

    /// Merges into an object (RFC 7386), which is made if it is not there.
    pub fn merge(&self, collection: &str, name: &str, patch: &Value) -> Value {
        let mut state = self.lock();
        let key = (collection.to_owned(), name.to_owned());
        let mut object = state.objects.get(&key).cloned().unwrap_or_default();
        merge(&mut object, patch);
        object["metadata"]["name"] = json!(name);
        state.put(collection, object.clone());
        drop(state);
        self.shared.changed.notify_all();
        object
    }

    /// Forgets all changes: who wants to go on from an earlier version has to list.
    pub fn compact(&self) {
        let mut state = self.lock();
        state.compacted = state.version;
        state.history.clear();
    }

    /// Ends all watches.
    pub fn cut(&self) {
        self.lock().times += 1;
        self.shared.changed.notify_all();
    }

    /// Goes away (all connections end, new ones are closed unanswered), or comes back.
    pub fn set_away(&self, away: bool) {
        self.lock().away = away;
        self.cut();
    }

    /// Each page of a list takes this long.
    pub fn set_list_delay(&self, delay: Duration) {
        self.lock().list_delay = delay;
    }

    /// Serves on a listener, which may be in any network namespace, until the process ends.
    ///
    /// # Errors
    /// The listener has no address.
    pub fn serve(&self, listener: TcpListener) -> io::Result<SocketAddr> {
        let address = listener.local_addr()?;
        let api = self.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let api = api.clone();
                // A client that breaks off is no concern of the others.
                thread::spawn(move || drop(api.talk(&stream)));
            }
        });
        Ok(address)
    }

    fn talk(&self, stream: &TcpStream) -> io::Result<()> {
        // The last part of a long answer does not wait, either.
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        while let Some(request) = Request::read(&mut reader)? {
            if self.lock().away {
                return Ok(());
            }
            if request.query.contains("watch=") {
                return self.watch(stream, &request);
            }
            let (status, body) = self.answer(&request);
            respond(stream, status, &body.to_string())?;
        }
        Ok(())
    }

    fn answer(&self, request: &Request) -> (u16, Value) {
        let path = request.path.trim_end_matches("/status");
        let is_collection = self.is_collection(path);
        let (collection, name) = path.rsplit_once('/').unwrap_or(("", path));
        match request.method.as_str() {
            "GET" if is_collection => {
                let delay = self.lock().list_delay;
                thread::sleep(delay);
                (200, self.lock().page(path, request))
            }
            "GET" => match self.get(collection, name) {
                Some(object) => (200, object),
                None => (404, json!({"kind": "Status", "code": 404})),
            },
            "PATCH" => match serde_json::from_slice(&request.body) {
                Ok(patch) => (200, self.merge(collection, name, &patch)),
                Err(_) => (400, json!({"kind": "Status", "code": 400})),
            },
            _ => (405, json!({"kind": "Status", "code": 405})),
        }
    }

    /// A path is a collection's when anything was ever put there.
    fn is_collection(&self, path: &str) -> bool {
        let state = self.lock();
        state.of(path).next().is_some() || state.history.iter().any(|(of, ..)| of == path)
    }

    fn watch(&self, mut stream: &TcpStream, request: &Request) -> io::Result<()> {
        stream.write_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
        )?;
        let mut from = request.number("resourceVersion").unwrap_or(0);
        let times = self.lock().times;
        loop {
            let mut text = String::new();
            {
                let mut state = self.lock();
                while state.version <= from && state.times == times {
                    let waited = self.shared.changed.wait(state);
                    state = waited.unwrap_or_else(PoisonError::into_inner);
                }
                if state.times != times {
                    return Ok(());
                }
                if from < state.compacted {
                    let gone = json!({"kind": "Status", "code": 410, "reason": "Expired", "status": "Failure"});
                    let text = format!("{}\n", json!({"type": "ERROR", "object": gone}));
                    return write!(stream, "{:x}\r\n{text}\r\n0\r\n\r\n", text.len());
                }
                let of_this = |change: &&Change| change.0 == request.path;
                for (_, _, kind, object) in state.since(from).iter().filter(of_this) {
                    text += &json!({"type": kind, "object": object}).to_string();
                    text.push('\n');
                }
                from = state.version;
            }
            if !text.is_empty() {
                write!(stream, "{:x}\r\n{text}\r\n", text.len())?;
                stream.flush()?;
            }
        }
    }
}

impl State {
    fn put(&mut self, collection: &str, mut object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let key = (collection.to_owned(), name.to_owned());
        let next = self.version + 1;
        object["metadata"]["resourceVersion"] = json!(next.to_string());
        let before = self.objects.insert(key, object.clone());
        let kind = if before.is_some() {
            "MODIFIED"
        } else {
            "ADDED"
        };
        self.tell(collection, kind, object);
    }

    fn tell(&mut self, collection: &str, kind: &'static str, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.history
            .push((collection.to_owned(), self.version, kind, object));
    }

    /// A page of a list: `continue` is how many objects came before it.
    fn page(&self, path: &str, request: &Request) -> Value {
        let index = |key| request.number(key).and_then(|n| usize::try_from(n).ok());
        let (limit, from) = (index("limit"), index("continue").unwrap_or(0));
        let mut rest = self.of(path).skip(from);
        let items: Vec<&Value> = rest.by_ref().take(limit.unwrap_or(usize::MAX)).collect();
        let next = rest.next().map(|_| (from + items.len()).to_string());
        let version = self.version.to_string();
        json!({"metadata": {"resourceVersion": version, "continue": next}, "items": items})
    }

    /// What changed after a version.
    fn since(&self, version: u64) -> &[Change] {
        let from = self.history.partition_point(|(_, at, ..)| *at <= version);
        &self.history[from..]
    }

    fn of<'a>(&'a self, collection: &str) -> impl Iterator<Item = &'a Value> {
        let first = (collection.to_owned(), String::new());
        let collection = collection.to_owned();
        let from = self.objects.range(first..);
        from.take_while(move |((of, _), _)| *of == collection)
            .map(|(_, object)| object)
    }
}

fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            if let Some(map) = into.as_object_mut() {
                map.shift_remove(key);
            }
        } else {
            merge(&mut into[key.as_str()], value);
        }
    }
}

#[derive(Debug)]
struct Request {
    method: String,
    path: String,
    query: String,
    body: Vec<u8>,
}

impl Request {
    fn read(reader: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace();
        let method = words.next().unwrap_or_default().to_owned();
        let target = words.next().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (path, query) = (path.to_owned(), query.to_owned());
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        Ok(Some(Self {
            method,
            path,
            query,
            body,
        }))
    }

    fn number(&self, key: &str) -> Option<u64> {
        let pairs = self.query.split('&');
        let value = pairs
            .filter_map(|pair| pair.split_once('='))
            .find(|(name, _)| *name == key);
        value?.1.parse().ok()
    }
}

fn respond(mut stream: &TcpStream, status: u16, body: &str) -> io::Result<()> {
    // In one piece: what follows a first small one waits for the client's delayed acknowledgement.
    let answer = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes())
}

/// The text of a kubeconfig that leads to `address` without a login.
pub fn kubeconfig(address: SocketAddr) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters: [{{name: c, cluster: {{server: \"http://{address}\"}}}}]\n\
         users: [{{name: u, user: {{}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
    )
}
