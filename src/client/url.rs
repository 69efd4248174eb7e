//! Which store a URL names: `scheme://user:password@host:port,host:port/prefix?option=value`.

mod tls;

use std::fmt;
use std::sync::Arc;

use crate::embedded::Embedded;
use tls::{TlsOptions, unescape};

use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, Tag};
use crate::runtime::Runtime;
use crate::store::{Prefixed, Store};

/// The forms, for error texts.
const FORMS: &str = "a store URL is `embedded:`, `etcd://host:port,host:port/prefix` (etcd v3), \
                     `etcd2://host:port,host:port/prefix` (etcd v2) or, over TLS, \
                     `etcds://host:port/prefix?ca=FILE&cert=FILE&key=FILE` and `etcd2s://…`";

/// What a store URL says.
///
/// | URL | store |
/// |---|---|
/// | `embedded:` | a new [`Embedded`] store in this process |
/// | `etcd://host:port,host:port/prefix` | etcd's v3 API (feature `etcd3`); the port defaults to 2379; all keys lie below the prefix, if there is one, the driver's [marks](crate::etcd3::Builder::marks) too |
/// | `etcds://host:port/prefix?ca=FILE&cert=FILE&key=FILE` | the same over TLS: `ca` holds the authorities that are trusted instead of the system's, `cert` the client's certificate, `key` its private key (if not in `cert`), `server_name` the name that the servers' certificates must be for |
/// | `etcd2://host:port,host:port/prefix` | etcd's v2 keys API (feature `etcd2`); the port defaults to 2379; all keys lie below the prefix, if there is one |
/// | `etcd2s://host:port/prefix?ca=FILE&cert=FILE&key=FILE` | the same over TLS |
///
/// v2 and v3 of one etcd are two stores: what is written by one is not seen by the other.
///
/// `user:password@` before the first host gives credentials; what means something in a URL is
/// escaped in them (`%40`), and in the options' values.
#[derive(Clone)]
pub struct StoreUrl {
    scheme: Scheme,
    user: Option<User>,
    hosts: Vec<String>,
    prefix: Option<Key>,
    /// Where the v3 driver's marks lie, if they lie below the prefix.
    #[cfg_attr(not(feature = "etcd3"), allow(dead_code))] // only the driver reads it
    marks: Option<Key>,
    #[cfg_attr(not(any(feature = "etcd2", feature = "etcd3")), allow(dead_code))]
    // only drivers read it
    tls: TlsOptions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Embedded,
    Etcd2 { tls: bool },
    Etcd3 { tls: bool },
}

#[derive(Clone)]
#[cfg_attr(not(any(feature = "etcd2", feature = "etcd3")), allow(dead_code))]
struct User {
    name: String,
    password: String,
}

impl StoreUrl {
    /// Parses a URL.
    ///
    /// # Errors
    /// `InvalidOptions`, `InvalidKey`: it is of another form. The text does not show the URL, which
    /// may hold a password.
    pub fn parse(url: &str) -> Result<Self> {
        parse(url).map_err(|error| error.during("connect"))
    }

    /// Whether the store is one in this process.
    pub fn is_embedded(&self) -> bool {
        self.scheme == Scheme::Embedded
    }

    /// Below which all keys lie.
    pub fn prefix(&self) -> Option<&Key> {
        self.prefix.as_ref()
    }

    /// Uses these credentials instead of those in the URL.
    #[must_use]
    pub fn user(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        self.user = Some(User {
            name: name.into(),
            password: password.into(),
        });
        self
    }

    /// The options of the etcd v2 driver that this names; `None` if it names another store. The
    /// prefix is not among them.
    #[cfg(feature = "etcd2")]
    #[cfg_attr(docsrs, doc(cfg(feature = "etcd2")))]
    pub fn etcd2(&self) -> Option<crate::etcd2::Builder> {
        let Scheme::Etcd2 { tls } = self.scheme else {
            return None;
        };
        let mut builder = crate::etcd2::Etcd2::builder(self.endpoints(tls));
        if let Some(User { name, password }) = &self.user {
            builder = builder.user(name, password);
        }
        Some(if tls {
            builder.tls(self.tls.made())
        } else {
            builder
        })
    }

