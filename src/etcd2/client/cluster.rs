//! Facts of the cluster: members, leader, statistics, versions, health.
//!
//! etcd answers these without a user, whatever its roles say, and each member speaks for itself.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::etcd2::error::{Access, refused, unreadable};
use crate::etcd2::members::get;
use crate::etcd2::watch::broken;
use crate::transport::{Answer, As, Repeat};

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
#[non_exhaustive]
pub struct Member {
    /// Its id, hexadecimal.
    pub id: String,
    /// Its name; empty until it has started for the first time.
    pub name: String,
    /// Where the other members reach it.
    #[serde(rename = "peerURLs")]
    pub peer_urls: Vec<String>,
    /// Where clients reach it, as it says itself.
    #[serde(rename = "clientURLs")]
    pub client_urls: Vec<String>,
}

/// What a server runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Versions {
    /// The server's own version: `3.4.23`.
    #[serde(rename = "etcdserver")]
    pub server: String,
    /// The version that the whole cluster speaks: `3.4.0`.
    #[serde(rename = "etcdcluster")]
    pub cluster: String,
}

/// What one server said of its health, or why it said nothing.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Health {
    /// Which one: `http://host:port`.
    pub server: String,
    /// Whether it has a leader and could commit within a second; or the error of asking.
    pub healthy: Result<bool>,
}

/// What a member knows of itself.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[non_exhaustive]
pub struct SelfStats {
    /// Its name.
    pub name: String,
    /// Its id, hexadecimal.
    pub id: String,
    /// `StateLeader`, `StateFollower`, …. A leader that was cut off goes on saying so for a while.
    pub state: String,
    /// Since when it runs, RFC 3339.
    pub start_time: String,
    /// Whom it takes for the leader.
    pub leader_info: LeaderInfo,
    /// How many append requests it has received from a leader.
    #[serde(rename = "recvAppendRequestCnt")]
    pub received_appends: u64,
    /// How many it has sent as leader.
    #[serde(rename = "sendAppendRequestCnt")]
    pub sent_appends: u64,
    /// Requests it receives each second; zero if it does not say.
    #[serde(rename = "recvPkgRate")]
    pub received_rate: f64,
    /// Bytes it receives each second; zero if it does not say.
    #[serde(rename = "recvBandwidthRate")]
    pub received_bandwidth: f64,
    /// Requests it sends each second; zero if it does not say.
    #[serde(rename = "sendPkgRate")]
    pub sent_rate: f64,
    /// Bytes it sends each second; zero if it does not say.
    #[serde(rename = "sendBandwidthRate")]
    pub sent_bandwidth: f64,
}

/// Whom a member takes for the leader.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[non_exhaustive]
pub struct LeaderInfo {
    /// The leader's id, hexadecimal.
    pub leader: String,
    /// For how long, as Go writes durations: `1m2.5s`.
    pub uptime: String,
    /// Since when, RFC 3339.
    pub start_time: String,
}

/// What the leader knows of the others.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct LeaderStats {
    /// The leader's id, hexadecimal.
    pub leader: String,
    /// The others, by id.
    pub followers: BTreeMap<String, FollowerStats>,
}

/// How the leader reaches one other.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct FollowerStats {
    /// How long its answers take.
    pub latency: Latency,
    /// How often it answered.
    pub counts: Counts,
}

/// Times of answers, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[non_exhaustive]
pub struct Latency {
    /// The last one.
    pub current: f64,
    /// On average.
    pub average: f64,
    /// How much they vary.
    pub standard_deviation: f64,
    /// The shortest.
    pub minimum: f64,
    /// The longest.
    pub maximum: f64,
}

/// Numbers of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Counts {
    /// Not answered.
    pub fail: u64,
    /// Answered.
    pub success: u64,
}

/// What a member's store has done since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)] // the names say it
#[non_exhaustive]
pub struct StoreStats {
    pub gets_success: u64,
    pub gets_fail: u64,
    pub sets_success: u64,
    pub sets_fail: u64,
    pub delete_success: u64,
    pub delete_fail: u64,
    pub update_success: u64,
    pub update_fail: u64,
    pub create_success: u64,
    pub create_fail: u64,
    pub compare_and_swap_success: u64,
    pub compare_and_swap_fail: u64,
    pub compare_and_delete_success: u64,
    pub compare_and_delete_fail: u64,
    /// Nodes whose time ran out.
    pub expire_count: u64,
    /// Watches that are open now.
    pub watchers: u64,
}

#[derive(Deserialize)]
struct Members {
    members: Vec<Member>,
}

#[derive(Deserialize)]
struct Healthy {
    health: String,
}

/// 1 request, no write. Each is asked of the current server and, as long as the operation's time
/// lasts, of the next one that answers.
///
/// # Errors
/// `Unreachable`, `Timeout`, `Unavailable` (no leader), `Protocol`.
///
/// # Cancel safety
/// Dropping the future of any of these changes nothing.
impl Client {
    /// The client addresses of all members, as they advertise them.
    ///
    /// # Errors
    /// See above.
    pub async fn machines(&self) -> Result<Vec<String>> {
        let answer = self.ask("machines", self.prefixed("/machines")).await?;
        let text = String::from_utf8_lossy(&answer.body);
        let urls = text.split(',').map(str::trim).filter(|url| !url.is_empty());
        Ok(urls.map(str::to_owned).collect())
    }

