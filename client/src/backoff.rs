//! How long to wait before a try again: full jitter below a bound that doubles, and never less than the server asked.

use std::time::Duration;

use schemas::Entropy;

/// Bounds of the pause.
const BOUNDS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// The pause after so many failures in a row, counted from 1. `asked`: what the server named.
pub fn pause(failures: u32, asked: Option<Duration>, entropy: &dyn Entropy) -> Duration {
    let bound = BOUNDS.0.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(BOUNDS.1);
    let mut random = [0; 8];
    entropy.fill(&mut random);
    let jitter =
        bound.mul_f64(f64::from(u32::from_le_bytes([random[0], random[1], random[2], random[3]])) / 2_f64.powi(32));
    // All clients of a server that stopped are told the same: the jitter comes on top.
    asked.unwrap_or_default() + jitter
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(u8);

    impl Entropy for Fixed {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(self.0);
        }
    }

    #[test]
    fn the_bound_doubles_and_stops() {
        let most = |failures| pause(failures, None, &Fixed(0xFF)).as_millis();
        assert_eq!((most(1), most(2), most(4)), (100, 200, 800));
        assert_eq!(most(9), 25_599);
        assert_eq!((most(10), most(60)), (29_999, 29_999));
        assert_eq!(pause(60, None, &Fixed(0)), Duration::ZERO);
    }

    #[test]
    fn nobody_comes_back_before_the_server_asked() {
        let asked = Some(Duration::from_secs(7));
        assert_eq!(pause(1, asked, &Fixed(0)), Duration::from_secs(7));
        assert!(pause(1, asked, &Fixed(0xFF)) > Duration::from_secs(7));
    }
}
