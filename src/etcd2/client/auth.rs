//! Users, roles, and whether they are asked for: etcd v2's own access control.
//!
//! While it is on, requests without a user are the role `guest`, which etcd makes with access to
//! everything; a pattern is a key, or a prefix of keys that ends in `*`.

use std::collections::BTreeSet;

use futures_util::future::{BoxFuture, FutureExt as _};
use percent_encoding::utf8_percent_encode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Client;
use super::raw::{Method, RawAnswer};
use crate::error::{Error, ErrorKind, Result};
use crate::etcd2::request::UNRESERVED;

/// A user, without its password: etcd does not tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct User {
    /// Its name.
    pub name: String,
    /// The names of its roles.
    pub roles: BTreeSet<String>,
}

/// A role: a set of permissions with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Role {
    /// Its name.
    pub name: String,
    /// What it allows.
    pub permissions: Permissions,
}

/// Which keys may be read and written: `/config/colour`, or `/config/*` for all below `/config`.
///
/// A recursive read of `/config` is allowed by `/config*`, not by `/config/*`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Permissions {
    /// Patterns of keys that may be read.
    pub read: BTreeSet<String>,
    /// Patterns of keys that may be written.
    pub write: BTreeSet<String>,
}

/// Administers users and roles: see [`Client::auth`].
///
/// Once access control is on all of this needs a user with the role `root`. Each method is 1
/// request and 1 write unless it says more.
///
/// # Errors
/// `InvalidName`, `InvalidOptions`: nothing was sent. `NotFound`, `AlreadyExists`,
/// `ConditionFailed`, `Unauthorized`: nothing was changed. `Ambiguous`: no answer; it may have
/// taken effect.
///
/// # Cancel safety
/// Dropping the future of a change leaves its outcome unknown.
#[derive(Clone, Debug)]
pub struct Auth {
    client: Client,
}

/// A user as etcd writes it: in some answers with names of roles, in others with whole roles.
#[derive(Deserialize)]
struct RawUser {
    user: String,
    roles: Option<Vec<RoleOrName>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RoleOrName {
    Name(String),
    Role { role: String },
}

#[derive(Deserialize)]
struct RawRole {
    role: String,
    permissions: RawPermissions,
}

#[derive(Deserialize)]
struct RawPermissions {
    kv: RawAccess,
}

#[derive(Deserialize)]
struct RawAccess {
    read: Option<BTreeSet<String>>,
    write: Option<BTreeSet<String>>,
}

#[derive(Deserialize)]
struct Users {
    users: Option<Vec<RawUser>>,
}

#[derive(Deserialize)]
struct Roles {
    roles: Option<Vec<RawRole>>,
}

#[derive(Deserialize)]
struct Enabled {
    enabled: bool,
}

impl Client {
    /// Administers users and roles.
    pub fn auth(&self) -> Auth {
        Auth {
            client: self.clone(),
        }
    }
}

impl Permissions {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reading the keys of this pattern too.
    #[must_use]
    pub fn read(mut self, pattern: impl Into<String>) -> Self {
        self.read.insert(pattern.into());
        self
    }

    /// Writing the keys of this pattern too.
    #[must_use]
    pub fn write(mut self, pattern: impl Into<String>) -> Self {
        self.write.insert(pattern.into());
        self
    }

    /// Reading and writing the keys of this pattern too.
    #[must_use]
    pub fn read_write(self, pattern: impl Into<String>) -> Self {
        let pattern = pattern.into();
        self.read(pattern.clone()).write(pattern)
    }
}

impl Auth {
    /// Whether users and roles are asked for. Open to everybody; no write.
    ///
    /// # Errors
    /// As [`Client::versions`].
    pub async fn is_enabled(&self) -> Result<bool> {
        let answer = self
            .call("auth enable", Method::Get, "enable", None)
            .await?;
        Ok(answer.json::<Enabled>()?.enabled)
    }

    /// Switches access control on; false if it was on. From then on this client is a guest unless
    /// it was made with a user: restrict the role `guest`.
    ///
    /// # Errors
    /// `ConditionFailed`: there is no user `root` yet. See [above](Self).
    pub async fn enable(&self) -> Result<bool> {
        self.switch("auth enable", Method::Put, "already enabled")
            .await
    }

    /// Switches access control off; false if it was off.
    ///
    /// # Errors
    /// See [above](Self).
    pub async fn disable(&self) -> Result<bool> {
        self.switch("auth disable", Method::Delete, "already disabled")
            .await
    }

