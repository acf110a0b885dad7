//! What handlers read and do: every read at the end of its partition, so that it sees every write that was answered
//! before (I8), and every command from its id to what became of it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use schemas::command::ReplyTo;
use schemas::frame::EventView;
use schemas::limits::COMMAND_DEADLINE;
use schemas::link::{Lane, PageFrom, PageQuery, RoomOfUser};
use schemas::message::{RoomKind, RoomVisibility};
use schemas::outcome::{Done, RejectCode};
use schemas::room::RoomInfo;
use schemas::{Action, Command, CommandId, Event, EventKind, Offset, RoomId, Seq, SessionId, UserId};
use store::accounts::Account;

use crate::App;
use crate::error::{Code, Error, Result};
use crate::hub::Answer;
use crate::views::{RoomView, UserView};

/// A room as far as someone may know of it.
pub(crate) enum Known {
    /// They are or were in it.
    Member(Box<RoomOfUser>),
    /// Everyone may know of it.
    Public(Box<RoomInfo>),
}

/// What became of a command that was not rejected.
pub(crate) enum Acted {
    /// It made this event (and perhaps more).
    Now(Arc<Event>),
    /// An earlier try had acted, or it was so already (`seq` 0).
    Before(Done),
}

impl App {
    /// The room that a path names by id or `@handle`. Whether the caller may know of it is not said yet.
    pub(crate) async fn resolve(&self, text: &str) -> Result<RoomId> {
        match text.strip_prefix('@') {
            Some(handle) => self.deps.store.room_by_handle(handle).await?.ok_or_else(Error::not_found),
            None => crate::extract::path_id(text),
        }
    }

    /// The end of a room's partition: a read from there on sees all that was acknowledged.
    pub(crate) async fn end_of_room(&self, room: RoomId) -> Result<Offset> {
        Ok(self.hub.end(Lane::Rooms, self.hub.partition(room.as_bytes())).await?)
    }

    /// Waits until the store holds all of a room that was acknowledged.
    pub(crate) async fn settle_room(&self, room: RoomId) -> Result<()> {
        let partition = self.hub.partition(room.as_bytes());
        let end = self.hub.end(Lane::Rooms, partition).await?;
        Ok(self.deps.history.settle(Lane::Rooms, partition, end).await?)
    }

    /// A room, as far as `user` may know of it; else it is not there.
    pub(crate) async fn room(&self, user: UserId, room: RoomId) -> Result<Known> {
        let end = self.end_of_room(room).await?;
        let known = self.deps.history.rooms(user, &[(room, end)]).await?.pop();
        if let Some(known) = known {
            return if known.info.deleted { Err(Error::not_found()) } else { Ok(Known::Member(Box::new(known))) };
        }
        self.deps.history.settle(Lane::Rooms, self.hub.partition(room.as_bytes()), end).await?;
        let info = self.deps.store.rooms(&[room]).await?.pop();
        let is_public = |info: &RoomInfo| !info.deleted && info.settings.visibility == RoomVisibility::Public;
        info.filter(is_public).map(|info| Known::Public(Box::new(info))).ok_or_else(Error::not_found)
    }

    /// A room that `user` is in now.
    pub(crate) async fn own_room(&self, user: UserId, room: RoomId) -> Result<RoomOfUser> {
        match self.room(user, room).await? {
            Known::Member(known) if known.member.is_in() => Ok(*known),
            Known::Member(_) | Known::Public(_) => Err(Error::new(Code::NotAMember, "you are not in this room")),
        }
    }

    /// A page of a room's history, as far as `user` may see it.
    pub(crate) async fn history(
        &self,
        user: UserId,
        room: RoomId,
        from: PageFrom,
        limit: usize,
    ) -> Result<schemas::link::Page> {
        let min_offset = self.end_of_room(room).await?;
        let page = self.deps.history.page(PageQuery { user, room, from, limit, min_offset }).await?;
        match page {
            Some(page) if page.info.deleted => Err(Error::not_found()),
            Some(page) => Ok(page),
            None => {
                self.room(user, room).await?;
                Err(Error::new(Code::NotAMember, "you are not in this room"))
            }
        }
    }

