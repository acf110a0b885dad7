//! A whole cluster on this machine: Kafka, Cassandra, two processes of each role, a load balancer. Owns what runs, with
//! which settings, and when it is ready; keeping it running is the supervisor's.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use clap::{Args, Subcommand};
use engines::cassandra::{self, Cassandra};
use engines::kafka::Kafka;
use engines::ports;
use engines::process::{LOOK_EVERY, Process, now};
use engines::supervisor::{self, Change, Folder, Restarts};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, setsid};

/// The roles, and how many processes of each.
const ROLES: [&str; 4] = ["edge", "ingest", "fanout", "archiver"];
const OF_EACH: usize = 2;
/// Those that edges call. Nobody calls an ingest, and it calls nobody.
const LINKED: [&str; 2] = ["fanout", "archiver"];
/// Partitions of each topic: both processes of a role have some, also while a third one joins.
const PARTITIONS: u32 = 8;
/// What has ended comes back after this.
const PAUSE: Duration = Duration::from_secs(2);
/// All roles are ready within this time, or something is wrong.
const PATIENCE: Duration = Duration::from_secs(120);
/// Exit status of a program that can't use its command line or its settings: trying again would not help.
const EXIT_USAGE: i32 = 2;
/// How long roles may take to end in order: a little more than their own `grace_ms`.
const GRACE: Duration = Duration::from_secs(12);
/// Descriptors that HAProxy makes room for: two a connection.
const BALANCER_FILES: u32 = 50_000;

#[derive(Subcommand)]
pub enum Task {
    /// Starts a cluster in the background and returns once all of it is ready.
    Start(Options),
    /// Is a cluster until its folder asks for the end; `start` runs this.
    Run(Options),
}

#[derive(Args)]
pub struct Options {
    /// Folder of logs, data and process ids.
    dir: PathBuf,
    /// Directory of the binaries posthaste and loadtest.
    #[arg(long)]
    bin: PathBuf,
    /// Address of the load balancer.
    #[arg(long)]
    listen: SocketAddr,
    /// One Kafka and one Cassandra node instead of three.
    #[arg(long)]
    small: bool,
    /// What ends stays so.
    #[arg(long)]
    no_restart: bool,
}

impl Options {
    fn nodes(&self) -> usize {
        if self.small { 1 } else { 3 }
    }
}

pub fn run(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Start(options) => start(&options),
        Task::Run(options) => be(&options),
    }
}

/// Starts the supervisor apart from this terminal, shows what it says, and returns when the cluster is ready.
fn start(options: &Options) -> anyhow::Result<()> {
    let dir = &options.dir;
    if supervisor::is_running(dir)? {
        bail!("a cluster runs already ({}): make cluster-stop ends it", dir.join("processes").display());
    }
    drop(TcpListener::bind(options.listen).with_context(|| {
        format!(
            "{} can't be had for the load balancer; another address: LISTEN=127.0.0.1:8081 make cluster",
            options.listen
        )
    })?);
    fs::create_dir_all(dir)?;
    let path = dir.join(supervisor::LOG);
    let log = fs::File::create(&path)?;
    let mut arguments = std::env::args_os().skip(1).collect::<Vec<_>>();
    ensure!(arguments.get(1).is_some_and(|word| word == "start"), "the command line is not that of `cluster start`");
    arguments[1] = "run".into();
    let mut command = Command::new(std::env::current_exe()?);
    // Its input ends with this process: should that be before the cluster is ready, nobody waits for it any more.
    let mut supervisor = command.args(arguments).stdin(Stdio::piped()).stderr(log.try_clone()?).stdout(log).spawn()?;
    let mut shown = 0;
    loop {
        let ended = supervisor.try_wait()?;
        let written = fs::read(&path)?;
        std::io::stderr().write_all(&written[shown..])?;
        shown = written.len();
        if let Some(status) = ended {
            bail!("the cluster did not start ({status}); its logs are in {}", dir.display());
        }
        if supervisor::is_ready(dir, supervisor.id()) {
            break;
        }
        thread::sleep(LOOK_EVERY);
    }
    let restarts = if options.no_restart { "stays so" } else { "comes back after 2 s, under another pid" };
    print!(
        "http://{}\n\n{}\n\
         kill -9 PID ends one; it {restarts} (see {dir}/processes, {dir}/{log})\n\
         . {dir}/env has the addresses of all this; make cluster-stop ends it\n",
        options.listen,
        fs::read_to_string(dir.join("processes"))?,
        dir = dir.display(),
        log = supervisor::LOG,
    );
    Ok(())
}

