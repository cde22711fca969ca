//! The values of WASI's functions, as the component ABI has them.
#![allow(unsafe_code, reason = "derived: the component ABI needs it")]

use wasmtime::component::{ComponentType, Lift, Lower, Resource};

/// Something to wait for, which is there.
pub(super) enum Pollable {}
/// Standard input.
pub(super) enum Input {}
/// Standard output or error; the handle's number tells which.
pub(super) enum Output {}
/// The network that nothing can be done with.
pub(super) enum Network {}
// Of the rest no machine ever holds one.
pub(super) enum IoError {}
pub(super) enum TerminalInput {}
pub(super) enum TerminalOutput {}
pub(super) enum Descriptor {}
pub(super) enum DirectoryEntries {}
pub(super) enum TcpSocket {}
pub(super) enum UdpSocket {}
pub(super) enum IncomingDatagrams {}
pub(super) enum OutgoingDatagrams {}
pub(super) enum Addresses {}

/// A moment of the wall clock.
#[derive(ComponentType, Lower, Lift, Clone, Copy)]
#[component(record)]
pub(super) struct Datetime {
    pub(super) seconds: u64,
    pub(super) nanoseconds: u32,
}

/// Why a stream does nothing.
#[derive(ComponentType, Lower, Lift)]
#[component(variant)]
pub(super) enum StreamError {
    #[component(name = "last-operation-failed")]
    #[allow(dead_code, reason = "the ABI has it; nothing fails here")]
    LastOperationFailed(Resource<IoError>),
    #[component(name = "closed")]
    Closed,
}

/// A family of addresses.
#[derive(ComponentType, Lower, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code, reason = "made by the ABI alone")]
pub(super) enum AddressFamily {
    #[component(name = "ipv4")]
    V4,
    #[component(name = "ipv6")]
    V6,
}

/// Why the network does nothing.
#[derive(ComponentType, Lower, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code, reason = "the ABI has them; a machine only ever meets two")]
pub(super) enum NetworkError {
    #[component(name = "unknown")]
    Unknown,
    #[component(name = "access-denied")]
    AccessDenied,
    #[component(name = "not-supported")]
    NotSupported,
    #[component(name = "invalid-argument")]
    InvalidArgument,
    #[component(name = "out-of-memory")]
    OutOfMemory,
    #[component(name = "timeout")]
    Timeout,
    #[component(name = "concurrency-conflict")]
    ConcurrencyConflict,
    #[component(name = "not-in-progress")]
    NotInProgress,
    #[component(name = "would-block")]
    WouldBlock,
    #[component(name = "invalid-state")]
    InvalidState,
    #[component(name = "new-socket-limit")]
    NewSocketLimit,
    #[component(name = "address-not-bindable")]
    AddressNotBindable,
    #[component(name = "address-in-use")]
    AddressInUse,
    #[component(name = "remote-unreachable")]
    RemoteUnreachable,
    #[component(name = "connection-refused")]
    ConnectionRefused,
    #[component(name = "connection-reset")]
    ConnectionReset,
    #[component(name = "connection-aborted")]
    ConnectionAborted,
    #[component(name = "datagram-too-large")]
    DatagramTooLarge,
    #[component(name = "name-unresolvable")]
    NameUnresolvable,
    #[component(name = "temporary-resolver-failure")]
    TemporaryResolverFailure,
    #[component(name = "permanent-resolver-failure")]
    PermanentResolverFailure,
}
