//! Conversions between the shared types and their protobuf messages, on disk and between peers.
//!
//! Every conversion from the wire validates its input, because a peer or a disk may hold arbitrary bytes.

use std::sync::Arc;

use crate::raft as wire;
use conclave_types::{
    Call, Code, Command, CommandKind, ComponentId, ConsistencyCheck, Digest, Failure, NodeId, Trap,
    TrapKind,
    components::{About, Activation, ComponentCommand, ComponentPart, PART_BYTES_MAX},
    limits::ClusterLimits,
};

/// The error for bytes that are valid protobuf but not a valid message.
#[derive(Debug, thiserror::Error)]
#[error("malformed {message}: {reason}")]
pub struct Malformed {
    message: &'static str,
    reason: String,
    newer: bool,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Malformed {
    /// Returns the error for this message, with the reason.
    pub fn new(message: &'static str, reason: impl Into<String>) -> Self {
        Self { message, reason: reason.into(), newer: false, source: None }
    }

    /// Returns the error for this message, with the cause as the reason.
    pub fn caused_by(
        message: &'static str,
        cause: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        let reason = cause.to_string();
        Self { source: Some(Box::new(cause)), ..Self::new(message, reason) }
    }

    /// Whether a newer version wrote the message: this version does not know its kind.
    pub fn is_newer(&self) -> bool {
        self.newer
    }
}

/// Returns the error for a missing field.
pub fn missing(message: &'static str, field: &'static str) -> Malformed {
    Malformed::new(message, format!("{field} is missing"))
}

/// Converts a call to the wire.
pub fn call_to_wire(call: &Call) -> wire::Call {
    wire::Call {
        method: call.method.to_string(),
        request: call.request.clone(),
        principal: call.principal.to_string(),
    }
}

/// Converts a call from the wire.
pub fn call_from_wire(call: wire::Call) -> Call {
    Call {
        method: Arc::from(call.method),
        request: call.request,
        principal: Arc::from(call.principal),
    }
}

/// Converts a command to the wire.
pub fn command_to_wire(command: &Command) -> wire::Command {
    let kind = match &command.kind {
        CommandKind::Call(call) => wire::command::Kind::Call(call_to_wire(call)),
        CommandKind::Tick => wire::command::Kind::Tick(wire::Tick {}),
        CommandKind::ConsistencyCheck(consistency_check) => {
            wire::command::Kind::ConsistencyCheck(consistency_check_to_wire(consistency_check))
        }
        CommandKind::Verify => wire::command::Kind::Verify(wire::Verify {}),
        CommandKind::SetTime => wire::command::Kind::SetTime(wire::SetTime {}),
        CommandKind::SetLimits(limits) => {
            wire::command::Kind::SetLimits(cluster_limits_to_wire(limits))
        }
        CommandKind::Component(ComponentCommand::Part(part)) => {
            wire::command::Kind::ComponentPart(part_to_wire(part))
        }
        CommandKind::Component(ComponentCommand::Activate(activation)) => {
            wire::command::Kind::ActivateComponent(activation_to_wire(activation))
        }
    };
    wire::Command { time_ms: command.time_ms, kind: Some(kind) }
}

/// Converts a command from the wire.
pub fn command_from_wire(command: wire::Command) -> Result<Command, Malformed> {
    let kind = match command.kind {
        Some(wire::command::Kind::Call(call)) => CommandKind::Call(call_from_wire(call)),
        Some(wire::command::Kind::Tick(wire::Tick {})) => CommandKind::Tick,
        Some(wire::command::Kind::ConsistencyCheck(consistency_check)) => {
            CommandKind::ConsistencyCheck(consistency_check_from_wire(&consistency_check)?)
        }
        Some(wire::command::Kind::Verify(wire::Verify {})) => CommandKind::Verify,
        Some(wire::command::Kind::SetTime(wire::SetTime {})) => CommandKind::SetTime,
        Some(wire::command::Kind::SetLimits(limits)) => {
            CommandKind::SetLimits(cluster_limits_from_wire(&limits)?)
        }
        Some(wire::command::Kind::ComponentPart(part)) => {
            CommandKind::Component(ComponentCommand::Part(part_from_wire(part)?))
        }
        Some(wire::command::Kind::ActivateComponent(activation)) => {
            CommandKind::Component(ComponentCommand::Activate(activation_from_wire(&activation)?))
        }
        None => {
            return Err(Malformed {
                message: "command",
                reason: "its kind is unknown".into(),
                newer: true,
                source: None,
            });
        }
    };
    Ok(Command { time_ms: command.time_ms, kind })
}

/// Converts limits to the wire.
pub fn cluster_limits_to_wire(limits: &ClusterLimits) -> wire::ClusterLimits {
    let ClusterLimits { fuel_per_call, fuel_per_query, fuel_per_state_call, .. } = *limits;
    wire::ClusterLimits {
        memory_bytes_max: limits.memory_bytes_max as u64,
        fuel_per_call,
        fuel_per_query,
        fuel_per_state_call,
        response_bytes_max: limits.response_bytes_max as u64,
        event_bytes_max: limits.event_bytes_max as u64,
    }
}

/// Converts limits from the wire.
pub fn cluster_limits_from_wire(limits: &wire::ClusterLimits) -> Result<ClusterLimits, Malformed> {
    let bytes =
        |value: u64| usize::try_from(value).map_err(|error| Malformed::caused_by("limits", error));
    let read = ClusterLimits {
        memory_bytes_max: bytes(limits.memory_bytes_max)?,
        fuel_per_call: limits.fuel_per_call,
        fuel_per_query: limits.fuel_per_query,
        fuel_per_state_call: limits.fuel_per_state_call,
        response_bytes_max: bytes(limits.response_bytes_max)?,
        event_bytes_max: bytes(limits.event_bytes_max)?,
    };
    read.check().map_err(|error| Malformed::caused_by("limits", error))?;
    Ok(read)
}

/// Converts a consistency check to the wire.
pub fn consistency_check_to_wire(consistency_check: &ConsistencyCheck) -> wire::ConsistencyCheck {
    wire::ConsistencyCheck {
        index: consistency_check.index,
        digest: consistency_check.digest.0.to_vec().into(),
        version: consistency_check.version,
        begins: consistency_check.begins,
    }
}

/// Converts a consistency check from the wire.
pub fn consistency_check_from_wire(
    consistency_check: &wire::ConsistencyCheck,
) -> Result<ConsistencyCheck, Malformed> {
    let digest = digest_from_wire(&consistency_check.digest)?;
    let digest = digest.ok_or_else(|| missing("consistency check", "digest"))?;
    let wire::ConsistencyCheck { index, version, begins, .. } = *consistency_check;
    Ok(ConsistencyCheck { index, digest, version, begins })
}

/// Converts a digest from the wire. It is absent in data written before digests existed.
pub fn digest_from_wire(bytes: &[u8]) -> Result<Option<Digest>, Malformed> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let digest = bytes.try_into().map(|digest| Some(Digest(digest)));
    digest.map_err(|_| Malformed::new("digest", format!("{} bytes", bytes.len())))
}

