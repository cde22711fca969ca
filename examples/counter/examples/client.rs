//! A client of the counter: `cargo run -p counter --example counter-client -- 127.0.0.1:7101`.

use conclave_client::{CallOptions, Client};
use counter::{AddRequest, Count, GetRequest};

#[tokio::main]
#[allow(clippy::print_stdout, reason = "a program for the terminal")]
async fn main() -> anyhow::Result<()> {
    let mut nodes: Vec<_> = std::env::args().skip(1).collect();
    if nodes.is_empty() {
        nodes.push("127.0.0.1:7101".to_owned());
    }
    // One node is enough, because the client finds the leader. A list of several nodes survives the
    // loss of one.
    let client = Client::builder().endpoints(nodes).build()?;

    let before: Count =
        client.call("counter.v1.Counter/Get", &GetRequest {}, &CallOptions::read()).await?;
    println!("the count is {}", before.count);

    // If a reply is lost, the command may have been applied, and a second Add would count twice.
    // The client therefore does not retry it. `Error::outcome_unknown` reports this case.
    let request = AddRequest { amount: 3 };
    let after: Count =
        client.call("counter.v1.Counter/Add", &request, &CallOptions::write()).await?;
    println!("3 more make {}", after.count);

    // Failures of the state machine are errors with the code and the message that it returned.
    let request = AddRequest { amount: i64::MAX };
    let refused: Result<Count, _> =
        client.call("counter.v1.Counter/Add", &request, &CallOptions::write()).await;
    if let Err(error) = refused {
        println!("{} more are refused: {}: {error}", i64::MAX, error.code_name());
    }
    Ok(())
}
