// Raffle draws winners among names. It does what ordinary Go programs do: it uses a map, reads the clock,
// draws random numbers and prints.
package main

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"time"

	"raffle/fsm"
)

const (
	nameBytesMax = 64
	namesMax     = 10_000
	winnersMax   = 1_000
)

// raffle is the state. Its fields are the content of a snapshot.
type raffle struct {
	// Tickets by name.
	Tickets map[string]uint32
	// Winners in the order in which they were drawn; the last 1000.
	Winners []winner
}

type winner struct {
	Name string
	// AtMs is the time of the draw, in milliseconds since the Unix epoch.
	AtMs int64
}

func init() { fsm.Export(&raffle{Tickets: map[string]uint32{}}) }

func main() {} // a component is not a program

func (r *raffle) Describe() fsm.Description {
	return fsm.Description{Name: "raffle", Version: "0.1.0", StateVersion: 1, Restores: []uint32{1}}
}

func (r *raffle) Apply(_ fsm.Context, call fsm.Call) (fsm.Reply, error) {
	switch call.Method {
	case "raffle.v1.Raffle/Enter":
		return r.enter(string(call.Request))
	case "raffle.v1.Raffle/Draw":
		return r.draw()
	}
	return fsm.Reply{}, unknown(call)
}

// enter gives a name one more ticket, and returns the number of its tickets.
func (r *raffle) enter(name string) (fsm.Reply, error) {
	if name == "" || len(name) > nameBytesMax {
		return fsm.Reply{}, &fsm.Failure{Code: fsm.InvalidArgument, Message: "a name has 1 to 64 bytes"}
	}
	if _, there := r.Tickets[name]; !there && len(r.Tickets) == namesMax {
		return fsm.Reply{}, &fsm.Failure{Code: fsm.ResourceExhausted, Message: "there are 10000 names already"}
	}
	r.Tickets[name]++
	return fsm.Reply{Response: fmt.Append(nil, r.Tickets[name])}, nil
}

// draw removes a name, and returns it with the time.
func (r *raffle) draw() (fsm.Reply, error) {
	if len(r.Tickets) == 0 {
		return fsm.Reply{}, &fsm.Failure{Code: fsm.FailedPrecondition, Message: "there are no tickets"}
	}
	// Sorted, because the order of a map differs between replicas.
	names := slices.Sorted(maps.Keys(r.Tickets))
	drawn, err := rand.Int(rand.Reader, big.NewInt(int64(len(names))))
	if err != nil {
		panic(err)
	}
	winner := winner{names[drawn.Int64()], time.Now().UnixMilli()}
	delete(r.Tickets, winner.Name)
	r.Winners = append(r.Winners[max(0, len(r.Winners)+1-winnersMax):], winner)
	fmt.Println(winner.Name, "wins")
	return fsm.Reply{Response: fmt.Append(nil, winner.Name, " ", winner.AtMs)}, nil
}

func (r *raffle) Tick(fsm.Context) fsm.Reply { return fsm.Reply{} }

func (r *raffle) Query(_ fsm.Context, call fsm.Call) ([]byte, error) {
	switch call.Method {
	case "raffle.v1.Raffle/Names":
		return []byte(strings.Join(slices.Sorted(maps.Keys(r.Tickets)), " ")), nil
	case "raffle.v1.Raffle/Winners":
		return json.Marshal(r.Winners)
	}
	return nil, unknown(call)
}

func (r *raffle) Subscribe(_ fsm.Context, call fsm.Call) (fsm.Subscription, error) {
	return fsm.Subscription{}, unknown(call)
}

// Snapshot returns JSON. Go's encoder sorts the keys of maps.
func (r *raffle) Snapshot() []byte {
	snapshot, err := json.Marshal(r)
	if err != nil {
		panic(err)
	}
	return snapshot
}

func (r *raffle) Restore(_ uint32, snapshot []byte) error {
	restored := raffle{Tickets: map[string]uint32{}}
	if err := json.Unmarshal(snapshot, &restored); err != nil {
		return &fsm.Failure{Code: fsm.InvalidArgument, Message: err.Error()}
	}
	*r = restored
	return nil
}

func unknown(call fsm.Call) error {
	return &fsm.Failure{Code: fsm.Unimplemented, Message: "there is no method " + call.Method}
}
