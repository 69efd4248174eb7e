//! What the store tells of the changes that the long-poll machine sees.

use std::future::ready;
use std::sync::Arc;

use futures_util::StreamExt;

use super::driver::Driver;
use super::watch::{Report, Target, follow};
use crate::store::{Change, Filter, Scope, Update, Updates, Watch};

/// Follows `watch` until an error.
pub(super) fn updates(driver: Arc<Driver>, watch: Watch) -> Updates {
    let target = Target {
        key: watch.key,
        tree: watch.scope == Scope::Tree,
        from: watch.from,
        patience: Some(driver.watch_patience),
    };
    let filter = watch.filter;
    follow(driver, target)
        .filter_map(move |report| ready(report.map(|it| told(it, filter)).transpose()))
        .boxed()
}

/// As an update; `None` for one that was not asked for, and for a key that this crate cannot name.
fn told(report: Report, filter: Filter) -> Option<Update> {
    Some(match report {
        Report::Open(index) => Update::Open(index),
        Report::Progress(index) => Update::Progress(index),
        Report::Event(index, reply) => {
            let event = reply.body.event(index)?;
            if filter == Filter::Deletes && matches!(event.change, Change::Put(_)) {
                return None;
            }
            Update::Event(event)
        }
    })
}
