//! `posthaste chat`: a chat in the terminal on the Rust SDK. Owns what people see and type; that nothing is lost is the
//! SDK's matter.

mod terminal;

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use async_trait::async_trait;
use clap::Args;
use client::{Client, Credentials, Error, Event, Listener, Rest, Retry, Settings, Signal};
use schemas::frame::EventView;
use schemas::message::{Content, MemberChange};
use schemas::{Timestamp, UserId};
use tokio::sync::{Mutex, watch};

use self::terminal::{Line, Terminal};

/// Messages shown when someone comes into a room for the first time.
const SHOWN_FIRST: usize = 20;

/// How long the first answer of a server may take before people are told that it is away.
const AWAY_AFTER: Duration = Duration::from_millis(500);

/// Arguments of `posthaste chat`.
#[derive(Args, Debug)]
pub(crate) struct Flags {
    /// The server: https://host, or http://host:port.
    #[arg(long, value_name = "URL")]
    server: String,
    /// Certificate authorities to trust in place of the system's (PEM).
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The room, by its handle. It is created if there is none, and joined.
    #[arg(long, value_name = "@HANDLE")]
    room: String,
    /// Your name; asked for if it is not given. Who is unknown is signed up.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Where what you typed and how far you have read is kept; one chat at a time.
    #[arg(long, value_name = "DIR", env = "POSTHASTE_CHAT_DATA")]
    data: Option<PathBuf>,
}

/// Chats until the end of input.
pub(crate) fn run(flags: &Flags) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("posthaste: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(chat(flags));
    // The thread that waits for a line can't be interrupted: the process ends without it.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("posthaste: {error:#}");
            let usage = matches!(error.downcast_ref(), Some(Error::Address(_) | Error::Untrusted(_)));
            ExitCode::from(if usage { super::EXIT_USAGE } else { 1 })
        }
    }
}

async fn chat(flags: &Flags) -> anyhow::Result<()> {
    let handle = flags.room.trim_start_matches('@').to_owned();
    if handle.is_empty() {
        bail!("--room names no room");
    }
    let typed = io::stdin().is_terminal();
    let name = match &flags.user {
        Some(name) => name.clone(),
        None => terminal::ask("Name: ", typed)?,
    };
    let dir = directory(flags, &name)?;
    let saved = dir.join("client.db").exists();
    let credentials = if saved && terminal::is_signed_in(&dir).await {
        Credentials::Saved
    } else {
        let password = terminal::ask_secretly(&format!("Password of {name}: "), typed)?;
        Credentials::Password { username: name.clone(), password }
    };
    let settings = Settings { authorities: flags.ca.clone(), ..Settings::new(flags.server.as_str(), &dir) };
    let (client, worker) = Client::open(settings, credentials)?;
    let terminal = Terminal::open(&format!("{name}> "))?;

    let room = find_room(&client, &handle, &terminal, &dir).await?;
    let shown = Arc::new(AtomicU64::new(0));
    let screen = Screen {
        rest: client.rest().clone(),
        terminal: terminal.clone(),
        names: Arc::default(),
        shown: Arc::clone(&shown),
        live: Arc::default(),
    };
    terminal.note(&format!("@{handle}. Type and press Enter; /who, /quit."));
    if !saved {
        screen.show_newest(room).await;
    }
    let live = Arc::clone(&screen.live);
    let (stop, stopped) = watch::channel(false);
    let mut running = tokio::spawn(worker.only(vec![room]).run(screen, stopped));
    let mut lines = terminal.lines();
    let mut client = Some(client);
    loop {
        tokio::select! {
            ended = &mut running => return Ok(ended??),
            line = lines.recv(), if client.is_some() => {
                let Some(here) = client.clone() else { continue };
                match line.unwrap_or(Line::End) {
                    Line::Text(text) if text.trim().is_empty() => {}
                    Line::Text(text) if text.trim() == "/who" => who(&here, &handle, &terminal).await,
                    Line::Text(text) if text.trim() == "/quit" => client = None,
                    Line::Text(text) => {
                        let sending = here.send(room, Content::text(text.as_str())).await?;
                        if !live.load(Ordering::Relaxed) {
                            terminal.note(&format!("kept until the server is back: {text}"));
                        }
                        tell_refusal(sending, terminal.clone());
                    }
                    Line::End => client = None,
                    Line::Interrupted => {
                        stop.send_replace(true);
                    }
                }
                // The worker ends by itself once nobody can send any more and everything is stored.
                if client.is_none() && !live.load(Ordering::Relaxed) {
                    terminal.note("waiting for the server to take what you typed; Ctrl-C leaves it for the next time");
                }
            }
            _ = tokio::signal::ctrl_c() => {
                stop.send_replace(true);
            }
        }
    }
}

