//! What a cluster tells of itself: `members stats health`.

use serde_json::{Value, json};
use tenure::etcd3::{Etcd3, ServerStatus};
use tenure::{Error, ErrorKind, Result, StoreUrl, etcd2};

use crate::args::Format;
use crate::exit;
use crate::out::{print, say};

/// An etcd, by the API that the URL names.
pub(crate) enum Cluster {
    V2(etcd2::Client),
    V3(Etcd3),
}

/// A member as either API tells it.
struct Member {
    id: String,
    name: String,
    leads: bool,
    client_urls: Vec<String>,
    peer_urls: Vec<String>,
}

impl Cluster {
    pub(crate) fn of(url: &StoreUrl) -> Result<Self> {
        if let Some(builder) = url.etcd3() {
            return builder.build().map(Self::V3);
        }
        if let Some(builder) = url.etcd2() {
            return builder.build_client().map(Self::V2);
        }
        let text = "the embedded store is no cluster: it has neither members nor statistics";
        Err(Error::new(ErrorKind::Unsupported, text))
    }

    pub(crate) async fn members(&self, format: Format) -> Result<()> {
        let members = match self {
            Self::V2(client) => by_v2(client).await?,
            Self::V3(store) => by_v3(store).await?,
        };
        for member in members {
            let mark = if member.leads { "leader" } else { "" };
            match format {
                Format::Human => say(&format!(
                    "{:18} {:12} {:7} {}",
                    member.id,
                    member.name,
                    mark,
                    member.client_urls.join(",")
                )),
                Format::Json => print(&json!({
                    "id": member.id, "name": member.name, "leader": member.leads,
                    "client_urls": member.client_urls, "peer_urls": member.peer_urls,
                })),
            }
        }
        Ok(())
    }

    /// As JSON in either format: they are for programs.
    pub(crate) async fn stats(&self) -> Result<()> {
        match self {
            Self::V2(client) => {
                for path in ["self", "store"] {
                    let path = format!("{}/stats/{path}", client.version_prefix());
                    let get = etcd2::client::Method::Get;
                    let answer = client.api_execute(get, path, []).await?;
                    print(&answer.json::<Value>()?);
                }
            }
            Self::V3(store) => {
                for it in store.status().await {
                    print(&stats(&it));
                }
            }
        }
        Ok(())
    }

    /// The exit code tells whether all are well.
    pub(crate) async fn health(&self, format: Format) -> Result<u8> {
        let all: Vec<(String, Option<String>)> = match self {
            Self::V2(client) => {
                let health = client.health().await.into_iter();
                health
                    .map(|it| match it.healthy {
                        Ok(true) => (it.server, None),
                        Ok(false) => (it.server, Some("it says so itself".to_owned())),
                        Err(error) => (it.server, Some(error.to_string())),
                    })
                    .collect()
            }
            Self::V3(store) => {
                let health = store.health().await.into_iter();
                health
                    .map(|it| (it.server, it.healthy.err().map(|error| error.to_string())))
                    .collect()
            }
        };
        for (server, ill) in &all {
            match (format, ill) {
                (Format::Human, None) => say(&format!("{server} healthy")),
                (Format::Human, Some(why)) => say(&format!("{server} unhealthy: {why}")),
                (Format::Json, why) => {
                    print(&json!({"server": server, "healthy": why.is_none(), "error": why}));
                }
            }
        }
        Ok(if all.iter().all(|(_, ill)| ill.is_none()) {
            exit::DONE
        } else {
            exit::UNAVAILABLE
        })
    }
}

async fn by_v2(client: &etcd2::Client) -> Result<Vec<Member>> {
    let leader = client.leader().await.ok().map(|leader| leader.id);
    let members = client.members().await?.into_iter();
    let members = members.map(|it| Member {
        leads: leader.as_ref() == Some(&it.id),
        id: it.id,
        name: it.name,
        client_urls: it.client_urls,
        peer_urls: it.peer_urls,
    });
    Ok(members.collect())
}

async fn by_v3(store: &Etcd3) -> Result<Vec<Member>> {
    let members = store.members().await?.into_iter();
    let status = store.status().await.into_iter();
    let known = status.filter_map(|it| it.status.ok());
    // Of servers that disagree the one of the latest term is right.
    let leader = known.max_by_key(|it| it.raft_term).and_then(|it| it.leader);
    let members = members.map(|it| Member {
        leads: leader == Some(it.id),
        id: format!("{:x}", it.id),
        name: it.name,
        client_urls: it.client_urls,
        peer_urls: it.peer_urls,
    });
    Ok(members.collect())
}

fn stats(it: &ServerStatus) -> Value {
    match &it.status {
        Ok(status) => json!({
            "server": it.server,
            "member": format!("{:x}", status.member),
            "leader": status.leader.map(|it| format!("{it:x}")),
            "leads": status.leads(),
            "learner": status.is_learner,
            "version": status.version,
            "db_size": status.db_size,
            "db_size_in_use": status.db_size_in_use,
            "raft_term": status.raft_term,
            "raft_index": status.raft_index,
            "raft_applied_index": status.raft_applied_index,
            "errors": status.errors,
        }),
        Err(error) => json!({"server": it.server, "error": error.to_string()}),
    }
}
