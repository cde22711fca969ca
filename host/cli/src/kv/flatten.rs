//! Conversion of a JSON document of any shape to keys and values.
//!
//! `{"a": {"b": [true, "x"]}}` becomes `a/b/0 = true` and `a/b/1 = x`. In the document's own keys,
//! `~` is written `~0` and `/` is written `~1`, as in JSON Pointer (RFC 6901), so that no two
//! values share a key. Strings become their own text. Everything else is kept as it is in the
//! document, with all digits of numbers. An empty object or array becomes `{}` or `[]`, since
//! otherwise it would be lost.
//!
//! Caveats: afterwards an array cannot be distinguished from an object with the keys 0, 1, 2, nor
//! the number 1 from the string "1".

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde_json::{Error, value::RawValue};

/// Maximum nesting of a document, the same as the parser's limit, which does not apply to
/// raw values.
const DEPTH_MAX: usize = 128;

/// Returns the document's leaves in order, each key beginning with `prefix`. A document without
/// members has no leaves. A document that is a bare string, number or literal has one, with the
/// key `prefix`.
pub(crate) fn flatten(document: &RawValue, prefix: &str) -> Result<Vec<(String, String)>, Error> {
    let mut leaves = Vec::new();
    match members(document)? {
        Some(members) => {
            for (name, value) in members {
                descend(&mut leaves, format!("{prefix}{name}"), value, 1)?;
            }
        }
        None => leaves.push((prefix.to_owned(), text(document)?)),
    }
    Ok(leaves)
}

fn descend(
    leaves: &mut Vec<(String, String)>,
    key: String,
    value: &RawValue,
    depth: usize,
) -> Result<(), Error> {
    if depth > DEPTH_MAX {
        return Err(Error::custom(format!("it is nested more than {DEPTH_MAX} deep")));
    }
    match members(value)? {
        Some(members) if !members.is_empty() => {
            for (name, value) in members {
                descend(leaves, format!("{key}/{name}"), value, depth + 1)?;
            }
        }
        Some(_) if value.get().starts_with('{') => leaves.push((key, "{}".to_owned())),
        Some(_) => leaves.push((key, "[]".to_owned())),
        None => leaves.push((key, text(value)?)),
    }
    Ok(())
}

/// Returns the members of an object by name, or of an array by position; `None` if the value can
/// have none. If a name occurs twice, its last value counts.
fn members(value: &RawValue) -> Result<Option<Vec<(String, &RawValue)>>, Error> {
    Ok(match value.get().as_bytes().first() {
        Some(b'{') => {
            let members: BTreeMap<String, &RawValue> = serde_json::from_str(value.get())?;
            Some(members.into_iter().map(|(name, value)| (escape(&name), value)).collect())
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(value.get())?;
            Some(items.into_iter().enumerate().map(|(at, item)| (at.to_string(), item)).collect())
        }
        _ => None,
    })
}

fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

