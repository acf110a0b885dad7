//! What is to happen in a schedule: drawn from its seed, before anything runs. A fault can be left out and all others
//! stay as they are, which is how a failing schedule is made small.

use crate::dice::Dice;

/// How the roles are spread over processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One process with all roles: the embedded deployment. Its crash takes the volatile topics along.
    Alone,
    /// Two processes of each role.
    Cluster,
}

/// A role of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sockets and calls.
    Edge,
    /// Order.
    Ingest,
    /// Delivery.
    Fanout,
    /// History.
    Archiver,
}

impl Layout {
    /// The roles of each process.
    pub fn processes(self) -> Vec<Vec<Role>> {
        let all = [Role::Edge, Role::Ingest, Role::Fanout, Role::Archiver];
        match self {
            Self::Alone => vec![all.to_vec()],
            Self::Cluster => all.into_iter().flat_map(|role| [vec![role], vec![role]]).collect(),
        }
    }
}

/// What people do. Clients, users and rooms by number.
#[derive(Clone, Debug)]
pub enum Deed {
    /// A message through a client, of so many bytes.
    Send { client: usize, room: usize, bytes: u64 },
    /// A message through a call, which is repeated until it is answered.
    Post { user: usize, room: usize },
    /// Tells the others what was read.
    Read { client: usize, room: usize },
    /// Adds a person.
    Add { by: usize, user: usize, room: usize },
    /// Removes one.
    Remove { by: usize, user: usize, room: usize },
    /// Joins a public room.
    Join { user: usize, room: usize },
    /// Leaves.
    Leave { user: usize, room: usize },
    /// Changes the room's name.
    Rename { by: usize, room: usize },
    /// Looks at a room's history, over any edge.
    Look { user: usize, room: usize },
    /// Looks at the list of rooms, over any edge.
    List { user: usize },
}

/// What goes wrong. Processes by their place in [`Layout::processes`].
#[derive(Clone, Debug)]
pub enum Harm {
    /// A process ends between any two steps.
    Crash { process: usize, after_polls: u64 },
    /// A process stands still, longer than its groups wait for it: it goes on as a zombie.
    Pause { process: usize, after_polls: u64 },
    /// Calls of one process to the log fail; some are done all the same.
    LogErrors { process: usize },
    /// Nothing can be written to the log.
    LogFull,
    /// Calls to the store fail; some are done all the same.
    StoreErrors,
    /// Nothing can be written to the store.
    StoreFull,
    /// Positions that were committed as a hint are lost.
    OffsetsLost,
    /// Everything takes long.
    Slow,
    /// The way from an edge to another process is broken.
    Cut { edge: usize, other: usize },
    /// Only answers and batches are lost on it.
    OneWay { edge: usize, other: usize },
    /// A process more joins the groups of a role, and leaves them later.
    Newcomer { role: Role },
    /// The store forgets the newest of what it archived.
    StoreLoss { older_ms: u64 },
    /// A process's clock is wrong.
    ClockJump { process: usize, by_ms: i64 },
    /// A client's clock is wrong.
    ClientClock { client: usize, by_ms: i64 },
    /// A client's lines break.
    LineBreak { client: usize },
    /// A client's lines carry nothing.
    LineStall { client: usize },
    /// A client ends between any two steps, and comes back.
    ClientCrash { client: usize, after_polls: u64 },
}

impl Harm {
    /// What it is called where it is counted.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Crash { .. } => "crash",
            Self::Pause { .. } => "zombie",
            Self::LogErrors { .. } => "log errors",
            Self::LogFull => "log full",
            Self::StoreErrors => "store errors",
            Self::StoreFull => "store full",
            Self::OffsetsLost => "offsets lost",
            Self::Slow => "slow",
            Self::Cut { .. } => "cut link",
            Self::OneWay { .. } => "one-way link",
            Self::Newcomer { .. } => "rebalance",
            Self::StoreLoss { .. } => "store loss",
            Self::ClockJump { .. } => "server clock jump",
            Self::ClientClock { .. } => "client clock jump",
            Self::LineBreak { .. } => "line break",
            Self::LineStall { .. } => "slow socket",
            Self::ClientCrash { .. } => "client crash",
        }
    }
}

/// Something at a time, ms from the beginning.
#[derive(Clone, Debug)]
pub struct At<T> {
    /// When.
    pub at_ms: u64,
    /// For how long, where it lasts.
    pub for_ms: u64,
    /// What.
    pub what: T,
}

/// A room.
#[derive(Clone, Copy, Debug)]
pub struct RoomPlan {
    /// Anyone may join.
    pub public: bool,
    /// Newcomers see nothing of the time before them.
    pub secretive: bool,
}

