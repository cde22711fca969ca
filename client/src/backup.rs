//! Backups of a cluster.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::time::timeout;
use tonic::{Code, Request, Streaming};

use crate::{
    client::{Client, ready},
    codec::BytesCodec,
    error::Error,
    method::MethodName,
    options::CallOptions,
    proto::cluster::{BackupEnd, BackupPart, CreateBackupRequest, WrappingKey, backup_part::Part},
    retry::Failure,
};

/// Deadline for the beginning of a backup, before which the node takes a snapshot.
const LONG: Duration = Duration::from_secs(280);
/// Maximum time without a part.
const STALL_MAX: Duration = Duration::from_secs(60);

/// A backup that is being received from one node.
pub struct BackupStream {
    stream: Streaming<Bytes>,
    ended: bool,
}

/// A part of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupData {
    /// The next bytes of the file.
    Bytes(Bytes),
    /// The end, with the size of the file and the BLAKE3 hash of its bytes.
    End {
        /// The size in bytes.
        bytes: u64,
        /// The hash.
        blake3: Vec<u8>,
    },
}

impl Client {
    /// Begins a backup at the first node that can take it. It covers every write that was
    /// acknowledged before the call. Without a key, the node's master key protects it.
    pub async fn create_backup(&self, key: Option<WrappingKey>) -> Result<BackupStream, Error> {
        let path = MethodName::parse("conclave.cluster.v1.Cluster/CreateBackup")?.path()?;
        let request: Bytes = CreateBackupRequest { key }.encode_to_vec().into();
        let bytes_max = self.shared.response_bytes_max;
        let options = CallOptions { spread: true, ..CallOptions::read().long(LONG) };
        let response = self
            .run(&options, |channel, mut metadata| {
                // The node would apply it to the whole stream.
                metadata.remove("grpc-timeout");
                let mut message = Request::new(request.clone());
                *message.metadata_mut() = metadata;
                let path = path.clone();
                async move {
                    let mut grpc = ready(channel, bytes_max).await?;
                    grpc.server_streaming(message, path, BytesCodec).await
                }
            })
            .await?;
        Ok(BackupStream { stream: response.into_inner(), ended: false })
    }
}

impl BackupStream {
    /// Returns the next part. `None` only after the end: a backup without an end is an error.
    pub async fn next(&mut self) -> Result<Option<BackupData>, Error> {
        if self.ended {
            return Ok(None);
        }
        let message = timeout(STALL_MAX, self.stream.message()).await.map_err(|_| {
            Error::new(Code::DeadlineExceeded, "the node has sent nothing for a minute")
        })?;
        let message = message.map_err(|status| {
            let Failure { code, message, .. } = Failure::read(&status);
            Error::new(code, message)
        })?;
        let lost = || Error::new(Code::DataLoss, "the node ended the backup before its end");
        let part = BackupPart::decode(message.ok_or_else(lost)?);
        let part = part.map_err(|cause| {
            Error::new(Code::Internal, "a part of the backup does not decode").with_source(cause)
        })?;
        Ok(Some(match part.part.ok_or_else(lost)? {
            Part::Bytes(bytes) => BackupData::Bytes(bytes.into()),
            Part::End(BackupEnd { bytes, blake3 }) => {
                self.ended = true;
                BackupData::End { bytes, blake3 }
            }
        }))
    }
}
