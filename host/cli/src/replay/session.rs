//! Run of a replay, from its start to its report.

use serde_json::{Map, Value, json};

use super::{Arguments, entry, plan::Plan, private::Stop};
use crate::{Failed, Result, output::Output};
use conclave::replay::{Error, Messages, Player, Seen, Source, Start};
use conclave_machine::{Component, QueryError};
use conclave_types::{Call, Outcome};

/// Maximum number of traps that are reported with their index.
const TRAPS_MAX: usize = 100;

/// The source of a replay and its plan.
pub(super) struct Session {
    pub(super) source: Source,
    pub(super) other: Option<Component>,
    pub(super) plan: Plan,
    pub(super) stop: Stop,
}

/// The counts of outcomes, and the entries to show.
#[derive(Default)]
struct Tally {
    entries: u64,
    replies: u64,
    failures: u64,
    traps: u64,
    trapped: Vec<(u64, &'static str)>,
    compared: u64,
    different: u64,
    differences: Vec<(Seen, Seen)>,
    listed: Vec<Value>,
    /// The entry to show, with its outcome under each component.
    shown: Vec<Seen>,
}

fn failed(error: Error) -> Failed {
    Failed::of(&error)
}

impl Session {
    pub(super) async fn run(&self, arguments: &Arguments, output: &mut Output) -> Result {
        let Plan { begin, end, .. } = self.plan;
        self.source.check_end(end, arguments.uncommitted).map_err(failed)?;
        let start = self.source.start(begin).map_err(failed)?;
        if !self.plan.queries.is_empty() || self.plan.show.is_some() {
            output.remark("the following data was encrypted and may be secret");
        }
        let mut players = self.players(start.clone(), arguments.compare).await?;
        let tally = self.play(&mut players, arguments, &start, output).await?;
        let mut answers = Vec::new();
        for player in &players {
            self.ask(player, &mut answers).await?;
        }
        let report = self.report(&players, &tally, &start, answers);
        if arguments.json {
            output.value(&report);
        } else {
            self.print(&report, &tally, output);
        }
        Ok(())
    }

    /// Starts a player with the original components, one with the other component, or both in
    /// this order.
    async fn players(&self, start: Start, compare: bool) -> Result<Vec<Player>> {
        let with = |other| Player::start(&self.source, start.clone(), other);
        let mut players = Vec::new();
        if compare || self.other.is_none() {
            players.push(with(None).await.map_err(failed)?);
        }
        if let Some(other) = &self.other {
            players.push(with(Some(other.clone())).await.map_err(failed)?);
        }
        Ok(players)
    }

    async fn play(
        &self,
        players: &mut [Player],
        arguments: &Arguments,
        start: &Start,
        output: &mut Output,
    ) -> Result<Tally> {
        let end = self.plan.end;
        let mut tally = Tally::default();
        let mut progress = output.progress(end.saturating_sub(start.index()), "entries");
        loop {
            let mut batches = Vec::with_capacity(players.len());
            for player in players.iter_mut() {
                // A batch has thousands of entries, each of which may take a second.
                match self.stop.or(player.advance(end)).await {
                    Ok(advanced) => batches.push(advanced.map_err(failed)?.into_iter()),
                    Err(stopped) => {
                        progress.finish();
                        return Err(stopped);
                    }
                }
            }
            let (mut first, mut second) = {
                let mut batches = batches.into_iter();
                (batches.next().unwrap_or_default(), batches.next())
            };
            progress.advance(first.len() as u64);
            if first.len() == 0 || output.is_broken() {
                break;
            }
            for seen in &mut first {
                self.take(
                    &mut tally,
                    seen,
                    second.as_mut().and_then(Iterator::next),
                    arguments,
                    output,
                );
            }
        }
        progress.finish();
        Ok(tally)
    }

    /// Records one entry for the report. `twin` is the same entry, applied with the other component.
    fn take(
        &self,
        tally: &mut Tally,
        seen: Seen,
        twin: Option<Seen>,
        arguments: &Arguments,
        output: &mut Output,
    ) {
        tally.count(&seen);
        if self.plan.is_listed(seen.index) {
            match arguments.json {
                true => tally.listed.push(entry::brief(&seen)),
                false => output.line(entry::line(&seen)),
            }
        }
        let is_shown = self.plan.show == Some(seen.index);
        let Some(twin) = twin else {
            if is_shown {
                tally.shown.push(seen);
            }
            return;
        };
        if seen.kind.is_machines() {
            tally.compared += 1;
            tally.different += u64::from(seen.outcome != twin.outcome);
        }
        if is_shown {
            tally.shown.extend([seen, twin]);
        } else if seen.kind.is_machines()
            && seen.outcome != twin.outcome
            && tally.differences.len() < arguments.differences_max
        {
            tally.differences.push((seen, twin));
        }
    }

