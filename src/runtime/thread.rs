//! A thread of our own, for what must go on while the caller's runtime is blocked.

use std::fmt;
use std::io;
use std::sync::Arc;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// A thread that drives tasks. Clones share it; it ends with the last of them.
#[derive(Clone)]
pub(super) struct Thread {
    handle: Handle,
    _stop: Arc<Stop>,
}

/// Dropped with the last clone; dropping only sets a flag.
struct Stop(CancellationToken);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Thread {
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (handle, stop) = (runtime.handle().clone(), CancellationToken::new());
        let stopped = stop.clone().cancelled_owned();
        std::thread::Builder::new()
            .name("tenure".into())
            .spawn(move || runtime.block_on(stopped))?;
        Ok(Self {
            handle,
            _stop: Arc::new(Stop(stop)),
        })
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl fmt::Debug for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Thread")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_runs_tasks_and_ends_with_the_last_clone() {
        let thread = Thread::start().unwrap();
        let name = thread
            .handle()
            .spawn(async { std::thread::current().name().map(str::to_owned) });
        assert_eq!(name.await.unwrap().as_deref(), Some("tenure"));
        let (kept, dropped) = tokio::sync::oneshot::channel::<()>();
        thread.handle().spawn(async move {
            let _kept = kept;
            std::future::pending::<()>().await;
        });
        let copy = thread.clone();
        drop(thread);
        copy.handle().spawn(async {}).await.unwrap();
        drop(copy);
        assert!(dropped.await.is_err(), "its tasks are dropped with it");
    }
}
