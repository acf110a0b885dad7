//! Kafka in KRaft mode: one node, or several with replication 3 and two in sync, each broker and controller in one
//! process. Settings make it start quickly and fail over quickly on a small machine; what a client can observe besides
//! is as shipped.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{bail, ensure};

use crate::home::Home;
use crate::process::{Process, now};
use crate::{jars, java, ports};

/// Which jars it consists of.
const JARS: &str = include_str!("../kafka.jars");
/// A node is ready within this time, or something is wrong: 2–6 s are usual, a loaded machine takes many times that.
const PATIENCE: Duration = Duration::from_secs(120);
/// 16 bytes in base64url, the same in every trial: clusters meet nobody beyond their own ports.
const CLUSTER_ID: &str = "cG9zdGhhc3RlLXRyaWFscw";

/// A running cluster; it ends, and its data goes unless it is in a directory of the caller's, when this is dropped.
pub struct Kafka {
    // Declared first, so that the nodes end before their data goes.
    nodes: Vec<Node>,
    class_path: String,
    home: Home,
    /// Names and passwords of who may come; without them everyone may.
    users: Vec<(String, String)>,
}

struct Node {
    id: usize,
    port: u16,
    /// Where brokers meet.
    internal: u16,
    process: Option<Process>,
}

impl Kafka {
    /// Starts an empty cluster and returns once each node is ready.
    ///
    /// # Errors
    /// With what to do about it, where Java or a jar is missing; with the last lines of its output, where a node does
    /// not start.
    pub fn start(nodes: usize) -> anyhow::Result<Self> {
        Self::begin(nodes, Vec::new(), Home::temporary("kafka")?)
    }

    /// As [`Kafka::start`], with data and logs in an empty directory that stays.
    ///
    /// # Errors
    /// As [`Kafka::start`].
    pub fn start_in(dir: &Path, nodes: usize) -> anyhow::Result<Self> {
        Self::begin(nodes, Vec::new(), Home::kept(dir)?)
    }

    /// Starts one node that wants TLS, SCRAM-SHA-512 and permission from everyone: these users (name, password) and these
    /// rules, `principal operation type pattern name`. The user `operator` may everything. Whoever signs for the node is in
    /// [`Kafka::authority`].
    ///
    /// # Errors
    /// As [`Kafka::start`].
    pub fn start_secured(users: &[(&str, &str)], rules: &[&str]) -> anyhow::Result<Self> {
        let users = users.iter().map(|(name, password)| ((*name).to_owned(), (*password).to_owned())).collect();
        let this = Self::begin(1, users, Home::temporary("kafka")?)?;
        let output = Command::new("java")
            .args(["-Xmx128m", "-cp", &this.class_path])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/src/Acls.java"))
            .arg(format!("127.0.0.1:{}", this.nodes[0].internal))
            .args(rules)
            .output()?;
        ensure!(output.status.success(), "Acls.java: {}", String::from_utf8_lossy(&output.stderr));
        Ok(this)
    }

    /// PEM file of who has signed the node's certificate, where it has one.
    pub fn authority(&self) -> PathBuf {
        self.home.path().join("authority.pem")
    }

    fn begin(nodes: usize, users: Vec<(String, String)>, home: Home) -> anyhow::Result<Self> {
        ensure!(nodes > 0, "a cluster has at least one node");
        let began = now();
        java::need()?;
        let class_path = jars::class_path("kafka", JARS)?;
        std::fs::write(home.path().join("log4j2.properties"), LOG4J)?;
        let ports = ports::free(3 * nodes)?;
        let (controllers, others) = ports.split_at(nodes);
        let brokers = others.chunks(2).map(|ports| (ports[0], ports[1]));
        let nodes =
            (1..).zip(brokers).map(|(id, (port, internal))| Node { id, port, internal, process: None }).collect();
        let mut this = Self { nodes, class_path, home, users };
        if !this.users.is_empty() {
            let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
            let pair = format!("{}{}", made.signing_key.serialize_pem(), made.cert.pem());
            std::fs::write(this.home.path().join("node.pem"), pair)?;
            std::fs::write(this.authority(), made.cert.pem())?;
        }
        for (node, controller) in this.nodes.iter().zip(controllers) {
            let home = this.home_of(node);
            std::fs::create_dir(&home)?;
            std::fs::write(home.join("server.properties"), this.settings(node, *controller, controllers))?;
        }
        this.each_node(|this, node| this.format(node))?;
        this.start_all()?;
        eprintln!("kafka: {} nodes ready after {:.1} s", this.nodes.len(), began.elapsed().as_secs_f64());
        Ok(this)
    }

    /// Where clients begin: `host:port,…`.
    pub fn bootstrap(&self) -> String {
        self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect::<Vec<_>>().join(",")
    }

    /// Kills a node, counted from 0, with -9.
    pub fn kill(&mut self, node: usize) {
        if let Some(process) = &mut self.nodes[node].process {
            process.kill();
        }
    }

    /// Starts a killed node again, on what it left, and returns once it is ready.
    ///
    /// # Errors
    /// As [`Kafka::start`].
    pub fn start_node(&mut self, node: usize) -> anyhow::Result<()> {
        let Some(process) = &mut self.nodes[node].process else { bail!("node {node} was never started") };
        process.start_again()?;
        process.ready(PATIENCE, is_ready)
    }

    /// Process ids of the nodes that run.
    pub fn processes(&self) -> Vec<u32> {
        self.nodes.iter().filter_map(|node| node.process.as_ref()?.id()).collect()
    }

