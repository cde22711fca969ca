// Package fsm implements the contract conclave:fsm@0.1.0 for state machines in Go.
//
// A state machine is a value of [Machine]. Register it in an init function:
//
//	func init() { fsm.Export(&machine{}) }
//
//	func main() {} // never called: a component is not a program
package fsm

// Context is the context of an entry or a query. It is a state machine's only source of time and randomness.
type Context struct {
	// Index of the entry in the log.
	Index uint64
	// TimeMs is the entry's time, in milliseconds since the Unix epoch. time.Now returns the same time.
	TimeMs uint64
	// Seed is for a generator: rand.NewPCG(ctx.Seed, 0). State machines must not use the global functions of
	// math/rand, because their results depend on the age of the instance.
	Seed uint64
	// Principal is the authenticated caller, or empty.
	Principal string
}

// Call is one call of one method.
type Call struct {
	// Method is package.Service/Method.
	Method string
	// Request is owned by the state machine and may be kept.
	Request []byte
}

// Code is the reason of a failure. The codes are those of gRPC.
type Code uint8

// The codes that a state machine may fail with.
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

// Failure is an ordinary reply that refuses the request. Changes made before it are kept: validate
// first, then change.
type Failure struct {
	Code    Code
	Message string
}

func (f *Failure) Error() string { return f.Message }

// Event is delivered to all subscriptions whose range of topics contains its topic.
type Event struct {
	Topic, Payload []byte
}

// Reply is the reply to an entry.
type Reply struct {
	Response []byte
	Events   []Event
}

// Subscription is the range of topics of a subscriber, and its initial messages.
type Subscription struct {
	FromTopic, ToTopic []byte
	Initial            [][]byte
}

// Description describes a state machine. It must always be the same.
type Description struct {
	Name, Version string
	StateVersion  uint32
	// Restores are the snapshot versions that Restore accepts, including StateVersion.
	Restores []uint32
	// DescriptorSet is a serialized FileDescriptorSet (protoc --include_imports --descriptor_set_out). Without
	// one, the state machine takes raw bytes.
	DescriptorSet []byte
}

// Machine is a replicated state machine. wit/fsm.wit defines the contract. Panics, and errors other than a
// *Failure, are traps, which are rolled back.
type Machine interface {
	Describe() Description
	Apply(Context, Call) (Reply, error)
	Tick(Context) Reply
	Query(Context, Call) ([]byte, error)
	Subscribe(Context, Call) (Subscription, error)
	// Snapshot returns the state as bytes. The same state must give the same bytes, so sort the keys of maps.
	Snapshot() []byte
	// Restore replaces the whole state. If it fails, it must change nothing.
	Restore(stateVersion uint32, snapshot []byte) error
}

// Waker is implemented by state machines with timers. WakeAt returns the time at which the state next
// needs Tick, in the clock of Context.TimeMs; zero means never. The result must depend on the state only.
// It is called after each tick and each call of Apply without an error.
type Waker interface{ WakeAt() uint64 }

var machine Machine

// Export makes m the state machine of the component. Call it once, in an init function.
func Export(m Machine) { machine = m }
