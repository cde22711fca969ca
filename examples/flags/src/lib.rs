//! The state machine `flags.v1.Flags`: typed feature flags with rollout by percentage, and credentials.
//!
//! An example of a service of typical size. Commands contain the version that the caller has read, any
//! node answers queries, pages are bounded, and a history of bounded length records who changed what.
//!
//! - `limits`: the limits, and the validation of flags;
//! - `state`: flags, segments, history;
//! - `evaluate`: the value of a flag for a subject;
//! - `commands`: the commands; the queries are in this file;
//! - `snapshot`: serialization of the state.

mod commands;
mod evaluate;
pub mod limits;
mod snapshot;
mod state;

/// The messages of `flags.v1`.
pub mod pb {
    #![allow(missing_docs, reason = "generated from the proto file, which has the documentation")]
    conclave_sdk::include_protobuf!("flags.v1");
}

use std::ops::Bound;

pub use crate::evaluate::bucket;
use crate::{
    evaluate::{Subject, evaluate},
    limits::{EVALUATIONS_MAX, PAGE_BYTES_MAX, PAGE_MAX, TEXT_BYTES_MAX, check_attributes, within},
    pb::{
        EvaluateAllRequest, EvaluateAllResponse, EvaluateRequest, Evaluation, Flag, GetRequest,
        GetSegmentRequest, HistoryRequest, HistoryResponse, ListRequest, ListResponse,
    },
    state::{Segment, State},
};
use conclave_sdk::{Context, Failure, Machine, Router, prost::Message};

/// The state machine.
#[derive(Default)]
pub struct Flags {
    state: State,
}

impl Flags {
    fn get(&self, _: &Context, request: GetRequest) -> Result<Flag, Failure> {
        Ok(shown(self.find(&request.name)?))
    }

    fn list(&self, _: &Context, request: ListRequest) -> Result<ListResponse, Failure> {
        let ListRequest { prefix, after, limit, archived } = request;
        let flags = self.page(&prefix, &after).filter(|flag| archived || !flag.archived).map(shown);
        let (flags, next) = cut(flags, limit_or(PAGE_MAX, limit), |flag| &flag.name);
        Ok(ListResponse { flags, next })
    }

    fn get_segment(&self, _: &Context, request: GetSegmentRequest) -> Result<pb::Segment, Failure> {
        Ok(self.find_segment(&request.name)?.message(&request.name))
    }

    fn evaluate(&self, _: &Context, request: EvaluateRequest) -> Result<Evaluation, Failure> {
        let EvaluateRequest { name, subject, attributes } = request;
        within("the subject", subject.len(), TEXT_BYTES_MAX, "bytes")?;
        check_attributes(&attributes)?;
        let subject = Subject { name: &subject, attributes: &attributes };
        Ok(evaluate(&self.state, self.find(&name)?, &subject))
    }

    fn evaluate_all(
        &self,
        _: &Context,
        request: EvaluateAllRequest,
    ) -> Result<EvaluateAllResponse, Failure> {
        let EvaluateAllRequest { subject, attributes, prefix, after } = request;
        within("the subject", subject.len(), TEXT_BYTES_MAX, "bytes")?;
        check_attributes(&attributes)?;
        let subject = Subject { name: &subject, attributes: &attributes };
        let flags = self.page(&prefix, &after).filter(|flag| !flag.archived && !is_secret(flag));
        let evaluations = flags.map(|flag| evaluate(&self.state, flag, &subject));
        let (evaluations, next) = cut(evaluations, EVALUATIONS_MAX, |evaluation| &evaluation.name);
        Ok(EvaluateAllResponse { evaluations, next })
    }

    fn history(&self, _: &Context, request: HistoryRequest) -> Result<HistoryResponse, Failure> {
        let HistoryRequest { name, before, limit } = request;
        let changes = self.state.changes().rev();
        let changes = changes
            .filter(|change| name.is_empty() || change.name == name)
            .filter(|change| before == 0 || change.number < before)
            .take(limit_or(PAGE_MAX, limit));
        Ok(HistoryResponse { changes: changes.cloned().collect() })
    }

    fn find(&self, name: &str) -> Result<&Flag, Failure> {
        let flag = self.state.flag(name);
        flag.ok_or_else(|| Failure::not_found(format!("there is no flag {name:?}")))
    }

    fn find_segment(&self, name: &str) -> Result<&Segment, Failure> {
        let segment = self.state.segment(name);
        segment.ok_or_else(|| Failure::not_found(format!("there is no segment {name:?}")))
    }

    /// Iterates over the flags whose names begin with `prefix`, after the name `after`.
    fn page<'a>(&'a self, prefix: &'a str, after: &'a str) -> impl Iterator<Item = &'a Flag> {
        let first = if after < prefix { Bound::Included(prefix) } else { Bound::Excluded(after) };
        let range = self.state.flags().range::<str, _>((first, Bound::Unbounded));
        range.map(|(_, flag)| flag).take_while(move |flag| flag.name.starts_with(prefix))
    }
}

/// Returns the limit of a page. 0 means the maximum.
fn limit_or(most: usize, asked: u32) -> usize {
    if asked == 0 { most } else { most.min(asked as usize) }
}

/// Returns at most `limit` items of about [`PAGE_BYTES_MAX`], and the start of the next page: the
/// last item's name.
fn cut<T: Message>(
    all: impl Iterator<Item = T>,
    limit: usize,
    name: impl Fn(&T) -> &String,
) -> (Vec<T>, String) {
    let (mut page, mut bytes) = (Vec::<T>::new(), 0);
    for one in all {
        if page.len() == limit || bytes > PAGE_BYTES_MAX {
            let next = page.last().map(name).cloned().unwrap_or_default();
            return (page, next);
        }
        bytes += one.encoded_len();
        page.push(one);
    }
    (page, String::new())
}

fn is_secret(flag: &Flag) -> bool {
    flag.definition.as_ref().is_some_and(|definition| definition.secret)
}

/// Returns a flag without secret values.
fn shown(flag: &Flag) -> Flag {
    let mut flag = flag.clone();
    if let Some(definition) = flag.definition.as_mut().filter(|definition| definition.secret) {
        definition.off = None;
        for rule in &mut definition.rules {
            rule.value = None;
        }
    }
    flag
}

impl Machine for Flags {
    const NAME: &'static str = "flags";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const STATE_VERSION: u32 = 1;

    fn router() -> Router<Self> {
        Router::new()
            .descriptor_set(pb::DESCRIPTOR_SET)
            .command("flags.v1.Flags/Set", Self::set)
            .command("flags.v1.Flags/Archive", Self::archive)
            .command("flags.v1.Flags/Delete", Self::delete)
            .command("flags.v1.Flags/SetSegment", Self::set_segment)
            .command("flags.v1.Flags/DeleteSegment", Self::delete_segment)
            .query("flags.v1.Flags/Get", Self::get)
            .query("flags.v1.Flags/List", Self::list)
            .query("flags.v1.Flags/GetSegment", Self::get_segment)
            .query("flags.v1.Flags/Evaluate", Self::evaluate)
            .query("flags.v1.Flags/EvaluateAll", Self::evaluate_all)
            .query("flags.v1.Flags/History", Self::history)
    }

    fn save(&self) -> Vec<u8> {
        snapshot::save(&self.state)
    }

    fn load(_: u32, bytes: &[u8]) -> Result<Self, Failure> {
        Ok(Self { state: snapshot::load(bytes)? })
    }
}

conclave_sdk::export!(Flags);