    /// Shows rooms to someone who is or was in them, direct ones with their peer, and if asked with their newest event:
    /// one call for history whatever their number.
    pub(crate) async fn show(&self, user: UserId, rooms: &[RoomOfUser], newest: bool) -> Result<Vec<RoomView>> {
        // Any position will do: `rooms` was read at the end already.
        let query = |room: &RoomOfUser, from, limit| PageQuery {
            user,
            room: room.info.id,
            from,
            limit,
            min_offset: Offset::default(),
        };
        let needs_newest = |room: &&RoomOfUser| newest || RoomView::hides_present(room);
        let newest_of = rooms.iter().filter(needs_newest).map(|room| query(room, PageFrom::Newest, 1));
        // The room and its two members are a direct room's first three events.
        let made_by_caller = |room: &&RoomOfUser| room.info.created_by == user && is_direct(room);
        let beginnings = rooms.iter().filter(made_by_caller).map(|room| query(room, PageFrom::After(Seq::ZERO), 3));
        let queries: Vec<PageQuery> = newest_of.chain(beginnings).collect();
        let pages = if queries.is_empty() { Vec::new() } else { self.deps.history.pages(&queries).await? };
        let asked = queries.iter().map(|query| (query.room, query.from));
        let events: HashMap<(RoomId, PageFrom), Vec<Arc<Event>>> =
            asked.zip(pages).filter_map(|(asked, page)| Some((asked, page?.events))).collect();
        let events = |room: &RoomOfUser, from| events.get(&(room.info.id, from)).map_or(&[][..], Vec::as_slice);

        let peer_of = |room: &RoomOfUser| match room.info.created_by {
            _ if !is_direct(room) => None,
            creator if creator != user => Some(creator),
            _ => events(room, PageFrom::After(Seq::ZERO)).iter().find_map(|event| match &event.kind {
                EventKind::Member(member) if member.user != user => Some(member.user),
                _ => None,
            }),
        };
        let peers: Vec<Option<UserId>> = rooms.iter().map(peer_of).collect();
        let ids: Vec<UserId> = peers.iter().copied().flatten().collect();
        let profiles = self.profiles_of(user, &ids).await?;
        let view = |(room, peer): (&RoomOfUser, &Option<UserId>)| {
            let newest_event = events(room, PageFrom::Newest).last();
            RoomView {
                newest: newest_event.filter(|_| newest).map(|event| EventView::of(event, Some(user))),
                peer: peer.and_then(|peer| profiles.get(&peer).cloned()),
                ..RoomView::of(room, newest_event.map(Arc::as_ref))
            }
        };
        Ok(rooms.iter().zip(&peers).map(view).collect())
    }

    /// The room as the caller may see it, after whatever was acknowledged.
    pub(crate) async fn room_view(&self, user: UserId, room: RoomId) -> Result<RoomView> {
        match self.room(user, room).await? {
            Known::Public(info) => Ok(RoomView::of_stranger(&info)),
            Known::Member(room) => self.show(user, &[*room], false).await?.pop().ok_or_else(Error::not_found),
        }
    }

    /// People as `viewer` may see them.
    pub(crate) async fn profiles(&self, viewer: UserId, accounts: &[Account]) -> Vec<UserView> {
        let ids: Vec<UserId> = accounts.iter().map(|account| account.id).collect();
        // Presence is shed first: who can't be asked about is shown as offline.
        let online: HashSet<UserId> = match &*ids {
            [] => HashSet::new(),
            ids => self.deps.fanout.online(ids).await.unwrap_or_default().into_iter().collect(),
        };
        accounts.iter().map(|account| UserView::of(account, viewer, online.contains(&account.id))).collect()
    }

    /// The same by id; absent where there is no such person.
    pub(crate) async fn profiles_of(&self, viewer: UserId, ids: &[UserId]) -> Result<HashMap<UserId, UserView>> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let accounts = self.deps.store.accounts(ids).await?;
        Ok(self.profiles(viewer, &accounts).await.into_iter().map(|view| (view.id, view)).collect())
    }

    /// Asks a room for something, and waits for what becomes of it.
    pub(crate) async fn act(
        &self,
        user: UserId,
        key: Option<CommandId>,
        room: RoomId,
        action: Action,
    ) -> Result<Acted> {
        let command = Command {
            id: key.unwrap_or_else(|| self.ids.command()),
            room,
            user,
            event_id: self.ids.event(),
            reply_to: ReplyTo { edge: self.deps.edge, session: SessionId::NIL },
            received_us: self.deps.clock.micros(),
            deadline: self.deps.clock.now().after(COMMAND_DEADLINE),
            action,
        };
        let own_event = command.event_id;
        let outcome = match self.hub.submit(command).await? {
            // Commands of others may bear the same id; what became of theirs says nothing of ours.
            Answer::Event(event) if (event.room, event.by) != (room, user) => return Err(Error::unavailable()),
            Answer::Outcome(outcome) if (outcome.room, outcome.user) != (room, user) => {
                return Err(Error::unavailable());
            }
            Answer::Event(event) if event.id == own_event => return Ok(Acted::Now(event)),
            Answer::Event(event) => return Ok(Acted::Before(Done { seq: event.seq, id: event.id, at: event.at })),
            Answer::Outcome(outcome) => outcome,
        };
        match (outcome.done, &outcome.rejected) {
            (_, Some(rejected)) => {
                self.metrics.rejections.with_label_values(&[rejected.code.as_str()]).inc();
                if rejected.code == RejectCode::NotAMember {
                    // A stranger must not learn that a private room exists.
                    self.room(user, room).await?;
                }
                Err(Error::from(rejected))
            }
            (Some(done), None) => Ok(Acted::Before(done)),
            (None, None) => Err(Error::unavailable()),
        }
    }
}

fn is_direct(room: &RoomOfUser) -> bool {
    room.info.settings.kind == RoomKind::Direct
}