/// Is the supervisor.
fn be(options: &Options) -> anyhow::Result<()> {
    let dir = options.dir.clone();
    let folder = Folder::take(&dir)?;
    // Fails only for whoever leads a session already.
    let _ = setsid();
    // A socket is a file to HAProxy and the edges.
    let files = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files });
    end_if_unwanted(dir);
    let mut cluster = Cluster::start(options, folder)?;
    cluster.folder.set_ready()?;
    eprintln!("ready");
    while !cluster.folder.is_stop_asked() {
        cluster.look()?;
        thread::sleep(LOOK_EVERY);
    }
    cluster.stop()
}

/// Until all is ready, starting may block for long: this ends the process, and the kernel its children, when whoever
/// started it is gone or the folder asks for the end.
fn end_if_unwanted(dir: PathBuf) {
    let unwanted = |why: &str| {
        eprintln!("given up: {why}");
        std::process::exit(1)
    };
    let asked = dir.clone();
    thread::spawn(move || {
        while !supervisor::is_ready(&asked, std::process::id()) {
            if supervisor::is_stop_asked(&asked) {
                unwanted("the end was asked for before all was ready");
            }
            thread::sleep(LOOK_EVERY);
        }
    });
    thread::spawn(move || {
        drop(std::io::stdin().read_to_end(&mut Vec::new()));
        if !supervisor::is_ready(&dir, std::process::id()) {
            unwanted("whoever started it has ended");
        }
    });
}

struct Cluster {
    // Ends in this order, where it is dropped.
    balancer: Option<Process>,
    roles: Vec<Process>,
    kafka: Kafka,
    cassandra: Cassandra,
    restarts: Restarts,
    /// Of each process: its ports and its log, for the table.
    notes: BTreeMap<String, String>,
    folder: Folder,
}

impl Cluster {
    fn start(options: &Options, folder: Folder) -> anyhow::Result<Self> {
        let dir = folder.path().to_owned();
        for name in ["logs", "certificates"] {
            fs::create_dir(dir.join(name))?;
        }
        let bin = options.bin.canonicalize().with_context(|| format!("{}", options.bin.display()))?;
        let program = |name: &str| bin.join(name).display().to_string();
        let (kafka, cassandra) = thread::scope(|scope| {
            let kafka = scope.spawn(|| Kafka::start_in(&dir.join("kafka"), options.nodes()));
            let options = cassandra::Options { nodes: options.nodes(), ..cassandra::Options::default() };
            let cassandra = scope.spawn(|| Cassandra::start_in(&dir.join("cassandra"), options));
            let joined = (kafka.join(), cassandra.join());
            Ok::<_, anyhow::Error>((
                joined.0.map_err(|_| anyhow!("a panic"))??,
                joined.1.map_err(|_| anyhow!("a panic"))??,
            ))
        })?;
        let restarts = Restarts::new((!options.no_restart).then_some(PAUSE));
        let mut this =
            Self { balancer: None, roles: vec![], kafka, cassandra, restarts, notes: BTreeMap::new(), folder };
        this.notes.insert(String::new(), format!("{:<38} log", "ports"));
        this.note_engines(&dir)?;

        let keys = dir.join("keys");
        must(Command::new(program("loadtest")).arg("keygen").arg(&keys))?;
        let authority = authority(&dir.join("certificates"))?;
        let plans = this.plan(&dir, options, &authority)?;
        fs::write(dir.join("env"), this.addresses(options, &plans, &dir))?;
        let settings = dir.join("posthaste.toml");
        for what in ["topics", "tables"] {
            must(Command::new(program("posthaste")).args(["admin", what, "--config"]).arg(&settings))?;
            eprintln!("posthaste admin {what}: done");
        }
        for plan in &plans {
            let (name, log) = (&plan.name, dir.join("logs").join(format!("{}.log", plan.name)));
            this.notes.insert(name.clone(), note(&plan.ports(), &log));
            let arguments = [plan.role, "--config", &plan.settings.display().to_string()].map(str::to_owned);
            this.roles.push(Process::start(name, &program("posthaste"), &arguments, &log)?);
        }
        this.show()?;
        let waited_for = || plans.iter().find(|plan| !answers(plan.admin, "/readyz")).map(|plan| plan.name.clone());
        this.until("all roles are ready", waited_for)?;

        let (settings, log) = (dir.join("haproxy.cfg"), dir.join("logs/haproxy.log"));
        fs::write(&settings, balancer(options.listen, &plans))?;
        this.notes.insert("haproxy".to_owned(), note(&format!("http {}", options.listen), &log));
        // In the foreground, as one process.
        let arguments = ["-db", "-f", &settings.display().to_string()].map(str::to_owned);
        this.balancer = Some(Process::start("haproxy", "haproxy", &arguments, &log)?);
        this.show()?;
        let waited_for = || (!answers(options.listen.port(), "/.well-known/jwks.json")).then(|| "haproxy".to_owned());
        this.until("the load balancer has an edge", waited_for)?;
        Ok(this)
    }

