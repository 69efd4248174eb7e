//! The options of the driver.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::HeaderValue;

use super::Etcd2;
use super::access::Accepted;
use super::clocks::Warned;
use super::driver::{Driver, Options};
use super::lease::Leases;
use super::members::Members;
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::Runtime;
use crate::transport::{
    Config, Credentials, Dial, Endpoints, Tcp, Tls, Transport, check_durations,
};

/// The options of an [`Etcd2`]: see [`Etcd2::builder`].
#[derive(Clone)]
#[must_use = "nothing is made until `build`"]
pub struct Builder {
    endpoints: String,
    user: Option<(String, String)>,
    tls: Tls,
    version_prefix: String,
    expected_cluster_id: Option<String>,
    allow_reconnect: bool,
    allow_redirect: bool,
    use_proxies: bool,
    timeout: Duration,
    max_skew: Duration,
    poll_period: Duration,
    watch_patience: Duration,
    watchdog_period: Duration,
    idle_timeout: Duration,
    max_idle: usize,
    dialer: Arc<dyn Dial>,
    runtime: Runtime,
}

impl Builder {
    pub(super) fn new(endpoints: String) -> Self {
        Self {
            endpoints,
            user: None,
            tls: Tls::new(),
            version_prefix: "/v2".into(),
            expected_cluster_id: None,
            allow_reconnect: true,
            allow_redirect: true,
            use_proxies: true,
            timeout: Duration::from_secs(5),
            max_skew: Duration::from_millis(500),
            poll_period: Duration::from_secs(30),
            watch_patience: Duration::from_secs(10),
            watchdog_period: Duration::from_secs(3),
            idle_timeout: Duration::from_secs(60),
            max_idle: 16,
            dialer: Arc::new(Tcp::new()),
            runtime: Runtime::default(),
        }
    }

    /// Sends this user and password with every request (HTTP Basic: use `https`). Wins over those
    /// in an endpoint's URL. Default: none. etcd checks them with bcrypt, which costs its
    /// processor about 60 ms a request.
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

    /// The path before `/keys`, `/stats` and the others. Default: `/v2`.
    pub fn version_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.version_prefix = prefix.into();
        self
    }

    /// The id that the cluster must have, as `X-Etcd-Cluster-Id` tells it (hexadecimal). Default:
    /// that of the first answer. Another one is [`ClusterChanged`](ErrorKind::ClusterChanged),
    /// each time.
    pub fn expected_cluster_id(mut self, id: impl Into<String>) -> Self {
        self.expected_cluster_id = Some(id.into());
        self
    }

    /// Whether a server that fails gives way to the next. Default: yes. For five seconds it comes
    /// after those that did not fail; none is ever left out. With no, the first endpoint is the
    /// only one that is ever asked.
    pub fn allow_reconnect(mut self, allow: bool) -> Self {
        self.allow_reconnect = allow;
        self
    }

    /// Whether redirects are followed: at most five, to the same scheme, with the same method and
    /// body, and without the credentials when they lead to a server that is not among the
    /// endpoints. Default: yes. A redirect that is not followed is a
    /// [`Protocol`](ErrorKind::Protocol) error that says where it points. etcd itself redirects
    /// only paths that it would clean.
    pub fn allow_redirect(mut self, allow: bool) -> Self {
        self.allow_redirect = allow;
        self
    }

    /// Whether only the given endpoints are asked, as behind proxies or a load balancer.
    /// Default: yes. With no, the client addresses that the members advertise are learned with
    /// the first request, and again each minute and after a failover; they come after the given
    /// ones. Only addresses of the same scheme are taken, and `localhost` only by who was given
    /// it; they are sent the credentials too. Costs one operation in a minute one
    /// request more, and at most half a second; an answer that cannot be read changes nothing.
    pub fn use_proxies(mut self, only_given: bool) -> Self {
        self.use_proxies = only_given;
        self
    }

    /// How long an operation may take, all attempts on all endpoints together. Default: 5 s. A
    /// write waits a third of it for its answer. Another attempt gets four times what 99 of 100
    /// answers take, at least 1 s and at most a third of this, and twice as long in each further
    /// round: who reads what takes long to send (a large tree) needs three times as much here.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// By how much the wall clocks of the cluster's members may differ. Default: 500 ms.
    ///
    /// etcd v2 keeps the end of a time-to-live as a wall-clock time: the member that receives a
    /// write stamps it, the leader expires it. Deadlines leave this much besides their usual
    /// margin; members that differ by more can let a lock go before its holder knows.
    ///
    /// Answers show the members' clocks. If they prove that these differ by more than this, the
    /// proven difference is used instead, which is traced as a warning, once; and a lease whose
    /// time-to-live is not more than twice that is refused. With more than one endpoint, a grant
    /// asks those for `/version` that have not been heard of for a minute, for at most 500 ms.
    /// A proxy that writes a `Date` of its own is taken for the member behind it: keep its clock
    /// right too.
    pub fn max_skew(mut self, skew: Duration) -> Self {
        self.max_skew = skew;
        self
    }

    /// After how long a quiet long poll is replaced. Default: 30 s. Shorter than what proxies in
    /// between cut, and than the store takes for 1,000 events.
    pub fn poll_period(mut self, period: Duration) -> Self {
        self.poll_period = period;
        self
    }

    /// How long a watch goes on trying without reaching any server before it ends with the
    /// error. Default: 10 s.
    pub fn watch_patience(mut self, patience: Duration) -> Self {
        self.watch_patience = patience;
        self
    }

    /// How often the server of an open watch is asked whether it still has a leader, if there is
    /// more than one endpoint: one that is cut off from the others keeps a watch open and never
    /// speaks. Default: 3 s. Costs one GET of `{version_prefix}/members/leader` a period for each
    /// endpoint that is watched, however many watches there are, and no write.
    pub fn watchdog_period(mut self, period: Duration) -> Self {
        self.watchdog_period = period;
        self
    }

    /// How many idle connections are kept for each endpoint. Default: 16. Each open watch has one
    /// of its own besides.
    pub fn max_idle_connections(mut self, number: usize) -> Self {
        self.max_idle = number;
        self
    }

    /// After how long an idle connection is closed. Default: 60 s.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout;
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

    /// Makes the complete keys client. Does not connect.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub fn build_client(self) -> Result<super::Client> {
        Ok(self.build()?.client())
    }

    /// Makes the driver. Does not connect.
    ///
    /// # Errors
    /// `InvalidOptions`: an endpoint that is no `http(s)://host:port`, none at all, `https`
    /// without a TLS feature, TLS options without `https`, a file of theirs that cannot be read or
    /// does not hold what it should, a timeout of zero.
    pub fn build(self) -> Result<Etcd2> {
        check_durations(&[
            ("timeout", self.timeout),
            ("poll_period", self.poll_period),
            ("watchdog_period", self.watchdog_period),
        ])?;
        let (endpoints, in_url) = Endpoints::parse(&self.endpoints)?;
        let credentials = match self.user {
            Some((user, password)) => Some(Credentials { user, password }),
            None => in_url,
        };
        let user = credentials.as_ref().map(|it| it.user.clone());
        let authorization = credentials.map(|it| basic(&it)).transpose()?;
        let name = endpoints.name("etcd2");
        let transport = Transport::new(Config {
            endpoints,
            dialer: self.dialer,
            tls: self.tls,
            authorization,
            failover: self.allow_reconnect,
            redirect: self.allow_redirect,
            timeout: self.timeout,
            idle_timeout: self.idle_timeout,
            max_idle: self.max_idle,
            runtime: self.runtime.clone(),
        })?;
        Ok(Etcd2(Arc::new(Driver {
            transport,
            runtime: self.runtime,
            name,
            max_skew: self.max_skew,
            poll_period: self.poll_period,
            watch_patience: self.watch_patience,
            watchdog_period: self.watchdog_period,
            leases: Leases::default(),
            members: Members::default(),
            warned: Warned::default(),
            cluster: self
                .expected_cluster_id
                .map_or_else(OnceLock::new, |id| OnceLock::from(id.into_boxed_str())),
            accepted: Accepted::default(),
            options: Options {
                version_prefix: prefix(&self.version_prefix)?,
                user,
                allow_reconnect: self.allow_reconnect,
                allow_redirect: self.allow_redirect,
                use_proxies: self.use_proxies,
                timeout: self.timeout,
                max_idle: self.max_idle,
            },
        })))
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The endpoints' text may hold a password.
        f.debug_struct("Builder")
            .field("tls", &self.tls)
            .field("timeout", &self.timeout)
            .field("max_skew", &self.max_skew)
            .field("poll_period", &self.poll_period)
            .field("watch_patience", &self.watch_patience)
            .field("watchdog_period", &self.watchdog_period)
            .field("dialer", &self.dialer)
            .finish_non_exhaustive()
    }
}