    /// The options of the etcd v3 driver that this names; `None` if it names another store. The
    /// prefix is among them only as the place of the driver's marks.
    #[cfg(feature = "etcd3")]
    #[cfg_attr(docsrs, doc(cfg(feature = "etcd3")))]
    pub fn etcd3(&self) -> Option<crate::etcd3::Builder> {
        let Scheme::Etcd3 { tls } = self.scheme else {
            return None;
        };
        let mut builder = crate::etcd3::Etcd3::builder(self.endpoints(tls));
        if let Some(User { name, password }) = &self.user {
            builder = builder.user(name, password);
        }
        if let Some(marks) = &self.marks {
            builder = builder.marks(marks.clone());
        }
        Some(if tls {
            builder.tls(self.tls.made())
        } else {
            builder
        })
    }

    #[cfg(any(feature = "etcd2", feature = "etcd3"))]
    fn endpoints(&self, tls: bool) -> String {
        let scheme = if tls { "https" } else { "http" };
        let endpoints = self.hosts.iter().map(|host| format!("{scheme}://{host}"));
        endpoints.collect::<Vec<_>>().join(",")
    }

    /// Opens the store and asks it for a sign of life.
    ///
    /// # Errors
    /// As [`Client::connect`](crate::Client::connect).
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing.
    pub async fn open(&self, runtime: &Runtime) -> Result<Arc<dyn Store>> {
        let store: Arc<dyn Store> = match self.scheme {
            Scheme::Embedded => return self.store(runtime),
            Scheme::Etcd2 { .. } => self.open_etcd2(runtime).await?,
            Scheme::Etcd3 { .. } => self.open_etcd3(runtime).await?,
        };
        Ok(self.prefixed(store))
    }

    /// The store, without asking it anything yet.
    ///
    /// # Errors
    /// As [`Client::open`](crate::Client::open).
    pub fn store(&self, runtime: &Runtime) -> Result<Arc<dyn Store>> {
        let store: Arc<dyn Store> = match self.scheme {
            Scheme::Embedded => Arc::new(Embedded::builder().runtime(runtime.clone()).build()),
            Scheme::Etcd2 { .. } => self.made_etcd2(runtime)?,
            Scheme::Etcd3 { .. } => self.made_etcd3(runtime)?,
        };
        Ok(self.prefixed(store))
    }

    fn prefixed(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        match &self.prefix {
            Some(prefix) => Arc::new(Prefixed::new(store, prefix.clone())),
            None => store,
        }
    }

    #[cfg(feature = "etcd2")]
    async fn open_etcd2(&self, runtime: &Runtime) -> Result<Arc<dyn Store>> {
        let store = self.made_etcd2(runtime)?;
        store.probe().await?;
        Ok(store)
    }

    #[cfg(feature = "etcd2")]
    fn made_etcd2(&self, runtime: &Runtime) -> Result<Arc<crate::etcd2::Etcd2>> {
        let builder = self.etcd2().map(|it| it.runtime(runtime.clone()));
        let Some(builder) = builder else {
            let text = "this is no URL of an etcd";
            return Err(Error::new(ErrorKind::InvalidOptions, text).during("connect"));
        };
        let store = builder.build().map_err(|it| it.during("connect"))?;
        Ok(Arc::new(store))
    }

    #[cfg(not(feature = "etcd2"))]
    async fn open_etcd2(&self, runtime: &Runtime) -> Result<Arc<dyn Store>> {
        self.made_etcd2(runtime)
    }

    #[cfg(not(feature = "etcd2"))]
    fn made_etcd2(&self, _: &Runtime) -> Result<Arc<dyn Store>> {
        let text = "this program was built without the feature `etcd2`";
        Err(Error::new(ErrorKind::Unsupported, text).during("connect"))
    }

    #[cfg(feature = "etcd3")]
    async fn open_etcd3(&self, runtime: &Runtime) -> Result<Arc<dyn Store>> {
        let store = self.made_etcd3(runtime)?;
        store.probe().await?;
        Ok(store)
    }

    #[cfg(feature = "etcd3")]
    fn made_etcd3(&self, runtime: &Runtime) -> Result<Arc<crate::etcd3::Etcd3>> {
        let builder = self.etcd3().map(|it| it.runtime(runtime.clone()));
        let Some(builder) = builder else {
            let text = "this is no URL of an etcd v3";
            return Err(Error::new(ErrorKind::InvalidOptions, text).during("connect"));
        };
        let store = builder.build().map_err(|it| it.during("connect"))?;
        Ok(Arc::new(store))
    }

    #[cfg(not(feature = "etcd3"))]
    async fn open_etcd3(&self, runtime: &Runtime) -> Result<Arc<dyn Store>> {
        self.made_etcd3(runtime)
    }

