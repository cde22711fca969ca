package fsm

import (
	"encoding/binary"
	"errors"
	"unsafe"
)

// The canonical ABI, by hand. Numbers are little-endian; a string or a list is its address and its length.
//
// Memory is passed in two directions. Data from the host is in [arguments] and is copied out. Data for the
// host stays reachable through [answer] until the next call. Its address does not change, because Go's
// garbage collector does not move objects.

// The host allocates while calls back into it are not allowed, but Go's own allocator may ask the host for
// the time. Arguments therefore use this fixed buffer, which is reset at each call. Larger arguments are a
// trap. By default, a node accepts requests of up to 4 MiB.
var (
	arguments     [5 << 20]byte
	argumentsUsed uint32
)

//go:nosplit
//go:wasmexport cabi_realloc
func realloc(old, oldSize, align, size uint32) uint32 {
	at := (argumentsUsed + align - 1) &^ (align - 1)
	if old != 0 || uint64(at)+uint64(size) > uint64(len(arguments)) {
		panic("fsm: the arguments of a call are too large")
	}
	argumentsUsed = at + size
	return uint32(uintptr(unsafe.Pointer(&arguments))) + at
}

// The adapter from WASI 0.1 to 0.2 allocates two pages, once, at the start of Go's runtime. Without this
// function it would grow the memory, but Go uses all memory behind its own end as its heap.
var (
	adapter     [3 << 16]byte
	adapterUsed uint32
)

//go:nosplit
//go:wasmexport cabi_realloc_adapter
func reallocAdapter(old, oldSize, align, size uint32) uint32 {
	at := (adapterUsed + align - 1) &^ (align - 1)
	adapterUsed = at + size
	return uint32(uintptr(unsafe.Pointer(&adapter))) + at
}

// answer is the data that the host reads: a record, and everything that it points to.
var answer struct {
	record []byte
	parts  [][]byte
}

// begin discards the data of the previous call.
func begin(recordBytes int) []byte {
	argumentsUsed = 0
	answer.record, answer.parts = make([]byte, recordBytes), nil
	return answer.record
}

func number(record []byte, at int, value uint32) { binary.LittleEndian.PutUint32(record[at:], value) }

// list writes the address of bytes and the number of their elements.
func list(record []byte, at int, bytes []byte, count int) {
	answer.parts = append(answer.parts, bytes)
	number(record, at, address(bytes))
	number(record, at+4, uint32(count))
}

func bytesAt(record []byte, at int, bytes []byte) { list(record, at, bytes, len(bytes)) }

func address(bytes []byte) uint32 { return uint32(uintptr(unsafe.Pointer(unsafe.SliceData(bytes)))) }

// taken returns a copy of data from the host.
func taken(at, size uint32) []byte {
	there := unsafe.Slice((*byte)(unsafe.Pointer(uintptr(at))), size)
	return append(make([]byte, 0, size), there...)
}

// failed writes the failure of a result whose payload is at offset 4 or 8. Any other error is a trap.
func failed(record []byte, at int, err error) {
	var failure *Failure
	if !errors.As(err, &failure) {
		panic(err)
	}
	record[0] = 1
	record[at] = byte(failure.Code)
	bytesAt(record, at+4, []byte(failure.Message))
}

func context(index, timeMs, seed uint64, principal, principalSize uint32) Context {
	return Context{index, timeMs, seed, string(taken(principal, principalSize))}
}

func call(method, methodSize, request, requestSize uint32) Call {
	return Call{string(taken(method, methodSize)), taken(request, requestSize)}
}

//go:wasmexport conclave:fsm/fsm@0.1.0#describe
func describe() uint32 {
	d := machine.Describe()
	record := begin(36)
	bytesAt(record, 0, []byte(d.Name))
	bytesAt(record, 8, []byte(d.Version))
	number(record, 16, d.StateVersion)
	restores := make([]byte, 4*len(d.Restores))
	for i, version := range d.Restores {
		number(restores, 4*i, version)
	}
	list(record, 20, restores, len(d.Restores))
	bytesAt(record, 28, d.DescriptorSet)
	return address(record)
}

//go:wasmexport conclave:fsm/fsm@0.1.0#apply
func apply(index, timeMs, seed uint64, principal, principalSize, method, methodSize, request, requestSize uint32) uint32 {
	ctx, c := context(index, timeMs, seed, principal, principalSize), call(method, methodSize, request, requestSize)
	reply, err := machine.Apply(ctx, c)
	record := begin(40)
	if err != nil {
		failed(record, 8, err)
	} else {
		putReply(record[8:], reply)
	}
	return address(record)
}

