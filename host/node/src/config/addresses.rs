//! Addresses as an operator writes them: listen addresses of this node, and addresses of the members.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs},
};

use super::{ConfigError, Member, error::invalid};

const MEMBERS_MAX: usize = 64;

/// Parses a listen address: `127.0.0.1:7101`, `[::1]:7101`, `localhost:7101`, or `:7101` for all
/// IPv4 addresses. A name is resolved here, once.
pub(super) fn listen(
    name: &'static str,
    given: Option<&str>,
    port: u16,
) -> Result<SocketAddr, ConfigError> {
    let Some(text) = given else { return Ok(SocketAddr::from(([127, 0, 0, 1], port))) };
    let text = text.trim();
    let address = match text.strip_prefix(':') {
        Some(port) if !port.contains(':') => format!("0.0.0.0:{port}"),
        _ => text.to_owned(),
    };
    if let Ok(address) = address.parse() {
        return Ok(address);
    }
    check(&address, true).map_err(|wrong| {
        invalid(
            name,
            text,
            format!("{wrong}; it must look like 127.0.0.1:{port}, [::1]:{port}, localhost:{port} or :{port} (all addresses)"),
        )
    })?;
    let resolved = address.to_socket_addrs().map(|mut addresses| addresses.next());
    match resolved {
        Ok(Some(address)) => Ok(address),
        Ok(None) => Err(invalid(name, text, "this name has no address")),
        Err(error) => Err(invalid(name, text, format!("this name cannot be resolved: {error}"))),
    }
}

/// Parses the initial members, which must include this node.
pub(super) fn members(texts: &[String], node_id: u64) -> Result<Vec<Member>, ConfigError> {
    let mut members = Vec::new();
    let (mut ids, mut peers) = (BTreeSet::new(), BTreeSet::new());
    for text in texts.iter().map(|text| text.trim()).filter(|text| !text.is_empty()) {
        let parsed = member(text).map_err(|wrong| {
            let rule = format!(
                "{wrong}; it must look like 1=10.0.0.1:7201,10.0.0.1:7101 (node id, peer address, client address)"
            );
            invalid("members", text, rule)
        })?;
        if !ids.insert(parsed.node_id) {
            return Err(invalid("members", text, "this node id is given twice"));
        }
        if !peers.insert(parsed.peer_address.clone()) {
            return Err(invalid("members", text, "this peer address is given twice"));
        }
        // Members may share a client address, for example that of a load balancer.
        if parsed.client_address == parsed.peer_address {
            let rule = "clients and peers each need a port of their own";
            return Err(invalid("members", text, rule));
        }
        members.push(parsed);
    }
    if members.len() > MEMBERS_MAX {
        return Err(invalid("members", members.len(), format!("at most {MEMBERS_MAX} members")));
    }
    if members.is_empty() {
        return Err(ConfigError::Missing {
            name: "members",
            flag: "member",
            variable: "CONCLAVE_MEMBERS",
        });
    }
    if !ids.contains(&node_id) {
        let rule = format!("this node, {node_id}, must be among the members");
        return Err(invalid("members", texts.join(";"), rule));
    }
    members.sort_by_key(|member| member.node_id);
    Ok(members)
}

/// Parses `ID=PEER_HOST:PORT,CLIENT_HOST:PORT`.
fn member(text: &str) -> Result<Member, String> {
    let (node_id, addresses) = text.split_once('=').ok_or("the node id is missing")?;
    let node_id = node_id.trim().parse().ok().filter(|node_id| *node_id != 0);
    let node_id = node_id.ok_or("the node id must be a number from 1 upwards")?;
    let (peer, client) = addresses.split_once(',').ok_or("there is one address only")?;
    let address = |text: &str| {
        let text = text.trim();
        check(text, false).map(|()| text.to_owned())
    };
    Ok(Member { node_id, peer_address: address(peer)?, client_address: address(client)? })
}

/// Checks `HOST:PORT`. Others cannot connect to 0.0.0.0 or to port 0.
fn check(address: &str, is_own: bool) -> Result<(), String> {
    if let Some((scheme, _)) = address.split_once("://") {
        return Err(format!("{address} is a URL: leave out {scheme}:// and any path"));
    }
    if address.parse::<Ipv6Addr>().is_ok() {
        return Err(format!(
            "{address} has no port, and an IPv6 address needs brackets: [{address}]:PORT"
        ));
    }
    let (host, port) = address.rsplit_once(':').ok_or(format!("{address} has no port"))?;
    match port.parse::<u16>() {
        Ok(0) if !is_own => return Err(format!("{address} has port 0, which is invalid here")),
        Ok(_) => {}
        Err(_) => return Err(format!("{address} has no valid port: a number up to 65535")),
    }
    let ip = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(host) => {
            let wrong = format!("[{host}] is not an IPv6 address");
            Some(IpAddr::V6(host.parse().map_err(|_| wrong)?))
        }
        None if host.parse::<Ipv6Addr>().is_ok() => {
            return Err(format!("the IPv6 address {host} needs brackets: [{host}]:{port}"));
        }
        None => host.parse().ok(),
    };
    match ip {
        Some(ip) if ip.is_unspecified() && !is_own => Err(format!(
            "{host} means all addresses of a host: give the address at which the other members reach it"
        )),
        Some(ip) if ip.is_multicast() => Err(format!("{host} is a multicast address")),
        Some(_) => Ok(()),
        None => check_name(host),
    }
}

