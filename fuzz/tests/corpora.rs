//! The corpora are inputs that lead somewhere, few and small: `scripts/fuzz.sh merge` keeps them so.

use std::path::Path;

const FILES_MAX: usize = 1_000;
const CORPUS_MAX_BYTES: u64 = 256 * 1_024;

#[test]
fn every_target_has_a_small_corpus() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR"));
    for target in std::fs::read_dir(fuzz.join("fuzz_targets")).unwrap() {
        let name = target.unwrap().path().file_stem().unwrap().to_owned();
        let files = std::fs::read_dir(fuzz.join("corpus").join(&name)).unwrap();
        let sizes: Vec<u64> = files.map(|file| file.unwrap().metadata().unwrap().len()).collect();
        assert!((1..=FILES_MAX).contains(&sizes.len()), "{name:?}: {} files", sizes.len());
        assert!(sizes.iter().sum::<u64>() <= CORPUS_MAX_BYTES, "{name:?}: {} bytes", sizes.iter().sum::<u64>());
    }
}