    #[cfg(not(feature = "etcd3"))]
    fn made_etcd3(&self, _: &Runtime) -> Result<Arc<dyn Store>> {
        let text = "this program was built without the feature `etcd3`";
        Err(Error::new(ErrorKind::Unsupported, text).during("connect"))
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreUrl")
            .field("scheme", &self.scheme)
            .field("user", &self.user.as_ref().map(|user| &user.name))
            .field("hosts", &self.hosts)
            .field("prefix", &self.prefix)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// Without the URL itself: it may hold a password.
fn invalid<T>(reason: &str) -> Result<T> {
    let text = format!("{reason}; {FORMS}");
    Err(Error::new(ErrorKind::InvalidOptions, text))
}

fn parse(url: &str) -> Result<StoreUrl> {
    if url == "embedded:" {
        return Ok(StoreUrl {
            scheme: Scheme::Embedded,
            user: None,
            hosts: Vec::new(),
            prefix: None,
            marks: None,
            tls: TlsOptions::default(),
        });
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        return invalid("this is no store URL");
    };
    let scheme = match scheme {
        "etcd2" => Scheme::Etcd2 { tls: false },
        "etcd2s" => Scheme::Etcd2 { tls: true },
        "etcd" => Scheme::Etcd3 { tls: false },
        "etcds" => Scheme::Etcd3 { tls: true },
        "http" | "https" => {
            let tls = if scheme == "https" { "s" } else { "" };
            return invalid(&format!(
                "{scheme}:// is a server's address, and not a store: write etcd{tls}:// for etcd v3"
            ));
        }
        _ => return invalid(&format!("no store has the scheme {scheme:?}")),
    };
    if rest.contains('#') {
        return invalid("a store URL has no fragment");
    }
    let (rest, options) = match rest.split_once('?') {
        Some((rest, options)) => (rest, Some(options)),
        None => (rest, None),
    };
    if options.is_some_and(|options| options.contains('@')) {
        return invalid("a `?` in the user or password is written %3F, an `@` in an option %40");
    }
    let tls = match options {
        None => TlsOptions::default(),
        Some(_) if scheme == (Scheme::Etcd2 { tls: false }) => {
            return invalid("the options are those of TLS: write etcd2s://");
        }
        Some(_) if scheme == (Scheme::Etcd3 { tls: false }) => {
            return invalid("the options are those of TLS: write etcds://");
        }
        Some(options) => TlsOptions::parse(options)?,
    };
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
    let hosts = hosts.split(',').map(|host| host.trim().to_owned());
    let hosts: Vec<String> = hosts.collect();
    if hosts.iter().any(String::is_empty) {
        return invalid("a host is empty");
    }
    let prefix = match path.trim_end_matches('/') {
        "" => None,
        prefix => Some(Key::new(prefix)?),
    };
    let marks = match (scheme, &prefix) {
        (Scheme::Etcd3 { .. }, Some(prefix)) => Some(marks_below(prefix)?),
        _ => None,
    };
    Ok(StoreUrl {
        scheme,
        user,
        hosts,
        prefix,
        marks,
        tls,
    })
}

fn parse_user(text: &str) -> Result<User> {
    let Some((name, password)) = text.split_once(':') else {
        return invalid("before the `@` stand `user:password`");
    };
    Ok(User {
        name: unescape(name)?,
        password: unescape(password)?,
    })
}

/// Where the v3 driver's marks lie for whoever uses this prefix: who may use that only can have them
/// there only.
fn marks_below(prefix: &Key) -> Result<Key> {
    let marks = prefix.join("_cancelled");
    let mark = 1 + Tag::TEXT_LEN;
    match marks {
        Ok(marks) if marks.as_str().len() + mark <= Key::MAX_LEN => Ok(marks),
        _ => {
            let (len, most) = (prefix.as_str().len(), Key::MAX_LEN);
            let room = most - mark - "/_cancelled".len();
            let text = format!(
                "the prefix has {len} bytes, and a key at most {most}: with more than {room} there is no \
                 room below it for the marks of what is taken back, and little for names; use a shorter one"
            );
            Err(Error::new(ErrorKind::InvalidKey, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_url_names_scheme_user_hosts_and_prefix() {
        let place = parse("etcd2s://me:p%40ss%3A@h1:1,h2,[::1]:3/a/b/").unwrap();
        assert_eq!(place.scheme, Scheme::Etcd2 { tls: true });
        assert_eq!(place.hosts, ["h1:1", "h2", "[::1]:3"]);
        assert_eq!(place.prefix, Some(Key::new("/a/b").unwrap()));
        let user = place.user.unwrap();
        assert_eq!(
            (user.name.as_str(), user.password.as_str()),
            ("me", "p@ss:")
        );
        let place = parse("etcds://h1,h2:2/p").unwrap();
        assert_eq!(place.scheme, Scheme::Etcd3 { tls: true });
        assert_eq!(place.hosts, ["h1", "h2:2"]);
        assert_eq!(
            parse("etcd://h").unwrap().scheme,
            Scheme::Etcd3 { tls: false }
        );
        let place = parse("etcd2://h/").unwrap();
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
            "etcd2://h?ca=x",
            "etcd2s://h?x=1",
            "etcd://h?ca=x",
            "etcds://h?x=1",
            "etcd3://h",
            "etcds://u:secret@h//x",
            "etcd2s://h?ca",
            "etcd2s://h?ca=a&ca=b",
            "etcd2s://h?key=k",
            "etcd2s://u:sec?secret@h",
            "etcd2://h#x",
            "embedded:x",
            "etcd2://user@h",
            "etcd2://u:secret%4@h",
            "etcd2://u:secret%+4x@h",
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

    #[test]
    fn the_options_of_tls_are_taken_and_nothing_shows_the_password() {
        let url = "etcd2s://me:secret@h/p?ca=/etc/ca%26x.pem&cert=c.pem&key=k.pem&server_name=db";
        let url = parse(url).unwrap();
        let path = |it: &Option<PathBuf>| it.as_ref().unwrap().display().to_string();
        assert_eq!(path(&url.tls.ca), "/etc/ca&x.pem");
        assert_eq!(path(&url.tls.cert), "c.pem");
        assert_eq!(path(&url.tls.key), "k.pem");
        assert_eq!(url.tls.server_name.as_deref(), Some("db"));
        assert!(!format!("{url:?}").contains("secret"), "{url:?}");
        let other = url.user("you", "hidden");
        assert!(!format!("{other:?}").contains("hidden"), "{other:?}");
    }

    #[test]
    fn a_servers_address_is_answered_with_the_url_to_write() {
        for (url, right) in [
            ("http://h:1", "write etcd://"),
            ("https://h", "write etcds://"),
        ] {
            let text = parse(url).err().map(|it| it.to_string()).unwrap();
            assert!(text.contains(right), "{text}");
        }
    }

    #[cfg(feature = "etcd3")]
    #[test]
    fn a_url_of_v3_makes_a_driver_of_v3_with_its_marks_below_the_prefix() {
        let url = StoreUrl::parse("etcd://me:secret@h1,h2:2/team").unwrap();
        let store = url.etcd3().unwrap().build().unwrap();
        assert_eq!(store.name(), "etcd3 http://h1:2379,http://h2:2");
        let shown = format!("{:?}{store:?}", url.etcd3());
        assert!(
            shown.contains("/team/_cancelled") && !shown.contains("secret"),
            "{shown}"
        );
        assert!(StoreUrl::parse("etcd2://h").unwrap().etcd3().is_none());
        assert!(StoreUrl::parse("etcds://h").unwrap().etcd3().is_some());
    }

    #[test]
    fn a_prefix_that_leaves_no_room_for_the_marks_is_refused_and_not_done_without_it() {
        let of = |length: usize| format!("etcd://h/{}", "p".repeat(length - 1));
        let room = Key::MAX_LEN - "/_cancelled/".len() - Tag::TEXT_LEN;
        let longest = StoreUrl::parse(&of(room)).unwrap();
        let marks = longest.marks.unwrap();
        assert!(marks.is_within(&longest.prefix.unwrap()));
        let tag = "f".repeat(Tag::TEXT_LEN);
        assert_eq!(marks.join(&tag).unwrap().as_str().len(), Key::MAX_LEN);
        for length in [room + 1, Key::MAX_LEN - 5, Key::MAX_LEN] {
            let error = StoreUrl::parse(&of(length)).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::InvalidKey, "{error}");
            let text = error.to_string();
            assert!(text.contains("use a shorter one"), "{text}");
            assert!(text.contains(&room.to_string()), "{text}");
        }
        // On etcd v2 there are none.
        let of_v2 = of(room + 1).replace("etcd:", "etcd2:");
        assert!(StoreUrl::parse(&of_v2).unwrap().marks.is_none());
    }
}
