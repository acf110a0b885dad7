//! The server as a process of its own.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use testkit::client::Person;

pub struct Server {
    process: Child,
    stdout: BufReader<ChildStdout>,
    /// Address of the listener for clients.
    pub address: SocketAddr,
    /// Address of the admin listener.
    admin: String,
}

pub fn command(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_posthaste"));
    command
        .args(["serve", "--admin-listen", "127.0.0.1:0", "--data"])
        .arg(data)
        .env_clear()
        .env("POSTHASTE_LISTEN", "127.0.0.1:0")
        .env("POSTHASTE_LOG", "warn")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

impl Server {
    /// Starts one and waits until it says that it is ready.
    pub fn start(data: &Path) -> Self {
        Self::start_with(data, &[])
    }

    /// The same with these settings.
    pub fn start_with(data: &Path, variables: &[(&str, &str)]) -> Self {
        let mut command = command(data);
        command.envs(variables.iter().copied()).stderr(Stdio::inherit());
        Self::spawn(command)
    }

    /// The same of this command.
    pub fn spawn(mut command: Command) -> Self {
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        // "…: http://ADDRESS (API at http://ADDRESS/docs), health and metrics at http://ADMIN", or https.
        let addresses: Vec<&str> = line.trim().split("://").collect();
        let [_, address, _, admin] = &*addresses else { panic!("no addresses in {line:?}") };
        let address = address.split(' ').next().unwrap().parse().unwrap();
        Self { address, admin: (*admin).to_owned(), process, stdout }
    }

    /// Status and body of a GET from the admin listener.
    pub fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.admin).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// The sum of a metric over its labels, as far as `labels` is among them; `None` where there is no such line.
    pub fn metric(&self, name: &str, labels: &str) -> Option<f64> {
        let text = self.get("/metrics");
        let values = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (its_labels, value) = rest.rsplit_once(' ')?;
            let fits = its_labels.is_empty() || its_labels.starts_with('{');
            (fits && its_labels.contains(labels)).then(|| value.parse::<f64>().unwrap())
        });
        values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    /// What it has said on standard output since it was ready. Waits for its end.
    pub fn rest_of_stdout(&mut self) -> String {
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        rest
    }

    pub fn end(mut self) -> ExitStatus {
        self.process.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Whatever a failed test leaves.
        let _ = self.process.kill();
    }
}

/// The same person at a server that was started again.
pub fn at(server: &Server, person: &Person) -> Person {
    let mut person = person.clone();
    person.api.address = server.address;
    person
}

/// All seqs of a room, and the texts of its messages, page by page.
pub async fn history(person: &Person, room: &str) -> (Vec<u64>, Vec<String>) {
    let (mut seqs, mut texts) = (Vec::new(), Vec::new());
    loop {
        let after = seqs.last().copied().unwrap_or(0);
        let path = format!("/v1/rooms/{room}/messages?after={after}&limit=100");
        let page = person.api.get(&path).await.unwrap().expect(200).unwrap();
        let items = page["items"].as_array().unwrap();
        seqs.extend(items.iter().map(|item| item["seq"].as_u64().unwrap()));
        texts.extend(items.iter().filter_map(|item| Some(item["content"]["body"].as_str()?.to_owned())));
        if Some(page["head_seq"].as_u64().unwrap()) == seqs.last().copied() {
            return (seqs, texts);
        }
    }
}
