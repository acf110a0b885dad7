//! One schedule from beginning to end: starts the processes, lets people act and things go wrong as planned, heals all,
//! waits until everything has settled, and has it judged from outside and from inside.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use checker::Step;
use client::Method;
use edge::auth::password::{PasswordHasher, Verdict as PasswordVerdict};
use edge::hub::Hub;
use edge::metrics::HubMetrics;
use parking_lot::Mutex;
use prometheus::Registry;
use prometheus::proto::MetricType;
use schemas::link::Unavailable;
use schemas::{Clock, EdgeId, Entropy, RoomId};
use serde_json::json;
use store::Store;
use store::memory::{Archived, MemoryStore};
use stream::Log;
use stream::memory::MemoryLog;
use testkit::clock::Seeded;
use testkit::cluster::NoNetwork;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use crate::links::Links;
use crate::log::ProcessLog;
use crate::network::Network;
use crate::people::{self, Device, People};
use crate::plan::{Deed, Harm, Layout, Plan, Role};
use crate::record::Record;
use crate::store::ProcessStore;
use crate::surroundings::{Call, Cut, Surroundings, Trouble};
use crate::tasks::{ProcessId, Tasks, WORLD};
use crate::time::ProcessClock;
use crate::{Outcome, inside};

/// Silence after which a group gives a member up.
const SESSION: Duration = Duration::from_millis(1_200);

/// How long the store is away that comes back with less.
const AWAY: Duration = Duration::from_millis(2_500);

/// Time for everything to settle once all is well: above every back-off and deadline there is.
const SETTLE: Duration = Duration::from_secs(300);

/// Clients are processes from here on.
const FIRST_CLIENT: u32 = 1_000_000;

struct World {
    seed: u64,
    plan: Plan,
    tasks: Arc<Tasks>,
    around: Arc<Surroundings>,
    links: Arc<Links>,
    network: Arc<Network>,
    people: Arc<People>,
    store: Arc<MemoryStore>,
    start: Instant,
    devices: Vec<Device>,
    state: Mutex<State>,
}

struct State {
    log: MemoryLog,
    slots: Vec<Slot>,
    next_process: u32,
    next_client: u32,
    archived: Vec<(Instant, Archived)>,
    rooms: Vec<RoomId>,
    quiet: bool,
}

/// A place for a process.
struct Slot {
    roles: Vec<Role>,
    clock: ProcessClock,
    running: Option<Running>,
}

struct Running {
    process: ProcessId,
    registry: Registry,
    /// Kept so that roles are not told to stop.
    _stop: watch::Sender<bool>,
}

/// Nobody signs in with a password here.
struct NoPasswords;

#[async_trait]
impl PasswordHasher for NoPasswords {
    async fn hash(&self, _: String, _: [u8; 16]) -> Result<String, Unavailable> {
        Err(Unavailable)
    }

    async fn verify(&self, _: String, _: Option<String>) -> Result<PasswordVerdict, Unavailable> {
        Err(Unavailable)
    }

    fn depth(&self) -> usize {
        0
    }
}

/// Runs the schedule of a seed without these faults.
pub async fn run(seed: u64, without: &[usize]) -> Outcome {
    let plan = Plan::new(seed, without);
    let tasks = Tasks::new(seed);
    let around = Surroundings::new(seed, Arc::clone(&tasks));
    around.born(WORLD);
    let record = Arc::new(Record::default());
    let network = Network::new(Arc::clone(&around), Arc::clone(&record));
    let start = Instant::now();
    let clock = ProcessClock::new(start);
    let people = People::new(Arc::clone(&around), Arc::clone(&network), Arc::clone(&record), clock, seed);
    let devices = plan.clients.iter().enumerate();
    let devices = devices.map(|(number, user)| people.device(number, *user, ProcessClock::new(start))).collect();
    let slot = |roles| Slot { roles, clock: ProcessClock::new(start), running: None };
    let state = State {
        log: MemoryLog::new(),
        slots: plan.layout.processes().into_iter().map(slot).collect(),
        next_process: 1,
        next_client: FIRST_CLIENT,
        archived: Vec::new(),
        rooms: Vec::new(),
        quiet: false,
    };
    let world = Arc::new(World {
        seed,
        links: Links::new(Arc::clone(&around)),
        plan,
        tasks: Arc::clone(&tasks),
        around: Arc::clone(&around),
        network,
        people,
        store: Arc::new(MemoryStore::new()),
        start,
        devices,
        state: Mutex::new(state),
    });
    let (durable, watched) = (Mutex::new(inside::Durable::default()), Arc::downgrade(&world));
    record.watch(Box::new(move |room, seq, id| {
        // Where there is no world any more nothing is told.
        let Some(world) = watched.upgrade() else { return true };
        let log = world.state.lock().log.clone();
        durable.lock().holds(&log, room, seq, id)
    }));
    // The script is a task like any other: everything takes its turn.
    let (done, ended) = tokio::sync::oneshot::channel();
    let script = Arc::clone(&world);
    tasks.spawn(WORLD, async move {
        if let Err(error) = script.script().await {
            script.around.broken(format!("the schedule could not be run: {error:#}"));
        }
        // Whoever waits for it waits to the end.
        let _ = done.send(());
    });
    drop(tasks.run(ended).await);
    let slots = world.state.lock().slots.len();
    (0..slots).for_each(|slot| world.count(slot));
    let mut broken = around.all_broken();
    broken.extend(record.judge());
    let (polls, order) = tasks.trace();
    let (steps, seen_steps) = record.trace();
    let trace = checker::digest(&[&order.to_be_bytes(), &seen_steps.to_be_bytes()]);
    Outcome { broken, seen: around.seen(), polls, steps, trace }
}

