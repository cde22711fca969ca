//! What operators ask of the nodes.

use std::time::Duration;

use prost::Message;
use tonic::Code;

use crate::{
    client::Client,
    error::Error,
    options::CallOptions,
    proto::cluster::{
        Limits, SetLimitsRequest, SetLimitsResponse, SetTimeRequest, SetTimeResponse,
        SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse, VerifyRequest,
        VerifyResponse,
    },
};

const SERVING: u8 = 1;
/// The usual time for work on a whole state.
const MINUTE: Duration = Duration::from_secs(60);

impl Client {
    /// The cluster as the answering node sees it. Works without a leader.
    pub async fn status(&self) -> Result<StatusResponse, Error> {
        self.call("conclave.cluster.v1.Cluster/Status", &StatusRequest {}, &CallOptions::read())
            .await
    }

    /// Makes one node take a snapshot now and purge its log up to it; answers with the index.
    pub async fn snapshot(&self) -> Result<u64, Error> {
        // A second snapshot does no harm.
        let options = CallOptions::write().retry_unknown(true).long(MINUTE);
        let response: SnapshotResponse = self
            .call("conclave.cluster.v1.Cluster/Snapshot", &SnapshotRequest {}, &options)
            .await?;
        Ok(response.index)
    }

    /// Has every voter hash its machine's state after one and the same entry. Whether they are equal is in the
    /// answer, and so are nodes that did not answer until shortly before the deadline.
    pub async fn verify(&self) -> Result<VerifyResponse, Error> {
        // A second verification does no harm.
        let options = CallOptions::write().retry_unknown(true).long(MINUTE);
        self.call("conclave.cluster.v1.Cluster/Verify", &VerifyRequest {}, &options).await
    }

    /// Sets the log's time forward, in milliseconds since the Unix epoch: keys and leases that end before then expire
    /// at once.
    pub async fn set_time(&self, time_ms: u64) -> Result<SetTimeResponse, Error> {
        let request = SetTimeRequest { time_ms };
        self.call("conclave.cluster.v1.Cluster/SetTime", &request, &CallOptions::write()).await
    }

    /// Changes limits that decide outcomes, for all entries after the answer's index. Absent ones stay.
    pub async fn set_limits(&self, limits: Limits) -> Result<SetLimitsResponse, Error> {
        let request = SetLimitsRequest { limits: Some(limits) };
        // Setting the same limits again does no harm.
        let options = CallOptions::write().retry_unknown(true);
        self.call("conclave.cluster.v1.Cluster/SetLimits", &request, &options).await
    }

    /// Whether the answering node says that it serves (grpc.health.v1). Ask one node by
    /// [`Builder::follow_leader`](crate::Builder::follow_leader)`(false)` and its endpoint alone.
    pub async fn is_serving(&self) -> Result<bool, Error> {
        // An empty request asks for the whole node; the response's only field is the status.
        let answer = self
            .call_raw_with("grpc.health.v1.Health/Check", Vec::new(), &CallOptions::read())
            .await?;
        Ok(answer.message.as_ref() == [0x08, SERVING])
    }

    /// The addresses that this client was given.
    pub fn endpoints(&self) -> Vec<String> {
        self.shared.nodes.addresses().map(str::to_owned).collect()
    }

    /// Calls a method whose messages are compiled in: those of the machine's crate, or what prost makes of its
    /// protobuf file. The options say whether it is a read, and whether a write may be sent twice.
    pub async fn call<Q: Message, R: Message + Default>(
        &self,
        method: &str,
        request: &Q,
        options: &CallOptions,
    ) -> Result<R, Error> {
        let answer = self.call_raw_with(method, request.encode_to_vec(), options).await?;
        R::decode(answer.message).map_err(|cause| {
            Error::new(Code::Internal, format!("{method} answered what does not decode: {cause}"))
        })
    }
}
