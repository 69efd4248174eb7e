//! Users, roles and their limits, on a real etcd.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use common::etcd::Etcd;
use tenure::etcd2::Client;
use tenure::etcd2::client::{Method, Permissions};
use tenure::{Error, ErrorKind};

fn as_user(etcd: &Etcd, user: &str, password: &str) -> Client {
    let options = Client::builder(etcd.url()).user(user, password);
    options.build_client().unwrap()
}

/// An etcd with access control on, where guests may do nothing and `app` works below `/app`.
async fn closed() -> (Etcd, Client) {
    let etcd = Etcd::start();
    let auth = Client::new(etcd.url()).unwrap().auth();
    auth.create_user("root", "secret", ["root"]).await.unwrap();
    assert!(auth.enable().await.unwrap());
    let root = as_user(&etcd, "root", "secret");
    let auth = root.auth();
    let all = Permissions::new().read_write("/*");
    auth.revoke("guest", &all).await.unwrap();
    let own = Permissions::new().read_write("/app/*");
    auth.create_role("app", &own).await.unwrap();
    auth.create_user("app", "pass", ["app"]).await.unwrap();
    (etcd, root)
}

async fn get(client: &Client, key: &str) -> Result<u16, Error> {
    let path = format!("/v2/keys{key}");
    let answer = client.api_execute(Method::Get, path, []).await?;
    Ok(answer.status)
}

async fn put(client: &Client, key: &str) -> Result<u16, Error> {
    let path = format!("/v2/keys{key}");
    let answer = client
        .api_execute(Method::Put, path, [("value", "v")])
        .await?;
    Ok(answer.status)
}

fn roles(names: &[&str]) -> std::collections::BTreeSet<String> {
    names.iter().map(|it| (*it).to_owned()).collect()
}

#[tokio::test]
async fn users_and_roles_are_made_changed_and_removed() {
    let etcd = Etcd::start();
    let auth = Client::new(etcd.url()).unwrap().auth();
    assert!(auth.users().await.unwrap().is_empty());
    assert_eq!(auth.roles().await.unwrap()[0].name, "root");
    let reads = Permissions::new().read("/a/*");
    let role = auth.create_role("r", &reads).await.unwrap();
    assert_eq!(role.permissions, reads);
    let role = auth
        .grant("r", &Permissions::new().write("/b"))
        .await
        .unwrap();
    assert_eq!(role.permissions, reads.clone().write("/b"));
    let role = auth
        .revoke("r", &Permissions::new().write("/b"))
        .await
        .unwrap();
    assert_eq!(role.permissions, reads);
    assert_eq!(auth.role("r").await.unwrap(), role);

    let user = auth
        .create_user("joe b", "pw", ["r", "later"])
        .await
        .unwrap();
    assert_eq!(
        (&user.name[..], user.roles),
        ("joe b", roles(&["r", "later"]))
    );
    let user = auth.revoke_roles("joe b", ["later"]).await.unwrap();
    assert_eq!(user.roles, roles(&["r"]));
    let user = auth.grant_roles("joe b", ["root"]).await.unwrap();
    assert_eq!(user.roles, roles(&["r", "root"]));
    assert_eq!(auth.user("joe b").await.unwrap(), user);
    assert_eq!(auth.users().await.unwrap(), [user]);
    auth.set_password("joe b", "other").await.unwrap();

    auth.delete_user("joe b").await.unwrap();
    auth.delete_role("r").await.unwrap();
    for error in [
        auth.user("joe b").await.unwrap_err(),
        auth.delete_user("joe b").await.unwrap_err(),
        auth.set_password("joe b", "x").await.unwrap_err(),
        auth.role("r").await.unwrap_err(),
        auth.delete_role("r").await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }
    assert!(
        auth.users().await.unwrap().is_empty(),
        "a new password makes no user"
    );
}

#[tokio::test]
async fn what_etcd_would_overwrite_or_take_twice_is_refused() {
    let etcd = Etcd::start();
    let auth = Client::new(etcd.url()).unwrap().auth();
    let reads = Permissions::new().read("/a");
    auth.create_role("r", &reads).await.unwrap();
    auth.create_user("u", "pw", ["r"]).await.unwrap();
    let none: [&str; 0] = [];
    for (error, kind) in [
        (
            auth.create_user("u", "new", none).await.unwrap_err(),
            ErrorKind::AlreadyExists,
        ),
        (
            auth.create_role("r", &reads).await.unwrap_err(),
            ErrorKind::AlreadyExists,
        ),
        (
            auth.grant("r", &reads).await.unwrap_err(),
            ErrorKind::ConditionFailed,
        ),
        (
            auth.grant_roles("u", ["r"]).await.unwrap_err(),
            ErrorKind::ConditionFailed,
        ),
        (
            auth.create_user("v", "", none).await.unwrap_err(),
            ErrorKind::InvalidOptions,
        ),
        (
            auth.create_user("a/b", "pw", none).await.unwrap_err(),
            ErrorKind::InvalidName,
        ),
        (auth.user("..").await.unwrap_err(), ErrorKind::InvalidName),
        (
            auth.delete_role("root").await.unwrap_err(),
            ErrorKind::Forbidden,
        ),
        (auth.enable().await.unwrap_err(), ErrorKind::ConditionFailed),
    ] {
        assert_eq!(error.kind(), kind, "{error}");
    }
    // The password of the user who was there is still the first one.
    auth.create_user("root", "secret", ["root"]).await.unwrap();
    auth.enable().await.unwrap();
    assert_eq!(
        put(&as_user(&etcd, "root", "secret"), "/a").await.unwrap(),
        201
    );
    get(&as_user(&etcd, "u", "pw"), "/a").await.unwrap();
}