impl World {
    async fn script(self: &Arc<Self>) -> anyhow::Result<()> {
        let log = self.state.lock().log.clone();
        log.create(self.plan.partitions).await?;
        let slots = self.state.lock().slots.len();
        (0..slots).for_each(|slot| self.start(slot));
        self.make_rooms().await?;
        (0..self.devices.len()).for_each(|device| self.start_client(device));

        let beginning = Instant::now();
        let due = move |at_ms: u64| beginning + Duration::from_millis(at_ms);
        for (_, harm) in self.plan.harms.clone() {
            let world = Arc::clone(self);
            self.tasks.spawn(WORLD, async move {
                sleep_until(due(harm.at_ms)).await;
                tracing::debug!(?harm, "begins");
                world.around.saw(&format!("fault: {}", harm.what.name()));
                world.harm(harm.what, Duration::from_millis(harm.for_ms)).await;
            });
        }
        let world = Arc::clone(self);
        self.tasks.spawn(WORLD, async move { world.remember_archives().await });
        let world = Arc::clone(self);
        self.tasks.spawn(WORLD, async move { world.watch_progress().await });
        for (number, deed) in self.plan.deeds.clone().into_iter().enumerate() {
            sleep_until(due(deed.at_ms)).await;
            self.act(number, deed.what);
        }
        sleep_until(due(self.plan.length_ms)).await;
        self.heal().await;
        self.settle().await;
        self.tell_all_was_read().await;
        self.audit().await?;
        let (log, quiet) = {
            let state = self.state.lock();
            (state.log.clone(), state.quiet)
        };
        if quiet {
            let broken = inside::check(&log, &self.store).await?;
            broken.into_iter().for_each(|broken| self.around.broken(broken));
            let users = (0..self.plan.users).map(People::user).collect::<Vec<_>>();
            for history in self.links.histories() {
                let broken = inside::check_history(&log, &*history, &users).await?;
                broken.into_iter().for_each(|broken| self.around.broken(broken));
            }
        }
        Ok(())
    }

    /// Starts the process of a slot, unless it runs.
    fn start(self: &Arc<Self>, slot: usize) {
        let (process, roles, clock, stop, registry, log) = {
            let mut state = self.state.lock();
            let process = ProcessId(state.next_process);
            let log = state.log.clone();
            let Some(place) = state.slots.get_mut(slot).filter(|place| place.running.is_none()) else { return };
            let (stop, stopped) = watch::channel(false);
            let registry = Registry::new();
            place.running = Some(Running { process, registry: registry.clone(), _stop: stop });
            let started = (process, place.roles.clone(), place.clock.clone(), stopped, registry, log);
            state.next_process += 1;
            started
        };
        self.around.born(process);
        tracing::debug!(?process, ?roles, "starts");
        let log: Arc<dyn Log> = Arc::new(ProcessLog::new(Arc::new(log), Arc::clone(&self.around), process));
        let store = ProcessStore::new(Arc::clone(&self.store), Arc::clone(&self.around), process);
        let store: Arc<dyn Store> = Arc::new(store);
        let clock: Arc<dyn Clock> = Arc::new(clock);
        let seed = checker::digest(&[&self.seed.to_be_bytes(), b"process", &process.0.to_be_bytes()]);
        let entropy: Arc<dyn Entropy> = Arc::new(Seeded::new(seed));
        for role in roles {
            let parts = Parts {
                log: Arc::clone(&log),
                store: Arc::clone(&store),
                clock: Arc::clone(&clock),
                entropy: Arc::clone(&entropy),
                registry: registry.clone(),
            };
            let (world, stop) = (Arc::clone(self), stop.clone());
            self.tasks.spawn(process, async move {
                let ended = world.play(role, process, parts, stop).await;
                let why = ended.map_or_else(|error| format!("{error:#}"), |()| "ended untold".into());
                world.gave_up(slot, process, role, &why);
            });
        }
    }

