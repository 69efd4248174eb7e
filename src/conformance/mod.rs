//! The suite that every [`Store`] must pass, for the stores of this crate and for anybody's.
//!
//! Each [`Check`] shows one promise of the [`Store`] trait, in a directory of its own, so a
//! server may be shared. Checks of what a store need not be able to do ([`About::commits`],
//! [`About::cancels`]) want either the ability or the typed refusal.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use tenure::{Key, Store, conformance};
//! # async fn show(store: Arc<dyn Store>) -> Result<(), Box<dyn std::error::Error>> {
//! conformance::run(store, &Key::new("/_conformance")?).await.into_result()?;
//! # Ok(()) }
//! ```
//!
//! Time is tokio's: a store that tells the time by [`Clock::tokio`](crate::runtime::Clock::tokio)
//! is checked in no time under a paused clock, a real server in about ten seconds.
//!
//! [`About::commits`]: crate::store::About::commits
//! [`About::cancels`]: crate::store::About::cancels

/// Fails the check unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::conformance::Failure::new(format!($($message)+)));
        }
    };
}

/// Fails the check unless both sides are equal.
macro_rules! ensure_eq {
    ($found:expr, $wanted:expr, $($message:tt)+) => {
        match (&$found, &$wanted) {
            (found, wanted) => ensure!(
                *found == *wanted,
                "{}: wanted {wanted:?}, found {found:?}",
                format_args!($($message)+)
            ),
        }
    };
}

/// The table of a file's checks.
macro_rules! checks {
    ($($name:ident),+ $(,)?) => {
        pub(super) const CHECKS: &[$crate::conformance::Check] = &[$(
            $crate::conformance::Check {
                name: stringify!($name),
                run: |on| Box::pin($name(on)),
            }
        ),+];
    };
}

mod appends;
mod commits;
mod deletes;
mod expiry;
mod history;
mod keys;
mod leases;
mod reads;
mod subject;
mod trees;
mod watches;
mod withdrawals;
mod writes;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};

use crate::error::Error;
use crate::key::Key;
use crate::runtime::Entropy;
use crate::store::{Delete, Store};
use subject::Subject;

/// How long one check may take, in tokio's time. A store that hangs fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many checks run at once. Most only wait.
const AT_ONCE: usize = 16;

/// One promise, and how to see whether a store keeps it.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    name: &'static str,
    run: fn(Subject) -> BoxFuture<'static, Result<(), Failure>>,
}

impl Check {
    /// The promise in words: `expired_key_is_never_read`.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Checks a store, in a directory that nobody else uses.
    ///
    /// # Errors
    /// What was seen that should not have been, or the error of a call that should have worked.
    pub async fn run(&self, store: Arc<dyn Store>, dir: Key) -> Result<(), Failure> {
        let check = (self.run)(Subject::new(store, dir));
        match tokio::time::timeout(PATIENCE, check).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::new(format!("not done after {PATIENCE:?}"))),
        }
    }
}

/// All checks. The last ones write so much that a server with a short history forgets what
/// others wait for: run them by themselves, as [`run`] does.
pub fn all() -> impl Iterator<Item = &'static Check> {
    together().chain(history::CHECKS)
}

fn together() -> impl Iterator<Item = &'static Check> {
    // Those that wait longest begin first.
    let tables = [
        leases::CHECKS,
        expiry::CHECKS,
        watches::CHECKS,
        appends::CHECKS,
        withdrawals::CHECKS,
        reads::CHECKS,
        trees::CHECKS,
        keys::CHECKS,
        writes::CHECKS,
        deletes::CHECKS,
        commits::CHECKS,
    ];
    tables.into_iter().flatten()
}

/// Runs all checks in a new directory below `under`, and removes it afterwards.
///
/// # Cancel safety
/// Dropping the future leaves that directory behind.
pub async fn run(store: Arc<dyn Store>, under: &Key) -> Report {
    let mut report = Report::default();
    let name = format!("{:016x}", Entropy::os().u64());
    let dir = match under.join(&name) {
        Ok(dir) => dir,
        Err(error) => {
            report.outcomes.push(("run", Err(error.into())));
            return report;
        }
    };
    let one = |check| outcome(check, store.clone(), dir.clone());
    let numbered = together().enumerate().map(|(number, check)| {
        let outcome = one(check);
        async move { (number, outcome.await) }
    });
    let checks: Vec<_> = numbered.collect();
    let checks = stream::iter(checks).buffer_unordered(AT_ONCE);
    let mut outcomes: Vec<_> = checks.collect().await;
    outcomes.sort_by_key(|(number, _)| *number);
    report.outcomes = outcomes.into_iter().map(|(_, outcome)| outcome).collect();
    for check in history::CHECKS {
        report.outcomes.push(one(check).await);
    }
    // Only tidiness: what has an expiry goes away anyway, and a failed check says more.
    drop(store.delete(Delete::tree(dir)).await);
    report
}

async fn outcome(check: &'static Check, store: Arc<dyn Store>, under: Key) -> Outcome {
    let outcome = match under.join(check.name) {
        Ok(dir) => check.run(store, dir).await,
        Err(error) => Err(error.into()),
    };
    (check.name, outcome)
}

type Outcome = (&'static str, Result<(), Failure>);

/// How a store did.
#[derive(Debug, Default)]
pub struct Report {
    outcomes: Vec<Outcome>,
}

impl Report {
    /// The names of the checks that the store passed.
    pub fn passed(&self) -> impl Iterator<Item = &'static str> {
        let passed = self.outcomes.iter().filter(|(_, outcome)| outcome.is_ok());
        passed.map(|(name, _)| *name)
    }

    /// The checks that it failed, and why.
    pub fn failures(&self) -> impl Iterator<Item = (&'static str, &Failure)> {
        let outcomes = self.outcomes.iter();
        outcomes.filter_map(|(name, outcome)| Some((*name, outcome.as_ref().err()?)))
    }

    /// The number of checks passed.
    ///
    /// # Errors
    /// All failures in one text.
    pub fn into_result(self) -> Result<usize, Failure> {
        match self.failures().next() {
            None => Ok(self.outcomes.len()),
            Some(_) => Err(Failure::new(self.to_string())),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} checks passed", self.passed().count())?;
        self.failures()
            .try_for_each(|(name, failure)| write!(f, "\n{name}: {failure}"))
    }
}

/// How a store broke a promise.
#[derive(Debug)]
pub struct Failure {
    detail: String,
    source: Option<Error>,
}

impl Failure {
    fn new(detail: String) -> Self {
        Self {
            detail,
            source: None,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            detail: format!("a call failed that should not have: {error}"),
            source: Some(error),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // The error's own text is in ours already; what is below it is not.
        std::error::Error::source(self.source.as_ref()?)
    }
}
