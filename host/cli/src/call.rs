//! `conclave call`: calls any method of any service with JSON.

use std::path::Path;

use clap::Args;
use conclave_client::{CallOptions, Client, Method, MethodKind};
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Value, json};

use super::{
    Failed, Result,
    output::{Output, table},
    remote::{Freshness, Remote, file, stdin},
};
use conclave_types::error::chain;

/// Call a method of the cluster's state machine or of the host, with JSON
///
/// The methods are read from the nodes by reflection, so this works with every state machine. The
/// request is protobuf's JSON: bytes in base64, 64-bit integers as numbers or strings. Without a
/// request, an empty message is sent.
///
/// A query is retried until the timeout. A command is retried only if it is known not to have been
/// applied, unless --idempotent says that applying it twice is harmless. A subscription prints one
/// message per line, until it is interrupted or its node stops.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave call --list
  conclave call --describe kv.v1.KV/Put
  conclave call kv.v1.KV/Put '{\"key\": \"color\", \"text\": \"green\"}'
  conclave call kv.v1.KV/Get '{\"key\": \"color\"}' --stale
  conclave call kv.v1.KV/Batch @batch.json
  conclave call kv.v1.KV/Watch '{\"prefix\": \"app/\"}'
  jq -n '{key: \"color\"}' | conclave call kv.v1.KV/Get -

With --list --json: [{\"name\", \"kind\"}]. With --describe --json: {\"name\", \"kind\", \"request\", \"response\"}, each message
as {\"name\", \"fields\": [{\"name\", \"number\", \"type\", \"repeated\", \"oneof\" (null if none)}]}")]
pub struct Arguments {
    /// Method to call, as package.Service/Method
    #[arg(required_unless_present_any = ["list", "describe"])]
    method: Option<String>,

    /// Request: JSON, - for stdin, @FILE for a file
    #[arg(value_name = "JSON|-|@FILE")]
    request: Option<String>,

    /// List all methods with their kind: command, query or subscription
    #[arg(long, conflicts_with_all = ["method", "describe"])]
    list: bool,

    /// Show the fields of a method's messages
    #[arg(long, value_name = "METHOD", conflicts_with = "method")]
    describe: Option<String>,

    /// Retry a command also when its outcome is unknown: applying it twice has the same effect
    /// as once
    #[arg(long)]
    idempotent: bool,

    /// Resume a subscription after this log index, skipping the initial state
    #[arg(long, value_name = "INDEX")]
    from_index: Option<u64>,

    #[command(flatten)]
    freshness: Freshness,

    #[command(flatten)]
    remote: Remote,
}

/// Runs the verb.
pub async fn run(arguments: Arguments, output: &mut Output) -> Result {
    let remote = &arguments.remote;
    output.set_json(remote.json);
    let client = remote.client_reading(arguments.freshness.consistency())?;
    if arguments.list {
        return list(&client, remote, output).await;
    }
    if let Some(name) = &arguments.describe {
        let method = client.method(name).await.map_err(|error| remote.failed(&error))?;
        match remote.json {
            true => output.value(&described(&method)),
            false => describe(&method, output),
        }
        return Ok(());
    }
    let request = request(arguments.request.as_deref())?;
    let name = arguments.method.as_deref().unwrap_or_default();
    let method = client.method(name).await.map_err(|error| remote.failed(&error))?;
    if method.kind() == MethodKind::Subscription {
        let from = arguments.from_index;
        return subscribe(&client, &method, request, from, remote, output).await;
    }
    if arguments.from_index.is_some() {
        return Err(Failed::Usage(format!("{name} is not a subscription: leave out --from-index")));
    }
    let options = match method.kind() {
        MethodKind::Query => CallOptions::read(),
        _ => CallOptions::write().retry_unknown(arguments.idempotent),
    };
    let answer = client
        .call_json_with(&method, request, &options)
        .await
        .map_err(|error| remote.failed(&error))?;
    output.value(&answer.message);
    Ok(())
}

async fn subscribe(
    client: &Client,
    method: &Method,
    request: Value,
    from_index: Option<u64>,
    remote: &Remote,
    output: &mut Output,
) -> Result {
    let failed = |error| remote.failed(&error);
    let options = CallOptions::read();
    let messages = client.subscribe_json(method, request, from_index, &options).await;
    let mut messages = messages.map_err(failed)?;
    while let Some(message) = messages.next().await.map_err(failed)? {
        if !output.stream(message.to_string()) {
            break;
        }
    }
    Ok(())
}

fn request(argument: Option<&str>) -> Result<Value> {
    let (bytes, source) = match argument {
        None => return Ok(json!({})),
        Some("-") => (stdin()?, "stdin"),
        Some(argument) => match argument.strip_prefix('@') {
            Some(path) => (file(Path::new(path))?, path),
            None => (argument.as_bytes().to_vec(), "the request"),
        },
    };
    serde_json::from_slice(&bytes)
        .map_err(|cause| Failed::Usage(format!("{source} is not JSON: {}", chain(&cause))))
}

async fn list(client: &Client, remote: &Remote, output: &mut Output) -> Result {
    let methods = client.methods().await.map_err(|error| remote.failed(&error))?;
    if remote.json {
        let methods: Vec<_> = methods
            .iter()
            .map(|method| json!({"name": method.name(), "kind": kind(method)}))
            .collect();
        output.value(&Value::Array(methods));
        return Ok(());
    }
    let rows: Vec<_> =
        methods.iter().map(|method| vec![method.name(), kind(method).to_owned()]).collect();
    for line in table(&rows) {
        output.line(line);
    }
    Ok(())
}

fn kind(method: &Method) -> &'static str {
    match method.kind() {
        MethodKind::Command => "command",
        MethodKind::Query => "query",
        MethodKind::Subscription => "subscription",
    }
}