/// Checks a host name as defined by RFC 1123, and also allows underscores, which container names have.
fn check_name(host: &str) -> Result<(), String> {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.is_empty() {
        return Err("the host is missing".to_owned());
    }
    if name.len() > 253 || !name.split('.').all(is_label) {
        return Err(format!("{host} is not a host name"));
    }
    // Top-level domains are not numbers, so this is a malformed IPv4 address.
    if name.rsplit('.').next().is_some_and(|last| last.chars().all(|c| c.is_ascii_digit())) {
        return Err(format!("{host} is not an IPv4 address"));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn addresses_to_listen_on_may_be_names_or_a_port_alone() {
        let listens = |text| listen("listen_client", Some(text), 7101).map(|at| at.to_string());
        assert_eq!(listen("listen_client", None, 7101).unwrap().to_string(), "127.0.0.1:7101");
        assert_eq!(listens(":7105").unwrap(), "0.0.0.0:7105");
        assert_eq!(listens("[::]:7105").unwrap(), "[::]:7105");
        let localhost = listens("localhost:7105").unwrap();
        assert!(["127.0.0.1:7105", "[::1]:7105"].contains(&localhost.as_str()), "{localhost}");
        for (text, says) in [
            ("http://localhost:7101", "leave out http://"),
            ("::1", "needs brackets"),
            ("localhost:", "no valid port"),
            ("localhost", "no port"),
            ("localhost:99999", "no valid port"),
            ("7101", "or :7101"),
            ("256.0.0.1:7101", "not an IPv4 address"),
            ("no-such-host.invalid:7101", "cannot be resolved"),
        ] {
            let error = listens(text).unwrap_err().to_string();
            assert!(error.contains(says), "{error:?} does not say {says:?}");
        }
    }

    #[test]
    fn members_that_could_never_be_reached_are_refused() {
        let good = "1=127.0.0.1:7201,127.0.0.1:7101";
        for other in [
            "2=node-2.example.com:7201,node_2:7101",
            "2=[fd00::2]:7201,[fd00::2]:7101",
            " 2 = 10.0.0.2:7201 , 10.0.0.2:7101 ",
        ] {
            members(&[good.to_owned(), other.to_owned()], 1).unwrap();
        }
        for (other, says) in [
            ("2=http://10.0.0.2:7201,10.0.0.2:7101", "leave out http://"),
            ("2=fd00::2:7201,10.0.0.2:7101", "needs brackets"),
            (
                "2=fd00:1:2:3:4:5:6:7:7201,10.0.0.2:7101",
                "needs brackets: [fd00:1:2:3:4:5:6:7]:7201",
            ),
            ("2=10.0.0.2:7201,fd00::2", "needs brackets"),
            ("2=[fd00::zz]:7201,10.0.0.2:7101", "not an IPv6 address"),
            ("2=0.0.0.0:7201,10.0.0.2:7101", "all addresses"),
            ("2=[::]:7201,10.0.0.2:7101", "all addresses"),
            ("2=10.0.0.2:0,10.0.0.2:7101", "port 0"),
            ("2=10.0.0.2:70000,10.0.0.2:7101", "no valid port"),
            ("2=10.0.0.256:7201,10.0.0.2:7101", "not an IPv4 address"),
            ("2=10.0.0:7201,10.0.0.2:7101", "not an IPv4 address"),
            ("2=a b:7201,10.0.0.2:7101", "not a host name"),
            ("2=:7201,10.0.0.2:7101", "host is missing"),
            ("2=10.0.0.2:7201/x,10.0.0.2:7101", "no valid port"),
            ("2=224.0.0.1:7201,10.0.0.2:7101", "multicast"),
            ("2=10.0.0.2:7201", "one address only"),
            ("0=10.0.0.2:7201,10.0.0.2:7101", "number from 1"),
            ("nonsense", "must look like 1="),
            ("2=127.0.0.1:7201,10.0.0.2:7101", "given twice"),
            ("2=10.0.0.2:7201,10.0.0.2:7201", "port of their own"),
        ] {
            let error = members(&[good.to_owned(), other.to_owned()], 1).unwrap_err().to_string();
            assert!(error.contains(says), "{error:?} does not say {says:?}");
        }
    }
}
