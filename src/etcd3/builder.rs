//! The options of the driver.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::Etcd3;
use super::auth::Auth;
use super::driver::Driver;
use super::hub::Hub;
use super::rpc::Wire;
use super::shared::SharedLeases;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::runtime::Runtime;
use crate::transport::{
    Channels, Credentials, Dial, Discovery, Endpoints, Latency, Tcp, Tls, check_durations,
};

/// The options of an [`Etcd3`]: see [`Etcd3::builder`].
#[derive(Clone)]
#[must_use = "nothing is made until `build`"]
pub struct Builder {
    endpoints: String,
    user: Option<(String, String)>,
    tls: Tls,
    expected_cluster_id: Option<u64>,
    marks: Option<Key>,
    discover_members: bool,
    timeout: Duration,
    watch_patience: Duration,
    watchdog_period: Duration,
    dialer: Arc<dyn Dial>,
    runtime: Runtime,
}

impl Builder {
    pub(super) fn new(endpoints: String) -> Self {
        Self {
            endpoints,
            user: None,
            tls: Tls::new(),
            expected_cluster_id: None,
            marks: None,
            discover_members: false,
            timeout: Duration::from_secs(5),
            watch_patience: Duration::from_secs(10),
            watchdog_period: Duration::from_secs(3),
            dialer: Arc::new(Tcp::new()),
            runtime: Runtime::default(),
        }
    }

    /// Logs in as this user (use `https`): the password is sent for a token, and again when the
    /// server does not know that token any more. Wins over those in an endpoint's URL. Default:
    /// none. etcd checks a password with bcrypt, which costs its processor about 60 ms; a token
    /// costs next to nothing.
    pub fn user(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.user = Some((user.into(), password.into()));
        self
    }

    /// What TLS trusts, and the certificate that it shows. Default: the system's roots, and none.
    /// Without any `https` endpoint they are refused: whoever gives them means to be encrypted.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = tls;
        self
    }

    /// The id that the cluster must have, as [`Etcd3::cluster_id`] tells it. Default: that of the
    /// first answer. Another one is [`ClusterChanged`](ErrorKind::ClusterChanged), each time.
    pub fn expected_cluster_id(mut self, id: u64) -> Self {
        self.expected_cluster_id = Some(id);
        self
    }

    /// Below which key cancel marks lie. Default: `/_cancelled`. The user's roles must allow to
    /// read and write there; that no two clients need the same place makes one within their own
    /// part of the store as good.
    pub fn marks(mut self, key: Key) -> Self {
        self.marks = Some(key);
        self
    }

    /// Whether the client addresses that the members advertise are learned, besides those that were
    /// given: with the first operation, and again each minute and after a failover. Default: no, as
    /// behind a proxy or a load balancer. They come after the given ones, which stay; only those of
    /// the same scheme are taken, and `localhost` only by who was given it. They are sent the
    /// user and the password too. Costs one request more in a minute (no proposal), for which the
    /// operation waits half a second at most; a list that cannot be had changes nothing.
    pub fn discover_members(mut self, discover: bool) -> Self {
        self.discover_members = discover;
        self
    }

    /// How long an operation may take in all; at least 1 ms. Default: 5 s. One attempt has at most a
    /// third of it.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long a watch goes on trying without reaching any server before it ends with the
    /// error. Default: 10 s.
    pub fn watch_patience(mut self, patience: Duration) -> Self {
        self.watch_patience = patience;
        self
    }

    /// After how long a silence the server of the open watches is asked for a sign of life, at least
    /// 1 ms; one that gives none in the time of an attempt is left for another. Default: 3 s. Costs
    /// one message, however many watches there are, and no proposal.
    pub fn watchdog_period(mut self, period: Duration) -> Self {
        self.watchdog_period = period;
        self
    }

    /// Connects through this. Default: [`Tcp`].
    pub fn dialer(mut self, dialer: impl Dial) -> Self {
        self.dialer = Arc::new(dialer);
        self
    }

    /// Tells the time and draws jitter by these. Default: the operating system's.
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.runtime = runtime;
        self
    }

    /// Makes the driver. Does not connect.
    ///
    /// # Errors
    /// `InvalidOptions`: an endpoint that is no `http(s)://host:port`, none at all, `https`
    /// without a TLS feature, TLS options without `https`, a file of theirs that cannot be read or
    /// does not hold what it should, a timeout of zero.
    pub fn build(self) -> Result<Etcd3> {
        check_durations(&[
            ("timeout", self.timeout),
            ("watchdog_period", self.watchdog_period),
        ])?;
        let (endpoints, in_url) = Endpoints::parse(&self.endpoints)?;
        let https = endpoints.any_https();
        if self.tls.is_set() && !https {
            let text = "TLS options are given, but no endpoint begins with https://";
            return Err(Error::new(ErrorKind::InvalidOptions, text));
        }
        let credentials = match self.user {
            Some((user, password)) => Some(Credentials { user, password }),
            None => in_url,
        };
        let name = endpoints.name("etcd3");
        let channels = Channels::new(self.dialer, https.then_some(&self.tls), &self.runtime)?;
        let cluster = self.expected_cluster_id;
        let marks = match self.marks {
            Some(key) => key,
            None => Key::root().join("_cancelled")?,
        };
        Ok(Etcd3(Arc::new(Driver {
            wire: Arc::new(Wire {
                endpoints,
                channels,
                latency: Latency::default(),
                runtime: self.runtime,
                timeout: self.timeout,
                auth: Auth::new(credentials),
                cluster: cluster.map_or_else(OnceLock::new, OnceLock::from),
                seen: AtomicU64::new(0),
                lost: AtomicU64::new(0),
                discovery: self.discover_members.then(Discovery::default),
            }),
            name,
            keeper: Arc::default(),
            watches: Hub::new(self.watch_patience, self.watchdog_period),
            marks,
            shared: SharedLeases::default(),
        })))
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The endpoints' text may hold a password.
        f.debug_struct("Builder")
            .field("tls", &self.tls)
            .field("marks", &self.marks)
            .field("timeout", &self.timeout)
            .field("watch_patience", &self.watch_patience)
            .field("watchdog_period", &self.watchdog_period)
            .field("dialer", &self.dialer)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_shows_nowhere() {
        let builder = Etcd3::builder("http://me:hidden@127.0.0.1:1").user("root", "secret");
        let shown = format!("{builder:?}");
        let store = builder.build().unwrap();
        let shown = format!("{shown}{store:?}{:?}{}", store.0, store.name());
        assert!(
            !shown.contains("secret") && !shown.contains("hidden"),
            "{shown}"
        );
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        for builder in [
            Etcd3::builder("127.0.0.1:2379"),
            Etcd3::builder("http://h").timeout(Duration::ZERO),
            Etcd3::builder("http://h").tls(Tls::new().server_name("x")),
        ] {
            let error = builder.build().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOptions, "{error}");
        }
    }
}