    /// Plays a role until it ends, which it should not.
    async fn play(
        self: &Arc<Self>,
        role: Role,
        process: ProcessId,
        parts: Parts,
        stop: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let Parts { log, store, clock, entropy, registry } = parts;
        match role {
            Role::Ingest => {
                // Small, so that rooms grow cold and ids leave memory.
                let config = ingest::Config { ids_kept: 2, rooms_max_bytes: 1, ..ingest::Config::default() };
                let deps = ingest::Deps { log, store, clock, entropy };
                Ok(ingest::run(deps, config, ingest::Metrics::new(&registry)?, stop).await?)
            }
            Role::Fanout => {
                let (config, metrics) = (fanout::Config::default(), fanout::Metrics::new(&registry)?);
                let (handle, worker) = fanout::new(fanout::Deps { log, clock }, config, metrics);
                self.links.fanout_began(process, handle);
                Ok(worker.run(stop).await?)
            }
            Role::Archiver => {
                // Nothing leaves the page cache: when moka evicts is not ours to replay.
                let config = archiver::Config { room_cache_max_bytes: 1, ..archiver::Config::default() };
                let deps = archiver::Deps { log, store, clock };
                let (history, worker) = archiver::new(deps, config, archiver::Metrics::new(&registry)?);
                self.links.archiver_began(process, history);
                Ok(worker.run(stop).await?)
            }
            Role::Edge => {
                let ports = self.links.of(process);
                let deps = edge::Deps {
                    edge: EdgeId(Uuid::from_u128(u128::from(process.0))),
                    log,
                    store,
                    fanout: ports.clone(),
                    history: ports,
                    jwks: Arc::new(NoNetwork),
                    clock,
                    entropy,
                };
                let issuer = edge::config::TrustedIssuer {
                    name: people::ISSUER.into(),
                    jwks: Some(people::jwks()),
                    jwks_url: None,
                    audience: "posthaste".into(),
                };
                let config = edge::Config { issuers: vec![issuer], limits: None, ..edge::Config::default() };
                let hub = Hub::new(deps.clone(), HubMetrics::new(&registry)?);
                let metrics = edge::Metrics::new(&registry)?;
                let app = edge::App::new(deps, Arc::clone(&hub), config, Arc::new(NoPasswords), metrics).await?;
                self.links.edge_began(process, &hub);
                self.network.listens(process, Arc::clone(&app));
                tokio::join!(hub.run(stop), app.run());
                Ok(())
            }
        }
    }

    /// A role has ended: its process ends with it, and is started again.
    fn gave_up(self: &Arc<Self>, slot: usize, process: ProcessId, role: Role, why: &str) {
        tracing::debug!(?process, ?role, why, "gave up");
        self.around.saw(&format!("role gave up: {role:?}"));
        if why.contains("stands at") || why.contains("behind") {
            self.around.broken(format!("{role:?} gave up: {why}"));
        }
        let world = Arc::clone(self);
        self.tasks.spawn(WORLD, async move {
            world.crash(slot, Some(process));
            sleep(Duration::from_millis(200)).await;
            world.start(slot);
        });
    }

    /// Ends the process of a slot (this one, if given) where it stands.
    fn crash(self: &Arc<Self>, slot: usize, which: Option<ProcessId>) {
        self.count(slot);
        let process = {
            let mut state = self.state.lock();
            let Some(place) = state.slots.get_mut(slot) else { return };
            let running = place.running.as_ref().map(|running| running.process);
            if running.is_none() || which.is_some_and(|which| running != Some(which)) {
                return;
            }
            let process = place.running.take().map(|running| running.process);
            if self.plan.layout == Layout::Alone {
                // The embedded log goes with its process.
                state.log = state.log.crash();
                self.around.commands.lock().lost();
            }
            process
        };
        if let Some(process) = process {
            tracing::debug!(?process, "crashes");
            self.around.died(process);
            self.links.ended(process);
            self.network.ended(process);
            self.tasks.end(process);
        }
    }

