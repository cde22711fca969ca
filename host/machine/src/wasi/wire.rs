//! The types of WASI's functions, as the component ABI represents them.
#![allow(unsafe_code, reason = "derived: the component ABI needs it")]

use wasmtime::component::{ComponentType, Lift, Lower, Resource};

/// A pollable, which is always ready.
pub(super) enum Pollable {}
/// Standard input.
pub(super) enum Input {}
/// Standard output or error, distinguished by the handle's number.
pub(super) enum Output {}
/// The network, on which every operation fails.
pub(super) enum Network {}
// No component ever holds a handle of the following types.
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

/// A time of the wall clock.
#[derive(ComponentType, Lower, Lift, Clone, Copy)]
#[component(record)]
pub(super) struct Datetime {
    pub(super) seconds: u64,
    pub(super) nanoseconds: u32,
}

/// The error of a stream operation.
#[derive(ComponentType, Lower, Lift)]
#[component(variant)]
pub(super) enum StreamError {
    #[component(name = "last-operation-failed")]
    #[allow(dead_code, reason = "required by the ABI; nothing fails here")]
    LastOperationFailed(Resource<IoError>),
    #[component(name = "closed")]
    Closed,
}

/// The address family of a socket.
#[derive(ComponentType, Lower, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code, reason = "only the ABI creates values of it")]
pub(super) enum AddressFamily {
    #[component(name = "ipv4")]
    V4,
    #[component(name = "ipv6")]
    V6,
}

/// The error of a network operation.
#[derive(ComponentType, Lower, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code, reason = "required by the ABI; only two of them are returned")]
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
