//! The terminal: lines typed at the bottom, what others say above; and the same over pipes, for programs.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;

use client::{Journal, SqliteJournal};
use parking_lot::Mutex;
use rustyline::error::ReadlineError;
use rustyline::{DefaultEditor, ExternalPrinter};
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

type Printer = Box<dyn ExternalPrinter + Send>;

/// Where one reads.
#[derive(Clone)]
pub(super) struct Terminal {
    /// Prints above the line that is being typed; absent where nobody types.
    printer: Option<Arc<Mutex<Printer>>>,
    lines: Arc<Mutex<Option<mpsc::Receiver<Line>>>>,
}

impl Terminal {
    /// Begins to read lines, on a thread of its own: a terminal can't be waited for in any other way.
    pub(super) fn open(prompt: &str) -> anyhow::Result<Self> {
        let (typed, lines) = mpsc::channel(LINES_MAX);
        let lines = Arc::new(Mutex::new(Some(lines)));
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            std::thread::spawn(move || read_pipe(&typed));
            return Ok(Self { printer: None, lines });
        }
        let mut editor = DefaultEditor::new()?;
        let printer: Printer = Box::new(editor.create_external_printer()?);
        let prompt = prompt.to_owned();
        std::thread::spawn(move || read_terminal(&mut editor, &prompt, &typed));
        Ok(Self { printer: Some(Arc::new(Mutex::new(printer))), lines })
    }

    /// The lines; once.
    pub(super) fn lines(&self) -> mpsc::Receiver<Line> {
        self.lines.lock().take().unwrap_or_else(|| mpsc::channel(1).1)
    }

    /// Shows something said.
    pub(super) fn say(&self, text: &str) {
        match &self.printer {
            Some(printer) => drop(printer.lock().print(format!("{text}\n"))),
            None => {
                let mut out = io::stdout().lock();
                // A reader that has gone can't be told anything.
                drop(writeln!(out, "{text}").and_then(|()| out.flush()));
            }
        }
    }

    /// Shows something that nobody said.
    pub(super) fn note(&self, text: &str) {
        match &self.printer {
            Some(printer) => drop(printer.lock().print(format!("\x1b[2m· {text}\x1b[0m\n"))),
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

fn read_terminal(editor: &mut DefaultEditor, prompt: &str, typed: &mpsc::Sender<Line>) {
    loop {
        let line = match editor.readline(prompt) {
            Ok(line) => {
                // It is shown again once it is stored.
                print!("\x1b[1A\x1b[2K");
                drop(io::stdout().flush());
                drop(editor.add_history_entry(line.as_str()));
                Line::Text(line)
            }
            Err(ReadlineError::Interrupted) => Line::Interrupted,
            Err(_) => Line::End,
        };
        let over = !matches!(line, Line::Text(_));
        if typed.blocking_send(line).is_err() || over {
            return;
        }
    }
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