    /// All processes, in the order in which the table has them.
    fn processes<'a>(
        balancer: &'a mut Option<Process>,
        roles: &'a mut [Process],
        kafka: &'a mut Kafka,
        cassandra: &'a mut Cassandra,
    ) -> Vec<&'a mut Process> {
        balancer.iter_mut().chain(roles).chain(kafka.nodes()).chain(cassandra.nodes()).collect()
    }

    /// Looks at each process once, and starts again what has to be.
    fn look(&mut self) -> anyhow::Result<Vec<(String, Change)>> {
        let mut processes = Self::processes(&mut self.balancer, &mut self.roles, &mut self.kafka, &mut self.cassandra);
        let changes = self.restarts.look(&mut processes)?;
        if !changes.is_empty() {
            self.folder.show(&processes, &self.notes)?;
        }
        for (name, change) in &changes {
            match change {
                Change::Ended(status) => eprintln!("{name} has ended: {status}"),
                Change::Started => eprintln!("{name} is started again"),
                Change::Failed(error) => eprintln!("{name} can't be started: {error:#}"),
            }
        }
        Ok(changes)
    }

    fn show(&mut self) -> anyhow::Result<()> {
        let processes = Self::processes(&mut self.balancer, &mut self.roles, &mut self.kafka, &mut self.cassandra);
        self.folder.show(&processes, &self.notes)
    }

    /// Waits until there is no process that is waited for any more, and keeps all running meanwhile.
    fn until(&mut self, what: &str, waited_for: impl Fn() -> Option<String>) -> anyhow::Result<()> {
        let began = now();
        while let Some(name) = waited_for() {
            for (name, change) in self.look()? {
                if let Change::Ended(status) = change
                    && status.code() == Some(EXIT_USAGE)
                {
                    bail!("{name} ended ({status}):\n{}", self.last_lines(&name));
                }
            }
            if began.elapsed() > PATIENCE {
                bail!("{name} is not ready after {PATIENCE:?}:\n{}", self.last_lines(&name));
            }
            thread::sleep(LOOK_EVERY);
        }
        eprintln!("{what}: after {:.1} s", began.elapsed().as_secs_f64());
        Ok(())
    }

    fn last_lines(&self, name: &str) -> String {
        let mut processes = self.roles.iter().chain(&self.balancer);
        processes.find(|process| process.name() == name).map_or_else(String::new, Process::last_lines)
    }

    /// Ends the roles in order, edges first: they wait for what is under way; then everything else.
    fn stop(&mut self) -> anyhow::Result<()> {
        eprintln!("stopping");
        let (mut edges, mut others): (Vec<_>, Vec<_>) =
            self.roles.iter_mut().partition(|process| process.name().starts_with("edge"));
        supervisor::end(&mut edges, GRACE);
        supervisor::end(&mut others, GRACE);
        eprintln!("roles have ended");
        self.folder.clear()
    }

    fn note_engines(&mut self, dir: &Path) -> anyhow::Result<()> {
        let brokers = self.kafka.bootstrap();
        let points = self.cassandra.contact_points();
        let addresses = brokers.split(',').map(str::to_owned).chain(points);
        for (process, address) in self.kafka.nodes().chain(self.cassandra.nodes()).zip(addresses) {
            let log = dir.join("logs").join(format!("{}.log", process.name()));
            symlink(process.log(), &log)?;
            self.notes.insert(process.name().to_owned(), note(&address, &log));
        }
        Ok(())
    }

    /// Which processes there are to be, each with its settings written.
    fn plan(&self, dir: &Path, options: &Options, authority: &Authority) -> anyhow::Result<Vec<Plan>> {
        let settings = self.settings(dir, options);
        write_settings(&dir.join("posthaste.toml"), &settings, "", "")?;
        let mut ports = ports::free(ROLES.len() * OF_EACH * 3)?.into_iter();
        let mut port = || ports.next().context("a port for each listener");
        let mut plans = Vec::new();
        for role in ROLES {
            let certified = (role != "ingest").then(|| authority.issue(role)).transpose()?;
            for n in 1..=OF_EACH {
                let name = format!("{role}-{n}");
                let (admin, public) = (port()?, (role == "edge").then(&mut port).transpose()?);
                let link = LINKED.contains(&role).then(&mut port).transpose()?;
                let path = dir.join(format!("{name}.toml"));
                let listen = public.map_or(String::new(), |port| format!("listen = \"127.0.0.1:{port}\"\n"));
                let reached = link.map_or(String::new(), |port| format!("listen = \"127.0.0.1:{port}\"\n"));
                let links = certified.as_ref().map_or(String::new(), |(certificate, key)| {
                    let ca = &authority.certificate;
                    format!("\n[link]\n{reached}ca = {ca:?}\ncertificate = {certificate:?}\nkey = {key:?}\n")
                });
                let listeners = format!("{listen}admin_listen = \"127.0.0.1:{admin}\"\n");
                write_settings(&path, &settings, &listeners, &links)?;
                plans.push(Plan { name, role, admin, link, public, settings: path });
            }
        }
        Ok(plans)
    }

    /// The settings that all roles share: what stands before the tables, and the tables.
    fn settings(&self, dir: &Path, options: &Options) -> [String; 2] {
        let points = self.cassandra.contact_points().join(",");
        let (replication, in_sync) = if options.small { (1, 1) } else { (3, 2) };
        let jwks = dir.join("keys/jwks.json");
        [
            format!("partitions = {PARTITIONS}\n# All who come here have one address.\nrate_limits = false\n"),
            format!(
                "
[issuers]
load = {jwks:?}

[edge]
trusted_proxies = [\"127.0.0.1\"]

[kafka]
bootstrap = \"{}\"
replication = {replication}
min_in_sync = {in_sync}

[cassandra]
contact_points = \"{points}\"
keyspace = \"posthaste\"
datacenter = \"datacenter1\"
replication = {replication}
",
                self.kafka.bootstrap()
            ),
        ]
    }

    /// What other programs need to know, for a shell to read.
    fn addresses(&self, options: &Options, plans: &[Plan], dir: &Path) -> String {
        let points = self.cassandra.contact_points();
        let (host, port) = points.first().and_then(|point| point.split_once(':')).unwrap_or_default();
        let admins: Vec<String> =
            plans.iter().map(|plan| format!("{}=http://127.0.0.1:{}", plan.name, plan.admin)).collect();
        format!(
            "# The addresses of what `make cluster` runs: `. {}`
URL='http://{}'
BROKERS='{}'
CONTACT_POINTS='{}'
# For cqlsh: the first of them.
export CQLSH_HOST='{}' CQLSH_PORT='{}'
# Health and metrics of each role's processes.
ADMIN='{}'
# `posthaste admin … --config $SETTINGS`
SETTINGS='{}'
# `loadtest run --target $URL --issuer load --issuer-key $KEY …`
KEY='{}'
",
            dir.join("env").display(),
            options.listen,
            self.kafka.bootstrap(),
            points.join(","),
            host,
            port,
            admins.join(" "),
            dir.join("posthaste.toml").display(),
            dir.join("keys/key.pem").display(),
        )
    }
}