    /// The nodes themselves, for whoever watches over them.
    pub fn nodes(&mut self) -> impl Iterator<Item = &mut Process> {
        self.nodes.iter_mut().filter_map(|node| node.process.as_mut())
    }

    fn start_all(&mut self) -> anyhow::Result<()> {
        // A quorum of controllers must be up before the first is ready: all are launched before one is waited for.
        let mut launched = self.nodes.iter().map(|node| self.launch(node)).collect::<anyhow::Result<Vec<_>>>()?;
        for process in &mut launched {
            process.ready(PATIENCE, is_ready)?;
        }
        for (node, process) in self.nodes.iter_mut().zip(launched) {
            node.process = Some(process);
        }
        Ok(())
    }

    fn launch(&self, node: &Node) -> anyhow::Result<Process> {
        let home = self.home_of(node);
        let mut arguments: Vec<String> = [
            "-Xms256m",
            "-Xmx512m",
            "-XX:+UseG1GC",
            "-XX:MaxGCPauseMillis=20",
            "-XX:MaxDirectMemorySize=128m",
            "-XX:TieredStopAtLevel=1",
        ]
        .map(str::to_owned)
        .to_vec();
        arguments.push(format!("-Dkafka.logs.dir={}", home.display()));
        arguments.push(format!("-Dlog4j2.configurationFile={}", self.home.path().join("log4j2.properties").display()));
        arguments.extend(["-cp".to_owned(), self.class_path.clone(), "kafka.Kafka".to_owned()]);
        arguments.push(home.join("server.properties").display().to_string());
        Process::start(&format!("kafka-{}", node.id), "java", &arguments, &home.join("output"))
    }

    /// Makes a node's directory one of this cluster.
    fn format(&self, node: &Node) -> anyhow::Result<()> {
        let output = Command::new("java")
            .args(["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .args(["-cp", &self.class_path, "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"])
            .arg(self.home_of(node).join("server.properties"))
            .args(self.users.iter().flat_map(|(name, password)| {
                ["--add-scram".to_owned(), format!("SCRAM-SHA-512=[name={name},password={password}]")]
            }))
            .output()?;
        ensure!(output.status.success(), "StorageTool format: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn each_node(&self, work: impl Fn(&Self, &Node) -> anyhow::Result<()> + Sync) -> anyhow::Result<()> {
        thread::scope(|scope| {
            let threads: Vec<_> = self.nodes.iter().map(|node| scope.spawn(|| work(self, node))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a panic"))?)
        })
    }

    fn settings(&self, node: &Node, controller: u16, controllers: &[u16]) -> String {
        let voters: Vec<String> =
            (1..).zip(controllers).map(|(id, port)| format!("{id}@127.0.0.1:{port}")).collect::<Vec<_>>();
        let (replicas, in_sync) = if controllers.len() >= 3 { (3, 2) } else { (1, 1) };
        // A node that comes back must wait until its former self is given up.
        let session_ms = if controllers.len() > 1 { 3_000 } else { 2_000 };
        let security = if self.users.is_empty() {
            String::new()
        } else {
            // Brokers and controller meet unauthenticated, on addresses that clients are not told.
            format!(
                "ssl.keystore.type=PEM
ssl.keystore.location={}
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.clients.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:operator;User:ANONYMOUS
",
                self.home.path().join("node.pem").display()
            )
        };
        format!(
            "process.roles=broker,controller
node.id={id}
controller.quorum.voters={voters}
listeners=CLIENTS://127.0.0.1:{port},INTERNAL://127.0.0.1:{internal},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=CLIENTS://127.0.0.1:{port},INTERNAL://127.0.0.1:{internal}
listener.security.protocol.map=CLIENTS:{clients},INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=INTERNAL
log.dirs={data}
auto.create.topics.enable=false
default.replication.factor={replicas}
min.insync.replicas={in_sync}
offsets.topic.replication.factor={replicas}
offsets.topic.num.partitions=4
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor={replicas}
share.coordinator.state.topic.min.isr={in_sync}
group.initial.rebalance.delay.ms=0
group.consumer.session.timeout.ms=3000
group.consumer.min.session.timeout.ms=3000
group.consumer.heartbeat.interval.ms=500
group.consumer.min.heartbeat.interval.ms=500
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
broker.session.timeout.ms={session_ms}
broker.heartbeat.interval.ms=500
controller.quorum.fetch.timeout.ms=1500
controller.quorum.election.timeout.ms=500
controller.quorum.election.backoff.max.ms=300
log.cleaner.dedupe.buffer.size=4194304
log.index.size.max.bytes=65536
{security}",
            id = node.id,
            voters = voters.join(","),
            port = node.port,
            internal = node.internal,
            clients = if self.users.is_empty() { "PLAINTEXT" } else { "SASL_SSL" },
            data = self.home_of(node).join("data").display(),
        )
    }

    fn home_of(&self, node: &Node) -> PathBuf {
        self.home.path().join(format!("node-{}", node.id))
    }
}

fn is_ready(written: &str) -> bool {
    written.contains("Kafka Server started")
}

/// To standard output, which goes into a file of the node's directory.
const LOG4J: &str = "rootLogger.level=INFO
rootLogger.appenderRef.out.ref=OUT
appender.out.type=Console
appender.out.name=OUT
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d{HH:mm:ss,SSS} %p %c{1} %m%n
";
