//! Calls for operators.

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
/// The usual time of an operation on the whole state.
const MINUTE: Duration = Duration::from_secs(60);

impl Client {
    /// Returns the cluster as the responding node sees it. Works without a leader.
    pub async fn status(&self) -> Result<StatusResponse, Error> {
        self.call("conclave.cluster.v1.Cluster/Status", &StatusRequest {}, &CallOptions::read())
            .await
    }

    /// Makes one node take a snapshot now and purge its log up to it. Returns the snapshot's index.
    pub async fn snapshot(&self) -> Result<u64, Error> {
        // A second snapshot is harmless.
        let options = CallOptions::write().retry_unknown(true).long(MINUTE);
        let response: SnapshotResponse = self
            .call("conclave.cluster.v1.Cluster/Snapshot", &SnapshotRequest {}, &options)
            .await?;
        Ok(response.index)
    }

    /// Has every voter hash its state after the same entry. The response says whether the states
    /// are equal, and lists the nodes that did not respond until shortly before the deadline.
    pub async fn verify(&self) -> Result<VerifyResponse, Error> {
        // A second verification is harmless.
        let options = CallOptions::write().retry_unknown(true).long(MINUTE);
        self.call("conclave.cluster.v1.Cluster/Verify", &VerifyRequest {}, &options).await
    }

    /// Advances the log's time, in milliseconds since the Unix epoch. Keys and leases that end
    /// before this time expire immediately.
    pub async fn set_time(&self, time_ms: u64) -> Result<SetTimeResponse, Error> {
        let request = SetTimeRequest { time_ms };
        self.call("conclave.cluster.v1.Cluster/SetTime", &request, &CallOptions::write()).await
    }

    /// Changes limits that influence outcomes, for all entries after the returned index. Omitted
    /// limits are unchanged.
    pub async fn set_limits(&self, limits: Limits) -> Result<SetLimitsResponse, Error> {
        let request = SetLimitsRequest { limits: Some(limits) };
        // Setting the same limits again is harmless.
        let options = CallOptions::write().retry_unknown(true);
        self.call("conclave.cluster.v1.Cluster/SetLimits", &request, &options).await
    }

    /// Returns whether the responding node is serving (grpc.health.v1). To check one certain node,
    /// use [`Builder::follow_leader`](crate::Builder::follow_leader)`(false)` and its endpoint alone.
    pub async fn is_serving(&self) -> Result<bool, Error> {
        // An empty request means the whole node. The response has the status as its only field.
        let answer = self
            .call_raw_with("grpc.health.v1.Health/Check", Vec::new(), &CallOptions::read())
            .await?;
        Ok(answer.message.as_ref() == [0x08, SERVING])
    }

    /// Returns the endpoints of this client.
    pub fn endpoints(&self) -> Vec<String> {
        self.shared.nodes.addresses().map(str::to_owned).collect()
    }

    /// Calls a method with compiled message types: those of the state machine's crate, or prost's code
    /// for its protobuf file. The options say whether it is a read, and whether a write may be repeated.
    pub async fn call<Q: Message, R: Message + Default>(
        &self,
        method: &str,
        request: &Q,
        options: &CallOptions,
    ) -> Result<R, Error> {
        let answer = self.call_raw_with(method, request.encode_to_vec(), options).await?;
        R::decode(answer.message).map_err(|cause| {
            let message = format!("the response of {method} does not decode");
            Error::new(Code::Internal, message).with_source(cause)
        })
    }
}