/// A path prefix that begins with `/` and does not end with one; empty for none.
fn prefix(text: &str) -> Result<String> {
    let path = text.trim_end_matches('/');
    let is_plain = |it: char| it.is_ascii_alphanumeric() || "/-._~".contains(it);
    let climbs = path
        .split('/')
        .skip(1)
        .any(|it| matches!(it, "" | "." | ".."));
    if (!path.is_empty() && !path.starts_with('/')) || climbs || !path.chars().all(is_plain) {
        let text = format!("the version prefix is {text:?}: write one like /v2");
        return Err(Error::new(ErrorKind::InvalidOptions, text));
    }
    Ok(path.to_owned())
}

fn basic(credentials: &Credentials) -> Result<HeaderValue> {
    let Credentials { user, password } = credentials;
    if user.contains(':') {
        let text = "a user name holds no colon: HTTP Basic cannot say it";
        return Err(Error::new(ErrorKind::InvalidOptions, text));
    }
    let encoded = base64(format!("{user}:{password}").as_bytes());
    let mut value = HeaderValue::try_from(format!("Basic {encoded}")).map_err(|cause| {
        Error::new(ErrorKind::InvalidOptions, "the user cannot be sent").caused_by(cause)
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// RFC 4648, with padding. Twenty lines that are used once do not pay for a dependency.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let six = (bits >> (18 - 6 * digit)) & 63;
            let letter = ALPHABET.get(six as usize).copied().unwrap_or(b'=');
            text.push(if digit > chunk.len() {
                '='
            } else {
                char::from(letter)
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_as_the_rfc_says() {
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
            ("\u{ff}?>", "w78/Pg=="),
        ] {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn a_password_shows_nowhere() {
        let builder = Etcd2::builder("http://me:hidden@127.0.0.1:1").user("root", "secret");
        let shown = format!("{builder:?}");
        let store = builder.build().unwrap();
        let shown = format!("{shown}{store:?}{}", store.name());
        assert!(
            !shown.contains("secret") && !shown.contains("hidden"),
            "{shown}"
        );
        assert!(!shown.contains("cm9vdDpzZWNyZXQ"), "{shown}");
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        for builder in [
            Etcd2::builder("127.0.0.1:2379"),
            Etcd2::builder("http://h").timeout(Duration::ZERO),
            Etcd2::builder("http://h").user("a:b", "c"),
        ] {
            let error = builder.build().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOptions, "{error}");
        }
    }
}
