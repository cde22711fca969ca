//! Method names, in their three notations.

use std::fmt;

use http::uri::PathAndQuery;

use crate::error::Error;

/// The name of a method: `package.Service/Method`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MethodName {
    service: String,
    method: String,
}

impl MethodName {
    /// Parses `kv.v1.KV/Put`, `/kv.v1.KV/Put` or `kv.v1.KV.Put`.
    pub fn parse(name: &str) -> Result<Self, Error> {
        let bare = name.strip_prefix('/').unwrap_or(name);
        let parts = bare.split_once('/').or_else(|| bare.rsplit_once('.'));
        match parts {
            Some((service, method)) if is_name(service, true) && is_name(method, false) => {
                Ok(Self { service: service.to_owned(), method: method.to_owned() })
            }
            _ => Err(Error::invalid(format!(
                "{name:?} is not a method name: write package.Service/Method, for example kv.v1.KV/Put"
            ))),
        }
    }

    /// Returns the service with its package, for example `kv.v1.KV`.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Returns the method alone, for example `Put`.
    pub fn method(&self) -> &str {
        &self.method
    }

    pub(crate) fn path(&self) -> Result<PathAndQuery, Error> {
        PathAndQuery::try_from(format!("/{}/{}", self.service, self.method))
            .map_err(|cause| Error::invalid(format!("{self} is not a method")).with_source(cause))
    }
}

fn is_name(part: &str, dots: bool) -> bool {
    let character = |c: char| c.is_ascii_alphanumeric() || c == '_' || (dots && c == '.');
    !part.is_empty()
        && part.chars().all(character)
        && !part.starts_with('.')
        && !part.ends_with('.')
}

impl fmt::Display for MethodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.method)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_spellings_name_one_method() {
        for spelling in ["kv.v1.KV/Put", "/kv.v1.KV/Put", "kv.v1.KV.Put"] {
            assert_eq!(MethodName::parse(spelling).unwrap().to_string(), "kv.v1.KV/Put");
        }
    }

    #[test]
    fn what_is_no_method_is_refused_with_an_example() {
        for bad in ["", "Put", "/", "kv.v1.KV/", "/Put", "kv/v1/Put", "kv v1/Put", "kv.v1.KV./Put"]
        {
            let error = MethodName::parse(bad).unwrap_err();
            assert!(error.to_string().contains("kv.v1.KV/Put"), "{bad}: {error}");
        }
    }
}
