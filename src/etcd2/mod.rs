//! The etcd v2 driver.