#[tokio::test]
async fn access_control_is_switched_on_and_off_and_says_which() {
    let etcd = Etcd::start();
    let open = Client::new(etcd.url()).unwrap();
    let auth = open.auth();
    assert!(!auth.is_enabled().await.unwrap());
    assert!(!auth.disable().await.unwrap(), "it was off");
    auth.create_user("root", "secret", ["root"]).await.unwrap();
    assert!(auth.enable().await.unwrap());
    assert!(auth.is_enabled().await.unwrap());
    let root = as_user(&etcd, "root", "secret").auth();
    assert!(!root.enable().await.unwrap(), "it was on");
    let error = auth.disable().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    assert!(root.disable().await.unwrap());
}

#[tokio::test]
async fn guest_wrong_password_and_role_limits_are_told_apart() {
    let (etcd, root) = closed().await;
    assert_eq!(put(&root, "/elsewhere").await.unwrap(), 201);

    let error = put(&Client::new(etcd.url()).unwrap(), "/app/k")
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::Unauthorized, Some(110))
    );
    assert!(error.to_string().contains("guests may not"), "{error}");

    let wrong = as_user(&etcd, "app", "wrong");
    for error in [
        put(&wrong, "/app/k").await.unwrap_err(),
        get(&wrong, "/app/k").await.unwrap_err(),
    ] {
        assert_eq!(
            (error.kind(), error.code()),
            (ErrorKind::Unauthorized, Some(110))
        );
        assert!(error.to_string().contains("wrong"), "{error}");
        assert!(error.to_string().contains("\"app\""), "{error}");
    }

    let app = as_user(&etcd, "app", "pass");
    assert_eq!(put(&app, "/app/k").await.unwrap(), 201);
    assert_eq!(get(&app, "/app/k").await.unwrap(), 200);
    for error in [
        put(&app, "/elsewhere").await.unwrap_err(),
        get(&app, "/elsewhere").await.unwrap_err(),
    ] {
        assert_eq!(
            (error.kind(), error.code()),
            (ErrorKind::Forbidden, Some(110))
        );
        assert!(error.to_string().contains("none of its roles"), "{error}");
    }
    let error = app.auth().users().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");

    // Once its password is another, what was known of it is worth nothing.
    root.auth().set_password("app", "changed").await.unwrap();
    let error = put(&app, "/app/k").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    assert_eq!(
        put(&as_user(&etcd, "app", "changed"), "/app/k")
            .await
            .unwrap(),
        200
    );
}

#[tokio::test]
async fn a_role_that_may_only_read_may_not_write() {
    let (etcd, root) = closed().await;
    put(&root, "/config/k").await.unwrap();
    let auth = root.auth();
    auth.create_role("reader", &Permissions::new().read("/config/*"))
        .await
        .unwrap();
    auth.create_user("eve", "pass", ["reader"]).await.unwrap();
    let eve = as_user(&etcd, "eve", "pass");
    assert_eq!(get(&eve, "/config/k").await.unwrap(), 200);
    let error = put(&eve, "/config/k").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");
}

/// etcd grants `/app/?recursive` and refuses `/app?recursive`, which says the same.
#[tokio::test]
async fn what_is_below_a_directory_is_enough_to_list_watch_and_delete_all_of_it() {
    let (etcd, root) = closed().await;
    let refused = etcd.json_as("YXBwOnBhc3M=", "GET", "/v2/keys/app?recursive=true", "");
    assert_eq!(refused.unwrap().0, 401, "the trap is gone");
    let app = as_user(&etcd, "app", "pass");
    let start = app.set("/app/d/k", "x").permanent().await.unwrap();
    let listing = app.read("/app").recursive().sorted().await.unwrap().node;
    let leaves: Vec<_> = listing.leaves().map(|it| &*it.key).collect();
    assert_eq!(leaves, ["/app/d/k"]);
    let watch = app.watch("/app").recursive().index(start.etcd_index);
    assert_eq!(watch.await.unwrap().node, start.node);
    root.set("/apple", "x").permanent().await.unwrap();
    let error = app.read("/apple").recursive().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");
    app.delete("/app/d").recursive().await.unwrap();
    app.delete("/app").recursive().await.unwrap();
    assert!(!root.contains("/app").await.unwrap());
}

#[tokio::test]
async fn a_user_with_a_role_that_is_not_there_is_told_as_that() {
    let etcd = Etcd::start();
    let auth = Client::new(etcd.url()).unwrap().auth();
    auth.create_user("joe", "pw", ["later"]).await.unwrap();
    let error = auth.user("joe").await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::NotFound, None));
    assert!(error.to_string().contains("later"), "{error}");
    let error = auth.user("jane").await.unwrap_err();
    assert!(error.to_string().contains("jane"), "{error}");
    auth.create_role("later", &Permissions::new())
        .await
        .unwrap();
    let roles_of_joe = auth.user("joe").await.unwrap().roles;
    assert_eq!(roles_of_joe, roles(&["later"]));
}
