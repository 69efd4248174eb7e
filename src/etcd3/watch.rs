//! Watches.
use std::sync::Arc;

use futures_util::{StreamExt, stream};

use super::driver::Driver;
use crate::error::{Error, ErrorKind};
use crate::store::{Updates, Watch};

#[derive(Debug, Default)]
pub(super) struct Hub;

pub(super) fn updates(_: Arc<Driver>, _: Watch) -> Updates {
    stream::once(async { Err(Error::new(ErrorKind::Unsupported, "not yet")) }).boxed()
}