//go:wasmexport conclave:fsm/fsm@0.1.0#tick
func tick(index, timeMs, seed uint64, principal, principalSize uint32) uint32 {
	reply := machine.Tick(context(index, timeMs, seed, principal, principalSize))
	record := begin(32)
	putReply(record, reply)
	return address(record)
}

func putReply(record []byte, reply Reply) {
	bytesAt(record, 0, reply.Response)
	events := make([]byte, 16*len(reply.Events))
	for i, event := range reply.Events {
		bytesAt(events, 16*i, event.Topic)
		bytesAt(events, 16*i+8, event.Payload)
	}
	list(record, 8, events, len(reply.Events))
	if waker, ok := machine.(Waker); ok {
		if wakeAt := waker.WakeAt(); wakeAt != 0 {
			record[16] = 1
			binary.LittleEndian.PutUint64(record[24:], wakeAt)
		}
	}
}

//go:wasmexport conclave:fsm/fsm@0.1.0#query
func query(index, timeMs, seed uint64, principal, principalSize, method, methodSize, request, requestSize uint32) uint32 {
	ctx, c := context(index, timeMs, seed, principal, principalSize), call(method, methodSize, request, requestSize)
	response, err := machine.Query(ctx, c)
	record := begin(16)
	if err != nil {
		failed(record, 4, err)
	} else {
		bytesAt(record, 4, response)
	}
	return address(record)
}

//go:wasmexport conclave:fsm/fsm@0.1.0#subscribe
func subscribe(index, timeMs, seed uint64, principal, principalSize, method, methodSize, request, requestSize uint32) uint32 {
	ctx, c := context(index, timeMs, seed, principal, principalSize), call(method, methodSize, request, requestSize)
	subscription, err := machine.Subscribe(ctx, c)
	record := begin(28)
	if err != nil {
		failed(record, 4, err)
		return address(record)
	}
	bytesAt(record, 4, subscription.FromTopic)
	bytesAt(record, 12, subscription.ToTopic)
	initial := make([]byte, 8*len(subscription.Initial))
	for i, message := range subscription.Initial {
		bytesAt(initial, 8*i, message)
	}
	list(record, 20, initial, len(subscription.Initial))
	return address(record)
}

// Open snapshots and restores, by the number that identifies them to the host.
var (
	readers    = map[uint32][]byte{}
	writers    = map[uint32]*writer{}
	lastNumber uint32
)

type writer struct {
	stateVersion uint32
	bytes        []byte
}

//go:wasmimport [export]conclave:fsm/fsm@0.1.0 [resource-new]snapshot-reader
func newReader(number uint32) uint32

//go:wasmimport [export]conclave:fsm/fsm@0.1.0 [resource-new]restore-writer
func newWriter(number uint32) uint32

//go:wasmexport conclave:fsm/fsm@0.1.0#snapshot
func snapshot() uint32 {
	lastNumber++
	readers[lastNumber] = machine.Snapshot()
	return newReader(lastNumber)
}

//go:wasmexport conclave:fsm/fsm@0.1.0#[method]snapshot-reader.read
func readerRead(reader, bytesMax uint32) uint32 {
	left := readers[reader]
	chunk := left[:min(len(left), int(bytesMax))]
	readers[reader] = left[len(chunk):]
	record := begin(8)
	bytesAt(record, 0, chunk)
	return address(record)
}

//go:wasmexport conclave:fsm/fsm@0.1.0#[dtor]snapshot-reader
func readerDrop(reader uint32) { delete(readers, reader) }

//go:wasmexport conclave:fsm/fsm@0.1.0#restore
func restore(stateVersion uint32) uint32 {
	lastNumber++
	writers[lastNumber] = &writer{stateVersion: stateVersion}
	record := begin(16)
	number(record, 4, newWriter(lastNumber))
	return address(record)
}

//go:wasmexport conclave:fsm/fsm@0.1.0#[method]restore-writer.write
func writerWrite(writer, chunk, chunkSize uint32) uint32 {
	writers[writer].bytes = append(writers[writer].bytes, taken(chunk, chunkSize)...)
	return address(begin(16))
}

//go:wasmexport conclave:fsm/fsm@0.1.0#[method]restore-writer.finish
func writerFinish(writer uint32) uint32 {
	err := machine.Restore(writers[writer].stateVersion, writers[writer].bytes)
	record := begin(16)
	if err != nil {
		failed(record, 4, err)
	}
	return address(record)
}

//go:wasmexport conclave:fsm/fsm@0.1.0#[dtor]restore-writer
func writerDrop(writer uint32) { delete(writers, writer) }
