//! Counts digests by lineage, and so decides a consistency check.

use std::collections::{BTreeMap, BTreeSet};

use conclave_types::{Digest, NodeId};

/// One voter's digest, and its origin: the node that computed the state which the voter continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Testimony {
    pub(crate) digest: Digest,
    pub(crate) origin: NodeId,
}

/// The result of counting the voters' answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// This digest counts.
    Decided(Digest),
    /// All responses are equal, but too few of them are independent. They quarantine no replica.
    Unopposed,
    /// Responses differ, and no majority of lineages has the same digest.
    Disputed,
}

/// Counts the responses. `configs` are the sets of voters: one, or two while the membership
/// changes, and then both must agree (Raft thesis, section 4.3).
///
/// A digest counts if more than half of the voters of each set have it by lineages of their own.
/// Voters of one origin are one vote, because a copied state is not independent evidence. A
/// digest also counts if all voters have it: then no replica is quarantined, and the copies
/// become lineages of their own.
pub(super) fn decide(
    configs: &[BTreeSet<NodeId>],
    answers: &BTreeMap<NodeId, Testimony>,
) -> Verdict {
    let digests: BTreeSet<Digest> = answers.values().map(|answer| answer.digest).collect();
    let has = |digest: Digest| {
        let voters = configs.iter().flatten();
        let all =
            || voters.clone().all(|voter| answers.get(voter).map(|a| a.digest) == Some(digest));
        let by_lineage = |voters: &BTreeSet<NodeId>| {
            let having = voters.iter().filter_map(|voter| answers.get(voter));
            let having = having.filter(|answer| answer.digest == digest);
            let lineages: BTreeSet<NodeId> = having.map(|answer| answer.origin).collect();
            lineages.len() * 2 > voters.len()
        };
        !configs.is_empty() && (configs.iter().all(by_lineage) || all())
    };
    match digests.iter().copied().find(|digest| has(*digest)) {
        Some(digest) => Verdict::Decided(digest),
        None if digests.len() > 1 => Verdict::Disputed,
        None => Verdict::Unopposed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Digest = Digest([1; 32]);
    const B: Digest = Digest([2; 32]);

    /// Returns the responses of nodes 1, 2, 3, … by digest and origin. An origin of 0 is the node itself.
    fn answers(of: &[Option<(Digest, NodeId)>]) -> BTreeMap<NodeId, Testimony> {
        let numbered = (1..).zip(of).filter_map(|(node_id, answer)| answer.map(|a| (node_id, a)));
        let own = |node_id, origin| if origin == 0 { node_id } else { origin };
        numbered
            .map(|(id, (digest, origin))| (id, Testimony { digest, origin: own(id, origin) }))
            .collect()
    }

    fn of(voters: u64, answers_of: &[Option<(Digest, NodeId)>]) -> Verdict {
        decide(&[(1..=voters).collect()], &answers(answers_of))
    }

    #[test]
    fn the_majority_is_one_of_all_voters_and_not_of_those_that_answered() {
        let (a, b) = (Some((A, 0)), Some((B, 0)));
        assert_eq!(of(3, &[a, a, b]), Verdict::Decided(A));
        assert_eq!(of(3, &[b, a, a]), Verdict::Decided(A), "in any order");
        assert_eq!(of(3, &[a, a, None]), Verdict::Decided(A));
        assert_eq!(of(3, &[a, b, None]), Verdict::Disputed);
        assert_eq!(of(3, &[a, None, None]), Verdict::Unopposed);
        assert_eq!(of(4, &[a, a, b, b]), Verdict::Disputed);
        assert_eq!(of(2, &[a, b]), Verdict::Disputed);
        assert_eq!(of(0, &[]), Verdict::Unopposed);
        assert_eq!(decide(&[], &answers(&[a, a])), Verdict::Unopposed);
    }

    #[test]
    fn a_copy_is_no_second_opinion() {
        let copy_of_1 = Some((A, 1));
        assert_eq!(of(3, &[Some((A, 0)), copy_of_1, Some((B, 0))]), Verdict::Disputed);
        assert_eq!(of(3, &[Some((A, 0)), copy_of_1, None]), Verdict::Unopposed);
        // The copy counts for its lineage if the original does not respond.
        assert_eq!(of(3, &[None, copy_of_1, Some((A, 0))]), Verdict::Decided(A));
        // With five voters, two lineages are too few and three are enough.
        let own = Some((A, 0));
        assert_eq!(of(5, &[own, copy_of_1, copy_of_1, own, Some((B, 0))]), Verdict::Disputed);
        assert_eq!(of(5, &[own, copy_of_1, own, own, Some((B, 0))]), Verdict::Decided(A));
        // A node with the lineage of a removed member.
        assert_eq!(of(3, &[Some((A, 9)), Some((A, 9)), Some((B, 0))]), Verdict::Disputed);
    }

    #[test]
    fn what_all_voters_have_counts_whatever_its_lineage() {
        let copy = Some((A, 1));
        assert_eq!(of(3, &[copy, copy, copy]), Verdict::Decided(A));
        assert_eq!(of(3, &[copy, copy, None]), Verdict::Unopposed);
    }

    #[test]
    fn in_a_joint_configuration_both_sets_must_agree() {
        let configs = [[1, 2, 3].into(), [3, 4, 5].into()];
        let (a, b) = (Some((A, 0)), Some((B, 0)));
        assert_eq!(decide(&configs, &answers(&[a, a, None, a, a])), Verdict::Decided(A));
        assert_eq!(decide(&configs, &answers(&[a, a, a, b, b])), Verdict::Disputed);
        assert_eq!(decide(&configs, &answers(&[a, a, a, None, None])), Verdict::Unopposed);
    }
}
