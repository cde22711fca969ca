//! The key-value store's own protobuf: nodes then check and serve its calls as they do the store's.

fn main() -> anyhow::Result<()> {
    conclave_protobuf::compile("../../../../guest-kv/proto", &["kv/v1/kv.proto"])
}
