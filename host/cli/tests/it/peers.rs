//! The peer port, at which the test acts as one of the members.

use std::{
    fs,
    time::{Duration, Instant},
};

use conclave_proto::raft::{
    AppendRequest, CompareClocksRequest, ConsistencyCheck, Entry, FetchSnapshotRequest,
    HandshakeRequest, LogId, Member, Membership, SnapshotEnd, SnapshotHeader, SnapshotPart,
    SnapshotStart, Standing, StoredComponent, StoredMembership, TransferLeaderRequest, Vote,
    VoteRequest, Voters, raft_client::RaftClient, snapshot_part::Part, snapshot_progress::Progress,
};
use conclave_raft::network::PROTOCOL_VERSION;
use conclave_types::ComponentId;
use tokio::time::timeout;
use tonic::{Code, Request, Status, transport::Channel};

use crate::harness::{Cluster, PATIENCE, Setup, eventually, files, get, put};

/// A member's side of a connection to another member.
pub(crate) struct Pretender {
    pub client: RaftClient<Channel>,
    from: u64,
}

impl Pretender {
    /// Sends the introduction with the identity file of node `like`.
    async fn introduce(cluster: &Cluster, from: u64, like: u64, to: u64) -> Result<Self, Status> {
        Self::introduce_with_lease(cluster, from, like, to, 0).await
    }

    /// Opens a connection without an introduction.
    pub(crate) async fn connect(cluster: &Cluster, to: u64) -> RaftClient<Channel> {
        let address = format!("http://{}", cluster.node(to).peer);
        eventually("the peer port listens", async || {
            RaftClient::connect(address.clone()).await.map_err(|error| error.to_string())
        })
        .await
    }

    async fn introduce_with_lease(
        cluster: &Cluster,
        from: u64,
        like: u64,
        to: u64,
        lease_ms: u64,
    ) -> Result<Self, Status> {
        let identity = fs::read(cluster.node(like).data_dir.join("identity")).unwrap();
        let mut client = Self::connect(cluster, to).await;
        let hello = HandshakeRequest {
            cluster_id: "test".into(),
            node_id: from,
            target_node_id: to,
            incarnation: identity[18..34].to_vec().into(),
            component_id: identity[34..66].to_vec().into(),
            engine_fingerprint: String::new(),
            protocol_version: PROTOCOL_VERSION,
            lease_ms,
            // A member that has taken part in a later term has lost no data.
            standing: Some(Standing {
                process: 1,
                vote: Some(Vote { term: 50, node_id: from, committed: false }),
                last_log_id: None,
            }),
            restore_id: Vec::new().into(),
        };
        client.handshake(hello).await?;
        Ok(Self { client, from })
    }

    pub(crate) async fn member(cluster: &Cluster, from: u64, to: u64) -> Self {
        Self::introduce(cluster, from, from, to).await.unwrap()
    }

    /// Sends a snapshot and returns the outcome.
    pub(crate) async fn install(&mut self, parts: Vec<Part>) -> Result<(), Status> {
        let parts = parts.into_iter().map(|part| SnapshotPart { part: Some(part) });
        let request = Request::new(futures::stream::iter(parts.collect::<Vec<_>>()));
        let mut answers = self.client.install_snapshot(request).await?.into_inner();
        while let Some(answer) = answers.message().await? {
            if let Some(Progress::Done(_)) = answer.progress {
                return Ok(());
            }
        }
        Err(Status::internal("the response stream ended"))
    }

    /// Returns whether the node votes for a candidate with a longer log than any node can have, or
    /// `None` if it does not answer for a while.
    async fn elects_me(&mut self, pre_vote: bool, leadership_transfer: bool) -> Option<bool> {
        let request = Request::new(VoteRequest {
            vote: Some(Vote { term: 100, node_id: self.from, committed: false }),
            last_log_id: Some(LogId { term: 100, index: 1_000_000 }),
            leadership_transfer,
            pre_vote,
        });
        let answer = timeout(Duration::from_secs(2), self.client.vote(request)).await.ok()?;
        Some(answer.unwrap().into_inner().granted)
    }
}