    /// Adds what the process of a slot has counted to what was seen.
    fn count(&self, slot: usize) {
        let registry = self.state.lock().slots.get(slot).and_then(|slot| Some(slot.running.as_ref()?.registry.clone()));
        for family in registry.iter().flat_map(Registry::gather) {
            if family.get_field_type() == MetricType::COUNTER {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
                let times = family.get_metric().iter().map(|metric| metric.get_counter().get_value() as u64).sum();
                let name = family.name().trim_start_matches("posthaste_").trim_end_matches("_total");
                self.around.saw_times(&format!("counted: {name}"), times);
            }
        }
    }

    fn start_client(&self, device: usize) {
        let process = {
            let mut state = self.state.lock();
            state.next_client += 1;
            ProcessId(state.next_client)
        };
        self.people.start(&self.devices[device], process);
    }

    fn crash_client(&self, device: usize) {
        if let Some(process) = self.devices[device].process() {
            self.around.died(process);
            self.tasks.end(process);
            self.devices[device].ended();
        }
    }

    async fn make_rooms(self: &Arc<Self>) -> anyhow::Result<()> {
        let owner = self.people.caller(0);
        for (number, plan) in self.plan.rooms.iter().enumerate() {
            let members: Vec<_> = (1..self.plan.users).map(People::user).collect();
            // Nobody is known before they have called once.
            for user in 1..self.plan.users {
                let caller = self.people.caller(user);
                let mut tries = 0;
                while let Err(error) = caller.me().await {
                    tries += 1;
                    anyhow::ensure!(tries < 50, "nobody is let in: {error}");
                    sleep(Duration::from_millis(100)).await;
                }
            }
            let visibility = if plan.public { "public" } else { "private" };
            let history = if plan.secretive { "since_joined" } else { "all" };
            let body = json!({
                "name": format!("room {number}"), "visibility": visibility, "history": history, "members": members,
            });
            let mut tries = 0;
            let room = loop {
                match owner.call::<serde_json::Value>(Method::POST, "/v1/rooms", Some(&body)).await {
                    Ok(room) => break room,
                    Err(error) => {
                        tries += 1;
                        anyhow::ensure!(tries < 50, "no room is made: {error}");
                        sleep(Duration::from_millis(100)).await;
                    }
                }
            };
            let id: RoomId = serde_json::from_value(room["id"].clone())?;
            if plan.secretive {
                self.people.record.note(Step::Secretive { room: id });
            }
            self.state.lock().rooms.push(id);
        }
        Ok(())
    }

    fn act(self: &Arc<Self>, number: usize, deed: Deed) {
        let rooms = self.state.lock().rooms.clone();
        let text = |bytes: u64| format!("{number:04} {}", "x".repeat(usize::try_from(bytes).unwrap_or(0)));
        let of_room = |room: usize, rest: &str| format!("/v1/rooms/{}{rest}", rooms[room]);
        let member = |room: usize, user: usize| of_room(room, &format!("/members/{}", People::user(user)));
        let (user, method, path, body) = match deed {
            Deed::Send { client, room, bytes } => {
                return self.people.send(&self.devices[client], rooms[room], text(bytes));
            }
            Deed::Read { client, room } => return self.people.read(&self.devices[client], rooms[room]),
            Deed::Post { user, room } => {
                let (people, room, body) = (Arc::clone(&self.people), rooms[room], text(8));
                return self.tasks.spawn(WORLD, async move { people.post(user, room, body).await });
            }
            Deed::Look { user, room } => {
                let (people, room) = (Arc::clone(&self.people), rooms[room]);
                return self.tasks.spawn(WORLD, async move { people.look(user, room).await });
            }
            Deed::List { user } => {
                let people = Arc::clone(&self.people);
                // One that fails says nothing.
                return self.tasks.spawn(WORLD, async move { drop(people.list(user).await) });
            }
            Deed::Add { by, user, room } => (by, Method::PUT, member(room, user), Some(json!({"role": "member"}))),
            Deed::Remove { by, user, room } => (by, Method::DELETE, member(room, user), None),
            Deed::Join { user, room } => (user, Method::PUT, of_room(room, "/members/me"), None),
            Deed::Leave { user, room } => (user, Method::DELETE, of_room(room, "/members/me"), None),
            Deed::Rename { by, room } => {
                (by, Method::PATCH, of_room(room, ""), Some(json!({"name": format!("name {number}")})))
            }
        };
        let people = Arc::clone(&self.people);
        self.tasks.spawn(WORLD, async move { people.call(user, method, path, body).await });
    }

