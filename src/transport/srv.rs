//! The cluster's servers by DNS SRV (RFC 2782).
//!
//! A domain is asked for one service after the other, and the first that has records wins. Only
//! "there is no such name" and "it has no such records" go on to the next: every other failure of
//! DNS is an error, for whoever went on would find another cluster, or none.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{Name, RData};
use hickory_resolver::{Resolver, TokioResolver};

use crate::error::{Error, ErrorKind, Result};
use crate::runtime::{Entropy, Runtime};

/// How the servers of a domain are found: see the drivers' `Builder::discover_with`.
#[derive(Clone, Debug)]
pub struct Srv {
    name_server: Option<SocketAddr>,
    timeout: Duration,
    allow_http: bool,
    services: Vec<Service>,
    runtime: Runtime,
}

/// A service that DNS may have records of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    name: String,
    tls: bool,
}

impl Service {
    /// A service that speaks TLS: `etcd-client-ssl` stands for `_etcd-client-ssl._tcp`.
    pub fn https(name: impl Into<String>) -> Self {
        let name = name.into();
        Self { name, tls: true }
    }

    /// A service that speaks plain HTTP: `etcd-client` stands for `_etcd-client._tcp`.
    pub fn http(name: impl Into<String>) -> Self {
        let name = name.into();
        Self { name, tls: false }
    }
}

impl Srv {
    /// The defaults.
    pub fn new() -> Self {
        Self {
            name_server: None,
            timeout: Duration::from_secs(5),
            allow_http: true,
            services: vec![
                Service::https("etcd-client-ssl"),
                Service::http("etcd-client"),
                Service::https("etcd-ssl"),
                Service::http("etcd"),
            ],
            runtime: Runtime::default(),
        }
    }

    /// Asks this name server. Default: those of the system (`/etc/resolv.conf`).
    #[must_use]
    pub fn name_server(mut self, address: SocketAddr) -> Self {
        self.name_server = Some(address);
        self
    }

    /// How long the whole search may take. Default: 5 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Whether services that speak plain HTTP are looked for too. Default: yes. DNS itself is
    /// rarely authenticated: with no, whoever can forge its answers can still not have the
    /// requests sent in plain text.
    #[must_use]
    pub fn allow_http(mut self, allow: bool) -> Self {
        self.allow_http = allow;
        self
    }

    /// Looks for these services, in this order. Default: `etcd-client-ssl` by https, `etcd-client`
    /// by http, `etcd-ssl` by https, `etcd` by http.
    #[must_use]
    pub fn services(mut self, services: impl IntoIterator<Item = Service>) -> Self {
        self.services = services.into_iter().collect();
        self
    }

