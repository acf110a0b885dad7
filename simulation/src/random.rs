//! Takes the operating system's randomness from this process: what the standard library seeds its hash maps with, and
//! tokio its choice among branches that are ready, is the same in each run. A map's order is then chance of the build, as
//! it would be of the system, and a seed goes the same way each time. (The simulator of RisingWave, madsim, does the
//! same.)

use std::sync::atomic::{AtomicU64, Ordering};

static STATE: AtomicU64 = AtomicU64::new(0);

/// From now on randomness is what follows from the seed.
pub fn seed(seed: u64) {
    STATE.store(seed, Ordering::Relaxed);
}

/// Stands in for getrandom(2) of the C library.
///
/// # Safety
/// As there: `buffer` has room for `length` bytes.
#[expect(unsafe_code, reason = "a function of the C library is replaced")]
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    // SAFETY: the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer, length) };
    for byte in bytes {
        let mixed = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        *byte = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_be_bytes()[0];
    }
    isize::try_from(length).unwrap_or(0)
}
