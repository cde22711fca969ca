"""Goal: the state machine counts correctly and satisfies the contract.

Method: logs of calls, applied natively by the SDK's conformance tests, without a node or WebAssembly.
"""

import random
import unittest

from conclave_sdk import Code, Failure
from conclave_sdk.testing import Log, check, check_same_state, run
from machine import NAME_BYTES_MAX, MyMachine, pb

NAMES = ["pear", "apple", "fig", "quince"]


def log(amounts) -> Log:
    """A log that adds these amounts and queries all names after each entry."""
    log = Log()
    for name in NAMES:
        log.ask("my_machine.v1.MyMachine/Get", pb.GetRequest(name=name))
    for name, amount in amounts:
        log.apply("my_machine.v1.MyMachine/Add", pb.AddRequest(name=name, amount=amount))
    return log


def counts(outcomes):
    """The returned counts, or the codes of failed calls."""
    return [
        outcome.code if isinstance(outcome, Failure) else pb.AddResponse.FromString(outcome.response).count
        for outcome in outcomes
    ]


class Contract(unittest.TestCase):
    def test_it_counts_and_refuses_what_it_cannot_keep(self):
        most = 2**63 - 1
        long = "x" * (NAME_BYTES_MAX + 1)
        amounts = [("pear", 3), ("fig", most), ("pear", -1), ("fig", 1), ("", 1), (long, 1), ("fig", 0)]
        check(MyMachine, log(amounts))
        _, outcomes = run(MyMachine, log(amounts))
        invalid = Code.INVALID_ARGUMENT
        self.assertEqual(counts(outcomes), [3, most, 2, Code.OUT_OF_RANGE, invalid, invalid, most])

    def test_the_order_in_which_names_came_does_not_show(self):
        """Fails if the snapshot depends on which name came first, as with a list or a dict."""
        amounts = [(name, len(name)) for name in NAMES]
        check_same_state(MyMachine, log(amounts), log(reversed(amounts)))

    def test_whatever_is_added_it_keeps_the_contract_and_the_sums_are_right(self):
        """Runs the conformance tests on random logs and compares the sums with a simple model.

        Fails if the snapshot omits a field, if replies differ after a restore, or if a sum is wrong.
        """
        for seed in range(20):
            generator = random.Random(seed)
            amounts = [(generator.choice(NAMES), generator.randint(-1000, 1000)) for _ in range(30)]
            check(MyMachine, log(amounts))

            sums, expected = {}, []
            for name, amount in amounts:
                sums[name] = sums.get(name, 0) + amount
                expected.append(sums[name])
            _, outcomes = run(MyMachine, log(amounts))
            self.assertEqual(counts(outcomes), expected, f"seed {seed}")


if __name__ == "__main__":
    unittest.main()
