//! Which implementation of TLS this process uses. What could go wrong: a client that is built before one is chosen ends
//! the program, and with two in it the choice is anybody's. So there is one, and whoever builds a client asks here first.

use std::sync::Once;

/// Chooses rustls with ring for the whole process. May be called any number of times.
pub fn choose() {
    static CHOSEN: Once = Once::new();
    CHOSEN.call_once(|| {
        // An error says only that somebody chose already, and there is nothing else in the program to choose.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}
