//! Passwords: Argon2id on a few threads of their own with a bounded queue, so that neither sends nor memory suffer
//! from a storm of sign-ins. Knows nothing of accounts.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use argon2::password_hash::{
    Ident, ParamsString, PasswordHash, PasswordHasher as _, PasswordVerifier as _, SaltString,
};
use argon2::{Algorithm, Argon2, Params, Version};
use async_trait::async_trait;
use parking_lot::Mutex;
use schemas::link::Unavailable;
use tokio::sync::oneshot;

use crate::config::PasswordConfig;

/// Shortest password taken, characters (NIST SP 800-63B).
pub const PASSWORD_MIN_CHARS: usize = 8;
/// Longest password taken, bytes: hashing must not be a way to burn our time.
pub const PASSWORD_MAX_BYTES: usize = 1_024;

/// What a check has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not this password, or there is no hash.
    Wrong,
    /// This password.
    Right,
    /// This password, but hashed with other parameters than today's: hash it anew.
    RightButOld,
}

/// Hashes passwords and checks them.
#[async_trait]
pub trait PasswordHasher: Send + Sync + 'static {
    /// The PHC string of a password; `Unavailable` where too many wait.
    async fn hash(&self, password: String, salt: [u8; 16]) -> Result<String, Unavailable>;
    /// Checks a password. Without a hash it takes as long and is `Wrong`: time does not tell who has an account.
    async fn verify(&self, password: String, phc: Option<String>) -> Result<Verdict, Unavailable>;
    /// How many wait or are at work.
    fn depth(&self) -> usize;
}

type Job = Box<dyn FnOnce(&Hashing) + Send>;

/// Argon2id on threads of its own. They end when the pool is dropped.
pub struct Argon2Pool {
    jobs: SyncSender<Job>,
    /// Counts the jobs: each holds a clone.
    depth: Arc<()>,
}

impl Argon2Pool {
    /// Starts the threads.
    pub fn start(config: &PasswordConfig) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel::<Job>(config.queue_max);
        let queue = Arc::new(Mutex::new(queue));
        let hashing = Hashing::new(config).map_err(|error| std::io::Error::other(error.to_string()))?;
        let hashing = Arc::new(hashing);
        for n in 0..config.threads {
            let (queue, hashing) = (queue.clone(), hashing.clone());
            std::thread::Builder::new().name(format!("argon2-{n}")).spawn(move || work(&queue, &hashing))?;
        }
        Ok(Self { jobs, depth: Arc::new(()) })
    }

    async fn run<T: Send + 'static>(&self, job: impl FnOnce(&Hashing) -> T + Send + 'static) -> Result<T, Unavailable> {
        let (sender, answer) = oneshot::channel();
        let counted = self.depth.clone();
        let job: Job = Box::new(move |hashing| {
            // Who asked may have gone: then there is no use in the work.
            let done = (!sender.is_closed()).then(|| job(hashing));
            drop(counted);
            done.map(|done| sender.send(done));
        });
        self.jobs.try_send(job).map_err(|_| Unavailable)?;
        answer.await.map_err(|_| Unavailable)
    }
}

fn work(queue: &Mutex<Receiver<Job>>, hashing: &Hashing) {
    loop {
        // The lock is held while waiting: one thread waits at the queue, the others at the lock.
        let job = queue.lock().recv();
        match job {
            Ok(job) => job(hashing),
            Err(_) => return,
        }
    }
}

#[async_trait]
impl PasswordHasher for Argon2Pool {
    async fn hash(&self, password: String, salt: [u8; 16]) -> Result<String, Unavailable> {
        self.run(move |hashing| hashing.hash(&password, salt)).await?.ok_or(Unavailable)
    }

    async fn verify(&self, password: String, phc: Option<String>) -> Result<Verdict, Unavailable> {
        self.run(move |hashing| hashing.verify(&password, phc.as_deref())).await
    }

    fn depth(&self) -> usize {
        Arc::strong_count(&self.depth) - 1
    }
}

/// Argon2id with today's parameters.
struct Hashing {
    argon2: Argon2<'static>,
    params: ParamsString,
    /// The hash of nobody's password.
    dummy: String,
}

