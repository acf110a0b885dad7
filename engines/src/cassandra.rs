//! Cassandra: one node, or three that each hold a token of their own, one process each. Settings make it start quickly on a
//! small machine; what a client can observe besides is as shipped, but for the commit log: `batch`, since `periodic`, which
//! is shipped, loses what it has acknowledged when it is killed.

use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{bail, ensure};

use crate::home::Home;
use crate::process::{Process, now};
use crate::{jars, java, ports};

/// Which jars it consists of.
const JARS: &str = include_str!("../cassandra.jars");
/// A node is ready within this time, or something is wrong: 5–14 s are usual, a loaded machine takes several times that.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a cluster is to be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// One, or three.
    pub nodes: usize,
    /// `commitlog_sync`: `batch`, `group` or `periodic`.
    pub commit_log: &'static str,
    /// Whether it asks for a password: that of the user `cassandra` is `cassandra`. The first sign-in right after the start
    /// may still be refused.
    pub passwords: bool,
    /// A PEM file with a private key (PKCS #8) and its certificate: clients must come by TLS then.
    pub tls: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { nodes: 1, commit_log: "batch", passwords: false, tls: None }
    }
}

/// A running cluster; it ends, and its data goes unless it is in a directory of the caller's, when this is dropped.
pub struct Cassandra {
    // Declared first, so that the nodes end before their data goes.
    nodes: Vec<Node>,
    options: Options,
    class_path: String,
    agent: PathBuf,
    home: Home,
    storage_port: u16,
    port: u16,
}

struct Node {
    address: Ipv4Addr,
    process: Option<Process>,
}

impl Cassandra {
    /// Starts an empty cluster and returns once every node serves clients and sees the others.
    ///
    /// # Errors
    /// With what to do about it, where Java or a jar is missing; with the last lines of its output, where a node does
    /// not start.
    pub fn start(options: Options) -> anyhow::Result<Self> {
        Self::begin(options, Home::temporary("cassandra")?)
    }

    /// As [`Cassandra::start`], with data and logs in an empty directory that stays.
    ///
    /// # Errors
    /// As [`Cassandra::start`].
    pub fn start_in(dir: &Path, options: Options) -> anyhow::Result<Self> {
        Self::begin(options, Home::kept(dir)?)
    }

    fn begin(options: Options, home: Home) -> anyhow::Result<Self> {
        ensure!([1, 3].contains(&options.nodes), "a cluster here has one node or three");
        let began = now();
        java::need()?;
        let class_path = jars::class_path("cassandra", JARS)?;
        let agent = jars::path("cassandra", JARS, "jamm")?;
        std::fs::write(home.path().join("logback.xml"), LOGBACK)?;
        // The nodes have an address each and so can have the same ports: drivers expect one port of the whole cluster.
        let free = ports::free(2)?;
        let nodes = (1..=options.nodes).map(|n| Node { address: Ipv4Addr::new(127, 0, 0, n as u8), process: None });
        let (nodes, storage_port, port) = (nodes.collect(), free[0], free[1]);
        let mut this = Self { nodes, options, class_path, agent, home, storage_port, port };
        for index in 0..this.nodes.len() {
            let home = this.home_of(index);
            std::fs::create_dir_all(home.join("tmp"))?;
            std::fs::write(home.join("cassandra.yaml"), this.settings(index))?;
        }
        let mut launched = (0..this.nodes.len()).map(|index| this.launch(index)).collect::<anyhow::Result<Vec<_>>>()?;
        let others = this.nodes.len() - 1;
        for (process, address) in launched.iter_mut().zip(this.contact_points()) {
            process.ready(PATIENCE, |written| is_ready(written, others, &address))?;
        }
        for (node, process) in this.nodes.iter_mut().zip(launched) {
            node.process = Some(process);
        }
        eprintln!("cassandra: {} nodes ready after {:.1} s", this.nodes.len(), began.elapsed().as_secs_f64());
        Ok(this)
    }

