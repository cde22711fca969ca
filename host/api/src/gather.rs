//! A writer that combines responses that are ready together into one write.
//!
//! A connection's task writes as soon as the first of its calls is answered. The kernel's part of
//! writing was a third of a node's work on small queries. So before it writes, the task lets the
//! ready tasks run, some of which have responses for the same connection. With one call at a time,
//! this costs one more turn of an almost empty queue.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::AsyncWrite;

/// The writing half of a connection. It does not offer vectored writes: without them an HTTP/2
/// connection copies small payloads beside their frames, and one write takes many.
pub(super) struct Gather<W> {
    writer: W,
    /// True if the other tasks have had their turn since the last write.
    waited: bool,
}

impl<W> Gather<W> {
    pub(super) fn new(writer: W) -> Self {
        Self { writer, waited: false }
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Gather<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.waited {
            self.waited = true;
            // A task that wakes itself goes to the end of its queue.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let written = ready!(Pin::new(&mut self.writer).poll_write(cx, bytes));
        // A partial write is continued immediately.
        self.waited = written.as_ref().is_ok_and(|&written| written < bytes.len());
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use std::sync::{Arc, Mutex};

    use tokio::{io::AsyncWriteExt, sync::mpsc};

    use super::*;

    /// Records the bytes of each write, and accepts at most the given number of bytes per write.
    struct Notes(Arc<Mutex<Vec<Vec<u8>>>>, usize);

    impl AsyncWrite for Notes {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let taken = bytes.len().min(self.1);
            self.0.lock().unwrap().push(bytes[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_is_ready_together_is_written_together_and_nothing_is_lost() {
        let notes = Arc::<Mutex<Vec<_>>>::default();
        let mut gather = Gather::new(Notes(notes.clone(), 4));
        let (sender, mut receiver) = mpsc::unbounded_channel::<u8>();
        for byte in 0..10 {
            let sender = sender.clone();
            tokio::spawn(async move { sender.send(byte).unwrap() });
        }
        drop(sender);
        // Like a connection: when it is polled again, its buffer holds the bytes that
        // have arrived meanwhile.
        let mut buffer = vec![receiver.recv().await.unwrap()];
        let first = std::future::poll_fn(|cx| {
            while let Ok(byte) = receiver.try_recv() {
                buffer.push(byte);
            }
            Pin::new(&mut gather).poll_write(cx, &buffer)
        });
        let written = first.await.unwrap();
        gather.write_all(&buffer[written..]).await.unwrap();
        let notes = notes.lock().unwrap();
        assert_eq!(notes.concat(), (0..10).collect::<Vec<u8>>());
        assert_eq!(notes[0].len(), 4);
    }
}
