//! HTTP over an injectable connector.
