//! As much of an API server as Nodes need: lists in pages, watches from a version with bookmarks, 410 for what is forgotten, merge
//! patches of a Node's status, and faults by name. What it does was compared with kube-apiserver 1.20.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use registry::Pending;
use registry::kube::{Stream, Way};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;

type Body = BoxBody<Bytes, Infallible>;

/// A change, as a watch tells it.
#[derive(Clone)]
struct Event {
    version: u64,
    kind: &'static str,
    node: Value,
}

#[derive(Default)]
struct State {
    version: u64,
    nodes: BTreeMap<String, Value>,
    pods: BTreeMap<String, Value>,
    history: VecDeque<Event>,
    /// What came before is forgotten.
    oldest: u64,
    watchers: Vec<mpsc::UnboundedSender<Bytes>>,
    /// Answers to every request of this kind, instead of what was asked.
    refuse: BTreeMap<&'static str, (u16, &'static str)>,
    requests: Vec<String>,
    /// Event objects that were created.
    said: Vec<Value>,
    /// What lists are answered with instead.
    lists: Option<String>,
    /// Refused once, by kind.
    once: BTreeMap<&'static str, (u16, &'static str)>,
    /// Watches from before here begin with what cannot be read.
    poisoned: u64,
}

/// Where a server is reached.
#[derive(Clone)]
pub struct Doors {
    state: Arc<Mutex<State>>,
    up: watch::Receiver<bool>,
}

impl Doors {
    fn serve(&self, stream: impl Stream + 'static) {
        let (state, mut is_up) = (Arc::clone(&self.state), self.up.clone());
        tokio::spawn(async move {
            if !*is_up.borrow() {
                return;
            }
            let service = service_fn(|request| answer(Arc::clone(&state), request));
            tokio::select! {
                _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service) => {}
                _ = is_up.wait_for(|up| !up) => {}
            }
        });
    }
}

impl Way for Doors {
    fn open<'a>(
        &'a self,
        _: &'a str,
        _: u16,
    ) -> Pending<'a, Result<Box<dyn Stream>, Box<dyn std::error::Error + Send + Sync>>> {
        Box::pin(async {
            if !*self.up.borrow() {
                return Err("connection refused".into());
            }
            let (ours, theirs) = tokio::io::duplex(64 << 10);
            self.serve(theirs);
            Ok(Box::new(ours) as Box<dyn Stream>)
        })
    }
}

