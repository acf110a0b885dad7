use std::collections::VecDeque;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::SigningKey;
use proptest::prelude::{any, prop_oneof, proptest};
use proptest::strategy::{Just, Strategy};
use schemas::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;

const S: Duration = Duration::from_secs(1);

/// Tokio's time, paused.
struct Paused(Instant);

impl Clock for Paused {
    fn now(&self) -> Timestamp {
        Timestamp(1_763_715_600_000).after(self.elapsed())
    }
    fn micros(&self) -> i64 {
        self.now().0 * 1_000
    }
    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// What the URL does from now on.
#[derive(Clone, Debug)]
enum Does {
    Answer(Vec<u8>, Option<Duration>),
    Fail,
    Hang,
}

/// An issuer's URL, and when it was asked.
struct Url {
    does: Mutex<Does>,
    takes: Mutex<Duration>,
    asked: Mutex<VecDeque<Duration>>,
    at_once: Mutex<(usize, usize)>,
    start: Instant,
}

#[async_trait]
impl JwksPort for Url {
    async fn fetch(&self, url: &str) -> Result<Fetched, FetchError> {
        assert_eq!(url, "https://id.test/jwks");
        self.asked.lock().push_back(self.start.elapsed());
        {
            let mut at_once = self.at_once.lock();
            at_once.0 += 1;
            at_once.1 = at_once.1.max(at_once.0);
        }
        let _leaves = Leaves(self);
        let (does, takes) = (self.does.lock().clone(), *self.takes.lock());
        sleep(takes).await;
        match does {
            Does::Answer(jwks, max_age) => Ok(Fetched { jwks, max_age }),
            Does::Fail => Err(FetchError("connection refused".into())),
            Does::Hang => std::future::pending().await,
        }
    }
}

struct Leaves<'a>(&'a Url);
impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.at_once.lock().0 -= 1;
    }
}

struct Fixture {
    issuers: Arc<Issuers>,
    url: Arc<Url>,
}

fn jwk(kid: &str) -> Value {
    let mut seed = [0; 32];
    seed[..kid.len()].copy_from_slice(kid.as_bytes());
    let x = URL_SAFE_NO_PAD.encode(SigningKey::from_bytes(&seed).verifying_key().to_bytes());
    json!({"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": kid, "x": x})
}

fn jwks(kids: &[&str]) -> Vec<u8> {
    json!({"keys": kids.iter().map(|kid| jwk(kid)).collect::<Vec<_>>()}).to_string().into_bytes()
}

fn answer(kids: &[&str]) -> Does {
    Does::Answer(jwks(kids), None)
}

/// An issuer `id`, followed, whose URL does this.
fn followed(does: Does) -> Fixture {
    let start = Instant::now();
    let (takes, asked, at_once) = (Mutex::new(S / 10), Mutex::default(), Mutex::default());
    let url = Arc::new(Url { does: Mutex::new(does), takes, asked, at_once, start });
    let trusted = TrustedIssuer {
        name: "id".into(),
        jwks: None,
        jwks_url: Some("https://id.test/jwks".into()),
        audience: "posthaste".into(),
    };
    let issuers = Issuers::new(&[trusted], url.clone(), Arc::new(Paused(start))).expect("nothing is read yet");
    let issuers = Arc::new(issuers);
    let followed = issuers.clone();
    tokio::spawn(async move { followed.run().await });
    Fixture { issuers, url }
}

impl Fixture {
    fn judge(&self, kid: &str) -> Result<(), AuthError> {
        self.issuers.with_key("id", Some(kid), |_, _| ())
    }

    /// As a token is judged: once with what is known, and once more when that may have changed.
    async fn judge_patiently(&self, kid: &str) -> Result<(), AuthError> {
        if self.judge(kid).is_err() {
            self.issuers.ask("id").await;
        }
        self.judge(kid)
    }

    fn does(&self, does: Does) {
        *self.url.does.lock() = does;
    }

    fn times_asked(&self) -> usize {
        self.url.asked.lock().len()
    }
}