    /// Where clients begin: `host:port` of each node.
    pub fn contact_points(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("{}:{}", node.address, self.port)).collect()
    }

    /// Kills a node, counted from 0, with -9.
    pub fn kill(&mut self, node: usize) {
        if let Some(process) = &mut self.nodes[node].process {
            process.kill();
        }
    }

    /// Starts a killed node again, on what it left, and returns once it serves clients.
    ///
    /// # Errors
    /// As [`Cassandra::start`].
    pub fn start_node(&mut self, node: usize) -> anyhow::Result<()> {
        let address = &self.contact_points()[node];
        let Some(process) = &mut self.nodes[node].process else { bail!("node {node} was never started") };
        process.start_again()?;
        process.ready(PATIENCE, |written| is_ready(written, 0, address))
    }

    /// Process ids of the nodes that run.
    pub fn processes(&self) -> Vec<u32> {
        self.nodes.iter().filter_map(|node| node.process.as_ref()?.id()).collect()
    }

    /// The nodes themselves, for whoever watches over them.
    pub fn nodes(&mut self) -> impl Iterator<Item = &mut Process> {
        self.nodes.iter_mut().filter_map(|node| node.process.as_mut())
    }

    fn home_of(&self, node: usize) -> PathBuf {
        self.home.path().join(format!("node-{}", node + 1))
    }

    fn launch(&self, node: usize) -> anyhow::Result<Process> {
        let home = self.home_of(node);
        let mut arguments: Vec<String> = JVM.iter().map(|option| (*option).to_owned()).collect();
        for (option, packages) in [("--add-exports", EXPORTS), ("--add-opens", OPENS)] {
            arguments.extend(packages.iter().map(|package| format!("{option}={package}=ALL-UNNAMED")));
        }
        let path = |name: &str| home.join(name).display().to_string();
        arguments.extend([
            format!("-javaagent:{}", self.agent.display()),
            format!("-Dcassandra.config=file://{}", path("cassandra.yaml")),
            format!("-Dcassandra.storagedir={}", home.display()),
            format!("-Dcassandra.logdir={}", path("log")),
            format!("-Dlogback.configurationFile={}", self.home.path().join("logback.xml").display()),
            format!("-Djava.io.tmpdir={}", path("tmp")),
            format!("-Djna.tmpdir={}", path("tmp")),
        ]);
        arguments.extend([
            "-cp".into(),
            self.class_path.clone(),
            "org.apache.cassandra.service.CassandraDaemon".into(),
        ]);
        // Its idle threads sleep for microseconds and look for work again, which on two cores leaves little for the others:
        // with a coarser timer they do so a tenth as often.
        let java = format!("echo {TIMER_SLACK_NS} > /proc/$$/timerslack_ns; exec java \"$@\"");
        let shell = ["-c".to_owned(), java, "sh".to_owned()];
        let arguments: Vec<String> = shell.into_iter().chain(arguments).collect();
        Process::start(&format!("cassandra-{}", node + 1), "sh", &arguments, &home.join("output"))
    }

    fn settings(&self, node: usize) -> String {
        let (home, address) = (self.home_of(node), self.nodes[node].address);
        // All are seeds: right for a new and empty cluster alone.
        let seeds: Vec<_> = self.nodes.iter().map(|node| format!("{}:{}", node.address, self.storage_port)).collect();
        // The ring in equal parts.
        let token = i128::from(i64::MIN) + (1 << 64) / self.nodes.len() as i128 * node as i128;
        let directory = |name: &str| home.join(name).display().to_string();
        let mut settings = format!(
            r#"cluster_name: posthaste
num_tokens: 1
initial_token: "{token}"
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: SimpleSnitch
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters: [{{seeds: "{seeds}"}}]
listen_address: {address}
rpc_address: {address}
storage_port: {storage_port}
start_native_transport: true
native_transport_port: {port}
data_file_directories: ["{data}"]
commitlog_directory: "{commit_log_directory}"
hints_directory: "{hints}"
saved_caches_directory: "{caches}"
cdc_raw_directory: "{cdc}"
commitlog_sync: {commit_log}
commitlog_segment_size: 16MiB
memtable: {{configurations: {{default: {{class_name: TrieMemtable}}}}}}
memtable_allocation_type: offheap_objects
memtable_heap_space: 64MiB
memtable_offheap_space: 64MiB
sstable: {{selected_format: bti}}
storage_compatibility_mode: NONE
key_cache_size: 0MiB
row_cache_size: 0MiB
counter_cache_size: 0MiB
file_cache_size: 64MiB
concurrent_compactors: 1
auto_snapshot: false
"#,
            seeds = seeds.join(","),
            storage_port = self.storage_port,
            port = self.port,
            data = directory("data"),
            commit_log_directory = directory("commitlog"),
            hints = directory("hints"),
            caches = directory("saved_caches"),
            cdc = directory("cdc_raw"),
            commit_log = self.options.commit_log,
        );
        settings += match self.options.commit_log {
            "periodic" => "commitlog_sync_period: 10s\n",
            "group" => "commitlog_sync_group_window: 5ms\n",
            _ => "",
        };
        if self.options.passwords {
            settings += "authenticator: PasswordAuthenticator
authorizer: CassandraAuthorizer
role_manager: CassandraRoleManager
";
        }
        if let Some(pem) = &self.options.tls {
            settings += &encryption(pem);
        }
        settings
    }
}

