"""Goal: the conformance tests find failed calls that change the state and lost wake-ups, and report
nothing for a state machine without these mistakes.

Method: alarm clocks with one mistake each.
"""

import unittest

from conclave_sdk import Code, Failure, Machine, Reply
from conclave_sdk.testing import Log, check, check_failures, check_wake_ups


class Alarms(Machine):
    """Two alarms, the number of times they rang, and a counter for some of the mistakes."""

    name = "alarms"
    version = "1.0.0"
    state_version = 1

    def __init__(self):
        self.at_ms = [0, 0]
        self.rung = self.counted = 0

    def ring(self, time_ms):
        for number, at_ms in enumerate(self.at_ms):
            if 0 < at_ms <= time_ms:
                self.at_ms[number] = 0
                self.rung += 1

    def apply(self, context, call):
        self.ring(context.time_ms)
        if call.method == "First":
            self.at_ms[0] = context.time_ms + 90_000
        elif call.method == "Second":
            self.at_ms[1] = context.time_ms + 30_000
        elif call.method == "Cancel":
            self.at_ms = [0, 0]
        else:
            self.refused()
            raise Failure(Code.UNIMPLEMENTED, f"there is no method {call.method}")
        return Reply(b"")

    def refused(self):
        pass

    def tick(self, context):
        self.ring(context.time_ms)
        return Reply(b"")

    def wake_at(self):
        return min((at_ms for at_ms in self.at_ms if at_ms), default=None)

    def query(self, context, call):
        return self.save()

    def save(self):
        return repr((self.at_ms, self.rung, self.counted)).encode()

    @classmethod
    def load(cls, state_version, snapshot):
        machine = cls()
        machine.at_ms, machine.rung, machine.counted = eval(snapshot)
        return machine


class FailsLate(Alarms):
    def refused(self):
        self.counted += 1


class CountsTicks(Alarms):
    """Is correct: each tick changes the state, whatever the time."""

    def tick(self, context):
        self.counted += 1
        return super().tick(context)


class Later(Alarms):
    def wake_at(self):
        return next((at_ms for at_ms in self.at_ms if at_ms), None)


class Never(Alarms):
    def wake_at(self):
        return None


def log() -> Log:
    """Alarms that ring, are set again and are cancelled, and calls that fail. Some calls come late."""
    log = Log().ask("Show", b"")
    log.apply("Unknown", b"").apply("Second", b"")
    log.wait_ms(10_000).apply("First", b"").apply("Unknown", b"")
    log.wait_ms(20_000).tick()
    log.wait_ms(100_000).apply("Unknown", b"")
    log.apply("First", b"").wait_ms(1_000).apply("Cancel", b"")
    return log.apply("Second", b"").wait_ms(40_000).apply("Cancel", b"")


class Mistakes(unittest.TestCase):
    def test_machines_without_them_pass(self):
        check(Alarms, log())
        check(CountsTicks, log())

    def test_a_call_that_fails_after_a_change_is_found(self):
        for found_by in (check_failures, check):
            with self.assertRaisesRegex(AssertionError, r"entry 0 \(Unknown .* failed and changed the state"):
                found_by(FailsLate, log())

    def test_a_wake_up_that_another_one_replaces_is_found(self):
        for found_by in (check_wake_ups, check):
            with self.assertRaisesRegex(AssertionError, r"after entry 2 \(First .* before it was 1750000030000"):
                found_by(Later, log())

    def test_a_wake_up_that_was_never_asked_for_is_found(self):
        with self.assertRaisesRegex(AssertionError, "the wake-up time is None, before it was None"):
            check_wake_ups(Never, log())

    def test_the_wake_up_time_is_the_same_once_restored(self):
        class Forgets(Alarms):
            lived = True

            @classmethod
            def load(cls, state_version, snapshot):
                machine = super().load(state_version, snapshot)
                machine.lived = False
                return machine

            def wake_at(self):
                return super().wake_at() if self.lived else None

        with self.assertRaisesRegex(AssertionError, r"restored after 0 entries: entry 1 \(Second"):
            check(Forgets, log())


if __name__ == "__main__":
    unittest.main()
