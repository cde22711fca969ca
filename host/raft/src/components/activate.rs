//! Proposes the activation of another component, once every voter is ready for it.

use std::{collections::BTreeSet, sync::Arc};

use tokio::time::Instant;

use super::catalog::{Catalog, difference};
use crate::{limits_proposer::LimitsProposer, node::Node, registry::Registry};
use conclave_types::{
    CommandKind, ComponentId, NodeId, Outcome,
    components::{Activated, Activation, Change, ComponentCommand, Permissions, Readiness},
    error::Error,
};

/// The number of changes that a rejection lists; `conclave component diff` shows all of them.
const LISTED_MAX: usize = 10;

/// Activates components as the leader.
pub(crate) struct Activate {
    node: Arc<Node>,
    catalog: Arc<Catalog>,
    limits: Arc<LimitsProposer>,
}

impl Activate {
    pub(crate) fn new(node: Arc<Node>, catalog: Arc<Catalog>, limits: Arc<LimitsProposer>) -> Self {
        Self { node, catalog, limits }
    }

    /// Activates a component. If it is already active, that is the response, so that a client that
    /// lost the first response can retry.
    pub(crate) async fn activate(
        &self,
        component: ComponentId,
        permissions: &Permissions,
        deadline: Instant,
    ) -> Result<Activated, Error> {
        self.node.check_leader()?;
        let registry = self.catalog.fresh_registry(deadline).await?;
        if registry.active() == component {
            return Ok(activated(&registry));
        }
        self.replace(&registry, component, permissions, deadline).await
    }

    /// Activates the previous component again. `from` is the component that the caller believes to
    /// be active. If it is the previous one by now, the rollback has already been done.
    pub(crate) async fn roll_back(
        &self,
        from: ComponentId,
        permissions: &Permissions,
        deadline: Instant,
    ) -> Result<Activated, Error> {
        self.node.check_leader()?;
        let registry = self.catalog.fresh_registry(deadline).await?;
        let previous = registry.previous().ok_or_else(|| {
            Error::refused(
                "there is nothing to roll back to: only the initial component was ever active",
            )
        })?;
        if previous == from {
            return Ok(activated(&registry));
        }
        if registry.active() != from {
            return Err(Error::refused(format!(
                "component {from} is not active, but component {} is: see `conclave component list`",
                registry.active()
            )));
        }
        self.replace(&registry, previous, permissions, deadline).await
    }

    async fn replace(
        &self,
        registry: &Registry,
        component: ComponentId,
        permissions: &Permissions,
        deadline: Instant,
    ) -> Result<Activated, Error> {
        let from = registry.active();
        let (old, new) = (
            self.catalog.compiled(registry, from).await?,
            self.catalog.compiled(registry, component).await?,
        );
        let difference = difference(&old, &new);
        if !difference.restores {
            return Err(Error::refused(format!(
                "{} {} cannot continue with the state: the state has version {}, and the component restores only \
                 versions {:?}. Writes are never undone: push a component that restores this version",
                new.description().name,
                new.description().version,
                difference.from_state_version,
                new.description().restores
            )));
        }
        let nodes = self.catalog.ask_voters(component, None).await;
        check_ready(component, from, &nodes, &permissions.without)?;
        if !permissions.allow_breaking {
            check_breaking(component, &difference.changes)?;
        }
        let voters: BTreeSet<NodeId> = nodes.into_iter().map(|(node_id, _)| node_id).collect();
        tracing::info!(%component, %from, "proposing to activate a component");
        let activation = Activation { component, from, voters };
        let command = CommandKind::Component(ComponentCommand::Activate(activation));
        let applied = self.limits.propose_settled(command, deadline).await?;
        match applied.outcome {
            Some(Outcome::Reply(_)) => {
                Ok(Activated { component, previous: from, index: applied.index })
            }
            Some(Outcome::Failure(failure)) => Err(Error::failure(failure).at_index(applied.index)),
            Some(Outcome::Trap(trap)) => Err(Error::trap(trap).at_index(applied.index)),
            None => Err(Error::fatal("the activation has no outcome")),
        }
    }
}

/// Returns the active component as the response to its own activation.
fn activated(registry: &Registry) -> Activated {
    let component = registry.active();
    Activated {
        component,
        previous: registry.previous().unwrap_or(component),
        index: registry.get(&component).map_or(0, |known| known.activated_index),
    }
}

/// Returns an error unless every voter has rehearsed the component with the active component's
/// state. The voters in `without` are excused if their rehearsal is not known to have failed and a
/// majority is ready. Such a voter compiles the component when it applies the activation.
fn check_ready(
    component: ComponentId,
    from: ComponentId,
    nodes: &[(NodeId, Readiness)],
    without: &BTreeSet<NodeId>,
) -> Result<(), Error> {
    let short = short(component);
    let voters: BTreeSet<NodeId> = nodes.iter().map(|(node_id, _)| *node_id).collect();
    if let Some(stranger) = without.iter().find(|node_id| !voters.contains(node_id)) {
        return Err(Error::refused(format!(
            "node {stranger} is not a voter: the voters are {voters:?}"
        )));
    }
    let (left, needed) = (voters.len() - without.len(), voters.len() / 2 + 1);
    if !without.is_empty() && left < needed {
        return Err(Error::refused(format!(
            "component {short} is not activated: without nodes {without:?}, {left} of {} voters are left, and {needed} must \
             be ready, because otherwise no majority could apply the entries after the activation",
            voters.len()
        )));
    }
    let mut reasons = Vec::new();
    let mut waits = false;
    for (node_id, readiness) in nodes {
        if without.contains(node_id) && !matches!(readiness, Readiness::Failed(_)) {
            continue;
        }
        let why = match readiness {
            Readiness::Ready(rehearsed) if rehearsed.from == from => continue,
            Readiness::Ready(_) | Readiness::Preparing | Readiness::Active => {
                waits = true;
                "it is still being rehearsed".to_owned()
            }
            Readiness::Absent => {
                waits = true;
                "it has not arrived yet".to_owned()
            }
            Readiness::Failed(why) => why.clone(),
            Readiness::Unreachable(why) => format!("not reached ({why})"),
        };
        reasons.push(format!("node {node_id}: {why}"));
    }
    if nodes.is_empty() {
        return Err(Error::no_quorum());
    }
    if reasons.is_empty() {
        return Ok(());
    }
    let next = match waits {
        true => format!("; `conclave component rehearse {short}` waits until all are ready"),
        false
            if nodes
                .iter()
                .any(|(_, readiness)| matches!(readiness, Readiness::Unreachable(_))) =>
        {
            "; a node that is down can be left out with --without NODE".to_owned()
        }
        false => String::new(),
    };
    Err(Error::refused(format!(
        "component {short} is not activated, because not every voter is ready: {}{next}",
        reasons.join("; ")
    )))
}

