//! One connection with two directions, each over its own link.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{BUFFER_CHUNKS, CHUNK_BYTES, Fault, Link, Part, Shape, Tally};

/// Bytes in transit. An empty chunk is the end of the stream, which is delivered like other packets.
struct Chunk {
    bytes: Bytes,
    arrives: Instant,
}

/// The end of one direction.
enum Ended {
    /// The sender closed it, and the receiver was notified.
    Closed,
    /// The connection must not be used any more: bytes were lost, or it was refused.
    Broken,
}

/// Forwards a connection until it ends. `server` is the connection to the receiving node. `None` if
/// that node refused it.
pub(super) async fn carry(
    client: TcpStream,
    server: Option<TcpStream>,
    request: Arc<Link>,
    response: Arc<Link>,
) {
    let Some(server) = server else {
        // The refusal is a packet in the direction of responses.
        wait_until_carried(&response).await;
        reset(&client);
        return;
    };
    if client.set_nodelay(true).is_err() || server.set_nodelay(true).is_err() {
        return;
    }
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    let requests = direction(client_reads, server_writes, &request, Part::Requests);
    let responses = direction(server_reads, client_writes, &response, Part::Responses);
    tokio::pin!(requests, responses);
    // Each direction is forwarded until it ends. If one breaks, dropping the streams resets both.
    tokio::select! {
        ended = &mut requests => if matches!(ended, Ended::Closed) { responses.await; },
        ended = &mut responses => if matches!(ended, Ended::Closed) { requests.await; },
    }
}

async fn direction(reads: OwnedReadHalf, writes: OwnedWriteHalf, link: &Link, part: Part) -> Ended {
    let (sender, receiver) = mpsc::channel(BUFFER_CHUNKS);
    let tally = Tally::new(link, part);
    let (read, written) =
        tokio::join!(read(reads, sender, &tally), write(writes, receiver, &tally));
    match (read, written) {
        (Ended::Closed, Ended::Closed) => Ended::Closed,
        _ => Ended::Broken,
    }
}

/// Reads bytes from the sender immediately, even while the link holds them.
async fn read(mut stream: OwnedReadHalf, chunks: mpsc::Sender<Chunk>, tally: &Tally<'_>) -> Ended {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let count = tokio::select! {
            count = stream.read(&mut buffer) => count.unwrap_or(0),
            () = chunks.closed() => {
                reset(stream.as_ref());
                return Ended::Broken;
            }
        };
        tally.took(count);
        let bytes = Bytes::copy_from_slice(&buffer[..count]);
        let arrives = Instant::now() + tally.shape().delay;
        if chunks.send(Chunk { bytes, arrives }).await.is_err() {
            return Ended::Broken;
        }
        if count == 0 {
            return Ended::Closed;
        }
    }
}

/// Writes bytes to the receiver when the link delivers them.
async fn write(
    mut stream: OwnedWriteHalf,
    chunks: mpsc::Receiver<Chunk>,
    tally: &Tally<'_>,
) -> Ended {
    let ended = deliver(&mut stream, chunks, tally).await;
    if matches!(ended, Ended::Broken) {
        reset(stream.as_ref());
    }
    ended
}

async fn deliver(
    stream: &mut OwnedWriteHalf,
    mut chunks: mpsc::Receiver<Chunk>,
    tally: &Tally<'_>,
) -> Ended {
    let mut shape = tally.watch();
    loop {
        let chunk = tokio::select! {
            chunk = chunks.recv() => chunk,
            () = refused(&mut shape) => return Ended::Broken,
        };
        let Some(chunk) = chunk else { return Ended::Broken };
        // A longer delay that is set meanwhile applies only to later bytes.
        sleep_until(chunk.arrives).await;
        let fault = shape.borrow_and_update().fault;
        match fault {
            Fault::None => {}
            Fault::Refuse => return Ended::Broken,
            Fault::Hold | Fault::Cut => {
                // Bytes are lost if a held link is cut, and stay lost if a cut link is held.
                let mut lost = fault == Fault::Cut;
                let repaired = shape.wait_for(|shape| {
                    lost |= shape.fault == Fault::Cut;
                    !matches!(shape.fault, Fault::Hold | Fault::Cut)
                });
                let Ok(shape) = repaired.await.map(|shape| *shape) else { return Ended::Broken };
                if lost || shape.fault == Fault::Refuse {
                    return Ended::Broken;
                }
            }
        }
        if chunk.bytes.is_empty() {
            let _ = stream.shutdown().await;
            return Ended::Closed;
        }
        if let Some(rate) = tally.shape().bytes_per_second {
            sleep(Duration::from_secs_f64(chunk.bytes.len() as f64 / rate.max(1) as f64)).await;
        }
        if stream.write_all(&chunk.bytes).await.is_err() {
            return Ended::Broken;
        }
        tally.gave(chunk.bytes.len());
    }
}

async fn refused(shape: &mut watch::Receiver<Shape>) {
    let refused = shape.wait_for(|shape| shape.fault == Fault::Refuse).await.is_ok();
    if !refused {
        // The network was dropped. Its connections end with it.
        std::future::pending::<()>().await;
    }
}

async fn wait_until_carried(link: &Link) {
    let mut shape = link.part(Part::Responses).subscribe();
    let _ = shape.wait_for(|shape| !matches!(shape.fault, Fault::Hold | Fault::Cut)).await;
}

/// Makes the kernel send RST when the stream is dropped.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}