    /// Tells the time and draws by these, and so does what is built. Default: the operating
    /// system's.
    #[must_use]
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.runtime = runtime;
        self
    }

    /// The endpoints, in the order in which they are to be tried.
    pub(crate) async fn endpoints(&self, domain: &str) -> Result<String> {
        let found = self.search(domain).await;
        let endpoints = found.map_err(|it| it.during("discover"))?;
        tracing::debug!(target: "tenure::transport", domain, endpoints, "discovered");
        Ok(endpoints)
    }

    /// Tells the time and draws by these.
    pub(crate) fn own_runtime(&self) -> Runtime {
        self.runtime.clone()
    }

    async fn search(&self, domain: &str) -> Result<String> {
        let resolver = self.resolver()?;
        let deadline = self.runtime.clock.now() + self.timeout;
        let wanted = self.services.iter().filter(|it| it.tls || self.allow_http);
        let mut asked = Vec::new();
        for service in wanted {
            // With its dot the name is complete: the search list does not apply.
            let text = format!("_{}._tcp.{}.", service.name, domain.trim_end_matches('.'));
            let name = parse(&text, domain)?;
            let found = tokio::select! {
                biased;
                found = resolver.srv_lookup(name) => found,
                () = self.runtime.clock.sleep_until(deadline) => Err(NetError::Timeout),
            };
            match found {
                Ok(found) => {
                    let records = found.answers().iter().filter_map(|it| match &it.data {
                        RData::SRV(record) => Some(Record::of(record)),
                        _ => None,
                    });
                    let records: Vec<Record> = records.collect();
                    if !records.is_empty() {
                        return endpoints(&text, service.tls, records, &self.runtime.entropy);
                    }
                }
                Err(error) if is_absence(&error) => {}
                Err(error) => return Err(self.unreachable(&text, &error)),
            }
            asked.push(text);
        }
        let text = format!("DNS has no SRV records: asked for {}", asked.join(", "));
        Err(Error::new(ErrorKind::NotFound, text))
    }

    fn resolver(&self) -> Result<TokioResolver> {
        let failed = |cause: &NetError| {
            let text = format!("no DNS resolver can be set up ({cause})");
            Error::new(ErrorKind::InvalidOptions, text)
        };
        let mut builder = match self.name_server {
            Some(address) => {
                let mut server = NameServerConfig::udp_and_tcp(address.ip());
                for connection in &mut server.connections {
                    connection.port = address.port();
                }
                let config = ResolverConfig::from_name_servers(vec![server]);
                Resolver::builder_with_config(config, TokioRuntimeProvider::default())
            }
            None => Resolver::builder_tokio().map_err(|it| failed(&it))?,
        };
        let options: &mut ResolverOpts = builder.options_mut();
        // A lost packet is asked for again well before the time is up.
        options.timeout = self.timeout / 4;
        options.attempts = 3;
        builder.build().map_err(|it| failed(&it))
    }

    fn unreachable(&self, name: &str, cause: &NetError) -> Error {
        let why = match cause {
            NetError::Timeout => "no answer in time".to_owned(),
            NetError::Dns(DnsError::ResponseCode(code)) => format!("the server answers {code}"),
            other => other.to_string(),
        };
        let text = format!("DNS does not tell the SRV records of {name}: {why}");
        let error = Error::new(ErrorKind::Unreachable, text);
        match self.name_server {
            Some(address) => error.on(address.to_string()),
            None => error,
        }
    }
}

impl Default for Srv {
    fn default() -> Self {
        Self::new()
    }
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    priority: u16,
    weight: u16,
    host: String,
    port: u16,
}

