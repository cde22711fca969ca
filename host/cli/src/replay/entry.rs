//! Formats of one log entry, for people and for programs.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::output::Output;
use conclave::replay::{Kind, Messages, Seen};
use conclave_types::{Call, Failure, Outcome, Reply};

/// Formats an entry as JSON without its request and response. Of the data that a client may want to
/// keep secret, it contains only the method's name.
pub(super) fn brief(seen: &Seen) -> Value {
    let mut brief = json!({
        "index": seen.index,
        "term": seen.term,
        "kind": seen.kind.name(),
        "time_ms": seen.time_ms,
        "outcome": outcome_name(seen.outcome.as_ref()),
    });
    if let Kind::Call(call) = &seen.kind {
        brief["method"] = json!(&*call.method);
        brief["request_bytes"] = json!(call.request.len());
    }
    brief
}

/// Formats the same as one line.
pub(super) fn line(seen: &Seen) -> String {
    let time = seen.time_ms.map(time).unwrap_or_default();
    let line = format!(
        "{}  {time}  {}  {}",
        seen.index,
        subject(&seen.kind),
        outcome_name(seen.outcome.as_ref()).unwrap_or_default()
    );
    line.trim_end().to_owned()
}

/// Formats an entry as JSON with its request and outcome.
pub(super) fn whole(seen: &Seen) -> Value {
    let mut whole = json!({
        "index": seen.index,
        "term": seen.term,
        "kind": seen.kind.name(),
        "time_ms": seen.time_ms,
        "time": seen.time_ms.map(time),
        "component": seen.component.id().to_string(),
        "outcome": outcome(seen),
    });
    match &seen.kind {
        Kind::Call(call) => {
            whole["method"] = json!(&*call.method);
            whole["principal"] = json!(&*call.principal);
            whole["request_bytes"] = json!(call.request.len());
            let messages = Messages::of(&seen.component);
            let decoded = messages.request(&call.method, &call.request);
            whole["request"] = decoded.unwrap_or_else(|| raw(&call.request));
        }
        Kind::Membership { voters } => whole["voters"] = json!(voters),
        Kind::ComponentPart { component, at, bytes, total_bytes } => {
            whole["part"] = json!({
                "component": component.to_string(), "at": at, "bytes": bytes, "total_bytes": total_bytes,
            });
        }
        Kind::Activation { component } => whole["activates"] = json!(component.to_string()),
        Kind::SetLimits(limits) => {
            let limits = limits.by_name().map(|(name, value)| (name.to_owned(), json!(value)));
            whole["limits"] = Value::Object(limits.into_iter().collect());
        }
        Kind::Blank | Kind::Tick | Kind::ConsistencyCheck | Kind::Verify | Kind::SetTime => {}
    }
    whole
}

/// Formats an entry's outcome as JSON.
pub(super) fn outcome(seen: &Seen) -> Value {
    match &seen.outcome {
        None => Value::Null,
        Some(Outcome::Reply(reply)) => reply_of(seen, reply),
        Some(Outcome::Failure(refusal)) => failure(refusal),
        Some(Outcome::Trap(trap)) => {
            let trap_report = seen.trap_report.clone().unwrap_or_default();
            json!({
                "trap": trap.kind.name(),
                "message": trap.message,
                "last_error": trap_report.last_error,
                "backtrace": trap_report.backtrace,
            })
        }
    }
}

fn reply_of(seen: &Seen, reply: &Reply) -> Value {
    let Reply { response: bytes, events, wake_at_ms } = reply;
    let events: Vec<_> = events
        .iter()
        .map(|event| json!({"topic": raw(&event.topic), "payload": raw(&event.payload)}))
        .collect();
    let mut value = match &seen.kind {
        Kind::Call(Call { method, .. }) => response(&Messages::of(&seen.component), method, bytes),
        _ => json!({}),
    };
    if !events.is_empty() {
        value["events"] = Value::Array(events);
    }
    if let Some(wake_at_ms) = wake_at_ms {
        value["wake_at_ms"] = json!(wake_at_ms);
    }
    value["reply"] = json!(true);
    value
}

/// Formats a response as JSON.
pub(super) fn response(messages: &Messages, method: &str, bytes: &Bytes) -> Value {
    let decoded = messages.response(method, bytes).unwrap_or_else(|| raw(bytes));
    json!({"response": decoded, "response_bytes": bytes.len()})
}

