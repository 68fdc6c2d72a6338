//! Between an operator and the API server: counts what is asked, and breaks when it is told to.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use http::{Method, Request};
use kube::client::Body;
use tower::{BoxError, Layer, Service};

/// The line of one operator. Clones are the same line.
#[derive(Clone, Default)]
pub(crate) struct Wire(Arc<Line>);

#[derive(Default)]
struct Line {
    reads: AtomicUsize,
    writes: Mutex<Vec<String>>,
    fault: Option<Fault>,
    cut: AtomicBool,
}

/// What happens to an operator at one of its requests that change something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    /// At which, from 0.
    pub(crate) at: usize,
    pub(crate) how: How,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// It is killed before it sends it.
    Killed,
    /// It is killed when it has sent it.
    KilledAfter,
    /// It lives on, and never gets the answer.
    AnswerLost,
}

impl Wire {
    pub(crate) fn breaking(fault: Fault) -> Self {
        Self(Arc::new(Line { fault: Some(fault), ..Line::default() }))
    }

    /// Whether what was to happen has happened.
    pub(crate) fn has_failed(&self) -> bool {
        self.0.fault.is_some_and(|fault| self.written() > fault.at)
    }

    /// Whether nothing comes through any more.
    pub(crate) fn is_cut(&self) -> bool {
        self.0.cut.load(Ordering::SeqCst)
    }

    /// What was asked to be changed: `PATCH /apis/apps/v1/…`.
    pub(crate) fn writes(&self) -> Vec<String> {
        self.0.writes.lock().unwrap().clone()
    }

    /// How many of them there were.
    pub(crate) fn written(&self) -> usize {
        self.0.writes.lock().unwrap().len()
    }

    /// How often something was read. Watches do not count.
    pub(crate) fn reads(&self) -> usize {
        self.0.reads.load(Ordering::SeqCst)
    }

    fn admit(&self, request: &Request<Body>) -> Admission {
        if self.is_cut() {
            return Admission::Refused;
        }
        if request.method() == Method::GET {
            if !request.uri().query().unwrap_or_default().contains("watch=true") {
                self.0.reads.fetch_add(1, Ordering::SeqCst);
            }
            return Admission::Through;
        }
        let mut writes = self.0.writes.lock().unwrap();
        let number = writes.len();
        writes.push(format!("{} {}", request.method(), request.uri().path()));
        let Some(Fault { how, .. }) = self.0.fault.filter(|fault| fault.at == number) else {
            return Admission::Through;
        };
        self.0.cut.store(how != How::AnswerLost, Ordering::SeqCst);
        if how == How::Killed { Admission::Refused } else { Admission::AnswerLost }
    }
}

enum Admission {
    Through,
    Refused,
    AnswerLost,
}

impl<S> Layer<S> for Wire {
    type Service = Wired<S>;

    fn layer(&self, inner: S) -> Wired<S> {
        Wired { inner, wire: self.clone() }
    }
}

/// A client's service behind a [`Wire`].
pub(crate) struct Wired<S> {
    inner: S,
    wire: Wire,
}

impl<S> Service<Request<Body>> for Wired<S>
where
    S: Service<Request<Body>, Error = BoxError>,
    S::Future: Send + 'static,
    S::Response: Send,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.wire.admit(&request) {
            Admission::Through => Box::pin(self.inner.call(request)),
            Admission::Refused => Box::pin(async { Err("the line is cut".into()) }),
            Admission::AnswerLost => {
                let answer = self.inner.call(request);
                Box::pin(async move {
                    drop(answer.await);
                    Err("the line was cut before the answer came".into())
                })
            }
        }
    }
}
