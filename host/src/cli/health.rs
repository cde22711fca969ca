//! `conclave health`: whether one node serves, for probes.

use std::time::Duration;

use clap::Args;
use conclave_client::Client;
use serde_json::json;

use super::{Failed, Result, output::Output, remote::duration};

/// Ask one node whether it serves
///
/// Exits with 0 if it does and with 1 if not: it knows no leader, reaches no majority, has a fault or
/// does not answer. For the health checks of containers and balancers.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave health
  conclave health --endpoint 127.0.0.1:7102 --timeout 1s")]
pub struct Arguments {
    /// The node's client address [default: where CONCLAVE_LISTEN_CLIENT listens, or 127.0.0.1:7101]
    #[arg(long, value_name = "HOST:PORT")]
    endpoint: Option<String>,

    /// How long to wait for the answer
    #[arg(long, default_value = "2s", value_parser = duration, value_name = "TIME")]
    timeout: Duration,

    /// Where the node of this environment listens.
    #[arg(long, env = "CONCLAVE_LISTEN_CLIENT", hide = true)]
    listen_client: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Asks once, without looking for another node.
pub async fn run(arguments: Arguments, output: &mut Output) -> Result {
    output.set_json(arguments.json);
    let endpoint = arguments.endpoint.unwrap_or_else(|| local(arguments.listen_client.as_deref()));
    let client = Client::builder()
        .endpoints([endpoint.clone()])
        .follow_leader(false)
        .deadline(arguments.timeout)
        .build()
        .map_err(|error| Failed::Usage(error.to_string()))?;
    match client.is_serving().await {
        Ok(true) if arguments.json => output.value(&json!({ "serving": true })),
        Ok(true) => output.line(format!("{endpoint} serves")),
        Ok(false) => {
            let message = format!("{endpoint} does not serve: its log says why");
            return Err(Failed::Failure { code: "NOT_SERVING", message });
        }
        Err(error) => {
            return Err(Failed::Failure { code: "UNAVAILABLE", message: error.to_string() });
        }
    }
    Ok(())
}

/// A node that listens everywhere is asked on loopback.
fn local(listen: Option<&str>) -> String {
    let listen = listen.unwrap_or("127.0.0.1:7101");
    match listen.rsplit_once(':') {
        Some(("0.0.0.0" | "[::]", port)) => format!("127.0.0.1:{port}"),
        _ => listen.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_listens_everywhere_is_asked_on_loopback() {
        assert_eq!(local(None), "127.0.0.1:7101");
        assert_eq!(local(Some("0.0.0.0:7105")), "127.0.0.1:7105");
        assert_eq!(local(Some("[::]:7105")), "127.0.0.1:7105");
        assert_eq!(local(Some("10.0.0.1:7105")), "10.0.0.1:7105");
    }
}
