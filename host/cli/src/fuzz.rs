//! Fuzz targets for files that verbs read.

use std::collections::HashSet;

use super::kv::flatten::flatten;

/// Flattens a JSON document as `conclave kv import` does: no two values share a key.
pub fn json_import(data: &[u8]) {
    let Ok(document) = serde_json::from_slice(data) else { return };
    let Ok(leaves) = flatten(document, "p/") else { return };
    let keys: HashSet<_> = leaves.iter().map(|(key, _)| key).collect();
    assert_eq!(keys.len(), leaves.len(), "{leaves:?}");
    assert!(leaves.iter().all(|(key, _)| key.starts_with("p/")));
}

/// Seed documents of all shapes.
pub fn json_import_seeds() -> Vec<Vec<u8>> {
    let documents: [&[u8]; 3] = [
        br#"{"a": {"b": [true, "x", null, {}], "c/d~": 1.50}, "e": []}"#,
        br#"[1, 123456789012345678901234567890, -0.0, 1e400]"#,
        br#""text""#,
    ];
    documents.map(<[u8]>::to_vec).to_vec()
}
