//! Everything that was once found worth keeping keeps its laws, in a build like any other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

#[expect(clippy::unwrap_used, reason = "what a test can not do without ends it")]
fn replay(target: &str) {
    let (_, check) = fuzz::TARGETS.into_iter().find(|(name, _)| *name == target).unwrap();
    check(&[]);
    let mut files: Vec<_> = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target))
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let input = std::fs::read(&file).unwrap();
        assert!(catch_unwind(AssertUnwindSafe(|| check(&input))).is_ok(), "{}", file.display());
    }
}

macro_rules! replayed {
    ($($name:ident),*) => {$(
        #[test]
        fn $name() {
            replay(stringify!($name));
        }
    )*};
}
replayed!(frames, bodies, tokens, records, logs);