fn check_breaking(component: ComponentId, changes: &[Change]) -> Result<(), Error> {
    let breaking: Vec<_> = changes.iter().filter(|change| change.breaking).collect();
    if breaking.is_empty() {
        return Ok(());
    }
    let listed = breaking.iter().take(LISTED_MAX);
    let listed: Vec<_> =
        listed.map(|change| format!("{} {}", change.subject, change.text)).collect();
    let more = match breaking.len().saturating_sub(LISTED_MAX) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    Err(Error::refused(format!(
        "component {} is not activated, because clients of the active one may fail: {}{more}. \
         `conclave component diff` shows all changes, and --allow-breaking activates it anyway",
        short(component),
        listed.join("; ")
    )))
}

fn short(component: ComponentId) -> String {
    hex::encode(&component.0[..6])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use conclave_types::components::Rehearsed;

    const OLD: ComponentId = ComponentId([1; 32]);
    const NEW: ComponentId = ComponentId([2; 32]);

    fn ready(from: ComponentId) -> Readiness {
        Readiness::Ready(Rehearsed { from, migration_ms: 1, entries: 1 })
    }

    #[test]
    fn each_voter_must_be_ready_with_the_state_of_the_active_component() {
        let check = |third: Readiness| {
            let nodes = [(1, ready(OLD)), (2, ready(OLD)), (3, third)];
            check_ready(NEW, OLD, &nodes, &BTreeSet::new()).map_err(|error| error.to_string())
        };
        assert!(check(ready(OLD)).is_ok());
        let stale = check(ready(NEW)).unwrap_err();
        assert!(stale.contains("node 3: it is still being rehearsed"), "{stale}");
        assert!(stale.contains("conclave component rehearse 020202020202"), "{stale}");
        let failed = check(Readiness::Failed("entry 7 traps".into())).unwrap_err();
        assert!(failed.ends_with("not every voter is ready: node 3: entry 7 traps"), "{failed}");
        let away = check(Readiness::Unreachable("refused".into())).unwrap_err();
        assert!(away.contains("node 3: not reached (refused)"), "{away}");
        assert!(check(Readiness::Absent).is_err() && check(Readiness::Preparing).is_err());
        assert!(away.contains("--without NODE"), "{away}");
        assert!(check_ready(NEW, OLD, &[], &BTreeSet::new()).is_err(), "there must be voters");
    }

    #[test]
    fn a_voter_that_is_down_can_be_left_out_if_a_majority_is_ready() {
        let away = || Readiness::Unreachable("refused".into());
        let check = |nodes: &[(NodeId, Readiness)], without: &[NodeId]| {
            let without = without.iter().copied().collect();
            check_ready(NEW, OLD, nodes, &without).map_err(|error| error.to_string())
        };
        let one_away = [(1, ready(OLD)), (2, ready(OLD)), (3, away())];
        assert!(check(&one_away, &[]).is_err());
        assert!(check(&one_away, &[3]).is_ok());
        // The other voters must be ready.
        let unready = check(&one_away, &[2]).unwrap_err();
        assert!(unready.contains("node 3: not reached"), "{unready}");
        let two_away = [(1, ready(OLD)), (2, away()), (3, away())];
        let few = check(&two_away, &[2, 3]).unwrap_err();
        assert!(few.contains("1 of 3 voters are left, and 2 must be ready"), "{few}");
        let stranger = check(&one_away, &[4]).unwrap_err();
        assert!(stranger.contains("node 4 is not a voter"), "{stranger}");
        // The activation would fail on that node too.
        let failed = [(1, ready(OLD)), (2, ready(OLD)), (3, Readiness::Failed("traps".into()))];
        assert!(check(&failed, &[3]).unwrap_err().contains("node 3: traps"));
    }

    #[test]
    fn breaking_changes_are_listed_up_to_an_end() {
        let change = |breaking, n: usize| Change {
            subject: format!("s{n}"),
            text: "is gone".into(),
            breaking,
        };
        assert!(check_breaking(NEW, &[change(false, 1)]).is_ok());
        let many: Vec<_> = (0..LISTED_MAX + 3).map(|n| change(true, n)).collect();
        let error = check_breaking(NEW, &many).unwrap_err().to_string();
        assert!(error.contains("s0 is gone; s1") && error.contains("and 3 more"), "{error}");
        assert!(error.contains("--allow-breaking"), "{error}");
    }
}