/// A leader answers lease reads as long as its followers elect no other node. A restarted
/// follower must not violate that, so it observes the vote hold-off. A node that led itself has
/// no leader to protect.
#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_follower_elects_nobody_for_a_lease() {
    let flags = ["--election-min=35s", "--election-max=1m"];
    let setup = Setup { flags: flags.map(str::to_owned).into(), ..Setup::default() };
    let mut cluster = Cluster::start_with(setup).await;
    put(&cluster.client(), "key", "text").await.unwrap();
    cluster.caught_up(&[1, 2, 3]).await;
    let leader = cluster.leader().await;
    let (follower, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    for id in [leader, follower] {
        cluster.kill(id);
    }
    for id in [leader, follower] {
        cluster.start_node(id);
    }
    let mut at_follower = Pretender::member(&cluster, other, follower).await;
    assert_eq!(at_follower.elects_me(true, false).await, None, "it still owes the leader a lease");
    assert_eq!(at_follower.elects_me(false, false).await, None);
    let mut at_leader = Pretender::member(&cluster, other, leader).await;
    assert_eq!(at_leader.elects_me(true, false).await, Some(true));
    assert_eq!(at_follower.elects_me(false, true).await, Some(true), "the leader's own wish");
}

/// After a restart of all nodes, the downtime is unknown until a leader has determined it. The
/// followers get the log's time from the leader as soon as they know the leader, not at their next
/// comparison of clocks a second later. If the leader fell silent first, its successor would have
/// to determine the downtime again.
#[tokio::test(flavor = "multi_thread")]
async fn restarted_followers_know_the_time_of_the_log_as_soon_as_a_leader_is_known() {
    const SOON: Duration = Duration::from_millis(500);
    const POLL: Duration = Duration::from_millis(5);
    let mut cluster = Cluster::start().await;
    put(&cluster.client(), "key", "text").await.unwrap();
    for round in 1..=4 {
        for id in 1..=3 {
            cluster.kill(id);
        }
        for id in 1..=3 {
            cluster.start_node(id);
        }
        let mut peers = Vec::new();
        for (from, to) in [(2, 1), (3, 2), (1, 3)] {
            peers.push(Pretender::member(&cluster, from, to).await);
        }
        let begun = Instant::now();
        let (mut led_since, mut known) = (None, [None; 3]);
        while known.contains(&None) {
            assert!(begun.elapsed() < PATIENCE, "round {round}: {led_since:?} {known:?}");
            for (at, peer) in peers.iter_mut().enumerate() {
                let request = Request::new(CompareClocksRequest {});
                // The node's own connection replaces the one from the test.
                let Ok(answer) = peer.client.compare_clocks(request).await else { continue };
                let clock = answer.into_inner();
                if clock.leads {
                    led_since.get_or_insert_with(Instant::now);
                }
                if clock.log_time_us != 0 {
                    known[at].get_or_insert_with(Instant::now);
                }
            }
            tokio::time::sleep(POLL).await;
        }
        let led_since = led_since.unwrap();
        for (at, known) in known.into_iter().flatten().enumerate() {
            let after = known.saturating_duration_since(led_since);
            eprintln!("round {round}: node {} knows the log's time after {after:?}", at + 1);
            assert!(after < SOON, "round {round}: node {} knew it after {after:?}", at + 1);
        }
    }
}

