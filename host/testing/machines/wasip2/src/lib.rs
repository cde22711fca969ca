//! The raffle of `examples/raffle`, in Rust for wasm32-wasip2. It uses features that state machines for
//! wasm32-unknown-unknown do not have: hash tables, the clock, random numbers, and standard output.

use std::{
    collections::HashMap,
    env, fs, thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use conclave_sdk::{Call, Context, Failure, Machine, Reply};

#[derive(Default)]
struct Raffle {
    tickets: HashMap<String, u32>,
    winners: Vec<String>,
}

impl Machine for Raffle {
    const NAME: &'static str = "raffle";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const STATE_VERSION: u32 = 1;

    fn apply(&mut self, _: &Context, call: &Call) -> Result<Reply, Failure> {
        match call.method.as_str() {
            "raffle.v1.Raffle/Enter" => self.enter(text(&call.request)?),
            "raffle.v1.Raffle/Draw" => self.draw(),
            // A state machine must not do this: the order of a hash table may differ between instances.
            "raffle.v1.Raffle/Unsorted" => {
                let names: Vec<_> = self.tickets.keys().map(String::as_str).collect();
                Ok(Reply::new(names.join(" ")))
            }
            "raffle.v1.Raffle/Panic" => {
                self.tickets.clear();
                panic!("broken on purpose");
            }
            _ => Err(Failure::unimplemented("there is no such method")),
        }
    }

    fn query(&self, _: &Context, call: &Call) -> Result<Vec<u8>, Failure> {
        match call.method.as_str() {
            "raffle.v1.Raffle/Names" => Ok(self.names().join(" ").into_bytes()),
            "raffle.v1.Raffle/World" => Ok(world().into_bytes()),
            _ => Err(Failure::unimplemented("there is no such method")),
        }
    }

    fn save(&self) -> Vec<u8> {
        let tickets = self.names().into_iter().map(|name| format!("{} {name}\n", self.tickets[name]));
        let winners = self.winners.iter().map(|winner| format!("won {winner}\n"));
        tickets.chain(winners).collect::<String>().into_bytes()
    }

    fn load(_: u32, bytes: &[u8]) -> Result<Self, Failure> {
        let mut restored = Self::default();
        for line in text(bytes)?.lines() {
            match line.split_once(' ') {
                Some(("won", winner)) => restored.winners.push(winner.to_owned()),
                Some((tickets, name)) => {
                    let tickets =
                        tickets.parse().map_err(|_| Failure::invalid_argument("not a number"))?;
                    restored.tickets.insert(name.to_owned(), tickets);
                }
                None => return Err(Failure::invalid_argument("not a line of a raffle")),
            }
        }
        Ok(restored)
    }
}

impl Raffle {
    fn enter(&mut self, name: String) -> Result<Reply, Failure> {
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(Failure::invalid_argument("a name is one word"));
        }
        let tickets = self.tickets.entry(name).or_default();
        *tickets += 1;
        Ok(Reply::new(tickets.to_string()))
    }

    fn draw(&mut self) -> Result<Reply, Failure> {
        let names = self.names();
        if names.is_empty() {
            return Err(Failure::failed_precondition("there are no tickets"));
        }
        let chance = getrandom::u64().expect("random numbers are available");
        let name = names[(chance % names.len() as u64) as usize].to_owned();
        let at = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_millis();
        println!("{name} wins");
        self.tickets.remove(&name);
        self.winners.push(format!("{name} {at}"));
        Ok(Reply::new(format!("{name} {at}")))
    }

    fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.tickets.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }
}

/// The other facilities of the standard library.
fn world() -> String {
    let start = Instant::now();
    thread::sleep(Duration::from_secs(3600));
    let (variables, arguments) = (env::vars().count(), env::args().count());
    let file = fs::read("/etc/hostname").is_ok();
    format!("{:?} {variables} {arguments} {file}", start.elapsed())
}

fn text(bytes: &[u8]) -> Result<String, Failure> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Failure::invalid_argument("not text"))
}

conclave_sdk::export!(Raffle);
