//! Reading what a server sends: one flat form that borrows from the frame, so that a delivery costs no allocation. Owns
//! how an event becomes what is compared; whoever records speaks it.

use std::borrow::Cow;

use schemas::message::MemberChange;
use schemas::outcome::RejectCode;
use schemas::{CommandId, EventId, RoomId, Seq, SessionId, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::step::{Digest, Event, Fact, digest};

/// Text that is borrowed unless it has escapes. (An `Option<Cow>` alone never borrows.)
#[derive(Debug, Deserialize)]
pub struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

/// A content.
#[derive(Debug, Deserialize)]
pub struct Content<'a> {
    #[serde(borrow, rename = "type")]
    mime: Text<'a>,
    /// The text.
    #[serde(borrow)]
    pub body: Option<Text<'a>>,
    #[serde(borrow)]
    data: Option<Text<'a>>,
    #[serde(borrow)]
    media: Option<Text<'a>>,
}

impl Content<'_> {
    /// What stands for it in the record.
    fn digest(&self) -> Digest {
        let part = |part: &Option<Text<'_>>| part.as_ref().map_or(0, |text| digest(&[text.0.as_bytes()])).to_be_bytes();
        digest(&[self.mime.0.as_bytes(), &part(&self.body), &part(&self.data), &part(&self.media)])
    }
}

/// What stands for a plain text in the record.
pub fn text_digest(body: &str) -> Digest {
    let text = |text| Text(Cow::Borrowed(text));
    Content { mime: text("text/plain"), body: Some(text(body)), data: None, media: None }.digest()
}

/// Any frame of a server, and any event of history: the fields that a run looks at.
#[derive(Debug, Deserialize)]
pub struct Frame<'a> {
    /// Which frame.
    #[serde(borrow, rename = "type")]
    pub kind: Text<'a>,
    /// Where.
    pub room: Option<RoomId>,
    /// Its place.
    pub seq: Option<Seq>,
    /// Its id.
    pub id: Option<EventId>,
    /// Who wrote.
    pub sender: Option<UserId>,
    #[serde(borrow)]
    sent_at: Option<Text<'a>>,
    #[serde(borrow)]
    at: Option<Text<'a>>,
    by: Option<UserId>,
    /// Whose.
    pub user: Option<UserId>,
    change: Option<MemberChange>,
    #[serde(borrow)]
    role: Option<Text<'a>>,
    /// What was written.
    #[serde(borrow)]
    pub content: Option<Content<'a>>,
    reply_to: Option<Seq>,
    /// Which send.
    pub client_msg_id: Option<CommandId>,
    /// Repeats the first outcome.
    #[serde(default)]
    pub duplicate: bool,
    /// The socket.
    pub session: Option<SessionId>,
    /// Seconds between pings.
    pub heartbeat_s: Option<u64>,
    /// First of a gap.
    pub from_seq: Option<Seq>,
    /// Last of a gap.
    pub to_seq: Option<Seq>,
    /// Whether history has it.
    #[serde(default)]
    pub readable: bool,
    /// Delivered up to here.
    pub delivered_seq: Option<Seq>,
    /// Read up to here.
    pub read_seq: Option<Seq>,
    #[serde(borrow)]
    code: Option<&'a RawValue>,
    /// Back off for so long.
    pub retry_after_ms: Option<u64>,
}

impl<'a> Frame<'a> {
    /// Reads a frame.
    ///
    /// # Errors
    /// When it is no JSON object with a `type`, or a field has not its promised form.
    pub fn parse(text: &'a str) -> serde_json::Result<Self> {
        serde_json::from_str(text)
    }

    /// Its time as text.
    pub fn at(&self) -> Digest {
        let text = self.sent_at.as_ref().or(self.at.as_ref());
        text.map_or(0, |text| digest(&[text.0.as_bytes()]))
    }

    /// The code of a rejection.
    pub fn reject_code(&self) -> RejectCode {
        let code = self.code.and_then(|code| serde_json::from_str(code.get()).ok());
        code.unwrap_or(RejectCode::Invalid)
    }

    /// Whether it is one of the durable events.
    pub fn is_event(&self) -> bool {
        matches!(&*self.kind.0, "message" | "member" | "room" | "edited" | "deleted" | "reaction")
    }

