//! A producer and two workers: `cargo run -p queue --example queue-client -- 127.0.0.1:7101`.
//!
//! One worker does its work. The other crashes on a message that no worker can process; this
//! message comes back until it becomes a dead letter.

use std::time::Duration;

use anyhow::ensure;
use conclave_client::{CallOptions, Client};
use queue::pb::{
    AckRequest, AckResponse, ConfigureRequest, ConfigureResponse, DeadLettersRequest,
    DeadLettersResponse, DeleteRequest, DeleteResponse, EnqueueRequest, EnqueueResponse, Message,
    ReceiveRequest, ReceiveResponse, StatsRequest, StatsResponse,
};
use tokio::time::Instant;

const QUEUE: &str = "mail";
const LEASE_MS: u64 = 500;
const PATIENCE: Duration = Duration::from_secs(60);

struct Queue(Client);

impl Queue {
    async fn enqueue(&self, text: &str, key: &str) -> anyhow::Result<EnqueueResponse> {
        let request = EnqueueRequest {
            queue: QUEUE.to_owned(),
            payload: text.as_bytes().to_vec(),
            idempotency_key: key.to_owned(),
        };
        // The key makes retries safe, so the client may retry if a reply was lost.
        let options = CallOptions::write().retry_unknown(true);
        Ok(self.0.call("queue.v1.Queue/Enqueue", &request, &options).await?)
    }

    async fn receive(&self, count: u32) -> anyhow::Result<Vec<Message>> {
        // A lost reply costs one lease: its messages come back by themselves.
        let options = CallOptions::write().retry_unknown(true);
        let request = ReceiveRequest { queue: QUEUE.to_owned(), count, lease_ms: LEASE_MS };
        let response: ReceiveResponse =
            self.0.call("queue.v1.Queue/Receive", &request, &options).await?;
        Ok(response.messages)
    }

    async fn ack(&self, message: &Message) -> anyhow::Result<bool> {
        let (id, receipt) = (message.id, message.receipt);
        let request = AckRequest { queue: QUEUE.to_owned(), id, receipt };
        let options = CallOptions::write().retry_unknown(true);
        let response: AckResponse = self.0.call("queue.v1.Queue/Ack", &request, &options).await?;
        Ok(response.acked)
    }

    async fn stats(&self) -> anyhow::Result<StatsResponse> {
        let request = StatsRequest { queue: QUEUE.to_owned() };
        Ok(self.0.call("queue.v1.Queue/Stats", &request, &CallOptions::read()).await?)
    }
}

#[tokio::main]
#[allow(clippy::print_stdout, reason = "a program for the terminal")]
async fn main() -> anyhow::Result<()> {
    let mut nodes: Vec<_> = std::env::args().skip(1).collect();
    if nodes.is_empty() {
        nodes.push("127.0.0.1:7101".to_owned());
    }
    let client = Client::builder().endpoints(nodes).build()?;
    let again = CallOptions::write().retry_unknown(true);
    // Starts with an empty queue, so that each run has the same output.
    let request = DeleteRequest { queue: QUEUE.to_owned() };
    let _: DeleteResponse = client.call("queue.v1.Queue/Delete", &request, &again).await?;
    let request = ConfigureRequest { queue: QUEUE.to_owned(), receives_max: 3 };
    let _: ConfigureResponse = client.call("queue.v1.Queue/Configure", &request, &again).await?;
    let queue = Queue(client);

    for (text, key) in [("to Ada", "mail-1"), ("poison", "mail-2"), ("to Grace", "mail-3")] {
        queue.enqueue(text, key).await?;
    }
    let repeated = queue.enqueue("to Ada", "mail-1").await?;
    println!("3 messages are in; sent again, the first is a duplicate: {}", repeated.duplicate);

    let deadline = Instant::now() + PATIENCE;
    loop {
        ensure!(Instant::now() < deadline, "the queue did not become empty within {PATIENCE:?}");
        for message in queue.receive(1).await? {
            let text = String::from_utf8_lossy(&message.payload).into_owned();
            if text == "poison" {
                println!("time {} with {text:?}: the worker dies over it", message.receives);
            } else {
                println!("{text:?} is done: {}", queue.ack(&message).await?);
            }
        }
        let stats = queue.stats().await?;
        if stats.ready + stats.leased == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(LEASE_MS / 5)).await;
    }
    let request = DeadLettersRequest { queue: QUEUE.to_owned(), after: 0, limit: 0 };
    let dead: DeadLettersResponse =
        queue.0.call("queue.v1.Queue/DeadLetters", &request, &CallOptions::read()).await?;
    for letter in dead.messages {
        let text = String::from_utf8_lossy(&letter.payload).into_owned();
        println!("dead letter {text:?}, given out {} times", letter.receives);
    }
    Ok(())
}
