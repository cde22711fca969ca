// Package fsm is the contract conclave:fsm@0.1.0 for machines in Go.
//
// A machine is a value of [Machine], and hands itself over in an init function:
//
//	func init() { fsm.Export(&machine{}) }
//
//	func main() {} // never called: a component is no program
package fsm

// Context is what an entry of the log, or a query, brings along: a machine's only source of time and chance.
type Context struct {
	// Index of the entry in the log.
	Index uint64
	// TimeMs is the entry's time, in milliseconds since the Unix epoch. time.Now says the same.
	TimeMs uint64
	// Seed for a generator: rand.NewPCG(ctx.Seed, 0). The functions of math/rand that need no generator are not for
	// machines, as what they give depends on how long an instance has lived.
	Seed uint64
	// Principal is who called, or empty.
	Principal string
}

// Call is one call of one method.
type Call struct {
	// Method is package.Service/Method.
	Method string
	// Request is the machine's own: it may be kept.
	Request []byte
}

// Code says why a machine refuses. The codes are those of gRPC.
type Code uint8

// What a machine may answer with.
const (
	InvalidArgument Code = iota
	NotFound
	AlreadyExists
	PermissionDenied
	FailedPrecondition
	Aborted
	OutOfRange
	Unimplemented
	ResourceExhausted
	Internal
)

// Failure is an answer that says no. What was changed before it stays: validate first, then change.
type Failure struct {
	Code    Code
	Message string
}

func (f *Failure) Error() string { return f.Message }

// Event is something that happened, for those subscribed to a range of topics that holds its own.
type Event struct {
	Topic, Payload []byte
}

// Reply is the answer to an entry.
type Reply struct {
	Response []byte
	Events   []Event
}

// Subscription is the range of topics that a subscriber is about, and what it gets first.
type Subscription struct {
	FromTopic, ToTopic []byte
	Initial            [][]byte
}

// Description is what a machine says of itself, always the same.
type Description struct {
	Name, Version string
	StateVersion  uint32
	// Restores are the versions of snapshots that Restore takes, StateVersion among them.
	Restores []uint32
	// DescriptorSet is a serialized FileDescriptorSet (protoc --include_imports --descriptor_set_out). Without
	// one the machine is called with raw bytes.
	DescriptorSet []byte
}

// Machine is a replicated state machine. wit/fsm.wit has the contract; errors other than a *Failure and
// panics are traps, which are rolled back.
type Machine interface {
	Describe() Description
	Apply(Context, Call) (Reply, error)
	Tick(Context) Reply
	Query(Context, Call) ([]byte, error)
	Subscribe(Context, Call) (Subscription, error)
	// Snapshot gives the state's bytes: the same state, the same bytes, so sort what maps hold.
	Snapshot() []byte
	// Restore replaces the whole state, or fails and changes nothing.
	Restore(stateVersion uint32, snapshot []byte) error
}

// Waker is for machines with timers. WakeAt is the time at which the state next needs Tick, in the clock of
// Context.TimeMs; zero is never. It is a function of the state, and called after each tick and each call of Apply
// without an error.
type Waker interface{ WakeAt() uint64 }

var machine Machine

// Export makes m what the component serves. It is called once, in an init function.
func Export(m Machine) { machine = m }
