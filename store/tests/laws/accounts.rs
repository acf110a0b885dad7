//! Laws of accounts.

use store::Store;
use store::accounts::{Account, Audience, Profile, ProfileVisibility, Taken};

use crate::Engine;
use crate::forms::{at, user};

fn account(n: u128, username: &str, email: Option<&str>) -> Account {
    Account {
        id: user(n),
        username: username.to_owned(),
        email: email.map(str::to_owned),
        password_hash: Some("$argon2id$…".to_owned()),
        profile: Profile {
            display_name: format!("Person {n}"),
            about: "“quoted”".to_owned(),
            avatar: "🦀".to_owned(),
            visibility: ProfileVisibility { about: Audience::Friends, ..ProfileVisibility::default() },
        },
        created_at: at(5),
        last_seen: None,
    }
}

async fn create(store: &dyn Store, account: Account) -> Result<(), Taken> {
    store.create_account(account).await.unwrap()
}

pub async fn an_account_is_found_by_each_of_its_names_in_any_case(engine: impl Engine) {
    let store = engine.store();
    create(&*store, account(1, "ÄnnA", Some("Anna@Example.org"))).await.unwrap();
    let stored = account(1, "änna", Some("anna@example.org"));
    assert_eq!(store.accounts(&[user(1), user(2)]).await.unwrap(), std::slice::from_ref(&stored));
    assert_eq!(store.account_by_username("ÄNNA").await.unwrap(), Some(stored.clone()));
    assert_eq!(store.account_by_email("ANNA@example.ORG").await.unwrap(), Some(stored));
    assert_eq!(store.account_by_username("ann").await.unwrap(), None);
    assert_eq!(store.account_by_email("").await.unwrap(), None);
}

pub async fn the_same_creation_again_changes_nothing(engine: impl Engine) {
    let store = engine.store();
    create(&*store, account(1, "anna", None)).await.unwrap();
    create(&*store, Account { created_at: at(99), ..account(1, "other", None) }).await.unwrap();
    assert_eq!(store.accounts(&[user(1)]).await.unwrap(), [account(1, "anna", None)]);
    assert_eq!(store.account_by_username("other").await.unwrap(), None);
}

pub async fn a_name_has_one_owner(engine: impl Engine) {
    let store = engine.store();
    create(&*store, account(1, "anna", Some("a@x.org"))).await.unwrap();
    assert_eq!(create(&*store, account(2, "ANNA", Some("b@x.org"))).await, Err(Taken::Username));
    assert_eq!(create(&*store, account(2, "bert", Some("A@x.org"))).await, Err(Taken::Email));
    assert_eq!(store.accounts(&[user(2)]).await.unwrap(), []);
    // Any number of people have no address.
    create(&*store, account(3, "carl", None)).await.unwrap();
    create(&*store, account(4, "dora", None)).await.unwrap();
}

pub async fn a_renamed_account_frees_its_name_and_takes_no_others(engine: impl Engine) {
    let store = engine.store();
    create(&*store, account(1, "anna", None)).await.unwrap();
    create(&*store, account(2, "bert", None)).await.unwrap();
    let profile = Profile { display_name: "B".to_owned(), ..Profile::default() };
    assert_eq!(store.update_account(user(2), "Anna", profile.clone()).await.unwrap(), Err(Taken::Username));
    assert_eq!(store.accounts(&[user(2)]).await.unwrap(), [account(2, "bert", None)]);
    assert_eq!(store.update_account(user(2), "Bertha", profile.clone()).await.unwrap(), Ok(()));
    let renamed = Account { profile, ..account(2, "bertha", None) };
    assert_eq!(store.account_by_username("bertha").await.unwrap(), Some(renamed));
    create(&*store, account(3, "bert", None)).await.unwrap();
    // Who keeps their name keeps it.
    assert_eq!(store.update_account(user(1), "anna", Profile::default()).await.unwrap(), Ok(()));
}

pub async fn of_many_who_claim_a_username_at_once_one_wins(engine: impl Engine) {
    let won = claims(&engine, |n| account(n, "anna", None)).await;
    let owner = engine.store().account_by_username("anna").await.unwrap().map(|account| account.id);
    assert_eq!(won, [owner.unwrap()]);
}

pub async fn of_many_who_claim_an_address_at_once_one_wins(engine: impl Engine) {
    let won = claims(&engine, |n| account(n, &format!("user{n}"), Some("a@x.org"))).await;
    let owner = engine.store().account_by_email("a@x.org").await.unwrap().map(|account| account.id);
    assert_eq!(won, [owner.unwrap()]);
}

/// 32 creations at once; who won.
async fn claims(engine: &impl Engine, of: impl Fn(u128) -> Account) -> Vec<schemas::UserId> {
    let claims: Vec<_> = (0..32)
        .map(|n| {
            let (store, account) = (engine.store(), of(n));
            tokio::spawn(async move { create(&*store, account).await.ok().map(|()| user(n)) })
        })
        .collect();
    let mut won = Vec::new();
    for claim in claims {
        won.extend(claim.await.unwrap());
    }
    won
}

pub async fn last_seen_never_goes_back(engine: impl Engine) {
    let store = engine.store();
    create(&*store, account(1, "anna", None)).await.unwrap();
    store.touch_accounts(&[(user(1), at(50)), (user(9), at(1))]).await.unwrap();
    store.touch_accounts(&[(user(1), at(40))]).await.unwrap();
    let seen = Account { last_seen: Some(at(50)), ..account(1, "anna", None) };
    assert_eq!(store.accounts(&[user(1), user(9)]).await.unwrap(), [seen]);
}

pub async fn a_new_password_hash_replaces_the_old_one(engine: impl Engine) {
    let store = engine.store();
    create(&*store, account(1, "anna", None)).await.unwrap();
    store.set_password_hash(user(1), "new").await.unwrap();
    let changed = Account { password_hash: Some("new".to_owned()), ..account(1, "anna", None) };
    assert_eq!(store.account_by_username("anna").await.unwrap(), Some(changed));
}

pub async fn accounts_are_found_by_how_their_names_begin(engine: impl Engine) {
    let store = engine.store();
    for (n, username, display_name) in [
        (1, "anna", "Zoe"),
        (2, "bert", "Annabel"),
        (3, "carl", "Hanna"),
        (4, "an_x", "ANNE"),
        (5, "annika", "Annika"),
        (6, "ännchen", "Än%n"),
    ] {
        let profile = Profile { display_name: display_name.to_owned(), ..Profile::default() };
        create(&*store, Account { profile, ..account(n, username, None) }).await.unwrap();
    }
    let find = async |prefix: &str, after: Option<&str>, limit| -> Vec<String> {
        let found = store.find_accounts(prefix, after, limit).await.unwrap();
        found.into_iter().map(|account| account.username).collect()
    };
    assert_eq!(find("aNN", None, 10).await, ["an_x", "anna", "annika", "bert"]);
    assert_eq!(find("ann", None, 2).await, ["an_x", "anna"]);
    assert_eq!(find("ann", Some("Anna"), 2).await, ["annika", "bert"]);
    assert_eq!(find("an_", None, 10).await, ["an_x"]);
    assert_eq!(find("ÄN%", None, 10).await, ["ännchen"]);
    assert_eq!(find("", None, 3).await, ["an_x", "anna", "annika"]);
    assert_eq!(find("x", None, 10).await, [""; 0]);
}
