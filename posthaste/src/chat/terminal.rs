//! The terminal: lines typed at the bottom, what others say above; and the same over pipes, for programs.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;

use client::{Journal, SqliteJournal};
use parking_lot::Mutex;
use rustyline_async::{Readline, ReadlineEvent, SharedWriter};
use tokio::sync::mpsc;

/// Lines that wait to be sent; more wait in the terminal.
const LINES_MAX: usize = 16;

/// What was typed.
pub(super) enum Line {
    /// A line.
    Text(String),
    /// Ctrl-D, or the end of the pipe.
    End,
    /// Ctrl-C.
    Interrupted,
}

/// Where one reads.
#[derive(Clone)]
pub(super) struct Terminal {
    /// Prints above the line that is being typed; absent where nobody types.
    screen: Option<SharedWriter>,
    lines: Arc<Mutex<Option<mpsc::Receiver<Line>>>>,
}

impl Terminal {
    /// Begins to read lines: from a terminal as they are typed, else as they come.
    pub(super) fn open(prompt: &str) -> anyhow::Result<Self> {
        let (typed, lines) = mpsc::channel(LINES_MAX);
        let lines = Arc::new(Mutex::new(Some(lines)));
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            // A thread of its own: a pipe that is a file can't be waited for in any other way.
            std::thread::spawn(move || read_pipe(&typed));
            return Ok(Self { screen: None, lines });
        }
        let (mut readline, screen) = Readline::new(prompt.to_owned())?;
        // A line is shown again once it is stored.
        readline.should_print_line_on(false, false);
        tokio::spawn(read_terminal(readline, typed));
        Ok(Self { screen: Some(screen), lines })
    }

    /// The lines; once.
    pub(super) fn lines(&self) -> mpsc::Receiver<Line> {
        self.lines.lock().take().unwrap_or_else(|| mpsc::channel(1).1)
    }

    /// Shows something said.
    pub(super) fn say(&self, text: &str) {
        // A reader that has gone can't be told anything.
        match self.screen.clone() {
            Some(mut screen) => drop(writeln!(screen, "{text}")),
            None => drop(writeln!(io::stdout(), "{text}")),
        }
    }

    /// Shows something that nobody said.
    pub(super) fn note(&self, text: &str) {
        match self.screen.clone() {
            Some(mut screen) => drop(writeln!(screen, "\x1b[2m· {text}\x1b[0m")),
            None => eprintln!("· {text}"),
        }
    }
}

fn read_pipe(typed: &mpsc::Sender<Line>) {
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        if typed.blocking_send(Line::Text(line)).is_err() {
            return;
        }
    }
    drop(typed.blocking_send(Line::End));
}

/// Ends, and gives the terminal back, with the first of Ctrl-D and Ctrl-C, or when nobody waits for lines any more.
async fn read_terminal(mut readline: Readline, typed: mpsc::Sender<Line>) {
    loop {
        let line = tokio::select! {
            line = readline.readline() => line,
            () = typed.closed() => break,
        };
        let line = match line {
            Ok(ReadlineEvent::Line(line)) => {
                readline.add_history_entry(line.clone());
                Line::Text(line)
            }
            Ok(ReadlineEvent::Interrupted) => Line::Interrupted,
            Ok(ReadlineEvent::Eof) | Err(_) => Line::End,
        };
        let over = !matches!(line, Line::Text(_));
        if typed.send(line).await.is_err() || over {
            break;
        }
    }
    // What was said last is still shown.
    drop(readline.flush());
}

/// Asks for a line.
pub(super) fn ask(question: &str, typed: bool) -> anyhow::Result<String> {
    if typed {
        eprint!("{question}");
    }
    let answer = first_line()?;
    anyhow::ensure!(!answer.is_empty(), "{} is needed", question.trim_end_matches([':', ' ']).to_lowercase());
    Ok(answer)
}

/// Asks for something that is not shown; over a pipe it is the next line.
pub(super) fn ask_secretly(question: &str, typed: bool) -> anyhow::Result<String> {
    Ok(if typed { rpassword::prompt_password(question)? } else { first_line()? })
}

/// Reads byte by byte: what follows the line belongs to the chat.
fn first_line() -> io::Result<String> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Whether the journal of a directory holds a sign-in, so that no password is needed.
pub(super) async fn is_signed_in(dir: &Path) -> bool {
    let Ok(journal) = SqliteJournal::open(dir) else { return false };
    journal.load().await.is_ok_and(|saved| saved.session.is_some())
}