/// The server; gone when dropped.
pub struct Server {
    state: Arc<Mutex<State>>,
    pub address: SocketAddr,
    /// Connections are taken and served while this holds.
    up: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn line(kind: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{}\n", json!({"type": kind, "object": object})))
}

impl Server {
    pub async fn start() -> Server {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = Server::of(address);
        let doors = server.doors();
        server.task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                doors.serve(stream);
            }
        });
        server
    }

    /// One that is reached through its [`Doors`] alone, and so runs on a clock that is moved.
    pub fn in_memory() -> Server {
        Server::of(([192, 0, 2, 1], 80).into())
    }

    fn of(address: SocketAddr) -> Server {
        let state = State {
            version: 100,
            oldest: 100,
            ..State::default()
        };
        Server {
            state: Arc::new(Mutex::new(state)),
            address,
            up: watch::Sender::new(true),
            task: tokio::spawn(async {}),
        }
    }

    /// The way in.
    pub fn doors(&self) -> Doors {
        Doors {
            state: Arc::clone(&self.state),
            up: self.up.subscribe(),
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Nobody is served until it is up again; who is connected is cut off.
    pub fn set_up(&self, up: bool) {
        if !up {
            self.state().watchers.clear();
        }
        self.up.send_replace(up);
    }

    /// Watches end as if they had had their time.
    pub fn end_watches(&self) {
        self.state().watchers.clear();
    }

    /// What has happened so far cannot be asked for any more.
    pub fn compact(&self) {
        let mut state = self.state();
        state.history.clear();
        state.oldest = state.version;
    }

    /// A store of another history: it counts from here.
    pub fn restore(&self, version: u64) {
        let mut state = self.state();
        state.version = version;
        state.oldest = version;
        state.history.clear();
        state.watchers.clear();
    }

    pub fn refuse(&self, call: &'static str, with: Option<(u16, &'static str)>) {
        let mut state = self.state();
        match with {
            Some(with) => state.refuse.insert(call, with),
            None => state.refuse.remove(call),
        };
    }

    pub fn refuse_once(&self, call: &'static str, with: (u16, &'static str)) {
        self.state().once.insert(call, with);
    }

    pub fn answer_lists_with(&self, text: Option<&str>) {
        self.state().lists = text.map(str::to_owned);
    }

    /// Whoever watches from here or before hears something that cannot be read, every time.
    pub fn poison(&self) {
        let mut state = self.state();
        state.poisoned = state.version;
        state.say(Bytes::from("{\n"));
    }

    /// Something happens that is no Node's.
    pub fn touch(&self) {
        self.state().version += 1;
    }

    /// Whether all that was said is on its way.
    pub fn has_been_read(&self) -> bool {
        self.state()
            .watchers
            .iter()
            .all(|watcher| watcher.strong_count() > 0)
    }

    pub fn requests(&self) -> Vec<String> {
        self.state().requests.clone()
    }

    /// Events that were created: reason and message.
    pub fn said(&self) -> Vec<(String, String)> {
        let state = self.state();
        let text = |event: &Value, field: &str| event[field].as_str().unwrap().to_owned();
        let said = state.said.iter();
        said.map(|event| (text(event, "reason"), text(event, "message")))
            .collect()
    }

    pub fn add_pod(&self, path: &str, node: &str) {
        let pod = json!({"kind": "Pod", "spec": {"nodeName": node}});
        self.state().pods.insert(path.to_owned(), pod);
    }

    pub fn node(&self, name: &str) -> Value {
        self.state().nodes.get(name).cloned().unwrap_or_default()
    }

    pub fn annotations(&self, name: &str) -> BTreeMap<String, String> {
        serde_json::from_value(self.node(name)["metadata"]["annotations"].clone()).unwrap_or_default()
    }

    /// Makes a Node, or changes one; `change` gets the object.
    pub fn put(&self, name: &str, change: impl FnOnce(&mut Value)) {
        self.state().put(name, change);
    }

    pub fn delete(&self, name: &str) {
        let mut state = self.state();
        if let Some(node) = state.nodes.remove(name) {
            state.tell("DELETED", node);
        }
    }

    pub fn bookmark(&self) {
        let state = self.state();
        let object = json!({"kind": "Node", "metadata": {"resourceVersion": state.version.to_string()}});
        state.say(line("BOOKMARK", &object));
    }

    /// Something that no server says.
    pub fn say(&self, text: &str) {
        self.state().say(Bytes::from(text.to_owned()));
    }
}

impl State {
    fn say(&self, text: Bytes) {
        for watcher in &self.watchers {
            let _ = watcher.send(text.clone());
        }
    }

