//! A client that never rests while something else happens.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use linux::NetNs;

use super::Lab;
use super::talk::ask_once;

/// Ends the client's thread also when something fails in between.
struct StopsAtEnd<'a>(&'a AtomicBool);

impl Drop for StopsAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Does `work` while the client outside opens one connection after the other to `to`. Gives how many
/// were answered; none may fail.
pub(crate) fn meanwhile(lab: &mut Lab, to: &str, work: impl FnOnce(&mut Lab)) -> usize {
    let to: SocketAddr = to.parse().unwrap();
    let stop = AtomicBool::new(false);
    let client = NetNs::open(lab.cli.kernel_path()).unwrap();
    let (good, bad) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let (mut good, mut bad) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                let answered = client.run(|| ask_once(to)).unwrap();
                *if answered { &mut good } else { &mut bad } += 1;
            }
            (good, bad)
        });
        {
            let _ends = StopsAtEnd(&stop);
            work(lab);
        }
        asking.join().unwrap()
    });
    assert_eq!(bad, 0);
    good
}
