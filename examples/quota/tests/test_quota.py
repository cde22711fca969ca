"""Goal: no subject gets more than its limit or waits longer than necessary, and the contract is satisfied.

Method: logs of calls, applied natively by the SDK's conformance tests, without a node or WebAssembly.
"""

import random
import unittest
from unittest import mock

import machine
from conclave_sdk import Code, Failure
from conclave_sdk.testing import Log, check, check_same_state, run
from machine import NAME_BYTES_MAX, Quota, pb


def define(log: Log, capacity: int, per_second: int, limit: str = "api") -> Log:
    request = pb.DefineRequest(limit=limit, capacity=capacity, per_second=per_second)
    return log.apply("quota.v1.Quota/Define", request)


def take(log: Log, subject: str, tokens: int, limit: str = "api") -> Log:
    return log.apply("quota.v1.Quota/Take", pb.TakeRequest(limit=limit, subject=subject, tokens=tokens))


def takes(log: Log) -> list:
    """Returns the results of the takes of a log: taken, left, retry after; or the code of a failure."""
    _, outcomes = run(Quota, log)
    given = []
    for entry, outcome in zip(log.entries, outcomes):
        if isinstance(outcome, Failure):
            given.append(outcome.code)
        elif entry.call.method.endswith("/Take"):
            answer = pb.TakeResponse.FromString(outcome.response)
            given.append((answer.taken, answer.left, answer.retry_after_ms))
    return given


class Buckets(unittest.TestCase):
    def test_a_bucket_begins_full_and_fills_with_time(self):
        log = define(Log(), capacity=10, per_second=2)
        take(log, "ada", 10)
        take(log, "ada", 1)
        take(log.wait_ms(499), "ada", 1)
        take(log.wait_ms(1), "ada", 1)
        take(log.wait_ms(1_000_000), "ada", 4)
        self.assertEqual(
            takes(log), [(True, 0, 0), (False, 0, 500), (False, 0, 1), (True, 0, 0), (True, 6, 0)]
        )

    def test_subjects_have_buckets_of_their_own(self):
        log = define(define(Log(), 1, 1), 1, 1, "other")
        take(take(take(log, "ada", 1), "grace", 1), "ada", 1, "other")
        self.assertEqual(takes(log), [(True, 0, 0)] * 3)

    def test_a_limit_that_changes_keeps_what_came_back_until_then(self):
        log = define(Log(), capacity=100, per_second=10)
        take(log, "ada", 100)
        define(log.wait_ms(1_000), capacity=100, per_second=1)
        take(log.wait_ms(1_000), "ada", 11)
        # A smaller bucket loses the excess tokens.
        define(log.wait_ms(100_000), capacity=5, per_second=1)
        take(log, "ada", 5)
        self.assertEqual(takes(log), [(True, 0, 0), (True, 0, 0), (True, 0, 0)])

    def test_what_is_no_request_is_refused_and_changes_nothing(self):
        log = take(Log(), "ada", 1)
        for capacity, per_second, limit in [(0, 1, "a"), (1, 0, "a"), (10**6 + 1, 1, "a"), (1, 1, "")]:
            define(log, capacity, per_second, limit)
        define(log, 5, 5)
        for subject, tokens in [("", 1), ("x" * (NAME_BYTES_MAX + 1), 1), ("ada", 0), ("ada", 6)]:
            take(log, subject, tokens)
        self.assertEqual(takes(log), [Code.NOT_FOUND] + [Code.INVALID_ARGUMENT] * 8)
        check_same_state(Quota, log, define(Log(), 5, 5))

    def test_a_full_house_makes_room_once_buckets_are_full_again(self):
        with mock.patch.object(machine, "BUCKETS_MAX", 2):
            log = define(Log(), capacity=2, per_second=1)
            take(take(log, "ada", 1), "grace", 2)
            take(log, "alan", 1)
            take(log, "ada", 1)
            take(log.wait_ms(2_000), "alan", 1)
            expected = [(True, 1, 0), (True, 0, 0), Code.RESOURCE_EXHAUSTED, (True, 0, 0), (True, 1, 0)]
            self.assertEqual(takes(log), expected)


class Contract(unittest.TestCase):
    def test_a_snapshot_that_no_machine_gave_is_refused(self):
        def snapshot(**changed):
            bucket = pb.Snapshot.Bucket(subject="ada", milli_tokens=1_000)
            fields = {"name": "api", "capacity": 2, "per_second": 1, "buckets": [bucket], **changed}
            return pb.Snapshot(limits=[pb.Snapshot.Limit(**fields)]).SerializeToString()

        Quota.load(1, snapshot())
        for bad in [{"name": ""}, {"capacity": 1}, {"per_second": 0}]:
            with self.assertRaises(Failure, msg=bad):
                Quota.load(1, snapshot(**bad))

    def test_the_order_in_which_names_came_does_not_show(self):
        """Fails if the snapshot depends on which name came first."""

        def log(names):
            log = Log()
            for name in names:
                take(take(define(log, 9, 9, name), "ada", 1, name), "grace", 1, name)
            return log

        check_same_state(Quota, log(["a", "b"]), log(["b", "a"]))

    def test_whatever_happens_it_keeps_the_contract_and_gives_nobody_too_much(self):
        """Runs the conformance tests on random logs, and checks the rate limit.

        In any interval, a subject gets at most a full bucket plus the tokens that were added.
        """
        for seed in range(20):
            generator = random.Random(seed)
            capacity, per_second = generator.randint(1, 20), generator.randint(1, 50)
            log = define(Log(), capacity, per_second)
            for subject in ["ada", "grace"]:
                log.ask("quota.v1.Quota/Get", pb.GetRequest(limit="api", subject=subject))
            for _ in range(40):
                log.wait_ms(generator.randint(0, 400))
                take(log, generator.choice(["ada", "grace"]), generator.randint(1, capacity))
            check(Quota, log)

            _, outcomes = run(Quota, log)
            got = []
            for entry, outcome in zip(log.entries[1:], outcomes[1:]):
                request = pb.TakeRequest.FromString(entry.call.request)
                if request.subject == "ada" and pb.TakeResponse.FromString(outcome.response).taken:
                    got.append((entry.context.time_ms, request.tokens))
            self.assertTrue(got, f"seed {seed}: too little happened")
            for first in range(len(got)):
                tokens = 0
                for time_ms, taken in got[first:]:
                    tokens += taken
                    allowed = capacity + (time_ms - got[first][0]) * per_second / 1000
                    self.assertLessEqual(tokens, allowed, f"seed {seed}")


if __name__ == "__main__":
    unittest.main()
