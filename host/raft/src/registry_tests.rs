#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use conclave_types::components::PART_BYTES_MAX;

fn about(name: &str) -> About {
    About { name: name.into(), version: "1".into(), state_version: 1 }
}

fn begun() -> Registry {
    let bytes = Bytes::from_static(b"the first");
    Registry::begin(ComponentId::of(&bytes), bytes, about("first"))
}

/// Returns a component's pieces, `size` bytes each.
fn pieces(content: &[u8], size: usize) -> Vec<ComponentPart> {
    let component = ComponentId::of(content);
    let at = (0..).step_by(size);
    let pieces = content.chunks(size).zip(at).map(|(piece, at)| ComponentPart {
        component,
        total_bytes: content.len() as u64,
        at,
        bytes: Bytes::copy_from_slice(piece),
        about: (at == 0).then(|| about("pushed")),
    });
    pieces.collect()
}

fn push(registry: &mut Registry, index: u64, content: &[u8]) -> ComponentId {
    let applied = registry.apply_part(index, &pieces(content, content.len())[0]).unwrap();
    assert!(applied.whole);
    ComponentId::of(content)
}

fn activation(registry: &Registry, component: ComponentId, voters: &[NodeId]) -> Activation {
    Activation { component, from: registry.active(), voters: voters.iter().copied().collect() }
}

#[test]
fn a_component_comes_in_pieces() {
    let mut registry = begun();
    let pieces = pieces(b"abcdefgh", 3);
    let applied: Vec<_> =
        pieces.iter().map(|piece| registry.apply_part(7, piece).unwrap()).collect();
    let expected = [(3, false), (6, false), (8, true)];
    assert_eq!(applied, expected.map(|(next_at, whole)| PartApplied { next_at, whole }));
    let known = registry.get(&ComponentId::of(b"abcdefgh")).unwrap();
    assert_eq!(
        (&known.bytes[..], known.index, &*known.about.name),
        (&b"abcdefgh"[..], 7, "pushed")
    );
    assert_eq!(
        registry.active(),
        ComponentId::of(b"the first"),
        "the active component has not changed"
    );
}

/// A new leader, or a client that lost a response, sends pieces again.
#[test]
fn a_piece_out_of_order_is_told_where_to_go_on() {
    let mut registry = begun();
    let pieces = pieces(b"abcdefgh", 3);
    let mut apply = |at: usize| registry.apply_part(7, &pieces[at]).unwrap();
    assert_eq!(apply(1), PartApplied { next_at: 0, whole: false }, "the first piece is missing");
    assert_eq!(apply(0).next_at, 3);
    assert_eq!(apply(0).next_at, 3, "the same piece again");
    assert_eq!(apply(2).next_at, 3, "a piece is missing in between");
    assert_eq!(apply(1).next_at, 6);
    assert_eq!(apply(0).next_at, 6, "another leader starts from the beginning");
    assert!(apply(2).whole);
    assert!(apply(1).whole, "the component is complete");
}

#[test]
fn a_wrong_whole_is_dropped() {
    let mut registry = begun();
    let mut pieces = pieces(b"abcdef", 3);
    pieces[1].bytes = Bytes::from_static(b"xyz");
    assert_eq!(registry.apply_part(7, &pieces[0]).unwrap().next_at, 3);
    let failure = registry.apply_part(8, &pieces[1]).unwrap_err();
    assert!(failure.message.contains("push it again"), "{failure:?}");
    assert_eq!(registry.next_at(&pieces[0].component), 0);
    assert!(registry.get(&pieces[0].component).is_none());
}

#[test]
fn what_cannot_be_a_piece_is_refused() {
    let mut registry = begun();
    let good = pieces(b"abcdef", 3).remove(0);
    for bad in [
        ComponentPart { total_bytes: COMPONENT_BYTES_MAX as u64 + 1, ..good.clone() },
        ComponentPart { total_bytes: 0, ..good.clone() },
        ComponentPart { bytes: Bytes::new(), ..good.clone() },
        ComponentPart { at: 4, ..good.clone() },
        ComponentPart { at: u64::MAX, ..good.clone() },
        ComponentPart { about: None, ..good.clone() },
    ] {
        assert_eq!(
            registry.apply_part(7, &bad).unwrap_err().code,
            Code::InvalidArgument,
            "{bad:?}"
        );
    }
    assert!(registry.upload.is_none());
}