/// One process of a role.
struct Plan {
    name: String,
    role: &'static str,
    admin: u16,
    /// For edges: fanouts and archivers have it.
    link: Option<u16>,
    /// For clients: edges alone have it.
    public: Option<u16>,
    settings: PathBuf,
}

impl Plan {
    fn ports(&self) -> String {
        let public = self.public.map_or(String::new(), |port| format!("http {port}, "));
        let link = self.link.map_or(String::new(), |port| format!(", link {port}"));
        format!("{public}admin {}{link}", self.admin)
    }
}

/// The part of a line of the table behind name and pid.
fn note(ports: &str, log: &Path) -> String {
    format!("{ports:<38} {}", log.display())
}

fn write_settings(path: &Path, [top, tables]: &[String; 2], own_top: &str, own_tables: &str) -> anyhow::Result<()> {
    Ok(fs::write(path, format!("# Written by `make cluster`.\n{own_top}{top}{tables}{own_tables}"))?)
}

/// Runs a command to its end.
fn must(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    bail!("{command:?} failed ({}):\n{}", output.status, String::from_utf8_lossy(&said))
}

/// Whether a server on loopback answers with 200.
fn answers(port: u16, path: &str) -> bool {
    let ask = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n")?;
        let mut answer = vec![0; b"HTTP/1.1 200".len()];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.ends_with(b" 200"))
}

