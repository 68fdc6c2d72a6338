//! What happened, in the order in which it did.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures::StreamExt as _;
use kube::ResourceExt as _;
use kube::api::{ApiResource, DynamicObject, ListParams, WatchEvent, WatchParams};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::server::Namespace;

/// One change of one object.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// The API server numbers all changes, of whatever objects, in the order in which etcd took them.
    version: u64,
    /// Whether it was there at the beginning.
    first: bool,
    pub(crate) kind: String,
    pub(crate) name: String,
    /// The object as it was then, unless it was gone.
    pub(crate) object: Option<Value>,
}

/// Objects, by kind and name.
pub(crate) type Objects = BTreeMap<(String, String), Value>;

/// The changes of objects of some kinds in a namespace, from the moment on when it was made.
pub(crate) struct History {
    changes: Arc<Mutex<Vec<Change>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl History {
    pub(crate) async fn of(namespace: &Namespace, kinds: &[ApiResource]) -> Self {
        let changes = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for kind in kinds {
            let api = namespace.dynamic(kind);
            let list = api.list(&ListParams::default()).await.unwrap();
            let mut version = list.metadata.resource_version.clone().unwrap();
            for item in list.items {
                changes.lock().unwrap().push(Change { first: true, ..Change::of(&kind.kind, item, false) });
            }
            let (changes, kind) = (changes.clone(), kind.kind.clone());
            tasks.push(tokio::spawn(async move {
                loop {
                    let mut events = api.watch(&WatchParams::default(), &version).await.unwrap().boxed();
                    while let Some(Ok(event)) = events.next().await {
                        let (item, gone) = match event {
                            WatchEvent::Added(item) | WatchEvent::Modified(item) => (item, false),
                            WatchEvent::Deleted(item) => (item, true),
                            WatchEvent::Bookmark(bookmark) => {
                                version = bookmark.metadata.resource_version;
                                continue;
                            }
                            WatchEvent::Error(error) => panic!("{error}"),
                        };
                        version = item.resource_version().unwrap();
                        changes.lock().unwrap().push(Change::of(&kind, item, gone));
                    }
                }
            }));
        }
        Self { changes, tasks }
    }

    /// All of it up to now.
    pub(crate) fn changes(&self) -> Vec<Change> {
        assert!(!self.tasks.iter().any(JoinHandle::is_finished), "a watch has ended: the history has a gap");
        let mut all = self.changes.lock().unwrap().clone();
        all.sort_by_key(|change| change.version);
        all
    }

    /// Every state there was after the beginning: after each change, what objects there were.
    pub(crate) fn states(&self) -> Vec<(Change, Objects)> {
        let mut state = BTreeMap::new();
        let changes = self.changes().into_iter();
        let states = changes.map(|change| {
            let key = (change.kind.clone(), change.name.clone());
            match &change.object {
                Some(object) => drop(state.insert(key, object.clone())),
                None => drop(state.remove(&key)),
            }
            (change, state.clone())
        });
        states.filter(|(change, _)| !change.first).collect()
    }
}

impl Change {
    fn of(kind: &str, object: DynamicObject, gone: bool) -> Self {
        Self {
            version: object.resource_version().unwrap().parse().unwrap(),
            first: false,
            kind: kind.into(),
            name: object.name_any(),
            object: (!gone).then(|| serde_json::to_value(object).unwrap()),
        }
    }
}

impl Drop for History {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
