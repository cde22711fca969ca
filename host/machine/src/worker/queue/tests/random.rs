//! Random transitions, with a standby that does what the queue decides. The invariants are checked
//! after each.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Event {
    Ask { ahead: u64, subscribes: bool },
    Snapshot { ahead: u64 },
    Read,
    Close,
    Push { count: u64, kept_max: usize },
    Promotion,
    Adopt { ahead: u64 },
    Offer { behind: u64 },
    PrimaryTurn { count: usize },
    NotRequested,
    Lost,
    StandbyTurn { is_read: bool },
    Unanswerable,
    Sleep(Sleep),
    End,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (0..4_u64, any::<bool>()).prop_map(|(ahead, subscribes)| Event::Ask { ahead, subscribes }),
        2 => (0..3_u64).prop_map(|ahead| Event::Snapshot { ahead }),
        1 => Just(Event::Read),
        1 => Just(Event::Close),
        6 => (0..400_u64, 0..300_usize).prop_map(|(count, kept_max)| Event::Push { count, kept_max }),
        2 => Just(Event::Promotion),
        1 => (0..9_u64).prop_map(|ahead| Event::Adopt { ahead }),
        1 => (0..9_u64).prop_map(|behind| Event::Offer { behind }),
        3 => (0..5_usize).prop_map(|count| Event::PrimaryTurn { count }),
        1 => Just(Event::NotRequested),
        1 => Just(Event::Lost),
        8 => any::<bool>().prop_map(|is_read| Event::StandbyTurn { is_read }),
        1 => Just(Event::Unanswerable),
        2 => prop::sample::select(vec![Sleep::Awake, Sleep::Napping, Sleep::Asleep]).prop_map(Event::Sleep),
        1 => Just(Event::End),
    ];
    prop::collection::vec(event, 0..60)
}

/// A standby that does what the queue decides.
struct Model {
    queue: TestQueue,
    position: Position,
    served: u64,
}

impl Model {
    fn apply(&mut self, event: Event) {
        let queue = &mut self.queue;
        let pushed = queue.pushed;
        match event {
            Event::Ask { ahead, subscribes } => {
                let index_min = queue.serving + ahead;
                let request = if subscribes { subscription(index_min) } else { query(index_min) };
                let _ = queue.ask(request, 20);
            }
            Event::Snapshot { ahead } => _ = queue.request_snapshot(snapshot(pushed + ahead)),
            Event::Read => _ = queue.request_read(read()),
            Event::Close => queue.close_stream(0),
            Event::Push { count, kept_max } => {
                // The primary waits for the promotion meanwhile.
                if queue.promotion.is_none() {
                    push(queue, pushed + count, kept_max);
                }
            }
            Event::Promotion => {
                if self.position.applied <= pushed {
                    let _ = queue.request_promotion(promotion(pushed));
                }
            }
            Event::Adopt { ahead } => {
                if queue.promotion.is_none() {
                    let _ = queue.adopt(pushed + ahead, pushed + ahead);
                }
            }
            Event::Offer { behind } => {
                let index = pushed.saturating_sub(behind);
                let _ = queue.offer_successor(index, index);
            }
            Event::PrimaryTurn { count } => {
                let turn = queue.primary_turn(pushed, count, |_| true);
                if let PrimaryTurn::Answer { mut questions, .. } = turn {
                    self.served = pushed;
                    questions.truncate(1);
                    let _ = queue.put_back(questions);
                }
            }
            Event::NotRequested => queue.primary_not_requested(),
            Event::Lost => {
                self.position.has_instance = false;
                queue.standby_lost();
            }
            Event::StandbyTurn { is_read } => self.standby_turn(is_read),
            Event::Unanswerable => _ = queue.take_unanswerable(),
            Event::Sleep(sleep) => queue.standby_sleeps(sleep),
            Event::End => _ = queue.end(),
        }
    }

    fn standby_turn(&mut self, is_read: bool) {
        if self.queue.standby == StandbyState::Ended {
            return;
        }
        let at = Position { is_read, ..self.position };
        let position = &mut self.position;
        match self.queue.next(at) {
            Next::Adopt(index) | Next::Succeed(index) => {
                *position = Position { applied: index, has_instance: true, ..at };
            }
            // The newest snapshot is as old as possible.
            Next::Build => {
                *position = Position { applied: self.queue.adopted_at, has_instance: true, ..at };
            }
            Next::Promote(promotion, _) => {
                assert_eq!(promotion.index, at.applied);
                position.has_instance = false;
                self.queue.standby_lost();
            }
            Next::CatchUp { to, .. } => {
                assert!(to > at.applied, "the standby goes backwards");
                position.applied = to;
            }
            Next::Follow { entries, questions, .. } => {
                assert!(
                    questions.is_empty() || at.applied >= self.served,
                    "an older state is served"
                );
                assert!(questions.iter().all(|question| question.index_min <= at.applied));
                for finished in entries {
                    assert_eq!(finished.after, position.applied, "the standby skips an entry");
                    position.applied = finished.index;
                }
            }
            Next::Fail { promotion } => panic!("the standby is past the promotion at {promotion}"),
            Next::Wait => {}
        }
    }

    /// Checks the invariants completely.
    fn check(&self) {
        let queue = &self.queue;
        queue.assert_invariants();
        let bytes: usize = queue.finished.iter().map(Finished::bytes).sum();
        assert_eq!(bytes, queue.finished_bytes);
        let kept: Vec<_> = queue.finished.iter().collect();
        assert!(kept.windows(2).all(|pair| pair[0].index == pair[1].after), "a gap");
        assert!(queue.ready.iter().all(|question| question.index_min <= queue.serving));
        assert!(queue.waiting.iter().all(|question| question.index_min > queue.serving));
        if queue.standby == StandbyState::Following && queue.replacement.is_none() {
            assert_eq!(queue.gap(self.position.applied), None, "entries are lost");
        }
    }
}

proptest! {
    #[test]
    fn random_transitions_keep_the_invariants(events in events()) {
        let queue = following();
        let mut model = Model { queue, position: at(4), served: 0 };
        for event in events {
            model.apply(event);
            model.check();
        }
    }
}
