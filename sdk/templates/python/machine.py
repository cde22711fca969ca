"""The state machine `my-machine`: named counters that any caller can add to.

A complete example: state, methods, limits, snapshots. A state machine is a pure function of the log:
no clock, no randomness, no files. `Context` contains the time and the random seed of an entry.
"""

from conclave_sdk import Code, Context, Failure, Machine, command, export, messages, query
from descriptor_set import DESCRIPTOR_SET

pb = messages(DESCRIPTOR_SET, "my_machine.v1")

# The longest name, in bytes. Everything that callers send needs a limit, because the state is in memory.
NAME_BYTES_MAX = 256
# The maximum number of names.
NAMES_MAX = 100_000


@export
class MyMachine(Machine):
    name = "my-machine"
    version = "0.1.0"
    # Raise this when the snapshot format changes, and list the old versions in `restores`.
    state_version = 1
    descriptor_set = DESCRIPTOR_SET

    def __init__(self):
        self.counts: dict[str, int] = {}

    @command("my_machine.v1.MyMachine/Add")
    def add(self, _: Context, request):
        """Checks everything before it changes anything: changes made before a failure are kept."""
        name_bytes = len(request.name.encode())
        if not 1 <= name_bytes <= NAME_BYTES_MAX:
            raise Failure(Code.INVALID_ARGUMENT, f"a name has 1 to {NAME_BYTES_MAX} bytes, not {name_bytes}")
        if request.name not in self.counts and len(self.counts) >= NAMES_MAX:
            raise Failure(Code.RESOURCE_EXHAUSTED, f"there are {NAMES_MAX} names")
        count = self.counts.get(request.name, 0) + request.amount
        if not -(2**63) <= count < 2**63:
            raise Failure(Code.OUT_OF_RANGE, "the count would not fit 64 bits")
        self.counts[request.name] = count
        return pb.AddResponse(count=count)

    @query("my_machine.v1.MyMachine/Get")
    def get(self, _: Context, request):
        if request.name not in self.counts:
            raise Failure(Code.NOT_FOUND, "nothing was added to this name")
        return pb.GetResponse(count=self.counts[request.name])

    def save(self) -> bytes:
        # Deterministic: sorted by name, because the same counts must give the same snapshot bytes,
        # regardless of which came first.
        return pb.Snapshot(counts=self.counts).SerializeToString(deterministic=True)

    @classmethod
    def load(cls, state_version: int, snapshot: bytes) -> "MyMachine":
        machine = cls()
        machine.counts = dict(pb.Snapshot.FromString(snapshot).counts)
        return machine
