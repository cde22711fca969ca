//! `conclave cluster limits` and `set-limits`: the limits that decide outcomes.

use clap::Args;
use conclave_client::proto::cluster::Limits;
use conclave_types::limits::{
    EVENT_BYTES_MAX, FUEL_PER_CALL, FUEL_PER_QUERY, FUEL_PER_STATE_CALL, Limit, LimitValue,
    MEMORY_BYTES_MAX, RESPONSE_BYTES_MAX,
};
use serde_json::{Value, json};

use crate::{
    Result,
    output::{Output, table},
    remote::Remote,
};

/// Show the limits that decide outcomes
///
/// Every node applies a log entry under the limits that hold at its index, also when it replays the
/// entry after a restart. A node's configuration sets them for a new cluster only. Change them with
/// `conclave cluster set-limits`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave cluster limits
  conclave cluster limits --json | jq .limits.fuel_per_call

With --json: {\"index\" (the entry that has set the limits, or the first call of the cluster; 0: neither yet), \"limits\":
{\"memory_bytes_max\", \"fuel_per_call\", \"fuel_per_query\", \"fuel_per_state_call\", \"response_bytes_max\",
\"event_bytes_max\"}}")]
pub(super) struct ShowLimits {}

/// Change limits that decide outcomes, on all nodes at one log entry
///
/// The limits hold from the next entry on. Earlier entries keep their outcomes, also after a
/// restart. Limits that are not given stay unchanged. Either all given limits are changed or
/// none is.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave cluster set-limits --memory-bytes-max 2147483648    2 GiB for each instance
  conclave cluster set-limits --fuel-per-call 10000000000      five times the default
  conclave cluster set-limits --fuel-per-call 4000000000 --json | jq .index

With --json: as `conclave cluster limits`")]
#[group(required = true, multiple = true)]
pub(super) struct SetLimits {
    #[arg(long, value_name = "BYTES", help = help(
        "Maximum linear memory of one instance of the state machine, twice as much while its state is saved or restored",
        &MEMORY_BYTES_MAX,
    ))]
    memory_bytes_max: Option<u64>,

    #[arg(long, value_name = "UNITS", help = help(
        "Maximum fuel of one command or tick, about one unit per instruction",
        &FUEL_PER_CALL,
    ))]
    fuel_per_call: Option<u64>,

    #[arg(long, value_name = "UNITS", help = help(
        "Maximum fuel of one query or subscription; half of fuel_per_call by default, if that is given",
        &FUEL_PER_QUERY,
    ))]
    fuel_per_query: Option<u64>,

    #[arg(long, value_name = "UNITS", help = help(
        "Maximum fuel of one call that saves or restores the whole state",
        &FUEL_PER_STATE_CALL,
    ))]
    fuel_per_state_call: Option<u64>,

    #[arg(long, value_name = "BYTES", help = help(
        "Maximum size of the response of one call",
        &RESPONSE_BYTES_MAX,
    ))]
    response_bytes_max: Option<u64>,

    #[arg(long, value_name = "BYTES", help = help(
        "Maximum size of the events of one command",
        &EVENT_BYTES_MAX,
    ))]
    event_bytes_max: Option<u64>,
}

/// Returns the help text of a limit with its range.
fn help<T: LimitValue>(text: &str, limit: &Limit<T>) -> String {
    format!("{text} [{}]", limit.range())
}

impl ShowLimits {
    pub(super) async fn run(self, remote: &Remote, output: &mut Output) -> Result {
        let status = remote.client()?.status().await.map_err(|error| remote.failed(&error))?;
        let (index, limits) = (status.limits_index, status.limits.unwrap_or_default());
        if remote.json {
            output.value(&as_json(index, &limits));
            return Ok(());
        }
        let rows: Vec<_> =
            by_name(&limits).map(|(name, value)| vec![name.to_owned(), value.to_string()]).into();
        for line in table(&rows) {
            output.line(line);
        }
        output.remark(match index {
            0 => "no command was applied yet: the first one sets the limits from the leader's configuration"
                .to_owned(),
            index => format!("in force since entry {index}"),
        });
        Ok(())
    }
}

impl SetLimits {
    pub(super) async fn run(self, remote: &Remote, output: &mut Output) -> Result {
        let change = Limits {
            memory_bytes_max: self.memory_bytes_max,
            fuel_per_call: self.fuel_per_call,
            fuel_per_query: self.fuel_per_query,
            fuel_per_state_call: self.fuel_per_state_call,
            response_bytes_max: self.response_bytes_max,
            event_bytes_max: self.event_bytes_max,
        };
        let set = remote.client()?.set_limits(change).await;
        let set = set.map_err(|error| remote.failed(&error))?;
        let limits = set.limits.unwrap_or_default();
        if remote.json {
            output.value(&as_json(set.index, &limits));
        } else {
            let limits = by_name(&limits).map(|(name, value)| format!("{name} {value}"));
            output.line(format!("in force since entry {}: {}", set.index, limits.join(", ")));
        }
        Ok(())
    }
}

fn by_name(limits: &Limits) -> [(&'static str, u64); 6] {
    [
        ("memory_bytes_max", limits.memory_bytes_max()),
        ("fuel_per_call", limits.fuel_per_call()),
        ("fuel_per_query", limits.fuel_per_query()),
        ("fuel_per_state_call", limits.fuel_per_state_call()),
        ("response_bytes_max", limits.response_bytes_max()),
        ("event_bytes_max", limits.event_bytes_max()),
    ]
}

fn as_json(index: u64, limits: &Limits) -> Value {
    let limits = by_name(limits).map(|(name, value)| (name.to_owned(), json!(value)));
    json!({ "index": index, "limits": Value::Object(limits.into_iter().collect()) })
}
