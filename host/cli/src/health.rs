//! `conclave health`: health check of one node, for probes.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use conclave_client::Client;
use serde_json::json;

use super::{Failed, Result, output::Output, remote::duration};
use conclave::config::{Settings, client_address};
use conclave_types::error::chain;

/// Check whether one node is serving
///
/// Exits with 0 if the node serves. Exits with 1 if it does not: it knows no leader, reaches no
/// majority, has a fatal error or does not respond. Meant for the health checks of containers and
/// load balancers.
#[derive(Args, Debug)]
#[command(after_long_help = "\
Examples:
  conclave health
  conclave health --endpoint 127.0.0.1:7102 --timeout 1s")]
pub struct Arguments {
    /// The node's client address [default: the address on which a node with this environment and
    /// configuration file listens]
    #[arg(long, value_name = "HOST:PORT")]
    endpoint: Option<String>,

    /// The node's configuration file, to read its listen_client
    #[arg(long, env = "CONCLAVE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Maximum time to wait for the response
    #[arg(long, default_value = "2s", value_parser = duration, value_name = "DURATION")]
    timeout: Duration,

    /// The client address of a node with this environment.
    #[arg(long, env = "CONCLAVE_LISTEN_CLIENT", hide = true)]
    listen_client: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the verb: one request to one node, without a search for another one.
pub async fn run(arguments: Arguments, output: &mut Output) -> Result {
    output.set_json(arguments.json);
    let endpoints = match arguments.endpoint {
        Some(endpoint) => vec![endpoint],
        None => {
            let (config, listen_client) = (arguments.config, arguments.listen_client);
            let settings = Settings { config, listen_client, ..Settings::default() };
            let address = settings.with_file().and_then(|settings| client_address(&settings));
            local(address.map_err(|error| Failed::usage(&error))?)
        }
    };
    let mut result = Err(Failed::local("no address"));
    for endpoint in &endpoints {
        result = ask(endpoint, arguments.timeout).await;
        // Without IPv6, a node that listens on all addresses is reached by IPv4 only.
        if !matches!(&result, Err(Failed::Failure { code: "UNAVAILABLE", .. })) {
            break;
        }
    }
    result?;
    match arguments.json {
        true => output.value(&json!({ "serving": true })),
        false => output.line(format!("{} serves", endpoints.join(" or "))),
    }
    Ok(())
}

async fn ask(endpoint: &str, timeout: Duration) -> Result {
    let client = Client::builder()
        .endpoints([endpoint.to_owned()])
        .follow_leader(false)
        .deadline(timeout)
        .build()
        .map_err(|error| Failed::usage(&error))?;
    match client.is_serving().await {
        Ok(true) => Ok(()),
        Ok(false) => {
            let message = format!("{endpoint} does not serve; its log has the reason");
            Err(Failed::Failure { code: "NOT_SERVING", message, outcome: None })
        }
        Err(error) => {
            let message = chain(&error);
            Err(Failed::Failure { code: "UNAVAILABLE", message, outcome: None })
        }
    }
}

/// Returns the addresses at which a node is reached from its own host. A node that listens on all
/// addresses is reached on loopback.
fn local(listen: SocketAddr) -> Vec<String> {
    let port = listen.port();
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => vec![format!("127.0.0.1:{port}")],
        IpAddr::V6(ip) if ip.is_unspecified() => {
            vec![format!("[::1]:{port}"), format!("127.0.0.1:{port}")]
        }
        _ => vec![listen.to_string()],
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_listens_everywhere_is_asked_on_loopback() {
        let local = |listen: &str| local(listen.parse().unwrap());
        assert_eq!(local("127.0.0.1:7101"), ["127.0.0.1:7101"]);
        assert_eq!(local("0.0.0.0:7105"), ["127.0.0.1:7105"]);
        assert_eq!(local("[::]:7105"), ["[::1]:7105", "127.0.0.1:7105"]);
        assert_eq!(local("[fd00::1]:7105"), ["[fd00::1]:7105"]);
        assert_eq!(local("10.0.0.1:7105"), ["10.0.0.1:7105"]);
    }
}