    fn process(&self, slot: usize) -> Option<ProcessId> {
        self.state.lock().slots.get(slot)?.running.as_ref().map(|running| running.process)
    }

    async fn harm(self: &Arc<Self>, harm: Harm, lasts: Duration) {
        let until = Instant::now() + lasts;
        let trouble = |name, who, calls: &[Call], per_mille, unheard_per_mille| {
            let calls = calls.to_vec();
            self.around.trouble(Trouble { who, calls, per_mille, unheard_per_mille, until, name });
        };
        let log_calls =
            [Call::Append, Call::Producer, Call::Commit, Call::Consumer, Call::Poll, Call::CommitOffsets, Call::Read];
        match harm {
            Harm::Crash { process: slot, after_polls } => {
                let Some(process) = self.process(slot) else { return };
                self.tasks.pause_after(process, after_polls);
                // It stands where it shall end, or does nothing any more.
                sleep(Duration::from_millis(20)).await;
                self.crash(slot, Some(process));
                sleep(lasts).await;
                self.start(slot);
            }
            Harm::Pause { process: slot, after_polls } => {
                let Some(process) = self.process(slot) else { return };
                self.tasks.pause_after(process, after_polls);
                sleep(SESSION).await;
                if self.tasks.is_paused(process) {
                    let log = self.state.lock().log.clone();
                    for member in self.around.memberships(process) {
                        log.expel(&member);
                        self.around.saw("zombie: given up by its group");
                    }
                }
                sleep(lasts).await;
                self.tasks.go_on(process);
            }
            Harm::LogErrors { process } => trouble("log errors", self.process(process), &log_calls, 250, 500),
            Harm::LogFull => trouble("log full", None, &[Call::Append, Call::Commit], 1_000, 0),
            Harm::StoreErrors => trouble("store errors", None, &[Call::StoreRead, Call::StoreWrite], 250, 500),
            Harm::StoreFull => trouble("store full", None, &[Call::StoreWrite], 1_000, 0),
            Harm::OffsetsLost => trouble("offsets lost", None, &[Call::CommitOffsets], 1_000, 1_000),
            Harm::Slow => self.around.slow(until),
            Harm::Cut { edge, other } => self.cut(edge, other, until, false),
            Harm::OneWay { edge, other } => self.cut(edge, other, until, true),
            Harm::Newcomer { role } => {
                let slot = {
                    let mut state = self.state.lock();
                    let clock = ProcessClock::new(self.start);
                    state.slots.push(Slot { roles: vec![role], clock, running: None });
                    state.slots.len() - 1
                };
                self.start(slot);
                sleep(lasts).await;
                self.crash(slot, None);
            }
            Harm::StoreLoss { older_ms } => {
                let then = Instant::now().checked_sub(Duration::from_millis(older_ms)).unwrap_or(self.start);
                let older = {
                    let mut state = self.state.lock();
                    let at = state.archived.iter().rposition(|(at, _)| *at <= then);
                    at.map(|at| state.archived.drain(at..).next())
                };
                if let Some(Some((_, archived))) = older {
                    // It goes away, and comes back with less.
                    let (calls, until) = (vec![Call::StoreRead, Call::StoreWrite], Instant::now() + AWAY);
                    let (who, per_mille, unheard_per_mille, name) = (None, 1_000, 0, "store away");
                    self.around.trouble(Trouble { who, calls, per_mille, unheard_per_mille, until, name });
                    sleep(AWAY / 2).await;
                    if self.around.is_healed() {
                        return;
                    }
                    self.store.lose_since(archived);
                    self.around.saw("store loss: forgot rows");
                }
            }
            Harm::ClockJump { process, by_ms } => {
                if let Some(slot) = self.state.lock().slots.get(process) {
                    slot.clock.jump(by_ms);
                }
            }
            Harm::ClientClock { client, by_ms } => self.devices[client].clock().jump(by_ms),
            Harm::LineBreak { client } => self.network.break_off(self.devices[client].id),
            Harm::LineStall { client } => self.network.stall(self.devices[client].id, until),
            Harm::ClientCrash { client, after_polls } => {
                let Some(process) = self.devices[client].process() else { return };
                self.tasks.pause_after(process, after_polls);
                sleep(Duration::from_millis(20)).await;
                self.crash_client(client);
                sleep(lasts).await;
                if self.devices[client].process().is_none() {
                    self.start_client(client);
                }
            }
        }
    }