    /// All users, by name. No write.
    ///
    /// # Errors
    /// See [above](Self).
    pub async fn users(&self) -> Result<Vec<User>> {
        let answer = self.call("users", Method::Get, "users", None).await?;
        let users = answer.json::<Users>()?.users.unwrap_or_default();
        Ok(users.into_iter().map(User::from).collect())
    }

    /// One user. No write. etcd answers `NotFound` also for a user one of whose roles is gone.
    ///
    /// # Errors
    /// See [above](Self).
    pub async fn user(&self, name: &str) -> Result<User> {
        let path = user_path(name)?;
        let answer = self.call("user", Method::Get, &path, None).await?;
        Ok(answer.json::<RawUser>()?.into())
    }

    /// Makes a user with these roles. A read, a write, and with roles another write.
    ///
    /// etcd has no "only if absent" here: it takes the creation of a user who is there as a new
    /// password. So this looks first, and if another creates the user at that very moment it says
    /// so, the password being this one's by then.
    ///
    /// # Errors
    /// `AlreadyExists`; `InvalidOptions` for an empty password. See [above](Self).
    pub async fn create_user(
        &self,
        name: &str,
        password: &str,
        roles: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<User> {
        const WHAT: &str = "create user";
        let roles: BTreeSet<String> = roles.into_iter().map(Into::into).collect();
        let path = user_path(name)?;
        let exists = |text: String| {
            let error = Error::new(ErrorKind::AlreadyExists, text);
            Err(error.during(WHAT))
        };
        match self.call(WHAT, Method::Get, &path, None).await {
            Ok(_) => return exists(format!("there is a user {name:?}")),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let body = json!({"user": name, "password": checked(password)?});
        let made = self.call(WHAT, Method::Put, &path, Some(body)).await?;
        if made.status != 201 {
            let text = "was created by somebody else at the same moment; its password is the one given here";
            return exists(format!("user {name:?} {text}"));
        }
        let mut user = User::from(made.json::<RawUser>()?);
        if !roles.is_subset(&user.roles) {
            let missing: Vec<String> = roles.difference(&user.roles).cloned().collect();
            user = self.grant_roles(name, missing).await?;
        }
        Ok(user)
    }

    /// Gives a user another password.
    ///
    /// # Errors
    /// `NotFound` (after a look: etcd would make the user); `InvalidOptions` for an empty
    /// password. See [above](Self).
    pub async fn set_password(&self, name: &str, password: &str) -> Result<User> {
        const WHAT: &str = "set password";
        let path = user_path(name)?;
        let body = json!({"user": name, "password": checked(password)?});
        self.call(WHAT, Method::Get, &path, None).await?;
        let answer = self.call(WHAT, Method::Put, &path, Some(body)).await?;
        Ok(answer.json::<RawUser>()?.into())
    }

    /// Gives a user more roles. They need not exist: then the user cannot do anything until they
    /// do.
    ///
    /// # Errors
    /// `ConditionFailed`: it has one of them already. See [above](Self).
    pub async fn grant_roles(
        &self,
        name: &str,
        roles: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<User> {
        self.change_user("grant roles", name, "grant", roles).await
    }

    /// Takes roles from a user.
    ///
    /// # Errors
    /// `ConditionFailed`: it has not all of them. See [above](Self).
    pub async fn revoke_roles(
        &self,
        name: &str,
        roles: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<User> {
        self.change_user("revoke roles", name, "revoke", roles)
            .await
    }

    /// Removes a user.
    ///
    /// # Errors
    /// `NotFound`. See [above](Self).
    pub async fn delete_user(&self, name: &str) -> Result<()> {
        let path = user_path(name)?;
        self.call("delete user", Method::Delete, &path, None)
            .await?;
        Ok(())
    }

    /// All roles, by name; `root` is always there. No write.
    ///
    /// # Errors
    /// See [above](Self).
    pub async fn roles(&self) -> Result<Vec<Role>> {
        let answer = self.call("roles", Method::Get, "roles", None).await?;
        let roles = answer.json::<Roles>()?.roles.unwrap_or_default();
        Ok(roles.into_iter().map(Role::from).collect())
    }

    /// One role. No write.
    ///
    /// # Errors
    /// See [above](Self).
    pub async fn role(&self, name: &str) -> Result<Role> {
        let path = role_path(name)?;
        let answer = self.call("role", Method::Get, &path, None).await?;
        Ok(answer.json::<RawRole>()?.into())
    }

    /// Makes a role.
    ///
    /// # Errors
    /// `AlreadyExists`. See [above](Self).
    pub async fn create_role(&self, name: &str, permissions: &Permissions) -> Result<Role> {
        self.put_role("create role", name, "permissions", permissions)
            .await
    }

    /// Lets a role do more.
    ///
    /// # Errors
    /// `ConditionFailed`: it may already do some of it. See [above](Self).
    pub async fn grant(&self, role: &str, permissions: &Permissions) -> Result<Role> {
        self.put_role("grant", role, "grant", permissions).await
    }

    /// Lets a role do less.
    ///
    /// # Errors
    /// `ConditionFailed`: it may not do some of it anyway. See [above](Self).
    pub async fn revoke(&self, role: &str, permissions: &Permissions) -> Result<Role> {
        self.put_role("revoke", role, "revoke", permissions).await
    }

    /// Removes a role. Users keep its name.
    ///
    /// # Errors
    /// `NotFound`; `Forbidden` for `root`. See [above](Self).
    pub async fn delete_role(&self, name: &str) -> Result<()> {
        let path = role_path(name)?;
        self.call("delete role", Method::Delete, &path, None)
            .await?;
        Ok(())
    }

    async fn switch(&self, what: &'static str, method: Method, idle: &str) -> Result<bool> {
        match self.call(what, method, "enable", None).await {
            Ok(_) => Ok(true),
            Err(error) if error.detail().contains(idle) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn change_user(
        &self,
        what: &'static str,
        name: &str,
        change: &str,
        roles: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<User> {
        let roles: Vec<String> = roles.into_iter().map(Into::into).collect();
        let body = json!({"user": name, change: roles});
        let path = user_path(name)?;
        let answer = self.call(what, Method::Put, &path, Some(body)).await?;
        Ok(answer.json::<RawUser>()?.into())
    }

    async fn put_role(
        &self,
        what: &'static str,
        name: &str,
        change: &str,
        permissions: &Permissions,
    ) -> Result<Role> {
        let body = json!({"role": name, change: {"kv": permissions}});
        let path = role_path(name)?;
        let answer = self.call(what, Method::Put, &path, Some(body)).await?;
        Ok(answer.json::<RawRole>()?.into())
    }

    fn call<'a>(
        &'a self,
        what: &'static str,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> BoxFuture<'a, Result<RawAnswer>> {
        let path = format!("{}/auth/{path}", self.client.version_prefix());
        let call = self.client.api_execute_json(method, path, body);
        // Named here before the call names itself.
        async move { call.run().await.map_err(|it| it.during(what)) }.boxed()
    }
}

fn user_path(name: &str) -> Result<String> {
    path("users", "user", name)
}

fn role_path(name: &str) -> Result<String> {
    path("roles", "role", name)
}

fn path(kind: &str, what: &str, name: &str) -> Result<String> {
    let is_bad = matches!(name, "" | "." | "..") || name.contains('/');
    if is_bad || name.chars().any(char::is_control) {
        let text = format!("a {what} cannot be called {name:?}");
        return Err(Error::new(ErrorKind::InvalidName, text).during(kind_of(kind)));
    }
    Ok(format!("{kind}/{}", utf8_percent_encode(name, UNRESERVED)))
}

fn kind_of(kind: &str) -> &'static str {
    if kind == "users" { "user" } else { "role" }
}

/// etcd refuses an empty one only for a new user.
fn checked(password: &str) -> Result<&str> {
    if password.is_empty() {
        let text = "a password cannot be empty";
        return Err(Error::new(ErrorKind::InvalidOptions, text));
    }
    Ok(password)
}

impl From<RawUser> for User {
    fn from(raw: RawUser) -> Self {
        let roles = raw.roles.unwrap_or_default().into_iter();
        let roles = roles.map(|it| match it {
            RoleOrName::Name(name) | RoleOrName::Role { role: name } => name,
        });
        Self {
            name: raw.user,
            roles: roles.collect(),
        }
    }
}

impl From<RawRole> for Role {
    fn from(raw: RawRole) -> Self {
        let RawAccess { read, write } = raw.permissions.kv;
        Self {
            name: raw.role,
            permissions: Permissions {
                read: read.unwrap_or_default(),
                write: write.unwrap_or_default(),
            },
        }
    }
}