/// Formats a state machine's failure as JSON.
pub(super) fn failure(failure: &Failure) -> Value {
    json!({"failure": failure.code.name(), "message": failure.message})
}

/// Formats bytes for which there is no descriptor.
fn raw(bytes: &Bytes) -> Value {
    json!({"base64": BASE64.encode(bytes)})
}

/// Prints an entry with its request and outcome for people.
pub(super) fn print(seen: &Seen, output: &mut Output) {
    output.line(format!("entry {} of term {}: {}", seen.index, seen.term, subject(&seen.kind)));
    if let Some(time_ms) = seen.time_ms {
        output.line(format!("time       {} ({time_ms} ms)", time(time_ms)));
    }
    let description = seen.component.description();
    output.line(format!(
        "component  {} {} {}",
        description.name,
        description.version,
        seen.component.id()
    ));
    if let Kind::Call(call) = &seen.kind {
        if !call.principal.is_empty() {
            output.line(format!("principal  {}", call.principal));
        }
        output.line(format!("request    {} bytes", call.request.len()));
        output.line(format!("{:#}", whole(seen)["request"]));
    }
    match &seen.outcome {
        None => {}
        Some(Outcome::Reply(reply)) => {
            output.line(format!("reply      {} bytes", reply.response.len()));
            let reply = outcome(seen);
            output.line(format!("{:#}", reply["response"]));
            for (name, value) in [("events", &reply["events"]), ("wakes at", &reply["wake_at_ms"])]
            {
                if !value.is_null() {
                    output.line(format!("{name:<10} {value}"));
                }
            }
        }
        Some(Outcome::Failure(failure)) => {
            output.line(format!("failure    {}: {}", failure.code.name(), failure.message));
        }
        Some(Outcome::Trap(trap)) => {
            output.line(format!("trap       {}: {}", trap.kind.name(), trap.message));
            print_trap_report(seen, output);
        }
    }
}

fn print_trap_report(seen: &Seen, output: &mut Output) {
    let trap_report = seen.trap_report.clone().unwrap_or_default();
    if let Some(words) = &trap_report.last_error {
        output.line(format!("last error {words}"));
    }
    if trap_report.backtrace.is_empty() {
        output.line("there is no backtrace: the trap is not in the component's own code");
        return;
    }
    output.line("backtrace  innermost call first");
    for line in &trap_report.backtrace {
        output.line(line);
    }
    if trap_report.backtrace.iter().any(|line| line.contains("<wasm function")) {
        output.remark(
            "some functions have no name: build the component with its symbols (strip = \"debuginfo\")",
        );
    }
}

fn subject(kind: &Kind) -> String {
    match kind {
        Kind::Call(call) => call.method.to_string(),
        Kind::Membership { voters } => format!("membership {voters:?}"),
        Kind::ComponentPart { component, at, bytes, total_bytes } => {
            format!("component-part {component}: bytes {at} to {} of {total_bytes}", at + bytes)
        }
        Kind::Activation { component } => format!("activation of component {component}"),
        Kind::SetLimits(limits) => {
            let limits = limits.by_name().map(|(name, value)| format!("{name} {value}"));
            format!("set-limits: {}", limits.join(", "))
        }
        Kind::Blank | Kind::Tick | Kind::ConsistencyCheck | Kind::Verify | Kind::SetTime => {
            kind.name().to_owned()
        }
    }
}

fn outcome_name(outcome: Option<&Outcome>) -> Option<String> {
    Some(match outcome? {
        Outcome::Reply(reply) => format!("reply of {} bytes", reply.response.len()),
        Outcome::Failure(failure) => format!("failure {}", failure.code.name()),
        Outcome::Trap(trap) => format!("trap {}", trap.kind.name()),
    })
}

/// Formats a time in UTC according to RFC 3339.
fn time(time_ms: u64) -> String {
    let (days, ms) = (time_ms / 86_400_000, time_ms % 86_400_000);
    // Howard Hinnant's `civil_from_days`, restricted to days since 1970: eras of 400 years from
    // March of the year 0.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_as_the_calendar_has_them() {
        for (time_ms, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_799_999, "2000-02-29T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (1_795_240_941_007, "2026-11-21T06:02:21.007Z"),
        ] {
            assert_eq!(time(time_ms), expected);
        }
    }
}