fn encryption(pem: &Path) -> String {
    format!(
        "client_encryption_options:
  enabled: true
  optional: false
  keystore: \"{}\"
  ssl_context_factory: {{class_name: org.apache.cassandra.security.PEMBasedSslContextFactory}}
",
        pem.display()
    )
}

/// An open port does not mean that the ring has formed: a node also says of each other one that it sees it.
fn is_ready(written: &str, others: usize, address: &str) -> bool {
    let seen = written.lines().filter(|line| line.ends_with("is now UP")).count();
    seen >= others && TcpStream::connect(address).is_ok()
}

/// By how much a thread may wake too late, ns. The kernel's default is 50,000.
const TIMER_SLACK_NS: u32 = 500_000;

/// A small `-Xms`: as root all of it is locked into memory.
const JVM: [&str; 13] = [
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xms96m",
    "-Xmx512m",
    "-Xss256k",
    "-XX:MaxDirectMemorySize=256m",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djdk.attach.allowAttachSelf=true",
    "-Dio.netty.tryReflectionSetAccessible=true",
    "-Djava.net.preferIPv4Stack=true",
    // Else it closes its output once it has started.
    "-Dcassandra-foreground=true",
    "-Dcassandra.superuser_setup_delay_ms=0",
    // No waiting for gossip to settle: who is there is known.
    "-Dcassandra.skip_wait_for_gossip_to_settle=0",
];

/// What Cassandra reaches into on Java 17 (its conf/jvm17-server.options).
const EXPORTS: &[&str] = &[
    "java.base/jdk.internal.misc",
    "java.base/java.lang.ref",
    "java.management.rmi/com.sun.jmx.remote.internal.rmi",
    "java.rmi/sun.rmi.registry",
    "java.rmi/sun.rmi.server",
    "java.sql/java.sql",
    "jdk.unsupported/sun.misc",
    "jdk.compiler/com.sun.tools.javac.file",
    "jdk.attach/sun.tools.attach",
];
const OPENS: &[&str] = &[
    "java.base/java.lang.module",
    "java.base/jdk.internal.loader",
    "java.base/jdk.internal.ref",
    "java.base/jdk.internal.reflect",
    "java.base/jdk.internal.math",
    "java.base/jdk.internal.module",
    "java.base/jdk.internal.util.jar",
    "java.base/sun.nio.ch",
    "java.base/java.io",
    "java.base/java.lang",
    "java.base/java.lang.reflect",
    "java.base/java.nio",
    "java.base/java.util",
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "jdk.management/com.sun.management.internal",
    "jdk.compiler/com.sun.tools.javac",
];

/// To standard output, which goes into a file of the node's directory.
const LOGBACK: &str = r#"<configuration>
  <appender name="OUT" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%date{HH:mm:ss.SSS} %level %logger{0} %msg%n</pattern></encoder>
  </appender>
  <root level="INFO"><appender-ref ref="OUT"/></root>
</configuration>
"#;