/// Any invalid message from a member is refused before it has an effect, and the node continues.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_member_would_send_is_refused() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    put(&client, "key", "before").await.unwrap();
    let refused = Pretender::introduce(&cluster, 9, 2, 1).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(refused.message().contains("not a member of this cluster"), "{refused}");

    let refused = Pretender::introduce_with_lease(&cluster, 2, 2, 1, 700).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(refused.message().contains("election_max of 1s 400ms"), "{refused}");

    let mut pretender = Pretender::member(&cluster, 2, 1).await;
    let elected = Some(Vote { term: 1, node_id: 2, committed: true });
    let end = Some(LogId { term: 1, index: u64::MAX });
    let last_of_all = Some(Vote { term: u64::MAX, node_id: 2, committed: true });
    let refusals = [
        AppendRequest { vote: last_of_all, ..AppendRequest::default() },
        AppendRequest { vote: elected, previous: end, ..AppendRequest::default() },
        AppendRequest { vote: elected, leader_commit: end, ..AppendRequest::default() },
        AppendRequest {
            vote: Some(Vote { term: 100, node_id: 2, committed: false }),
            ..AppendRequest::default()
        },
    ];
    for message in refusals {
        let request = Request::new(message);
        assert_invalid(pretender.client.heartbeat(request).await);
    }
    assert_appends_are_refused(&cluster, &mut pretender).await;
    // A snapshot that openraft could not install, from a leader that is ahead of all nodes.
    let identity = fs::read(cluster.node(2).data_dir.join("identity")).unwrap();
    let header = SnapshotHeader {
        cluster_id: "test".into(),
        last_log_id: Some(LogId { term: 100, index: 1_000_000 }),
        component_id: identity[34..66].to_vec().into(),
        ..SnapshotHeader::default()
    };
    let vote = Some(Vote { term: 100, node_id: 2, committed: true });
    // A complete snapshot of a later term, but with an index before the commit index: openraft
    // asserts that this does not happen.
    let mut earlier = header_with(&cluster, conclave_cli::DEFAULT_MACHINE);
    earlier.last_log_id = Some(LogId { term: 100, index: 1 });
    earlier.membership.as_mut().unwrap().log_id = Some(LogId { term: 1, index: 0 });
    for header in [header, earlier] {
        let start = SnapshotStart { vote, header: Some(header), ..SnapshotStart::default() };
        assert_invalid(pretender.install(vec![Part::Start(start)]).await);
    }
    let votes = [
        Vote { term: 100, node_id: 2, committed: true },
        Vote { term: 100, node_id: 1, committed: false },
        Vote { term: 100, node_id: 3, committed: false },
    ];
    for pre_vote in [false, true] {
        for vote in votes {
            let message = VoteRequest { vote: Some(vote), pre_vote, ..VoteRequest::default() };
            let request = Request::new(message);
            assert_invalid(pretender.client.vote(request).await);
        }
        // A candidate of term 100 has no entry of term 101.
        let request = Request::new(VoteRequest {
            vote: Some(Vote { term: 100, node_id: 2, committed: false }),
            last_log_id: Some(LogId { term: 101, index: 1_000_000 }),
            pre_vote,
            ..VoteRequest::default()
        });
        assert_invalid(pretender.client.vote(request).await);
    }
    let request = Request::new(TransferLeaderRequest {
        from: Some(Vote { term: 100, node_id: 1, committed: true }),
        to_node_id: 1,
        ..TransferLeaderRequest::default()
    });
    assert_invalid(pretender.client.transfer_leader(request).await);

    cluster.assert_running(1);
    put(&client, "key", "after").await.unwrap();
    timeout(PATIENCE, cluster.caught_up(&[1, 2, 3])).await.unwrap();
}