    async fn ask(&self, player: &Player, answers: &mut Vec<Value>) -> Result {
        let messages = Messages::of(player.component());
        for query in &self.plan.queries {
            let method = &query.method;
            let request = messages
                .encode_request(method, &query.request)
                .map_err(|error| Failed::usage(&error))?;
            let call = Call { method: method.as_str().into(), request, principal: "".into() };
            let answer = match self.stop.or(player.query(call)).await? {
                Ok(answered) => match &answered.result {
                    Ok(bytes) => entry::response(&messages, method, bytes),
                    Err(failure) => entry::failure(failure),
                },
                Err(Error::Query(QueryError::Trap(trap))) => {
                    json!({"trap": trap.kind.name(), "message": trap.message})
                }
                Err(error) => return Err(failed(error)),
            };
            answers.push(json!({
                "method": method,
                "index": player.index(),
                "component": player.component().id().to_string(),
                "answer": answer,
            }));
        }
        Ok(())
    }

    fn report(
        &self,
        players: &[Player],
        tally: &Tally,
        start: &Start,
        answers: Vec<Value>,
    ) -> Value {
        let (identity, span) = (self.source.identity(), self.source.span());
        let trapped =
            tally.trapped.iter().map(|(index, trap)| json!({"index": index, "trap": trap}));
        let mut report = Map::new();
        let mut set = |name: &str, value| report.insert(name.to_owned(), value);
        set("cluster", json!(identity.cluster_id));
        set("node", json!(identity.node_id));
        set("began_at", json!(start.index()));
        set(
            "began_with",
            json!(match start {
                Start::InitialComponent => "nothing",
                Start::Snapshot(_) => "snapshot",
            }),
        );
        set("index", json!(players.first().map_or(0, Player::index)));
        set("committed", json!(span.committed));
        set("last", json!(span.last));
        let components = players.iter().map(|player| player.component().id().to_string());
        set("components", json!(components.collect::<Vec<_>>()));
        set("entries", json!(tally.entries));
        set("replies", json!(tally.replies));
        set("failures", json!(tally.failures));
        set("traps", json!(tally.traps));
        set("trapped", Value::Array(trapped.collect()));
        if self.plan.entries.is_some() {
            set("listed", json!(tally.listed));
        }
        if !tally.shown.is_empty() {
            set("shown", Value::Array(tally.shown.iter().map(entry::whole).collect()));
        }
        if !answers.is_empty() {
            set("answers", Value::Array(answers));
        }
        if players.len() > 1 {
            let differences = tally.differences.iter().map(
                |(seen, twin)| json!({"entry": entry::whole(seen), "other": entry::outcome(twin)}),
            );
            let differences: Vec<_> = differences.collect();
            set("compared", json!(tally.compared));
            set("different", json!(tally.different));
            set("differences", Value::Array(differences));
        }
        Value::Object(report)
    }

    fn print(&self, report: &Value, tally: &Tally, output: &mut Output) {
        for seen in &tally.shown {
            entry::print(seen, output);
        }
        for answer in report["answers"].as_array().into_iter().flatten() {
            output.line(format!("{} at index {}:", text(&answer["method"]), answer["index"]));
            output.line(format!("{:#}", answer["answer"]));
        }
        for (seen, twin) in &tally.differences {
            output.line(format!("{}; the other component:", entry::line(seen)));
            output.line(format!("  {}", entry::line(twin)));
        }
        if report["different"].is_u64() {
            output.line(format!("{} of {} entries differ", tally.different, tally.compared));
        }
        let quiet = !tally.shown.is_empty() || !self.plan.queries.is_empty();
        if quiet || self.plan.entries.is_some() {
            return;
        }
        let start = match text(&report["began_with"]) {
            "snapshot" => format!("the snapshot at index {}", report["began_at"]),
            _ => "the beginning".to_owned(),
        };
        output.line(format!(
            "node {} of cluster {}: index {}, from {start}",
            report["node"],
            text(&report["cluster"]),
            report["index"]
        ));
        for component in report["components"].as_array().into_iter().flatten() {
            output.line(format!("component {}", text(component)));
        }
        output.line(format!(
            "{} entries applied: {} replies, {} failures, {} traps",
            tally.entries, tally.replies, tally.failures, tally.traps
        ));
        for (index, trap) in &tally.trapped {
            output.line(format!("entry {index} trapped: {trap}"));
        }
        let unsure = self.source.span().last.saturating_sub(self.source.span().committed);
        if unsure > 0 {
            output.remark(format!(
                "{unsure} more entries may not be committed; use --uncommitted --to {} to include them",
                report["last"]
            ));
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

impl Tally {
    fn count(&mut self, seen: &Seen) {
        self.entries += 1;
        match &seen.outcome {
            Some(Outcome::Trap(trap)) => {
                self.traps += 1;
                if self.trapped.len() < TRAPS_MAX {
                    self.trapped.push((seen.index, trap.kind.name()));
                }
            }
            Some(Outcome::Reply(_)) => self.replies += 1,
            Some(Outcome::Failure(_)) => self.failures += 1,
            None => {}
        }
    }
}
