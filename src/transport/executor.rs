//! Where connections are served.

use std::future::Future;

use tokio::runtime::Handle;

/// Serves connections on the runtime's own thread if it has one, else where the request is made.
/// Each ends with its connection, which ends with whoever uses it.
#[derive(Clone, Debug)]
pub(super) struct Tasks(Option<Handle>);

impl Tasks {
    pub(super) fn on(thread: Option<Handle>) -> Self {
        Self(thread)
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        // Each request is such a task, of 2.5 KiB. tokio aligns what it spawns to 128 bytes, and glibc
        // before 2.38 finds no room for that where one of the same size has been.
        let task = Box::pin(task);
        match &self.0 {
            Some(thread) => drop(thread.spawn(task)),
            None => drop(tokio::spawn(task)),
        }
    }
}
