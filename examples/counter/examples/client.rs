//! Counts, as a program would: `cargo run -p counter --example counter-client -- 127.0.0.1:7101`.

use conclave_client::{CallOptions, Client};
use counter::{AddRequest, Count, GetRequest};

#[tokio::main]
#[allow(clippy::print_stdout, reason = "a program for the terminal")]
async fn main() -> anyhow::Result<()> {
    let mut nodes: Vec<_> = std::env::args().skip(1).collect();
    if nodes.is_empty() {
        nodes.push("127.0.0.1:7101".to_owned());
    }
    // Any node will do, and more than one survives the loss of one: the client finds the leader.
    let client = Client::builder().endpoints(nodes).build()?;

    let before: Count =
        client.call("counter.v1.Counter/Get", &GetRequest {}, &CallOptions::read()).await?;
    println!("the count is {}", before.count);

    // A command whose answer is lost may have been applied, and adding twice is not adding once: the
    // client does not send it again by itself. `Error::outcome_unknown` tells.
    let request = AddRequest { amount: 3 };
    let after: Count =
        client.call("counter.v1.Counter/Add", &request, &CallOptions::write()).await?;
    println!("3 more make {}", after.count);

    // The machine's own refusals are errors with the code and message that it chose.
    let request = AddRequest { amount: i64::MAX };
    let refused: Result<Count, _> =
        client.call("counter.v1.Counter/Add", &request, &CallOptions::write()).await;
    if let Err(error) = refused {
        println!("{} more are refused: {}: {error}", i64::MAX, error.code_name());
    }
    Ok(())
}