    /// The durable event, for the record; `raw` is the frame's own text. `None` if it is none, or lacks what every event
    /// has.
    pub fn event(&self, raw: &str) -> Option<Event> {
        if !self.is_event() {
            return None;
        }
        let fact = match &*self.kind.0 {
            "message" => Fact::Message {
                sender: self.sender?,
                // The record has one digest for all that must stay the same.
                body: self.content.as_ref().map(|content| with_reply(content.digest(), self.reply_to)),
                client_msg_id: self.client_msg_id,
            },
            "member" => {
                let role = self.role.as_ref().map_or("", |role| &*role.0);
                let by = self.by?;
                Fact::Member { user: self.user?, change: self.change?, rest: digest(&[by.as_bytes(), role.as_bytes()]) }
            }
            // Rare: any form, with its fields in order of their names.
            _ => {
                let value: serde_json::Value = serde_json::from_str(raw).ok()?;
                Fact::Other(digest(&[value.to_string().as_bytes()]))
            }
        };
        Some(Event { room: self.room?, seq: self.seq?, id: self.id?, at: self.at(), fact })
    }
}

/// A content's digest and what it answers, as one.
fn with_reply(content: Digest, reply_to: Option<Seq>) -> Digest {
    reply_to.map_or(content, |seq| digest(&[&content.to_be_bytes(), &seq.0.to_be_bytes()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &str = r#"{"type":"message","room":"00000000-0000-0000-0000-000000000001","seq":3,
        "id":"00000000-0000-0000-0000-000000000002","sender":"00000000-0000-0000-0000-000000000003",
        "sent_at":"2025-11-21T09:00:00.007Z","content":{"type":"text/plain","body":"hi"},"new_field":{"x":1}}"#;

    #[test]
    fn a_message_borrows_its_body_and_has_the_digest_of_what_was_sent() -> serde_json::Result<()> {
        let frame = Frame::parse(MESSAGE)?;
        assert!(matches!(&frame.content.as_ref().unwrap().body.as_ref().unwrap().0, Cow::Borrowed("hi")));
        let Fact::Message { body, .. } = frame.event(MESSAGE).unwrap().fact else { panic!("a message") };
        assert_eq!(body, Some(text_digest("hi")));
        Ok(())
    }

    #[test]
    fn an_escaped_body_is_the_same_body() -> serde_json::Result<()> {
        let escaped = MESSAGE.replace("\"hi\"", r#""\u0068i""#);
        assert_eq!(Frame::parse(&escaped)?.event(&escaped), Frame::parse(MESSAGE)?.event(MESSAGE));
        Ok(())
    }

    #[test]
    fn codes_are_text_in_one_frame_and_numbers_in_another() -> serde_json::Result<()> {
        assert_eq!(Frame::parse(r#"{"type":"rejected","code":"too_large"}"#)?.reject_code(), RejectCode::TooLarge);
        assert_eq!(Frame::parse(r#"{"type":"closing","code":1012,"retry_after_ms":5}"#)?.retry_after_ms, Some(5));
        Ok(())
    }

    #[test]
    fn the_frames_of_the_schemas_are_read_as_they_are_written() -> serde_json::Result<()> {
        use schemas::frame::{Control, EventView};
        use schemas::message::Role;
        let room = RoomId(uuid::Uuid::from_u128(1));
        let (id, by) = (EventId(uuid::Uuid::from_u128(2)), UserId(uuid::Uuid::from_u128(3)));
        let member = EventView::Member {
            room,
            seq: Seq(2),
            id,
            at: schemas::Timestamp(5),
            by,
            user: by,
            change: MemberChange::Added,
            role: Role::Owner,
        };
        let text = serde_json::to_string(&member)?;
        let event = Frame::parse(&text)?.event(&text).unwrap();
        assert_eq!((event.seq, event.id), (Seq(2), id));
        assert!(matches!(event.fact, Fact::Member { user, change: MemberChange::Added, .. } if user == by));
        let gap = Control::Gap { room, from_seq: Seq(3), to_seq: Seq(4), readable: true };
        let text = serde_json::to_string(&gap)?;
        let frame = Frame::parse(&text)?;
        assert_eq!((frame.from_seq, frame.to_seq, frame.readable), (Some(Seq(3)), Some(Seq(4)), true));
        Ok(())
    }
}