/// Asserts that appends that would corrupt the log on disk or replace committed entries are
/// refused. None is acknowledged.
async fn assert_appends_are_refused(cluster: &Cluster, pretender: &mut Pretender) {
    let status = cluster.client_of(1).status().await.unwrap();
    let committed = status.nodes.iter().find(|node| node.id == 1).unwrap().committed;
    let elected = Some(Vote { term: 100, node_id: 2, committed: true });
    let last = Some(LogId { term: status.term, index: committed });
    let id = |term, index| Some(LogId { term, index });
    let entry = |term, index| Entry { log_id: id(term, index), payload: None };
    let append = |previous, entries: &[Entry]| AppendRequest {
        vote: elected,
        previous,
        entries: entries.to_vec(),
        ..AppendRequest::default()
    };
    let next = committed + 1;
    let cases = [
        ("falling terms", append(last, &[entry(99, next), entry(98, next + 1)])),
        ("a term lower than before", append(id(99, next), &[entry(98, next + 1)])),
        ("a term after the vote's", append(last, &[entry(101, next)])),
        ("a gap", append(last, &[entry(100, next + 1)])),
        ("a previous entry after the vote", append(id(101, next), &[])),
        (
            "a commit after the vote",
            AppendRequest { leader_commit: id(101, next), ..append(last, &[]) },
        ),
        (
            "another's vote",
            AppendRequest {
                vote: Some(Vote { term: 100, node_id: 3, committed: true }),
                ..append(last, &[])
            },
        ),
        (
            "this node's vote",
            AppendRequest {
                vote: Some(Vote { term: 100, node_id: 1, committed: true }),
                ..append(last, &[])
            },
        ),
        ("a committed entry replaced", append(None, &[entry(100, 0)])),
        ("another committed entry", append(id(100, committed), &[])),
    ];
    for (what, message) in cases {
        let request = Request::new(futures::stream::iter([message]));
        let answer = pretender.client.append(request).await;
        let answer = match answer {
            Ok(mut answers) => answers.get_mut().message().await,
            Err(status) => Err(status),
        };
        assert!(!matches!(answer, Ok(Some(_))), "{what}: {answer:?}");
    }
    assert_eq!(
        cluster.client_of(1).status().await.unwrap().term,
        status.term,
        "nothing had an effect"
    );
}

/// Returns the header of a leader that is ahead of all nodes, with a component of these bytes.
pub(crate) fn header_with(cluster: &Cluster, component: &[u8]) -> SnapshotHeader {
    let last_log_id = Some(LogId { term: 100, index: 1_000_000 });
    let members = cluster.nodes.iter().map(|node| Member {
        node_id: node.id,
        peer_address: node.peer.clone(),
        client_address: node.client.clone(),
    });
    let membership = Membership {
        configs: vec![Voters { node_ids: vec![1, 2, 3] }],
        members: members.collect(),
    };
    let component_id = bytes::Bytes::from(ComponentId::of(component).0.to_vec());
    SnapshotHeader {
        cluster_id: "test".into(),
        last_log_id,
        membership: Some(StoredMembership { log_id: last_log_id, membership: Some(membership) }),
        component_id: component_id.clone(),
        components: vec![StoredComponent {
            component_id,
            bytes: component.len() as u64,
            ..StoredComponent::default()
        }],
        digest: vec![7; 32].into(),
        ..SnapshotHeader::default()
    }
}

/// Returns the parts of a snapshot with a matching end.
fn parts(header: SnapshotHeader, chunks: &[&[u8]]) -> Vec<Part> {
    let vote = Some(Vote { term: 100, node_id: 2, committed: true });
    let bytes = chunks.iter().map(|chunk| chunk.len() as u64).sum();
    let start = SnapshotStart { vote, header: Some(header), bytes, ..SnapshotStart::default() };
    let mut parts = vec![Part::Start(start), Part::Offset(0)];
    parts.extend(chunks.iter().map(|chunk| Part::Chunk(chunk.to_vec().into())));
    let all = chunks.concat();
    let blake3 = blake3::hash(&all).as_bytes().to_vec().into();
    parts.push(Part::End(SnapshotEnd { bytes: all.len() as u64, blake3 }));
    parts
}