/// Converts a component id from the wire.
pub fn component_id_from_wire(bytes: &[u8]) -> Result<ComponentId, Malformed> {
    let id = bytes.try_into().map(ComponentId);
    id.map_err(|_| Malformed::new("component id", format!("{} bytes", bytes.len())))
}

fn component_id_to_wire(id: &ComponentId) -> bytes::Bytes {
    id.0.to_vec().into()
}

fn part_to_wire(part: &ComponentPart) -> wire::ComponentPart {
    wire::ComponentPart {
        component_id: component_id_to_wire(&part.component),
        total_bytes: part.total_bytes,
        at: part.at,
        bytes: part.bytes.clone(),
        about: part.about.as_ref().map(about_to_wire),
    }
}

fn part_from_wire(part: wire::ComponentPart) -> Result<ComponentPart, Malformed> {
    if part.bytes.len() > PART_BYTES_MAX {
        let reason = format!("{} bytes; the limit is {PART_BYTES_MAX}", part.bytes.len());
        return Err(Malformed::new("component part", reason));
    }
    Ok(ComponentPart {
        component: component_id_from_wire(&part.component_id)?,
        total_bytes: part.total_bytes,
        at: part.at,
        bytes: part.bytes,
        about: part.about.as_ref().map(about_from_wire),
    })
}

/// Converts a component's description of itself to the wire.
pub fn about_to_wire(about: &About) -> wire::ComponentAbout {
    wire::ComponentAbout {
        name: about.name.to_string(),
        version: about.version.to_string(),
        state_version: about.state_version,
    }
}

/// Converts a component's description of itself from the wire.
pub fn about_from_wire(about: &wire::ComponentAbout) -> About {
    About {
        name: Arc::from(&*about.name),
        version: Arc::from(&*about.version),
        state_version: about.state_version,
    }
}

fn activation_to_wire(activation: &Activation) -> wire::ActivateComponent {
    wire::ActivateComponent {
        component_id: component_id_to_wire(&activation.component),
        from_component_id: component_id_to_wire(&activation.from),
        voters: activation.voters.iter().copied().collect::<Vec<NodeId>>(),
    }
}

fn activation_from_wire(activation: &wire::ActivateComponent) -> Result<Activation, Malformed> {
    Ok(Activation {
        component: component_id_from_wire(&activation.component_id)?,
        from: component_id_from_wire(&activation.from_component_id)?,
        voters: activation.voters.iter().copied().collect(),
    })
}

/// Converts a failure to the wire.
pub fn failure_to_wire(failure: &Failure) -> wire::Failure {
    wire::Failure { code: failure.code as i32, message: failure.message.clone() }
}

/// Converts a failure from the wire. A code that no state machine may use becomes `Internal`.
pub fn failure_from_wire(failure: wire::Failure) -> Failure {
    Failure { code: code_from_wire(failure.code), message: failure.message }
}

fn code_from_wire(code: i32) -> Code {
    Code::ALL.into_iter().find(|known| *known as i32 == code).unwrap_or(Code::Internal)
}

/// Converts a trap to the wire.
pub fn trap_to_wire(trap: &Trap) -> wire::Trap {
    wire::Trap { name: trap.kind.name().to_owned(), message: trap.message.clone() }
}

/// Converts a trap from the wire. A name that this version does not know becomes [`TrapKind::Invalid`].
pub fn trap_from_wire(trap: wire::Trap) -> Trap {
    let known = TrapKind::ALL.into_iter().find(|kind| kind.name() == trap.name);
    Trap { kind: known.unwrap_or(TrapKind::Invalid), message: trap.message }
}