const UNKNOWN: Result<(), AuthError> = Err(AuthError::Invalid("unknown_key"));
const CANT_TELL: Result<(), AuthError> = Err(AuthError::Unavailable);

#[tokio::test(start_paused = true)]
async fn a_key_that_is_known_never_waits_and_a_new_one_is_fetched_when_a_token_brings_it() {
    let f = followed(answer(&["a"]));
    sleep(S).await;
    assert_eq!(f.judge("a"), Ok(()));
    f.does(answer(&["a", "b"]));
    sleep(GAP).await;
    assert_eq!(f.judge("b"), UNKNOWN);
    let before = Instant::now();
    assert_eq!(f.judge_patiently("a").await, Ok(()));
    assert_eq!(before.elapsed(), Duration::ZERO);
    assert_eq!(f.judge_patiently("b").await, Ok(()));
    assert_eq!(before.elapsed(), S / 10, "one fetch");
    // One that is gone there is gone here once its time has come.
    f.does(answer(&["b"]));
    sleep(FRESH + S).await;
    assert_eq!((f.judge("a"), f.judge("b")), (UNKNOWN, Ok(())));
}

#[tokio::test(start_paused = true)]
async fn made_up_key_ids_cause_one_fetch_at_a_time_and_few_of_them() {
    let f = Arc::new(followed(answer(&["a"])));
    sleep(S).await;
    assert_eq!(f.times_asked(), 1);
    let begun = Instant::now();
    for round in 0..600 {
        let attackers = (0..10).map(|n| {
            let (f, kid) = (f.clone(), format!("{round}-{n}"));
            async move { f.judge_patiently(&kid).await }
        });
        assert!(join_all(attackers).await.iter().all(|judged| *judged == UNKNOWN));
        // Whoever has a real key is not kept waiting by them.
        let before = Instant::now();
        assert_eq!(f.judge_patiently("a").await, Ok(()));
        assert_eq!(before.elapsed(), Duration::ZERO);
        sleep(S / 10).await;
    }
    let most = usize::try_from(begun.elapsed().as_secs() / GAP.as_secs()).expect("few") + 2;
    assert!((4..=most).contains(&f.times_asked()), "{} of {most}", f.times_asked());
    assert_eq!(f.url.at_once.lock().1, 1, "single flight");
    let asked = f.url.asked.lock();
    assert!(asked.iter().zip(asked.iter().skip(1)).all(|(one, next)| *next - *one >= GAP), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn all_that_wait_for_the_same_new_key_share_one_fetch() {
    let f = Arc::new(followed(answer(&["a"])));
    sleep(S + GAP).await;
    f.does(answer(&["a", "b"]));
    let asked = f.times_asked();
    let waiting = (0..1_000).map(|_| {
        let f = f.clone();
        async move { f.judge_patiently("b").await }
    });
    assert!(join_all(waiting).await.iter().all(Result::is_ok));
    assert_eq!(f.times_asked(), asked + 1);
}

#[tokio::test(start_paused = true)]
async fn while_an_issuer_is_away_its_last_keys_serve_for_a_day_and_unknown_ones_are_asked_to_come_again() {
    let f = followed(answer(&["a"]));
    sleep(S).await;
    for away in [Does::Fail, Does::Hang, Does::Answer(b"<html>".to_vec(), None), answer(&[])] {
        f.does(away.clone());
        sleep(FRESH + PAUSE_MAX).await;
        assert_eq!(f.judge("a"), Ok(()), "{away:?}");
        assert_eq!(f.judge("b"), CANT_TELL, "{away:?}: it may well be a new one");
    }
    let asked = f.times_asked();
    sleep(3_600 * S).await;
    assert!(f.times_asked() - asked <= 60, "an issuer that is away is left in peace");
    sleep(KEPT).await;
    assert_eq!(f.judge("a"), CANT_TELL, "nobody has vouched for it for a day");
    f.does(answer(&["b"]));
    sleep(PAUSE_MAX + S).await;
    assert_eq!((f.judge("a"), f.judge("b")), (UNKNOWN, Ok(())));
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_is_away_at_the_start_is_found_when_it_comes() {
    let f = followed(Does::Hang);
    assert_eq!(f.judge("a"), CANT_TELL);
    let before = Instant::now();
    assert_eq!(f.judge_patiently("a").await, CANT_TELL);
    assert!(before.elapsed() <= TRY_TIMEOUT, "{:?}", before.elapsed());
    f.does(answer(&["a"]));
    sleep(GAP).await;
    assert_eq!(f.judge_patiently("a").await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn answers_say_how_long_they_may_be_kept_within_bounds() {
    for (said, kept) in [(1, FRESH_MIN), (600, 600 * S), (31_536_000, FRESH_MAX)] {
        let f = followed(Does::Answer(jwks(&["a"]), Some(S * said)));
        sleep(kept - S).await;
        assert_eq!(f.times_asked(), 1, "{said}");
        sleep(2 * S).await;
        assert_eq!(f.times_asked(), 2, "{said}");
    }
}

#[test]
fn of_a_set_only_keys_for_signatures_of_known_kinds_are_taken() {
    let mut encrypts = jwk("encrypts");
    encrypts["use"] = "enc".into();
    let mut other_algorithm = jwk("other");
    other_algorithm["alg"] = "HS256".into();
    let of_tomorrow = json!({"kty": "AKP", "alg": "ML-DSA-44", "kid": "tomorrow", "pub": "AAAA"});
    let secret = json!({"kty": "oct", "kid": "secret", "k": "c2VjcmV0"});
    let set = json!({"keys": [of_tomorrow, secret, encrypts, other_algorithm, jwk("good"), 7]}).to_string();
    let keys = parse(set.as_bytes()).expect("a set");
    assert_eq!(keys.iter().map(|key| key.id.as_deref()).collect::<Vec<_>>(), [Some("good")]);
    assert_eq!(keys[0].algorithm, Algorithm::EdDSA);
    for bad in ["", "[]", "{}", r#"{"keys": {}}"#, "{\"keys\": [", "null"] {
        assert!(parse(bad.as_bytes()).is_err(), "{bad}");
    }
}

/// What may happen to [`Known`].
#[derive(Clone, Debug)]
enum Happens {
    Passes(u64),
    Asks,
    Brings(Option<u64>),
    Fails,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        (0..200_000_u64).prop_map(Happens::Passes),
        Just(Happens::Asks),
        any::<Option<u64>>().prop_map(Happens::Brings),
        Just(Happens::Fails),
    ]
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..Default::default() })]
    #[test]
    fn whatever_happens_tries_are_apart_a_try_comes_and_no_key_is_believed_for_too_long(
        all in proptest::collection::vec(happens(), 1..200)
    ) {
        let (mut known, mut now, mut under_way) = (Known::default(), Duration::ZERO, false);
        let (mut last_try, mut last_good) = (None::<Duration>, None::<Duration>);
        let keys = parse(&jwks(&["a"])).expect("a set");
        for it in all {
            match it {
                Happens::Passes(seconds) => now += S * u32::try_from(seconds).expect("few"),
                Happens::Asks => {
                    let news = known.may_bring_news(now);
                    let begun = known.begin(now);
                    assert_eq!(news, begun || under_way);
                    if begun {
                        assert!(!under_way && last_try.is_none_or(|last| now - last >= GAP));
                        (last_try, under_way) = (Some(now), true);
                    }
                }
                Happens::Brings(max_age) if under_way => {
                    known.end(Some((keys.clone(), max_age.map(Duration::from_secs))));
                    (last_good, under_way) = (last_try, false);
                }
                Happens::Fails if under_way => {
                    known.end(None);
                    under_way = false;
                }
                Happens::Brings(_) | Happens::Fails => {}
            }
            assert!(known.due_in(now) <= FRESH_MAX);
            // Whoever follows it is never woken only to be refused.
            if !under_way {
                assert!(known.may_bring_news(now + known.due_in(now)));
            }
            let believed = last_good.is_some_and(|since| now < since + KEPT);
            assert_eq!(known.find(Some("a"), now).is_ok(), believed);
        }
    }
}
