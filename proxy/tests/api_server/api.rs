//! An API server of a few lines: lists, watches, and takes Events. It says what it is told to.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

use serde_json::{Value, json};

/// What the server knows.
#[derive(Default)]
struct State {
    /// Objects by the last word of their path, e.g. `services`.
    objects: BTreeMap<String, Vec<Value>>,
    watchers: Vec<(String, TcpStream)>,
    /// All changes: version, kind, and the line that tells of it.
    told: Vec<(u64, String, String)>,
    /// Kinds whose lists are not answered yet.
    held: Vec<String>,
    /// Kinds that the server does not have.
    absent: Vec<String>,
    version: u64,
    requests: Vec<String>,
    events: Vec<Value>,
}

/// The server.
#[derive(Clone)]
pub(crate) struct Api {
    state: Arc<(Mutex<State>, Condvar)>,
    /// Its port on 127.0.0.1.
    pub(crate) port: u16,
}

impl Api {
    /// Serves in the calling thread's network namespace.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let api = Self {
            state: Arc::default(),
            port: listener.local_addr().unwrap().port(),
        };
        let server = api.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = server.clone();
                // A connection that ends is nobody's business.
                std::thread::spawn(move || drop(server.answer(stream)));
            }
        });
        api
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let result = work(&mut self.state.0.lock().unwrap());
        self.state.1.notify_all();
        result
    }

    /// Does not answer lists of a kind until told to.
    pub(crate) fn hold(&self, kind: &str) {
        self.with(|state| state.held.push(kind.to_owned()));
    }

    /// Answers them.
    pub(crate) fn release(&self) {
        self.with(|state| state.held.clear());
    }

    /// Has no such kind.
    pub(crate) fn lacks(&self, kind: &str) {
        self.with(|state| state.absent.push(kind.to_owned()));
    }

    /// Makes or changes an object.
    pub(crate) fn put(&self, kind: &str, object: Value) {
        self.with(|state| {
            let name = object["metadata"]["name"].clone();
            let all = state.objects.entry(kind.to_owned()).or_default();
            let known = all.iter().position(|o| o["metadata"]["name"] == name);
            match known {
                Some(i) => all[i] = object.clone(),
                None => all.push(object.clone()),
            }
            let word = if known.is_some() { "MODIFIED" } else { "ADDED" };
            state.tell(kind, word, &object);
        });
    }

    /// Deletes an object.
    pub(crate) fn delete(&self, kind: &str, name: &str) {
        self.with(|state| {
            let all = state.objects.entry(kind.to_owned()).or_default();
            if let Some(i) = all.iter().position(|o| o["metadata"]["name"] == name) {
                let object = all.remove(i);
                state.tell(kind, "DELETED", &object);
            }
        });
    }

    /// Method, path and query of what was asked.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.with(|state| state.requests.clone())
    }

    /// Events that were sent.
    pub(crate) fn events(&self) -> Vec<Value> {
        self.with(|state| state.events.clone())
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut length = 0;
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? <= 2 {
                break;
            }
            if let Some(value) = header.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let mut words = line.split_whitespace();
        let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let kind = path.rsplit('/').next().unwrap_or("").to_owned();
        self.with(|state| state.requests.push(format!("{method} {target}")));
        if self.with(|state| state.absent.contains(&kind)) {
            return reply(&mut stream, 404, &json!({"kind": "Status", "code": 404}));
        }
        if method == "POST" {
            let event: Value = serde_json::from_slice(&body).unwrap_or_default();
            self.with(|state| state.events.push(event.clone()));
            return reply(&mut stream, 201, &event);
        }
        if query.contains("watch=true") {
            return self.with(|state| state.watch(kind, query, stream));
        }
        let list = self.list(&kind, query);
        reply(&mut stream, 200, &list)
    }

    fn list(&self, kind: &str, query: &str) -> Value {
        let mut state = self.state.0.lock().unwrap();
        // A probe for the kind as such is not a list.
        while state.held.iter().any(|held| held == kind)
            && !query.starts_with("limit=1&")
            && query != "limit=1"
        {
            state = self.state.1.wait(state).unwrap();
        }
        let version = state.version.to_string();
        let items = state.objects.get(kind).cloned().unwrap_or_default();
        json!({"metadata": {"resourceVersion": version}, "items": items})
    }
}

impl State {
    fn tell(&mut self, kind: &str, word: &str, object: &Value) {
        self.version += 1;
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let line = format!("{}\n", json!({"type": word, "object": object}));
        self.told
            .push((self.version, kind.to_owned(), line.clone()));
        self.watchers
            .retain_mut(|(of, stream)| of != kind || stream.write_all(line.as_bytes()).is_ok());
    }

    /// Tells of what has changed since the version that is asked for, and of all that will.
    fn watch(&mut self, kind: String, query: &str, mut stream: TcpStream) -> std::io::Result<()> {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n";
        stream.write_all(head.as_bytes())?;
        let mut parts = query.split('&');
        let since = parts.find_map(|part| part.strip_prefix("resourceVersion="));
        let since: u64 = since.and_then(|text| text.parse().ok()).unwrap_or(0);
        for (version, of, line) in &self.told {
            if *version > since && *of == kind {
                stream.write_all(line.as_bytes())?;
            }
        }
        self.watchers.push((kind, stream));
        Ok(())
    }
}

fn reply(stream: &mut TcpStream, code: u16, body: &Value) -> std::io::Result<()> {
    let text = format!(
        "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n{body}"
    );
    stream.write_all(text.as_bytes())
}
