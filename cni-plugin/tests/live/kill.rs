//! The plugin killed (SIGKILL) at many instants of its life.

use std::time::{Duration, Instant};

use linux::Host;

use crate::lab::{Node, Pod, V4, V6};

#[test]
fn killed_at_any_time_del_cleans_up() {
    let Some(node) = Node::new("killed_at_any_time_del_cleans_up", &[V4, V6]) else {
        return;
    };
    let warm = Pod::new("warm");
    let start = Instant::now();
    node.add(&warm).unwrap();
    let whole = start.elapsed().max(Duration::from_millis(2));
    node.del(&warm).unwrap();
    let before = node.dump();
    let (mut killed, mut done) = (0, 0);
    for n in 0..60u32 {
        let pod = Pod::new(&format!("pod{n}"));
        // From right after the start until after the end.
        let exec = node.exec("ADD", &pod.name, Some(pod.netns.path()), &node.conf());
        let exec = exec.timeout(whole * n / 40);
        match node.netns.run(|| exec.output()).unwrap() {
            Ok(output) => {
                assert!(output.status.success());
                done += 1;
            }
            Err(e) if e.errno() == Some(libc_etimedout()) => killed += 1,
            Err(e) => panic!("{e}"),
        }
        if n % 2 == 0 {
            node.del(&pod).unwrap();
        } else {
            node.del_by_name(&pod.name, None).unwrap();
        }
        assert!(
            node.leases().is_empty(),
            "killed after {:?}",
            whole * n / 40
        );
        assert_eq!(node.dump(), before, "killed after {:?}", whole * n / 40);
        assert_eq!(pod.kernel().links().unwrap().len(), 1);
        // And the pod can be added after all.
        if n % 10 == 0 {
            node.add(&pod).unwrap();
            node.del(&pod).unwrap();
        }
    }
    println!("{killed} killed, {done} done before");
    assert!(killed > 5, "{killed} of 60 were killed");
}

fn libc_etimedout() -> i32 {
    nix::errno::Errno::ETIMEDOUT as i32
}