/// The room to chat in. While the server is away the one of the last time is used.
async fn find_room(
    client: &Client,
    handle: &str,
    terminal: &Terminal,
    dir: &std::path::Path,
) -> anyhow::Result<schemas::RoomId> {
    let known_at = dir.join(format!("room-{handle}"));
    let known: Option<schemas::RoomId> =
        std::fs::read_to_string(&known_at).ok().and_then(|text| text.trim().parse().ok());
    let mut told = false;
    loop {
        let found = client.rest().join_or_create(handle);
        let found = match tokio::time::timeout(AWAY_AFTER * if known.is_some() { 1 } else { 30 }, found).await {
            Ok(found) => found,
            Err(_) => Err(Error::Unreachable("no answer in time".into())),
        };
        match (found, known) {
            (Ok(room), _) => {
                std::fs::write(&known_at, room.id.to_string()).context("can't note the room")?;
                return Ok(room.id);
            }
            (Err(error), Some(room)) if error.may_pass() => {
                terminal.note(&format!("{error}; what you type is kept"));
                return Ok(room);
            }
            (Err(error), None) if error.may_pass() => {
                if !std::mem::replace(&mut told, true) {
                    terminal.note(&format!("{error}; trying again"));
                }
                tokio::time::sleep(AWAY_AFTER).await;
            }
            (Err(error), _) => return Err(error.into()),
        }
    }
}

fn directory(flags: &Flags, name: &str) -> anyhow::Result<PathBuf> {
    if let Some(dir) = &flags.data {
        return Ok(dir.clone());
    }
    let plain = |text: &str| -> String {
        text.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c } else { '_' }).collect()
    };
    let home = std::env::home_dir().context("there is no home directory: say where with --data")?;
    let server = flags.server.split_once("://").map_or(flags.server.as_str(), |(_, rest)| rest);
    Ok(home.join(".local/share/posthaste/chat").join(plain(server)).join(plain(name)))
}

/// Says so when a message is refused for good.
fn tell_refusal(sending: client::Sending, terminal: Terminal) {
    tokio::spawn(async move {
        if let Err(error @ Error::Rejected { .. }) = sending.stored().await {
            terminal.note(&error.to_string());
        }
    });
}

async fn who(client: &Client, handle: &str, terminal: &Terminal) {
    match client.rest().online(&format!("@{handle}")).await {
        Ok(online) => {
            let names: Vec<String> = online.into_iter().map(|user| user.username).collect();
            terminal.note(&format!("here now: {}", names.join(", ")));
        }
        Err(error) => terminal.note(&error.to_string()),
    }
}

/// Shows what comes.
struct Screen {
    rest: Rest,
    terminal: Terminal,
    names: Arc<Mutex<HashMap<UserId, String>>>,
    /// The last event on the screen.
    shown: Arc<AtomicU64>,
    live: Arc<AtomicBool>,
}

impl Screen {
    async fn show_newest(&self, room: schemas::RoomId) {
        let Ok(page) = self.rest.newest(room, SHOWN_FIRST).await else { return };
        for event in &page.items {
            self.show(event).await;
        }
    }

    async fn name(&self, user: UserId) -> String {
        if let Some(name) = self.names.lock().await.get(&user) {
            return name.clone();
        }
        match self.rest.user(user).await {
            Ok(found) => {
                self.names.lock().await.insert(user, found.username.clone());
                found.username
            }
            Err(_) => user.to_string(),
        }
    }

    async fn show(&self, event: &EventView) {
        if self.shown.fetch_max(event.seq().0, Ordering::Relaxed) >= event.seq().0 {
            return;
        }
        match event {
            EventView::Message { sender, sent_at, content, .. } => {
                let name = self.name(*sender).await;
                let text = match content {
                    Some(Content { body: Some(body), .. }) => plain(body),
                    Some(Content { mime, .. }) => format!("[{}]", plain(mime)),
                    None => "[deleted]".to_owned(),
                };
                self.terminal.say(&format!("{} {}: {text}", time(*sent_at), plain(&name)));
            }
            EventView::Member { user, change, .. } => {
                let what = match change {
                    MemberChange::Joined => "has joined",
                    MemberChange::Added => "was added",
                    MemberChange::Left => "has left",
                    MemberChange::Removed => "was removed",
                    _ => return,
                };
                self.terminal.note(&format!("{} {what}", plain(&self.name(*user).await)));
            }
            EventView::Room { changed, .. } if changed.patch.deleted => self.terminal.note("the room is gone"),
            EventView::Room { .. } => {}
        }
    }
}

#[async_trait]
impl Listener for Screen {
    async fn on_receive(&self, event: &Event) -> Result<(), Retry> {
        self.show(event).await;
        Ok(())
    }

    async fn on_signal(&self, signal: Signal) {
        match signal {
            Signal::Live => {
                if !self.live.swap(true, Ordering::Relaxed) {
                    self.terminal.note("connected");
                }
            }
            Signal::Offline => {
                self.live.store(false, Ordering::Relaxed);
                self.terminal.note("the server is away; what you type is kept");
            }
            Signal::Typing(..) | Signal::Presence(..) => {}
        }
    }
}

/// Hours and minutes, UTC.
fn time(at: Timestamp) -> String {
    at.to_string().get(11..16).unwrap_or("--:--").to_owned()
}

/// What others wrote must not move the cursor or recolour the terminal.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{FFFD}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_write_can_not_command_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\u{7}\r\u{9b}c\n"), "a\u{FFFD}[2Jb\u{FFFD}\u{FFFD}\u{FFFD}c\n");
    }

    #[test]
    fn a_time_is_hours_and_minutes() {
        assert_eq!(time(Timestamp(1_763_715_600_007)), "09:00");
    }
}
