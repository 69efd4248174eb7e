//! Which store a URL names.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::runtime::Runtime;
use crate::store::{Prefixed, Store};

/// The forms, for error texts.
const FORMS: &str =
    "a store URL is `embedded:`, `etcd2://host:port,host:port/prefix` or `etcd2s://…`";

/// Opens the store and asks it for a sign of life.
pub(super) async fn open(url: &str, runtime: &Runtime) -> Result<Arc<dyn Store>> {
    let _ = (url, runtime);
    Err(Error::new(ErrorKind::InvalidOptions, FORMS))
}
