//! Before the load: people, rooms, and who is in which.

use std::sync::Arc;

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use schemas::{DeviceId, RoomId, Seq, UserId};

use crate::api::{Api, Login};
use crate::client::{Local, Locals};
use crate::clock;
use crate::keys::Issuer;
use crate::plan::{Members, Scenario};
use crate::progress::Progress;

/// Calls at a time; the HTTP client bounds its connections by itself.
const CALLS: usize = 16;

/// Members that a room is created with; the others are added one by one. Below what servers take at once.
const CREATE_MEMBERS: usize = 500;

/// A person of this run.
pub struct User {
    /// Who.
    pub id: UserId,
    /// How they sign in.
    pub login: Arc<Login>,
    /// Named to the server with tokens of another issuer.
    pub device: Option<DeviceId>,
}

/// A room of this run.
pub struct Room {
    /// Which.
    pub id: RoomId,
    /// Its members, by the users' numbers; the first is the owner.
    pub members: Members,
    /// Its newest seq once everyone is in, where the sockets start there.
    pub head: Option<Seq>,
}

/// Signs everyone in.
pub async fn users(api: &Api, issuer: Option<Arc<Issuer>>, count: usize, progress: &Progress) -> Result<Vec<User>> {
    // Names of their own, so that a run never meets the people of another.
    let run = u64::from_le_bytes(clock::random()) >> 24;
    progress.begin("signing in", count);
    let one = |number: usize| {
        let (name, issuer) = (format!("load-{run:010x}-{number}"), issuer.clone());
        async move {
            let user = match issuer {
                Some(issuer) => {
                    let login = Login::Issued { issuer, subject: name };
                    let id = api.me(&login).await?;
                    User { id, login: Arc::new(login), device: Some(DeviceId(clock::uuid_v7())) }
                }
                None => {
                    let (id, login) = api.sign_up(&name).await?;
                    User { id, login: Arc::new(login), device: None }
                }
            };
            progress.step();
            anyhow::Ok(user)
        }
    };
    stream::iter(0..count).map(one).buffered(CALLS).try_collect().await.context("can't sign the users in")
}

/// Creates the rooms.
pub async fn rooms(
    api: &Api,
    users: &[User],
    plan: Vec<Members>,
    scenario: Scenario,
    progress: &Progress,
) -> Result<Vec<Room>> {
    progress.begin("creating rooms", plan.len());
    let one = |(number, members): (usize, Members)| async move {
        let room = room(api, users, number, members, scenario).await?;
        progress.step();
        anyhow::Ok(room)
    };
    let rooms = stream::iter(plan.into_iter().enumerate()).map(one).buffered(CALLS);
    rooms.try_collect().await.context("can't create the rooms")
}

async fn room(api: &Api, users: &[User], number: usize, members: Members, scenario: Scenario) -> Result<Room> {
    let owner = &users[members[0]].login;
    let others: Vec<UserId> = members[1..].iter().map(|user| users[*user].id).collect();
    if scenario == Scenario::Pairs {
        let id = api.direct_room(owner, others[0]).await?;
        return Ok(Room { id, members, head: None });
    }
    let (at_once, later) = others.split_at(others.len().min(CREATE_MEMBERS));
    let id = api.create_room(owner, &format!("load {number}"), at_once).await?;
    let adding = later.iter().map(|user| api.add_member(owner, id, *user));
    stream::iter(adding).buffer_unordered(CALLS).try_collect::<()>().await?;
    // In one large room everyone would first get everyone's join: that is not what is measured.
    let head = if scenario == Scenario::Fanout { Some(api.head(owner, id).await?) } else { None };
    Ok(Room { id, members, head })
}

/// The rooms of each user, and the room and starting seq of each membership.
pub fn memberships(users: usize, rooms: &[Room]) -> (Vec<Locals>, Vec<(usize, Seq)>) {
    let mut of: Vec<Locals> = (0..users).map(|_| Locals::new()).collect();
    let mut progress = Vec::new();
    for (number, room) in rooms.iter().enumerate() {
        for user in &room.members {
            of[*user].insert(room.id, Local::new(number, progress.len(), room.head));
            progress.push((number, room.head.unwrap_or_default()));
        }
    }
    (of, progress)
}