    /// All members.
    ///
    /// # Errors
    /// See above.
    pub async fn members(&self) -> Result<Vec<Member>> {
        let members: Members = self.facts("members", self.prefixed("/members")).await?;
        Ok(members.members)
    }

    /// The member that leads.
    ///
    /// # Errors
    /// `Unavailable` while there is none; see above.
    pub async fn leader(&self) -> Result<Member> {
        self.facts("leader", self.prefixed("/members/leader")).await
    }

    /// What the current server knows of itself.
    ///
    /// # Errors
    /// See above.
    pub async fn stats(&self) -> Result<SelfStats> {
        self.facts("stats", self.prefixed("/stats/self")).await
    }

    /// What the leader knows of the others. Only the leader answers this: it is looked for among
    /// the servers that this client knows, at one request each.
    ///
    /// # Errors
    /// `Unavailable` if none of them is the leader, with its addresses; see above.
    pub async fn leader_stats(&self) -> Result<LeaderStats> {
        let path = self.prefixed("/stats/leader");
        let mut last = None;
        for (_, outcome) in self.ask_each(&path).await {
            match outcome {
                Ok(answer) if answer.status.is_success() => return parsed("leader stats", &answer),
                Ok(answer) => last = Some(refusal(&answer)),
                Err(error) => last = Some(error),
            }
        }
        // It leads, but is not among the servers that are known.
        let leader = self
            .leader()
            .await
            .map_err(|it| it.during("leader stats"))?;
        let text = format!(
            "only the leader tells: it is {:?} at {}, not among the servers of this client",
            leader.name,
            leader.client_urls.join(", ")
        );
        let error = Error::new(ErrorKind::Unavailable, text).during("leader stats");
        Err(match last {
            Some(last) => error.caused_by(last),
            None => error,
        })
    }

    /// What the current server's store has done since it started.
    ///
    /// # Errors
    /// See above.
    pub async fn store_stats(&self) -> Result<StoreStats> {
        self.facts("store stats", self.prefixed("/stats/store"))
            .await
    }

    /// The versions of the current server and of the cluster. Needs no v2 API.
    ///
    /// # Errors
    /// See above.
    pub async fn versions(&self) -> Result<Versions> {
        self.facts("versions", "/version".into()).await
    }

    /// The health of every server that this client knows, asked at once; a server that does not
    /// answer is reported, not an error. Each costs its server a read through the log.
    pub async fn health(&self) -> Vec<Health> {
        let outcomes = self.ask_each("/health").await.into_iter();
        let health = outcomes.map(|(server, outcome)| {
            // One that is ill says so with a 503.
            let healthy =
                outcome.and_then(
                    |answer| match serde_json::from_slice::<Healthy>(&answer.body) {
                        Ok(it) => Ok(it.health == "true"),
                        Err(_) => Err(refusal(&answer)),
                    },
                );
            let healthy = healthy.map_err(|it| it.during("health"));
            Health { server, healthy }
        });
        health.collect()
    }

    fn prefixed(&self, path: &str) -> String {
        format!("{}{path}", self.version_prefix())
    }

    async fn facts<T: DeserializeOwned>(&self, what: &'static str, path: String) -> Result<T> {
        let answer = self.ask(what, path).await?;
        parsed(what, &answer)
    }

    async fn ask(&self, what: &'static str, path: String) -> Result<Answer> {
        let driver = &self.driver;
        let (call, deadline) = (get(path), driver.deadline());
        let asked = driver.ask(&call, Access::Read, Repeat::Harmless, 0, deadline);
        asked.await.map_err(|it| it.during(what))
    }

    /// Asks every known server once, all at the same time, and takes any answer.
    async fn ask_each(&self, path: &str) -> Vec<(String, Result<Answer>)> {
        let driver = &self.driver;
        driver.refresh_members(driver.deadline()).await;
        let all = driver.transport.endpoints().all();
        let call = get(path.to_owned());
        let asked = all.iter().map(async |endpoint| {
            let until = driver.transport.attempt_deadline();
            let outcome = driver.transport.once(&call, endpoint, As::Nobody, until);
            let outcome = outcome.await.map_err(|it| broken(it).on(&*endpoint.origin));
            (endpoint.origin.to_string(), outcome)
        });
        join_all(asked).await
    }
}

fn refusal(answer: &Answer) -> Error {
    refused(answer.status, &answer.body, Access::Read).on(&*answer.server)
}

fn parsed<T: DeserializeOwned>(what: &'static str, answer: &Answer) -> Result<T> {
    serde_json::from_slice(&answer.body).map_err(|cause| {
        let error = unreadable(&answer.body, Access::Read, cause);
        error.during(what).on(&*answer.server)
    })
}
