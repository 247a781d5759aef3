//! Workers on threads, in one process and in several, over real connections.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use flamingo_distributed::{Group, GroupError, Patience, Place, Readers};

const PATIENCE: Patience =
    Patience { rendezvous: Duration::from_secs(20), worker: Duration::from_secs(20), silence: Duration::from_secs(5) };

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("an address").port()
}

/// What each process's call gives; each process is a thread.
fn processes<T: Send>(
    nodes: usize,
    workers: usize,
    patience: Patience,
    work: impl Fn(usize, Result<Vec<Group>, GroupError>) -> T + Sync,
) -> Vec<T> {
    let rendezvous = format!("127.0.0.1:{}", free_port());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..nodes)
            .map(|node| {
                let place = Place { node, nodes, rendezvous: rendezvous.clone(), local: None };
                let work = &work;
                scope.spawn(move || {
                    let place = (nodes > 1).then_some(&place);
                    work(node, Group::join(place, workers, "a test", patience))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

/// What each worker's call gives, by rank.
fn workers<T: Send>(nodes: usize, each: usize, work: impl Fn(Group) -> T + Sync) -> Vec<T> {
    let results = processes(nodes, each, PATIENCE, |_, groups| {
        let groups = groups.expect("all come");
        std::thread::scope(|scope| {
            let threads: Vec<_> = groups.into_iter().map(|group| scope.spawn(|| work(group))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<T>>()
        })
    });
    results.into_iter().flatten().collect()
}

/// Numbers whose sum depends on the order.
fn given(rank: usize, owner: usize, count: usize) -> Vec<f32> {
    (0..count)
        .map(|i| ((rank * 7919 + owner * 104_729 + i) as f32 * 0.37).sin() * 10f32.powi(rank as i32 * 3))
        .collect()
}

#[test]
fn everybody_gets_the_same_sums_to_the_bit() {
    for (nodes, each) in [(1, 1), (1, 4), (2, 1), (4, 1), (3, 2)] {
        let world = nodes * each;
        // More than a bucket for one of them, nothing for another.
        let lengths: Vec<usize> = (0..world).map(|owner| [1000, 0, 1 << 22 | 5, 3][owner % 4]).collect();
        let results = workers(nodes, each, |mut group| {
            let rank = group.rank();
            assert_eq!(group.world(), world);
            let shards = (0..world).map(|owner| given(rank, owner, lengths[owner])).collect();
            let sum = group.reduce(shards, false).expect("a sum");
            let all = group.share(sum.clone(), &lengths, Readers::All).expect("all sums");
            let first = group.share(sum.clone(), &lengths, Readers::First).expect("all sums");
            assert_eq!(first.is_empty(), rank > 0);
            assert!(rank > 0 || first == all);
            let ranks = group.gather(&(rank, "said".to_string())).expect("all ranks");
            assert_eq!(ranks, (0..world).map(|rank| (rank, "said".to_string())).collect::<Vec<_>>());
            (all, group.wire_bytes())
        });
        for (owner, length) in lengths.iter().enumerate() {
            let sums: Vec<Vec<f32>> = (0..nodes)
                .map(|node| {
                    let ranks = node * each..(node + 1) * each;
                    ranks.map(|rank| given(rank, owner, *length)).reduce(plus).expect("a worker")
                })
                .collect();
            let wanted = sums.into_iter().reduce(plus).expect("a process");
            assert!(results.iter().all(|(all, _)| all[owner] == wanted), "{nodes} × {each}, rank {owner}");
        }
        assert_eq!(results.iter().all(|(_, bytes)| *bytes == 0), nodes == 1);
    }
}

fn plus(mut a: Vec<f32>, b: Vec<f32>) -> Vec<f32> {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
    a
}

#[test]
fn bf16_halves_what_is_sent_and_rounds_it() {
    let sums = workers(2, 1, |mut group| {
        let shards = (0..2).map(|owner| given(group.rank(), owner, 10_000)).collect();
        let sum = group.reduce(shards, true).expect("a sum");
        assert_eq!(group.wire_bytes(), 2 * 2 * 10_000);
        sum
    });
    for (owner, sum) in sums.iter().enumerate() {
        let exact = plus(given(0, owner, 10_000), given(1, owner, 10_000));
        let close = sum.iter().zip(&exact).all(|(a, b)| (a - b).abs() <= 1000.0 / 128.0);
        assert!(close && *sum != exact);
    }
}

#[test]
fn one_that_fails_ends_it_for_all_and_is_named() {
    for (nodes, each) in [(1, 3), (3, 1)] {
        let said = workers(nodes, each, |mut group| {
            if group.rank() == 1 {
                group.fail("no more samples");
                return String::new();
            }
            let lost = group.gather(&0).expect_err("one is lost");
            assert!(matches!(lost, GroupError::Lost(_)));
            lost.to_string()
        });
        for said in [&said[0], &said[2]] {
            assert!(said.contains("rank 1") && said.contains("no more samples"), "{said}");
        }
    }
}

#[test]
fn one_that_hangs_is_noticed_in_time_and_named() {
    let patience = Patience { worker: Duration::from_secs(1), silence: Duration::from_secs(2), ..PATIENCE };
    // In a gathering, and where tensors are waited for.
    for tensors in [false, true] {
        let said = processes(3, 1, patience, |node, groups| {
            let mut group = groups.expect("all come").pop().expect("a worker");
            if node == 2 {
                std::thread::sleep(Duration::from_secs(4));
                return String::new();
            }
            let begun = Instant::now();
            let lost = match tensors {
                true => group.reduce(vec![vec![1.0]; 3], false).expect_err("one hangs").to_string(),
                false => group.gather(&0).expect_err("one hangs").to_string(),
            };
            assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
            lost
        });
        assert!(said[..2].iter().all(|said| said.contains("rank 2")), "{said:?}");
    }
}

#[test]
fn processes_that_do_not_come_or_do_not_belong_are_refused() {
    let patience = Patience { rendezvous: Duration::from_secs(1), ..PATIENCE };
    let place = |node: usize, port: u16| Place { node, nodes: 3, rendezvous: format!("127.0.0.1:{port}"), local: None };
    let join = |node: usize, port: u16, purpose: &str| {
        Group::join(Some(&place(node, port)), 1, purpose, patience).map(|_| ()).expect_err("refused").to_string()
    };
    let port = free_port();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| join(2, port, "a"));
        for said in [join(0, port, "a"), other.join().expect("no panic")] {
            assert_eq!(said, "of 3 processes these did not come within 1 seconds: 1");
        }
    });
    assert!(join(1, free_port(), "a").contains("process 0 cannot be reached"));
    for (node, purpose, why) in [(1, "b", "different settings"), (0, "a", "choose another port")] {
        let port = free_port();
        std::thread::scope(|scope| {
            let first = scope.spawn(|| join(0, port, "a"));
            std::thread::sleep(Duration::from_millis(300));
            let said = join(node, port, purpose);
            assert!(said.contains(why), "{said}");
            assert!(!first.join().expect("no panic").is_empty());
        });
    }
}
