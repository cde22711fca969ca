//! `conclave health`: whether one node serves, for probes.

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
    /// The node's client address [default: where a node with this environment and configuration file listens]
    #[arg(long, value_name = "HOST:PORT")]
    endpoint: Option<String>,

    /// The node's configuration file, for its listen_client
    #[arg(long, env = "CONCLAVE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

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
    let endpoints = match arguments.endpoint {
        Some(endpoint) => vec![endpoint],
        None => {
            let (config, listen_client) = (arguments.config, arguments.listen_client);
            let settings = Settings { config, listen_client, ..Settings::default() };
            let address = settings.with_file().and_then(|settings| client_address(&settings));
            local(address.map_err(|error| Failed::Usage(error.to_string()))?)
        }
    };
    let mut asked = Err(Failed::local("no address"));
    for endpoint in &endpoints {
        asked = ask(endpoint, arguments.timeout).await;
        // Where IPv6 is switched off, a node that listens on all addresses is reached by IPv4 only.
        if !matches!(&asked, Err(Failed::Failure { code: "UNAVAILABLE", .. })) {
            break;
        }
    }
    asked?;
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
        .map_err(|error| Failed::Usage(error.to_string()))?;
    match client.is_serving().await {
        Ok(true) => Ok(()),
        Ok(false) => {
            let message = format!("{endpoint} does not serve: its log says why");
            Err(Failed::Failure { code: "NOT_SERVING", message, outcome: None })
        }
        Err(error) => {
            let message = error.to_string();
            Err(Failed::Failure { code: "UNAVAILABLE", message, outcome: None })
        }
    }
}

/// Where a node that listens here is reached from its own computer: one that listens everywhere, on loopback.
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