fn describe(method: &Method, output: &mut Output) {
    output.line(format!("{}: a {}", method.name(), kind(method)));
    for (title, message) in [("request", method.request()), ("response", method.response())] {
        output.line("");
        output.line(format!("{title} {}", message.full_name()));
        for line in fields(&message) {
            output.line(format!("  {line}"));
        }
    }
}

/// Formats a method as JSON.
fn described(method: &Method) -> Value {
    let message = |message: &MessageDescriptor| {
        let fields = message.fields().map(|field| {
            json!({
                "name": field.json_name(),
                "number": field.number(),
                "type": type_name(&field),
                "repeated": field.is_list(),
                "oneof": one_of(&field),
            })
        });
        json!({"name": message.full_name(), "fields": fields.collect::<Vec<_>>()})
    };
    json!({
        "name": method.name(),
        "kind": kind(method),
        "request": message(&method.request()),
        "response": message(&method.response()),
    })
}

fn type_name(field: &FieldDescriptor) -> String {
    match field.kind() {
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(values) => {
            let names: Vec<_> = values.values().map(|value| value.name().to_owned()).collect();
            names.join("|")
        }
        Kind::Bytes => "bytes (base64)".to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    }
}

/// Returns the name of the field's oneof group.
fn one_of(field: &FieldDescriptor) -> Option<String> {
    // In a descriptor, each `optional` field has a synthetic oneof, which is of no interest
    // to a reader.
    field
        .containing_oneof()
        .filter(|group| !group.is_synthetic())
        .map(|group| group.name().to_owned())
}

/// Formats one line per field: its name in JSON, its type and its oneof group.
fn fields(message: &MessageDescriptor) -> Vec<String> {
    let rows: Vec<_> = message
        .fields()
        .map(|field| {
            let many = if field.is_list() { "repeated " } else { "" };
            let group = one_of(&field).map(|group| format!("one of {group}"));
            let name = type_name(&field);
            vec![field.json_name().to_owned(), format!("{many}{name}"), group.unwrap_or_default()]
        })
        .collect();
    match rows.is_empty() {
        true => vec!["no fields".to_owned()],
        false => table(&rows),
    }
}
