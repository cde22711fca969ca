//! A client of the feature flags: `cargo run -p flags --example flags-client -- 127.0.0.1:7101`.
//!
//! Rolls out a flag in steps, shows a conflict with an outdated version, and stores a credential
//! that lists do not show.

use conclave_client::{CallOptions, Client, Error};
use flags::pb::{
    Definition, EvaluateAllRequest, EvaluateAllResponse, EvaluateRequest, Evaluation, Flag,
    GetRequest, HistoryRequest, HistoryResponse, ListRequest, ListResponse, Rule, SetRequest,
    SetResponse, Value, change, value::Kind,
};

const FLAG: &str = "checkout/new";
const CREDENTIAL: &str = "payments/token";

struct Flags(Client);

impl Flags {
    /// With a version, a change that is sent twice fails the second time. The client does not retry
    /// it: if the outcome is unknown, the caller reads the flag.
    async fn set(
        &self,
        name: &str,
        definition: Definition,
        expected_version: u64,
        note: &str,
    ) -> Result<u64, Error> {
        let (name, note) = (name.to_owned(), note.to_owned());
        let request = SetRequest { name, definition: Some(definition), expected_version, note };
        let response: SetResponse =
            self.0.call("flags.v1.Flags/Set", &request, &CallOptions::write()).await?;
        Ok(response.version)
    }

    /// Returns the flag's version, or 0 if there is no such flag.
    async fn version(&self, name: &str) -> Result<u64, Error> {
        let request = GetRequest { name: name.to_owned() };
        let flag = self.0.call("flags.v1.Flags/Get", &request, &CallOptions::read()).await;
        match flag {
            Ok(Flag { version, .. }) => Ok(version),
            Err(error) if error.is_not_found() => Ok(0),
            Err(error) => Err(error),
        }
    }

    async fn evaluate(&self, name: &str, subject: &str) -> Result<Evaluation, Error> {
        let (name, subject) = (name.to_owned(), subject.to_owned());
        let request = EvaluateRequest { name, subject, ..EvaluateRequest::default() };
        self.0.call("flags.v1.Flags/Evaluate", &request, &CallOptions::read()).await
    }
}

fn is_on(evaluation: &Evaluation) -> bool {
    let kind = evaluation.value.as_ref().and_then(|value| value.kind.as_ref());
    matches!(kind, Some(Kind::Bool(true)))
}

fn boolean(on: bool) -> Option<Value> {
    Some(Value { kind: Some(Kind::Bool(on)) })
}

/// A flag that is on for Ada, and for a share of the others in hundredths of a percent.
fn rolled_out(rollout: u32) -> Definition {
    let testers =
        Rule { subjects: vec!["ada".to_owned()], value: boolean(true), ..Rule::default() };
    let share = Rule { rollout: Some(rollout), value: boolean(true), ..Rule::default() };
    Definition {
        description: "The new checkout".to_owned(),
        enabled: true,
        off: boolean(false),
        rules: vec![testers, share],
        ..Definition::default()
    }
}

#[tokio::main]
#[allow(clippy::print_stdout, reason = "a program for the terminal")]
async fn main() -> anyhow::Result<()> {
    let mut nodes: Vec<_> = std::env::args().skip(1).collect();
    if nodes.is_empty() {
        nodes.push("127.0.0.1:7101".to_owned());
    }
    let flags = Flags(Client::builder().endpoints(nodes).build()?);

    let seen = flags.version(FLAG).await?;
    let mut version = seen;
    for rollout in [500, 2500, 10_000] {
        version = flags.set(FLAG, rolled_out(rollout), version, "step by step").await?;
        let mut on = 0;
        for number in 0..40 {
            on += u32::from(is_on(&flags.evaluate(FLAG, &format!("user-{number}")).await?));
        }
        let ada = is_on(&flags.evaluate(FLAG, "ada").await?);
        println!("{FLAG} at {} %: on for {on} of 40 users, and for Ada: {ada}", rollout / 100);
    }
    if let Err(error) = flags.set(FLAG, rolled_out(0), seen, "too late").await {
        println!("a colleague with an outdated version: {}: {error}", error.code_name());
    }

    let token = Definition {
        secret: true,
        off: Some(Value { kind: Some(Kind::Text("s3cr3t-token".to_owned())) }),
        ..Definition::default()
    };
    let known = flags.version(CREDENTIAL).await?;
    flags.set(CREDENTIAL, token, known, "rotated").await?;
    let token = flags.evaluate(CREDENTIAL, "payments-service").await?;
    if let Some(Value { kind: Some(Kind::Text(token)) }) = token.value {
        println!("Evaluate of {CREDENTIAL} returns {} characters", token.len());
    }
    let list: ListResponse =
        flags.0.call("flags.v1.Flags/List", &ListRequest::default(), &CallOptions::read()).await?;
    println!("the list omits it: {}", !format!("{list:?}").contains("s3cr3t"));
    let request = EvaluateAllRequest { subject: "ada".to_owned(), ..EvaluateAllRequest::default() };
    let all: EvaluateAllResponse =
        flags.0.call("flags.v1.Flags/EvaluateAll", &request, &CallOptions::read()).await?;
    println!("EvaluateAll omits it too: {} flag", all.evaluations.len());

    let request = HistoryRequest { name: FLAG.to_owned(), before: 0, limit: 2 };
    let history: HistoryResponse =
        flags.0.call("flags.v1.Flags/History", &request, &CallOptions::read()).await?;
    for change in history.changes {
        let kind = change::Kind::try_from(change.kind).unwrap_or_default();
        let (number, what, note) = (change.number, change.what, change.note);
        println!("change {number}: {} {what}: {note}", kind.as_str_name());
    }
    Ok(())
}