/// The load balancer's settings.
fn balancer(listen: SocketAddr, plans: &[Plan]) -> String {
    let mut servers = String::new();
    for (plan, port) in plans.iter().filter_map(|plan| Some((plan, plan.public?))) {
        servers += &format!("    server {} 127.0.0.1:{port} check port {}\n", plan.name, plan.admin);
    }
    format!(
        "# Written by `make cluster`.
global
    fd-hard-limit {BALANCER_FILES}
    log stdout format raw local0 notice

defaults
    mode http
    log global
    # The edges trust this header from here (edge.trusted_proxies).
    option forwardfor
    timeout connect 2s
    timeout check 1s
    timeout http-request 10s
    timeout http-keep-alive 60s
    timeout client 60s
    timeout server 60s
    # Of WebSockets, both ways: an edge pings more often.
    timeout tunnel 10m
    timeout client-fin 10s
    # A request that no server has seen goes to another edge.
    option redispatch 1
    retries 2
    retry-on conn-failure

frontend clients
    bind {listen}
    default_backend edges

backend edges
    balance leastconn
    # 503 as soon as an edge begins to stop: no new connections, and its open ones end as it tells them.
    option httpchk GET /readyz
    http-check expect status 200
    default-server inter 500ms fall 2 rise 1
{servers}"
    )
}

/// Who signs the certificates of the link; its key is in memory alone.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
    /// PEM file of its certificate.
    certificate: PathBuf,
}

fn authority(dir: &Path) -> anyhow::Result<Authority> {
    let mut params = CertificateParams::new([])?;
    params.distinguished_name.push(DnType::CommonName, "posthaste cluster on this machine");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let certificate = dir.join("ca.pem");
    fs::write(&certificate, issuer.pem())?;
    Ok(Authority { issuer, dir: dir.to_owned(), certificate })
}

impl Authority {
    /// Files of a certificate and its key, for what has this role, as client and as server.
    fn issue(&self, role: &str) -> anyhow::Result<(PathBuf, PathBuf)> {
        let mut params = CertificateParams::new([format!("{role}.posthaste.internal")])?;
        params.distinguished_name.push(DnType::CommonName, role);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let (certificate_file, key_file) = (self.dir.join(format!("{role}.pem")), self.dir.join(format!("{role}.key")));
        fs::write(&certificate_file, params.signed_by(&key, &self.issuer)?.pem())?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&key_file)?;
        file.write_all(key.serialize_pem().as_bytes())?;
        Ok((certificate_file, key_file))
    }
}
