//! The tasks of one client: all on the runtime in which it was made, whoever starts them.

use std::future::Future;

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::Runtime;

/// Starts tasks, and waits for all of them. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    home: Handle,
}

impl Tasks {
    /// Tasks on the runtime that this is called in.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub(crate) fn here() -> Self {
        Self {
            tracker: TaskTracker::new(),
            home: Handle::current(),
        }
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn_on(task, &self.home);
    }

    /// Starts a task that must go on while the caller's runtime is blocked, if there is a thread
    /// for that.
    pub(crate) fn spawn_steady(
        &self,
        runtime: &Runtime,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.tracker
            .spawn_on(task, runtime.own_thread().unwrap_or(&self.home));
    }

    /// How many run.
    pub(crate) fn len(&self) -> usize {
        self.tracker.len()
    }

    /// Returns once all have ended that are started before then.
    pub(crate) async fn ended(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}