fn text(leaf: &RawValue) -> Result<String, Error> {
    match leaf.get().starts_with('"') {
        true => serde_json::from_str(leaf.get()),
        false => Ok(leaf.get().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;

    fn pairs(document: Value, prefix: &str) -> Vec<(String, String)> {
        written(&document.to_string(), prefix)
    }

    fn written(document: &str, prefix: &str) -> Vec<(String, String)> {
        flatten(serde_json::from_str(document).unwrap(), prefix).unwrap()
    }

    fn leaf_text(leaf: Value) -> String {
        match leaf {
            Value::String(text) => text,
            other => other.to_string(),
        }
    }

    #[test]
    fn numbers_are_what_the_document_says() {
        let document = r#" { "a" : 1.10, "b": [ 123456789012345678901234567890, 1e2, -0.0 ], "c": { }, "d": [ ] } "#;
        let expected = [
            ("a", "1.10"),
            ("b/0", "123456789012345678901234567890"),
            ("b/1", "1e2"),
            ("b/2", "-0.0"),
            ("c", "{}"),
            ("d", "[]"),
        ];
        assert_eq!(written(document, ""), owned(&expected));
        assert_eq!(written(r#"{"a": 1, "a": "\u00fc\n"}"#, ""), owned(&[("a", "ü\n")]));
    }

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    #[test]
    fn every_shape_has_its_keys() {
        let document = json!({
            "a": {"b": ["x", 1.5, true, null]},
            "empty": {"array": [], "object": {}, "text": ""},
            "list": [[1], {"k": "v"}],
            "n": 18446744073709551615_u64,
        });
        let expected = [
            ("p/a/b/0", "x"),
            ("p/a/b/1", "1.5"),
            ("p/a/b/2", "true"),
            ("p/a/b/3", "null"),
            ("p/empty/array", "[]"),
            ("p/empty/object", "{}"),
            ("p/empty/text", ""),
            ("p/list/0/0", "1"),
            ("p/list/1/k", "v"),
            ("p/n", "18446744073709551615"),
        ];
        assert_eq!(pairs(document, "p/"), owned(&expected));
    }

    #[test]
    fn a_document_that_is_nested_without_end_is_refused() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert_eq!(written(&nested(DEPTH_MAX), "").len(), 1);
        let deep = nested(100_000);
        let error = flatten(serde_json::from_str(&deep).unwrap(), "").unwrap_err();
        assert!(error.to_string().contains("128 deep"), "{error}");
    }

    #[test]
    fn slashes_and_tildes_in_keys_are_escaped() {
        let document = json!({"a/b": 1, "a": {"b": 2}, "~1": 3, "": {"": 4}});
        let mut expected = owned(&[("a~1b", "1"), ("a/b", "2"), ("~01", "3"), ("/", "4")]);
        expected.sort();
        let mut found = pairs(document, "");
        found.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_document_without_members() {
        assert_eq!(pairs(json!({}), "p/"), []);
        assert_eq!(pairs(json!([]), "p/"), []);
        assert_eq!(pairs(json!("bare"), "p"), owned(&[("p", "bare")]));
        assert_eq!(pairs(json!([1, 2]), ""), owned(&[("0", "1"), ("1", "2")]));
        assert_eq!(pairs(json!({"": 1}), ""), owned(&[("", "1")]));
    }

    /// Restores the document, with its leaves as text.
    fn unflatten(leaves: &[(String, String)]) -> Value {
        let mut root = Value::Object(Map::new());
        for (key, value) in leaves {
            let mut at = &mut root;
            for name in key.split('/') {
                let name = name.replace("~1", "/").replace("~0", "~");
                at = at.as_object_mut().unwrap().entry(name).or_insert_with(|| json!({}));
            }
            *at = Value::String(value.clone());
        }
        root
    }

    /// Returns the part of a document that survives flattening: containers as objects, leaves
    /// as text.
    fn survives(value: &Value) -> Value {
        match value {
            Value::Object(members) if !members.is_empty() => {
                Value::Object(members.iter().map(|(k, v)| (k.clone(), survives(v))).collect())
            }
            Value::Array(items) if !items.is_empty() => Value::Object(
                items.iter().enumerate().map(|(at, v)| (at.to_string(), survives(v))).collect(),
            ),
            leaf => Value::String(leaf_text(leaf.clone())),
        }
    }

    fn any_document() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
            "[~/01{}\\[\\]]{0,6}".prop_map(Value::from),
        ];
        let name = prop_oneof!["[a-z]{0,3}", "[~/01]{0,4}", ".{0,4}"];
        let name = name.boxed();
        let value = leaf.prop_recursive(5, 64, 8, {
            let name = name.clone();
            move |inner| {
                prop_oneof![
                    prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                    prop::collection::btree_map(name.clone(), inner, 0..5)
                        .prop_map(|members| Value::Object(members.into_iter().collect())),
                ]
            }
        });
        prop::collection::btree_map(name, value, 1..6)
            .prop_map(|members| Value::Object(members.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_no_key_is_used_twice(document in any_document()) {
            let leaves = pairs(document.clone(), "");
            let keys: BTreeSet<_> = leaves.iter().map(|(key, _)| key).collect();
            prop_assert_eq!(keys.len(), leaves.len());
            prop_assert_eq!(unflatten(&leaves), survives(&document));
        }
    }
}
