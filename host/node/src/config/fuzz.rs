//! Fuzz targets of the configuration.

use super::{Config, Settings};

/// Parses a configuration file. It is rejected, or gives a configuration that satisfies the rules.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(settings) = toml::from_str::<Settings>(text) else { return };
    // No file is read and no name is resolved: keys and listen addresses are removed.
    let settings = Settings {
        master_key_file: None,
        config: None,
        listen_client: None,
        listen_peer: None,
        listen_admin: None,
        ..settings
    };
    let key = zeroize::Zeroizing::new("00".repeat(32));
    if let Ok(config) = Config::from_settings(settings, Some(key)) {
        assert!(config.node_id > 0);
        assert!(config.timing.election_min <= config.timing.election_max);
        let is_member = config.members.iter().any(|member| member.node_id == config.node_id);
        assert!(is_member, "{:?}", config.members);
    }
}

/// Returns a configuration of a node.
pub fn configuration_seeds() -> Vec<Vec<u8>> {
    let text = r#"
node_id = 1
cluster_id = "c"
data_dir = "d"
listen_client = "127.0.0.1:7101"
members = ["1=a:7201,a:7101", "2=[::1]:7201,[::1]:7101", "3=c:7201,c:7101"]
election_min = "800ms"
election_max = "1s"
snapshot_entries = 1000
request_bytes_max = 4194304
log_format = "json"
"#;
    vec![text.as_bytes().to_vec()]
}
