//! Parses schedules.

use std::str::FromStr;

use anyhow::{Context as _, Error, Result, bail};

use super::{Event, Fault, Schedule, Target};

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut schedule =
            Self { nodes: 3, length_ms: 20_000, snapshots: false, events: Vec::new() };
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut words = line.split_whitespace();
            let first = words.next().unwrap_or_default();
            if first == "nodes" {
                schedule.header(line).with_context(|| format!("in {line:?}"))?;
            } else {
                schedule.events.push(line.parse().with_context(|| format!("in {line:?}"))?);
            }
        }
        Ok(schedule)
    }
}

impl Schedule {
    fn header(&mut self, line: &str) -> Result<()> {
        let mut words = line.split_whitespace();
        while let Some(word) = words.next() {
            match word {
                "nodes" => self.nodes = number(words.next())?,
                "length" => self.length_ms = number(words.next())?,
                "snapshots" => self.snapshots = true,
                _ => bail!("{word:?} is not one of nodes, length and snapshots"),
            }
        }
        Ok(())
    }
}

impl FromStr for Event {
    type Err = Error;

    fn from_str(line: &str) -> Result<Self> {
        let mut words = line.split_whitespace();
        let times = words.next().and_then(|word| word.split_once('+'));
        let (at, length) = times.context("the time is missing, such as 1200+900")?;
        let (at_ms, for_ms) = (number(Some(at))?, number(Some(length))?);
        let name = words.next().context("no fault")?;
        let mut target = || target(words.next());
        let fault = match name {
            "pause" => Fault::Pause(target()?),
            "kill" => Fault::Kill(target()?),
            "stop" => Fault::Stop(target()?),
            "kill-all" => Fault::KillAll,
            "isolate" => Fault::Isolate(target()?),
            "deafen" => Fault::Deafen(target()?),
            "mute" => Fault::Mute(target()?),
            "cut" => Fault::Cut(target()?, target()?),
            "cut-one-way" => Fault::CutOneWay(target()?, target()?),
            "hold" => Fault::Hold(target()?),
            "hold-inbound" => Fault::HoldInbound(target()?),
            "late-answers" => Fault::LateAnswers(false),
            "late-answers-paused" => Fault::LateAnswers(true),
            "refuse" => Fault::Refuse(target()?),
            "delay-all" => Fault::DelayAll(number(words.next())?),
            "delay" => Fault::Delay(target()?, number(words.next())?),
            "throttle" => Fault::Throttle(target()?, number(words.next())?),
            "hang-disk" => Fault::HangDisk(target()?),
            "clock" => {
                let target = target()?;
                let seconds = words.next().and_then(|word| word.parse().ok());
                Fault::Clock(target, seconds.context("no number of seconds")?)
            }
            "trap" => Fault::Trap,
            "diverge" => Fault::Diverge(target()?),
            "snapshot" => Fault::Snapshot(target()?),
            "upgrade" => Fault::Upgrade,
            _ => bail!("there is no fault {name:?}"),
        };
        if let Some(word) = words.next() {
            bail!("unexpected {word:?}");
        }
        Ok(Self { at_ms, for_ms, fault })
    }
}

fn number(word: Option<&str>) -> Result<u64> {
    let word = word.context("a number is missing")?;
    word.parse().with_context(|| format!("{word:?} is not a number"))
}

fn target(word: Option<&str>) -> Result<Target> {
    let word = word.context("a node is missing")?;
    let numbered = |prefix: &str| word.strip_prefix(prefix)?.parse().ok();
    if word == "leader" {
        Ok(Target::Leader)
    } else if let Some(id) = numbered("node-") {
        Ok(Target::Node(id))
    } else if let Some(number) = numbered("follower-") {
        Ok(Target::Follower(number))
    } else {
        bail!("{word:?} is not a node such as leader, follower-1 or node-1")
    }
}