/// A schedule.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How the roles are spread.
    pub layout: Layout,
    /// People.
    pub users: usize,
    /// Whose each client is.
    pub clients: Vec<usize>,
    /// The rooms.
    pub rooms: Vec<RoomPlan>,
    /// Partitions of the log.
    pub partitions: u32,
    /// What people do.
    pub deeds: Vec<At<Deed>>,
    /// What goes wrong, and its number.
    pub harms: Vec<(usize, At<Harm>)>,
    /// From then on all is well, ms.
    pub length_ms: u64,
}

impl Plan {
    /// The plan of a seed, but for these faults.
    pub fn new(seed: u64, without: &[usize]) -> Self {
        let dice = Dice::new(seed, "plan");
        let layout = if dice.per_mille(300) { Layout::Alone } else { Layout::Cluster };
        let processes = layout.processes().len();
        let users = 2 + dice.index(3);
        let mut clients: Vec<usize> = (0..users).collect();
        clients.extend((0..users).filter(|_| dice.per_mille(300)));
        let room = |_| RoomPlan { public: dice.per_mille(500), secretive: dice.per_mille(250) };
        let rooms: Vec<RoomPlan> = (0..1 + dice.index(3)).map(room).collect();
        let length_ms = dice.between(3_000, 25_000);
        let mut deeds = Vec::new();
        for _ in 0..dice.between(10, 70) {
            let (client, user, by) = (dice.index(clients.len()), dice.index(users), dice.index(users));
            let room = dice.index(rooms.len());
            let what = match dice.below(100) {
                0..55 => {
                    let bytes = if dice.per_mille(40) { dice.between(10_000, 60_000) } else { dice.between(8, 200) };
                    Deed::Send { client, room, bytes }
                }
                55..66 => Deed::Post { user, room },
                66..71 => Deed::Look { user, room },
                71..74 => Deed::List { user },
                74..80 => Deed::Read { client, room },
                80..86 => Deed::Add { by: 0, user, room },
                86..92 => Deed::Remove { by: if dice.per_mille(700) { 0 } else { by }, user, room },
                92..95 => Deed::Join { user, room },
                95..98 => Deed::Leave { user, room },
                _ => Deed::Rename { by, room },
            };
            deeds.push(At { at_ms: dice.below(length_ms), for_ms: 0, what });
        }
        let mut harms = Vec::new();
        for number in 0..dice.index(9) {
            let (process, client) = (dice.index(processes), dice.index(clients.len()));
            let after_polls = dice.between(1, 120);
            let (edge, other) = (dice.index(2.min(processes)), dice.index(processes));
            let what = match dice.below(100) {
                0..18 => Harm::Crash { process, after_polls },
                18..27 => Harm::Pause { process, after_polls },
                27..36 => Harm::LogErrors { process },
                36..39 => Harm::LogFull,
                39..47 => Harm::StoreErrors,
                47..50 => Harm::StoreFull,
                50..54 => Harm::OffsetsLost,
                54..58 => Harm::Slow,
                58..64 => Harm::Cut { edge, other },
                64..70 => Harm::OneWay { edge, other },
                // Nobody else comes to an embedded log.
                70..75 if layout == Layout::Cluster => Harm::Newcomer {
                    role: *dice.pick(&[Role::Ingest, Role::Fanout, Role::Archiver]).unwrap_or(&Role::Fanout),
                },
                70..79 => Harm::StoreLoss { older_ms: dice.between(1, 3_000) },
                79..82 => Harm::ClockJump { process, by_ms: signed(&dice, 4_000) },
                82..86 => Harm::ClientClock { client, by_ms: signed(&dice, 3 * 24 * 3_600_000) },
                86..91 => Harm::LineBreak { client },
                91..96 => Harm::LineStall { client },
                _ => Harm::ClientCrash { client, after_polls },
            };
            let at = At { at_ms: dice.below(length_ms), for_ms: dice.between(20, 6_000), what };
            if let Harm::LineStall { client } = at.what {
                // More than an outbox holds, while nothing is taken out of it.
                let room = dice.index(rooms.len());
                for _ in 0..dice.index(10) {
                    let what = Deed::Send { client: (client + 1) % clients.len(), room, bytes: 60_000 };
                    deeds.push(At { at_ms: at.at_ms + dice.below(at.for_ms), for_ms: 0, what });
                }
            }
            if !without.contains(&number) {
                harms.push((number, at));
            }
        }
        deeds.sort_by_key(|deed| deed.at_ms);
        let partitions = u32::try_from(dice.between(1, 4)).unwrap_or(1);
        Self { layout, users, clients, rooms, partitions, deeds, harms, length_ms }
    }
}

fn signed(dice: &Dice, most: u64) -> i64 {
    let by = i64::try_from(dice.below(most)).unwrap_or(0);
    if dice.per_mille(500) { by } else { -by }
}
