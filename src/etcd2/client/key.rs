//! What may stand for a key in a call.

use super::Node;
use crate::error::Result;
use crate::key::Key;

/// Something that names a key: a [`Key`], a [`Node`] that was read, or text.
///
/// Text needs no leading `/`: `a/b` is `/a/b`, and the empty text is the root. A text that is no
/// key is reported when the request is awaited, before anything is sent.
pub trait IntoKey: sealed::Sealed {
    /// The key.
    ///
    /// # Errors
    /// `InvalidKey` says which rule the text breaks: see [`Key`].
    fn into_key(self) -> Result<Key>;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for &str {}
    impl Sealed for String {}
    impl Sealed for &String {}
    impl Sealed for crate::Key {}
    impl Sealed for &crate::Key {}
    impl Sealed for &super::Node {}
}

impl IntoKey for &str {
    fn into_key(self) -> Result<Key> {
        if self.starts_with('/') {
            Key::new(self)
        } else {
            Key::new(format!("/{self}"))
        }
    }
}

impl IntoKey for String {
    fn into_key(self) -> Result<Key> {
        self.as_str().into_key()
    }
}

impl IntoKey for &String {
    fn into_key(self) -> Result<Key> {
        self.as_str().into_key()
    }
}

impl IntoKey for Key {
    fn into_key(self) -> Result<Key> {
        Ok(self)
    }
}

impl IntoKey for &Key {
    fn into_key(self) -> Result<Key> {
        Ok(self.clone())
    }
}

impl IntoKey for &Node {
    fn into_key(self) -> Result<Key> {
        self.key.as_str().into_key()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_leading_slash_is_added_and_nothing_else_is_changed() {
        for (text, expected) in [("a/b", "/a/b"), ("/a", "/a"), ("", "/"), ("a b", "/a b")] {
            assert_eq!(text.into_key().unwrap().as_str(), expected);
            assert_eq!(text.to_owned().into_key().unwrap().as_str(), expected);
        }
        for text in ["a//b", "a/", "../a", "//a"] {
            assert!(text.into_key().is_err(), "{text}");
        }
    }
}
