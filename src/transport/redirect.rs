//! Where a redirect leads, and why it is not followed.
//!
//! A redirect says that the request was not carried out, so asking again where it points is no
//! repetition. It keeps the method and the body, whatever its number: a 301 that turned an append
//! into a read would lose it without a word.

use http::uri::{Authority, Scheme, Uri};
use http::{HeaderMap, StatusCode, header};

use super::endpoint::Endpoint;

/// How many redirects of one request are followed.
const MOST: usize = 5;

/// The way of one request from redirect to redirect.
#[derive(Debug)]
pub(super) struct Trail {
    allowed: bool,
    seen: Vec<(Endpoint, String)>,
}

impl Trail {
    pub(super) fn new(allowed: bool) -> Self {
        Self {
            allowed,
            seen: Vec::new(),
        }
    }

    /// Where the request goes next, with its path and query; or why it goes nowhere.
    pub(super) fn next(
        &mut self,
        from: (&Endpoint, &str),
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Result<(Endpoint, String), String> {
        let (endpoint, target) = from;
        let number = status.as_u16();
        let said = headers.get(header::LOCATION);
        let Some(said) = said.and_then(|it| it.to_str().ok()) else {
            return Err(format!("HTTP {number} without a readable Location"));
        };
        let shown: String = said.chars().take(200).collect();
        let refuse = |why: &str| Err(format!("HTTP {number} points to {shown:?}: {why}"));
        if !self.allowed {
            return refuse("redirects are not allowed here");
        }
        let Some(next) = resolve(endpoint, target, said) else {
            return refuse("that is no http(s) URL");
        };
        if next.0.scheme != endpoint.scheme {
            return refuse("that is another scheme");
        }
        self.seen.push((endpoint.clone(), target.to_owned()));
        if self.seen.contains(&next) {
            return refuse("that is a loop");
        }
        if self.seen.len() > MOST {
            return refuse("it is the sixth redirect of one request");
        }
        Ok(next)
    }
}

/// Whether this is an answer that names another place for the same request.
pub(super) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 307 | 308)
}

/// What `said` means at `target` of `endpoint` (RFC 3986 §5.2).
fn resolve(endpoint: &Endpoint, target: &str, said: &str) -> Option<(Endpoint, String)> {
    let said = said.split('#').next().unwrap_or_default();
    let base = target.split('?').next().unwrap_or_default();
    if let Some((scheme, _)) = said.split_once("://")
        && scheme
            .chars()
            .all(|it| it.is_ascii_alphanumeric() || "+-.".contains(it))
    {
        return place(said, None);
    }
    if said.starts_with("//") {
        return place(&format!("{}:{said}", endpoint.scheme), None);
    }
    let (path, query) = match said.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (said, None),
    };
    let (path, query) = match path {
        "" if query.is_none() => return Some((endpoint.clone(), target.to_owned())),
        "" => (base.to_owned(), query),
        path if path.starts_with('/') => (path.to_owned(), query),
        path => {
            let dir = base
                .rfind('/')
                .map_or("", |at| base.get(..at).unwrap_or(""));
            (format!("{dir}/{path}"), query)
        }
    };
    let query = query.map_or(String::new(), |it| format!("?{it}"));
    let target = format!("{}{query}", clean(&path));
    place(&format!("{}{target}", endpoint.origin), Some(endpoint))
}

/// The server and the path and query of an absolute URL.
fn place(url: &str, known: Option<&Endpoint>) -> Option<(Endpoint, String)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme()?.clone();
    let default = if scheme == Scheme::HTTPS {
        443
    } else if scheme == Scheme::HTTP {
        80
    } else {
        return None;
    };
    let authority: &Authority = uri.authority()?;
    // Somebody else's credentials are none of ours.
    if authority.as_str().contains('@') || authority.host().is_empty() {
        return None;
    }
    let endpoint = match known {
        Some(endpoint) => endpoint.clone(),
        None => {
            let port = authority.port_u16().unwrap_or(default);
            Endpoint::of(scheme, authority.host(), port)?
        }
    };
    let path = clean(uri.path());
    let query = uri.query().map_or(String::new(), |it| format!("?{it}"));
    Some((endpoint, format!("{path}{query}")))
}

/// Removes `.` and `..` segments.
fn clean(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            segment => kept.push(segment),
        }
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn endpoint(text: &str) -> Endpoint {
        Endpoint::parse(text, "").unwrap().0
    }

    fn follow(trail: &mut Trail, from: (&Endpoint, &str), said: &str) -> Result<String, String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::LOCATION, HeaderValue::from_str(said).unwrap());
        let next = trail.next(from, StatusCode::MOVED_PERMANENTLY, &headers);
        next.map(|(endpoint, target)| format!("{}{target}", endpoint.origin))
    }

    #[test]
    fn a_location_is_resolved_against_the_request() {
        let from = endpoint("http://h:1");
        for (said, expected) in [
            (
                "http://Other:2/v2/keys/a?x=1",
                "http://other:2/v2/keys/a?x=1",
            ),
            ("http://other/a", "http://other:80/a"),
            ("//other:3/a?b", "http://other:3/a?b"),
            ("/v2/keys/a?prevValue=b", "http://h:1/v2/keys/a?prevValue=b"),
            ("c?d=e", "http://h:1/v2/keys/c?d=e"),
            ("../x", "http://h:1/v2/x"),
            ("./x/.", "http://h:1/v2/keys/x/"),
            ("/../../up", "http://h:1/up"),
            ("?q=1", "http://h:1/v2/keys/a?q=1"),
            ("/p#fragment", "http://h:1/p"),
            ("http://[::1]:4/p", "http://[::1]:4/p"),
        ] {
            let next = follow(&mut Trail::new(true), (&from, "/v2/keys/a?old=1"), said);
            assert_eq!(next.as_deref(), Ok(expected), "{said}");
        }
    }

    #[test]
    fn what_cannot_be_followed_is_told_with_its_target() {
        let from = endpoint("https://h:1");
        for (said, why) in [
            ("http://h:1/a", "another scheme"),
            ("ftp://h/a", "no http(s) URL"),
            ("https://", "no http(s) URL"),
            ("https://me:secret@h/a", "no http(s) URL"),
            ("https://h:1/v2/keys/a", "loop"),
            ("", "loop"),
        ] {
            let next = follow(&mut Trail::new(true), (&from, "/v2/keys/a"), said);
            let text = next.unwrap_err();
            assert!(text.contains(why), "{said}: {text}");
            assert!(text.contains(said), "{said}: {text}");
        }
        let next = Trail::new(true).next((&from, "/a"), StatusCode::FOUND, &HeaderMap::new());
        assert!(next.unwrap_err().contains("without a readable Location"));
        let next = follow(&mut Trail::new(false), (&from, "/a"), "/b");
        assert!(next.unwrap_err().contains("not allowed"));
    }

    #[test]
    fn five_redirects_are_followed_and_no_sixth() {
        let from = endpoint("http://h:1");
        let mut trail = Trail::new(true);
        for number in 0..5 {
            let (at, to) = (format!("/{number}"), format!("/{}", number + 1));
            assert!(follow(&mut trail, (&from, &at), &to).is_ok(), "{number}");
        }
        assert!(
            follow(&mut trail, (&from, "/5"), "/6")
                .unwrap_err()
                .contains("sixth")
        );
    }
}