    fn tell(&mut self, kind: &'static str, mut node: Value) -> Value {
        self.version += 1;
        node["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.say(line(kind, &node));
        self.history.push_back(Event {
            version: self.version,
            kind,
            node: node.clone(),
        });
        node
    }

    fn put(&mut self, name: &str, change: impl FnOnce(&mut Value)) -> Value {
        let before = self.nodes.get(name).cloned();
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        let mut node = before.unwrap_or_else(|| {
            json!({"kind": "Node", "apiVersion": "v1", "metadata": {
                "name": name,
                "uid": format!("uid-{}", self.version),
                "creationTimestamp": format!("2026-11-30T09:{:02}:{:02}Z", self.version / 60 % 60, self.version % 60),
            }, "spec": {}, "status": {"images": [{"names": ["a".repeat(200)], "sizeBytes": 1}]}})
        });
        change(&mut node);
        let node = self.tell(kind, node);
        self.nodes.insert(name.to_owned(), node.clone());
        node
    }
}

fn whole(code: u16, value: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(value.to_string())).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn status(code: u16, message: &str) -> Response<Body> {
    whole(
        code,
        &json!({"kind": "Status", "status": "Failure", "message": message, "code": code}),
    )
}

async fn answer(state: Arc<Mutex<State>>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body
        .collect()
        .await
        .map(|body| body.to_bytes())
        .unwrap_or_default();
    let path = parts.uri.path().to_owned();
    let query: BTreeMap<String, String> = parts
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let mut state = state.lock().unwrap();
    state.requests.push(format!("{} {}", parts.method, parts.uri));
    let call = match (&parts.method, path.as_str()) {
        (&Method::PATCH, _) => "patch",
        (&Method::POST, "/api/v1/namespaces/default/events") => "event",
        (_, "/api/v1/nodes") if query.contains_key("watch") => "watch",
        (_, "/api/v1/nodes") => "list",
        _ => "get",
    };
    if call == "list"
        && let Some(text) = &state.lists
    {
        return Ok(Response::new(Full::new(Bytes::from(text.clone())).boxed()));
    }
    let once = if query.contains_key("continue") {
        "list-more"
    } else {
        call
    };
    if let Some((code, message)) = state.once.remove(once) {
        return Ok(status(code, message));
    }
    if let Some((code, message)) = state.refuse.get(call) {
        return Ok(status(*code, message));
    }
    Ok(match call {
        "event" => {
            let event: Value = serde_json::from_slice(&body).unwrap();
            state.said.push(event.clone());
            whole(201, &event)
        }
        "list" => list(&state, &query),
        "watch" => watched(&mut state, &query),
        "patch" => {
            let merge = parts.headers.get("content-type");
            if merge.is_none_or(|kind| kind != "application/strategic-merge-patch+json") {
                return Ok(status(415, "unsupported media type"));
            }
            let name = path
                .strip_prefix("/api/v1/nodes/")
                .and_then(|rest| rest.strip_suffix("/status"));
            match name.filter(|name| state.nodes.contains_key(*name)) {
                Some(name) => {
                    let patch: Value = serde_json::from_slice(&body).unwrap();
                    whole(200, &state.put(name, |node| merge_into(node, &patch)))
                }
                None => status(404, "nodes not found"),
            }
        }
        _ => {
            let found = match path.strip_prefix("/api/v1/nodes/") {
                Some(name) => state.nodes.get(name),
                None => state.pods.get(&path),
            };
            found.map_or_else(|| status(404, "not found"), |found| whole(200, found))
        }
    })
}

fn list(state: &State, query: &BTreeMap<String, String>) -> Response<Body> {
    let from: usize = query.get("continue").map_or(0, |token| token.parse().unwrap());
    let limit: usize = query["limit"].parse().unwrap();
    let page: Vec<&Value> = state.nodes.values().skip(from).take(limit).collect();
    let next = if from + limit < state.nodes.len() {
        (from + limit).to_string()
    } else {
        String::new()
    };
    whole(
        200,
        &json!({"kind": "NodeList", "metadata": {"resourceVersion": state.version.to_string(), "continue": next}, "items": page}),
    )
}

fn watched(state: &mut State, query: &BTreeMap<String, String>) -> Response<Body> {
    let (sender, receiver) = mpsc::unbounded_channel();
    // Without a version: what is there, and then what happens.
    let from: u64 = match query.get("resourceVersion") {
        Some(version) => version.parse().unwrap(),
        None => {
            let name = query
                .get("fieldSelector")
                .and_then(|text| text.strip_prefix("metadata.name%3D"));
            if let Some(node) = name.and_then(|name| state.nodes.get(name)) {
                let _ = sender.send(line("ADDED", node));
            }
            state.version
        }
    };
    if from < state.oldest {
        // As kube-apiserver has it: told in the stream.
        let gone = json!({"kind": "Status", "status": "Failure", "message": "too old resource version", "reason": "Expired", "code": 410});
        let _ = sender.send(line("ERROR", &gone));
    } else {
        if from <= state.poisoned {
            let _ = sender.send(Bytes::from("{\n"));
        }
        for event in state.history.iter().filter(|event| event.version > from) {
            let _ = sender.send(line(event.kind, &event.node));
        }
        state.watchers.push(sender);
    }
    let stream = UnboundedReceiverStream::new(receiver).map(|bytes| Ok(Frame::data(bytes)));
    Response::new(BodyExt::boxed(StreamBody::new(stream)))
}

/// A strategic merge as far as it is asked for: objects by key, conditions by type.
fn merge_into(node: &mut Value, patch: &Value) {
    if let Some(annotations) = patch["metadata"]["annotations"].as_object() {
        for (key, text) in annotations {
            node["metadata"]["annotations"][key] = text.clone();
        }
    }
    for condition in patch["status"]["conditions"].as_array().into_iter().flatten() {
        let all = &mut node["status"]["conditions"];
        if !all.is_array() {
            *all = json!([]);
        }
        let all = all.as_array_mut().unwrap();
        all.retain(|known| known["type"] != condition["type"]);
        all.push(condition.clone());
    }
}