/// A snapshot that does not match its header is refused by name before it replaces anything.
/// The node keeps its state, its vote and its snapshot, and no part of the other one remains
/// in its directory.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_not_what_it_says_is_refused() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    put(&client, "key", "before").await.unwrap();
    cluster.caught_up(&[1, 2, 3]).await;
    cluster.client_of(1).snapshot().await.unwrap();
    let snapshots = cluster.node(1).data_dir.join("snapshots");
    let own = files(&snapshots);
    assert_eq!(own.len(), 1);
    let term = client.status().await.unwrap().term;

    let kv = conclave_cli::DEFAULT_MACHINE;
    let (component, state) = (&kv[..100_000], &b"state"[..]);
    let header = header_with(&cluster, component);
    let with = |change: &dyn Fn(&mut SnapshotHeader)| {
        let mut header = header.clone();
        change(&mut header);
        parts(header, &[component, state])
    };
    let without_end = |mut parts: Vec<Part>| {
        parts.pop();
        parts
    };
    let again = parts(header.clone(), &[component, state]);
    let (first, second) = component.split_at(50_000);
    let cases = [
        ("no component", parts(header.clone(), &[component, state]), "snapshot's state belongs"),
        ("noise", parts(header.clone(), &[&vec![9; 100_000], state]), "do not match its id"),
        ("changed order", parts(header.clone(), &[second, first, state]), "do not match its id"),
        ("half a component", parts(header.clone(), &[first]), "some bytes are missing"),
        ("no border", parts(header.clone(), &[first, &[second, state].concat()]), "bytes of two"),
        ("nothing at all", parts(header.clone(), &[]), "some bytes are missing"),
        (
            "another active one",
            with(&|header| header.component_id = vec![1; 32].into()),
            "previous component is missing",
        ),
        ("half an id", with(&|header| header.component_id = vec![1; 5].into()), "component"),
        ("too many", with(&|header| header.components[0].bytes = u64::MAX), "a cluster can have"),
        ("cut off", without_end(again.clone()), "ended too early"),
        ("cut off in a component", again[..2].to_vec(), "ended too early"),
        (
            "two headers",
            [&without_end(again.clone())[..], &again[..1]].concat(),
            "a snapshot has one header",
        ),
        (
            "damaged on its way",
            [&without_end(again.clone())[..], &parts(header.clone(), &[component])[3..]].concat(),
            "damaged in transit",
        ),
        ("no offset", [&again[..1], &again[2..]].concat(), "out of order"),
        (
            "an offset that was not offered",
            [&again[..1], &[Part::Offset(7)][..], &again[2..]].concat(),
            "does not continue at the requested offset",
        ),
        (
            "a state that the machine refuses when it has all of it",
            parts(SnapshotHeader { state_version: 2, ..header_with(&cluster, kv) }, &[kv, state]),
            "restore-writer.finish: the state machine rejects",
        ),
        ("no header", again[1..].to_vec(), "must begin with its header"),
    ];
    let mut pretender = Pretender::member(&cluster, 2, 1).await;
    for (what, parts, says) in cases {
        let refused = pretender.install(parts).await.err();
        let refused = refused.unwrap_or_else(|| panic!("{what}: it was not refused"));
        assert!(refused.message().contains(says), "{what}: {refused}");
        eventually("nothing is left of it", async || {
            let mut found = files(&snapshots);
            // An interrupted transfer may be continued, so its file stays until the next one
            // replaces it.
            let left =
                found.extract_if(.., |path| path.extension().is_some_and(|end| end == "tmp"));
            assert!(left.count() <= 1);
            if found == own { Ok(()) } else { Err(format!("{what}: {found:?}")) }
        })
        .await;
    }
    let digest = vec![1; 3].into();
    let consistency_check = ConsistencyCheck { index: 5, digest, version: 2, begins: false };
    for consistency_check in [None, Some(consistency_check)] {
        let message = FetchSnapshotRequest { consistency_check, index_min: u64::MAX };
        let request = Request::new(message);
        assert_invalid(pretender.client.fetch_snapshot(request).await);
    }

    cluster.assert_running(1);
    assert!(!cluster.log_tail(1).contains("panicked"));
    assert_eq!(client.status().await.unwrap().term, term);
    put(&client, "key", "after").await.unwrap();
    timeout(PATIENCE, cluster.caught_up(&[1, 2, 3])).await.unwrap();
    assert_eq!(get(&cluster.client_of(1), "key").await.unwrap(), "after");
    cluster.stop(1);
    cluster.start_node(1);
    timeout(PATIENCE, cluster.caught_up(&[1, 2, 3])).await.unwrap();
    assert_eq!(files(&snapshots), own, "a restart leaves nothing of them");
}

fn assert_invalid<T>(answer: Result<T, Status>) {
    let refused = answer.err().unwrap();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
}
