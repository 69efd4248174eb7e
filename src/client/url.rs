//! Which store a URL names: `scheme://user:password@host:port,host:port/prefix`.

use std::sync::Arc;

use crate::embedded::Embedded;
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::runtime::Runtime;
use crate::store::{Prefixed, Store};

/// The forms, for error texts.
const FORMS: &str =
    "a store URL is `embedded:`, `etcd2://host:port,host:port/prefix` or the same with `etcd2s://`";

/// Opens the store and asks it for a sign of life.
pub(super) async fn open(url: &str, runtime: &Runtime) -> Result<Arc<dyn Store>> {
    let place = parse(url)?;
    let store: Arc<dyn Store> = match &place.scheme {
        Scheme::Embedded => Arc::new(Embedded::builder().runtime(runtime.clone()).build()),
        Scheme::Etcd2 { tls } => open_etcd2(&place, *tls, runtime).await?,
    };
    Ok(match place.prefix {
        Some(prefix) => Arc::new(Prefixed::new(store, prefix)),
        None => store,
    })
}

#[cfg(feature = "etcd2")]
async fn open_etcd2(place: &Place, tls: bool, runtime: &Runtime) -> Result<Arc<dyn Store>> {
    let scheme = if tls { "https" } else { "http" };
    let endpoints: Vec<String> = place
        .hosts
        .iter()
        .map(|host| format!("{scheme}://{host}"))
        .collect();
    let mut builder = crate::etcd2::Etcd2::builder(endpoints.join(",")).runtime(runtime.clone());
    if let Some(User { name, password }) = &place.user {
        builder = builder.user(name, password);
    }
    let store = builder.build()?;
    store.probe().await?;
    Ok(Arc::new(store))
}

#[cfg(not(feature = "etcd2"))]
async fn open_etcd2(_: &Place, _: bool, _: &Runtime) -> Result<Arc<dyn Store>> {
    let text = "this program was built without the feature `etcd2`";
    Err(Error::new(ErrorKind::Unsupported, text).during("connect"))
}

/// What a URL says. Not `Debug`: it may hold a password.
#[cfg_attr(not(feature = "etcd2"), allow(dead_code))] // only drivers read all of it
struct Place {
    scheme: Scheme,
    user: Option<User>,
    hosts: Vec<String>,
    prefix: Option<Key>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Embedded,
    Etcd2 { tls: bool },
}

#[cfg_attr(not(feature = "etcd2"), allow(dead_code))]
struct User {
    name: String,
    password: String,
}

fn parse(url: &str) -> Result<Place> {
    let invalid = |reason: &str| {
        // Without the URL itself: it may hold a password.
        let text = format!("{reason}; {FORMS}");
        Err(Error::new(ErrorKind::InvalidOptions, text).during("connect"))
    };
    if url == "embedded:" {
        return Ok(Place {
            scheme: Scheme::Embedded,
            user: None,
            hosts: Vec::new(),
            prefix: None,
        });
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        return invalid("this is no store URL");
    };
    let scheme = match scheme {
        "etcd2" => Scheme::Etcd2 { tls: false },
        "etcd2s" => Scheme::Etcd2 { tls: true },
        _ => return invalid(&format!("no store has the scheme {scheme:?}")),
    };
    if rest.contains(['?', '#']) {
        return invalid("a store URL has no options yet");
    }
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    if !authority.contains('@') && path.contains('@') {
        // Else a part of the password would pass for a host, and be shown in an error.
        return invalid("a `/` in the user or password is written %2F");
    }
    let (user, hosts) = match authority.rsplit_once('@') {
        Some((user, hosts)) => (Some(parse_user(user)?), hosts),
        None => (None, authority),
    };
    let hosts: Vec<String> = hosts
        .split(',')
        .map(|host| host.trim().to_owned())
        .collect();
    if hosts.iter().any(String::is_empty) {
        return invalid("a host is empty");
    }
    let prefix = match path.trim_end_matches('/') {
        "" => None,
        prefix => Some(Key::new(prefix).map_err(|error| error.during("connect"))?),
    };
    Ok(Place {
        scheme,
        user,
        hosts,
        prefix,
    })
}

fn parse_user(text: &str) -> Result<User> {
    let Some((name, password)) = text.split_once(':') else {
        let text = format!("before the `@` stand `user:password`; {FORMS}");
        return Err(Error::new(ErrorKind::InvalidOptions, text).during("connect"));
    };
    Ok(User {
        name: unescape(name)?,
        password: unescape(password)?,
    })
}

/// Undoes `%40` and the like, which a password with an `@` needs.
fn unescape(text: &str) -> Result<String> {
    let bad = || {
        let text = "a `%` in the user or password begins an escape such as `%40`";
        Error::new(ErrorKind::InvalidOptions, text).during("connect")
    };
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).ok_or_else(bad)?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| bad())?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_scheme_user_hosts_and_prefix() {
        let place =
            parse("etcd2s://me:p%40ss%3A@h1:1,h2,[::1]:3/a/b/").unwrap_or_else(|_| panic!());
        assert_eq!(place.scheme, Scheme::Etcd2 { tls: true });
        assert_eq!(place.hosts, ["h1:1", "h2", "[::1]:3"]);
        assert_eq!(place.prefix, Some(Key::new("/a/b").unwrap()));
        let user = place.user.unwrap();
        assert_eq!(
            (user.name.as_str(), user.password.as_str()),
            ("me", "p@ss:")
        );
        let place = parse("etcd2://h/").unwrap_or_else(|_| panic!());
        assert_eq!((place.prefix, place.hosts), (None, vec!["h".to_owned()]));
    }

    #[test]
    fn other_forms_are_refused_with_the_right_ones_and_without_the_password() {
        for url in [
            "",
            "h:2379",
            "http://h",
            "etcd2://",
            "etcd2://a,,b",
            "etcd2://h?x=1",
            "embedded:x",
            "etcd2://user@h",
            "etcd2://u:secret%4@h",
            "etcd2://u:secret@h//x",
            "etcd2://u:sec/secret@h",
            "etcd2://u:12/secret@h",
        ] {
            let Err(error) = parse(url) else {
                panic!("{url} was taken")
            };
            let kinds = [ErrorKind::InvalidOptions, ErrorKind::InvalidKey];
            assert!(kinds.contains(&error.kind()), "{url}: {error}");
            assert!(
                !format!("{error} {error:?}").contains("secret"),
                "{url}: {error}"
            );
        }
    }
}