impl Record {
    fn of(record: &SRV) -> Self {
        Self {
            priority: record.priority,
            weight: record.weight,
            host: record.target.to_ascii().trim_end_matches('.').to_owned(),
            port: record.port,
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

fn parse(text: &str, domain: &str) -> Result<Name> {
    let invalid = || {
        let text = format!("{domain:?} is no domain whose SRV records could be asked for");
        Error::new(ErrorKind::InvalidOptions, text)
    };
    if domain.trim_end_matches('.').is_empty() {
        return Err(invalid());
    }
    Name::from_utf8(text).map_err(|_| invalid())
}

/// Whether DNS is sure that there is nothing.
fn is_absence(error: &NetError) -> bool {
    let NetError::Dns(DnsError::NoRecordsFound(none)) = error else {
        return false;
    };
    let code = none.response_code;
    code == ResponseCode::NXDomain || code == ResponseCode::NoError
}

fn endpoints(name: &str, tls: bool, mut records: Vec<Record>, entropy: &Entropy) -> Result<String> {
    // "." as the target: the service is decidedly not available.
    records.retain(|it| !it.host.is_empty());
    if records.is_empty() {
        let text = format!("DNS says that {name} is decidedly not available (its target is \".\")");
        return Err(Error::new(ErrorKind::NotFound, text));
    }
    for Record { host, port, .. } in &records {
        // A label can hold any byte: one with a comma or an `@` would name other servers.
        let is_plain = |it: char| it.is_ascii_alphanumeric() || "-_.".contains(it);
        if !host.chars().all(is_plain) || *port == 0 {
            let text =
                format!("the SRV records of {name} name no valid host and port: {host:?}:{port}");
            return Err(Error::new(ErrorKind::Protocol, text));
        }
    }
    let scheme = if tls { "https" } else { "http" };
    let endpoints: Vec<String> = ordered(records, entropy)
        .iter()
        .map(|it| format!("{scheme}://{it}"))
        .collect();
    Ok(endpoints.join(","))
}

/// By priority, and at random by weight within one.
fn ordered(mut records: Vec<Record>, entropy: &Entropy) -> Vec<Record> {
    // The weightless come first: of all numbers that can be drawn only 0 picks one of them.
    records.sort_by_key(|it| (it.priority, it.weight));
    let mut order = Vec::with_capacity(records.len());
    while let Some(first) = records.first() {
        let priority = first.priority;
        let level = || records.iter().take_while(|it| it.priority == priority);
        let sum: u64 = level().map(|it| u64::from(it.weight)).sum();
        let picked = if sum == 0 {
            // No weights, no preference.
            below(level().count() as u64, entropy) as usize
        } else {
            let drawn = below(sum + 1, entropy);
            let mut running = 0;
            let reached = level().position(|it| {
                running += u64::from(it.weight);
                running >= drawn
            });
            reached.unwrap_or(0)
        };
        order.push(records.remove(picked));
    }
    order
}

/// A number below `limit`, which is small: the remainder favours none noticeably.
fn below(limit: u64, entropy: &Entropy) -> u64 {
    entropy.u64().checked_rem(limit).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(priority: u16, weight: u16, host: &str) -> Record {
        Record {
            priority,
            weight,
            host: host.to_owned(),
            port: 2379,
        }
    }

    /// How often each host came first in so many draws.
    fn firsts(records: &[Record], draws: usize) -> Vec<usize> {
        let entropy = Entropy::seeded(3);
        let mut counts = vec![0; records.len()];
        for _ in 0..draws {
            let order = ordered(records.to_vec(), &entropy);
            assert_eq!(order.len(), records.len());
            let first = records.iter().position(|it| *it == order[0]).unwrap();
            counts[first] += 1;
        }
        counts
    }

    #[test]
    fn a_lower_priority_always_comes_first() {
        let records = [
            record(20, 60_000, "b"),
            record(10, 0, "a"),
            record(30, 1, "c"),
        ];
        for seed in 0..50 {
            let order = ordered(records.to_vec(), &Entropy::seeded(seed));
            let hosts: Vec<&str> = order.iter().map(|it| &*it.host).collect();
            assert_eq!(hosts, ["a", "b", "c"]);
        }
    }

    #[test]
    fn weights_are_shares_of_the_first_place() {
        let counts = firsts(
            &[record(1, 60, "a"), record(1, 30, "b"), record(1, 10, "c")],
            10_000,
        );
        for (count, expected) in counts.iter().zip([6_000, 3_000, 1_000]) {
            assert!(count.abs_diff(expected) < 400, "{counts:?}");
        }
    }

    #[test]
    fn without_weights_all_are_equal() {
        let counts = firsts(&[record(1, 0, "a"), record(1, 0, "b")], 10_000);
        assert!(counts[0].abs_diff(5_000) < 400, "{counts:?}");
    }

    #[test]
    fn weight_zero_among_others_is_a_small_chance_and_not_none() {
        let counts = firsts(&[record(1, 99, "a"), record(1, 0, "b")], 10_000);
        assert!((30..300).contains(&counts[1]), "{counts:?}");
    }

    #[test]
    fn a_target_that_would_name_other_servers_is_refused() {
        for host in ["a,http:", "user@a", "a/b", "a b", "a:1"] {
            let records = vec![record(1, 1, "good"), record(1, 1, host)];
            let error = endpoints("_etcd._tcp.d.", true, records, &Entropy::seeded(1));
            assert_eq!(error.unwrap_err().kind(), ErrorKind::Protocol, "{host}");
        }
    }
}
