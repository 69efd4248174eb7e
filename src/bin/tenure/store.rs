//! Which store, and whose.

use tenure::runtime::Runtime;
use tenure::{Client, Error, ErrorKind, Result, StoreUrl};

use crate::args::StoreArgs;
use crate::exit;

/// A store that answers.
pub(crate) struct Opened {
    pub(crate) url: StoreUrl,
    pub(crate) client: Client,
}

impl Opened {
    /// Another client of the same store; over a network with connections of its own.
    pub(crate) async fn another(&self) -> Result<Client> {
        if self.url.is_embedded() {
            return Ok(Client::new(self.client.store().clone()));
        }
        let store = self.url.open(&Runtime::default()).await?;
        Ok(Client::new(store))
    }
}

/// What the options and the environment name; or the exit code.
pub(crate) fn url(args: &StoreArgs) -> Result<StoreUrl, u8> {
    let Some(text) = &args.store else {
        eprintln!(
            "tenure: which store? Give --store URL or set TENURE_STORE, to one of\n  \
             etcd://host:port,host:port/prefix                     etcd v3\n  \
             etcds://host:port/prefix?ca=FILE&cert=FILE&key=FILE   etcd v3 over TLS\n  \
             etcd2://host:port,host:port/prefix                    etcd v2\n  \
             etcd2s://host:port/prefix?ca=FILE&cert=FILE&key=FILE  etcd v2 over TLS\n  \
             embedded:                                             in this process"
        );
        return Err(exit::USAGE);
    };
    let url = StoreUrl::parse(text).and_then(|url| with_files(url, args));
    let url = url.map_err(|error| refused(&error))?;
    let Some(user) = &args.user else {
        return Ok(url);
    };
    let password = password(args).map_err(|error| refused(&error))?;
    Ok(url.user(user, password))
}

fn with_files(url: StoreUrl, args: &StoreArgs) -> Result<StoreUrl> {
    let url = match &args.cacert {
        Some(ca) => url.ca_file(ca)?,
        None => url,
    };
    match (&args.cert, &args.key) {
        (Some(cert), Some(key)) => url.identity_files(cert, key),
        (Some(both), None) => url.identity_file(both),
        (None, _) => Ok(url),
    }
}

/// Opens it; or the exit code.
pub(crate) async fn open(url: StoreUrl) -> Result<Opened, u8> {
    let store = url.open(&Runtime::default()).await;
    let store = store.map_err(|error| refused(&error))?;
    let client = Client::new(store);
    Ok(Opened { url, client })
}

/// From the file, else from the environment: not from the command line, which everybody can see.
fn password(args: &StoreArgs) -> Result<String> {
    let invalid = |text: String| Error::new(ErrorKind::InvalidOptions, text);
    if let Some(path) = &args.password_file {
        let text = std::fs::read_to_string(path).map_err(|cause| {
            invalid(format!("{} cannot be read", path.display())).caused_by(cause)
        })?;
        return Ok(text.lines().next().unwrap_or_default().to_owned());
    }
    std::env::var("TENURE_PASSWORD").map_err(|_| {
        invalid("a --user needs a password: set TENURE_PASSWORD, or give --password-file".into())
    })
}

fn refused(error: &Error) -> u8 {
    eprintln!("tenure: {error}");
    exit::code(error)
}