impl Hashing {
    fn new(config: &PasswordConfig) -> Result<Self, argon2::password_hash::Error> {
        let params = Params::new(config.memory_kib, config.passes, 1, None)?;
        let shown = ParamsString::try_from(&params)?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let mut hashing = Self { argon2, params: shown, dummy: String::new() };
        hashing.dummy = hashing.hash("", [0; 16]).ok_or(argon2::password_hash::Error::Crypto)?;
        Ok(hashing)
    }

    fn hash(&self, password: &str, salt: [u8; 16]) -> Option<String> {
        let salt = SaltString::encode_b64(&salt).ok()?;
        Some(self.argon2.hash_password(password.as_bytes(), &salt).ok()?.to_string())
    }

    fn verify(&self, password: &str, phc: Option<&str>) -> Verdict {
        let Some(hash) = phc.and_then(|phc| PasswordHash::new(phc).ok()) else {
            if let Ok(dummy) = PasswordHash::new(&self.dummy) {
                // Whatever it finds: nobody signs in by it.
                self.argon2.verify_password(password.as_bytes(), &dummy).ok();
            }
            return Verdict::Wrong;
        };
        if self.argon2.verify_password(password.as_bytes(), &hash).is_err() {
            return Verdict::Wrong;
        }
        let today = hash.algorithm == Ident::new_unwrap("argon2id") && hash.params == self.params;
        if today { Verdict::Right } else { Verdict::RightButOld }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quick() -> PasswordConfig {
        PasswordConfig { memory_kib: 8, passes: 1, threads: 2, queue_max: 4 }
    }

    #[test]
    fn the_default_parameters_are_those_that_owasp_asks_for() {
        let hashing = Hashing::new(&PasswordConfig::default()).expect("valid parameters");
        assert!(hashing.dummy.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", hashing.dummy);
    }

    #[tokio::test]
    async fn a_password_is_right_only_for_its_own_hash() {
        let pool = Argon2Pool::start(&quick()).expect("threads");
        let phc = pool.hash("open sesame".into(), [3; 16]).await.expect("room in the queue");
        assert_eq!(pool.verify("open sesame".into(), Some(phc.clone())).await, Ok(Verdict::Right));
        assert_eq!(pool.verify("open barley".into(), Some(phc)).await, Ok(Verdict::Wrong));
        assert_eq!(pool.verify("open sesame".into(), Some("no phc".into())).await, Ok(Verdict::Wrong));
        assert_eq!(pool.verify(String::new(), None).await, Ok(Verdict::Wrong), "the dummy lets nobody in");
    }

    #[tokio::test]
    async fn a_hash_of_older_parameters_is_right_but_old() {
        let old = Argon2Pool::start(&quick()).expect("threads");
        let phc = old.hash("open sesame".into(), [3; 16]).await.expect("room in the queue");
        let new = Argon2Pool::start(&PasswordConfig { passes: 2, ..quick() }).expect("threads");
        assert_eq!(new.verify("open sesame".into(), Some(phc)).await, Ok(Verdict::RightButOld));
    }

    #[tokio::test]
    async fn beyond_the_queue_is_unavailable_and_afterwards_it_goes_on() {
        let pool = Argon2Pool::start(&PasswordConfig { threads: 1, queue_max: 1, ..quick() }).expect("threads");
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let (entered, at_work) = std::sync::mpsc::channel::<()>();
        let busy = pool.run(move |_| {
            entered.send(()).ok();
            gate.recv().ok();
        });
        let waiting = async {
            at_work.recv().expect("the first job is at work");
            pool.hash("waits".into(), [0; 16]).await
        };
        let turned_away = async {
            let refused = pool.hash("one too many".into(), [0; 16]).await;
            open.send(()).ok();
            refused
        };
        // They begin in this order: the first fills the thread, the second the queue.
        let (busy, waiting, turned_away) = tokio::join!(busy, waiting, turned_away);
        assert_eq!((busy, waiting.is_ok(), turned_away), (Ok(()), true, Err(Unavailable)));
        assert_eq!(pool.depth(), 0);
    }
}
