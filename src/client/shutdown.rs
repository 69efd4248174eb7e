//! The end of a client.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Client;

impl Client {
    /// Returns once a [`shutdown`](Self::shutdown) has begun: for loops of your own, which can end
    /// what they have begun. The shutdown does not wait for them.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn closing(&self) {
        self.core.draining.cancelled().await;
    }

    /// Ends the client: lets [workers](crate::recipes::queue::Worker) end the jobs that they have
    /// begun, for at most half of `deadline`; then refuses new work, revokes the sessions (which
    /// deletes what hangs on them), finishes what was given up, and waits for the tasks, for at
    /// most `deadline` in all.
    ///
    /// Guards that are still held are lost: release them first.
    ///
    /// # Cancel safety
    /// Dropping the future stops the waiting; the shutdown goes on as far as tasks still run.
    pub async fn shutdown(&self, deadline: Duration) -> Shutdown {
        let core = &self.core;
        let limit = core.runtime.clock.now() + deadline;
        core.draining.cancel();
        core.workers.close();
        tokio::select! {
            biased;
            () = core.workers.wait() => {}
            () = core.runtime.clock.sleep(deadline / 2) => {}
        }
        core.closed.store(true, Ordering::Release);
        // First, because it frees most: clean-ups can take all the time there is.
        for session in std::mem::take(&mut *core.sessions()).into_values() {
            session.close();
        }
        for closer in std::mem::take(&mut *core.own()) {
            closer.cancel();
        }
        core.feeds.close();
        tokio::select! {
            biased;
            () = core.janitor.idle() => {}
            // The last eighth is for the tasks to end.
            () = core.runtime.clock.sleep_until(limit - deadline / 8) => {}
        }
        core.janitor.stop();
        // Every session is closed, and with it all that stood in a line.
        core.lines.close();
        tokio::select! {
            biased;
            () = core.tasks.ended() => {}
            () = core.runtime.clock.sleep_until(limit) => {}
        }
        Shutdown {
            left_to_ttl: core.janitor.left() + core.janitor.open(),
            tasks_left: core.tasks.len(),
        }
    }
}

/// What a [shutdown](Client::shutdown) could not finish in its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shutdown {
    /// Tickets that the server will remove at the end of their time-to-live, since the client
    /// was made.
    pub left_to_ttl: usize,
    /// Background tasks that still run: those that still wait for the store.
    pub tasks_left: usize,
}