    fn cut(&self, edge: usize, other: usize, until: Instant, answers_alone: bool) {
        if let (Some(from), Some(to)) = (self.process(edge), self.process(other)) {
            self.around.cut(Cut { from, to, answers_alone, until });
        }
    }

    /// Keeps what the store could come back to.
    async fn remember_archives(&self) {
        loop {
            sleep(Duration::from_millis(250)).await;
            let archived = self.store.archived();
            let mut state = self.state.lock();
            if state.quiet {
                return;
            }
            state.archived.push((Instant::now(), archived));
            if state.archived.len() > 20 {
                state.archived.remove(0);
            }
        }
    }

    /// Looks now and then whether the archive's progress is ahead of its rows.
    async fn watch_progress(&self) {
        loop {
            sleep(Duration::from_millis(777)).await;
            let (log, quiet) = {
                let state = self.state.lock();
                (state.log.clone(), state.quiet)
            };
            if quiet {
                return;
            }
            for check in [
                inside::check_progress(&log, &self.store).await,
                inside::check_offsets(&log, &self.around.commands).await,
            ] {
                match check {
                    Ok(broken) => broken.into_iter().for_each(|broken| self.around.broken(broken)),
                    // A log that crashes meanwhile is no matter.
                    Err(_) => return,
                }
            }
        }
    }

    /// Ends all faults, and starts what is down.
    async fn heal(self: &Arc<Self>) {
        self.around.heal();
        self.network.heal();
        // Who is about to crash or to go on does so by itself; by now the last one has.
        sleep(Duration::from_secs(8)).await;
        let slots = {
            let state = self.state.lock();
            state.slots.iter().for_each(|slot| slot.clock.jump(0));
            self.plan.layout.processes().len()
        };
        for slot in 0..slots {
            if let Some(process) = self.process(slot) {
                self.tasks.go_on(process);
            }
            self.start(slot);
        }
        for device in 0..self.devices.len() {
            if let Some(process) = self.devices[device].process() {
                self.tasks.go_on(process);
            } else {
                self.start_client(device);
            }
        }
    }

    /// Waits until every client is there, and has sent and heard everything.
    async fn settle(&self) {
        let deadline = Instant::now() + SETTLE;
        let mut why = String::new();
        while Instant::now() < deadline {
            let log = self.state.lock().log.clone();
            // Who comes back later still says then what was received and read.
            let away = self.devices.iter().find(|device| !self.people.record.is_live(device.id));
            let open = match away {
                Some(device) => Some(format!("client {} is not live", device.id.0)),
                None => inside::unsettled(&log, &self.devices).await,
            };
            match open {
                None => {
                    // A while more: what must not come would come now.
                    sleep(Duration::from_secs(3)).await;
                    self.state.lock().quiet = true;
                    return;
                }
                Some(open) => why = open,
            }
            sleep(Duration::from_millis(200)).await;
        }
        self.around.broken(format!("not settled {} s after all faults: {why}", SETTLE.as_secs()));
    }

    /// Everyone tells that they have read everything; nothing breaks any more, so that it must be known afterwards.
    async fn tell_all_was_read(&self) {
        let rooms = self.state.lock().rooms.clone();
        self.people.record.note(Step::Calm);
        for device in &self.devices {
            rooms.iter().for_each(|room| self.people.read(device, *room));
        }
        sleep(Duration::from_secs(5)).await;
    }

    async fn audit(&self) -> anyhow::Result<()> {
        let rooms = self.state.lock().rooms.clone();
        for user in 0..self.plan.users {
            let mut tries = 0;
            while let Err(error) = self.people.list(user).await {
                tries += 1;
                anyhow::ensure!(tries < 50, "the list of rooms can't be read: {error}");
                sleep(Duration::from_millis(200)).await;
            }
        }
        for room in rooms {
            for user in 0..self.plan.users {
                let mut tries = 0;
                while let Err(error) = self.people.audit(user, room).await {
                    tries += 1;
                    anyhow::ensure!(tries < 50, "history can't be read: {error}");
                    sleep(Duration::from_millis(200)).await;
                }
            }
        }
        Ok(())
    }
}

struct Parts {
    log: Arc<dyn Log>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    registry: Registry,
}