/// Such a piece must not make an upload longer than its total. No node could read a snapshot of it.
#[test]
fn a_piece_that_names_another_total_changes_nothing() {
    let mut registry = begun();
    let pieces = pieces(b"abcdef", 3);
    registry.apply_part(7, &pieces[0]).unwrap();
    let other = ComponentPart {
        total_bytes: 20,
        bytes: Bytes::from_static(b"defghi"),
        ..pieces[1].clone()
    };
    assert_eq!(registry.apply_part(8, &other).unwrap(), PartApplied { next_at: 0, whole: false });
    assert_eq!(registry.next_at(&other.component), 3);
    assert!(registry.apply_part(9, &pieces[1]).unwrap().whole);
}

/// An unfinished component does not block another. The displaced push fails at its next piece.
#[test]
fn a_new_component_takes_the_place_of_an_unfinished_one() {
    let mut registry = begun();
    let (first, second) = (pieces(b"abcdef", 3), pieces(b"ghijkl", 3));
    registry.apply_part(7, &first[0]).unwrap();
    registry.apply_part(8, &second[0]).unwrap();
    assert_eq!(
        registry.apply_part(9, &first[1]).unwrap(),
        PartApplied { next_at: 0, whole: false }
    );
    assert!(registry.apply_part(10, &second[1]).unwrap().whole);
}

#[test]
fn the_oldest_gives_way_but_never_what_is_needed() {
    let mut registry = begun();
    let first = registry.active();
    let second = push(&mut registry, 10, b"second");
    registry.activate(11, second);
    let pushed: Vec<_> = (20..30).map(|index| push(&mut registry, index, &[index as u8])).collect();
    let kept: BTreeSet<_> = registry.components().map(|(id, _)| id).collect();
    let newest = pushed[pushed.len() - (COMPONENTS_MAX - 2)..].iter().copied();
    assert_eq!(kept, newest.chain([first, second]).collect());
}

/// Three components of the maximum size fit, so that a push never fails for lack of space.
#[test]
fn components_of_the_largest_size_fit_beside_what_is_needed() {
    let mut registry = begun();
    let mut push_large = |index: u64| {
        let content = vec![index as u8; COMPONENT_BYTES_MAX];
        let mut last = None;
        for piece in pieces(&content, PART_BYTES_MAX) {
            last = Some(registry.apply_part(index, &piece).unwrap());
        }
        assert!(last.unwrap().whole);
        let id = ComponentId::of(&content);
        registry.activate(index, id);
        assert!(registry.bytes() <= BYTES_MAX);
        (id, registry.known.len())
    };
    let counts = [1, 2, 3, 4].map(|index| push_large(index).1);
    assert_eq!(counts, [2, 3, 3, 3]);
}

#[test]
fn activation_checks_that_nothing_has_changed() {
    let mut registry = begun();
    let first = registry.active();
    let second = push(&mut registry, 10, b"second");
    let voters = BTreeSet::from([1, 2, 3]);
    let good = activation(&registry, second, &[1, 2, 3]);
    assert!(registry.check(&good, &voters).is_ok());
    let refused = |registry: &Registry, bad: &Activation, expected: &str| {
        let failure = registry.check(bad, &voters).unwrap_err();
        assert_eq!(failure.code, Code::FailedPrecondition);
        assert!(failure.message.starts_with("not activated: "), "{failure:?}");
        assert!(failure.message.contains(expected), "{failure:?}");
    };
    let unknown = Activation { component: ComponentId([1; 32]), ..good.clone() };
    refused(&registry, &unknown, "push it first");
    refused(&registry, &activation(&registry, second, &[1, 2]), "are {1, 2, 3} by now");
    refused(&registry, &activation(&registry, first, &[1, 2, 3]), "already");
    registry.activate(12, second);
    refused(&registry, &good, "is active by now");
    assert_eq!((registry.active(), registry.previous()), (second, Some(first)));
    assert_eq!(registry.get(&second).unwrap().activated_index, 12);
    // The rollback.
    registry.activate(13, first);
    assert_eq!((registry.active(), registry.previous()), (first, Some(second)));
}
